"""How many pairs of `with slot:` the main thread makes at 1 ms each, against another thread.

On the main thread a worker makes the lock call, so that signals are handled while it lasts.
Run it on an otherwise idle machine: python benchmarks/main_thread.py
"""

from __future__ import annotations

import time

import measuring

import luna_ext

PAIR_SECONDS = 0.001
ROUNDS, SECONDS = 7, 0.5


def pairs_per_second(slot: luna_ext.ClusterSlot, seconds: float) -> float:
    pairs = 0
    began = now = time.perf_counter()
    while now < began + seconds:
        with slot:
            pairs += 1
        now = time.perf_counter()
    return pairs / (now - began)


def main() -> None:
    options = measuring.parser(__doc__).parse_args()
    figures = measuring.Figures("main_thread", options)
    rounds, seconds = (1, 0.05) if options.quick else (ROUNDS, SECONDS)
    with measuring.stand_in(keyrings=1, pair=PAIR_SECONDS) as luna:
        slot = luna.slot(1)
        rates = measuring.in_turns(
            {
                "main": lambda: pairs_per_second(slot, seconds),
                "another": lambda: measuring.on_a_thread(pairs_per_second, slot, seconds),
            },
            rounds,
        )
    figures.add("main thread", measuring.ratio(rates["main"], rates["another"]))
    figures.write()


if __name__ == "__main__":
    main()
