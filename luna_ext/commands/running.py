"""lock, claim: run a command while a lock is held, as flock(1) does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from .._cluster import ClusterSlot, Library, Token
from ..errors import LockLostError, LockReleaseError, LockTimeoutError, NoUnassignedTokenError
from .console import EXIT_TEMPORARY, Settings, examples, refuse_on_windows, settings, tell
from .interrupting import ended_at_once, ended_by_signals
from .nesting import refuse_nested, told_to_command
from .offers import offer_files, offer_labels
from .texts import in_one_line
from .values import CLUSTER, LABEL, SECONDS, SLOT, Command, Filled, Whole

_F = TypeVar("_F", bound=Callable[..., Any])
_Held = ClusterSlot | Token | Sequence[ClusterSlot | Token]


def _timeout(what: str) -> Callable[[_F], _F]:
    return click.option(
        "-w",
        "--timeout",
        type=SECONDS,
        metavar="SECONDS",
        help=f"How long to wait for {what}. Exit code {EXIT_TEMPORARY} when the time is up.",
    )


_shell = click.option(
    "-c", "shell", type=Filled(), metavar="TEXT", help="Let the shell run this, instead of COMMAND."
)
_conflict = click.option(
    "-E",
    "conflict",
    type=Whole(0, 255),
    default=EXIT_TEMPORARY,
    show_default=True,
    metavar="CODE",
    help="The exit code when the time is up.",
)


def _named(
    context: click.Context, parameter: click.Parameter, command: tuple[str, ...]
) -> tuple[str, ...]:
    if command and not command[0] and not context.resilient_parsing:
        raise click.BadParameter("the command has no name", context, parameter)
    return command


def _offered(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    several = context.params.get("several")
    return offer_labels(context, incomplete) if several else offer_files(incomplete)


_command = click.argument(
    "command",
    metavar="COMMAND...",
    nargs=-1,
    type=click.UNPROCESSED,
    callback=_named,
    shell_complete=_offered,
)


def _words(command: Sequence[str], shell: str | None) -> Sequence[str]:
    """The command that is to run, from one of the two places."""
    if shell is None and not command:
        raise click.MissingParameter(param_hint="'COMMAND...'", param_type="argument")
    if shell is not None and command:
        raise click.UsageError("give a COMMAND or -c, not both")
    return command if shell is None else ("/bin/sh", "-c", shell)


def _slot_ids(held: _Held) -> list[int]:
    each = [held] if isinstance(held, (ClusterSlot, Token)) else held
    slots = [one.slot if isinstance(one, Token) else one for one in each]
    return [slot.slot_id for slot in slots]


def _variables(held: _Held) -> dict[str, str]:
    """What the command is told of what is locked."""
    slot_ids = " ".join(map(str, _slot_ids(held)))
    match held:
        case ClusterSlot():
            return {"LUNA_SLOT_ID": slot_ids}
        case Token():
            return {"LUNA_SLOT_ID": slot_ids, "LUNA_TOKEN_LABEL": held.label}
    return {"LUNA_SLOT_IDS": slot_ids}


def _run_with(
    options: Settings,
    lock_of: Callable[[Library], AbstractContextManager[Any]],
    command: Sequence[str],
    conflict: int,
) -> int:
    """The command's exit code; 1 if that was 0 but the lock was lost, or its release failed."""
    refuse_on_windows(
        "run a command under a lock; a program holds one: `with Library() as luna, luna.slot(N): ...`"
    )
    # It has signals and calls that are not there on Windows.
    from .child import inherited_files, run_command, signals_blocked

    files = inherited_files()
    code = 1
    with ended_by_signals(), options.open() as luna, ExitStack() as afterwards:
        with ended_at_once():
            lock = lock_of(luna)
        try:
            with lock as held:
                # Until the lock is released, so that no signal prevents the release; those that end
                # luna-ext only make sure that an unlock call which does not return is not waited for.
                end_luna_ext = afterwards.enter_context(signals_blocked())
                variables = {**_variables(held), **told_to_command(luna, _slot_ids(held))}
                code = run_command(command, variables, files)
                afterwards.enter_context(ended_at_once())
                end_luna_ext()
        except (LockTimeoutError, NoUnassignedTokenError) as error:
            tell(in_one_line(error))
            return conflict
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
        "luna-ext lock --all payments-01 payments-02 -- sh -c 'copy $LUNA_SLOT_IDS'",
    ),
)
@click.option("--slot", "slot_id", type=SLOT, metavar="N", help="The slot to lock.")
@click.option("--label", type=LABEL, metavar="L", help="The label of the token to lock.")
@click.option(
    "--all",
    "several",
    is_flag=True,
    help="Lock all the tokens with these labels, or none: lock --all LABEL... -- COMMAND... It is the last "
    "of the options.",
)
@_timeout("the lock")
@click.option("-n", "at_once", is_flag=True, help="Do not wait: as --timeout 0.")
@_conflict
@_shell
@_command
@settings
def lock(
    options: Settings,
    slot_id: int | None,
    label: str | None,
    several: bool,
    timeout: float | None,
    at_once: bool,
    conflict: int,
    shell: str | None,
    command: Sequence[str],
) -> int:
    """Run COMMAND while a lock is held, like flock(1).

    The exit code is the command's; 128 + N if signal N has ended it. Signals are passed on. The
    command gets LUNA_SLOT_ID, and with --label LUNA_TOKEN_LABEL, in its environment; with --all
    LUNA_SLOT_IDS, in the order of the labels. If luna-ext is killed, the device drops the lock, and the
    command and what it has started are ended. A lock that a luna-ext above it holds is an error at once.
    """
    labels: list[str] = []
    if several:
        labels, command = _split(command, shell)
    words = _words(command, shell)
    if [slot_id is not None, label is not None, several].count(True) != 1:
        raise click.UsageError("name what to lock: either --slot, --label or --all")
    if at_once:
        if timeout:
            raise click.UsageError("-n does not wait, --timeout does: give one of them")
        timeout = 0

    def lock_of(luna: Library) -> AbstractContextManager[Any]:
        if several:
            tokens = [luna.token(each) for each in labels]
            refuse_nested(luna, _slot_ids(tokens))
            return luna.lock_all(tokens, timeout=timeout)
        target = luna.slot(slot_id) if slot_id is not None else luna.token(str(label))
        refuse_nested(luna, _slot_ids(target))
        return target.lock(timeout=timeout)

    return _run_with(options, lock_of, words, conflict)


