"""Two processes compete for the keyring tokens of one cluster; run by `make demo`.

Each claims and assigns tokens until none is left, then locks all of them by their labels in an
order of its own. The cluster is the stand-in's, made afresh; nothing else is preset.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier, Event
from queue import Empty
from typing import NamedTuple, TypeAlias

import luna_ext
from luna_ext.commands.interrupting import ENDING, ended_by_signals
from luna_ext.commands.texts import in_lines
from luna_ext.stub import Cluster, ClusterToken

KEYRINGS = 8
NAMES = ("alice", "bob")
SO_PIN = "so-pin-of-the-demo"
PATIENCE = 30
"""Seconds without a message after which a process is taken to have failed."""
LOOK = 0.2
"""Seconds between two looks whether the processes are alive."""


class Hold(NamedTuple):
    """Which process held which token's lock, and when (seconds on the machine's monotonic clock)."""

    begin: float
    end: float
    who: str
    slot_id: int
    outcome: str
    """assigned, locked, or changed: it had another label by then, and was not kept."""
    label: str
    what: str


class Last(NamedTuple):
    """The token that a process keeps locked while the table is drawn."""

    who: str
    pid: int
    label: str


class Ready(NamedTuple):
    """A process that waits for the other."""

    who: str


class Failed(NamedTuple):
    """A process that cannot go on."""

    why: str


Said: TypeAlias = Ready | Hold | Last | Failed


def work() -> None:
    """Stands for an application's work with a token: it takes a random time."""
    time.sleep(random.uniform(0.002, 0.030))


@contextmanager
def _failure_told(name: str, done: Event, says: Queue[Said]) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        says.put(Failed(f"{name}: {type(error).__name__}: {error}"))
        # Until it is ended, or its message would not be the first that is heard.
        done.wait(PATIENCE)


def compete(
    name: str,
    path: str,
    cluster_id: str,
    start: Event,
    rounds: Barrier,
    done: Event,
    says: Queue[Said],
) -> None:
    """One of the two processes."""
    with (
        _failure_told(name, done, says),
        Cluster(path, cluster_id=cluster_id).library() as luna,
    ):
        says.put(Ready(name))
        start.wait(PATIENCE)
        assigned = 0
        try:
            while True:
                with luna.claim(cluster_id) as token:
                    begin = time.monotonic()
                    original = token.label
                    assigned += 1
                    token = token.assign(f"{name}-{assigned}", so_pin=SO_PIN)
                    work()
                    what = f"claimed {original!r}, assigned it as {token.label!r}"
                    end = time.monotonic()
                says.put(Hold(begin, end, name, token.slot.slot_id, "assigned", token.label, what))
        except luna_ext.NoUnassignedTokenError:
            pass

        tokens = luna.tokens()
        random.shuffle(tokens)
        for token in tokens:
            asked = time.monotonic()
            try:
                with token.lock(timeout=10):
                    begin = time.monotonic()
                    work()
                    end = time.monotonic()
            except luna_ext.TokenChangedError as error:
                # It was still unassigned when it was listed.
                what = str(error)
                says.put(Hold(asked, asked, name, token.slot.slot_id, "changed", token.label, what))
                continue
            what = f"locked {token.label!r}, after waiting {(begin - asked) * 1000:.1f} ms"
            says.put(Hold(begin, end, name, token.slot.slot_id, "locked", token.label, what))

        # Both processes wait here: the first one to finish must not keep a token locked that the other
        # one still has to lock.
        rounds.wait(PATIENCE)
        if assigned == 0:
            says.put(Last(name, multiprocessing.current_process().pid or 0, ""))
            done.wait(PATIENCE)
            return
        with luna.token(f"{name}-1") as token:
            says.put(Last(name, multiprocessing.current_process().pid or 0, token.label))
            done.wait(PATIENCE)


def overlaps(holds: list[Hold]) -> int:
    """How many holds began before the previous hold of the same slot had ended."""
    count = 0
    by_slot: dict[int, list[Hold]] = {}
    for hold in sorted(holds):
        # A token whose label has changed was not held; the moment is that of the question.
        if hold.begin < hold.end:
            by_slot.setdefault(hold.slot_id, []).append(hold)
    for of_slot in by_slot.values():
        for earlier, later in itertools.pairwise(of_slot):
            count += later.begin < earlier.end
    return count


# ---- the process that starts them ----


class DemoError(Exception):
    """The processes have not done what they were to do."""


