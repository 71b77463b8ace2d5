"""stats(): the counters of the device's functions."""

import asyncio
import contextlib
import threading
import time

import pytest
from support import LOCK

import luna_ext

INFO = "C_GetSlotInfo"


@pytest.fixture
def since(luna):
    """A function's FunctionStats since the test began, without the longest duration."""
    before = luna.stats()

    def difference(function):
        first = before.get(function, luna_ext.FunctionStats())
        now = luna.stats().get(function, luna_ext.FunctionStats())
        errors = {name: count - first.errors.get(name, 0) for name, count in now.errors.items()}
        start = first.histogram or (0,) * len(now.histogram)
        return luna_ext.FunctionStats(
            calls=now.calls - first.calls,
            errors={name: count for name, count in errors.items() if count},
            total_seconds=now.total_seconds - first.total_seconds,
            max_seconds=now.max_seconds,
            histogram=tuple(b - a for a, b in zip(start, now.histogram, strict=True)),
            timed=now.timed - first.timed,
        )

    return difference


def test_stats_of_a_function_that_was_never_called_are_zero():
    stats = luna_ext.FunctionStats()
    assert (stats.calls, stats.errors, stats.total_seconds, stats.max_seconds) == (0, {}, 0.0, 0.0)
    assert stats.histogram == ()
    assert stats.timed == 0


def test_the_length_of_calls(succeed):
    """In a process of its own: the longest call is that of all tests otherwise."""
    succeed("""
        cluster.latency(0.005, "C_GetSlotInfo")
        begin = time.perf_counter()
        for _ in range(4):
            slot.info
        took = time.perf_counter() - begin
        slot.token_info
        stats = luna.stats()["C_GetSlotInfo"]
        assert stats.calls == 4
        assert 0.020 <= stats.total_seconds <= took
        assert stats.total_seconds / 4 <= stats.max_seconds <= stats.total_seconds
        assert stats.timed == 4
        for each in luna.stats().values():
            assert each.max_seconds <= each.total_seconds
    """)


def test_the_length_of_a_reconnect(luna, cluster, since):
    """C_Finalize and C_Initialize have a frame of their own."""
    cluster.latency(0.005, "C_Finalize")
    cluster.latency(0.005, "C_Initialize")
    begin = time.perf_counter()
    luna.reconnect()
    took = time.perf_counter() - begin
    both = [since("C_Finalize"), since("C_Initialize")]
    assert [stats.calls for stats in both] == [1, 1]
    assert all(stats.total_seconds >= 0.005 for stats in both)
    assert sum(stats.total_seconds for stats in both) <= took


def test_the_histogram_has_powers_of_two(luna, cluster, since):
    """A call of 20 ms takes more than 2**24 ns, and on an idle machine less than 2**25."""
    cluster.latency(0.020, INFO)
    _ = luna.slot(1).info
    stats = since(INFO)
    (power,) = (n for n, count in enumerate(stats.histogram) if count)
    assert 2 ** (power - 1) <= round(stats.total_seconds * 1e9) < 2**power
    assert power >= 25
    assert sum(stats.histogram) == stats.calls == 1


def test_of_fast_calls_some_are_timed_for_all(luna, since):
    slot = luna.slot(1)
    for _ in range(2000):
        _ = slot.info
    stats = since(INFO)
    assert stats.calls == sum(stats.histogram) == 2000
    assert 0 < stats.timed < 1000
    assert 0 < stats.total_seconds < 2000 * stats.max_seconds
    assert stats.histogram[0] == 0, "no call takes less than a nanosecond"


def test_a_slow_call_among_fast_ones_is_timed(luna, hold_elsewhere, call):
    stop = threading.Event()

    def lock_again_and_again():
        while not stop.is_set():
            with luna.slot(1):
                pass

    caller = call(lock_again_and_again)
    holder = hold_elsewhere(1)
    # All the while one lock call is out.
    time.sleep(0.1)
    holder.release()
    stop.set()
    caller.result()
    assert luna.stats()["CA_LockClusteredSlot"].max_seconds > 0.08


