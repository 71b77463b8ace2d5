"""A web application that locks a slot for each request, and a server that loads it, with an open Library,
before it forks its workers.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from support import answer_over, nothing_is_locked, wait_until

from luna_ext.stub import Cluster

# The counter is right in the end only if the lock keeps the requests apart.
APPLICATION = """
import os, time
from luna_ext.stub import STATE_VARIABLE, Cluster

luna = Cluster(os.environ[STATE_VARIABLE]).library()
with luna.slot(1):
    luna.tokens()

def application(environ, start_response):
    slot = luna.slot(1)
    with slot.lock(timeout=30) if environ["PATH_INFO"] == "/timed" else slot:
        slot.ensure_held()
        if environ["PATH_INFO"] == "/hold":
            with open(os.environ["COUNTER"], "w") as file:
                file.write("held")
            time.sleep(60)
        with open(os.environ["COUNTER"]) as file:
            number = int(file.read())
        with open(os.environ["COUNTER"], "w") as file:
            file.write(str(number + 1))
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(os.getpid()).encode()]
"""
SIGTERM_SECONDS = 2.0
"""After a SIGTERM a lock that a request holds is free within this time."""


class Server:
    """A server of this application on a Unix socket, in a process group of its own."""

    def __init__(self, directory: Path) -> None:
        (directory / "application.py").write_text(APPLICATION)
        self.counter = directory / "counter"
        self.counter.write_text("0")
        self.address = str(directory / "socket")
        self.log = directory / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                list(self.command(directory)),
                cwd=directory,
                env={
                    **os.environ,
                    "COUNTER": str(self.counter),
                    "PYTHONPATH": os.pathsep.join(filter(None, [str(directory), *sys.path])),
                },
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_until(lambda: self.is_ready() or self.process.poll() is not None)
        assert self.process.poll() is None, self.log.read_text()

    def command(self, directory: Path) -> Sequence[Any]:
        raise NotImplementedError

    def is_ready(self) -> bool:
        raise NotImplementedError

    def terminate(self, worker: int) -> None:
        """Have a worker, which is busy with a request, ended by SIGTERM."""
        raise NotImplementedError

    def request(self, path: str) -> int:
        """The PID of the worker that answered."""
        head, body = answer_over(self.address, path)
        assert " 200 OK" in head, self.log.read_text()
        return int(body)

    def kill(self) -> None:
        """End the master and its workers at once, whatever they do."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(30)


def assert_twenty_requests_are_served(cluster: Cluster, server: Server) -> None:
    """By two workers, each of which is replaced after five requests or some more."""
    workers = {server.request(path) for path in ("/", "/timed") * 10}
    assert server.counter.read_text() == "20"
    assert len(workers) >= 3
    assert server.process.pid not in workers
    wait_until(lambda: nothing_is_locked(cluster))


def assert_sigterm_frees_the_lock(cluster: Cluster, server: Server) -> None:
    failures: list[Exception] = []

    def hold() -> None:
        try:
            server.request("/hold")
        except (AssertionError, OSError) as error:
            # There may be an answer of no status, or none.
            failures.append(error)

    holding = threading.Thread(target=hold)
    holding.start()
    # Not only by a worker that is just loading the application.
    wait_until(lambda: server.counter.read_text() == "held" or failures)
    assert failures == [], server.log.read_text()
    holder = cluster.tokens()[0].owner
    assert holder is not None
    began = time.monotonic()
    server.terminate(holder)
    wait_until(lambda: cluster.tokens()[0].owner != holder)
    # The device hears of a process's end at once; the rest is for a slow machine.
    assert time.monotonic() - began < SIGTERM_SECONDS + 2
    server.kill()
    holding.join(30)
