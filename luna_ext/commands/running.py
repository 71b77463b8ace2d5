"""lock, claim: run a command while a lock is held, as flock(1) does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any, TypeVar

import click

from .._cluster import ClusterSlot, Library, Token
from ..errors import LockLostError, LockReleaseError
from .child import ended_by_signals, inherited_files, run_command, signals_blocked
from .console import EXIT_TEMPORARY, Settings, examples, settings
from .values import CLUSTER, LABEL, SECONDS, SLOT, Command

_F = TypeVar("_F", bound=Callable[..., Any])


def _timeout(what: str) -> Callable[[_F], _F]:
    return click.option(
        "--timeout",
        type=SECONDS,
        metavar="SECONDS",
        help=f"How long to wait for {what}. Exit code {EXIT_TEMPORARY} when the time is up.",
    )


def _named(
    context: click.Context, parameter: click.Parameter, command: tuple[str, ...]
) -> tuple[str, ...]:
    if not (command[0] or context.resilient_parsing):
        raise click.BadParameter("the command has no name", context, parameter)
    return command


_command = click.argument(
    "command", nargs=-1, required=True, type=click.UNPROCESSED, callback=_named
)


def _run_with(
    options: Settings,
    lock_of: Callable[[Library], AbstractContextManager[ClusterSlot | Token]],
    command: Sequence[str],
) -> int:
    """The command's exit code; 1 if that was 0 but the lock was lost, or its release failed."""
    files = inherited_files()
    code = 1
    with ended_by_signals(), options.open() as luna, ExitStack() as afterwards:
        try:
            with lock_of(luna) as held:
                # Until the lock is released, so that no signal prevents the release.
                afterwards.enter_context(signals_blocked())
                slot = held.slot if isinstance(held, Token) else held
                variables = {"LUNA_SLOT_ID": str(slot.slot_id)}
                if isinstance(held, Token):
                    variables["LUNA_TOKEN_LABEL"] = held.label
                code = run_command(command, variables, files)
        except (LockLostError, LockReleaseError):
            # The handler of log records has printed it.
            return code or 1
    return code


@click.command(
    cls=Command,
    # So that options behind the command are the command's, also without "--".
    context_settings={"allow_interspersed_args": False},
    epilog=examples(
        "luna-ext lock --slot 42 -- ./backup",
        "luna-ext lock --label payments-01 --timeout 5 -- sh -c 'rotate \"$LUNA_SLOT_ID\"'",
    ),
)
@click.option("--slot", "slot_id", type=SLOT, metavar="N", help="The slot to lock.")
@click.option("--label", type=LABEL, metavar="L", help="The label of the token to lock.")
@_timeout("the lock")
@_command
@settings
def lock(
    options: Settings,
    slot_id: int | None,
    label: str | None,
    timeout: float | None,
    command: Sequence[str],
) -> int:
    """Run COMMAND while a lock is held, like flock(1).

    The exit code is the command's; 128 + N if signal N has ended it. Signals are passed on. The
    command gets LUNA_SLOT_ID, and with --label LUNA_TOKEN_LABEL, in its environment. If luna-ext
    is killed, the device drops the lock, and the command gets a SIGTERM.
    """
    if (slot_id is None) == (label is None):
        raise click.UsageError("name what to lock: either --slot or --label")

    def lock_of(luna: Library) -> AbstractContextManager[ClusterSlot | Token]:
        if label is not None:
            return luna.token(label).lock(timeout=timeout)
        assert slot_id is not None
        return luna.slot(slot_id).lock(timeout=timeout)

    return _run_with(options, lock_of, command)


@click.command(
    cls=Command,
    epilog=examples(
        "luna-ext claim cluster-1 --timeout 10 -- sh -c 'initialise \"$LUNA_SLOT_ID\"'",
    ),
)
@click.argument("cluster", type=CLUSTER)
@_timeout("an unassigned token, if none is left")
@_command
@settings
def claim(options: Settings, cluster: str, timeout: float | None, command: Sequence[str]) -> int:
    """Run COMMAND while an unassigned token of CLUSTER is claimed.

    As `luna-ext lock`, with an unassigned token, which no other program uses: the command gets
    LUNA_SLOT_ID and LUNA_TOKEN_LABEL in its environment. Exit code 75 if none is left.
    """
    return _run_with(options, lambda luna: luna.claim(cluster, timeout=timeout or 0), command)
