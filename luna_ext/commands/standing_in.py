"""stub, demo, bench: what needs no HSM."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime
from difflib import get_close_matches
from typing import Any, TypeVar

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from .._cluster import Library
from ..discovery import ENVIRONMENT_VARIABLE
from ..stub import BACKEND_VARIABLE, STATE_VARIABLE, Cluster, library_path
from ..stub.control import function_names
from .bench import Crew
from .console import Settings, examples, json_option, print_json, say, settings
from .interrupting import ended_at_once, ended_by_signals
from .nesting import refuse_nested
from .offers import offer
from .tables import print_table
from .values import (
    MOST_KEYRINGS,
    NEW_SLOT,
    RETURN_CODE,
    SECONDS,
    SLOT,
    TEXT,
    Command,
    Group,
    Number,
    Whole,
)

_F = TypeVar("_F", bound=Callable[..., Any])

MOST_THREADS = 10_000
AN_HOUR = 60 * 60


def _existing(path: str) -> Cluster:
    """The cluster that is there; Cluster() would make one."""
    if not os.path.exists(path):
        raise click.ClickException(
            f"there is no state file {path}; `luna-ext stub create --state {_quoted(path)}` makes one"
        )
    return Cluster(path)


def _refuse_what_is_there(path: str) -> None:
    if not os.path.exists(path):
        return
    try:
        Cluster(path)
    except OSError:
        raise click.ClickException(
            f"{path} is there already, and is no cluster of the stand-in; give --state another file"
        ) from None
    raise click.ClickException(
        f"{path} is there already; `luna-ext stub destroy --state {_quoted(path)}` removes it"
    )


class StatePath(click.Path):
    """The name of a state file."""

    def convert(
        self,
        value: str | os.PathLike[str],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> str | bytes | os.PathLike[str]:
        if not value:
            self.fail("it is empty", param, ctx)
        return super().convert(value, param, ctx)


def _state(function: _F) -> _F:
    option: Callable[[_F], _F] = click.option(
        "--state",
        "path",
        type=StatePath(),
        envvar=STATE_VARIABLE,
        required=True,
        show_envvar=True,
        metavar="FILE",
        help="The cluster's state file.",
    )
    return option(function)


class Function(click.ParamType[str]):
    """The name of a C function that the stand-in has."""

    name = "function"

    def convert(
        self, value: str, parameter: click.Parameter | None, context: click.Context | None
    ) -> str:
        names = [*function_names(library_path())]
        if value not in names:
            close = get_close_matches(value, names, 1) or ["CA_LockClusteredSlot"]
            self.fail(
                f"there is no such C_ or CA_ function: {value!r}; give a name such as {close[0]}",
                parameter,
                context,
            )
        return value

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        return offer(function_names(library_path()), incomplete)


def _slot_ids(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    tokens = _existing(context.params["path"]).tokens()
    return offer((token.slot_id for token in tokens), incomplete)


_backend = click.option(
    "--backend",
    type=click.Path(exists=True, dir_okay=False, resolve_path=True),
    envvar=BACKEND_VARIABLE,
    show_envvar=True,
    metavar="MODULE",
    help="The PKCS #11 module that does the cryptography, such as SoftHSM2's.",
)
SEED = Whole(0, 2**64 - 1)
PROCESS = Whole(1, 2**31 - 1)


def _print_exports(cluster: Cluster, backend: str | None) -> None:
    variables = {
        ENVIRONMENT_VARIABLE: library_path(),
        STATE_VARIABLE: cluster.path,
        BACKEND_VARIABLE: backend,
    }
    for name, value in variables.items():
        if value is not None:
            click.echo(f"export {name}={_quoted(value)}")


def _quoted(value: str) -> str:
    """For a shell; what a terminal would take for a command is not in it as it is."""
    if value.isprintable():
        return shlex.quote(value)
    plain = set(range(0x20, 0x7F)) - set(b"\\'%")
    text = "".join(chr(byte) if byte in plain else f"\\0{byte:03o}" for byte in os.fsencode(value))
    return f"\"$(printf '%b' '{text}')\""


@click.group(
    cls=Group,
    epilog=examples(
        'eval "$(luna-ext stub create --state cluster --keyrings 8)"',
        "luna-ext tokens",
        "luna-ext stub latency 0.5 CA_LockClusteredSlot",
        "luna-ext stub fault CA_LockClusteredSlot CKR_DEVICE_ERROR --times 1",
        "luna-ext stub destroy",
    ),
)
def stub() -> None:
    """The stand-in for the HSM: a cluster in a file, for tests."""


@stub.command(
    epilog=examples(
        'eval "$(luna-ext stub create --state cluster --keyrings 8 --password password-1)"'
    )
)
@_state
@click.option(
    "--keyrings",
    type=Whole(1, MOST_KEYRINGS),
    default=8,
    show_default=True,
    help="How many tokens it has.",
)
@click.option(
    "--cluster-id", type=TEXT, default="cluster-1", show_default=True, help="Its ID, for claims."
)
@click.option(
    "--label",
    type=TEXT,
    default="keyring",
    show_default=True,
    help="What the labels begin with.",
)
@click.option(
    "--first-slot", type=NEW_SLOT, default=1, show_default=True, help="The ID of its first slot."
)
@click.option(
    "--password",
    type=TEXT,
    metavar="TEXT",
    help="8 to 255 bytes: what both roles of each keyring have, as the appliance makes them. Without it "
    "the keyrings are not initialised. The stand-in keeps no secrets: take none that is in use.",
)
@_backend
def create(
    path: str,
    keyrings: int,
    cluster_id: str,
    label: str,
    first_slot: int,
    password: str | None,
    backend: str | None,
) -> None:
    """Make a cluster, and print what puts it into a shell's environment."""
    _refuse_what_is_there(path)
    cluster = Cluster(
        path,
        cluster_id=cluster_id,
        keyrings=keyrings,
        label=label,
        first_slot=first_slot,
        password=password,
    )
    _print_exports(cluster, backend)


