"""The command on Windows, as far as it is without what only POSIX has; tried on Linux."""

import subprocess
import sys

import pytest
from support import PATIENCE, but_for_the_warning

from luna_ext.commands.cli import MODULES

# Python's own modules, and those of others, are imported before: they know where they are.
AS_ON_WINDOWS = """
import asyncio, logging, mmap, multiprocessing.shared_memory, os, select, signal, subprocess, sys
import click.termui, click._termui_impl, click.testing, rich.console, rich.live, rich.progress
there = {"SIGABRT", "SIGFPE", "SIGILL", "SIGINT", "SIGSEGV", "SIGTERM", "SIG_DFL", "SIG_IGN"}
# The last one is for subprocess, which has another way there.
there.add("SIGKILL")
for name in dir(signal):
    if name.startswith("SIG") and name not in there:
        delattr(signal, name)
for module, names in {
    signal: "pthread_sigmask pthread_kill sigtimedwait sigwait sigwaitinfo setitimer pause",
    os: "fork geteuid waitid killpg readv tcgetpgrp getpgrp WEXITED WNOWAIT O_NONBLOCK O_CLOEXEC",
    mmap: "MAP_PRIVATE MAP_ANONYMOUS MADV_DONTDUMP",
    select: "poll epoll",
}.items():
    for name in names.split():
        delattr(module, name)
for name in ("fcntl", "grp", "pwd", "readline", "resource", "syslog", "termios", "tty"):
    sys.modules[name] = None
"""


def run(program, *arguments):
    return subprocess.run(
        [sys.executable, "-c", AS_ON_WINDOWS + program, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )


@pytest.fixture(scope="module")
def helps():
    program = """
from click.testing import CliRunner
from luna_ext.commands.cli import MODULES, luna_ext
for words in [[], *([name] for name in MODULES)]:
    done = CliRunner().invoke(luna_ext, [*words, "--help"])
    print(done.exit_code, done.output.splitlines()[:1], done.exception)
"""
    return run(program)


def test_all_subcommands_have_their_help(helps):
    assert helps.stderr == ""
    lines = helps.stdout.splitlines()
    assert [line for line in lines if not line.startswith("0 ['Usage: ")] == []
    assert len(lines) == 1 + len(MODULES)


NOT_THERE = "luna-ext: on Windows luna-ext does not "
RUN = "from luna_ext.__main__ import main; sys.exit(main())"


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ("lock --slot 1 -- true", "run a command under a lock"),
        ("claim cluster-1 -- true", "run a command under a lock"),
        ("assign cluster-1 new", "take PINs but from the token's own pad: --pin-pad"),
    ],
)
def test_what_is_not_there_is_said(cluster, arguments, what):
    done = run(RUN, *arguments.split())
    assert (done.returncode, done.stdout) == (1, "")
    line = done.stderr.splitlines()[-1]
    assert line.startswith(NOT_THERE + what)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says", "code"),
    [
        ("tokens", "keyring8", 0),
        ("watch", "keyring8", 0),
        # The stand-in is a problem.
        ("doctor --json", '"the system does not fork', 1),
    ],
)
def test_what_is_there_works(cluster, arguments, says, code):
    done = run(RUN, *arguments.split())
    assert says in done.stdout
    assert done.returncode == code
    assert but_for_the_warning(done.stderr) == []
