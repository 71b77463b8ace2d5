"""Where a lock could leak, be held twice, or be believed held."""

import asyncio
import contextlib
import ctypes
import gc
import os
import signal
import sys
import threading
import types

import pytest

import luna_ext
from luna_ext.stub import library_path

LOCK = "CA_LockClusteredSlot"
UNLOCK = "CA_UnlockClusteredSlot"
CLAIM = "CA_GetUnassignedSlot"


class Interruption(Exception):
    """What a signal handler of these tests raises."""


@pytest.fixture
def somebody_else_initialises(cluster):
    """Another user of the client library in this process, so that close() finalises nothing."""
    client = ctypes.CDLL(library_path())
    assert client.C_Initialize(None) == 0
    yield
    assert client.C_Finalize(None) == 0


def free(cluster):
    return all(token.owner is None for token in cluster.tokens())


def test_a_lock_call_that_close_overtakes_is_no_success(cluster, call):
    cluster.latency(0.1, LOCK)
    luna = cluster.library()
    slot = luna.slot(1)
    waiting = call(slot.acquire)
    while luna.stats()["C_Initialize"].calls and not is_busy(slot):
        os.sched_yield()
    luna.close()
    with pytest.raises(luna_ext.LibraryClosedError):
        waiting.result()
    assert not slot.locked()
    assert free(cluster)


def is_busy(slot):
    """Whether a lock call is under way: then nobody can have the lock without waiting."""
    return slot.acquire(False) is False or bool(slot.release())


@pytest.mark.usefixtures("somebody_else_initialises")
def test_what_close_overtakes_is_unlocked_without_a_finalize(cluster, hold_elsewhere, call):
    holder = hold_elsewhere(1)
    luna = cluster.library()
    assert luna.slot(1).acquire(timeout=0.05) is False
    closing = call(luna.close)
    holder.release()
    closing.result()
    # Another process gets it, so the late grant has been given back.
    hold_elsewhere(1).release()

    luna = cluster.library()
    cluster.latency(0.1, CLAIM)
    entered = threading.Event()

    def claim():
        entered.set()
        with luna.claim("cluster-1"):
            pass

    claiming = call(claim)
    assert entered.wait(10)
    luna.close()
    with pytest.raises(luna_ext.LibraryClosedError):
        claiming.result()
    assert free(cluster)


def test_held_locks_are_on_the_device_whatever_is_claimed_and_locked(luna, cluster, call, owner_of):
    stop = threading.Event()
    lost = []

    def check(slot):
        if owner_of(slot.slot_id) != os.getpid():
            lost.append(slot)

    def lock(first):
        turn = first
        while not stop.is_set():
            turn += 1
            with luna.slot(1 + turn % 3) as slot:
                if turn % 2:
                    check(slot)

    def claim():
        for _ in range(300):
            with luna.claim("cluster-1", timeout=10) as token:
                check(token.slot)

    others = [call(lambda first=first: lock(first)) for first in range(3)]
    claimers = [call(claim) for _ in range(2)]
    try:
        for caller in claimers:
            caller.result(60)
    finally:
        stop.set()
        for caller in others:
            caller.result()
    assert lost == []
    assert free(cluster)


@pytest.mark.parametrize("relock", ["wait", "error"])
def test_a_claim_and_a_lock_call_for_one_slot(cluster, call, owner_of, relock):
    cluster.switch("relock", relock)
    contention = "poll" if relock == "error" else "block"
    with cluster.library(contention=contention) as luna:
        with luna.claim("cluster-1") as token:
            slot = token.slot

            def lock():
                with slot:
                    return owner_of(slot.slot_id)

            waiting = call(lock)
            assert owner_of(slot.slot_id) == os.getpid()
        assert waiting.result() == os.getpid()
        assert free(cluster)


def test_a_claims_block_is_entered_once_and_left_once(luna, cluster, call):
    claim = luna.claim("cluster-1")
    with pytest.raises(luna_ext.LockNotOwnedError):
        claim.__exit__(None, None, None)
    cluster.latency(0.1, CLAIM)
    barrier = threading.Barrier(2)

    def enter():
        barrier.wait(10)
        return claim.__enter__()

    outcomes = []
    for caller in [call(enter), call(enter)]:
        try:
            outcomes.append(caller.result())
        except luna_ext.LockReentryError:
            outcomes.append(None)
    assert outcomes.count(None) == 1
    held = [token for token in cluster.tokens() if token.owner is not None]
    assert len(held) == 1
    with pytest.raises(luna_ext.LockNotOwnedError):
        claim.__exit__(None, None, None)
    with pytest.warns(ResourceWarning):
        luna.close()


