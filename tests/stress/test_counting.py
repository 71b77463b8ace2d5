"""A slot has one holder at a time, among all the threads, tasks and processes that want it."""

import itertools
import os
from typing import NamedTuple

import pytest

LONG = os.environ.get("LUNA_EXT_STRESS") == "long"
SLOTS = 4
LATENCY = 0.0002
"""Seconds of a call at most. What is in the wrong order at the device has the time to do harm."""

pytestmark = [pytest.mark.stress, pytest.mark.limit(10), pytest.mark.luna_cluster(keyrings=SLOTS)]


class Combination(NamedTuple):
    contention: str
    relock: str
    unlock_owner: str
    regrant: str
    tasks: bool
    """Whether some of the threads run event loops with tasks."""
    claims: float
    """The fraction of the rounds that claim a slot; the others lock one."""
    latency: float
    handover: float
    """Seconds; 0: no lock is handed over."""


CHOICES = Combination(
    ("wait", "error"),
    ("granted", "wait", "error"),
    ("unchecked", "checked"),
    ("on", "off"),
    (True, False),
    (0.3, 0.0),
    (LATENCY, 0.0),
    (0.01, 0.0),
)
ALL = [Combination(*chosen) for chosen in itertools.product(*CHOICES)]


def pairs(combination):
    return set(itertools.combinations(enumerate(combination), 2))


def may_doubt(combination):
    """Whether claims may leave slots in doubt: that takes seconds, and processes have to exit."""
    return combination.relock != "granted" and combination.claims > 0


def few(combinations):
    """Some that have every pair of two choices, few that take long among them; always the same."""
    missing = set.union(*map(pairs, combinations))
    chosen = []

    def worth(combination):
        new = len(pairs(combination) & missing)
        return new > 0, new - (3 if may_doubt(combination) else 0)

    while missing:
        chosen.append(max(combinations, key=worth))
        missing -= pairs(chosen[-1])
    return chosen


def name(combination):
    switches = [f"{field}={setting}" for field, setting in combination._asdict().items()]
    return ",".join(switches)


def size():
    """How many processes there are, how many threads each has, and how often each of them locks."""
    return (8, 8, 100) if LONG else (4, 4, 25)


def show(crowd, combination, processes):
    totals = crowd.totals
    print(
        f"\n{name(combination)}: {crowd.acquisitions} acquisitions by {processes} processes in "
        f"{crowd.seconds:.1f} s, {crowd.acquisitions / crowd.seconds:.0f} per second, "
        f"{totals['claimed']} of them claimed, {totals['handed_over']} handed over, {crowd.changes} "
        "after another process; given up and "
        f"tried again {totals['given_up']} times; {totals['missed']} claims in vain; "
        f"{totals['doubts']} doubts, for which {totals['left']} processes left"
    )


@pytest.mark.parametrize("combination", ALL if LONG else few(ALL), ids=name)
def test_a_slot_has_one_holder_at_a_time(cluster, crowd, combination):
    for switch in ("contention", "relock", "unlock_owner", "regrant"):
        cluster.switch(switch, getattr(combination, switch))
    cluster.latency(0, up_to=combination.latency)
    processes, threads, rounds = size()
    loops = 3 * threads // 8 if combination.tasks else 0
    done = crowd(
        slots=SLOTS,
        processes=processes,
        threads=threads - loops,
        loops=loops,
        tasks=6,
        rounds=rounds,
        claims=combination.claims,
        polls="error" in (combination.contention, combination.relock),
        handover=combination.handover,
        may_leave=may_doubt(combination),
        seed=ALL.index(combination),
    )
    show(done, combination, processes)
    for slot_id, intervals in done.intervals.items():
        assert done.overlaps(slot_id) == []
        assert done.counter(slot_id) == len(intervals), "updates were lost"
    if not done.totals["left"]:
        assert done.acquisitions + done.totals["missed"] == processes * threads * rounds
        assert sorted(done.intervals) == list(range(1, SLOTS + 1))