def test_each_call_for_a_task_is_timed(luna, cluster, since):
    cluster.latency(0.001, LOCK)

    async def use():
        async with luna.slot(1).lock():
            pass

    async def main():
        await asyncio.gather(*(use() for _ in range(8)))

    asyncio.run(main())
    stats = since(LOCK)
    assert stats.timed == stats.calls == 8
    assert stats.total_seconds >= 0.008


def test_calls_are_timed_again_when_they_become_slow(luna, cluster, since):
    """Those of the next 4 ms may count as fast ones."""
    slot = luna.slot(1)
    for _ in range(2000):
        _ = slot.info
    before = since(INFO)
    cluster.latency(0.001, INFO)
    for _ in range(40):
        _ = slot.info
    stats = since(INFO)
    assert stats.calls - before.calls == 40
    assert stats.timed - before.timed >= 30
    assert stats.total_seconds - before.total_seconds >= 0.030


def test_fast_calls_stay_fast_when_a_slow_one_follows(luna, cluster, since):
    slot = luna.slot(1)
    for _ in range(2000):
        _ = slot.info
    cluster.latency(0.05, INFO)
    _ = slot.info
    assert 0.02 < since(INFO).total_seconds < 5


def test_errors_by_their_code(luna, cluster, in_child):
    """In a child, which counts from nothing, and has places left for them."""

    def child():
        for rv, times in ((0x30, 2), (0x80000041, 1), (0x8000ABCD, 3)):
            cluster.fault(INFO, rv, times=times)
            for _ in range(times):
                with contextlib.suppress(luna_ext.CryptokiError):
                    _ = luna.slot(1).info
        _ = luna.slot(1).info
        stats = luna.stats()[INFO]
        return (stats.calls, stats.errors) == (
            7,
            {"CKR_DEVICE_ERROR": 2, "CKR_AGAIN": 1, "0x8000ABCD": 3},
        )

    assert in_child(child) == 0


def test_more_codes_than_there_are_places_for(luna, cluster, in_child):
    def child():
        for code in range(50):
            cluster.fault("C_GetInfo", 0x8000F000 + code, times=1)
            with contextlib.suppress(luna_ext.CryptokiError):
                _ = luna.info
        errors = luna.stats()["C_GetInfo"].errors
        return len(errors) == 32 and errors["other"] == 19 and errors["0x8000F000"] == 1

    assert in_child(child) == 0


def test_nothing_is_missed_where_threads_count_at_a_time(luna, cluster, call, since):
    cluster.fault(INFO, 0x30, every=3)
    together = threading.Barrier(8)

    def ask():
        together.wait(10)
        failed = 0
        for _ in range(500):
            try:
                _ = luna.slot(1).info
            except luna_ext.DeviceError:
                failed += 1
        return failed

    failed = sum(caller.result() for caller in [call(ask) for _ in range(8)])
    stats = since(INFO)
    assert stats.calls == sum(stats.histogram) == 4000
    assert stats.errors == {"CKR_DEVICE_ERROR": failed}


def test_reading_waits_for_no_call(luna, hold_elsewhere, call, wait_until_inside, since):
    """A call that has not come back is not counted yet, and does not delay the reading."""
    holder = hold_elsewhere(1)

    def use():
        with luna.slot(1):
            return since(LOCK).calls

    waiting = call(use)
    wait_until_inside(LOCK)
    assert since(LOCK).calls == 0
    holder.release()
    assert waiting.result() == 1


def test_a_closed_library_still_tells(cluster):
    with cluster.library() as luna:
        _ = luna.info
    assert luna.stats()["C_GetInfo"].calls > 0


def test_a_child_counts_for_itself(luna, in_child):
    _ = luna.info

    def child():
        if luna.stats() != {}:
            return False
        _ = luna.info
        return {name: stats.calls for name, stats in luna.stats().items()} == {
            "C_Initialize": 1,
            "C_GetInfo": 1,
        }

    assert in_child(child) == 0
