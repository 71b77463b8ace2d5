"""gunicorn, whose master loads the application with an open Library, and forks its workers."""

import os
import re
import signal
import subprocess
import sys
import threading

import pytest
from support import answer_over, nothing_is_locked

APPLICATION = """
import os
from luna_ext.stub import STATE_VARIABLE, Cluster

luna = Cluster(os.environ[STATE_VARIABLE]).library()
with luna.slot(1):
    luna.tokens()

def application(environ, start_response):
    slot = luna.slot(1)
    with slot.lock(timeout=30) if environ["PATH_INFO"] == "/timed" else slot:
        with open(os.environ["COUNTER"]) as file:
            number = int(file.read())
        with open(os.environ["COUNTER"], "w") as file:
            file.write(str(number + 1))
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(os.getpid()).encode()]
"""


class Server:
    def __init__(self, directory, options):
        (directory / "application.py").write_text(APPLICATION)
        self.counter = directory / "counter"
        self.counter.write_text("0")
        self.address = str(directory / "socket")
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "gunicorn", "--preload", "--workers=4"),
                *("--worker-tmp-dir", directory, f"--bind=unix:{self.address}"),
                *(*options, "application:application"),
            ],
            cwd=directory,
            env={
                **os.environ,
                "COUNTER": str(self.counter),
                "PYTHONPATH": os.pathsep.join(filter(None, [str(directory), *sys.path])),
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        self.said = []
        # Its log says when the workers are there.
        for line in self.process.stderr:
            self.said.append(line)
            if sum("Booting worker" in said for said in self.said) == 4:
                break

    def request(self, path):
        """The PID of the worker that answered."""
        head, body = answer_over(self.address, path)
        assert " 200 OK" in head
        return int(body)

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.said += self.process.communicate(timeout=45)[1].splitlines(keepends=True)
        return self.process.returncode


@pytest.mark.parametrize(
    "options", [["--worker-class=sync"], ["--worker-class=gthread", "--threads=4"]]
)
def test_gunicorns_workers_share_a_slot(cluster, call, tmp_path, options):
    server = Server(tmp_path, options)
    try:
        together = threading.Barrier(8)

        def request_often():
            together.wait(30)
            return [server.request(path) for path in ("/", "/timed") * 8]

        callers = [call(request_often) for _ in range(8)]
        answered = {pid for caller in callers for pid in caller.result(60)}
        assert server.counter.read_text() == "128"
        assert len(answered) > 1
        assert server.process.pid not in answered
        assert nothing_is_locked(cluster)
    finally:
        returncode = server.stop()
    assert returncode == 0, server.said
    assert [line for line in server.said if not re.match(r"\[.*\] \[\d+\] \[INFO\] ", line)] == []
    assert nothing_is_locked(cluster)
