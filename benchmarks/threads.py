"""How many locks and unlocks more threads make than one, each on a slot of its own, on a stand-in without
latency. Without the GIL that should grow with the processors; with the GIL it cannot.

PYTHON_GIL=0 python3.13t benchmarks/threads.py
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time

import luna_ext
from luna_ext.stub import Cluster

# So many between two looks at the clock, which threads would share.
ROUND = 2000


def pairs_per_second(slots: list[luna_ext.ClusterSlot], seconds: float) -> float:
    counts = [0] * len(slots)
    start = threading.Barrier(len(slots) + 1)

    def work(index: int) -> None:
        slot = slots[index]
        pairs = 0
        start.wait()
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            for _ in range(ROUND):
                with slot:
                    pass
            pairs += ROUND
        counts[index] = pairs

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(slots))]
    for thread in threads:
        thread.start()
    start.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - began)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=1.5, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args()

    with_gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    print(f"{'with' if with_gil else 'without'} the GIL, {os.cpu_count()} processors")
    with Cluster(keyrings=options.threads) as cluster, cluster.library() as luna:
        cluster.switch("log", "off")  # an HSM keeps its log elsewhere
        slots = luna.slots()
        for _ in range(options.rounds):
            one = pairs_per_second(slots[:1], options.seconds)
            all_together = pairs_per_second(slots, options.seconds)
            print(
                f"1 thread: {one:10,.0f} pairs/s   {options.threads} threads: "
                f"{all_together:10,.0f} pairs/s   {all_together / one:.2f} x"
            )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