class Contest(NamedTuple):
    """What has come of it."""

    began: float
    """When the two began, on the clock of the holds."""
    holds: list[Hold]
    tokens: list[ClusterToken]
    """The cluster at the end, while each process holds a token."""
    names: dict[int, str]
    """The processes, by their PIDs."""

    @property
    def held_by_two(self) -> int:
        return overlaps(self.holds)


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """Processes that the block starts get none of the signals that end this one, which then ends them.

    A terminal sends them to all. This process gets them behind the block.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def contest_on(
    cluster: Cluster, on_begin: Callable[[float], object], on_hold: Callable[[Hold], object]
) -> Contest:
    """Let the two processes compete, and tell of each hold as soon as it has ended."""
    context = multiprocessing.get_context("spawn")
    with _signals_held_back():
        # Starts a process of multiprocessing's own, which lets SIGINT and SIGTERM come here again.
        says: Queue[Said] = context.Queue()
    rounds = context.Barrier(len(NAMES))
    start, done = context.Event(), context.Event()
    processes = [
        context.Process(
            target=compete,
            args=(name, cluster.path, cluster.cluster_id, start, rounds, done, says),
            daemon=True,
        )
        for name in NAMES
    ]
    try:
        with _signals_held_back():
            for process in processes:
                process.start()
        for _ in processes:
            _next(says, processes)
        start.set()
        began = time.monotonic()
        on_begin(began)
        holds: list[Hold] = []
        lasts: list[Last] = []
        while len(lasts) < len(processes):
            said = _next(says, processes)
            if isinstance(said, Last):
                lasts.append(said)
            elif isinstance(said, Hold):
                holds.append(said)
                on_hold(said)
        tokens = cluster.tokens()
        done.set()
        for process in processes:
            process.join()
    finally:
        for process in processes:
            if process.pid is not None:
                process.kill()
                process.join()
    for process in processes:
        _check_end(process)
    return Contest(began, holds, tokens, {last.pid: last.who for last in lasts})


def _next(says: Queue[Said], processes: Sequence[BaseProcess]) -> Ready | Hold | Last:
    """What a process says next."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        ended = [process for process in processes if not process.is_alive()]
        try:
            said = says.get(timeout=LOOK)
        except Empty:
            # What it had said came first.
            for process in ended:
                _check_end(process)
            continue
        if isinstance(said, Failed):
            raise DemoError(said.why)
        return said
    raise DemoError(f"the two processes have said nothing for {PATIENCE} s")


def _check_end(process: BaseProcess) -> None:
    if process.exitcode:
        raise DemoError(f"one of the two processes has ended with {process.exitcode}")


def say(text: str, indent: str = "") -> None:
    # As the subcommands do, whose way to print needs the extra "cli"; `make demo` does not.
    print(in_lines(text, indent), flush=True)


def show(cluster: Cluster) -> int:
    say(f"A fresh cluster of the stand-in, with {KEYRINGS} keyrings. No HSM is involved.")
    print()
    beginnings: list[float] = []

    def begin(began: float) -> None:
        beginnings.append(began)
        print(f"{'held from':>10} {'to (ms)':>8}  {'who':<6} slot")

    def tell(hold: Hold) -> None:
        moments = (1000 * (moment - beginnings[0]) for moment in (hold.begin, hold.end))
        held = "{:10.1f} {:8.1f}".format(*moments) + f"  {hold.who:<6} {hold.slot_id:4}  "
        say(held + hold.what, " " * len(held))

    contest = contest_on(cluster, begin, tell)
    print()
    say("The cluster now, while each process still holds the token that it assigned first:")
    print()
    print(f"{'slot':>4}  {'original label':<16}{'label':<16}lock held by")
    for token in contest.tokens:
        owner = "-"
        if token.owner is not None:
            owner = f"{contest.names[token.owner]} (PID {token.owner})"
        print(f"{token.slot_id:4}  {token.original_label:<16}{token.label:<16}{owner}")
    twice = contest.held_by_two
    print(f"\n{len(contest.holds)} holds; held by two at once: {twice}.")
    return 1 if twice else 0


def print_json(cluster: Cluster) -> int:
    contest = contest_on(cluster, lambda began: None, lambda hold: None)
    twice = contest.held_by_two
    holds = [
        {
            "process": hold.who,
            "slot_id": hold.slot_id,
            "outcome": hold.outcome,
            "label": hold.label,
            "begin": hold.begin - contest.began,
            "end": hold.end - contest.began,
        }
        for hold in contest.holds
    ]
    processes = [{"name": name, "pid": pid} for pid, name in contest.names.items()]
    tokens = [token._asdict() for token in contest.tokens]
    value = {"processes": processes, "holds": holds, "tokens": tokens, "held_by_two": twice}
    print(json.dumps(value, indent=2))
    return 1 if twice else 0


def main(as_json: bool = False) -> int:
    # The two processes import nothing from the working directory.
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        with ended_by_signals(), Cluster(keyrings=KEYRINGS) as cluster:
            return print_json(cluster) if as_json else show(cluster)
    except DemoError as error:
        print(f"luna-ext: {error}; run it again", file=sys.stderr)
        return 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("luna-ext: interrupted", file=sys.stderr)
        sys.exit(130)
