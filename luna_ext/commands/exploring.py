"""watch: which locks are held."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator

import click
from rich.console import Console
from rich.live import Live

from .. import holders
from .._cluster import Library
from ..stub import STATE_VARIABLE, Cluster
from .console import Settings, examples, make_table, print_table, settings
from .values import Command, Number

COLUMNS = ("slot", "label", "lock held by", "for")
A_DAY = 24 * 60 * 60


def _stand_in_holders() -> dict[int, holders.Holder]:
    cluster = Cluster(os.environ[STATE_VARIABLE])
    return {
        token.slot_id: holders.Holder(token.owner, None)
        for token in cluster.tokens()
        if token.owner is not None
    }


def _command_of(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read(200).replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        words = ""
    return f"{pid} {words}".strip()


def _rows(luna: Library) -> Iterator[tuple[object, ...]]:
    held = {**(_stand_in_holders() if luna.is_stub else {}), **holders.read(luna.path)}
    now = time.time()
    for token in luna.tokens():
        pid, since = held.get(token.slot.slot_id, (None, None))
        who = None if pid is None else _command_of(pid)
        lasts = None if since is None else f"{max(0.0, now - since):.0f} s"
        yield token.slot.slot_id, token.label, who, lasts


@click.command(
    cls=Command,
    epilog=examples(
        "LUNA_EXT_WATCH=/run/luna luna-ext watch --interval 0.5", "luna-ext watch | grep payments"
    ),
)
@click.option(
    "--interval",
    type=Number(0.1, A_DAY),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="How long until the table is made anew.",
)
@settings
def watch(options: Settings, interval: float) -> None:
    """Show all tokens and the locks that this host's processes hold, until Ctrl-C.

    The SDK does not say which process holds a lock. Processes that have LUNA_EXT_WATCH=DIRECTORY in
    their environment write it to files there; set it for this command, too. The stand-in needs no such
    files. Without a terminal the table is printed once.
    """
    with options.open() as luna:
        if not sys.stdout.isatty():
            print_table(COLUMNS, _rows(luna))
            return
        live = Live(console=Console(), screen=True, auto_refresh=False)
        with contextlib.suppress(KeyboardInterrupt), live:
            while True:
                live.update(make_table(COLUMNS, _rows(luna)), refresh=True)
                time.sleep(interval)
