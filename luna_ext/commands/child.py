"""A command that is run while a lock is held: its signals, its exit code, its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NoReturn

FORWARDED = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
SI_KERNEL = 128
"""siginfo_t.si_code of a signal that the terminal has sent."""

# This program becomes the command. It gets a SIGTERM when luna-ext dies, because the device drops the
# lock then. Signals are blocked at first, so that none is lost before the command runs. The exit codes
# are those of a shell that cannot run a command.
BECOME = """
import ctypes, errno, os, signal, sys
parent, command = int(sys.argv[1]), sys.argv[2:]
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(143)
for number in (signal.SIGPIPE, signal.SIGXFSZ):
    signal.signal(number, signal.SIG_DFL)
if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
signal.pthread_sigmask(signal.SIG_SETMASK, ())
try:
    for place in [""] if "/" in command[0] else os.get_exec_path():
        path = os.path.join(place, command[0])
        try:
            os.execv(path, command)
        except OSError as error:
            # A script whose first line names no interpreter is the shell's.
            if error.errno == errno.ENOEXEC:
                os.execv("/bin/sh", ["/bin/sh", path, *command[1:]])
    # It has failed everywhere; which of the errors counts is known there.
    os.execvp(command[0], command)
except OSError as error:
    print(f"luna-ext: {command[0]}: {error.strerror}", file=sys.stderr)
    sys.exit(127 if isinstance(error, FileNotFoundError) else 126)
"""


def inherited_files() -> tuple[int, ...]:
    """The descriptors that the shell has opened for luna-ext, which the command inherits as well.

    To be called before the client library is loaded: if the command inherited the client's
    connections, the device would keep the lock after luna-ext has ended.
    """
    try:
        numbers = [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:
        return ()
    return tuple(number for number in numbers if number > 2 and _is_inheritable(number))


def _is_inheritable(number: int) -> bool:
    try:
        return os.get_inheritable(number)
    except OSError:
        return False


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Within the block SIGTERM and SIGHUP raise SystemExit, so that what is held is released."""

    def leave(number: int, frame: object) -> NoReturn:
        sys.exit(128 + number)

    previous = {
        number: signal.signal(number, leave)
        for number in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Within the block signals wait: run_command() takes them, or they come after the block."""
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {*FORWARDED, signal.SIGCHLD})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def run_command(command: Sequence[str], variables: Mapping[str, str], files: Sequence[int]) -> int:
    """Run a command to its end and pass signals on; its exit code, 128 + N if signal N killed it.

    To be called within signals_blocked(), on the main thread. A signal of the terminal (Ctrl-C) goes to
    the command by itself; only signals that another process has sent to luna-ext alone are passed on.
    """
    # The program that started luna-ext may have left it ignored; then the exit code would be lost.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    child = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", BECOME, str(os.getpid()), *command],
        env={**os.environ, **variables},
        pass_fds=files,
    )
    main = threading.get_ident()
    ended = threading.Event()

    def watch() -> None:
        child.wait()
        ended.set()
        # The SIGCHLD that comes by itself may go to any thread.
        signal.pthread_kill(main, signal.SIGCHLD)

    threading.Thread(target=watch, daemon=True).start()
    taken = {number for number in FORWARDED if signal.getsignal(number) is not signal.SIG_IGN}
    while not ended.is_set():
        got = signal.sigwaitinfo({*taken, signal.SIGCHLD})
        if got.si_signo != signal.SIGCHLD and got.si_code != SI_KERNEL:
            child.send_signal(got.si_signo)
    code = child.returncode
    return 128 - code if code < 0 else code
