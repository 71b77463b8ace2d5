"""However a process dies that holds a lock, or waits for one: the next process gets the lock."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

SLOTS = 4
VICTIMS = Path(__file__).with_name("victims.py")
PROMISED = 1.0
"""Seconds within which the lock of a process that was killed is to be had."""
PATIENCE = 30.0
"""Seconds until a lock is not waited for any longer, so that one that is late is measured."""

pytestmark = [
    pytest.mark.stress,
    pytest.mark.limit(10),
    pytest.mark.luna_cluster(keyrings=SLOTS),
    pytest.mark.usefixtures("regrant"),
]


class Victims:
    """The program that forks the processes which are killed."""

    def __init__(self, path):
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", VICTIMS, path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def come(self, **ordered):
        self._tell(json.dumps(ordered))
        assert self._process.stdout.readline() == "there\n"

    def die(self):
        """When the last one was killed."""
        self._tell("")
        return int(self._process.stdout.readline())

    def end(self):
        self._process.communicate(timeout=PATIENCE)
        assert self._process.returncode == 0

    def _tell(self, line):
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()


@pytest.fixture
def victims(cluster):
    program = Victims(cluster.path)
    yield program
    program.end()


def enter(slot):
    """Lock and unlock; when it was locked."""
    assert slot.acquire(timeout=PATIENCE), f"slot {slot.slot_id} is locked for good"
    entered = time.monotonic_ns()
    slot.release()
    return entered


@pytest.fixture
def first_seed():
    """LUNA_EXT_SEED repeats the rounds of another run."""
    return int(os.environ.get("LUNA_EXT_SEED", time.time_ns() % 1_000_000))


def test_after_a_kill_the_next_one_gets_in(
    luna, cluster, victims, call, wait_until_queued, long, first_seed
):
    waits = []
    rounds = 150 if long else 13
    begin = time.monotonic()
    print(f"\nkills: LUNA_EXT_SEED={first_seed}")
    for seed in range(first_seed, first_seed + rounds):
        chance = random.Random(seed)
        settled = chance.random() < 0.8
        held = chance.sample(range(1, SLOTS + 1), chance.randint(1, SLOTS - 1))
        victims.come(seed=str(seed), victims=chance.randint(1, 3), held=held, settled=settled)
        waiting = []
        if settled and chance.random() < 0.5:
            slot = luna.slot(held[0])
            waiting.append(call(lambda slot=slot: enter(slot)))
            wait_until_queued(slot, 1)
        killed = victims.die()
        entered = [enter(luna.slot(slot_id)) for slot_id in range(1, SLOTS + 1)]
        entered += [caller.result(2 * PATIENCE) for caller in waiting]
        waits += [(moment - killed) / 1e9 for moment in entered]
        assert max(waits) <= PROMISED, f"LUNA_EXT_SEED={seed}: {max(waits):.3f} s"
        assert [token.owner for token in cluster.tokens()] == [None] * SLOTS
    print(
        f"{rounds} rounds in {time.monotonic() - begin:.1f} s; after a kill the next one got in "
        f"within {max(waits) * 1000:.1f} ms at worst"
    )
