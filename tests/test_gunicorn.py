"""gunicorn, whose master loads the application with an open Library, and forks its workers."""

import re
import signal
import sys
import threading

import pytest
from support import nothing_is_locked
from web_server import (
    SIGTERM_SECONDS,
    Server,
    assert_sigterm_frees_the_lock,
    assert_twenty_requests_are_served,
)

FORMS = {
    "sync": ["--worker-class=sync"],
    "gthread": ["--worker-class=gthread", "--threads=4"],
}


class Gunicorn(Server):
    def __init__(self, directory, workers, options):
        self.workers, self.options = workers, options
        super().__init__(directory)

    def command(self, directory):
        return [
            *(sys.executable, "-m", "gunicorn", "--preload", f"--workers={self.workers}"),
            *("--worker-tmp-dir", directory, f"--bind=unix:{self.address}"),
            *(*self.options, "application:application"),
        ]

    def is_ready(self):
        return self.log.read_text().count("Booting worker") >= self.workers

    def terminate(self, worker):
        # To the master, as a service manager does: a worker by itself would end its request first.
        self.process.send_signal(signal.SIGTERM)


@pytest.fixture
def serve(cluster, tmp_path):
    servers = []

    def start(workers, *options):
        servers.append(Gunicorn(tmp_path, workers, options))
        return servers[-1]

    yield start
    for server in servers:
        server.kill()


@pytest.mark.parametrize("options", FORMS.values(), ids=FORMS)
def test_gunicorns_workers_share_a_slot(cluster, call, serve, options):
    server = serve(4, *options)
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

    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(45) == 0, server.log.read_text()
    said = server.log.read_text().splitlines()
    assert [line for line in said if not re.match(r"\[.*\] \[\d+\] \[INFO\] ", line)] == []
    assert nothing_is_locked(cluster)


@pytest.mark.parametrize("options", FORMS.values(), ids=FORMS)
def test_twenty_requests_that_lock_are_served(cluster, serve, options):
    assert_twenty_requests_are_served(cluster, serve(2, "--max-requests=5", *options))


@pytest.mark.parametrize("options", FORMS.values(), ids=FORMS)
def test_sigterm_frees_the_lock_that_a_worker_holds(cluster, serve, options):
    """The master gives the request a second, and then kills its worker."""
    patience = int(SIGTERM_SECONDS / 2)
    assert_sigterm_frees_the_lock(cluster, serve(2, f"--graceful-timeout={patience}", *options))
