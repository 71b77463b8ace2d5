"""Two processes compete for the keyring tokens of one cluster; run by `make demo`.

Each claims and assigns tokens until none is left, then locks all of them by their labels in an
order of its own. The cluster is the stand-in's, made afresh; nothing else is preset.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import sys
import threading
import time
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier, Event
from typing import NamedTuple

import luna_ext
from luna_ext.commands.texts import in_lines
from luna_ext.stub import Cluster

KEYRINGS = 8
NAMES = ("alice", "bob")
SO_PIN = "so-pin-of-the-demo"
PATIENCE = 30
"""Seconds without a message after which a process is taken to have failed."""


class Hold(NamedTuple):
    """Which process held which token's lock, and when (seconds on the machine's monotonic clock)."""

    begin: float
    end: float
    who: str
    slot_id: int
    what: str


class Last(NamedTuple):
    """The token that a process keeps locked while the table is drawn."""

    who: str
    pid: int
    label: str


def work() -> None:
    """Stands for an application's work with a token: it takes a random time."""
    time.sleep(random.uniform(0.002, 0.030))


def compete(
    name: str,
    path: str,
    cluster_id: str,
    start: Barrier,
    rounds: Barrier,
    done: Event,
    says: Queue[Hold | Last],
) -> None:
    """One of the two processes."""
    with Cluster(path, cluster_id=cluster_id).library() as luna:
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
                says.put(Hold(begin, end, name, token.slot.slot_id, what))
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
                says.put(Hold(asked, asked, name, token.slot.slot_id, str(error)))
                continue
            what = f"locked {token.label!r}, after waiting {(begin - asked) * 1000:.1f} ms"
            says.put(Hold(begin, end, name, token.slot.slot_id, what))

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


def say(text: str, indent: str = "") -> None:
    # As the subcommands do, whose way to print needs the extra "cli"; `make demo` does not.
    print(in_lines(text, indent))


def main() -> int:
    # The two processes import nothing from the working directory.
    os.environ["PYTHONSAFEPATH"] = "1"
    context = multiprocessing.get_context("spawn")
    with Cluster(keyrings=KEYRINGS) as cluster:
        say(f"A fresh cluster of the stand-in, with {KEYRINGS} keyrings. No HSM is involved.")
        print()
        says: Queue[Hold | Last] = context.Queue()
        start, rounds = context.Barrier(len(NAMES) + 1), context.Barrier(len(NAMES))
        done = context.Event()
        processes = [
            context.Process(
                target=compete,
                args=(name, cluster.path, cluster.cluster_id, start, rounds, done, says),
                daemon=True,
            )
            for name in NAMES
        ]
        for process in processes:
            process.start()
        try:
            start.wait(PATIENCE)
        except threading.BrokenBarrierError:
            print(f"the two processes have not begun within {PATIENCE} s", file=sys.stderr)
            return 1
        began = time.monotonic()

        print(f"{'held from':>10} {'to (ms)':>8}  {'who':<6} slot")
        holds: list[Hold] = []
        lasts: list[Last] = []
        while len(lasts) < len(processes):
            said = says.get(timeout=PATIENCE)
            if isinstance(said, Last):
                lasts.append(said)
            elif isinstance(said, Hold):
                holds.append(said)
                begin, end = (1000 * (moment - began) for moment in (said.begin, said.end))
                held = f"{begin:10.1f} {end:8.1f}  {said.who:<6} {said.slot_id:4}  "
                say(held + said.what, " " * len(held))

        names = {last.pid: last.who for last in lasts}
        print()
        say("The cluster now, while each process still holds the token that it assigned first:")
        print()
        print(f"{'slot':>4}  {'original label':<16}{'label':<16}lock held by")
        for token in cluster.tokens():
            owner = "-"
            if token.owner is not None:
                owner = f"{names[token.owner]} (PID {token.owner})"
            print(f"{token.slot_id:4}  {token.original_label:<16}{token.label:<16}{owner}")
        done.set()
        for process in processes:
            process.join()
        failed = [process for process in processes if process.exitcode != 0]
    twice = overlaps(holds)
    print(f"\n{len(holds)} holds; held by two at once: {twice}.")
    return 1 if failed or twice else 0


if __name__ == "__main__":
    sys.exit(main())
