"""Measures how often threads lock slots, and how long they wait for them: for `luna-ext bench` and for
benchmarks/."""

from __future__ import annotations

import array
import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, TypeAlias

MICROSECONDS = 1000

Lock: TypeAlias = AbstractContextManager[object]


class Waits(NamedTuple):
    per_second: float
    sorted: Sequence[int]
    """Nanoseconds, each from the `with` to its first statement."""

    def at(self, share: float) -> float:
        """Microseconds that this fraction of the waits (0 to 1) does not exceed."""
        return self.sorted[round(share * (len(self.sorted) - 1))] / MICROSECONDS


class Crew:
    """Threads that lock slots, or count, from the same moment on until they are stopped."""

    def __init__(self, slots: Sequence[Lock], counts: bool = False) -> None:
        self.count = 0
        self._waits = [array.array("Q") for _ in slots]
        self._stopped = False
        self._error: Exception | None = None
        self._start = threading.Barrier(len(slots) + counts + 1)
        self._threads = [
            threading.Thread(target=self._lock, args=pair, daemon=True)
            for pair in zip(slots, self._waits, strict=True)
        ]
        if counts:
            self._threads.append(threading.Thread(target=self._count, daemon=True))

    def run(self, seconds: float) -> Waits:
        for thread in self._threads:
            thread.start()
        self._start.wait()
        begin = time.perf_counter()
        try:
            time.sleep(seconds)
        finally:
            self._stopped = True
        lasted = time.perf_counter() - begin
        done = sum(map(len, self._waits))
        for thread in self._threads:
            thread.join()
        if self._error is not None:
            raise self._error
        return Waits(done / lasted, sorted(wait for waits in self._waits for wait in waits))

    def _lock(self, lock: Lock, waits: array.array[int]) -> None:
        now = time.perf_counter_ns
        self._start.wait()
        try:
            # Once at least: on a busy machine the time may be over before a thread comes to it.
            stopped = False
            while not stopped:
                begin = now()
                with lock:
                    waits.append(now() - begin)
                stopped = self._stopped
        except Exception as error:
            self._error = error

    def _count(self) -> None:
        self._start.wait()
        count = 0
        while not self._stopped:
            count += 1
        self.count = count
