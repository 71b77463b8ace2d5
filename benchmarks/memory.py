"""How many bytes the process keeps of a slot that was locked once.

So many slots are locked and unlocked, one after the other, on a client library that has a slot for every
ID; what the process has grown by is divided by their number: the ClusterSlot, its lock, and its place in
the tables. Each round has a process of its own, whose memory nothing was freed in yet.

python benchmarks/memory.py
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import subprocess
import sys
from pathlib import Path

import measuring

import luna_ext

SLOTS, QUICK_SLOTS = 100_000, 1_000
ROUNDS = 7


def resident() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def lock_each(luna: luna_ext.Library, slots: range) -> None:
    for slot_id in slots:
        with luna.slot(slot_id):
            pass


def bytes_of_a_slot(slots: int) -> float:
    with measuring.idle_device() as luna:
        lock_each(luna, range(1_000))  # what the first locks need beyond their slots
        before = resident()
        lock_each(luna, range(1_000, 1_000 + slots))
        return (resident() - before) / slots


def in_new_process(slots: int) -> float:
    command = [sys.executable, __file__, "--work", str(slots)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return float(done.stdout)


def main() -> None:
    parser = measuring.parser(__doc__)
    parser.add_argument("--work", type=int, metavar="SLOTS", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        print(measuring.on_a_thread(bytes_of_a_slot, options.work))
        return
    figures = measuring.Figures("memory", options)
    measuring.build_idle_client()
    slots, rounds = (QUICK_SLOTS, 1) if options.quick else (SLOTS, ROUNDS)
    figures.add("bytes", statistics.median(in_new_process(slots) for _ in range(rounds)))
    figures.write()


if __name__ == "__main__":
    main()
