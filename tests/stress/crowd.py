"""Processes, threads and tasks that lock and claim the slots of one cluster, all at the same time.

A program, so that the processes are forked from one that has no threads: its argument is the JSON
of a Settings. What the threads and tasks do is in ways.py. When each held which slot is kept in
files.
"""

import asyncio
import faulthandler
import json
import logging
import os
import random
import sys
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from ways import WORD, Holders, Records, Stage, play, play_in_task

import luna_ext
from luna_ext.stub import Cluster

IN_DOUBT = "whether this process holds its lock could not be made sure"
"""What the log says of a slot that the process may hold, or may not: it is left alone."""
PATIENCE_IN_DOUBT = 1.0
"""Seconds that a slot stays locked by this process, though no thread or task of it holds the slot,
until that is taken for one that is left alone for good."""


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
    """How often each thread locks or claims; those of an event loop's tasks add up to the same."""
    claims: float
    """The fraction of the rounds that claim."""
    polls: bool
    """Whether the device answers an error where the lock is not free."""
    handover: float
    """Seconds from a grant in which a lock is handed over within a process."""
    may_leave: bool
    """Whether a slot may stay locked that is in doubt. The process has to exit then."""
    seed: int


Part = Callable[[Settings, Stage, str, Records], None]


def play_in_thread(settings: Settings, stage: Stage, name: str, records: Records) -> None:
    chance = random.Random(f"{settings.seed}/{name}")
    for _ in range(settings.rounds):
        play(stage, chance, records)


def play_in_tasks(settings: Settings, stage: Stage, name: str, records: Records) -> None:
    async def task(number: int, rounds: int) -> None:
        chance = random.Random(f"{settings.seed}/{name}/{number}")
        for _ in range(rounds):
            await play_in_task(stage, chance, records)

    async def main() -> None:
        least, more = divmod(settings.rounds, settings.tasks)
        async with asyncio.TaskGroup() as group:
            for number in range(settings.tasks):
                group.create_task(task(number, least + (number < more)))

    asyncio.run(main())


class Log(logging.Handler):
    """Handles the lock's log records: any ERROR is a failure, but for that of a slot in doubt."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.doubts = 0
        self.others: list[str] = []
        logging.getLogger("luna_ext").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if IN_DOUBT in message:
            self.doubts += 1
        else:
            self.others.append(message)


class Process:
    """One of the processes that lock the slots."""

    def __init__(self, settings: Settings, index: int, luna: luna_ext.Library) -> None:
        self._settings = settings
        self._index = index
        self._cluster = Cluster(settings.cluster)
        self._stage = Stage(luna, self._cluster.cluster_id, settings.slots, settings.claims)
        self._log = Log()
        self._holders = Holders()
        self._failed: list[str] = []
        self._since: dict[int, float] = {}
        counters = os.open(os.path.join(settings.directory, "counters"), os.O_RDWR)
        parts: list[Part] = [play_in_thread] * settings.threads
        parts += [play_in_tasks] * settings.loops
        self._records = [Records(self._cluster, counters, self._holders) for _ in parts]
        self._parts = parts

    def start(self, starts: int) -> None:
        # Daemons: in a process that leaves, some of them wait for ever.
        self._threads = [
            threading.Thread(target=self._run, args=(number, starts), daemon=True)
            for number in range(len(self._parts))
        ]
        for thread in self._threads:
            thread.start()

    def _run(self, number: int, starts: int) -> None:
        name = f"{self._index}/{number}"
        try:
            os.read(starts, 1)
            self._parts[number](self._settings, self._stage, name, self._records[number])
        except BaseException:
            traceback.print_exc()
            self._failed.append(name)

    def wait(self) -> bool:
        """Wait until all threads have ended, and nothing is locked. False: a slot stays in doubt, and so
        the process has to exit, for no thread or task of whatever process will ever get it.
        """
        while any(thread.is_alive() for thread in self._threads) or self._since:
            for thread in self._threads:
                thread.join(0.1)
            self._look_for_doubts()
            if any(time.monotonic() - since > PATIENCE_IN_DOUBT for since in self._since.values()):
                self._holders.let_no_more()
                return False
        return True

    def _look_for_doubts(self) -> None:
        if not self._log.doubts:
            return
        left = [
            token.slot_id
            for token in self._cluster.tokens()
            if token.owner == os.getpid() and not self._stage.luna.slot(token.slot_id).locked()
        ]
        now = time.monotonic()
        self._since = {slot_id: self._since.get(slot_id, now) for slot_id in left}

    def report(self, *, left: bool) -> None:
        with open(os.path.join(self._settings.directory, f"intervals-{self._index}"), "wb") as file:
            for records in self._records:
                file.write(records.intervals)
        told = {
            name: sum(getattr(records, name) for records in self._records)
            for name in ("given_up", "claimed", "missed")
        }
        told |= {"left": int(left), "doubts": self._log.doubts, "handed_over": self._handed_over()}
        if left and not self._settings.may_leave:
            self._failed.append(f"slots {list(self._since)} stay locked, and no thread holds them")
        os.write(1, json.dumps(told).encode() + b"\n")
        if self._log.others:
            print(*self._log.others, sep="\n", file=sys.stderr)
            self._failed.append("the log")

    def _handed_over(self) -> int:
        stats = self._stage.luna.stats().get("CA_LockClusteredSlot")
        return 0 if stats is None else stats.handed_over

    @property
    def failed(self) -> bool:
        if self._failed:
            print(f"failed: {self._failed}", file=sys.stderr)
        return bool(self._failed)


def process(settings: Settings, index: int, tell: int, starts: int, leave: int) -> int:
    faulthandler.dump_traceback_later(settings.limit, exit=True)
    contention = "poll" if settings.polls else "block"
    cluster = Cluster(settings.cluster)
    with cluster.library(contention=contention, handover=settings.handover) as luna:
        one = Process(settings, index, luna)
        one.start(starts)
        os.write(tell, b"r")
        left = not one.wait()
        os.write(tell, b"d")
        if left:
            one.report(left=True)
            # Its threads are still there, and so would the lock be.
            os._exit(one.failed)
        os.read(leave, 1)
    one.report(left=False)
    return int(one.failed)


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
    """Wait until each process has reported that it has come to this point."""
    while processes:
        processes -= len(os.read(told, processes))


def locked_for_good(cluster: Cluster) -> list[int]:
    """The slots that stay locked although all threads and tasks have ended.

    A lock call that its caller gave up may be granted late; it is unlocked then.
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
    # Pipes as starting signals: when the end for writing is closed, all processes that read from the
    # other end go on.
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
        print(f"still locked: {locked}", file=sys.stderr)
    return 1 if locked or any(ends) else 0


if __name__ == "__main__":
    sys.exit(main())
