"""assign, provision: give unassigned tokens their labels."""

from __future__ import annotations

import os
import sys
from collections import Counter
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import BinaryIO

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from .._cluster import Library
from ..errors import NoUnassignedTokenError, PinError
from ..escaping import printable
from ..info import CLUSTER_FUNCTIONS
from ..provisioning import ProvisionProgress, ProvisionReport
from ..provisioning import provision as provision_all
from ..stub import STATE_VARIABLE, Cluster
from .console import (
    EXIT_INTERRUPTED,
    Settings,
    error_in_json,
    examples,
    json_option,
    print_json,
    print_json_line,
    say,
    settings,
    tell,
)
from .interrupting import ended_at_once, ended_by_signals
from .labels_file import read_labels
from .listing import unassigned_slots
from .nesting import refuse_nested
from .pins import PinSources, pin_options
from .texts import in_one_line
from .values import (
    CLUSTER,
    MOST_KEYRINGS,
    NEW_LABEL,
    PREFIX,
    SECONDS,
    SLOT,
    Command,
    Whole,
    check_new_label,
)

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
@click.argument("label", type=NEW_LABEL)
@click.option(
    "--timeout",
    type=SECONDS,
    default=0,
    metavar="SECONDS",
    help="How long to wait for an unassigned token, if none is left.",
)
@pin_options
@json_option
@settings
def assign(
    options: Settings,
    cluster: str,
    label: str,
    timeout: float,
    pins: PinSources,
    as_json: bool,
) -> None:
    """Give an unassigned token of CLUSTER the LABEL. This erases the token.

    The SO PIN is the password that the keyring has already, from where it was made. It is asked for on
    the terminal, unless a file or a descriptor has it. The user's PIN is set if one is given; with
    single identity, a cluster's default, both roles have one password, and it becomes the SO's too.
    """
    with ended_by_signals(), options.open(takes_pins=not pins.insecure) as luna:
        with (
            # The PINs are asked for when no other thing is known to be wrong.
            _free(luna, label),
            pins.read() as (so_pin, user_pin),
            luna.claim(cluster, timeout=timeout) as token,
        ):
            assigned = token.assign(label, so_pin=so_pin, user_pin=user_pin)
        # Before the client library is closed, which may take long.
        if as_json:
            print_json({"label": assigned.label, "slot_id": assigned.slot.slot_id})
        else:
            say(f"assigned {assigned.label} in slot {assigned.slot.slot_id}")


def _free(luna: Library, label: str) -> AbstractContextManager[None]:
    """Refuse a label that a token has already."""
    with ended_at_once():
        taken = luna.find(label)
    if taken:
        slots = ", ".join(str(token.slot.slot_id) for token in taken)
        raise click.ClickException(
            f"the label {label!r} is there already, in slot {slots}; choose another one"
        )
    return nullcontext()


def _labels(file: BinaryIO | None, count: int | None, prefix: str | None, first: int) -> list[str]:
    if file is not None:
        if count is not None or prefix is not None:
            raise click.UsageError("the labels come from --labels, or from --count and --prefix")
        return read_labels(file)
    if count is None or prefix is None:
        raise click.UsageError("which labels? Give --labels FILE, or --count N and --prefix P")
    labels = [f"{prefix}{number}" for number in range(first, first + count)]
    for label in labels:
        check_new_label(label)
    return labels


def _say_what_would_be_done(
    luna: Library, labels: list[str], guard: int | None, as_json: bool
) -> int:
    """The exit code that the same command without --dry-run would have, as far as that is known."""
    # Found as in earnest: where all tokens are listed, one that cannot be read would end it.
    there = {label: token.slot.slot_id for label in labels for token in luna.find(label)}
    for label in labels:
        slot_id = there.get(label)
        if as_json:
            print_json_line({"event": "plan", "label": label, "slot_id": slot_id})
            continue
        says = "would be assigned" if slot_id is None else f"is there already, in slot {slot_id}"
        say(f"{label} {says}")
    skipped = sum(label in there for label in labels)
    left = len(labels) - skipped
    unassigned = len(unassigned_slots() - {guard}) if luna.is_stub else None
    missing = 0 if unassigned is None else max(0, left - unassigned)
    if as_json:
        plan = {"total": len(labels), "to_assign": left, "skipped": skipped}
        print_json_line({"event": "plan_end", **plan, "unassigned": unassigned})
    else:
        say(f"{left} would be assigned, {skipped} skipped")
    if missing:
        tell(
            f"{missing} of them would find no token: {unassigned} are unassigned"
            f"{'' if guard is None else ', without the guard'}. Make more keyrings on the appliance, or "
            "give fewer labels"
        )
    return 1 if missing else 0


def _require(luna: Library) -> None:
    for function in CLUSTER_FUNCTIONS:
        if function not in luna.cluster_functions:
            raise click.ClickException(
                f"{luna.path} has no {function}, which provision needs; install Luna client 10.6 or newer"
            )


def _look_at_id(luna: Library, cluster_id: str) -> None:
    """Refuse one that is not the cluster's, which is known of the stand-in's."""
    if luna.is_stub and (known := Cluster(os.environ[STATE_VARIABLE]).cluster_id) != cluster_id:
        raise click.ClickException(f"the cluster's ID is {known!r}, not {cluster_id!r}")


def _guard_in_words(luna: Library, slot_id: int) -> str:
    """With its label, by which its user knows whether it is unassigned; the device does not tell."""
    with ended_at_once():
        label = luna.slot(slot_id).token_info.label
    return f"the guard, slot {slot_id} with the label {label!r},"