def test_a_thread_that_holds_cannot_wait_in_a_task(luna):
    async def main():
        with luna.slot(1):
            async with luna.slot(1).lock():
                pass

    with pytest.raises(luna_ext.LockReentryError):
        asyncio.run(main())
    assert not luna.slot(1).locked()


@pytest.mark.usefixtures("luna")  # stays open, so that the assignment's calls still go through
def test_close_unlocks_a_claim_after_its_assignment(cluster, call, wait_until_inside):
    mine = cluster.library()
    cluster.latency(0.2, "C_InitToken")
    claimed = []

    def assign():
        with mine.claim("cluster-1") as token:
            claimed.append(token.slot.slot_id)
            token.assign("new", so_pin="12345678")

    assigning = call(assign)
    wait_until_inside("C_InitToken")
    with pytest.warns(ResourceWarning, match="still locked"):
        mine.close()
    while True:
        (token,) = (token for token in cluster.tokens() if token.slot_id in claimed)
        if token.owner is None:
            break
    assert token.label == "new"
    with pytest.raises(luna_ext.LockLostError):
        assigning.result()


def test_an_error_that_does_not_mean_a_lost_connection_loses_nothing(luna, cluster, owner_of):
    cluster.fault("C_GetTokenInfo", 0x2, times=1)
    with luna.slot(1):
        with pytest.raises(luna_ext.CryptokiError, match="CKR_HOST_MEMORY"):
            luna.slot(1).ensure_held()
        luna.slot(1).ensure_held()
    assert owner_of(1) is None


def test_a_pin_that_is_no_text_leaves_no_trace(luna):
    with luna.claim("cluster-1") as token, pytest.raises(ValueError, match="so_pin") as caught:
        token.assign("new", so_pin="\udc80 never shown")
    assert caught.value.__context__ is None
    assert caught.value.__cause__ is None


def test_a_coroutine_that_is_closed_releases(luna, owner_of):
    slot = luna.slot(1)

    async def hold():
        async with slot.lock():
            await asyncio.Event().wait()

    async def main():
        task = asyncio.create_task(coroutine)
        while not slot.locked():
            await asyncio.sleep(0)
        return task

    coroutine = hold()
    loop = asyncio.new_event_loop()
    task = loop.run_until_complete(main())
    loop.close()
    coroutine.close()
    with slot.lock(timeout=10):
        assert owner_of(1) == os.getpid()
    task._log_destroy_pending = False


def test_an_async_generator_that_is_left_releases(luna):
    slot = luna.slot(1)

    async def holding():
        async with slot.lock():
            yield 1
            yield 2

    async def main():
        async for _ in holding():
            break
        gc.collect()
        await asyncio.sleep(0)

    asyncio.run(main())
    assert slot.acquire(timeout=10)
    slot.release()


def test_a_fork_inside_async_with(luna, owner_of):
    slot = luna.slot(1)

    async def main():
        lock = slot.lock()
        async with lock:
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    run = lock.__aexit__(None, None, None).__await__()
                    try:
                        run.send(None)
                    except StopIteration:
                        code = 0 if owner_of(1) == os.getppid() and not slot.locked() else 2
                finally:
                    os._exit(code)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            slot.ensure_held()

    asyncio.run(main())
    assert owner_of(1) is None


@pytest.mark.signals
def test_signals_at_any_moment_leak_nothing_and_hit_nobody_else(luna, cluster, call, owner_of):
    """A handler that raises, twice in short succession, while other threads use the same slot."""
    slot = luna.slot(1)
    stop = threading.Event()
    left = 0

    def others():
        count = 0
        while not stop.is_set():
            with slot.lock(timeout=30):
                count += 1
        return count

    def interrupt(number, frame):
        nonlocal left
        if left:
            left -= 1
            raise Interruption

    def be_interrupted_twice():
        nonlocal left
        try:
            # In here, so that no interruption can come before somebody catches it.
            left = 2
            while left:
                with slot.lock(timeout=30):
                    pass
        except Interruption:
            while left:
                pass

    threads = [call(others) for _ in range(2)]
    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0007)
    try:
        for _ in range(300):
            # Two levels, for the second may come while the first is being caught.
            with contextlib.suppress(Interruption):
                be_interrupted_twice()
    finally:
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        stop.set()
    assert left == 0
    assert all(caller.result(30) > 0 for caller in threads)
    with slot.lock(timeout=10):
        assert owner_of(1) == os.getpid()
    assert free(cluster)


