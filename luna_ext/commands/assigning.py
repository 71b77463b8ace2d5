"""assign, provision: give unassigned tokens their labels."""

from __future__ import annotations

import sys
from typing import TextIO

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from ..errors import PinError
from ..provisioning import ProvisionProgress
from ..provisioning import provision as provision_all
from .child import ended_by_signals
from .console import Settings, examples, settings
from .pins import PinSources, pin_options
from .texts import in_one_line, printable
from .values import CLUSTER, LABEL, MOST_KEYRINGS, SECONDS, SLOT, Command

LARGEST_NUMBER = 10**9
"""That a label may end with, if the command makes it."""


@click.command(
    cls=Command,
    epilog=examples(
        "luna-ext assign cluster-1 payments-07",
        "luna-ext assign cluster-1 payments-07 --so-pin-file so.pin --user-pin-fd 3 3<user.pin",
    ),
)
@click.argument("cluster", type=CLUSTER)
@click.argument("label", type=LABEL)
@click.option(
    "--timeout",
    type=SECONDS,
    default=0,
    metavar="SECONDS",
    help="How long to wait for an unassigned token, if none is left.",
)
@pin_options
@settings
def assign(
    options: Settings,
    cluster: str,
    label: str,
    timeout: float,
    pins: PinSources,
) -> None:
    """Give an unassigned token of CLUSTER the LABEL. This erases the token.

    The SO PIN is the password that the keyring has already, from where it was made. It is asked for on
    the terminal, unless a file or a descriptor has it. The user's PIN is set if one is given; with
    single identity, a cluster's default, both roles have one password, and it becomes the SO's too.
    """
    with (
        ended_by_signals(),
        options.open() as luna,
        pins.read() as (so_pin, user_pin),
        luna.claim(cluster, timeout=timeout) as token,
    ):
        assigned = token.assign(label, so_pin=so_pin, user_pin=user_pin)
    click.echo(f"assigned {printable(assigned.label)} in slot {assigned.slot.slot_id}")


def _labels(file: TextIO | None, count: int | None, prefix: str | None, first: int) -> list[str]:
    if file is not None:
        if count is not None or prefix is not None:
            raise click.UsageError("the labels come from --labels, or from --count and --prefix")
        lines = [line.removesuffix("\r") for line in file.read().split("\n")]
        return [line for line in lines if line]
    if count is None or prefix is None:
        raise click.UsageError("which labels? Give --labels FILE, or --count N and --prefix P")
    return [f"{prefix}{number}" for number in range(first, first + count)]


def _words(progress: ProvisionProgress) -> str:
    label = printable(progress.label)
    if progress.error is not None:
        return f"failed {label}: {in_one_line(progress.error)}"
    return f"{progress.outcome} {label} in slot {progress.slot_id}"


@click.command(
    cls=Command,
    epilog=examples(
        "luna-ext provision cluster-1 --count 100 --prefix payments-",
        "luna-ext provision cluster-1 --labels labels.txt --so-pin-file so.pin --guard 1",
    ),
)
@click.argument("cluster", type=CLUSTER)
@click.option(
    "--labels",
    "file",
    type=click.File(encoding="utf-8", errors="surrogateescape"),
    help="One label in each line; -: from stdin.",
)
@click.option(
    "--count",
    type=click.IntRange(1, MOST_KEYRINGS),
    metavar="N",
    help="So many labels, with --prefix.",
)
@click.option("--prefix", metavar="P", help="They are P1, P2, ... PN.")
@click.option(
    "--first",
    type=click.IntRange(0, LARGEST_NUMBER),
    default=1,
    show_default=True,
    metavar="N",
    help="The first one's number.",
)
@click.option(
    "--workers",
    type=click.IntRange(1, MOST_KEYRINGS),
    default=8,
    show_default=True,
    help="Tokens at a time.",
)
@click.option(
    "--guard",
    type=SLOT,
    metavar="SLOT",
    help="Lock this slot meanwhile. If all hosts name the same, no label comes up twice.",
)
@pin_options
@settings
def provision(
    options: Settings,
    cluster: str,
    file: TextIO | None,
    count: int | None,
    prefix: str | None,
    first: int,
    workers: int,
    guard: int | None,
    pins: PinSources,
) -> int:
    """Give many labels an unassigned token of CLUSTER each.

    The SO PIN is the password that all the keyrings have already; a wrong one is tried once. The user's
    PIN is set if one is given; with single identity, a cluster's default, it becomes the SO's too.

    Run it again after a crash: what is there is skipped. The exit code is 0 if all labels have
    their token, else 1. A label that two hosts assigned at the same moment is found and reported;
    --guard prevents it.
    """
    labels = _labels(file, count, prefix, first)
    console = Console(stderr=True, highlight=False)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not sys.stderr.isatty(),
    )
    with ended_by_signals(), options.open() as luna, pins.read() as (so_pin, user_pin), bar:
        task = bar.add_task("provisioning", total=len(labels))

        def on_progress(progress: ProvisionProgress) -> None:
            bar.update(task, completed=progress.done)
            if bar.disable or not sys.stdout.isatty():
                click.echo(_words(progress))
            elif progress.error is not None:
                console.print(Text(_words(progress)))

        report = provision_all(
            luna,
            cluster,
            labels,
            so_pin=so_pin,
            user_pin=user_pin,
            workers=workers,
            guard=None if guard is None else luna.slot(guard),
            on_progress=on_progress,
        )
    click.echo(
        f"{len(report.assigned)} assigned, {len(report.skipped)} skipped, "
        f"{len(report.failed)} failed"
    )
    if any(isinstance(error, PinError) for error in report.failed.values()):
        for label, slot_id in report.fresh.items():
            click.echo(
                f"{printable(label)} in slot {slot_id} was not initialised before: it took this SO PIN"
            )
    return 1 if report.failed else 0
