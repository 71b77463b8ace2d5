"""The counters of device calls, as Prometheus reads them."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from support import LOCK, enter

import luna_ext
from luna_ext.metrics import PrometheusCollector

INFO = "C_GetSlotInfo"


@pytest.fixture
def scrape(luna):
    """What a server would read: {(sample, function, its other label): value}."""
    registry = CollectorRegistry()
    registry.register(PrometheusCollector(luna))

    def read():
        families = text_string_to_metric_families(generate_latest(registry).decode())
        return {
            (
                sample.name,
                sample.labels.get("function"),
                sample.labels.get("le", sample.labels.get("code")),
            ): (sample.value)
            for family in families
            for sample in family.samples
        }

    return read


def test_calls_errors_and_durations_are_told(luna, cluster, scrape):
    before = scrape()
    cluster.latency(0.005, INFO)
    cluster.fault(INFO, 0x30, times=1)
    with pytest.raises(luna_ext.DeviceError):
        _ = luna.slot(1).info
    _ = luna.slot(1).info

    after = scrape()

    def grown(name, label=None):
        return after[name, INFO, label] - before.get((name, INFO, label), 0)

    durations = "luna_ext_call_duration_seconds"
    assert grown(f"{durations}_count") == 2
    assert grown(f"{durations}_sum") >= 0.010
    assert grown(f"{durations}_bucket", "+Inf") == 2
    assert grown(f"{durations}_bucket", "0.004194304") == 0
    assert grown(f"{durations}_bucket", "68.719476736") == 2
    assert after[f"{durations}_max", INFO, None] >= 0.005
    assert grown("luna_ext_call_errors_total", "CKR_DEVICE_ERROR") == 1


def test_waits_holds_losses_and_timeouts_are_told(luna, cluster, scrape, hold_elsewhere, hold_here):
    before = scrape()

    def grown(name, le=None):
        return scrape()[name, None, le] - before[name, None, le]

    holder = hold_here(luna.slot(3))
    assert scrape()["luna_ext_locks_held", None, None] == 1
    luna.reconnect()
    with pytest.raises(luna_ext.LockLostError):
        holder.leave()
    assert grown("luna_ext_locks_lost_total") == 1
    waits, holds = "luna_ext_lock_wait_seconds", "luna_ext_lock_hold_seconds"
    waited = grown(f"{waits}_count")
    cluster.latency(0.02, LOCK)
    enter(luna.slot(1))
    hold_elsewhere(2)
    assert not luna.slot(2).acquire(timeout=0.001)
    assert grown(f"{waits}_count") == grown(f"{waits}_bucket", "+Inf") == waited + 1
    assert grown(f"{waits}_sum") >= 0.02
    assert grown(f"{waits}_bucket", "0.016777216") == waited
    assert grown(f"{waits}_bucket", "68.719476736") == waited + 1
    assert grown(f"{holds}_count") == 1
    assert ("luna_ext_lock_hold_seconds_bucket", None, "0.008388608") not in before
    assert grown("luna_ext_lock_timeouts_total") == 1
    assert scrape()["luna_ext_lock_waiters", None, None] == 0


def test_the_dashboard_and_the_page_have_the_metrics_that_there_are(luna, cluster, scrape):
    cluster.fault(INFO, 0x30, times=1)
    with pytest.raises(luna_ext.DeviceError):
        _ = luna.slot(1).info
    docs = Path(__file__).parents[1] / "docs"
    dashboard = json.loads((docs / "grafana.json").read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked += [variable["query"] for variable in dashboard["templating"]["list"]]
    samples = {name for name, *_ in scrape()}
    assert set(re.findall(r"luna_ext\w+", " ".join(asked))) <= samples

    families = {re.sub("_(bucket|count|sum)$", "", name) for name in samples}
    for text in (" ".join(asked), (docs / "howto" / "monitoring.md").read_text()):
        named = set(re.findall(r"luna_ext_\w+", text))
        assert {re.sub("_(bucket|count|sum)$", "", name) for name in named} == families


def test_locks_that_were_handed_over_are_told(cluster, hold_here, call, wait_until_queued):
    """The name of the lock call is there though it was never made: a claim gave what was handed over."""
    with cluster.library(handover=1000) as luna:
        registry = CollectorRegistry()
        registry.register(PrometheusCollector(luna))

        def read():
            return registry.get_sample_value("luna_ext_handed_over_total")

        before = read()
        holder = hold_here(luna.claim("cluster-1"))
        (slot,) = (slot for slot in luna.slots() if slot.locked())
        waiting = call(lambda: enter(slot))
        wait_until_queued(slot, 1)
        holder.leave()
        waiting.result()
        assert read() == before + 1


def test_buckets_hold_what_is_in_the_ones_below(luna, scrape):
    _ = luna.slot(1).info
    by_bound = sorted(
        (float(le), value)
        for (name, function, le), value in scrape().items()
        if name.endswith("_bucket") and function == INFO
    )
    assert len(by_bound) == 28
    values = [value for _, value in by_bound]
    assert values == sorted(values)
    assert values[-1] == luna.stats()[INFO].calls


def test_a_closed_library_is_still_read(luna, scrape):
    luna.close()
    assert scrape()["luna_ext_call_duration_seconds_count", "C_Finalize", None] > 0


def test_without_prometheus_client_it_says_what_to_install():
    program = "import sys; sys.modules['prometheus_client'] = None; import luna_ext.metrics"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "ImportError: luna_ext.metrics needs the package prometheus-client: "
        "pip install prometheus-client"
    )
