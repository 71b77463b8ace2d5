"""How processes share a lock that the device does not queue for, by contention="poll".

On a stand-in that answers an error to a lock call while another process holds the lock, so many processes
want one slot again and again, and hold it for so long. In each line: how often it was locked, against what
one process alone could do with the same holds; the process that got it least often, against the mean; the
longest wait; and the device calls of the process that made most, in a second. Then the device calls of a
process of which 16 threads wait while another process holds the slot.

Above that, the same in a simulation, for the rules as they are and for pauses from 10 ms to a limit that
doubles up to 250 ms: a minute of each, in which a process that has just unlocked competes with those that
sleep. Run it on an otherwise idle machine: python benchmarks/polling.py
"""

from __future__ import annotations

import argparse
import contextlib
import heapq
import itertools
import json
import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import measuring

import luna_ext
from luna_ext.stub import Cluster

LATENCY = 0.001
"""Seconds of a device call."""
ROUNDS = 7
HOLD = 0.005
WAITERS = 16
SIMULATED = ((2, HOLD), (8, HOLD), (8, 0.1), (64, HOLD))
"""So many processes, and for how long each holds the lock."""

# As in luna_ext/_mutex/queue.pyx.
POLL_PAUSE, LEAST_POLL_PAUSE, POLL_SHRINKS = 0.050, 0.021, 8.0
RUN_SECONDS, OTHERS_SECONDS = 0.120, 0.040


class Outcome(NamedTuple):
    throughput: float
    least_share: float
    longest_wait: float
    calls_per_second: float

    def __str__(self) -> str:
        return (
            f"{self.throughput:8.2f}{self.least_share:8.2f}{self.longest_wait:8.2f} s"
            f"{self.calls_per_second:8.0f}/s"
        )


HEAD = f"{'':38}{'of what':>8}{'least':>8}{'longest':>10}{'calls':>10}\n{'':38}{'is possible':>8}"


class Rules(NamedTuple):
    pause: Callable[[random.Random, float, int], float]
    """After a refusal, by the time waited and the number of refusals."""
    left_to_others: Callable[[random.Random, float], float]
    """Before the next lock call, by how long the process has had the lock in a row."""


def about(chance: random.Random, seconds: float) -> float:
    return seconds * chance.uniform(0.8, 1.2)


AS_THEY_ARE = Rules(
    lambda chance, waited, _: about(
        chance, max(LEAST_POLL_PAUSE, POLL_PAUSE / (1 + POLL_SHRINKS * waited))
    ),
    lambda chance, run: about(chance, OTHERS_SECONDS) if run >= RUN_SECONDS else 0,
)
DOUBLING = Rules(
    lambda chance, _, refusals: chance.uniform(0.010, min(0.250, 0.020 * 2 ** (refusals - 1))),
    lambda _, run: 0,
)


class _Process:
    def __init__(self) -> None:
        self.asked_since = 0.0
        self.refusals = 0
        self.run_began: float | None = None
        self.calls = 0
        self.waits: list[float] = []


def simulate(rules: Rules, processes: int, hold: float, seconds: float, seed: int) -> Outcome:
    """All processes want the lock again as soon as they have given it back."""
    chance = random.Random(seed)
    number = itertools.count()
    them = [_Process() for _ in range(processes)]
    events: list[tuple[float, int, str, _Process]] = []
    holder: _Process | None = None

    def at(when: float, what: str, process: _Process) -> None:
        heapq.heappush(events, (when, next(number), what, process))

    for process in them:
        at(chance.random() * 0.01, "ask", process)
    while events[0][0] < seconds:
        now, _, what, process = heapq.heappop(events)
        if what == "ask":
            process.calls += 1
            at(now + LATENCY / 2, "arrive", process)
        elif what == "arrive":
            at(now + LATENCY / 2, "refused" if holder is not None else "granted", process)
            holder = holder or process
        elif what == "refused":
            process.refusals += 1
            process.run_began = None
            pause = rules.pause(chance, now - process.asked_since, process.refusals)
            at(now + pause, "ask", process)
        elif what == "granted":
            process.waits.append(now - process.asked_since)
            process.refusals = 0
            process.run_began = now if process.run_began is None else process.run_began
            process.calls += 1
            at(now + hold + LATENCY / 2, "free", process)
        else:
            holder = None
            process.asked_since = back = now + LATENCY / 2
            assert process.run_began is not None
            pause = rules.left_to_others(chance, back - process.run_began)
            if pause:
                process.run_began = None
            at(back + pause, "ask", process)
    got = [len(process.waits) for process in them]
    return Outcome(
        sum(got) * (hold + 2 * LATENCY) / seconds,
        min(got) * processes / sum(got),
        max(
            [seconds - process.asked_since for process in them if process is not holder]
            + [wait for process in them for wait in process.waits]
        ),
        max(process.calls for process in them) / seconds,
    )


