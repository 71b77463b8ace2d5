"""uWSGI, whose master loads the application with an open Library, and forks its workers in C."""

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
from web_server import Server, assert_sigterm_frees_the_lock, assert_twenty_requests_are_served

UWSGI = shutil.which("uwsgi", path=str(Path(sys.executable).parent))
pytestmark = pytest.mark.skipif(UWSGI is None, reason="uWSGI is not installed (PyPI: uwsgi)")

FORMS = {
    "defaults": [],
    "lazy-apps": ["--lazy-apps"],
    "py-call-osafterfork": ["--py-call-osafterfork"],
    "threads": ["--enable-threads", "--threads=2"],
}


class Uwsgi(Server):
    def __init__(self, directory, options):
        self.options = options
        super().__init__(directory)

    def command(self, directory):
        return [
            *(UWSGI, "--master", "--processes=2", "--die-on-term", "--need-app"),
            *("--http-socket", self.address, "--wsgi-file", "application.py"),
            *("--max-requests=5", "--min-worker-lifetime=0", "--home", sys.prefix),
            *("--worker-reload-mercy=2", "--mule-reload-mercy=2", *self.options),
        ]

    def is_ready(self):
        # The socket is there earlier, at first without being listened on.
        return "spawned uWSGI worker 2" in self.log.read_text()

    def terminate(self, worker):
        os.kill(worker, signal.SIGTERM)


@pytest.fixture
def serve(cluster, tmp_path):
    servers = []

    def start(options):
        servers.append(Uwsgi(tmp_path, options))
        return servers[-1]

    yield start
    for server in servers:
        server.kill()


@pytest.mark.parametrize("options", FORMS.values(), ids=FORMS)
def test_twenty_requests_that_lock_are_served(cluster, serve, options):
    assert_twenty_requests_are_served(cluster, serve(options))


@pytest.mark.parametrize("options", FORMS.values(), ids=FORMS)
def test_sigterm_frees_the_lock_that_a_worker_holds(cluster, serve, options):
    assert_sigterm_frees_the_lock(cluster, serve(options))
