"""What Library.stats() and Library.lock_stats() count, for Prometheus. Needs the extra `prometheus`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

try:
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
        Metric,
    )
    from prometheus_client.registry import Collector
except ModuleNotFoundError:
    raise ImportError(
        "luna_ext.metrics needs the package prometheus-client: pip install prometheus-client"
    ) from None

from ._cluster import Library

__all__ = ["PrometheusCollector"]

SHORTEST_CALL = 10
"""A histogram's first bucket: 2**10 ns, about a microsecond, and all shorter calls."""
SHORTEST_WAIT = 15
"""2**15 ns: from 16 to 32 microseconds. Shorter waits are not counted."""
SHORTEST_HOLD = 24
"""2**24 ns, some 17 milliseconds: a tick of the clock by which holds are told, and all shorter ones."""
LONGEST = 36
"""The last one: 2**36 ns, about 69 seconds. What is longer is in the bucket +Inf alone."""


def _buckets(histogram: Sequence[int], shortest: int) -> list[tuple[str, float]]:
    """Of a histogram by powers of two nanoseconds, as prometheus_client has it."""
    so_far = [float(count) for count in itertools.accumulate(histogram)]
    limits = [(repr(2**n / 1e9), so_far[n]) for n in range(shortest, LONGEST + 1)]
    return [*limits, ("+Inf", so_far[-1])]


class PrometheusCollector(Collector):
    """The device calls and the locks of this process, for prometheus_client.

    ::

        from luna_ext.metrics import PrometheusCollector
        from prometheus_client import REGISTRY

        REGISTRY.register(PrometheusCollector(luna))

    Parameters
    ----------
    library : Library
        Its `stats()` and `lock_stats()` are read; it may be closed. All Libraries of a process on one
        client library have the same counters, so one of them is enough.

    Notes
    -----
    The counters are read when Prometheus asks, which delays no device call. The metrics of the calls, each
    with the C function as the label ``function``:

    luna_ext_call_duration_seconds
        A histogram in seconds, its limits powers of two nanoseconds; its _count is the number of calls.
        Calls of less than 16 microseconds are sampled: see FunctionStats.
    luna_ext_call_errors_total
        Calls that answered an error, with its name as the label ``code``.
    luna_ext_call_duration_seconds_max
        Seconds of the longest call so far that was timed.

    Those of the locks of all slots, without a label:

    luna_ext_lock_wait_seconds
        A histogram of how long threads and tasks have waited for locks that they got. A lock that is had in
        less than 16 microseconds is no wait.
    luna_ext_lock_hold_seconds
        A histogram of how long this process had a lock, from the device's grant to the unlock call; to a
        tick of the system's clock, of 10 milliseconds at most.
    luna_ext_lock_timeouts_total
        Waits whose time was up.
    luna_ext_locks_lost_total
        Holds whose lock the device has dropped, as far as that was found out.
    luna_ext_handed_over_total
        Locks that a holder of this process has handed over to the next, without a call.
    luna_ext_lock_waiters
        Threads and tasks that wait for a lock now.
    luna_ext_locks_held
        Slots that this process has locked now.

    LockStats says more of them. Each forked worker has counters of its own, and prometheus_client's
    multiprocess mode does not add up what collectors give. Let Prometheus scrape each worker.
    """

    def __init__(self, library: Library) -> None:
        self._library = library

    def collect(self) -> Iterator[Metric]:
        """The metrics; prometheus_client's registry calls this."""
        yield from self._of_calls()
        yield from self._of_locks()

    def _of_calls(self) -> Iterator[Metric]:
        durations = HistogramMetricFamily(
            "luna_ext_call_duration_seconds", "Length of calls to the device", labels=["function"]
        )
        errors = CounterMetricFamily(
            "luna_ext_call_errors",
            "Calls to the device that answered an error",
            labels=["function", "code"],
        )
        longest = GaugeMetricFamily(
            "luna_ext_call_duration_seconds_max",
            "Length of the longest call to the device",
            labels=["function"],
        )
        for function, stats in self._library.stats().items():
            if not stats.calls:
                # It was not called: all its locks were handed over.
                continue
            buckets = _buckets(stats.histogram, SHORTEST_CALL)
            durations.add_metric([function], buckets, stats.total_seconds)
            longest.add_metric([function], stats.max_seconds)
            for code, count in stats.errors.items():
                errors.add_metric([function, code], count)
        yield durations
        yield errors
        yield longest

    def _of_locks(self) -> Iterator[Metric]:
        stats = self._library.lock_stats()
        yield HistogramMetricFamily(
            "luna_ext_lock_wait_seconds",
            "How long threads and tasks waited for locks",
            buckets=_buckets(stats.wait_histogram, SHORTEST_WAIT),
            sum_value=stats.wait_seconds,
        )
        yield HistogramMetricFamily(
            "luna_ext_lock_hold_seconds",
            "How long this process had locks",
            buckets=_buckets(stats.hold_histogram, SHORTEST_HOLD),
            sum_value=stats.hold_seconds,
        )
        yield CounterMetricFamily(
            "luna_ext_lock_timeouts", "Waits for locks whose time was up", value=stats.timeouts
        )
        yield CounterMetricFamily(
            "luna_ext_locks_lost", "Locks that the device has dropped", value=stats.losses
        )
        yield CounterMetricFamily(
            "luna_ext_handed_over",
            "Locks that were handed over within the process, without a call",
            value=stats.handed_over,
        )
        yield GaugeMetricFamily(
            "luna_ext_lock_waiters", "Threads and tasks that wait for a lock", value=stats.waiting
        )
        yield GaugeMetricFamily(
            "luna_ext_locks_held", "Slots that this process has locked", value=stats.held
        )
