"""What threads that share slots get: how often, after which waits, and what is left for others.

In each line so many threads lock and unlock by `with slot:`, all of them the same slot or each one
a slot of its own, on a stand-in that answers at once or after 1 ms per device call. A wait is what
a thread spends from the `with` to its first statement. The last column is how far a thread that
does nothing but count in Python comes meanwhile, relative to what it counts alone; it does not run
during the measurement of the others. Run it on an otherwise idle machine:
python benchmarks/contention.py
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import statistics
import sys
import time
from collections.abc import Sequence

from luna_ext import Library
from luna_ext.commands.bench import Crew, Lock
from luna_ext.stub import Cluster

THREADS = (1, 2, 4, 8, 16, 32, 64)
SLOTS = (1, 64)
LATENCY = 0.001
LATENCIES = (0.0, LATENCY)


def counted(slots: Sequence[Lock], seconds: float) -> float:
    """How far a thread counts in a second beside others that lock these slots."""
    crew = Crew(slots, counts=True)
    crew.run(seconds)
    return crew.count / seconds


def print_table(cluster: Cluster, luna: Library, seconds: float) -> None:
    print(
        f"{'':10}{'':>6}{'':>8}{'locked':>12}{'wait, microseconds':>36}{'left for':>12}\n"
        f"{'latency':10}{'slots':>6}{'threads':>8}{'per second':>12}"
        f"{'p50':>12}{'p99':>12}{'max':>12}{'counting':>12}"
    )
    # Before and after each line, for how fast the machine is changes.
    before = counted([], seconds)
    for latency, slots, threads in itertools.product(LATENCIES, SLOTS, THREADS):
        taken = [luna.slot(1 + index % slots) for index in range(threads)]
        cluster.latency(latency)
        waits = Crew(taken).run(seconds)
        beside = counted(taken, seconds)
        after = counted([], seconds)
        print(
            f"{latency * 1000:7.0f} ms{slots:6}{threads:8}{waits.per_second:12.0f}"
            f"{waits.at(0.5):12.1f}{waits.at(0.99):12.1f}{waits.at(1):12.1f}"
            f"{beside / statistics.mean((before, after)):12.0%}",
            flush=True,
        )
        before = after
    cluster.latency(0)


class Sleeper:
    """Sleeps as long as a slot's calls take, and holds the GIL as little as possible."""

    def __enter__(self) -> None:
        time.sleep(LATENCY)

    def __exit__(self, *exc: object) -> None:
        time.sleep(LATENCY)


def ratio(locks: Sequence[Lock], seconds: float, repeats: int) -> float:
    """How many times as often a thread for each of these locks as a thread for the first."""
    alone, together = [], []
    # In turns, so that a slow moment of the machine does not fall on one of them alone.
    for _ in range(repeats):
        alone.append(Crew(locks[:1]).run(seconds).per_second)
        together.append(Crew(locks).run(seconds).per_second)
    return statistics.median(together) / statistics.median(alone)


def print_ratios(cluster: Cluster, luna: Library, seconds: float, repeats: int) -> None:
    """On one CPU as well: there a thread seldom meets one that has the GIL, and to wait for it is
    what costs. What time.sleep() gets in place of the calls is as much as CPython has to give.
    """
    many = max(THREADS)
    locks: dict[str, list[Lock]] = {
        "with slot:": [luna.slot(1 + index) for index in range(many)],
        "time.sleep() instead": [Sleeper() for _ in range(many)],
    }
    cluster.latency(LATENCY)
    everywhere = os.sched_getaffinity(0)
    print(f"\n{many} slots at {LATENCY * 1000:.0f} ms: {many} threads lock so often as 1, times")
    print(f"{'':24}{f'on {len(everywhere)} CPUs':>12}{'on 1 CPU':>12}")
    for name, several in locks.items():
        print(f"{name:24}", end="")
        for cpus in (everywhere, {min(everywhere)}):
            os.sched_setaffinity(0, cpus)
            print(f"{ratio(several, seconds, repeats):12.1f}", end="", flush=True)
        os.sched_setaffinity(0, everywhere)
        print()
    cluster.latency(0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=0.4, help="of a measurement")
    parser.add_argument("--repeats", type=int, default=5, help="of a ratio")
    options = parser.parse_args()

    print(f"CPython {platform.python_version()} on {platform.machine()}, {os.cpu_count()} CPUs")
    with Cluster(keyrings=max(SLOTS)) as cluster, cluster.library() as luna:
        cluster.switch("log", "off")  # an HSM keeps its log elsewhere
        print_table(cluster, luna, options.seconds)
        print_ratios(cluster, luna, 2 * options.seconds, options.repeats)
    return 0


if __name__ == "__main__":
    sys.exit(main())
