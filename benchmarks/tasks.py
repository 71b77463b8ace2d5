"""How often asyncio tasks lock, against threads: 10,000 tasks over 100 slots, and 100 threads with a slot
each, on a stand-in where a lock and an unlock take 1 ms together.

Each task locks once by `async with slot.lock():`, and the threads make as many pairs by `with slot:`.
Besides: the processor time of a task's `async with`, with all that the process does for it; the most
threads that the process had; and both rates where there are fewer slots, with 100 tasks or one thread for
each.

Run it on an otherwise idle machine: python benchmarks/tasks.py
"""

from __future__ import annotations

import asyncio
import functools
import os
import statistics
import time
from collections.abc import Sequence

import measuring

import luna_ext

Slots = Sequence[luna_ext.ClusterSlot]

PAIR_SECONDS = 0.001
SLOTS = (1, 4, 16, 64, 100)
TASKS_OF_A_SLOT = 100
ROUNDS, ROUNDS_OF_A_POINT = 7, 3


def rate_of_threads(slots: Slots, pairs: int) -> float:
    """Pairs a second, of a thread for each slot that makes so many."""

    def work(slot: luna_ext.ClusterSlot) -> int:
        for _ in range(pairs):
            with slot:
                pass
        return pairs

    return measuring.rate_on_threads(work, slots)


class Tasks:
    def __init__(self) -> None:
        self.processor_seconds: list[float] = []
        """Of an `async with`, in each run."""
        self.most_threads = 0

    def rate(self, slots: Slots, tasks_of_a_slot: int) -> float:
        return asyncio.run(self._run([*slots] * tasks_of_a_slot))

    async def _run(self, slots: Slots) -> float:
        watch = asyncio.create_task(self._watch_threads())
        used = time.process_time()
        began = time.perf_counter()
        await asyncio.gather(*map(self._work, slots))
        took = time.perf_counter() - began
        self.processor_seconds.append((time.process_time() - used) / len(slots))
        watch.cancel()
        return len(slots) / took

    async def _work(self, slot: luna_ext.ClusterSlot) -> None:
        async with slot.lock():
            pass

    async def _watch_threads(self) -> None:
        while True:
            self.most_threads = max(self.most_threads, len(os.listdir("/proc/self/task")))
            await asyncio.sleep(0.02)


def main() -> None:
    options = measuring.parser(__doc__).parse_args()
    figures = measuring.Figures("tasks", options)
    of_a_slot = 2 if options.quick else TASKS_OF_A_SLOT
    curves: dict[str, list[tuple[int, float]]] = {"tasks": [], "threads": []}
    with measuring.stand_in(keyrings=max(SLOTS), pair=PAIR_SECONDS) as luna:
        for count in SLOTS:
            slots = luna.slots()[:count]
            rounds = ROUNDS if count == max(SLOTS) else ROUNDS_OF_A_POINT
            # With all slots last.
            tasks = Tasks()
            rates = measuring.in_turns(
                {
                    "tasks": functools.partial(tasks.rate, slots, of_a_slot),
                    "threads": functools.partial(rate_of_threads, slots, of_a_slot),
                },
                1 if options.quick else rounds,
            )
            for name, curve in curves.items():
                curve.append((count, statistics.median(rates[name])))
    figures.add("tasks/threads", measuring.ratio(rates["tasks"], rates["threads"]))
    figures.add("rate of tasks", statistics.median(rates["tasks"]))
    figures.add("threads of tasks", tasks.most_threads)
    figures.add("processor time of a task", statistics.median(tasks.processor_seconds))
    figures.data["rates"] = curves
    figures.write()


if __name__ == "__main__":
    main()
