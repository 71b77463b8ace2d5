"""What many tests use: names of the device's functions and codes, and waits that have an end."""

import asyncio
import contextlib
import ctypes
import os
import socket
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

import luna_ext
from luna_ext.stub import Cluster, LoggedCall

LOCK = "CA_LockClusteredSlot"
UNLOCK = "CA_UnlockClusteredSlot"
CLAIM = "CA_GetUnassignedSlot"
FIND = "CA_GetSlotId"
TOKEN_INFO = "C_GetTokenInfo"
SESSION_INFO = "C_GetSessionInfo"
INIT_TOKEN = "C_InitToken"
INIT_PIN = "C_InitPIN"

HOST_MEMORY = 0x2
GENERAL_ERROR = 0x5
NONE_LEFT = 0x6
DEVICE_ERROR = 0x30
SESSION_HANDLE_INVALID = 0xB3
AGAIN = 0x80000041
BUSY = 0x80001604

DUAL_IDENTITY = pytest.mark.usefixtures("dual_identity")
ON_BOTH = pytest.mark.usefixtures("regrant")
"""Runs the test on a device that gives claims what their own process holds, and on one that does not."""

ANOTHER_USER = 12345
"""The ID of a user and of a group that the system does not know."""
GIVES_FILES_AWAY = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root can give a file to another user"
)

STAND_IN_IS_MEANT = pytest.mark.filterwarnings("ignore:.* is the stand-in:RuntimeWarning")
"""For tests that load it by its path, as a client library that was found."""


def but_for_the_warning(stderr: str) -> list[str]:
    """The lines that a program has printed, but for those that warn of the stand-in."""
    return [line for line in stderr.splitlines() if "is the stand-in" not in line]


COMMAND = [sys.executable, "-m", "luna_ext"]
"""The command luna-ext, of the luna_ext that is tested."""


def install_command(file: Path) -> None:
    """Make a program of it, as pip does, for shells to find."""
    file.write_text(f"#!/bin/sh\nexec '{sys.executable}' -P -m luna_ext \"$@\"\n")
    file.chmod(0o755)


def with_streams(streams: str, *command: object, of: object = "sh") -> list[str]:
    """A command whose streams a shell opens or closes, as in `>&-`, or `7<"$0"` for the file `of`."""
    return ["sh", "-c", f'exec "$@" {streams}', str(of), *map(str, command)]


NO_MORE_THREADS = "threading.stack_size(1 << 60)"
"""A program's line after which no thread can be started, for there is no room for its stack.

Only in a process of its own: a thread that a Library has used once is kept for the next.
"""

# Python warns of a fork beside other threads, and from 3.15 on os.fork() raises it if it is an error. These
# programs have them on purpose: a thread that is in a device call cannot be ended before the fork.
MAY_FORK = ("-W", "ignore:This process:DeprecationWarning")


def enter(block: contextlib.AbstractContextManager[object]) -> None:
    with block:
        pass


def enter_async(block: contextlib.AbstractAsyncContextManager[object]) -> None:
    async def main() -> None:
        async with block:
            pass

    asyncio.run(main())


def answer_over(address: str, path: str) -> tuple[str, str]:
    """Head and body of a web server's answer, over a Unix socket."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(60)
        connection.connect(address)
        connection.sendall(f"GET {path} HTTP/1.0\r\nHost: test\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    head, _, body = answer.decode().partition("\r\n\r\n")
    return head, body


def entry_of(luna: luna_ext.Library, index: int) -> ctypes.c_void_p:
    """The place of a function in the client's list, where the test may put another one."""
    functions = ctypes.c_void_p()
    assert ctypes.CDLL(luna.path).C_GetFunctionList(ctypes.byref(functions)) == 0
    assert functions.value is not None
    # Behind the version, in the standard's order.
    return ctypes.c_void_p.from_address(functions.value + ctypes.sizeof(functions) * (index + 1))


PATIENCE = 30.0
"""Seconds for what takes a moment on an idle machine."""


def wait_until(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.001)


async def let_others_run_until(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    """As wait_until(), for a task: the event loop goes on meanwhile."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        await asyncio.sleep(0)


def of_session(number: int) -> list[int]:
    """The processes of the session with this number that have not ended."""
    found = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            state, _, _, session = (
                Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:4]
            )
            if int(session) == number and state not in "ZX":
                found.append(int(pid))
    return found


def look_at_no_files(loop: asyncio.AbstractEventLoop) -> None:
    """Let the loop have no `add_reader()`, as some of Windows have none. Before its tasks lock."""

    def add_reader(*arguments: object) -> None:
        raise NotImplementedError

    loop.add_reader = add_reader  # type: ignore[method-assign]


def refuse_to_be_told(loop: asyncio.AbstractEventLoop, errors: Iterable[BaseException]) -> None:
    """Let the loop's `call_soon_threadsafe()` raise these, one at each call, and then work. Before its
    tasks lock: they are told in no other way.
    """
    look_at_no_files(loop)
    tell, left = loop.call_soon_threadsafe, iter(errors)

    def refuse(*arguments: Any) -> object:
        for error in left:
            raise error
        return tell(*arguments)

    loop.call_soon_threadsafe = refuse  # type: ignore[method-assign,assignment]


def hold_loop_until_it_is_told(
    loop: asyncio.AbstractEventLoop, begin: Callable[[], object] = lambda: None
) -> None:
    """Stop the event loop until another thread has told it to look; a task calls this.

    So the task's next step and the thread's callback come in the same turn of the loop. `begin` makes
    the thread tell it.
    """
    begin()
    # What it is told by stays readable.
    assert loop._selector.select(PATIENCE)  # type: ignore[attr-defined]


def assert_stays(condition: Callable[[], object], seconds: float = 0.1) -> None:
    """Wait a moment for something that must not happen: no event shows that it has not happened."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert condition()
        time.sleep(0.001)


def logged(cluster: Cluster, function: str, pid: int | None = None) -> list[LoggedCall]:
    """The calls of a C function, by a process, this one by default."""
    me = os.getpid() if pid is None else pid
    return [call for call in cluster.log() if (call.function, call.pid) == (function, me)]


def have_returned(calls: list[LoggedCall]) -> bool:
    return all(call.duration is not None for call in calls)


def finalisations(cluster: Cluster) -> list[int | None]:
    """What C_Finalize has answered, to whatever process; None: it has not returned."""
    return [call.rv for call in cluster.log() if call.function == "C_Finalize"]


def let_device_forget_us(cluster: Cluster) -> None:
    """The next ensure_held() is answered as if the device did not know this application any more."""
    # Both answers: one passing error is no loss. And the library's own session is not there to ask for.
    cluster.fault(TOKEN_INFO, DEVICE_ERROR, times=2)
    cluster.fault(SESSION_INFO, DEVICE_ERROR, times=1)


def nothing_is_locked(cluster: Cluster) -> bool:
    return all(token.owner is None for token in cluster.tokens())
