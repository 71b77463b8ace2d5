"""What one lock and unlock costs where the device takes no time: beside threading.Lock, a Cython class of
ten lines, ctypes and cffi; and with a timeout.

The client library's lock and unlock do nothing (tests/c/idle_client.c): what is measured is the caller. A
thread that is not the main one makes these calls itself; the main thread leaves the lock call to a worker,
so that signals are handled while it lasts. Each is measured in several processes, by pyperf: what a pair
costs also depends on where things lie in memory, which differs from process to process.

Run it on an otherwise idle machine: python benchmarks/lock_pair.py
"""

from __future__ import annotations

import argparse
import functools
import itertools
import statistics
import threading
import timeit
from collections.abc import Callable
from typing import Any

import measuring
import pyperf

import luna_ext

SLOT = 1
ROUNDS = 7


class ByHand:
    """What one would write: the two calls, in a context manager."""

    def __init__(self, lock: Callable[[int], int], unlock: Callable[[int], int]) -> None:
        self._lock = lock
        self._unlock = unlock

    def __enter__(self) -> ByHand:
        if rv := self._lock(SLOT):
            raise RuntimeError(f"{measuring.LOCK}: 0x{rv:X}")
        return self

    def __exit__(self, *exc: object) -> None:
        if rv := self._unlock(SLOT):
            raise RuntimeError(f"{measuring.UNLOCK}: 0x{rv:X}")


def ctypes_lock() -> ByHand:
    import ctypes

    client = ctypes.CDLL(str(measuring.build_idle_client()))
    functions = client.CA_LockClusteredSlot, client.CA_UnlockClusteredSlot
    for function in functions:
        function.argtypes = [ctypes.c_ulong]
        function.restype = ctypes.c_ulong
    return ByHand(*functions)


def cffi_lock() -> ByHand:
    import cffi

    declarations = cffi.FFI()
    for name in (measuring.LOCK, measuring.UNLOCK):
        declarations.cdef(f"unsigned long {name}(unsigned long);")
    client = declarations.dlopen(str(measuring.build_idle_client()))
    return ByHand(client.CA_LockClusteredSlot, client.CA_UnlockClusteredSlot)


WITH = "with lock: pass"
# The statement, and what makes its lock.
CASES: dict[str, tuple[str, Callable[[luna_ext.Library], Any]]] = {
    "empty loop": ("pass", lambda luna: None),
    "Lock": (WITH, lambda luna: threading.Lock()),
    "slot": (WITH, lambda luna: luna.slot(SLOT)),
    "ten lines": (WITH, lambda luna: measuring.build_ten_lines().TenLines(SLOT)),
    "ctypes": (WITH, lambda luna: ctypes_lock()),
    "cffi": (WITH, lambda luna: cffi_lock()),
    "timed": ("with lock(timeout=5): pass", lambda luna: luna.slot(SLOT).lock),
}
OTHERS = ("Lock", "ten lines", "ctypes", "cffi")
ON_MAIN = ("empty loop", "Lock", "slot")
A_WORKER_CALLS = {("timed", False), ("slot", True)}


def seconds(loops: int, case: str, on_main: bool) -> float:
    statement, make_lock = CASES[case]
    with measuring.idle_device() as luna:
        time = timeit.Timer(statement, globals={"lock": make_lock(luna)}).timeit
        return time(loops) if on_main else measuring.on_a_thread(time, loops)


def main() -> None:
    runner = pyperf.Runner(
        processes=1,
        warmups=1,
        values=3,
        add_cmdline_args=lambda command, options: command.extend(["--quick"] * options.quick),
    )
    runner.argparser.description = __doc__
    runner.argparser.formatter_class = argparse.RawDescriptionHelpFormatter
    measuring.add_options(runner.argparser)
    options = runner.parse_args()
    options.quiet = True
    if options.quick:
        options.values, options.warmups = 1, 0
    # pyperf runs this script once more in each of its processes, which measures one case.
    figures = None if options.worker else measuring.Figures("lock_pair", options)
    number = itertools.count(1)

    def in_new_process(case: str, on_main: bool) -> float:
        """Seconds of a turn of the loop."""
        options.loops = 2_000 if (case, on_main) in A_WORKER_CALLS else 100_000
        if options.quick:
            options.loops //= 100
        # pyperf wants no name twice.
        name = f"{next(number)}: {case} on {'the main' if on_main else 'another'} thread"
        result = runner.bench_time_func(name, seconds, case, on_main)
        return 0 if options.worker else statistics.median(result.get_values())

    cases = [*((case, False) for case in CASES), *((case, True) for case in ON_MAIN)]
    measures = {case: functools.partial(in_new_process, *case) for case in cases}
    times = measuring.in_turns(measures, 1 if options.quick else ROUNDS)
    if figures is None:
        return

    def net(case: str, on_main: bool = False) -> list[float]:
        pairs = zip(times[case, on_main], times["empty loop", on_main], strict=True)
        return [time - empty for time, empty in pairs]

    figures.add("pair", statistics.median(net("slot")))
    for other in OTHERS:
        figures.add(f"pair/{other}", measuring.ratio(net("slot"), net(other)))
    figures.add("main pair/Lock", measuring.ratio(net("slot", True), net("Lock", True)))
    figures.add("timed lock", statistics.median(net("timed")))
    figures.write()


if __name__ == "__main__":
    main()
