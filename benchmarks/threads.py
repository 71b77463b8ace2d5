"""How many locks and unlocks more threads make than one, each on a slot of its own, where the device takes
no time: without the GIL that should grow with the processors. And a pair of one thread, against that of an
interpreter with the GIL.

The first is measured by an interpreter without the GIL, the second by this one as well. By default that is
the one of `make freethreaded`, if there is one: python benchmarks/threads.py --freethreaded python3.13t
"""

from __future__ import annotations

import argparse
import functools
import shutil
import subprocess
import sys
import time
import timeit

import measuring

import luna_ext

FREETHREADED = measuring.HERE.parent / "build" / "freethreaded" / "venv" / "bin" / "python"
THREADS = 8
ROUNDS, SECONDS, QUICK_SECONDS = 7, 0.7, 0.02
# So many between two looks at the clock, which threads would share.
PAIRS = 2000


def pairs_per_second(slots: list[luna_ext.ClusterSlot], seconds: float) -> float:
    def work(slot: luna_ext.ClusterSlot) -> int:
        pairs = 0
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            for _ in range(PAIRS):
                with slot:
                    pass
            pairs += PAIRS
        return pairs

    return measuring.rate_on_threads(work, slots)


def work(threads: int, seconds: float) -> float:
    """Pairs a second of all threads, without what the loop takes of each."""
    empty = timeit.timeit("pass", number=100 * PAIRS) / (100 * PAIRS)
    with measuring.idle_device() as luna:
        rate = pairs_per_second([luna.slot(1 + index) for index in range(threads)], seconds)
        return threads / (threads / rate - empty)


def in_new_process(python: str, threads: int, seconds: float) -> float:
    command = [python, __file__, "--work", str(threads), str(seconds)]
    return float(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def without_gil(python: str) -> bool:
    program = "import sys, luna_ext; print(getattr(sys, '_is_gil_enabled', lambda: True)())"
    done = subprocess.run([python, "-c", program], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout == "False\n"


def main() -> None:
    parser = measuring.parser(__doc__)
    parser.add_argument("--freethreaded", metavar="PYTHON", default=str(FREETHREADED))
    parser.add_argument("--work", nargs=2, metavar=("THREADS", "SECONDS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        print(work(int(options.work[0]), float(options.work[1])))
        return
    figures = measuring.Figures("threads", options)
    python = shutil.which(options.freethreaded)
    rounds, seconds = (1, QUICK_SECONDS) if options.quick else (ROUNDS, SECONDS)
    measuring.build_idle_client()
    if python is None:
        figures.skip("there is no interpreter without the GIL; `make freethreaded` makes one")
    elif not without_gil(python):
        figures.skip(f"{options.freethreaded} runs with the GIL")
    else:
        rates = measuring.in_turns(
            {
                "one": functools.partial(in_new_process, python, 1, seconds),
                "all": functools.partial(in_new_process, python, THREADS, seconds),
                "with the GIL": functools.partial(in_new_process, sys.executable, 1, seconds),
            },
            rounds,
        )
        figures.add("without the GIL", measuring.ratio(rates["all"], rates["one"]))
        figures.add("without the GIL/with", measuring.ratio(rates["with the GIL"], rates["one"]))
    figures.write()


if __name__ == "__main__":
    main()
