"""How processes share a lock that the device does not queue for, by contention="poll".

On a stand-in that answers an error to a lock call while another process holds the lock, so many processes
want one slot again and again, and hold it for so long. In each line: how often it was locked, against what
one process alone could do with the same holds; the process that got it least often, against the mean; the
longest wait; and the device calls of the process that made most, in a second.

Above that, the same in a simulation, for the rules as they are and for pauses from 10 ms to a limit that
doubles up to 250 ms: a minute of each, in which a process that has just unlocked competes with those that
sleep. Run it on an otherwise idle machine: python benchmarks/polling.py
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

from luna_ext.stub import Cluster

LATENCY = 0.001
"""Seconds of a device call."""
ROUNDS = 5

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


PROGRAM = """
import json, sys, time
from luna_ext.stub import Cluster
path, hold, seconds = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
with Cluster(path).library(contention="poll") as luna:
    slot, waits = luna.slot(1), []
    slot.token_info
    print("ready", flush=True)
    sys.stdin.readline()
    end = time.monotonic() + seconds
    # Not on the main thread, where a worker makes the calls.
    def work():
        while (asked := time.monotonic()) < end:
            with slot:
                waits.append(time.monotonic() - asked)
                time.sleep(hold)
    import threading
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    stats = luna.stats()
    calls = sum(stats[name].calls for name in stats if name.startswith("CA_"))
print(json.dumps([waits, calls]))
"""


def run(processes: int, hold: float, seconds: float) -> Outcome:
    with Cluster(keyrings=1) as cluster:
        cluster.switch("contention", "error")
        cluster.switch("log", "off")
        cluster.latency(LATENCY, "CA_LockClusteredSlot")
        cluster.latency(LATENCY, "CA_UnlockClusteredSlot")
        command = [sys.executable, "-c", PROGRAM, cluster.path, str(hold), str(seconds)]
        started = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(processes)
        ]
        for one in started:
            assert one.stdout is not None
            one.stdout.readline()
        for one in started:
            assert one.stdin is not None
            one.stdin.write("\n")
            one.stdin.flush()
        ends = [json.loads(one.communicate()[0].splitlines()[-1]) for one in started]
    got = [len(waits) for waits, _ in ends]
    return Outcome(
        sum(got) * (hold + 2 * LATENCY) / seconds,
        min(got) * processes / sum(got),
        max(wait for waits, _ in ends for wait in waits),
        max(calls for _, calls in ends) / seconds,
    )


def median(outcomes: list[Outcome]) -> Outcome:
    return Outcome(*(statistics.median(values) for values in zip(*outcomes, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=4.0, help="of each line on the stand-in")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    print(HEAD)
    for name, rules in (("doubling pauses", DOUBLING), ("as it is", AS_THEY_ARE)):
        for processes, hold in ((2, 0.005), (8, 0.005), (8, 0.1), (64, 0.005)):
            outcome = median([simulate(rules, processes, hold, 60, seed) for seed in range(3)])
            print(
                f"simulated, {name:16} {processes:2} x {hold * 1000:3.0f} ms{outcome}", flush=True
            )
    for processes in (1, 2, 8):
        outcomes = [run(processes, 0.005, options.seconds) for _ in range(options.rounds)]
        print(f"on the stand-in {'':12} {processes:2} x   5 ms{median(outcomes)}", flush=True)


if __name__ == "__main__":
    began = time.monotonic()
    main()
    print(f"{time.monotonic() - began:.0f} s")
