"""uWSGI, whose master loads the application with an open Library, and forks its workers in C."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from support import answer_over, nothing_is_locked, wait_until

UWSGI = shutil.which("uwsgi", path=str(Path(sys.executable).parent))
pytestmark = pytest.mark.skipif(UWSGI is None, reason="uWSGI is not installed (PyPI: uwsgi)")

APPLICATION = """
import os, time
from luna_ext.stub import STATE_VARIABLE, Cluster

luna = Cluster(os.environ[STATE_VARIABLE]).library()
with luna.slot(1):
    luna.tokens()

def application(environ, start_response):
    with luna.slot(1) as slot:
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
FORMS = {
    "defaults": [],
    "lazy-apps": ["--lazy-apps"],
    "py-call-osafterfork": ["--py-call-osafterfork"],
    "threads": ["--enable-threads", "--threads=2"],
}


class Server:
    def __init__(self, directory, options):
        (directory / "application.py").write_text(APPLICATION)
        self.counter = directory / "counter"
        self.counter.write_text("0")
        self.address = str(directory / "socket")
        self.log = directory / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [
                    *(UWSGI, "--master", "--processes=2", "--die-on-term", "--need-app"),
                    *("--http-socket", self.address, "--wsgi-file", "application.py"),
                    # A worker is replaced after so many requests.
                    *("--max-requests=5", "--min-worker-lifetime=0", "--home", sys.prefix),
                    *("--worker-reload-mercy=2", "--mule-reload-mercy=2", *options),
                ],
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
        wait_until(lambda: os.path.exists(self.address) or self.process.poll() is not None)
        assert self.process.poll() is None, self.log.read_text()

    def request(self, path):
        """The PID of the worker that answered."""
        head, body = answer_over(self.address, path)
        assert " 200 OK" in head, self.log.read_text()
        return int(body)

    def stop(self):
        # The master and its workers at once, whatever they do.
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(30)


@pytest.fixture
def serve(cluster, tmp_path):
    servers = []

    def start(options):
        servers.append(Server(tmp_path, options))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.mark.parametrize("options", FORMS.values(), ids=FORMS)
def test_twenty_requests_that_lock_are_served(cluster, serve, options):
    server = serve(options)
    workers = {server.request("/") for _ in range(20)}
    assert server.counter.read_text() == "20"
    # At least one was replaced on the way.
    assert len(workers) >= 3
    assert server.process.pid not in workers
    wait_until(lambda: nothing_is_locked(cluster))


@pytest.mark.parametrize("options", FORMS.values(), ids=FORMS)
def test_sigterm_frees_the_lock_that_a_worker_holds(cluster, serve, options):
    server = serve(options)

    def hold():
        # There may be an answer of no status, or none.
        with contextlib.suppress(AssertionError, OSError):
            server.request("/hold")

    holding = threading.Thread(target=hold)
    holding.start()
    # Not only by a worker that is just loading the application.
    wait_until(lambda: server.counter.read_text() == "held")
    holder = cluster.tokens()[0].owner
    began = time.monotonic()
    os.kill(holder, signal.SIGTERM)
    wait_until(lambda: cluster.tokens()[0].owner != holder)
    # The device hears of a process's end at once; the rest is for a slow machine.
    assert time.monotonic() - began < 2 + 2
    server.stop()
    holding.join(30)
