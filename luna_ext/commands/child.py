"""A command that is run while a lock is held: its signals, its exit code, its end."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue

import click

from .awaited import next_signal
from .console import tell
from .interrupting import ENDING

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

PATIENCE = 5.0
"""Seconds for a command to end after SIGTERM, when luna-ext was killed. The device has dropped the lock."""
WAIT = 0.5
"""Seconds."""
GUARD = (sys.executable, "-I", "-S", str(Path(__file__).with_name("guard_process.py")))
PR_SET_CHILD_SUBREAPER = 36


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
def signals_blocked() -> Iterator[Callable[[], None]]:
    """Within the block signals wait: run_command() takes them, or they come after the block.

    Gives a function to be called when the command has ended: those that end luna-ext do so again.
    """
    main = threading.get_ident()
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {*FORWARDED, signal.SIGCHLD})
    # A thread of the client library may get them all the same. What it gets is sent to this one, where no
    # handler is to raise.
    handlers = {
        number: signal.signal(number, lambda number, frame: signal.pthread_kill(main, number))
        for number in _taken()
    }

    def end_luna_ext() -> None:
        for number in ENDING:
            if number in handlers:
                signal.signal(number, handlers[number])
        signal.pthread_sigmask(signal.SIG_UNBLOCK, set(ENDING) - previous)

    try:
        yield end_luna_ext
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def _taken() -> set[signal.Signals]:
    """The signals that are passed on: not those that luna-ext was started to ignore."""
    return {number for number in FORWARDED if signal.getsignal(number) is not signal.SIG_IGN}


def run_command(command: Sequence[str], variables: Mapping[str, str], files: Sequence[int]) -> int:
    """Run a command to its end and pass signals on; its exit code, 128 + N if signal N killed it.

    To be called within signals_blocked(), on the main thread. A signal of the terminal (Ctrl-C) goes to
    the command by itself; only signals that another process has sent to luna-ext alone are passed on.
    Nothing leaves this function before the command has ended: the lock would be released under it.
    """
    # The program that started luna-ext may have left it ignored; then the exit code would be lost.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # What the guard process leaves becomes luna-ext's child.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(1), 0, 0, 0)
    # There may be no thread to be had. So it comes first.
    waiter = _Waiter()
    ours, guards = socket.socketpair()
    with ours, ours.makefile() as told:
        try:
            with guards:
                guard = subprocess.Popen(
                    [*GUARD, str(guards.fileno()), str(PATIENCE), *command],
                    env={**os.environ, **variables},
                    pass_fds=(guards.fileno(), *files),
                )
            pid = int(told.readline() or 0)
            waiter.begin(guard, pid)
            while pid and not waiter.ended.is_set():
                # It has an end for what another thread got, whose handler runs between two waits.
                got = next_signal({*_taken(), signal.SIGCHLD}, WAIT)
                if got and got.number != signal.SIGCHLD and got.code != SI_KERNEL:
                    _pass_on(pid, signal.Signals(got.number))
        except OSError as error:
            raise _not_run(error.errno) from None
        finally:
            waiter.end()
        # A process that the client library has forked may have the other end open.
        ours.shutdown(socket.SHUT_RDWR)
        cannot = told.readline()
        if not pid:
            raise _not_run(int(cannot or 0))
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if cannot:
            tell(f"{command[0]}: {os.strerror(int(cannot))}")
    return 128 - code if code < 0 else code


def _not_run(number: int | None) -> click.ClickException:
    if not number:
        why = "its guard process has ended; see why in the system's log"
    else:
        why = f"no process can be started for it: {os.strerror(number)}"
        if number == errno.EAGAIN:
            why += "; end others, or raise their limit (ulimit -u)"
    return click.ClickException(f"the command was not run: {why}")


def _pass_on(pid: int, number: signal.Signals) -> None:
    # It is not another process's PID: the command is still to be waited for.
    try:
        os.kill(pid, number)
    except PermissionError:
        tell(
            f"the command (PID {pid}) runs as another user, and {number.name} is not passed on to it; "
            "the lock stays set until it has ended"
        )


class _Waiter:
    """A thread that waits for the end of a command and tells the calling thread by SIGCHLD.

    The SIGCHLD that comes by itself may go to any thread.
    """

    def __init__(self) -> None:
        self.ended = threading.Event()
        self._main = threading.get_ident()
        self._begun: SimpleQueue[tuple[subprocess.Popen[bytes], int] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._wait, daemon=True)
        self._thread.start()

    def begin(self, guard: subprocess.Popen[bytes], pid: int) -> None:
        """Wait for its guard process and for the command, whose PID is 0 if it is not known."""
        self._begun.put((guard, pid))

    def end(self) -> None:
        """Return when what it waits for has ended."""
        self._begun.put(None)
        self._thread.join()

    def _wait(self) -> None:
        if begun := self._begun.get():
            guard, pid = begun
            guard.wait()
            # It remains a zombie, and so no other process gets its PID, until it is waited for again.
            with suppress(ChildProcessError):
                os.waitid(os.P_PID if pid else os.P_ALL, pid, os.WEXITED | os.WNOWAIT)
        self.ended.set()
        signal.pthread_kill(self._main, signal.SIGCHLD)
