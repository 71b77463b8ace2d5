"""doctor, watch: whether luna_ext works on this machine, and which locks are held."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import threading
import time
from collections.abc import Iterator
from queue import SimpleQueue
from typing import NamedTuple

import click
from rich.console import Console
from rich.live import Live

from .. import __version__, applications, holders
from .._cluster import Library
from ..discovery import Configuration, configured_library, find_library
from ..errors import OPEN_AFTER_FORK, LibraryLoadError, LunaError, rv_name
from ..info import CLUSTER_FUNCTIONS
from ..stub import STATE_VARIABLE, Cluster
from .console import Settings, examples, in_one_line, make_table, print_table, printable, settings
from .forking import ForkError, fork_child
from .values import Command, Number

CKR_CRYPTOKI_ALREADY_INITIALIZED = 0x191
THREADS = 4
PATIENCE = 10
"""Seconds for what takes a round trip."""


class Finding(NamedTuple):
    what: str
    says: str
    advice: str = ""
    """What to do; empty: all is well."""


# ---- doctor ----


def _configuration(options: Settings) -> Iterator[Finding]:
    yield Finding("luna_ext", f"{__version__}, Python {platform.python_version()}")
    where, _ = configured_library()
    yield Finding("configuration", where)
    yield from _clusters()
    location = find_library(options.path)
    yield Finding("client library", f"{location.path}, named by {location.source}")


def _clusters() -> Iterator[Finding]:
    """The clusters that the client is registered with; nothing where there is no configuration."""
    with contextlib.suppress(LibraryLoadError):
        clusters = Configuration().clusters()
        names = [f"{key} = {value}" for key, value in clusters.items()]
        yield Finding("clusters", ", ".join(names) or "the configuration names none")


def _library(luna: Library) -> Iterator[Finding]:
    info = luna.info
    yield Finding(
        "it says",
        f"{info.manufacturer}: {info.description} {info.version}, PKCS #11 {info.cryptoki_version}",
        "this is the stand-in, not an HSM's client; its locks protect nothing outside of this "
        "machine. Name the real library"
        if luna.is_stub
        else "",
    )
    for function in CLUSTER_FUNCTIONS:
        there = function in luna.cluster_functions
        yield Finding(
            function,
            "there" if there else "missing",
            "" if there else "install Luna client 10.6 or newer",
        )
    if not luna.is_stub:
        yield _application()
    slots = luna.slots()
    yield Finding(
        "slots",
        f"{len(slots)} with a token",
        "" if slots else "the client reaches no token; register it with the HSM (vtl verify)",
    )


def _application() -> Finding:
    """Whether something is known that makes one application of several processes."""
    found = applications.shared_with_others()
    if found is None:
        return Finding(
            "application ID", "the configuration sets none; each process has one of its own"
        )
    return Finding("application ID", *found)


def _threads(luna: Library) -> Iterator[Finding]:
    """Calls of several threads at a time."""
    results: SimpleQueue[LunaError | None] = SimpleQueue()
    together = threading.Barrier(THREADS)

    def ask() -> None:
        error = None
        try:
            together.wait(PATIENCE)
            luna.slots()
        except LunaError as failure:
            error = failure
        results.put(error)

    for _ in range(THREADS):
        threading.Thread(target=ask, daemon=True).start()
    errors = [error for error in (results.get() for _ in range(THREADS)) if error is not None]
    if errors:
        yield Finding(
            "threads",
            in_one_line(errors[0]),
            "the client does not take calls of several threads; use processes",
        )
    else:
        yield Finding("threads", f"{THREADS} of them can call it at a time")


def _fork(luna: Library) -> Iterator[Finding]:
    """Whether a forked child can use the library."""
    advice = f"{OPEN_AFTER_FORK}; or start processes without a fork (multiprocessing's spawn)"
    try:
        child = fork_child(luna.path, PATIENCE)
    except ForkError as error:
        yield Finding(
            "forking",
            f"another process cannot open the client: {error}",
            "put that right, and run `luna-ext doctor` again",
        )
        return
    if child.rv == CKR_CRYPTOKI_ALREADY_INITIALIZED:
        yield Finding(
            "forking",
            f"C_Initialize answers {rv_name(child.rv)} in a forked child: the client does not notice "
            "forks, and the child would act as its parent",
            advice,
        )
    elif child.error:
        yield Finding("forking", f"a forked child that uses the client gets: {child.error}", advice)
    elif child.answered:
        yield Finding("forking", "a forked child initialises the client anew and can use it")
    else:
        how = (
            f"does not answer for {PATIENCE} s"
            if child.ended is None
            else f"ends with {child.ended}"
        )
        yield Finding("forking", f"a forked child that uses the client {how}", advice)


def _examine(options: Settings) -> Iterator[Finding]:
    applications.tell_no_more()
    try:
        yield from _configuration(options)
        with options.open() as luna:
            for examine in (_library, _threads, _fork):
                yield from examine(luna)
    except LunaError as error:
        yield Finding(
            "client library", in_one_line(error), "put that right, and run `luna-ext doctor` again"
        )


@click.command(
    cls=Command,
    epilog=examples("luna-ext doctor", "luna-ext --library /opt/luna/libCryptoki2_64.so doctor"),
)
@settings
def doctor(options: Settings) -> int:
    """Find out whether luna_ext works here. Exit code 1: there is a problem.

    Tells which client library is used, from where, its versions, which of the four cluster
    functions it has, what the client's configuration says, with the clusters that it names, whether
    the device may take several processes for one application, and whether threads and forked
    children can use the client.
    """
    problems = 0
    for finding in _examine(options):
        problems += bool(finding.advice)
        mark = click.style("problem", "red") if finding.advice else click.style("ok", "green")
        click.echo(f"{mark}: {finding.what}: {printable(finding.says)}")
        if finding.advice:
            click.echo(f"    -> {finding.advice}")
    if not problems:
        click.echo("No problem. `luna-ext probe` finds out how the device treats a lock call.")
    return 1 if problems else 0


# ---- watch ----

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
    "--interval", type=Number(0.1, A_DAY), default=1.0, show_default=True, metavar="SECONDS"
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