def test_objects_that_no_library_made_are_not_to_be_had():
    for kind in (luna_ext.ClusterSlot, luna_ext.SlotLock, luna_ext.Token, luna_ext.Claim):
        with pytest.raises(TypeError):
            kind.__new__(kind)
        with pytest.raises(TypeError):
            object.__new__(kind)


def test_a_lock_taken_through_one_library_is_not_released_through_another(luna, owner_of, cluster):
    with cluster.library() as other, luna.slot(1):
        with pytest.raises(luna_ext.LockNotOwnedError, match="another Library"):
            other.slot(1).release()
        assert owner_of(1) == os.getpid()


def test_a_holder_whose_library_was_closed_hears_of_it_every_time(cluster):
    luna = cluster.library()
    slot = luna.slot(1)
    slot.acquire()
    with pytest.warns(ResourceWarning):
        luna.close()
    with cluster.library() as again, again.slot(1):
        for _ in range(2):
            with pytest.raises(luna_ext.LockLostError):
                slot.release()
        with pytest.raises(luna_ext.LockLostError):
            slot.ensure_held()
        again.slot(1).ensure_held()


def test_a_block_that_does_not_hold_cannot_release(luna, call, owner_of):
    slot = luna.slot(1)
    entered, leave = threading.Event(), threading.Event()

    def hold():
        with slot:
            entered.set()
            leave.wait(10)

    async def main():
        lock = slot.lock()
        async with lock:
            with pytest.raises(luna_ext.LockNotOwnedError):
                await slot.lock().__aexit__(None, None, None)
            slot.ensure_held()
        with pytest.raises(luna_ext.LockNotOwnedError):
            await lock.__aexit__(None, None, None)
        holder = call(hold)
        assert entered.wait(10)
        with pytest.raises(luna_ext.LockNotOwnedError):
            await lock.__aexit__(None, None, None)
        assert owner_of(1) == os.getpid()
        leave.set()
        holder.result()

    asyncio.run(main())
    with pytest.raises(luna_ext.LockNotOwnedError):
        slot.lock().__exit__(None, None, None)


def test_a_thread_does_not_wait_behind_tasks_of_its_own_loop(luna, hold_elsewhere):
    slot = luna.slot(1)
    holder = hold_elsewhere(1)

    async def wait():
        async with slot.lock():
            return "held"

    async def main():
        waiting = asyncio.create_task(wait())
        await asyncio.sleep(0)
        with pytest.raises(luna_ext.LockReentryError, match="event loop"), slot:
            pass
        holder.release()
        return await waiting

    assert asyncio.run(main()) == "held"


@pytest.mark.signals
def test_a_signal_handler_may_use_another_slot_after_a_failed_claim(luna, cluster, owner_of):
    cluster.fault(CLAIM, 0x30, times=1)
    cluster.latency(0.1, CLAIM)
    used = []

    def use_another(number, frame):
        with luna.slot(2):
            used.append(owner_of(2))

    previous = signal.signal(signal.SIGALRM, use_another)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(luna_ext.DeviceError), luna.claim("cluster-1"):
            pass
    finally:
        signal.signal(signal.SIGALRM, previous)
    assert used == [os.getpid()]


@pytest.mark.signals
def test_a_signal_handler_may_close_the_library(cluster, hold_elsewhere):
    cluster.switch("contention", "error")
    hold_elsewhere(1)
    luna = cluster.library(contention="poll")
    previous = signal.signal(signal.SIGALRM, lambda *_: luna.close())
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(luna_ext.LibraryClosedError), luna.slot(1):
            pass
    finally:
        signal.signal(signal.SIGALRM, previous)
    assert luna.closed


def test_a_release_does_not_wait_for_a_slow_claim(luna, cluster, call, owner_of):
    """The claim may have been given the same slot; the unlock is made once that is known."""
    cluster.latency(2, CLAIM)
    asking = threading.Event()

    def claim():
        asking.set()
        return luna.claim("cluster-1").__enter__()

    claiming = call(claim)
    assert asking.wait(10)
    for slot_id in range(1, 4):
        with luna.slot(slot_id):
            pass
    assert claiming.is_alive()
    token = claiming.result()
    assert owner_of(token.slot.slot_id) == os.getpid()
    with pytest.warns(ResourceWarning):
        luna.close()
    assert free(cluster)


def test_a_lock_while_another_thread_imports_asyncio(luna, monkeypatch, owner_of):
    """A module is in sys.modules before it has any of its names."""
    monkeypatch.setitem(sys.modules, "asyncio", types.ModuleType("asyncio"))
    with luna.slot(1).lock(timeout=10):
        assert owner_of(1) == os.getpid()
