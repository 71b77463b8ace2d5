"""Uses every public name; `mypy --strict` checks it, nothing runs it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, assert_type

from prometheus_client import REGISTRY
from prometheus_client.metrics_core import Metric

import luna_ext
from luna_ext.metrics import PrometheusCollector
from luna_ext.stub import Cluster, ClusterToken, LoggedCall, library_path


def library() -> None:
    assert_type(luna_ext.Library("/x/y.so", contention="poll", handover=0.05), luna_ext.Library)
    luna_ext.Library(contention="hope")  # type: ignore[arg-type]
    luna_ext.Library(handover="long")  # type: ignore[arg-type]
    with luna_ext.Library(Path("/x/y.so")) as luna:
        assert_type(luna, luna_ext.Library)
        assert_type(luna.path, str)
        assert_type(luna.info, luna_ext.LibraryInfo)
        assert_type(luna.info.version, luna_ext.Version)
        assert_type(luna.is_stub, bool)
        assert_type(luna.cluster_functions, frozenset[str])
        assert_type(luna.closed, bool)
        assert_type(luna.slot(1), luna_ext.ClusterSlot)
        luna.slot("1")  # type: ignore[arg-type]
        assert_type(luna.slots(token_present=False), list[luna_ext.ClusterSlot])
        assert_type(luna.token("label"), luna_ext.Token)
        assert_type(luna.find("label"), list[luna_ext.Token])
        assert_type(luna.tokens(workers=4), list[luna_ext.Token])
        stats: Mapping[str, luna_ext.FunctionStats] = luna.stats()
        assert_type(stats["C_GetInfo"].calls, int)
        assert_type(stats["C_GetInfo"].errors, dict[str, int])
        assert_type(stats["C_GetInfo"].total_seconds, float)
        assert_type(stats["C_GetInfo"].max_seconds, float)
        assert_type(stats["C_GetInfo"].histogram, tuple[int, ...])
        lock_stats: luna_ext.LockStats = luna.lock_stats()
        assert_type(lock_stats.wait_histogram, tuple[int, ...])
        assert_type(lock_stats.hold_seconds, float)
        assert_type(lock_stats.waiting, int)
        luna.reconnect()
        assert_type(luna.lock_all([luna.slot(1), luna.token("label")]), luna_ext.LockAll)
        with luna.lock_all(luna.slots(), timeout=1.5) as held:
            assert_type(held, tuple[luna_ext.ClusterSlot | luna_ext.Token, ...])
        with luna.claim("cluster-1", timeout=1.5) as token:
            assert_type(token, luna_ext.Token)
            assert_type(token.assign("new", so_pin="1", user_pin=b"2"), luna_ext.Token)
            token.assign("new")  # type: ignore[call-arg]
            token.assign("new", so_pin=bytearray(b"1"), unique=False)
            token.assign("new", so_pin=memoryview(b"1"), erase=False)
            token.assign("new", so_pin=luna_ext.PIN_PAD, user_pin=luna_ext.PIN_PAD)
        assert_type(luna.claim("cluster-1"), luna_ext.Claim)
        assert_type(luna.pkcs11(), Any)
        assert_type(luna.pykcs11(), Any)
        assert_type(luna.close(), None)


def slot(slot: luna_ext.ClusterSlot) -> None:
    assert_type(slot.slot_id, int)
    slot.slot_id = 2  # type: ignore[misc]
    assert_type(slot.library, luna_ext.Library)
    assert_type(slot.info, luna_ext.SlotInfo)
    assert_type(slot.info.flags, luna_ext.SlotFlag)
    assert_type(slot.token_info, luna_ext.TokenInfo)
    assert_type(slot.acquire(), bool)
    assert_type(slot.acquire(True, 5), bool)
    assert_type(slot.acquire(blocking=False), bool)
    assert_type(slot.release(), None)
    assert_type(slot.locked(), bool)
    assert_type(slot.ensure_held(), None)
    assert_type(slot.lost, luna_ext.LostEvent)
    assert_type(slot.lost.is_set(), bool)
    assert_type(slot.lost.wait(0.1), bool)
    assert_type(slot.lock(), luna_ext.SlotLock[luna_ext.ClusterSlot])
    assert_type(
        slot.lock(heartbeat=1, on_lost=lambda error: print(error.slot_id)),
        luna_ext.SlotLock[luna_ext.ClusterSlot],
    )
    with slot as entered:
        assert_type(entered, luna_ext.ClusterSlot)
    with slot.lock(timeout=5) as entered:
        assert_type(entered, luna_ext.ClusterSlot)


async def waiting(slot: luna_ext.ClusterSlot, token: luna_ext.Token) -> None:
    async with slot.lock(timeout=5) as entered:
        assert_type(entered, luna_ext.ClusterSlot)
    async with token.lock() as locked:
        assert_type(locked, luna_ext.Token)


def token(token: luna_ext.Token) -> None:
    assert_type(token.label, str)
    assert_type(token.slot, luna_ext.ClusterSlot)
    assert_type(token.info, luna_ext.TokenInfo)
    assert_type(token.info.flags, luna_ext.TokenFlag)
    assert_type(token.info.session_count, int | None)
    assert_type(token.ensure_held(), None)
    assert_type(token.pkcs11(), Any)
    assert_type(token.change_pin("old", b"new"), None)
    token.change_pin(luna_ext.PIN_PAD, luna_ext.PIN_PAD, role="so")
    token.change_pin("old", "new", role="auditor")  # type: ignore[arg-type]
    pad: luna_ext.PinPad = luna_ext.PIN_PAD
    print(pad)
    with token as entered:
        assert_type(entered, luna_ext.Token)
    with token.lock(timeout=5) as entered:
        assert_type(entered, luna_ext.Token)


def fleet(luna: luna_ext.Library) -> None:
    def on_progress(progress: luna_ext.ProvisionProgress) -> None:
        assert_type(progress.label, str)
        assert_type(progress.outcome, Literal["assigned", "skipped", "failed"])
        assert_type(progress.slot_id, int | None)
        assert_type(progress.error, Exception | None)
        assert_type((progress.done, progress.total), tuple[int, int])

    report = luna_ext.provision(
        luna,
        "cluster-1",
        (f"payments-{number}" for number in range(3)),
        so_pin="1",
        user_pin=b"2",
        workers=4,
        guard=luna.slot(1),
        on_progress=on_progress,
    )
    assert_type(report, luna_ext.ProvisionReport)
    assert_type(report.assigned, dict[str, int])
    assert_type(report.skipped, dict[str, int])
    assert_type(report.failed, dict[str, Exception])
    assert_type(report.fresh, dict[str, int])
    luna_ext.provision(luna, "cluster-1", ["x"])  # type: ignore[call-arg]
    collector = PrometheusCollector(luna)
    REGISTRY.register(collector)
    assert_type([*collector.collect()], list[Metric])


def errors(error: luna_ext.LunaError) -> None:
    assert_type(error.rv, int | None)
    assert_type(error.rv_name, str | None)
    assert_type(error.function, str | None)
    assert_type(error.slot_id, int | None)
    value_error: ValueError = luna_ext.ArgumentsBadError("")
    lookup_errors: list[LookupError] = [
        luna_ext.SlotIdInvalidError(""),
        luna_ext.NoUnassignedTokenError(""),
        luna_ext.TokenNotFoundError(""),
        luna_ext.AmbiguousLabelError(""),
    ]
    os_error: OSError = luna_ext.LibraryLoadError("")
    timeout: TimeoutError = luna_ext.LockTimeoutError("")
    assert_type(luna_ext.LockTimeoutError("").timeout, float)
    missing: NotImplementedError = luna_ext.UnsupportedFunctionError("")
    runtime_errors: list[RuntimeError] = [
        luna_ext.NotInitializedError(""),
        luna_ext.LibraryClosedError(""),
        luna_ext.LockReentryError(""),
        luna_ext.LockNotOwnedError(""),
    ]
    lock_errors: list[luna_ext.LockError] = [
        luna_ext.LockLostError(""),
        luna_ext.LockReleaseError(""),
    ]
    cryptoki_errors: list[luna_ext.CryptokiError] = [
        luna_ext.DeviceError(""),
        luna_ext.BufferTooSmallError(""),
        luna_ext.FunctionFailedError(""),
        luna_ext.PinError("", rv=1, function="C_Login", slot_id=1),
    ]
    others: list[luna_ext.LunaError] = [
        luna_ext.TokenChangedError(""),
        luna_ext.AssignmentConflictError(""),
    ]
    assert_type(luna_ext.AmbiguousLabelError("").slot_ids, tuple[int, ...])
    assert_type(luna_ext.AssignmentConflictError("").slot_ids, tuple[int, ...])
    print(value_error, lookup_errors, os_error, timeout, missing, runtime_errors)
    print(lock_errors, cryptoki_errors, others)


def stand_in() -> None:
    assert_type(library_path(), str)
    with Cluster(cluster_id="c", keyrings=2, label="k", first_slot=1, password=b"1") as cluster:
        assert_type(cluster.path, str)
        assert_type(cluster.cluster_id, str)
        assert_type(cluster.library(contention="poll", handover=1), luna_ext.Library)
        assert_type(cluster.tokens(), list[ClusterToken])
        cluster.fault("CA_GetSlotId", 0x30, times=1, every=2, probability=0.5, seed=1)
        cluster.fault("CA_GetSlotId", 0x30, lost_reply=True)
        cluster.latency(0.001)
        cluster.latency(0.001, "CA_GetSlotId", up_to=0.1, seed=1)
        cluster.switch("contention", "error")
        cluster.set_pins(1, "1", b"2")
        cluster.set_pins(1, None)
        cluster.unlock_keyring(1)
        cluster.pin_lengths(8, 255)
        cluster.disconnect(1)
        cluster.reinitialise(1)
        assert_type(cluster.log(), list[LoggedCall])
        for call in cluster.log():
            assert_type(call.rv, int | None)
            assert_type(call.rv_name, str | None)
            assert_type(call.duration, float | None)
    assert_type(cluster.destroy(), None)
