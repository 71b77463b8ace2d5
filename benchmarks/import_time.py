"""What `import luna_ext` takes beyond the modules that a program with threads and logs has anyway:
`import threading, logging`. Medians of 10 interpreters, by `python -X importtime`.

Run it on an otherwise idle machine: python benchmarks/import_time.py
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys

import measuring

RUNS = 10
SHOWN = 8
ANYWAY = ("threading", "logging")
# What pip has installed has its bytecode; so have these sources after the first import.
ENVIRONMENT = {name: os.environ[name] for name in os.environ if name != "PYTHONDONTWRITEBYTECODE"}
LINE = re.compile(r"import time: +(\d+) \| +(\d+) \|( +)(\S+)")


def imported() -> dict[str, tuple[int, int]]:
    """Each module that one interpreter imports: microseconds alone, and with what it imports."""
    program = f"import {', '.join(ANYWAY)}, luna_ext"
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", program],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=True,
    )
    return {found[4]: (int(found[1]), int(found[2])) for found in LINE.finditer(done.stderr)}


def main() -> None:
    options = measuring.parser(__doc__).parse_args()
    figures = measuring.Figures("import_time", options)
    imported()  # the first one reads the files from the disk
    runs = [imported() for _ in range(1 if options.quick else RUNS)]

    def seconds(module: str, which: int) -> float:
        return statistics.median(run[module][which] for run in runs) / 1e6

    # In the order in which they end: what comes behind logging is luna_ext's.
    names = list(runs[0])
    own = names[names.index(ANYWAY[-1]) + 1 :]
    anyway = sum(seconds(module, 1) for module in ANYWAY)
    print(f"import {', '.join(ANYWAY)}: {anyway * 1000:.1f} ms")
    figures.add("import", seconds("luna_ext", 1))
    print("of which")
    for module in sorted(own, key=lambda module: -seconds(module, 0))[:SHOWN]:
        print(f"{seconds(module, 0) * 1000:6.1f}  {module}")
    figures.write()


if __name__ == "__main__":
    main()
