"""What `Library(handover=0.05)` gives threads that share a slot, and what it leaves to another process, on
a stand-in where a lock and an unlock take 1 ms together.

So many threads want one slot again and again, with handover and without. Then 16 of them do so while a
thread of another process wants it as well, and the longest time is taken that this one has waited.

Run it on an otherwise idle machine: python benchmarks/handover.py
"""

from __future__ import annotations

import argparse
import functools
import statistics
import subprocess
import sys
import threading
import time

import measuring

import luna_ext
from luna_ext.commands.bench import Crew
from luna_ext.stub import Cluster

PAIR_SECONDS = 0.001
HANDOVER_SECONDS = 0.05
THREADS = (1, 2, 4, 8, 16, 32, 64)
TARGET_THREADS = 16
ROUNDS, ROUNDS_OF_A_POINT, SECONDS = 7, 3, 0.3
OTHER_SECONDS = 0.002
"""Between an unlock of the other process and its next lock call."""


def rate(cluster: Cluster, threads: int, handover: float, seconds: float) -> float:
    with cluster.library(handover=handover) as luna:
        return Crew([luna.slot(1)] * threads).run(seconds).per_second


def wait_of_another_process(cluster: Cluster, seconds: float) -> float:
    """The longest one, beside threads that hand the slot over."""
    command = [sys.executable, __file__, "--other", cluster.path, str(seconds)]
    with (
        cluster.library(handover=HANDOVER_SECONDS) as luna,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as other,
    ):
        assert other.stdout is not None
        other.stdout.readline()  # it is ready
        crew = Crew([luna.slot(1)] * TARGET_THREADS)
        beside = threading.Thread(target=crew.run, args=(2 * seconds,))
        beside.start()
        longest = float(other.communicate("begin\n")[0])
        beside.join()
        return longest


def waits(slot: luna_ext.ClusterSlot, seconds: float) -> list[float]:
    waits = []
    asked = time.perf_counter()
    end = asked + seconds
    while asked < end:
        with slot:
            waits.append(time.perf_counter() - asked)
        time.sleep(OTHER_SECONDS)
        asked = time.perf_counter()
    return waits


def be_another_process(path: str, seconds: float) -> None:
    with Cluster(path).library() as luna:
        slot = luna.slot(1)
        print(slot.token_info.label, flush=True)  # the first call of a process takes longer
        sys.stdin.readline()
        print(max(measuring.on_a_thread(waits, slot, seconds)))


def main() -> None:
    parser = measuring.parser(__doc__)
    parser.add_argument("--other", nargs=2, metavar=("PATH", "SECONDS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.other:
        be_another_process(options.other[0], float(options.other[1]))
        return
    figures = measuring.Figures("handover", options)
    curves: dict[str, list[tuple[int, float]]] = {"without": [], "handover": []}
    seconds = 0.05 if options.quick else SECONDS
    with measuring.cluster(keyrings=1, pair=PAIR_SECONDS) as cluster:
        for threads in THREADS:
            rounds = ROUNDS if threads == TARGET_THREADS else ROUNDS_OF_A_POINT
            rates = measuring.in_turns(
                {
                    "without": functools.partial(rate, cluster, threads, 0.0, seconds),
                    "handover": functools.partial(
                        rate, cluster, threads, HANDOVER_SECONDS, seconds
                    ),
                },
                1 if options.quick else rounds,
            )
            for name, curve in curves.items():
                curve.append((threads, statistics.median(rates[name])))
            if threads == TARGET_THREADS:
                figures.add("handover", measuring.ratio(rates["handover"], rates["without"]))
        rounds = 1 if options.quick else ROUNDS
        figures.add(
            "wait beside handover",
            max(wait_of_another_process(cluster, 3 * seconds) for _ in range(rounds)),
        )
    figures.data["rates"] = curves
    figures.write()


if __name__ == "__main__":
    main()
