"""What one lock and unlock costs, side by side in one run, on a stand-in without latency.

Prints nanoseconds per round and, with the empty loop subtracted, the ratio of `with slot:` to each
of the others. All but the last are measured on a thread that is not the main one, which makes the
device calls itself; the main thread leaves the lock call to a worker, so that signals are handled
while it lasts. Run it on an otherwise idle machine: python benchmarks/lock_pair.py
"""

from __future__ import annotations

import argparse
import ctypes
import os
import platform
import sys
import threading
import timeit

from luna_ext.stub import STATE_VARIABLE, Cluster, library_path

SLOT = 1


class CtypesLock:
    """What one would write by hand: the two calls through ctypes, in a context manager."""

    def __init__(self, slot_id: int) -> None:
        client = ctypes.CDLL(library_path())
        self._lock = client.CA_LockClusteredSlot
        self._unlock = client.CA_UnlockClusteredSlot
        for function in (self._lock, self._unlock):
            function.argtypes = [ctypes.c_ulong]
            function.restype = ctypes.c_ulong
        self._slot_id = slot_id

    def __enter__(self) -> CtypesLock:
        if rv := self._lock(self._slot_id):
            raise RuntimeError(f"CA_LockClusteredSlot: 0x{rv:X}")
        return self

    def __exit__(self, *exc: object) -> None:
        if rv := self._unlock(self._slot_id):
            raise RuntimeError(f"CA_UnlockClusteredSlot: 0x{rv:X}")


def nanoseconds(statement: str, lock: object, rounds: int, repeats: int) -> float:
    """The best of several repeats: any disturbance only makes a repeat longer."""
    times = timeit.repeat(statement, globals={"lock": lock}, number=rounds, repeat=repeats)
    return min(times) / rounds * 1e9


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200_000)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()

    with Cluster() as cluster, cluster.library() as luna:
        assert os.environ[STATE_VARIABLE] == cluster.path
        cluster.switch("log", "off")  # an HSM keeps its log elsewhere
        cases = {
            "empty loop": ("pass", None),
            "with threading.Lock()": ("with lock: pass", threading.Lock()),
            "with slot:": ("with lock: pass", luna.slot(SLOT)),
            "ctypes by hand": ("with lock: pass", CtypesLock(SLOT)),
        }
        best: dict[str, float] = {}

        def measure() -> None:
            # In turns, so that a slow moment of the machine does not fall on one of them alone.
            for _ in range(3):
                for name, (statement, lock) in cases.items():
                    time = nanoseconds(statement, lock, options.rounds, options.repeats // 3)
                    best[name] = min(time, best.get(name, time))

        thread = threading.Thread(target=measure)
        thread.start()
        thread.join()
        on_main = nanoseconds("with lock: pass", luna.slot(SLOT), options.rounds // 50, 3)

    empty = best["empty loop"]
    slot = best["with slot:"] - empty
    print(f"CPython {platform.python_version()} on {platform.machine()}, {options.rounds} rounds")
    print(f"{'':24}{'ns/round':>10}{'net':>10}{'slot is':>12}")
    for name, time in best.items():
        net = time - empty
        times = f"{slot / net:.2f} times" if net > 0 else ""
        print(f"{name:24}{time:10.1f}{net:10.1f}{times:>12}")
    print(f"{'with slot:, main thread':24}{on_main:10.1f}{on_main - empty:10.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