def _split(words: Sequence[str], shell: str | None) -> tuple[list[str], Sequence[str]]:
    """The labels before "--", and the command behind it; with -c all are labels."""
    if shell is None and "--" not in words:
        raise click.UsageError(
            "write -- between the labels and the COMMAND, and the labels behind --all: "
            "--all LABEL... -- COMMAND..."
        )
    end = words.index("--") if "--" in words else len(words)
    given = [LABEL.convert(label, None, None) for label in words[:end]]
    if not given:
        raise click.UsageError("--all wants the labels of the tokens")
    for label in given:
        if label.startswith("--"):
            raise click.UsageError(
                f"{label!r} is behind --all, where the labels are; write it before"
            )
        if given.count(label) > 1:
            raise click.UsageError(f"--all has the label {label!r} more than once; give it once")
    return given, words[end + 1 :]


@click.command(
    cls=Command,
    epilog=examples(
        "luna-ext claim cluster-1 --timeout 10 -- sh -c 'initialise \"$LUNA_SLOT_ID\"'",
    ),
)
@click.argument("cluster", type=CLUSTER)
@_timeout("an unassigned token, if none is left")
@_conflict
@_shell
@_command
@settings
def claim(
    options: Settings,
    cluster: str,
    timeout: float | None,
    conflict: int,
    shell: str | None,
    command: Sequence[str],
) -> int:
    """Run COMMAND while an unassigned token of CLUSTER is claimed.

    As `luna-ext lock`, with an unassigned token, which no other program uses: the command gets
    LUNA_SLOT_ID and LUNA_TOKEN_LABEL in its environment. Exit code 75 if none is left.
    """
    words = _words(command, shell)
    return _run_with(
        options, lambda luna: luna.claim(cluster, timeout=timeout or 0), words, conflict
    )
