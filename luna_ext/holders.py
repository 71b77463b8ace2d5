"""Files that say which processes of this host hold which locks: for `luna-ext watch`.

The SDK has no call that says which process holds a lock. If LUNA_EXT_WATCH in a process's environment
names a directory, the process writes a file there: a thread looks twice a second which slots are held,
so that locking itself does not become slower. A lock that is held for less is seldom seen.
"""

from __future__ import annotations

import _thread
import contextlib
import functools
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

VARIABLE = "LUNA_EXT_WATCH"
INTERVAL = 0.5
"""Seconds."""

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
    start_thread(functools.partial(_publish, os.environ[VARIABLE], library, holds))


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
        _log.warning("held locks cannot be written to %s (%s): %s", directory, VARIABLE, error)


def _write(file: Path, library: str, since: dict[int, float]) -> None:
    """Replace the file in one step: a reader finds the old file or the new one."""
    described = {
        "pid": os.getpid(),
        "started": _started(os.getpid()),
        "library": library,
        "since": since,
    }
    descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=".", suffix=".json")
    try:
        with open(descriptor, "w") as new:
            json.dump(described, new)
            os.fchmod(new.fileno(), 0o644)
        os.replace(name, file)
    except BaseException:
        os.unlink(name)
        raise


def read(library: str) -> dict[int, Holder]:
    """By slot ID, the process that holds the lock through this client library.

    Empty if LUNA_EXT_WATCH names no directory.
    """
    directory = os.environ.get(VARIABLE)
    if not directory:
        return {}
    found: dict[int, Holder] = {}
    for file in Path(directory).glob("[0-9]*.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            described = json.loads(file.read_text())
            pid = int(described["pid"])
            if _started(pid) != described["started"]:
                # The process that wrote the file has ended, and its locks are gone.
                file.unlink()
            elif os.path.realpath(described["library"]) == os.path.realpath(library):
                for slot_id, since in described["since"].items():
                    found[int(slot_id)] = Holder(pid, float(since))
    return found


def _started(pid: int) -> str | None:
    """When the process began, to notice a PID that belongs to a new process by now.

    None: there is no such process.
    """
    try:
        # After the last parenthesis: the name of the program, in parentheses, may have any characters.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None
