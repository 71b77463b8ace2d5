"""What Library.stats() counts, for Prometheus. Needs the extra `prometheus`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

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
        "luna_ext.metrics needs the package prometheus-client: pip install 'luna_ext[prometheus]'"
    ) from None

from ._cluster import Library

__all__ = ["PrometheusCollector"]

SHORTEST = 10
"""The histogram's first bucket: 2**10 ns, about a microsecond, and all shorter calls."""
LONGEST = 36
"""Its last one: 2**36 ns, about 69 seconds. Longer calls are in the bucket +Inf alone."""


class PrometheusCollector(Collector):
    """The device calls of this process, for prometheus_client.

    ::

        from prometheus_client import REGISTRY
        REGISTRY.register(PrometheusCollector(luna))

    Parameters
    ----------
    library : Library
        Its `stats()` are read; it may be closed. All Libraries of a process on one client library
        have the same counters, so one of them is enough.

    Notes
    -----
    The counters are read when Prometheus asks, which delays no device call. The metrics, each with
    the C function as the label ``function``:

    luna_ext_call_duration_seconds
        A histogram in seconds, its limits powers of two nanoseconds; its _count is the number of calls.
        Calls of less than 16 microseconds are sampled: see FunctionStats.
    luna_ext_call_errors_total
        Calls that answered an error, with its name as the label ``code``.
    luna_ext_call_duration_seconds_max
        Seconds of the longest call so far that was timed.
    luna_ext_handed_over_total
        Locks that a holder of this process has handed over to the next, without a call.

    Each forked worker has counters of its own, and prometheus_client's multiprocess mode does not add
    up what collectors give. Let Prometheus scrape each worker.
    """

    def __init__(self, library: Library) -> None:
        self._library = library

    def collect(self) -> Iterator[Metric]:
        """The metrics; prometheus_client's registry calls this."""
        called = self._library.stats()
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
        handed_over = CounterMetricFamily(
            "luna_ext_handed_over",
            "Locks that were handed over within the process, without a call",
            value=sum(stats.handed_over for stats in called.values()),
        )
        for function, stats in called.items():
            if not stats.calls:
                # It was not called: all its locks were handed over.
                continue
            so_far = list(itertools.accumulate(stats.histogram))
            buckets = [
                (repr(2**power / 1e9), float(so_far[power]))
                for power in range(SHORTEST, LONGEST + 1)
            ]
            durations.add_metric(
                [function], [*buckets, ("+Inf", float(stats.calls))], stats.total_seconds
            )
            longest.add_metric([function], stats.max_seconds)
            for code, count in stats.errors.items():
                errors.add_metric([function, code], count)
        yield durations
        yield errors
        yield longest
        yield handed_over
