"""What the stand-in's calls cost, on a small and on the largest cluster, logged and not.

They are called by ctypes, whose own share is shown by C_GetFunctionList. The stand-in is to take
so little of a test's time that the binding is what is measured: C_GetSlotList and CA_GetSlotId on
3500 keyrings under a millisecond. Run it on an otherwise idle machine:
python benchmarks/large_cluster.py
"""

from __future__ import annotations

import ctypes
import timeit
from collections.abc import Callable

import measuring

from luna_ext.stub import Cluster, library_path

SIZES = (8, 3500)
REPEATS = 7
SECONDS = 0.05
"""About how long one repeat takes."""


def calls(module: ctypes.CDLL, keyrings: int) -> dict[str, Callable[[], object]]:
    """Each with an answer of CKR_OK, and as much work to do as there can be."""
    slots = (ctypes.c_ulong * keyrings)()
    count = ctypes.byref(ctypes.c_ulong(keyrings))
    label = f"keyring{keyrings}".encode().ljust(32)
    place = ctypes.byref(ctypes.c_void_p())
    slot = ctypes.c_ulong(keyrings)

    def lock_and_unlock() -> None:
        module.CA_LockClusteredSlot(slot)
        module.CA_UnlockClusteredSlot(slot)

    def slot_list() -> int:
        ctypes.cast(count, ctypes.POINTER(ctypes.c_ulong))[0] = keyrings
        return int(module.C_GetSlotList(0, slots, count))

    def slot_id() -> int:
        ctypes.cast(count, ctypes.POINTER(ctypes.c_ulong))[0] = keyrings
        return int(module.CA_GetSlotId(label, slots, count))

    return {
        "C_GetFunctionList": lambda: module.C_GetFunctionList(place),
        "C_GetSlotList": slot_list,
        "CA_GetSlotId": slot_id,
        "lock and unlock": lock_and_unlock,
    }


def microseconds(call: Callable[[], object], repeats: int) -> float:
    """The best of several repeats: any disturbance only makes a repeat longer."""
    timer = timeit.Timer(call)
    rounds = max(1, int(100 * SECONDS / (timer.timeit(100) + 1e-9)))
    return min(timer.repeat(repeats, rounds)) / rounds * 1e6


def main() -> None:
    options = measuring.parser(__doc__).parse_args()
    figures = measuring.Figures("large_cluster", options)
    table = []
    print(f"{'microseconds per call':24}{'keyrings':>10}{'not logged':>12}{'logged':>10}")
    for keyrings in SIZES:
        with Cluster(keyrings=keyrings) as cluster, cluster.library():
            for name, call in calls(ctypes.CDLL(library_path()), keyrings).items():
                if rv := call():
                    raise RuntimeError(f"{name}: 0x{rv:X}")
                times = []
                for value in ("off", "on"):
                    cluster.switch("log", value)
                    times.append(microseconds(call, 1 if options.quick else REPEATS))
                table.append((name, keyrings, *times))
                print(f"{name:24}{keyrings:10}{times[0]:12.2f}{times[1]:10.2f}")
    figures.data["table"] = table
    figures.write()


if __name__ == "__main__":
    main()
