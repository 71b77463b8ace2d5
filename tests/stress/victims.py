"""Forks processes that hold slots, wait for them and claim them, and kills them when told to.

A program that stays small and has no threads, so that a fork takes a moment. Each line that it
reads is the JSON of a Round; it answers with a line when the victims are there, and with another,
after one more line, when they are dead: the `time.monotonic_ns()` at which the last was killed.
"""

import faulthandler
import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import luna_ext
from luna_ext.stub import Cluster

FOR_EVER = 3600.0


class Round(NamedTuple):
    seed: str
    victims: int
    held: Sequence[int]
    """The slots that the first victim holds until it is killed."""
    settled: bool
    """Whether the victims are waited for, or killed wherever they are."""


class Threads:
    """What the threads of a victim do, each of them until the end."""

    def __init__(self, cluster: Cluster, luna: luna_ext.Library, chance: random.Random) -> None:
        self._cluster = cluster
        self._luna = luna
        self._chance = chance
        self._slots = [token.slot_id for token in cluster.tokens()]

    def start(self, do: Callable[..., None], *arguments: object) -> None:
        threading.Thread(target=do, args=arguments, daemon=True).start()

    def any_slot(self) -> luna_ext.ClusterSlot:
        return self._luna.slot(self._chance.choice(self._slots))

    def hold(self, slot_id: int, holds: threading.Semaphore) -> None:
        with self._luna.slot(slot_id):
            holds.release()
            time.sleep(FOR_EVER)

    def wait(self, slot: luna_ext.ClusterSlot) -> None:
        with slot:
            time.sleep(FOR_EVER)

    def wait_on_worker(self, slot: luna_ext.ClusterSlot) -> None:
        with slot.lock():
            time.sleep(FOR_EVER)

    def time_out(self, slot: luna_ext.ClusterSlot) -> None:
        while True:
            if slot.acquire(timeout=0.001):
                slot.release()

    def come_and_go(self, slot: luna_ext.ClusterSlot) -> None:
        while True:
            with slot:
                pass

    def claim(self, _: luna_ext.ClusterSlot) -> None:
        while True:
            try:
                with self._luna.claim(self._cluster.cluster_id, timeout=1):
                    os.sched_yield()
            except luna_ext.NoUnassignedTokenError:
                pass

    def start_some(self) -> None:
        ways = [self.wait, self.wait_on_worker, self.time_out, self.come_and_go, self.claim]
        for way in self._chance.choices(ways, k=4):
            self.start(way, self.any_slot())


def victim(cluster: Cluster, ordered: Round, index: int, ready: int) -> None:
    faulthandler.dump_traceback_later(120, exit=True)
    luna = cluster.library()
    threads = Threads(cluster, luna, random.Random(f"{ordered.seed}/{index}"))
    if index == 0:
        holds = threading.Semaphore(0)
        for slot_id in ordered.held:
            threads.start(threads.hold, slot_id, holds)
        for _ in ordered.held:
            holds.acquire()
    threads.start_some()
    os.write(ready, b"r")
    time.sleep(FOR_EVER)


def fork(cluster: Cluster, ordered: Round, index: int, ready: int) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            victim(cluster, ordered, index, ready)
        finally:
            os._exit(1)
    return pid


def play(cluster: Cluster, ordered: Round) -> None:
    chance = random.Random(ordered.seed)
    read_ready, ready = os.pipe()
    pids = []
    for index in range(ordered.victims):
        pids.append(fork(cluster, ordered, index, ready))
        # The others come when the first one has what it shall hold.
        if ordered.settled:
            os.read(read_ready, 1)
    print("there", flush=True)
    sys.stdin.readline()
    chance.shuffle(pids)
    for pid in pids:
        time.sleep(chance.uniform(0, 0.01))
        os.kill(pid, signal.SIGKILL)
    killed = time.monotonic_ns()
    ends = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    os.close(read_ready)
    os.close(ready)
    if any(end != -signal.SIGKILL for end in ends):
        sys.exit(f"a victim came to another end: {ends}")
    print(killed, flush=True)


def main() -> None:
    cluster = Cluster(sys.argv[1])
    for line in sys.stdin:
        play(cluster, Round(**json.loads(line)))


if __name__ == "__main__":
    main()
