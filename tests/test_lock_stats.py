"""lock_stats(): how long this process waits for locks and holds them, and what becomes of that."""

import asyncio
import contextlib
import os
import time

import pytest
from support import (
    CLAIM,
    DEVICE_ERROR,
    LOCK,
    TOKEN_INFO,
    UNLOCK,
    enter,
    let_device_forget_us,
    wait_until,
)

import luna_ext

TICK = 0.010
"""Seconds of the coarse clock, at most."""


@pytest.fixture
def since(luna):
    """What has been counted since the test began."""
    before = luna.lock_stats()

    def grown(numbers, earlier):
        return [now - then for now, then in zip(numbers, earlier, strict=True)]

    def difference(library=luna):
        now = library.lock_stats()
        return luna_ext.LockStats(
            wait_histogram=tuple(grown(now.wait_histogram, before.wait_histogram)),
            wait_seconds=now.wait_seconds - before.wait_seconds,
            hold_histogram=tuple(grown(now.hold_histogram, before.hold_histogram)),
            hold_seconds=now.hold_seconds - before.hold_seconds,
            timeouts=now.timeouts - before.timeouts,
            losses=now.losses - before.losses,
            handed_over=now.handed_over - before.handed_over,
            waiting=now.waiting,
            held=now.held,
        )

    return difference


def at_least(histogram, seconds):
    """How many of a histogram are in the places of so many seconds and more."""
    return sum(histogram[round(seconds * 1e9).bit_length() :])


def own_call(slot, call):
    call(lambda: enter(slot)).result()


def on_the_main_thread(slot, call):
    enter(slot)


def with_a_timeout(slot, call):
    enter(slot.lock(timeout=60))


def in_a_task(slot, call):
    async def main():
        async with slot.lock():
            pass

    asyncio.run(main())


@pytest.mark.parametrize("way", [own_call, on_the_main_thread, with_a_timeout, in_a_task])
def test_waits_for_the_device(luna, cluster, call, since, way):
    cluster.latency(0.02, LOCK)
    for _ in range(2):
        way(luna.slot(1), call)
    stats = since()
    assert sum(stats.wait_histogram) == at_least(stats.wait_histogram, 0.016) == 2
    assert stats.wait_seconds >= 0.04
    assert sum(stats.hold_histogram) == 2
    assert (stats.timeouts, stats.losses) == (0, 0)


@pytest.mark.parametrize("way", [own_call, with_a_timeout, in_a_task])
def test_waits_for_another_thread(luna, call, hold_here, wait_until_queued, since, way):
    slot = luna.slot(1)
    holder = hold_here(slot)
    assert (since().held, since().waiting) == (1, 0)
    waiting = call(lambda: way(slot, call))
    wait_until_queued(slot, 1)
    assert (since().held, since().waiting) == (1, 1)
    holder.leave()
    waiting.result()
    stats = since()
    assert sum(stats.wait_histogram) >= 1
    assert stats.wait_seconds > 0
    assert sum(stats.hold_histogram) == 2
    assert (stats.held, stats.waiting) == (0, 0)


def test_a_thread_in_its_lock_call_waits(luna, call, hold_elsewhere, wait_until_inside, since):
    holder = hold_elsewhere(1)
    waiting = call(lambda: enter(luna.slot(1)))
    wait_until_inside(LOCK)
    assert (since().held, since().waiting) == (0, 1)
    holder.release()
    waiting.result()
    assert since().waiting == 0


def test_the_length_of_holds(luna, cluster, since):
    cluster.latency(0.04, TOKEN_INFO)
    for _ in range(2):
        with luna.slot(1):
            _ = luna.slot(2).token_info
    stats = since()
    assert sum(stats.hold_histogram) == at_least(stats.hold_histogram, 0.016) == 2
    assert stats.hold_seconds > 2 * (0.04 - TICK)


@pytest.mark.parametrize("way", [own_call, with_a_timeout])
def test_a_hold_begins_with_the_answer_of_its_lock_call(luna, cluster, call, since, way):
    cluster.latency(0.3, LOCK)
    way(luna.slot(1), call)
    assert at_least(since().hold_histogram, 0.2) == 0


def test_short_holds_are_counted_and_not_timed(luna, call, since):
    def many():
        for _ in range(500):
            with luna.slot(1):
                pass

    call(many).result()
    stats = since()
    assert sum(stats.hold_histogram) == 500
    # The clock's ticks, most often of 4 ms, are all that shows of them.
    assert stats.hold_histogram[0] > 300


