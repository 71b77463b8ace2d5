"""What log records and audit events say to an application."""

import asyncio
import contextlib
import logging
import re
import subprocess
import sys
import threading
import time

import pytest
from support import (
    DEVICE_ERROR,
    GENERAL_ERROR,
    NO_MORE_THREADS,
    TOKEN_INFO,
    UNLOCK,
    nothing_is_locked,
    wait_until,
)

import luna_ext
from luna_ext.stub import STATE_VARIABLE


async def lock_in_task(luna):
    async with luna.slot(1).lock():
        pass


def hold(luna):
    with luna.slot(1):
        pass


def claim(luna):
    with luna.claim("cluster-1"):
        pass


def acquire(luna, **options):
    assert luna.slot(1).acquire(**options)
    luna.slot(1).release()


async def claim_in_task(luna):
    async with luna.claim("cluster-1"):
        pass


WAYS = {
    "with": hold,
    "acquire": acquire,
    "timed": lambda luna: acquire(luna, timeout=5),
    "non-blocking": lambda luna: acquire(luna, blocking=False),
    "task": lambda luna: asyncio.run(lock_in_task(luna)),
    "claim": claim,
    "claim in a task": lambda luna: asyncio.run(claim_in_task(luna)),
}


def told(caplog, level):
    """The texts of our records of this level."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "luna_ext" and record.levelno == level
    ]


@pytest.mark.parametrize("way", WAYS)
def test_debug_tells_each_lock_and_unlock_with_the_wait(luna, cluster, caplog, way):
    caplog.set_level(logging.DEBUG, "luna_ext")
    cluster.latency(0.02)
    began = time.monotonic()
    WAYS[way](luna)
    lasted = time.monotonic() - began
    locked, unlocked = told(caplog, logging.DEBUG)
    slot_id, wait = re.fullmatch(r"slot (\d+): locked after (\d+\.\d+) s", locked).groups()
    assert 0.02 <= float(wait) <= lasted
    took = re.fullmatch(rf"slot {slot_id}: unlocked in (\d+\.\d+) s", unlocked).group(1)
    assert 0.02 <= float(took) <= lasted


@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_told_without_debug(luna, caplog, way):
    caplog.set_level(logging.INFO, "luna_ext")
    WAYS[way](luna)
    assert caplog.records == []


def test_a_change_of_the_level_is_seen_at_once(luna, caplog):
    for _ in range(2):
        caplog.set_level(logging.INFO, "luna_ext")
        acquire(luna)
        assert told(caplog, logging.DEBUG) == []
        caplog.set_level(logging.DEBUG, "luna_ext")
        acquire(luna)
        assert len(told(caplog, logging.DEBUG)) == 2
        caplog.clear()
    logging.disable(logging.DEBUG)
    try:
        acquire(luna)
        assert told(caplog, logging.DEBUG) == []
    finally:
        logging.disable(logging.NOTSET)


class Objection(Exception):
    """What a filter of these tests raises."""


@pytest.mark.parametrize("text", ["locked after", "unlocked in"])
@pytest.mark.parametrize("way", WAYS)
def test_a_filter_that_raises_leaves_nothing_locked(luna, cluster, way, text):
    def object_to(record):
        if text in record.getMessage():
            raise Objection
        return True

    logger = logging.getLogger("luna_ext")
    level = logger.level
    logger.setLevel(logging.DEBUG)
    logger.addFilter(object_to)
    try:
        with pytest.raises(Objection):
            WAYS[way](luna)
    finally:
        logger.removeFilter(object_to)
        logger.setLevel(level)
    for slot in luna.slots():
        # Queued behind the unlock, if that is still under way.
        with slot.lock(timeout=10):
            pass
    assert nothing_is_locked(cluster)


def test_a_filter_that_raises_leaves_nothing_locked_by_a_thread_that_lives_on(luna, cluster, call):
    """It has made the lock call itself; its end would take the lock off as well."""

    def object_to(record):
        if "locked after" in record.getMessage() and threading.current_thread() is entering:
            raise Objection
        return True

    def enter():
        assert begin.wait(10)
        with pytest.raises(Objection):
            hold(luna)
        wait_until(lambda: not luna.slot(1).locked())

    begin = threading.Event()
    entering = call(enter)
    logger = logging.getLogger("luna_ext")
    level = logger.level
    logger.setLevel(logging.DEBUG)
    logger.addFilter(object_to)
    begin.set()
    try:
        assert entering.result(40) is None
    finally:
        logger.removeFilter(object_to)
        logger.setLevel(level)
    with luna.slot(1).lock(timeout=10):
        pass
    assert nothing_is_locked(cluster)


def test_a_filter_that_raises_leaves_nothing_locked_where_no_thread_can_be_had(cluster, succeed):
    """What was claimed comes off on the thread that has claimed it."""
    body = f"""
        import logging
        logger = logging.getLogger("luna_ext")

        def object_to(record):
            if "locked after" in record.getMessage():
                raise ZeroDivisionError
            return True

        def claim():
            assert begin.wait(20)
            try:
                with luna.claim("cluster-1"):
                    print("entered")
            except ZeroDivisionError:
                print("refused")

        begin = threading.Event()
        claiming = in_thread(claim)
        {NO_MORE_THREADS}
        logger.setLevel(logging.DEBUG)
        logger.addFilter(object_to)
        begin.set()
        claiming.join(20)
        print(*[token.slot_id for token in cluster.tokens() if token.owner is not None])
        luna.close()
    """
    assert succeed(body) == ["refused"]


def test_a_filter_that_finds_the_lock_lost_and_raises_lets_the_next_one_have_it(
    luna, cluster, call, hold_here, wait_until_queued
):
    slot = luna.slot(1)
    main = threading.current_thread()

    def object_to(record):
        if "locked after" in record.getMessage() and threading.current_thread() is main:
            cluster.fault(TOKEN_INFO, DEVICE_ERROR, times=1)
            with contextlib.suppress(luna_ext.LockLostError):
                slot.ensure_held()
            raise Objection
        return True

    def queue_up_and_free_the_slot():
        wait_until_queued(slot, 1)
        waiting = call(lambda: hold(luna))
        wait_until_queued(slot, 2)
        holder.leave()
        return waiting

    holder = hold_here(slot)
    logger = logging.getLogger("luna_ext")
    level = logger.level
    logger.setLevel(logging.DEBUG)
    logger.addFilter(object_to)
    freeing = call(queue_up_and_free_the_slot)
    try:
        with pytest.raises(Objection):
            slot.acquire()
    finally:
        logger.removeFilter(object_to)
        logger.setLevel(level)
    freeing.result().result()


def test_a_late_grant_is_told_when_it_is_unlocked(luna, caplog, hold_elsewhere):
    caplog.set_level(logging.DEBUG, "luna_ext")
    holder = hold_elsewhere(1)
    assert luna.slot(1).acquire(timeout=0.05) is False
    holder.release()
    hold_elsewhere(1)
    wait_until(lambda: told(caplog, logging.DEBUG))
    assert told(caplog, logging.DEBUG) == [
        "slot 1: unlocked, for no thread or task waits for the lock any more"
    ]


def test_a_late_grant_that_cannot_be_unlocked_is_an_error_record(
    luna, cluster, caplog, hold_elsewhere
):
    holder = hold_elsewhere(1)
    assert luna.slot(1).acquire(timeout=0.05) is False
    cluster.fault(UNLOCK, GENERAL_ERROR, times=1)
    holder.kill()
    wait_until(lambda: told(caplog, logging.ERROR))
    (record,) = told(caplog, logging.ERROR)
    assert "CKR_GENERAL_ERROR" in record


def wait_in_lock(slot):
    with slot.lock():
        return True


def wait_on_own_thread(slot):
    with slot:
        return True


def wait_in_a_task(slot):
    async def wait():
        async with slot.lock(timeout=60):
            return True

    return asyncio.run(wait())


def wait_for_a_token(luna):
    with luna.claim("cluster-1", timeout=60) as token:
        return token.slot.locked()


def time_out(slot):
    with pytest.raises(luna_ext.LockTimeoutError), slot.lock(timeout=5):
        pass
    return True


def test_a_long_wait_is_warned_of_once(luna, cluster, caplog, hold_elsewhere, call):
    """All ways to wait, at the same time, because each really has to last 5 seconds."""
    holders = [hold_elsewhere(slot_id) for slot_id in (1, 2, 3)]
    cluster.fault("CA_GetUnassignedSlot", 0x6)
    held, release = threading.Event(), threading.Event()

    def hold_here():
        with luna.slot(4), luna.slot(5):
            held.set()
            release.wait(60)

    async def hold_in_a_task():
        async with luna.slot(6).lock():
            await asyncio.to_thread(release.wait, 60)

    holding = call(hold_here)
    assert held.wait(10)
    # A wait that was over at once is none that is still going on.
    not_waiting = call(lambda: asyncio.run(hold_in_a_task()))
    wait_until(luna.slot(6).locked)
    inside_the_device = call(lambda: wait_on_own_thread(luna.slot(3)))
    waiting = [
        call(lambda: wait_in_lock(luna.slot(1))),
        call(lambda: wait_in_a_task(luna.slot(2))),
        call(lambda: wait_on_own_thread(luna.slot(4))),
        call(lambda: wait_for_a_token(luna)),
    ]
    # A wait that ends when it would become long ends with an error, without a record.
    timed_out = call(lambda: time_out(luna.slot(5)))
    wait_until(lambda: len(told(caplog, logging.WARNING)) >= 5)
    texts = told(caplog, logging.WARNING)
    assert all(caller.is_alive() for caller in waiting)
    assert sorted(texts) == [
        "cluster 'cluster-1': still waiting for an unassigned token after 5 s",
        *(
            f"slot {slot_id}: still waiting for the lock after 5 s; another thread, process or "
            "host holds it"
            for slot_id in (1, 2, 3)
        ),
        next(text for text in texts if text.startswith("slot 4: still waiting for the lock")),
    ]
    holder = next(text for text in texts if text.startswith("slot 4: "))
    assert re.search(
        r"the thread 'Thread-\d+.*' of this process holds it, locked in a with", holder
    )
    assert timed_out.result()
    for holder in holders:
        holder.release()
    release.set()
    cluster.fault("CA_GetUnassignedSlot", 0, times=0)
    assert holding.result() is None
    assert not_waiting.result() is None
    assert all(caller.result() for caller in (*waiting, inside_the_device))
    assert told(caplog, logging.WARNING) == texts


@pytest.mark.parametrize("lost", [False, True])
def test_a_failed_or_lost_release_is_an_error_record(luna, cluster, caplog, lost):
    kind = luna_ext.LockLostError if lost else luna_ext.LockReleaseError

    def spoil():
        cluster.fault(UNLOCK, DEVICE_ERROR, times=1)
        if lost:
            for function in ("C_GetTokenInfo", "C_GetSessionInfo"):
                cluster.fault(function, DEVICE_ERROR)

    async def in_task():
        async with luna.slot(1).lock():
            spoil()

    def with_block():
        with luna.slot(1):
            spoil()

    def release():
        luna.slot(1).acquire()
        spoil()
        luna.slot(1).release()

    for way in (with_block, release, lambda: asyncio.run(in_task())):
        caplog.clear()
        with pytest.raises(kind) as caught:
            way()
        assert told(caplog, logging.ERROR) == [str(caught.value)]


def test_a_release_without_the_lock_is_no_error_record(luna, caplog):
    with pytest.raises(luna_ext.LockNotOwnedError):
        luna.slot(1).release()
    assert caplog.records == []


AUDIT = """
import asyncio, logging, os, sys, threading
from luna_ext.stub import STATE_VARIABLE, Cluster
# However slow the machine is, asyncio shall not say so.
logging.getLogger("asyncio").setLevel(logging.ERROR)