@stub.command(epilog=examples('eval "$(luna-ext stub env --state cluster)"'))
@_state
@_backend
def env(path: str, backend: str | None) -> None:
    """Print what `create` has printed, for another shell.

    The cluster does not know its backend: name it again.
    """
    _print_exports(_existing(path), backend)


@stub.command(
    epilog=examples("luna-ext stub status", "luna-ext stub status --state cluster --json")
)
@_state
@json_option
def status(path: str, as_json: bool) -> None:
    """Show the keyrings, and which processes hold their locks."""
    cluster = _existing(path)
    tokens = cluster.tokens()
    if as_json:
        print_json(
            {
                "cluster_id": cluster.cluster_id,
                "path": cluster.path,
                "tokens": [token._asdict() for token in tokens],
            }
        )
        return
    say(f"cluster {cluster.cluster_id} in {cluster.path}")
    print_table(("slot", "label", "original label", "lock held by PID"), tokens)


@stub.command(
    epilog=examples(
        "luna-ext stub fault CA_LockClusteredSlot CKR_DEVICE_ERROR --times 1",
        "luna-ext stub fault C_InitToken CKR_DEVICE_REMOVED --probability 0.1 --lost-reply",
        "luna-ext stub fault C_InitToken CKR_OK --times 0",
    )
)
@_state
@click.argument("function", type=Function())
@click.argument("rv", type=RETURN_CODE)
@click.option(
    "--times", type=Whole(-1, 2**32 - 1), default=-1, help="So many calls; 0: none any more."
)
@click.option("--every", type=Whole(1, 2**64 - 1), default=1, metavar="N", help="Each N-th call.")
@click.option("--probability", type=Number(0, 1), default=1.0, help="Of those, so many.")
@click.option("--seed", type=SEED, default=0, help="The same seed, the same calls.")
@click.option("--lost-reply", is_flag=True, help="The call takes effect, and answers the error.")
def fault(
    path: str,
    function: str,
    rv: int,
    times: int,
    every: int,
    probability: float,
    seed: int,
    lost_reply: bool,
) -> None:
    """Let FUNCTION answer RV to the calls of all processes, from now on.

    RV is a name (CKR_DEVICE_ERROR) or a number (0x30). A function has one fault at a time; --times
    0 takes it away.
    """
    _existing(path).fault(
        function,
        rv,
        times=times,
        every=every,
        probability=probability,
        seed=seed,
        lost_reply=lost_reply,
    )


