"""The guard process: it runs the command of a luna-ext that holds a lock, and ends it if that is killed.

    python guard_process.py TIE SECONDS COMMAND...

The TIE is a socket whose other end luna-ext alone has open: its end tells that luna-ext has died. The
device drops the lock then, and what the command has started is in the way of the next holder. The guard
process is the parent of the command, and the kernel makes it the parent of each process below whose own
parent ends: so it finds them all, in whatever process group or session they are.

It ends when the command does, and leaves the ended command to luna-ext, which the kernel makes its next
parent. If the guard process is killed, luna-ext waits for the command all the same.

It imports Python's own modules alone, so that it is there at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import signal
import sys
import time
from typing import NoReturn

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
CANNOT_RUN, NOT_FOUND = 126, 127
"""Exit codes, as of a shell."""
POLL = 0.05
"""Seconds. Only the end of an own child is told, not that of what it has started."""


def prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, ctypes.c_ulong(value), 0, 0, 0)


def fork(tie: int) -> int:
    try:
        return os.fork()
    except OSError as error:
        # luna-ext says so.
        os.write(tie, b"0\n%d\n" % (error.errno or 0))
        sys.exit(CANNOT_RUN)


def become(command: list[str], tie: int) -> NoReturn:
    """Be the command from now on. luna-ext is told the PID, and the number of an error that prevents it."""
    guard = os.getppid()
    with contextlib.suppress(OSError):
        os.write(tie, b"%d\n" % os.getpid())
    prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != guard:
        os._exit(128 + signal.SIGTERM)
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
        with contextlib.suppress(OSError):
            os.write(tie, b"%d\n" % (error.errno or 0))
        os._exit(NOT_FOUND if isinstance(error, FileNotFoundError) else CANNOT_RUN)
    os._exit(CANNOT_RUN)


class Guard:
    def __init__(self, tie: int, command: list[str]) -> None:
        self._tie = tie
        self._luna_ext = os.getppid()
        self._wakes, told = os.pipe()
        os.set_blocking(told, False)
        os.set_blocking(self._wakes, False)
        signal.set_wakeup_fd(told)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        self._pid = fork(tie)
        if self._pid == 0:
            become(command, tie)
        # Nothing but the end of a child comes in between; the command has them all again.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})

    def has_luna_ext_died_first(self) -> bool:
        """Wait for the end of the command or of luna-ext."""
        while not self._has_ended():
            self._wait(None)
            # A process that the client library has forked may have the tie open as well.
            if is_cut(self._tie) or os.getppid() != self._luna_ext:
                return not self._has_ended()
        return False

    def end_all(self, patience: float) -> None:
        """End the command and what it has started: by SIGTERM, what is left after so long by SIGKILL."""
        asked: set[int] = set()
        refused: set[int] = set()
        for number in (signal.SIGTERM, signal.SIGKILL):
            deadline = time.monotonic() + patience
            while (left := self._below() - refused) and time.monotonic() < deadline:
                # Once each by SIGTERM; a process may have been forked since the last look.
                now = left - asked if number == signal.SIGTERM else left
                more = {pid for pid in now if not may_end(pid, number)}
                if not asked:
                    say("luna-ext was killed, and the device drops its lock: the command is ended")
                tell_of(more)
                refused |= more
                asked |= now
                self._wait(POLL)
        for pid in left:
            say(f"process {pid} ({name_of(pid)}) of the command does not end, without the lock")

    def _has_ended(self) -> bool:
        """Whether the command has; it is left for luna-ext. Other ended children are forgotten."""
        while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if ended.si_pid == self._pid:
                return True
            os.waitpid(ended.si_pid, 0)
        return False

    def _wait(self, seconds: float | None) -> None:
        # After luna-ext's death the tie would end each wait.
        ties = [self._tie] if seconds is None else []
        wait_for(select.POLLIN, [self._wakes, *ties], seconds)
        with contextlib.suppress(BlockingIOError):
            while os.read(self._wakes, 512):
                pass

    def _below(self) -> set[int]:
        """The processes below this one that have not ended."""
        parents = {}
        for name in os.listdir("/proc"):
            if name.isdecimal():
                state, parent = state_of(int(name))
                if state not in ("Z", "X"):
                    parents[int(name)] = parent
        below = {os.getpid()}
        while more := {pid for pid, parent in parents.items() if parent in below} - below:
            below |= more
        below.remove(os.getpid())
        # The system may hide the processes of other users.
        return below if self._has_ended() else below | {self._pid}


def wait_for(event: int, descriptors: list[int], seconds: float | None) -> bool:
    """Whether there is this event, or another one, on one of them."""
    waiting = select.poll()
    for descriptor in descriptors:
        waiting.register(descriptor, event)
    return bool(waiting.poll(None if seconds is None else seconds * 1000))


def is_cut(tie: int) -> bool:
    # luna-ext writes nothing to it.
    return wait_for(select.POLLIN, [tie], 0)


def state_of(pid: int) -> tuple[str, int]:
    """A letter, and the parent's PID; X: there is no such process, or it is not shown."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name before it, in parentheses, may have any characters.
            state, parent = file.read().rpartition(b")")[2].split()[:2]
            return state.decode(), int(parent)
    except (OSError, ValueError):
        return "X", 0


def name_of(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", "rb") as file:
            return ascii(file.read().rstrip(b"\n").decode(errors="replace"))
    except OSError:
        return "of an unknown name"


def may_end(pid: int, number: signal.Signals) -> bool:
    """Send the signal, unless this process may not."""
    try:
        os.kill(pid, number)
        # A stopped process takes a SIGTERM when it goes on.
        os.kill(pid, signal.SIGCONT)
    except PermissionError:
        return False
    except ProcessLookupError:
        pass
    return True


def tell_of(refused: set[int]) -> None:
    for pid in refused:
        say(
            f"process {pid} ({name_of(pid)}) of the command runs as another user, so that luna-ext may "
            "not end it; it goes on without the lock: end it as that user"
        )


def say(text: str) -> None:
    """A line on standard error, unless that cannot be written now: to end the command comes first."""
    with contextlib.suppress(OSError):
        if wait_for(select.POLLOUT, [2], 0):
            os.write(2, f"luna-ext: {text}\n".encode())


def main() -> None:
    tie, patience, *command = sys.argv[1:]
    os.set_inheritable(int(tie), False)
    # Those of a terminal come here too, and are the command's.
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    # It ends the wait.
    prctl(PR_SET_PDEATHSIG, signal.SIGCHLD)
    if is_cut(int(tie)):
        return
    guard = Guard(int(tie), command)
    if guard.has_luna_ext_died_first():
        guard.end_all(float(patience))


if __name__ == "__main__":
    main()