events = []
objecting = set()

def hook(event, args):
    if event.startswith("luna_ext."):
        if event in objecting:
            raise PermissionError(event)
        events.append((event, *args))

sys.addaudithook(hook)
cluster = Cluster(os.environ[STATE_VARIABLE])

def take():
    taken = events[:]
    events.clear()
    return taken

def free():
    return all(token.owner is None for token in cluster.tokens())

async def in_task():
    async with luna.slot(3).lock():
        pass
    async with luna.claim("cluster-1"):
        pass

with cluster.library() as luna:
    pair = [("luna_ext.lock", 1), ("luna_ext.unlock", 1)]
    with luna.slot(1):
        pass
    assert take() == pair, events
    luna.slot(1).acquire(timeout=5)
    luna.slot(1).release()
    assert take() == pair, events
    # A thread that is not the main one makes its lock call itself, from its second one on by a shorter way.
    def lock_twice():
        for _ in range(2):
            with luna.slot(1):
                pass
    thread = threading.Thread(target=lock_twice)
    thread.start()
    thread.join()
    assert take() == pair * 2, events
    with luna.claim("cluster-1") as token:
        slot_id = token.slot.slot_id
        token.assign("new", so_pin="12345678")
    assert take() == [
        ("luna_ext.claim", "cluster-1"),
        ("luna_ext.assign", slot_id, "new"),
        ("luna_ext.unlock", slot_id),
    ]
    with luna.token("new") as token:
        token.change_pin("12345678", "87654321", role="so")
    assert take() == [
        ("luna_ext.lock", slot_id),
        ("luna_ext.change_pin", slot_id, "so"),
        ("luna_ext.unlock", slot_id),
    ]
    asyncio.run(in_task())
    task_events = take()
    assert task_events[:3] == [
        ("luna_ext.lock", 3), ("luna_ext.unlock", 3), ("luna_ext.claim", "cluster-1")
    ]
    assert [event for event, *_ in task_events[3:]] == ["luna_ext.unlock"]

    def must_object(event, way):
        before = len(cluster.log())
        objecting.add("luna_ext." + event)
        try:
            way()
        except PermissionError:
            pass
        else:
            raise AssertionError(event)
        finally:
            objecting.clear()
        with luna.slot(1).lock(timeout=10), luna.slot(3).lock(timeout=10):
            pass
        for slot in luna.slots():
            with slot:
                pass
        assert free(), event

    def hold():
        with luna.slot(1):
            pass

    def claim():
        with luna.claim("cluster-1"):
            pass

    def assign():
        with luna.claim("cluster-1") as token:
            token.assign("never", so_pin="12345678")

    for event in ("lock", "unlock"):
        must_object(event, hold)
        must_object(event, lambda: luna.slot(1).acquire(timeout=5) and luna.slot(1).release())
        must_object(event, lambda: asyncio.run(in_task()))
    must_object("claim", claim)
    must_object("claim", lambda: asyncio.run(in_task()))
    must_object("assign", assign)
    assert not any(token.label == "never" for token in cluster.tokens())