def test_a_claims_hold_counts_and_its_wait_does_not(luna, cluster, since):
    cluster.latency(0.02, "CA_GetUnassignedSlot")
    with luna.claim("cluster-1"):
        assert since().held == 1
    stats = since()
    assert (sum(stats.wait_histogram), sum(stats.hold_histogram)) == (0, 1)


def give_up_a_lock(luna, cluster):
    cluster.latency(0.4, LOCK)
    assert not luna.slot(1).acquire(timeout=0.2)


def give_up_a_claim(luna, cluster):
    cluster.latency(0.4, CLAIM)
    with pytest.raises(luna_ext.LockTimeoutError):
        enter(luna.claim("cluster-1", timeout=0.2))


@pytest.mark.luna_cluster(keyrings=1)
@pytest.mark.parametrize("give_up", [give_up_a_lock, give_up_a_claim])
def test_a_lock_that_came_too_late_is_a_short_hold(luna, cluster, owner_of, since, give_up):
    enter(luna.slot(1))
    give_up(luna, cluster)
    # The device's grant comes soon, and the lock is unlocked at once.
    wait_until(lambda: sum(since().hold_histogram) == 2 and owner_of(1) is None)
    # It has not lasted since the earlier hold began.
    assert at_least(since().hold_histogram, 0.2) == 0
    assert since().held == 0


def test_timeouts(luna, hold_elsewhere, since):
    hold_elsewhere(1)
    slot = luna.slot(1)

    async def in_vain():
        async with slot.lock(timeout=0.01):
            pass

    for ask in (
        lambda: enter(slot.lock(timeout=0.01)),
        lambda: asyncio.run(in_vain()),
        lambda: enter(luna.lock_all([slot, luna.slot(2)], timeout=0.01)),
    ):
        with pytest.raises(luna_ext.LockTimeoutError):
            ask()
    assert since().timeouts == 3
    assert not slot.acquire(timeout=0.01)
    assert since().timeouts == 4
    assert not slot.acquire(blocking=False)
    assert since().timeouts == 4


def reinitialised_behind_its_back(luna, cluster):
    cluster.reinitialise(os.getpid())
    luna.slot(1).ensure_held()


def reinitialised_in_a_long_block(luna, cluster):
    cluster.reinitialise(os.getpid())
    # After that the end of a block asks for the library's own session.
    time.sleep(0.05)


def found_by_the_session_after_the_unlock(luna, cluster):
    cluster.fault(UNLOCK, DEVICE_ERROR, times=1)
    cluster.reinitialise(os.getpid())


def forgotten_by_the_device(luna, cluster):
    let_device_forget_us(cluster)
    luna.slot(1).ensure_held()


def found_at_the_unlock(luna, cluster):
    cluster.fault(UNLOCK, DEVICE_ERROR, times=1)
    let_device_forget_us(cluster)


def reconnected(luna, cluster):
    luna.reconnect()


@pytest.mark.parametrize(
    "lose",
    [
        reinitialised_behind_its_back,
        reinitialised_in_a_long_block,
        found_by_the_session_after_the_unlock,
        forgotten_by_the_device,
        found_at_the_unlock,
        reconnected,
    ],
)
def test_losses(luna, cluster, since, lose):
    with pytest.raises(luna_ext.LockLostError), luna.slot(1):
        lose(luna, cluster)
    assert since().losses == 1
    luna.reconnect()
    enter(luna.slot(2))
    assert (since().losses, since().held) == (1, 0)


def test_what_is_released_is_no_loss(luna, cluster, since):
    with contextlib.suppress(luna_ext.LockReleaseError), luna.slot(1):
        cluster.fault(UNLOCK, DEVICE_ERROR, times=1)
    luna.reconnect()
    assert since().losses == 0


def test_a_lock_that_is_handed_over_is_one_hold(cluster, hold_here, call, wait_until_queued, since):
    with cluster.library(handover=1000) as luna:
        slot = luna.slot(1)
        holder = hold_here(slot)
        waiting = call(lambda: enter(slot))
        wait_until_queued(slot, 1)
        holder.leave()
        waiting.result()
        stats = since(luna)
    assert (stats.handed_over, sum(stats.hold_histogram)) == (1, 1)
    assert sum(stats.wait_histogram) >= 1


def test_a_child_counts_from_nothing(luna, in_child, call):
    enter(luna.slot(1))

    def child():
        stats = luna.lock_stats()
        return not any([*stats.hold_histogram, *stats.wait_histogram, stats.held, stats.losses])

    assert in_child(child) == 0
