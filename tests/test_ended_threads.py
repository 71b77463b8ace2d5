"""Threads that end while they hold a lock, and those that come after them with the same ident."""

import logging
import os
import threading
import time

import pytest
from support import UNLOCK, assert_stays, nothing_is_locked, wait_until

import luna_ext


@pytest.fixture
def left_locked(luna):
    """A thread has locked slot 1, and ended; its ident."""
    thread = threading.Thread(target=luna.slot(1).acquire)
    thread.start()
    thread.join()
    return thread.ident


def in_threads_with_ident(ident, function, wanted):
    """Call the function in one new thread after another, until so many of them had this ident."""
    found = []
    deadline = time.monotonic() + 20

    def work():
        result = function()
        if threading.get_ident() == ident:
            found.append(result)

    while len(found) < wanted:
        assert time.monotonic() < deadline, len(found)
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    return found


def refused(function):
    try:
        function()
    except luna_ext.LunaError as error:
        return type(error).__name__
    return "done"


WAYS = {
    "release": lambda luna: luna.slot(1).release(),
    "with": lambda luna: luna.slot(1).__exit__(None, None, None),
    "lock": lambda luna: luna.slot(1).lock().__exit__(None, None, None),
    "token": lambda luna: luna.token("keyring1").__exit__(None, None, None),
    "ensure_held": lambda luna: luna.slot(1).ensure_held(),
}


@pytest.mark.filterwarnings("ignore:slot 1 was still locked:ResourceWarning")
@pytest.mark.parametrize("way", WAYS)
def test_a_new_thread_with_a_dead_ones_ident_does_not_hold_its_lock(
    luna, cluster, left_locked, way
):
    """Idents are used again and again; the lock does not go by them."""
    ends = in_threads_with_ident(left_locked, lambda: refused(lambda: WAYS[way](luna)), 5)
    assert set(ends) == {"LockNotOwnedError"}
    # One unlock call at most: that for the thread that has ended.
    wait_until_unlocked(luna, cluster)
    assert [entry.function for entry in cluster.log()].count(UNLOCK) == 1


@pytest.mark.filterwarnings("ignore:slot 1 was still locked:ResourceWarning")
def test_a_new_thread_with_a_dead_ones_ident_is_no_reentry(luna, cluster, left_locked):
    def lock():
        with luna.slot(1).lock(timeout=10):
            return luna.slot(1).ensure_held()

    assert in_threads_with_ident(left_locked, lock, 3) == [None] * 3


def wait_until_unlocked(luna, cluster):
    wait_until(lambda: not luna.slot(1).locked() and cluster.tokens()[0].owner is None)


def test_the_lock_of_a_thread_that_has_ended_comes_off_and_is_told_of(
    luna, cluster, caplog, monkeypatch
):
    told = []
    monkeypatch.setattr("warnings.showwarning", lambda message, *more: told.append(str(message)))
    monkeypatch.setattr("warnings.filters", [("default", None, ResourceWarning, None, 0)])
    thread = threading.Thread(target=luna.slot(1).acquire)
    thread.start()
    thread.join()
    wait_until_unlocked(luna, cluster)
    wait_until(lambda: told)
    errors = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    for text in (*errors, *told):
        assert "slot 1 was still locked" in text
        assert "thread" in text
        assert f"{__file__.rsplit(os.sep, 1)[-1]}" in text or "threading.py" in text
    assert len(errors) == len(told) == 1


@pytest.mark.filterwarnings("ignore:slot 1 was still locked:ResourceWarning")
@pytest.mark.parametrize("way", ["with", "lock", "claim", "async"])
def test_waiters_behind_a_thread_that_has_ended_get_its_lock(luna, call, left_locked, way):
    import asyncio

    def enter():
        if way == "with":
            with luna.slot(1):
                return True
        if way == "lock":
            with luna.slot(1).lock(timeout=10):
                return True
        if way == "claim":
            claimed = set()
            for _ in range(20):
                with luna.claim("cluster-1", timeout=10) as token:
                    claimed.add(token.slot.slot_id)
            return bool(claimed)

        async def enter_in_task():
            async with luna.slot(1).lock(timeout=10):
                return True

        return asyncio.run(enter_in_task())

    assert call(enter).result()


@pytest.mark.filterwarnings("ignore:slot . was still locked:ResourceWarning")
def test_a_claim_of_a_thread_that_has_ended_comes_off(luna, cluster):
    thread = threading.Thread(target=luna.claim("cluster-1").__enter__)
    thread.start()
    thread.join()
    wait_until(lambda: nothing_is_locked(cluster))
    assert not any(slot.locked() for slot in luna.slots())


def test_what_a_thread_leaves_behind_may_still_release(luna, cluster, caplog):
    """A generator whose block runs when its thread ends is closed with the thread's own things."""
    local = threading.local()

    def block():
        with luna.slot(1):
            yield

    def work():
        local.generator = block()
        next(local.generator)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    wait_until_unlocked(luna, cluster)
    assert [entry.function for entry in cluster.log()].count(UNLOCK) == 1


@pytest.mark.filterwarnings("ignore:slot 1 was still locked:ResourceWarning")
def test_the_next_holder_keeps_the_lock_that_came_off_just_after_its_thread_had_ended(
    luna, cluster, owner_of
):
    """Taken off by a close() here. Who looks after it a moment later finds another holder."""
    closing = cluster.library()
    thread = threading.Thread(target=closing.slot(1).acquire)
    thread.start()
    thread.join()
    closing.close()
    with luna.slot(1) as slot:
        assert_stays(lambda: slot.locked() and owner_of(1) == os.getpid(), 0.6)
        slot.ensure_held()