@stub.command(
    epilog=examples(
        "luna-ext stub latency 0.001",
        "luna-ext stub latency 0.1 CA_LockClusteredSlot --up-to 2",
        "luna-ext stub latency 5 CA_GetUnassignedSlot --after",
        "luna-ext stub latency 0",
    )
)
@_state
@click.argument("seconds", type=SECONDS)
@click.argument("function", type=Function(), required=False)
@click.option("--up-to", type=SECONDS, metavar="SECONDS", help="Each delay by chance, up to this.")
@click.option("--seed", type=SEED, default=0, help="The same seed, the same delays.")
@click.option("--after", is_flag=True, help="After the effect, while the answer is on its way.")
def latency(
    path: str, seconds: float, function: str | None, up_to: float | None, seed: int, after: bool
) -> None:
    """Let FUNCTION, or all functions, take SECONDS longer, from now on.

    A function can have a latency before its effect and one after it; 0 takes it away.
    """
    _existing(path).latency(seconds, function, up_to=up_to, seed=seed, after=after)


@stub.command(
    epilog=examples("luna-ext stub switch identity dual", "luna-ext stub switch contention error")
)
@_state
@click.argument("name")
@click.argument("value")
def switch(path: str, name: str, value: str) -> None:
    """Choose what the SDK leaves open: set the switch NAME to VALUE.

    \b
    contention      wait, error: a lock call while another process holds the lock
    relock          granted, wait, error: a second lock call of its holder
    unlock_owner    unchecked, checked: an unlock call by another process
    regrant         on, off: whether a claim may give what its process holds
    grants          once, counted: what one unlock call takes off
    application     process, shared: whether all processes are one application
    identity        single, dual: whether both roles have one password
    pin_change      free, forced: whether a user has to change the SO's PIN
    authentication  password, ped: whether PINs are passed, or read by a PED
    change_label    off, on: whether CA_ChangeLabel is supported
    log             on, off: whether calls are logged

    The first value is the default. docs/stand_in.md says more.
    """
    _existing(path).switch(name, value)


@stub.command(
    "set-pins",
    epilog=examples(
        "luna-ext stub set-pins 3 --so-pin officer-1 --user-pin user-pin-1",
        "luna-ext stub set-pins 3",
    ),
)
@_state
@click.argument("slot_id", metavar="SLOT", type=NEW_SLOT, shell_complete=_slot_ids)
@click.option(
    "--so-pin", type=TEXT, metavar="TEXT", help="Without it the keyring is not initialised."
)
@click.option("--user-pin", type=TEXT, metavar="TEXT", help="Without it the user's PIN is not set.")
def set_pins(path: str, slot_id: int, so_pin: str | None, user_pin: str | None) -> None:
    """Give the keyring in SLOT these PINs; wrong tries are forgotten.

    The stand-in keeps no secrets, so its PINs may be seen: take none that is in use.
    """
    _existing(path).set_pins(slot_id, so_pin, user_pin)


@stub.command("unlock-keyring", epilog=examples("luna-ext stub unlock-keyring 3"))
@_state
@click.argument("slot_id", metavar="SLOT", type=NEW_SLOT, shell_complete=_slot_ids)
def unlock_keyring(path: str, slot_id: int) -> None:
    """Forget the wrong tries of the keyring in SLOT, as `lunash keyring unlock` does."""
    _existing(path).unlock_keyring(slot_id)


@stub.command("pin-lengths", epilog=examples("luna-ext stub pin-lengths 4 64"))
@_state
@click.argument("least", type=Whole(1, 255))
@click.argument("most", type=Whole(1, 255))
def pin_lengths(path: str, least: int, most: int) -> None:
    """PINs that are set from now on have LEAST to MOST bytes; in a new cluster 8 to 255."""
    _existing(path).pin_lengths(least, most)


@stub.command(epilog=examples("luna-ext stub disconnect 4711"))
@_state
@click.argument("pid", type=PROCESS)
def disconnect(path: str, pid: int) -> None:
    """Drop the connection of the process PID: its locks and sessions are gone.

    Its calls answer CKR_DEVICE_ERROR until it calls C_Finalize and C_Initialize.
    """
    _existing(path).disconnect(pid)


@stub.command(epilog=examples("luna-ext stub reinitialise 4711"))
@_state
@click.argument("pid", type=PROCESS)
def reinitialise(path: str, pid: int) -> None:
    """Initialise the client library of the process PID anew, without its knowledge.

    As other code of that process would: its locks and sessions are gone, and no call says so.
    """
    _existing(path).reinitialise(pid)