def _counts(done: Counter[str]) -> str:
    return f"{done['assigned']} assigned, {done['skipped']} skipped, {done['failed']} failed"


def _in_json(progress: ProvisionProgress) -> dict[str, object]:
    error = progress.error
    return {
        "event": "progress",
        **progress._asdict(),
        "error": None if error is None else error_in_json(error),
    }


def _end_in_json(
    done: Counter[str], labels: list[str], report: ProvisionReport | None
) -> dict[str, object]:
    """`report` is None if the command is ended before all labels are done."""
    fresh = {} if report is None else report.fresh
    return {
        "event": "end",
        "complete": report is not None,
        "total": len(labels),
        **{outcome: done[outcome] for outcome in ("assigned", "skipped", "failed")},
        "fresh": [{"label": label, "slot_id": slot_id} for label, slot_id in fresh.items()],
    }


def _words(progress: ProvisionProgress) -> str:
    label = printable(progress.label)
    if progress.error is not None:
        return f"failed {label}: {in_one_line(progress.error)}"
    return f"{progress.outcome} {label} in slot {progress.slot_id}"


class _Console(Console):
    """One that leaves the cursor there: a signal that ends or stops the process would leave none."""

    def show_cursor(self, show: bool = True) -> bool:
        return False


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
    type=click.File("rb"),
    help="One label in each line; # begins a comment. -: from stdin.",
)
@click.option(
    "--count",
    type=Whole(1, MOST_KEYRINGS),
    metavar="N",
    help="So many labels, with --prefix.",
)
@click.option("--prefix", type=PREFIX, metavar="P", help="They are P1, P2, ... PN.")
@click.option(
    "--first",
    type=Whole(0, LARGEST_NUMBER),
    default=1,
    show_default=True,
    metavar="N",
    help="The first one's number.",
)
@click.option(
    "--workers",
    type=Whole(1, MOST_KEYRINGS),
    default=8,
    show_default=True,
    help="Tokens at a time.",
)
@click.option(
    "--guard",
    type=SLOT,
    metavar="SLOT",
    help="Lock this slot meanwhile, and do not claim it. If all hosts name the same, no label comes up "
    "twice.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@pin_options
@json_option
@settings
def provision(
    options: Settings,
    cluster: str,
    file: BinaryIO | None,
    count: int | None,
    prefix: str | None,
    first: int,
    workers: int,
    guard: int | None,
    dry_run: bool,
    pins: PinSources,
    as_json: bool,
) -> int:
    """Give many labels an unassigned token of CLUSTER each. This erases the tokens.

    The SO PIN is the password that all the keyrings have already, from where they were made; a wrong one
    is tried once. The user's PIN is set if one is given; with single identity, a cluster's default, both
    roles have one password, and it becomes the SO's too.

    Run it again after a crash: what is there is skipped. The exit code is 0 if all labels have
    their token, else 1. A label that two hosts assigned at the same moment is found and reported;
    --guard prevents it. With --json each label is a line as soon as it is done, and the last line
    counts them.
    """
    labels = _labels(file, count, prefix, first)
    if dry_run:
        with ended_at_once(), options.open() as luna:
            _require(luna)
            _look_at_id(luna, cluster)
            if guard is not None:
                refuse_nested(luna, [guard])
                tell(
                    f"{_guard_in_words(luna, guard)} would be locked meanwhile, and not be claimed"
                )
            return _say_what_would_be_done(luna, labels, guard, as_json)
    console = _Console(stderr=True, highlight=False)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not sys.stderr.isatty() or (as_json and sys.stdout.isatty()),
    )
    with ended_by_signals(), ExitStack() as stack:
        luna = stack.enter_context(options.open(takes_pins=not pins.insecure))
        _require(luna)
        if guard is not None:
            refuse_nested(luna, [guard])
        guarded_by = "" if guard is None else _guard_in_words(luna, guard)
        so_pin, user_pin = stack.enter_context(pins.read())
        stack.enter_context(bar)
        task = bar.add_task("provisioning", total=len(labels))
        outcomes: dict[str, str] = {}

        def on_progress(progress: ProvisionProgress) -> None:
            outcomes[progress.label] = progress.outcome
            bar.update(task, completed=progress.done)
            if as_json:
                print_json_line(_in_json(progress))
            elif bar.disable or not sys.stdout.isatty():
                say(_words(progress))
            elif progress.error is not None:
                console.print(Text(_words(progress)))

        try:
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
        except (KeyboardInterrupt, SystemExit) as error:
            bar.stop()
            done = Counter(outcomes.values())
            if as_json:
                print_json_line(_end_in_json(done, labels, None))
            tell(
                f"ended after {done.total()} of {len(labels)} labels: {_counts(done)}. The same command "
                "goes on from there"
            )
            sys.exit(EXIT_INTERRUPTED if isinstance(error, KeyboardInterrupt) else error.code)
    if guarded_by and any(
        isinstance(error, NoUnassignedTokenError) for error in report.failed.values()
    ):
        tell(
            f"{guarded_by} was locked, and so not claimed. If it is unassigned, run this again with a "
            "--guard that is assigned"
        )
    done = Counter(outcomes.values())
    if as_json:
        print_json_line(_end_in_json(done, labels, report))
        return 1 if report.failed else 0
    say(_counts(done))
    if any(isinstance(error, PinError) for error in report.failed.values()):
        for label, slot_id in report.fresh.items():
            say(f"{label} in slot {slot_id} was not initialised before: it took this SO PIN")
    return 1 if report.failed else 0
