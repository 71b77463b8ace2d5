"""The ways of threads and tasks to lock a slot or to claim one; what they do while they hold it.

Each holder reads a number from a file that all share, and writes it back with one added; nothing
but the lock keeps two holders of a slot from losing an update. It also looks whether the device has
the lock as this process's.
"""

import array
import asyncio
import os
import random
import threading
import time
from typing import NamedTuple

import luna_ext
from luna_ext.stub import Cluster

WORD = 8
IMPATIENCE = 0.001
"""Seconds until those that give up do so; longer each time, so that all come to an end."""
MOST_CLAIMS = 8
"""How often a claim is tried before it is not to be had: other processes may want all slots."""
FOR_EVER = 3600.0


class Stage(NamedTuple):
    """What all threads and tasks of a process share."""

    luna: luna_ext.Library
    cluster_id: str
    slots: int
    claims: float
    """The fraction of the rounds that claim a slot; the others lock one."""

    def any_slot(self, chance: random.Random) -> luna_ext.ClusterSlot:
        return self.luna.slot(chance.randint(1, self.slots))


class Holders:
    """How many threads and tasks of this process hold a slot; once it is to leave, no more may."""

    def __init__(self) -> None:
        self._change = threading.Condition()
        self._holding = 0
        self._leaving = False

    def come(self) -> bool:
        with self._change:
            self._holding += not self._leaving
            return not self._leaving

    def go(self) -> None:
        with self._change:
            self._holding -= 1
            self._change.notify()

    def let_no_more(self) -> None:
        """Until those that hold a slot have ended their work; the process must exit then."""
        with self._change:
            self._leaving = True
            self._change.wait_for(lambda: self._holding == 0)


class Records:
    """When a thread, or the tasks of one, held which slot."""

    def __init__(self, cluster: Cluster, counters: int, holders: Holders) -> None:
        self.intervals = array.array("Q")
        self.given_up = 0
        self.claimed = 0
        self.missed = 0
        """Rounds in which no slot was to be claimed."""
        self._cluster = cluster
        self._counters = counters
        self._holders = holders

    def work(self, slot_id: int) -> None:
        """What a thread does while it holds a slot."""
        if not self._holders.come():
            time.sleep(FOR_EVER)
        try:
            entered = time.monotonic_ns()
            number = self._read(slot_id)
            os.sched_yield()
            self._write(slot_id, number + 1, entered)
        finally:
            self._holders.go()

    async def work_in_task(self, slot_id: int) -> None:
        if not self._holders.come():
            await asyncio.sleep(FOR_EVER)
        try:
            entered = time.monotonic_ns()
            number = self._read(slot_id)
            await asyncio.sleep(0)
            self._write(slot_id, number + 1, entered)
        finally:
            self._holders.go()

    def _read(self, slot_id: int) -> int:
        return int.from_bytes(os.pread(self._counters, WORD, slot_id * WORD))

    def _write(self, slot_id: int, number: int, entered: int) -> None:
        owner = {token.slot_id: token.owner for token in self._cluster.tokens()}[slot_id]
        assert owner == os.getpid(), f"slot {slot_id} is held, and on the device {owner} has it"
        os.pwrite(self._counters, number.to_bytes(WORD), slot_id * WORD)
        self.intervals.extend((slot_id, entered, time.monotonic_ns()))


# ---- of a thread, to lock ----


def by_with(slot: luna_ext.ClusterSlot, records: Records) -> None:
    with slot:
        records.work(slot.slot_id)


def by_acquire(slot: luna_ext.ClusterSlot, records: Records) -> None:
    slot.acquire()
    try:
        records.work(slot.slot_id)
    finally:
        slot.release()


def by_lock(slot: luna_ext.ClusterSlot, records: Records) -> None:
    with slot.lock():
        records.work(slot.slot_id)


def by_timed_lock(slot: luna_ext.ClusterSlot, records: Records) -> None:
    patience = IMPATIENCE
    while True:
        try:
            with slot.lock(timeout=patience):
                return records.work(slot.slot_id)
        except luna_ext.LockTimeoutError:
            records.given_up += 1
            patience *= 2


def by_timed_acquire(slot: luna_ext.ClusterSlot, records: Records) -> None:
    patience = IMPATIENCE
    while not slot.acquire(timeout=patience):
        records.given_up += 1
        patience *= 2
    try:
        records.work(slot.slot_id)
    finally:
        slot.release()


WAYS = (by_with, by_acquire, by_lock, by_timed_lock, by_timed_acquire)

# ---- of a thread, to claim ----

NONE_TO_BE_HAD = (luna_ext.NoUnassignedTokenError, luna_ext.LockTimeoutError)


def claim(stage: Stage, records: Records, patience: float) -> None:
    for _ in range(MOST_CLAIMS):
        try:
            with stage.luna.claim(stage.cluster_id, timeout=patience) as token:
                records.claimed += 1
                return records.work(token.slot.slot_id)
        except NONE_TO_BE_HAD:
            records.given_up += 1
            patience *= 2
    records.missed += 1
    return None


def play(stage: Stage, chance: random.Random, records: Records) -> None:
    if chance.random() < stage.claims:
        claim(stage, records, chance.choice((0, IMPATIENCE)))
    else:
        chance.choice(WAYS)(stage.any_slot(chance), records)


# ---- of a task, to lock ----


async def by_async_lock(slot: luna_ext.ClusterSlot, records: Records) -> None:
    async with slot.lock():
        await records.work_in_task(slot.slot_id)


async def by_timed_async_lock(slot: luna_ext.ClusterSlot, records: Records) -> None:
    patience = IMPATIENCE
    while True:
        try:
            async with slot.lock(timeout=patience):
                return await records.work_in_task(slot.slot_id)
        except luna_ext.LockTimeoutError:
            records.given_up += 1
            patience *= 2


async def by_cancelled_lock(slot: luna_ext.ClusterSlot, records: Records) -> None:
    """The cancellation strikes a task that waits, that works or that is leaving the block."""
    patience = IMPATIENCE
    done = False
    while not done:
        try:
            async with asyncio.timeout(patience), slot.lock():
                await records.work_in_task(slot.slot_id)
                done = True
        except TimeoutError:
            records.given_up += 1
            patience *= 2


WAYS_OF_TASKS = (by_async_lock, by_timed_async_lock, by_cancelled_lock)

# ---- of a task, to claim ----


async def claim_in_task(
    stage: Stage, records: Records, patience: float, *, cancelled: bool
) -> None:
    done = False
    for _ in range(MOST_CLAIMS):
        try:
            async with (
                asyncio.timeout(max(patience, IMPATIENCE) if cancelled else None),
                stage.luna.claim(stage.cluster_id, timeout=patience) as token,
            ):
                records.claimed += 1
                await records.work_in_task(token.slot.slot_id)
                done = True
        except (*NONE_TO_BE_HAD, TimeoutError):
            records.given_up += 1
            patience *= 2
        if done:
            return
    records.missed += 1


async def play_in_task(stage: Stage, chance: random.Random, records: Records) -> None:
    if chance.random() < stage.claims:
        await claim_in_task(
            stage, records, chance.choice((0, IMPATIENCE)), cancelled=chance.random() < 0.5
        )
    else:
        await chance.choice(WAYS_OF_TASKS)(stage.any_slot(chance), records)
