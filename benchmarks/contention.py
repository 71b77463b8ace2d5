"""What threads that share slots get: how often, after which waits, and what is left for others.

In each line so many threads lock and unlock by `with slot:`, all of them the same slot or each one
a slot of its own, on a stand-in that answers at once or after 1 ms per device call. A wait is what
a thread spends from the `with` to its first statement. The last column is how far a thread that
does nothing but count in Python comes meanwhile, relative to what it counts alone; it does not run
during the measurement of the others.

Below that, how many times as often 64 threads on 64 slots lock as one does: on all CPUs, and on one, where
a thread seldom meets another that has the GIL, and to wait for it is what costs. What time.sleep() gets in
place of the calls is as much as CPython has to give.

Run it on an otherwise idle machine: python benchmarks/contention.py
"""

from __future__ import annotations

import functools
import itertools
import math
import os
import statistics
import time
from collections import Counter
from collections.abc import Sequence

import measuring

from luna_ext import Library
from luna_ext.commands.bench import Crew, Lock, Waits
from luna_ext.stub import Cluster

THREADS = (1, 2, 4, 8, 16, 32, 64)
QUICK_THREADS = (1, 64)
SLOTS = (1, 64)
LATENCY = 0.001
LATENCIES = (0.0, LATENCY)
ROUNDS, SECONDS, QUICK_SECONDS = 7, 0.4, 0.01
THREADS_BESIDE = 16
SHOWN_WAITS = {
    (1, 1): "one thread",
    (64, 64): "64 threads on 64 slots",
    (1, 64): "64 threads on one slot",
}
BINS_OF_A_DECADE = 10


def counted(slots: Sequence[Lock], seconds: float) -> float:
    """How far a thread counts in a second beside others that lock these slots."""
    crew = Crew(slots, counts=True)
    crew.run(seconds)
    return crew.count / seconds


def histogram(waits: Waits) -> dict[int, float]:
    """The share of the waits in each bin, by its number: it begins at 10 ** (number / 10) microseconds."""
    bins = Counter(
        math.floor(BINS_OF_A_DECADE * math.log10(max(wait, 1) / 1000)) for wait in waits.sorted
    )
    return {number: count / bins.total() for number, count in sorted(bins.items())}


def measure_table(
    figures: measuring.Figures,
    cluster: Cluster,
    luna: Library,
    all_threads: tuple[int, ...],
    seconds: float,
) -> None:
    print(
        f"{'':10}{'':>6}{'':>8}{'locked':>12}{'wait, microseconds':>36}{'left for':>12}\n"
        f"{'latency':10}{'slots':>6}{'threads':>8}{'per second':>12}"
        f"{'p50':>12}{'p99':>12}{'max':>12}{'counting':>12}"
    )
    table, histograms = [], {}
    # Before and after each line, for how fast the machine is changes.
    before = counted([], seconds)
    for latency, slots, threads in itertools.product(LATENCIES, SLOTS, all_threads):
        taken = [luna.slot(1 + index % slots) for index in range(threads)]
        cluster.latency(latency)
        waits = Crew(taken).run(seconds)
        beside = counted(taken, seconds) / statistics.mean((before, after := counted([], seconds)))
        before = after
        row = (
            latency,
            slots,
            threads,
            waits.per_second,
            waits.at(0.5),
            waits.at(0.99),
            waits.at(1),
        )
        table.append((*row, beside))
        if latency and (slots, threads) in SHOWN_WAITS:
            histograms[SHOWN_WAITS[slots, threads]] = histogram(waits)
        print(
            "{:7.0f} ms{:6}{:8}{:12.0f}{:12.1f}{:12.1f}{:12.1f}".format(latency * 1000, *row[1:])
            + f"{beside:12.0%}",
            flush=True,
        )
    cluster.latency(0)
    figures.data["table"], figures.data["histograms"] = table, histograms


class Sleeper:
    """Sleeps as long as a slot's calls take, and holds the GIL as little as possible."""

    def __enter__(self) -> None:
        time.sleep(LATENCY)

    def __exit__(self, *exc: object) -> None:
        time.sleep(LATENCY)


def rate(locks: Sequence[Lock], seconds: float) -> float:
    return Crew(locks).run(seconds).per_second


def gain(locks: Sequence[Lock], rounds: int, seconds: float) -> float:
    """How many times as often a thread for each of these locks as a thread for the first."""
    rates = measuring.in_turns(
        {count: functools.partial(rate, locks[:count], seconds) for count in (len(locks), 1)},
        rounds,
    )
    return measuring.ratio(rates[len(locks)], rates[1])


def main() -> None:
    options = measuring.parser(__doc__).parse_args()
    figures = measuring.Figures("contention", options)
    rounds, seconds = (1, QUICK_SECONDS) if options.quick else (ROUNDS, SECONDS)
    many = max(SLOTS)
    with measuring.cluster(keyrings=many) as cluster, cluster.library() as luna:
        measure_table(figures, cluster, luna, QUICK_THREADS if options.quick else THREADS, seconds)
        cluster.latency(LATENCY)
        slots = luna.slots()
        counts = measuring.in_turns(
            {
                "beside": functools.partial(counted, slots[:THREADS_BESIDE], seconds),
                "alone": functools.partial(counted, [], seconds),
            },
            rounds,
        )
        figures.add("beside", measuring.ratio(counts["beside"], counts["alone"]))
        figures.add("threads", gain(slots, rounds, 2 * seconds))
        sleepers = [Sleeper() for _ in slots]
        figures.add("sleepers", gain(sleepers, rounds, 2 * seconds))
        everywhere = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(everywhere)})
        figures.add("threads on one CPU", gain(slots, rounds, 2 * seconds))
        os.sched_setaffinity(0, everywhere)
    figures.write()


if __name__ == "__main__":
    main()
