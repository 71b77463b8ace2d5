"""Processes, threads and tasks that lock the slots of one cluster, all from the same moment on.

Each holder reads a number from a file that all share, and writes it back with one added; nothing
but the lock keeps two holders of a slot from losing an update. When it held which slot is kept in
files. A program, so that the processes are forked from one that has no threads: its argument is the
JSON of a Settings.
"""

import array
import asyncio
import faulthandler
import json
import os
import random
import sys
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import luna_ext
from luna_ext.stub import Cluster

WORD = 8
IMPATIENCE = 0.001
"""Seconds until those that give up do so; longer each time, so that all come to an end."""


class Settings(NamedTuple):
    cluster: str
    directory: str
    limit: float
    """Seconds until a process that hangs shows where, and exits."""
    slots: int
    processes: int
    threads: int
    """In each process; they lock without an event loop."""
    loops: int
    """In each process: so many more threads that run an event loop each."""
    tasks: int
    """In each event loop."""
    rounds: int
    """How often each thread locks. What the tasks of an event loop lock adds up to the same."""
    seed: int


class Records:
    """When a thread, or the tasks of one, held which slot."""

    def __init__(self, counters: int) -> None:
        self.intervals = array.array("Q")
        self.given_up = 0
        self._counters = counters

    def work(self, slot_id: int) -> None:
        """What a thread does while it holds a slot."""
        entered = time.monotonic_ns()
        number = self._read(slot_id)
        os.sched_yield()
        self._write(slot_id, number + 1, entered)

    async def work_in_task(self, slot_id: int) -> None:
        entered = time.monotonic_ns()
        number = self._read(slot_id)
        await asyncio.sleep(0)
        self._write(slot_id, number + 1, entered)

    def _read(self, slot_id: int) -> int:
        return int.from_bytes(os.pread(self._counters, WORD, slot_id * WORD))

    def _write(self, slot_id: int, number: int, entered: int) -> None:
        os.pwrite(self._counters, number.to_bytes(WORD), slot_id * WORD)
        self.intervals.extend((slot_id, entered, time.monotonic_ns()))


# ---- the ways of a thread to lock ----


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


def lock_by_turns(settings: Settings, luna: luna_ext.Library, name: str, records: Records) -> None:
    chance = random.Random(f"{settings.seed}/{name}")
    for _ in range(settings.rounds):
        way = chance.choice(WAYS)
        way(luna.slot(chance.randint(1, settings.slots)), records)


# ---- the ways of a task ----


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


def lock_in_tasks(settings: Settings, luna: luna_ext.Library, name: str, records: Records) -> None:
    async def task(number: int, rounds: int) -> None:
        chance = random.Random(f"{settings.seed}/{name}/{number}")
        for _ in range(rounds):
            way = chance.choice(WAYS_OF_TASKS)
            await way(luna.slot(chance.randint(1, settings.slots)), records)

    async def main() -> None:
        least, more = divmod(settings.rounds, settings.tasks)
        async with asyncio.TaskGroup() as group:
            for number in range(settings.tasks):
                group.create_task(task(number, least + (number < more)))

    asyncio.run(main())


# ---- a process ----

Part = Callable[[Settings, luna_ext.Library, str, Records], None]


def start_threads(
    settings: Settings, luna: luna_ext.Library, index: int, starts: int, failed: list[str]
) -> tuple[list[threading.Thread], list[Records]]:
    counters = os.open(os.path.join(settings.directory, "counters"), os.O_RDWR)

    def run(part: Part, name: str, records: Records) -> None:
        try:
            os.read(starts, 1)
            part(settings, luna, name, records)
        except BaseException:
            traceback.print_exc()
            failed.append(name)

    parts: list[Part] = [lock_by_turns] * settings.threads
    parts += [lock_in_tasks] * settings.loops
    everything = [Records(counters) for _ in parts]
    threads = [
        threading.Thread(target=run, args=(part, f"{index}/{number}", records))
        for number, (part, records) in enumerate(zip(parts, everything, strict=True))
    ]
    for thread in threads:
        thread.start()
    return threads, everything


def process(settings: Settings, index: int, tell: int, starts: int, leave: int) -> int:
    faulthandler.dump_traceback_later(settings.limit, exit=True)
    failed: list[str] = []
    with Cluster(settings.cluster).library() as luna:
        threads, everything = start_threads(settings, luna, index, starts, failed)
        os.write(tell, b"r")
        for thread in threads:
            thread.join()
        os.write(tell, b"d")
        os.read(leave, 1)
    with open(os.path.join(settings.directory, f"intervals-{index}"), "wb") as file:
        for records in everything:
            file.write(records.intervals)
    given_up = sum(records.given_up for records in everything)
    os.write(1, json.dumps({"given_up": given_up}).encode() + b"\n")
    return 1 if failed else 0


def fork(child: Callable[[], int]) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = child()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


def wait_for(told: int, processes: int) -> None:
    """Until each process has told that it is so far."""
    while processes:
        processes -= len(os.read(told, processes))


def locked_for_good(cluster: Cluster) -> list[int]:
    """The slots that stay locked though nobody wants them any more.

    One that somebody gave up waiting for may be granted late, and is unlocked then.
    """
    deadline = time.monotonic() + 10
    while True:
        locked = [token.slot_id for token in cluster.tokens() if token.owner is not None]
        if not locked or time.monotonic() > deadline:
            return locked
        time.sleep(0.01)


def main() -> int:
    settings = Settings(**json.loads(sys.argv[1]))
    cluster = Cluster(settings.cluster)
    with open(os.path.join(settings.directory, "counters"), "wb") as file:
        file.write(bytes(WORD * (settings.slots + 1)))
    told, tell = os.pipe()
    # Closing the one end that can be written to lets go of everybody who reads from the other.
    starts, start = os.pipe()
    leave, let_go = os.pipe()

    def member(index: int) -> int:
        os.close(start)
        os.close(let_go)
        return process(settings, index, tell, starts, leave)

    children = [fork(partial(member, index)) for index in range(settings.processes)]
    faulthandler.dump_traceback_later(settings.limit + 5, exit=True)
    wait_for(told, settings.processes)
    os.close(start)
    wait_for(told, settings.processes)
    # While the processes are there, for their locks go with them.
    locked = locked_for_good(cluster)
    os.close(let_go)
    ends = [os.waitpid(child, 0)[1] for child in children]
    if locked:
        print(f"nobody unlocks {locked}", file=sys.stderr)
    return 1 if locked or any(ends) else 0


if __name__ == "__main__":
    sys.exit(main())
