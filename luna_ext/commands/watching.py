"""watch: which locks are held, and by which processes of this host."""

from __future__ import annotations

import functools
import itertools
import os
import select
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from typing import Any, NamedTuple

import click
from rich.cells import chop_cells

from .. import holders
from .._cluster import ClusterSlot, Library
from ..errors import CryptokiError, LunaError
from ..escaping import printable
from ..stub import STATE_VARIABLE, Cluster
from . import screen
from .console import Settings, examples, give_up_stream, print_json_line, settings, tell
from .interrupting import ended_at_once, ended_by_signals
from .tables import Layout, cut, print_table
from .texts import in_one_line
from .values import Command, Number, label_glob, matches

COLUMNS = ("slot", "label", "PID", "held for", "command")
MINUTE, HOUR, DAY = 60, 60 * 60, 24 * 60 * 60
GRANTING = ("CA_LockClusteredSlot", "CA_GetUnassignedSlot")
READ_PER_SECOND = 100
"""Tokens, at most and on average. More would be a burden for the device, for nothing else is changed by
watching."""


class Row(NamedTuple):
    """What is known of a slot."""

    slot_id: int
    label: str | None
    error: str | None
    """The name of the code because of which the label is not known."""
    pid: int | None
    since: float | None
    """When the hold was first seen, in seconds of `time.time()`."""


_ORDERS: dict[str, Callable[[Row], Any]] = {
    "slot": lambda row: row.slot_id,
    "label": lambda row: (row.label is None, row.label or "", row.slot_id),
    # The oldest first; then those of which it is not known, then what is not locked.
    "age": lambda row: (row.pid is None, row.since is None, row.since or 0.0, row.slot_id),
    "pid": lambda row: (row.pid is None, row.pid or 0, row.slot_id),
}


class _StandIn:
    """Which processes hold the locks of the stand-in's cluster, which knows it; a device does not tell."""

    def __init__(self) -> None:
        self._cluster = Cluster(os.environ[STATE_VARIABLE])
        self._since: dict[tuple[int, int], float] = {}

    def holders(self) -> dict[int, holders.Holder]:
        owners = {
            token.slot_id: token.owner
            for token in self._cluster.tokens()
            if token.owner is not None
        }
        # What has left the log was in it when it was looked at before.
        self._since = {hold: since for hold, since in self._since.items() if hold in owners.items()}
        for call in self._cluster.log() if owners else ():
            slot_id, granted = call.slot_id, call.function in GRANTING and call.rv == 0
            if granted and slot_id is not None and owners.get(slot_id) == call.pid:
                self._since[slot_id, call.pid] = call.time + (call.duration or 0.0)
        return {
            slot_id: holders.Holder(pid, self._since.get((slot_id, pid)))
            for slot_id, pid in owners.items()
        }


class _Watched:
    """Tokens and their holders, as they were when they were last looked at."""

    def __init__(self, luna: Library, glob: str | None) -> None:
        self._luna = luna
        self._glob = glob
        self._stand_in = _StandIn() if luna.is_stub else None
        self._tokens: list[tuple[int, str | None, str | None]] = []
        self._due = 0.0
        self.trouble = ""
        """Why what is known may be old."""
        self._read()

    def rows(self) -> list[Row]:
        """Look at the holders, and at the tokens if it is time for that."""
        if time.monotonic() >= self._due:
            try:
                if self.trouble:
                    # The device may not know this process any more, which holds nothing.
                    self._luna.reconnect()
                self._read()
                self.trouble = ""
            except LunaError as error:
                self.trouble = in_one_line(error)
        held = {
            **(self._stand_in.holders() if self._stand_in else {}),
            **holders.read(self._luna.path),
        }
        return [Row(*token, *held.get(token[0], (None, None))) for token in self._tokens]

    def _read(self) -> None:
        bad: list[tuple[int, str | None, str | None]] = []

        def add(slot: ClusterSlot, error: CryptokiError) -> None:
            bad.append((slot.slot_id, None, error.rv_name))

        tokens = self._luna.tokens(on_error=add)
        self._due = time.monotonic() + (len(tokens) + len(bad)) / READ_PER_SECOND
        good = [
            (token.slot.slot_id, token.label, None)
            for token in tokens
            if matches(token.label, self._glob)
        ]
        # Whether a label matches that cannot be read is not known.
        self._tokens = sorted([*good, *bad])


def command_of(pid: int) -> list[str]:
    """The words of its command line; none, if it has ended or tells nothing."""
    with suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
        words = file.read(4096).rstrip(b"\0")
        return [os.fsdecode(word) for word in words.split(b"\0")] if words else []
    return []


def age(seconds: float) -> str:
    whole = max(0, int(seconds))
    for size, name, smaller, of_smaller in ((DAY, "d", HOUR, "h"), (HOUR, "h", MINUTE, "min")):
        if whole >= size:
            return f"{whole // size} {name} {whole % size // smaller} {of_smaller}"
    return f"{whole // MINUTE} min {whole % MINUTE} s" if whole >= MINUTE else f"{whole} s"


def _cells(rows: Iterable[Row]) -> Iterator[tuple[object, ...]]:
    now = time.time()
    for row in rows:
        label = row.label if row.error is None else f"error: {row.error}"
        lasts = None if row.since is None else age(now - row.since)
        words = None if row.pid is None else " ".join(command_of(row.pid))
        yield row.slot_id, label, row.pid, lasts, words or None


def _untold() -> str:
    """Why this process cannot know which locks are held, on a device; "": it can."""
    directory = os.environ.get(holders.VARIABLE)
    if not directory:
        return f"{holders.VARIABLE} is not set, so no locks are known; docs/command.md says how to set it"
    try:
        os.scandir(directory).close()
    except OSError as error:
        says = f"no locks are known: {directory} ({holders.VARIABLE}): {error.strerror}"
        return printable(says)
    return ""


