"""A luna-ext within the command of another one, which holds a lock meanwhile.

To wait for a lock that is held until one has ended oneself would never end. What is held is told to the
command in its environment, and counts as long as the process that holds it is an ancestor.
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
    return {VARIABLE: json.dumps([*_told_to_us(), *held])}


def refuse_nested(luna: Library, slot_ids: Sequence[int]) -> None:
    """Refuse to wait for what an ancestor holds until this process has ended."""
    cluster, ancestors = _cluster_of(luna), [*_ancestors()]
    for held in _told_to_us():
        for slot_id in slot_ids:
            if (
                held.get("cluster") == cluster
                and held.get("pid") in ancestors
                and slot_id in held.get("slots", ())
            ):
                raise click.ClickException(
                    f"slot {slot_id} is locked by the luna-ext that runs this command (PID "
                    f"{held['pid']}), until it has ended: to wait would never end. Work under that lock, "
                    "or run this command after it"
                )


def _cluster_of(luna: Library) -> list[str | None]:
    """What is the same for all processes that use one client library on one cluster."""
    return [os.path.realpath(luna.path), os.environ.get(STATE_VARIABLE) if luna.is_stub else None]


def _told_to_us() -> list[dict[str, Any]]:
    try:
        told = json.loads(os.environ.get(VARIABLE, "[]"))
    except ValueError:
        return []
    return [held for held in told if isinstance(held, dict)] if isinstance(told, list) else []


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
