"""A luna-ext within the command of another one, which holds a lock meanwhile.

To wait for a lock that is held until one has ended oneself would never end. What is held is told to the
command in its environment, and counts as long as the process that holds it is an ancestor. The guard
process has that environment as well, and is an ancestor of all that the command starts: so it is also
found where the command has passed no environment on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

import click

from .._cluster import Library
from ..stub import STATE_VARIABLE

VARIABLE = "LUNA_EXT_HELD"


def told_to_command(luna: Library, slot_ids: Sequence[int]) -> dict[str, str]:
    """The variable for the environment of a command that runs while these slots are held."""
    held = [{"pid": os.getpid(), "slots": [*slot_ids], "cluster": _cluster_of(luna)}]
    return {VARIABLE: json.dumps([*_told_by(os.environ.get(VARIABLE, "")), *held])}


def refuse_nested(luna: Library, slot_ids: Sequence[int]) -> None:
    """Refuse to wait for what an ancestor holds until this process has ended."""
    cluster, ancestors = _cluster_of(luna), [*_ancestors()]
    told = (os.environ.get(VARIABLE, ""), *map(_variable_of, ancestors))
    for held in (held for text in told for held in _told_by(text)):
        for slot_id in slot_ids:
            if (
                held.get("cluster") == cluster
                and held.get("pid") in ancestors
                and slot_id in held["slots"]
            ):
                raise click.ClickException(
                    f"slot {slot_id} is locked by the luna-ext that runs this command (PID "
                    f"{held['pid']}), until it has ended: to wait would never end. Work under that lock, "
                    "or run this command after it"
                )


def _cluster_of(luna: Library) -> list[str | None]:
    """What is the same for all processes that use one client library on one cluster."""
    state = os.path.realpath(os.environ[STATE_VARIABLE]) if luna.is_stub else None
    return [os.path.realpath(luna.path), state]


def _told_by(text: str) -> list[dict[str, Any]]:
    try:
        told = json.loads(text or "[]")
    except (ValueError, RecursionError):
        return []
    if not isinstance(told, list):
        return []
    return [one for one in told if isinstance(one, dict) and isinstance(one.get("slots"), list)]


def _variable_of(pid: int) -> str:
    """With which the process was started; "": it was not, or is another user's."""
    begin = f"{VARIABLE}=".encode()
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            entries = file.read().split(b"\0")
    except OSError:
        return ""
    return next((os.fsdecode(each[len(begin) :]) for each in entries if each.startswith(begin)), "")


def _ancestors() -> Iterator[int]:
    """The processes above this one, as far as the system tells them."""
    pid = os.getppid()
    while pid > 0:
        yield pid
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                # The name before it, in parentheses, may have any characters.
                pid = int(file.read().rpartition(b")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            return
