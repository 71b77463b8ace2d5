"""How long it takes to read, and to provision, all keyrings of the largest cluster.

On a stand-in whose calls take 1 ms. `allowed` is what the device lets be done: calls x length of a
call / workers. The length is the one that was asked for, and in the last column the one that the
calls had: a sleep lasts longer than was asked for, and looking through 3500 labels takes time.

Run it on an otherwise idle machine: python benchmarks/fleet.py
"""

from __future__ import annotations

import argparse
import ctypes
import platform
import sys
import time
from collections.abc import Callable

import luna_ext
from luna_ext.stub import Cluster

KEYRINGS = 3500
LATENCY = 0.001
PR_SET_TIMERSLACK = 29
SO_PIN, USER_PIN = "so-pin-of-a-benchmark", "user-pin-of-a-benchmark"


def measure(luna: luna_ext.Library, what: str, workers: int, work: Callable[[], object]) -> None:
    before = luna.stats()
    begin = time.perf_counter()
    work()
    took = time.perf_counter() - begin
    calls, length = 0, 0.0
    for function, stats in luna.stats().items():
        earlier = before.get(function, luna_ext.FunctionStats())
        calls += stats.calls - earlier.calls
        length += stats.total_seconds - earlier.total_seconds
    print(
        f"{what:34}{workers:8}{calls:8}{took:9.3f} s{calls * LATENCY / workers / took:11.0%}"
        f"{length / workers / took:20.0%}",
        flush=True,
    )


def provision(luna: luna_ext.Library, cluster_id: str, user_pin: str | None, workers: int) -> None:
    labels = [f"payments-{number}" for number in range(KEYRINGS)]
    report = luna_ext.provision(
        luna, cluster_id, labels, so_pin=SO_PIN, user_pin=user_pin, workers=workers
    )
    if len(report.assigned) + len(report.skipped) != KEYRINGS:
        raise RuntimeError(f"not all were assigned: {report.failed}")


def main() -> int:
    argparse.ArgumentParser(description=__doc__).parse_args()
    # Else Linux lets each sleep last 50 microseconds longer, a twentieth of a call.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)
    print(f"CPython {platform.python_version()} on {platform.machine()}, {KEYRINGS} keyrings")
    print(
        f"{'':34}{'workers':>8}{'calls':>8}{'took':>11}{'of allowed':>11}{'by calls as long':>20}"
    )
    for user_pin, what in ((None, "provision()"), (USER_PIN, "provision() with user PINs")):
        with Cluster(keyrings=KEYRINGS) as cluster, cluster.library() as luna:
            cluster.switch("log", "off")  # an HSM keeps its log elsewhere
            cluster.latency(LATENCY)
            for workers in (1, 16):
                measure(luna, "Library.tokens()", workers, lambda n=workers: luna.tokens(workers=n))
            for turn in (what, what + ", again"):
                work = lambda pin=user_pin: provision(luna, cluster.cluster_id, pin, 8)  # noqa: E731
                measure(luna, turn, 8, work)
    return 0


if __name__ == "__main__":
    sys.exit(main())
