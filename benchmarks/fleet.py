"""How long it takes to read, and to provision, all keyrings of the largest cluster.

On a stand-in whose calls take 1 ms. `allowed` is what the device lets be done: calls x length of a
call / workers. The length is the one that was asked for, and in the last column the one that the
calls had: a sleep lasts longer than was asked for, and looking through 3500 labels takes time.

Run it on an otherwise idle machine: python benchmarks/fleet.py
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable

import measuring

import luna_ext

KEYRINGS, QUICK_KEYRINGS = 3500, 50
LATENCY = 0.001
ROUNDS = 7
WORKERS = 32
SO_PIN, USER_PIN = "so-pin-of-a-benchmark", "user-pin-of-a-benchmark"


def measure(
    luna: luna_ext.Library, what: str, workers: int, work: Callable[[], object]
) -> tuple[float, float]:
    """The seconds that it took, and the part of them that the device's calls need."""
    before = luna.stats()
    begin = time.perf_counter()
    work()
    took = time.perf_counter() - begin
    calls, length = 0, 0.0
    for function, stats in luna.stats().items():
        earlier = before.get(function, luna_ext.FunctionStats())
        calls += stats.calls - earlier.calls
        length += stats.total_seconds - earlier.total_seconds
    allowed = calls * LATENCY / workers / took
    print(
        f"{what:34}{workers:8}{calls:8}{took:9.3f} s{allowed:11.0%}{length / workers / took:20.0%}",
        flush=True,
    )
    return took, allowed


def read(luna: luna_ext.Library, workers: int) -> float:
    def work() -> None:
        luna.tokens(workers=workers)

    return measure(luna, "Library.tokens()", workers, work)[0]


def provision(keyrings: int, user_pin: str | None = None, again: bool = False) -> float:
    """What a run is of what the device allows; then a second one, that finds all done."""
    what = "provision()" if user_pin is None else "provision() with user PINs"
    labels = [f"payments-{number}" for number in range(keyrings)]
    with (
        measuring.cluster(keyrings=keyrings, latency=LATENCY) as cluster,
        cluster.library() as luna,
    ):

        def work() -> None:
            report = luna_ext.provision(
                luna, cluster.cluster_id, labels, so_pin=SO_PIN, user_pin=user_pin, workers=WORKERS
            )
            if len(report.assigned) + len(report.skipped) != keyrings:
                raise RuntimeError(f"not all were assigned: {report.failed}")

        _, allowed = measure(luna, what, WORKERS, work)
        if again:
            measure(luna, what + ", again", WORKERS, work)
        return allowed


def main() -> None:
    options = measuring.parser(__doc__).parse_args()
    figures = measuring.Figures("fleet", options)
    keyrings, rounds = (QUICK_KEYRINGS, 1) if options.quick else (KEYRINGS, ROUNDS)
    print(
        f"{'':34}{'workers':>8}{'calls':>8}{'took':>11}{'of allowed':>11}{'by calls as long':>20}"
    )
    with measuring.stand_in(keyrings=keyrings, latency=LATENCY) as luna:
        times = measuring.in_turns(
            {workers: functools.partial(read, luna, workers) for workers in (1, WORKERS)},
            rounds,
        )
    provisioned = statistics.median(provision(keyrings) for _ in range(rounds))
    provision(keyrings, again=True)
    provision(keyrings, USER_PIN)
    figures.add("tokens", measuring.ratio(times[1], times[WORKERS]))
    figures.add("provision", provisioned)
    figures.write()


if __name__ == "__main__":
    main()