print("done")
"""


def test_audit_events(cluster, monkeypatch):
    """In a process of its own: an audit hook cannot be taken off."""
    monkeypatch.setenv(STATE_VARIABLE, cluster.path)
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", AUDIT],
        capture_output=True,
        text=True,
        timeout=45,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


AUDIT_OF_FAILED = """
import asyncio, os, sys
import luna_ext
from luna_ext.stub import STATE_VARIABLE, Cluster

unlocks = []
objects = False

def hook(event, args):
    if event == "luna_ext.unlock":
        unlocks.append(args)
        if objects:
            raise PermissionError(event)

sys.addaudithook(hook)
cluster = Cluster(os.environ[STATE_VARIABLE])

def block(slot):
    with slot:
        pass

def release(slot):
    slot.acquire()
    slot.release()

async def in_task(slot):
    async with slot.lock(timeout=20):
        pass

def not_mine(slot):
    async def leave():
        await slot.lock().__aexit__(None, None, None)
    asyncio.run(leave())

for objects in (False, True):
    for way in (block, release, lambda slot: asyncio.run(in_task(slot))):
        for times in (0, 1):
            with cluster.library() as luna:
                cluster.fault("CA_UnlockClusteredSlot", 0x30, times=times)
                unlocks.clear()
                try:
                    way(luna.slot(1))
                    raised = None
                except Exception as error:
                    raised = type(error)
                assert unlocks == [(1,)], (objects, times, unlocks)
                expected = PermissionError if objects else None
                if times:
                    # What the device has answered matters more than what the hook says.
                    expected = luna_ext.LockReleaseError
                assert raised is expected or (raised is PermissionError and objects), raised
    with cluster.library() as luna:
        unlocks.clear()
        try:
            not_mine(luna.slot(1))
        except luna_ext.LockNotOwnedError:
            pass
        else:
            raise AssertionError("released what is not held")
        assert unlocks == [], unlocks
print("done")
"""


def test_a_release_that_fails_has_one_audit_event(cluster, monkeypatch):
    monkeypatch.setenv(STATE_VARIABLE, cluster.path)
    done = subprocess.run(
        [sys.executable, "-c", AUDIT_OF_FAILED],
        capture_output=True,
        text=True,
        timeout=45,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
