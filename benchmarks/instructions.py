"""How many instructions of the processor one lock and unlock takes, as callgrind counts them.

`__enter__` and `__exit__` of a slot with all that they call, on a thread that is not the main one, on the
client library whose lock and unlock do nothing: what a loop of `with` has more with a slot than with an
object whose methods are empty. Of two loops, one twice as long, the difference is taken, so that what comes
before and behind does not count. The count is the same on a busy machine.

It needs valgrind: python benchmarks/instructions.py
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys

import measuring

SLOT = 1
ROUNDS = 20_000
COLLECTED = re.compile(r"Collected : (\d+)")


def work(case: str, rounds: int) -> None:
    with measuring.idle_device() as luna:
        lock = luna.slot(SLOT) if case == "slot" else measuring.build_ten_lines().Empty()

        def repeat() -> None:
            for _ in range(rounds):
                with lock:
                    pass

        measuring.on_a_thread(repeat)


def count(case: str, rounds: int) -> int:
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"]
    command += [sys.executable, __file__, "--work", case, str(rounds)]
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONHASHSEED": "0"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    found = COLLECTED.search(done.stderr)
    if done.returncode or found is None:
        raise RuntimeError(done.stderr)
    return int(found[1])


def of_a_round(case: str, rounds: int) -> float:
    return (count(case, 2 * rounds) - count(case, rounds)) / rounds


def main() -> None:
    parser = measuring.parser(__doc__)
    parser.add_argument("--work", nargs=2, metavar=("CASE", "ROUNDS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work[0], int(options.work[1]))
        return
    figures = measuring.Figures("instructions", options)
    measuring.build_ten_lines()  # not under valgrind
    if shutil.which("valgrind") is None:
        figures.skip("valgrind is not installed")
    elif options.quick:
        work("slot", 100)
        work("empty", 100)
        figures.skip("valgrind takes longer than a moment")
    else:
        figures.add("instructions", of_a_round("slot", ROUNDS) - of_a_round("empty", ROUNDS))
    figures.write()


if __name__ == "__main__":
    main()