@contextlib.contextmanager
def device() -> Iterator[Cluster]:
    with measuring.cluster(keyrings=1, pair=2 * LATENCY) as cluster:
        cluster.switch("contention", "error")
        yield cluster


def device_calls(luna: luna_ext.Library) -> int:
    stats = luna.stats()
    return sum(stats[name].calls for name in stats if name.startswith("CA_"))


def lock_again_and_again(path: str, hold: float, seconds: float) -> None:
    """Prints the waits and the device calls."""
    with Cluster(path).library(contention="poll") as luna:
        slot = luna.slot(1)
        waits: list[float] = []
        be_ready(slot)
        end = time.monotonic() + seconds

        def work() -> None:
            while (asked := time.monotonic()) < end:
                with slot:
                    waits.append(time.monotonic() - asked)
                    time.sleep(hold)

        # Not on the main thread, where a worker makes the calls.
        measuring.on_a_thread(work)
        print(json.dumps([waits, device_calls(luna)]))


def wait_on_threads(path: str, threads: int, seconds: float) -> None:
    """Prints the device calls while other code holds the slot."""
    with Cluster(path).library(contention="poll") as luna:
        slot = luna.slot(1)

        def work() -> None:
            with slot:
                pass

        be_ready(slot)
        waiting = [threading.Thread(target=work) for _ in range(threads)]
        for thread in waiting:
            thread.start()
        time.sleep(seconds)
        print(device_calls(luna), flush=True)
        for thread in waiting:
            thread.join()


def be_ready(slot: luna_ext.ClusterSlot) -> None:
    """The first call of a process takes longer: it is made before all begin."""
    print(slot.token_info.label, flush=True)
    sys.stdin.readline()


def start(*work: object) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--work", *map(str, work)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def begin(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("begin\n")
    process.stdin.flush()


def run(processes: int, hold: float, seconds: float) -> Outcome:
    with device() as cluster:
        started = [start("lock", cluster.path, hold, seconds) for _ in range(processes)]
        for one in started:
            begin(one)
        ends = [json.loads(one.communicate()[0]) for one in started]
    got = [len(waits) for waits, _ in ends]
    return Outcome(
        sum(got) * (hold + 2 * LATENCY) / seconds,
        min(got) * processes / sum(got),
        max(wait for waits, _ in ends for wait in waits),
        max(calls for _, calls in ends) / seconds,
    )


def calls_of_waiters(threads: int, seconds: float) -> float:
    """In a second."""
    with device() as cluster, cluster.library(contention="poll") as luna:
        with luna.slot(1):
            waiting = start("wait", cluster.path, threads, seconds)
            begin(waiting)
            assert waiting.stdout is not None
            calls = int(waiting.stdout.readline())
        waiting.communicate()
    return calls / seconds


def median(outcomes: list[Outcome]) -> Outcome:
    return Outcome(*(statistics.median(values) for values in zip(*outcomes, strict=True)))


def main() -> None:
    parser = measuring.parser(__doc__)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each line on the stand-in")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--work", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        what, path, number, seconds = options.work
        if what == "lock":
            lock_again_and_again(path, float(number), float(seconds))
        else:
            wait_on_threads(path, int(number), float(seconds))
        return
    figures = measuring.Figures("polling", options)
    if options.quick:
        options.seconds, options.rounds = 0.2, 1
    table: list[tuple[str, Outcome]] = []

    def add(what: str, outcome: Outcome) -> None:
        table.append((what, outcome))
        print(f"{what:38}{outcome}", flush=True)

    print(HEAD)
    for name, rules in (("doubling pauses", DOUBLING), ("as it is", AS_THEY_ARE)):
        for processes, hold in SIMULATED:
            seconds, seeds = (2, 1) if options.quick else (60, 3)
            outcomes = [simulate(rules, processes, hold, seconds, seed) for seed in range(seeds)]
            add(f"simulated, {name}, {processes} x {hold * 1000:.0f} ms", median(outcomes))
    for processes in (1, 2, 8):
        outcomes = [run(processes, HOLD, options.seconds) for _ in range(options.rounds)]
        outcome = median(outcomes)
        add(f"on the stand-in, {processes} x {HOLD * 1000:.0f} ms", outcome)
        if processes > 1:
            figures.add(f"poll {processes} throughput", outcome.throughput)
            figures.add(f"poll {processes} share", outcome.least_share)
            figures.add(f"poll {processes} wait", outcome.longest_wait)
    calls = [calls_of_waiters(WAITERS, options.seconds / 2) for _ in range(options.rounds)]
    figures.add("poll calls", statistics.median(calls))
    figures.data["table"] = table
    figures.write()


if __name__ == "__main__":
    main()