@stub.command(
    epilog=examples("luna-ext stub log", "luna-ext stub log --last 20", "luna-ext stub log --json")
)
@_state
@click.option("--last", type=Whole(1), metavar="N", help="The latest N calls alone.")
@json_option
def log(path: str, last: int | None, as_json: bool) -> None:
    """Show the calls of all processes, the latest 16384 at most.

    A call without a result has not returned, or its process has died during it.
    """
    calls = _existing(path).log()[-(last or 0) :]
    if as_json:
        print_json([{**call._asdict(), "rv_name": call.rv_name} for call in calls])
        return
    print_table(
        ("number", "function", "slot", "result", "took, ms", "time", "PID", "thread"),
        [
            (
                call.number,
                call.function,
                call.slot_id,
                call.rv_name,
                None if call.duration is None else f"{call.duration * 1000:.3f}",
                f"{datetime.fromtimestamp(call.time):%H:%M:%S.%f}",
                call.pid,
                call.thread_id,
            )
            for call in calls
        ],
    )


@stub.command(epilog=examples("luna-ext stub destroy --state cluster"))
@_state
def destroy(path: str) -> None:
    """Remove the cluster, and what its backend has kept."""
    # Opened first, so that no file is removed that is not a state file.
    state = os.path.realpath(_existing(path).path)
    os.unlink(state)
    shutil.rmtree(f"{state}.tokens", ignore_errors=True)


@click.command(cls=Command, epilog=examples("luna-ext demo", "luna-ext demo --json"))
@json_option
def demo(as_json: bool) -> int:
    """See two processes compete for the tokens of a fresh cluster.

    It is the stand-in's: no HSM is needed. Exit code 1: two of them held a token at once.
    """
    from .demo import main

    return main(as_json)


@click.command(
    cls=Command,
    epilog=examples(
        "luna-ext bench --threads 64 --slots 64", "luna-ext bench --slot 42 --seconds 10"
    ),
)
@click.option(
    "--threads",
    type=Whole(1, MOST_THREADS),
    default=8,
    show_default=True,
    help="How many lock at the same time.",
)
@click.option(
    "--slots",
    type=Whole(1, MOST_KEYRINGS),
    default=1,
    show_default=True,
    help="How many the threads share, on the stand-in.",
)
@click.option(
    "--latency",
    type=Number(0, 10_000),
    default=1.0,
    show_default=True,
    metavar="MILLISECONDS",
    help="Of a device call, on the stand-in.",
)
@click.option(
    "--seconds",
    type=Number(0.1, AN_HOUR),
    default=2.0,
    show_default=True,
    help="How long to measure.",
)
@click.option(
    "--slot",
    "slot_id",
    type=SLOT,
    metavar="N",
    help="Lock this slot of the client library's device instead of the stand-in's.",
)
@json_option
@settings
def bench(
    options: Settings,
    threads: int,
    slots: int,
    latency: float,
    seconds: float,
    slot_id: int | None,
    as_json: bool,
) -> None:
    """Measure how often threads lock a slot, and how long it takes.

    On a fresh stand-in, unless --slot names a slot of the device.
    """
    context = click.get_current_context()
    for name in ("slots", "latency"):
        if (
            slot_id is not None
            and context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        ):
            raise click.UsageError(f"--{name} is for the stand-in: give it or --slot, not both")
    # If a lock is held when a signal ends it, it is by a thread that only counts.
    with ended_by_signals(), ended_at_once(), ExitStack() as stack:
        if slot_id is None:
            cluster = stack.enter_context(Cluster(keyrings=slots))
            cluster.switch("log", "off")
            luna: Library = stack.enter_context(cluster.library())
            # The library's end waits for the threads' calls, and a signal may leave it no time for them.
            stack.callback(cluster.destroy)
            shared = luna.slots()
            cluster.latency(latency / 1000)
            stack.callback(cluster.latency, 0)
        else:
            luna = stack.enter_context(options.open())
            refuse_nested(luna, [slot_id])
            shared = [luna.slot(slot_id)]
        waits = Crew([shared[index % len(shared)] for index in range(threads)]).run(seconds)
    if as_json:
        shares = {"p50": 0.5, "p99": 0.99, "longest": 1}
        print_json(
            {
                "threads": threads,
                "slots": len(shared),
                "locks_per_second": waits.per_second,
                "wait_microseconds": {name: waits.at(share) for name, share in shares.items()},
            }
        )
        return
    print_table(
        ("threads", "slots", "locked per second", "wait p50, µs", "p99", "longest"),
        [
            (
                threads,
                len(shared),
                round(waits.per_second),
                *(round(waits.at(share)) for share in (0.5, 0.99, 1)),
            )
        ],
    )