# ---- on a screen ----


def _screenful(
    rows: Sequence[Row], only_held: bool | None, trouble: str, columns: int, lines: int
) -> list[str]:
    held = [row for row in rows if row.pid is not None]
    if only_held is None:
        only_held = len(_fitting(rows, columns, lines - 1)[1]) < len(rows)
    candidates = held if only_held else rows
    below = [cut(trouble, columns)] if trouble else []
    heading, blocks = _fitting(candidates, columns, lines - 1 - len(below))
    left = len(candidates) - len(blocks)
    counts = [f"{left} more do not fit"] if left else []
    if len(candidates) < len(rows):
        counts.append(f"{len(rows) - len(held)} more are not locked: --all")
    counts.append(f"{len(held)} of {len(rows)} are locked")
    shown = [*heading, *itertools.chain(*blocks), cut("; ".join(counts), columns), *below]
    # Where there is no room for a row, there is for what is not shown.
    return shown[-lines:]


def _fitting(rows: Sequence[Row], columns: int, lines: int) -> tuple[list[str], list[list[str]]]:
    """A table's heading, and the lines of each row that there is room for."""
    # A row takes a line at least.
    layout = Layout(COLUMNS, _cells(rows[: max(0, lines)]), columns, cut_last=True)
    heading, blocks = layout.heading(), []
    left = lines - len(heading)
    for block in layout.blocks():
        # As a terminal breaks what is too long for it.
        pieces = [piece for line in block for piece in chop_cells(line, columns) or [""]]
        left -= len(pieces)
        if left < 0:
            break
        blocks.append(pieces)
    return heading, blocks


def _show(
    watched: _Watched, only_held: bool | None, order: str, interval: float, untold: str
) -> None:
    with screen.Screen() as terminal:
        while True:
            rows = sorted(watched.rows(), key=_ORDERS[order])
            draw = functools.partial(_screenful, rows, only_held, watched.trouble or untold)
            terminal.show(draw, interval)


# ---- for programs ----


def _tell_changes(watched: _Watched, only_held: bool, order: str, interval: float) -> None:
    """A line for each row as it is now, and for each one that changes, until the reader has gone."""
    reader = select.poll()
    # Nothing is asked for, but that the other end of a pipe is closed is always told.
    reader.register(sys.stdout, 0)
    known: dict[int, Row] = {}
    told = ""
    while True:
        rows = {row.slot_id: row for row in sorted(watched.rows(), key=_ORDERS[order])}
        wanted = {
            slot_id: row for slot_id, row in rows.items() if row.pid is not None or not only_held
        }
        for slot_id in dict.fromkeys((*wanted, *known)):
            if wanted.get(slot_id) != known.get(slot_id):
                _tell_row(rows.get(slot_id, Row(slot_id, None, None, None, None)))
        known = wanted
        if watched.trouble not in ("", told):
            tell(watched.trouble)
        told = watched.trouble
        if reader.poll(interval * 1000):
            return


def _tell_row(row: Row) -> None:
    command = None if row.pid is None else command_of(row.pid)
    print_json_line({"time": time.time(), **row._asdict(), "command": command})


# ---- the subcommand ----


@click.command(
    cls=Command,
    epilog=examples(
        "LUNA_EXT_WATCH=/run/luna luna-ext watch --interval 0.5",
        "luna-ext watch --held --sort age",
        "luna-ext watch --label 'payments-*' | grep 1234",
        "luna-ext watch --held --json | jq --unbuffered 'select(.pid)'",
    ),
)
@click.option(
    "--held/--all",
    "only_held",
    default=None,
    help="Those that are locked, or all. Without either: all, if there is room for them on the screen.",
)
@label_glob
@click.option(
    "--sort",
    "order",
    type=click.Choice(list(_ORDERS)),
    default="slot",
    show_default=True,
    help="By which column. age: the lock that is held for the longest time first.",
)
@click.option(
    "--interval",
    type=Number(0.1, DAY),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="How often to look.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON for each change.")
@settings
def watch(
    options: Settings,
    only_held: bool | None,
    glob: str | None,
    order: str,
    interval: float,
    as_json: bool,
) -> None:
    """Show tokens and the locks that this host's processes hold.

    Until Ctrl-C. The SDK does not say which process holds a lock. Processes that have
    LUNA_EXT_WATCH=DIRECTORY in their environment write it to files there; set it for this command, too.
    The stand-in needs no such files. Without a terminal the table is printed once; with --json, what is
    locked now, and then what changes.
    """
    live = not as_json and screen.is_there()
    with suppress(KeyboardInterrupt), ExitStack() as stack:
        stack.enter_context(ended_by_signals(has_screen=live))
        if live:
            # Before the first thread is started.
            stack.enter_context(screen.signals_held_back())
        stack.enter_context(ended_at_once(screen.RESTORE if live else b""))
        luna = stack.enter_context(options.open())
        if untold := "" if luna.is_stub else _untold():
            tell(f"warning: {untold}")
        watched = _Watched(luna, glob)
        if live:
            _show(watched, only_held, order, interval, untold)
        elif as_json:
            with suppress(BrokenPipeError):
                _tell_changes(watched, bool(only_held), order, interval)
            give_up_stream(1)
        else:
            rows = sorted(watched.rows(), key=_ORDERS[order])
            shown = [row for row in rows if row.pid is not None or not only_held]
            print_table(COLUMNS, _cells(shown))
            if not shown:
                tell(
                    f"none of {len(rows)} tokens is locked" if rows else "no token is one of those"
                )
