"""Files that say which processes of this host hold which locks: for `luna-ext watch`.

The SDK has no call that says which process holds a lock. If LUNA_EXT_WATCH in a process's environment
names a directory, the process writes a file there: a thread looks twice a second which slots are held,
so that locking itself does not become slower. A lock that is held for less is seldom seen.
"""

from __future__ import annotations

import _thread
import contextlib
import errno
import functools
import json
import logging
import os
import stat
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from .escaping import printable

VARIABLE = "LUNA_EXT_WATCH"
INTERVAL = 0.5
"""Seconds."""
MOST_BYTES = 64 * 1024
LATEST = 2**40
"""Seconds since 1970 that a file may tell, which another user may have written."""

_log = logging.getLogger("luna_ext")


class Holder(NamedTuple):
    """A process that holds a lock, as it has written it."""

    pid: int
    since: float | None
    """When the hold was first seen, in seconds of `time.time()`."""


def publish(
    library: str,
    holds: Callable[[], dict[int, int]],
    start_thread: Callable[[Callable[[], object]], None],
) -> None:
    """Write, from now on, what `holds()` returns: held slots, each with the number of its hold."""
    # The same directory also when the process goes to another one, where a daemon does that.
    directory = os.path.abspath(os.environ[VARIABLE])
    start_thread(functools.partial(_publish, directory, library, holds))


def _publish(directory: str, library: str, holds: Callable[[], dict[int, int]]) -> None:
    file = Path(directory, f"{os.getpid()}-{_thread.get_ident():x}.json")
    seen: dict[int, tuple[int, float]] = {}
    told: dict[int, tuple[int, float]] = {}
    try:
        while True:
            now = time.time()
            seen = {
                slot_id: seen[slot_id] if seen.get(slot_id, (0,))[0] == hold else (hold, now)
                for slot_id, hold in holds().items()
            }
            if seen != told:
                _write(file, library, {slot_id: since for slot_id, (_, since) in seen.items()})
                told = seen
            time.sleep(INTERVAL)
    except OSError as error:
        with contextlib.suppress(OSError):
            # What it says would not change any more.
            file.unlink()
        says = f"held locks cannot be written to {directory} ({VARIABLE}): {error}"
        _log.warning("%s", printable(says))


def _write(file: Path, library: str, since: dict[int, float]) -> None:
    """Replace the file in one step: a reader finds the old file or the new one."""
    described = {
        "pid": os.getpid(),
        "started": _started(os.getpid()),
        "namespace": _namespace(),
        "library": library,
        # In whole seconds, and without blanks, all keyrings of a cluster fit.
        "since": {slot_id: int(seconds) for slot_id, seconds in since.items()},
    }
    text = json.dumps(described, separators=(",", ":"))
    if len(text) > MOST_BYTES:
        raise OSError(errno.EFBIG, f"{len(since)} locks do not fit into the file")
    descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=".", suffix=".json")
    try:
        with open(descriptor, "w") as new:
            new.write(text)
            os.fchmod(new.fileno(), 0o644)
        os.replace(name, file)
    except BaseException:
        os.unlink(name)
        raise


def read(library: str) -> dict[int, Holder]:
    """By slot ID, the process that holds the lock through this client library.

    Empty if LUNA_EXT_WATCH names no directory. Other users may write there: what cannot be from the process
    that it names counts for nothing, and hides no other file.
    """
    directory = os.environ.get(VARIABLE)
    if not directory:
        return {}
    found: dict[int, Holder] = {}
    for file in Path(directory).glob("[0-9]*.json"):
        # Whatever it says, and however deep.
        with contextlib.suppress(Exception):
            described, owner = _described_in(file)
            pid = int(described["pid"])
            if described["namespace"] != _namespace():
                # A container's, where this PID is another process's.
                continue
            if _started(pid) != described["started"]:
                # The process that wrote the file has ended, and its locks are gone.
                if owner == os.geteuid():
                    file.unlink()
            elif owner == _owner(pid) and _is_same(described["library"], library):
                found |= {
                    int(slot_id): Holder(pid, _time(since))
                    for slot_id, since in described["since"].items()
                }
    return found


def _described_in(file: Path) -> tuple[Any, int]:
    """What the file says, and the user ID of its owner."""
    # Not blocking: to open a FIFO without a writer would wait for ever.
    descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as opened:
        state = os.fstat(descriptor)
        if not stat.S_ISREG(state.st_mode):
            raise ValueError(f"{file} is no regular file")
        text = opened.read(MOST_BYTES + 1)
    if len(text) > MOST_BYTES:
        raise ValueError(f"{file} is too large")
    return json.loads(text), state.st_uid


def _is_same(one: str, other: str) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def _time(seconds: float) -> float:
    if not 0 <= seconds <= LATEST:
        raise ValueError("no time")
    return float(seconds)


def _namespace() -> int | None:
    """That of the PIDs which this process knows. None: the system has no such namespaces."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return None


def _owner(pid: int) -> int:
    """The effective user ID of the process. OSError: there is no such process."""
    return os.stat(f"/proc/{pid}").st_uid


def _started(pid: int) -> str | None:
    """When the process began, to notice a PID that belongs to a new process by now.

    None: there is no such process.
    """
    try:
        # After the last parenthesis: the name of the program, in parentheses, may have any characters.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None
