"""How much claims slow down locks that run at the same time, on a stand-in.

Two ratios. The first: a thread's pairs of `with slot:` while 8 workers claim, each claim 50 ms long, to
its pairs alone. The second: locks and claims of the same tokens on a device where a second lock call of
its application waits, to the same on one that grants it; and the longest time in which none of the
threads got on, but for the first, in which the kind of the device is found out.
Run it on an otherwise idle machine: python benchmarks/claims_beside_locks.py
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import measuring

import luna_ext

CLAIM = "CA_GetUnassignedSlot"
CLAIM_SECONDS = 0.05
WORKERS = 8
SO_PIN = "12345678"


class Crowd:
    """Threads that each do one thing again and again, until the crowd is stopped."""

    def __init__(self, *steps: Callable[[], object]) -> None:
        self._stopped = threading.Event()
        self.times: list[list[float]] = [[] for _ in steps]
        """When each thread had come to the end of a step."""
        self._threads = [
            threading.Thread(target=self._work, args=(step, times), daemon=True)
            for step, times in zip(steps, self.times, strict=True)
        ]
        for thread in self._threads:
            thread.start()

    def _work(self, step: Callable[[], object], times: list[float]) -> None:
        while not self._stopped.is_set():
            step()
            times.append(time.monotonic())

    def stop(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join(5)


def claim(luna: luna_ext.Library) -> None:
    with luna.claim("cluster-1", timeout=60):
        pass


def lock(slot: luna_ext.ClusterSlot) -> None:
    with slot:
        pass


def pairs_in(slot: luna_ext.ClusterSlot, seconds: float) -> float:
    """How many pairs a second a thread makes."""
    count = 0
    begin = now = time.perf_counter()
    while now < begin + seconds:
        for _ in range(100):
            lock(slot)
        count += 100
        now = time.perf_counter()
    return count / (now - begin)


def beside_slow_claims(seconds: float) -> tuple[float, float]:
    """Pairs a second of a thread: alone, and beside the claims."""
    with measuring.cluster() as cluster, cluster.library() as luna:
        with luna.claim("cluster-1") as token:
            slot = token.assign("other", so_pin=SO_PIN).slot
        cluster.latency(CLAIM_SECONDS, CLAIM)
        alone, beside = [], []
        # In turns, so that a slow moment of the machine does not fall on one of them alone.
        for _ in range(3):
            alone.append(measuring.on_a_thread(pairs_in, slot, seconds / 3))
            crowd = Crowd(*[lambda: claim(luna)] * WORKERS)
            beside.append(measuring.on_a_thread(pairs_in, slot, seconds / 3))
            crowd.stop()
        return max(alone), max(beside)


def on_the_same_tokens(relock: str, seconds: float, latency: float) -> tuple[float, float, float]:
    """Steps a second of threads that lock and threads that claim the same tokens; the longest pause of
    all of them together, and of a single thread, but for the first; the end counts as a step.
    """
    with measuring.cluster(keyrings=4, latency=latency) as cluster, cluster.library() as luna:
        cluster.switch("relock", relock)
        slots = luna.slots()
        begin = time.monotonic()
        crowd = Crowd(
            *[lambda slot=slot: lock(slot) for slot in slots], *[lambda: claim(luna)] * len(slots)
        )
        time.sleep(seconds)
        end = time.monotonic()
        every = [[each for each in times if each < end] for times in crowd.times]
        together = sorted(each for times in every for each in times)
        rate = len(together) / (end - begin)
        pauses = [second_longest([begin, *times, end]) for times in (together, *every)]
        crowd.stop()
        return rate, pauses[0], max(pauses[1:])


def second_longest(times: list[float]) -> float:
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    return sorted(pauses)[-2] if len(pauses) > 1 else pauses[0]


PARTS: dict[str, Callable[[float, float], tuple[float, ...]]] = {
    "beside": lambda seconds, latency: beside_slow_claims(seconds),
    "granted": lambda seconds, latency: on_the_same_tokens("granted", seconds, latency),
    "wait": lambda seconds, latency: on_the_same_tokens("wait", seconds, latency),
}


def in_own_process(part: str, options: argparse.Namespace) -> list[float]:
    """What is found out of a device is remembered for the process."""
    command = [sys.executable, __file__, "--part", part, "--seconds", str(options.seconds)]
    command += ["--latency", str(options.latency)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=options.seconds + 60)
    figures: list[float] = json.loads(done.stdout)
    return figures


def main() -> None:
    parser = measuring.parser(__doc__)
    parser.add_argument("--seconds", type=float, default=6, help="for each figure")
    parser.add_argument(
        "--latency", type=float, default=0.0, help="of each call, in the second part"
    )
    parser.add_argument("--json", action="store_true", help="the ratios alone")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.seconds = 0.3

    if options.part is not None:
        print(json.dumps(PARTS[options.part](options.seconds, options.latency)), flush=True)
        # Threads that hang, if some do, are not waited for.
        os._exit(0)
    figures = None if options.json else measuring.Figures("claims_beside_locks", options)
    alone, beside = in_own_process("beside", options)
    granted, _, _ = in_own_process("granted", options)
    wait, pause, own_pause = in_own_process("wait", options)
    if figures is None:
        print(json.dumps({"beside": beside / alone, "progress": wait / granted, "pause": pause}))
        return
    print(f"pairs a second, alone: {alone:,.0f}")
    print(f"  beside {WORKERS} workers that claim at {CLAIM_SECONDS:g} s: {beside:,.0f}")
    figures.add("beside claims", beside / alone)
    print(f"locks and claims of the same tokens a second, relock=granted: {granted:,.0f}")
    print(f"  relock=wait: {wait:,.0f}, {wait / granted:.2f} of it")
    print(f"  worst pause but one: {pause:.3f} s, of a single thread {own_pause:.3f} s")
    figures.write()


if __name__ == "__main__":
    main()
