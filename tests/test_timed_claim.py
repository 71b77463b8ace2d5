"""Claims whose caller may stop waiting for them: with a timeout, and with `async with`."""

import asyncio
import contextvars
import os
import signal
import statistics
import threading
import time

import pytest
from support import (
    AGAIN,
    BUSY,
    CLAIM,
    LOCK,
    NO_MORE_THREADS,
    NONE_LEFT,
    UNLOCK,
    assert_stays,
    have_returned,
    let_others_run_until,
    logged,
    nothing_is_locked,
    wait_until,
)

import luna_ext
from luna_ext.stub import Cluster

OPEN_SESSION = "C_OpenSession"

pytestmark = pytest.mark.usefixtures("regrant")


def wait_until_free(cluster):
    """A late grant is unlocked by a worker."""
    wait_until(lambda: nothing_is_locked(cluster), 20)


def wait_until_called(cluster, function):
    wait_until(lambda: logged(cluster, function))


def wait_until_answered(cluster):
    """The claim that was given up comes back, and what it was given is unlocked."""
    cluster.latency(0, CLAIM)
    wait_until(lambda: have_returned(logged(cluster, CLAIM)), 20)
    wait_until_free(cluster)


def enter(claim):
    with claim as token:
        return token.slot.slot_id


async def enter_in_task(claim):
    async with claim as token:
        return token.slot.slot_id


def test_async_with_holds_the_token_for_the_task(luna, cluster, owner_of):
    async def other(token):
        with pytest.raises(luna_ext.LockNotOwnedError):
            token.ensure_held()

    async def main():
        claim = luna.claim("cluster-1")
        async with claim as token:
            assert token.label == f"keyring{token.slot.slot_id}"
            assert owner_of(token.slot.slot_id) == os.getpid()
            # In a context of its own: what the holder starts may rely on the lock.
            await asyncio.create_task(other(token), context=contextvars.Context())
            with pytest.raises(luna_ext.LockReentryError):
                await claim.__aenter__()
            new = token.assign("payments-01", so_pin="12345678")
            new.ensure_held()
        assert owner_of(new.slot.slot_id) is None
        with pytest.raises(luna_ext.LockNotOwnedError):
            await claim.__aexit__(None, None, None)
        async with claim as token:
            assert token.slot is not new.slot

    asyncio.run(main())
    assert nothing_is_locked(cluster)
    assert luna.token("payments-01")


def test_the_end_of_an_async_claim_reports_like_the_end_of_a_lock(luna, cluster):
    async def fail():
        async with luna.claim("cluster-1"):
            raise KeyError

    cluster.fault(UNLOCK, 0x30, times=1)
    with pytest.raises(luna_ext.LockReleaseError):
        asyncio.run(enter_in_task(luna.claim("cluster-1")))
    cluster.fault(UNLOCK, 0x30, times=1)
    with pytest.raises(KeyError) as caught:
        asyncio.run(fail())
    assert "CKR_DEVICE_ERROR" in caught.value.__notes__[0]


def test_async_with_outside_a_task_says_so(luna):
    for lock in (luna.claim("cluster-1"), luna.slot(1).lock()):
        with pytest.raises(RuntimeError, match="asyncio task"):
            lock.__aenter__().send(None)


@pytest.mark.parametrize("way", ["thread", "task"])
def test_a_claim_gives_up_on_time_while_the_device_is_silent(luna, cluster, way):
    cluster.latency(1.5, CLAIM)
    begin = time.monotonic()
    with pytest.raises(luna_ext.LockTimeoutError, match=r"within 0\.1 s") as caught:
        if way == "thread":
            enter(luna.claim("cluster-1", timeout=0.1))
        else:
            asyncio.run(enter_in_task(luna.claim("cluster-1", timeout=0.1)))
    assert 0.1 <= time.monotonic() - begin < 1.4
    assert (caught.value.function, caught.value.timeout) == (CLAIM, 0.1)
    # What the device gives afterwards is unlocked at once.
    wait_until_answered(cluster)
    assert not any(slot.locked() for slot in luna.slots())


@pytest.mark.parametrize("way", ["thread", "task"])
def test_a_claim_that_was_told_that_none_is_left_says_that(luna, cluster, way):
    cluster.fault(CLAIM, NONE_LEFT)
    with pytest.raises(luna_ext.NoUnassignedTokenError, match=r"none became free within 0\.05 s"):
        if way == "thread":
            enter(luna.claim("cluster-1", timeout=0.05))
        else:
            asyncio.run(enter_in_task(luna.claim("cluster-1", timeout=0.05)))


@pytest.mark.parametrize("way", ["thread", "task"])
def test_a_claim_that_is_used_again_forgets_what_the_device_has_said_before(luna, cluster, way):
    claim = luna.claim("cluster-1", timeout=0.1)

    def use():
        enter(claim) if way == "thread" else asyncio.run(enter_in_task(claim))

    cluster.fault(CLAIM, NONE_LEFT)
    with pytest.raises(luna_ext.NoUnassignedTokenError):
        use()
    cluster.fault(CLAIM, NONE_LEFT, times=0)
    cluster.latency(1.5, CLAIM)
    with pytest.raises(luna_ext.LockTimeoutError):
        use()
    wait_until_answered(cluster)


@pytest.mark.parametrize("timeout", [0, 10])
@pytest.mark.parametrize("way", ["thread", "task"])
def test_a_claim_waits_for_a_token_to_become_free(luna, cluster, way, timeout):
    cluster.fault(CLAIM, NONE_LEFT, times=3)
    claim = luna.claim("cluster-1", timeout=timeout)
    if timeout == 0:
        with pytest.raises(luna_ext.NoUnassignedTokenError):
            enter(claim) if way == "thread" else asyncio.run(enter_in_task(claim))
    else:
        assert enter(claim) if way == "thread" else asyncio.run(enter_in_task(claim))
    assert nothing_is_locked(cluster)


@pytest.mark.parametrize("timeout", [0, 10])
@pytest.mark.parametrize("code", [AGAIN, BUSY])
@pytest.mark.parametrize("way", ["thread", "task"])
def test_a_busy_device_is_asked_for_a_token_again(luna, cluster, way, code, timeout):
    cluster.fault(CLAIM, code, times=2)
    claim = luna.claim("cluster-1", timeout=timeout)
    assert enter(claim) if way == "thread" else asyncio.run(enter_in_task(claim))


@pytest.mark.parametrize("timeout", [0, 0.05])
@pytest.mark.parametrize("way", ["thread", "task"])
def test_a_device_that_stays_busy_is_an_error(luna, cluster, way, timeout):
    cluster.fault(CLAIM, BUSY)
    claim = luna.claim("cluster-1", timeout=timeout)
    with pytest.raises(luna_ext.DeviceError) as caught:
        enter(claim) if way == "thread" else asyncio.run(enter_in_task(claim))
    assert caught.value.rv == BUSY


def test_the_device_is_asked_until_the_time_is_up(luna, cluster):
    """The last pauses are short: half of what is left. A busy machine draws out some of them."""
    cluster.fault(CLAIM, NONE_LEFT)

    def last_pause():
        before = len(logged(cluster, CLAIM))
        with pytest.raises(luna_ext.NoUnassignedTokenError):
            enter(luna.claim("cluster-1", timeout=0.6))
        *_, one, another = logged(cluster, CLAIM)[before:]
        return another.time - one.time

    assert any(statistics.median(last_pause() for _ in range(5)) < 0.03 for _ in range(4))


def test_many_tasks_claim_with_few_threads(luna, cluster):
    cluster.latency(0.01, CLAIM)
    most = 0

    async def claim():
        nonlocal most
        async with luna.claim("cluster-1", timeout=60):
            most = max(most, len(os.listdir("/proc/self/task")))

    async def main():
        await asyncio.gather(*(claim() for _ in range(200)))

    before = len(os.listdir("/proc/self/task"))
    asyncio.run(main())
    assert most <= before + 30
    assert nothing_is_locked(cluster)


def test_a_cancelled_claim_leaks_nothing(luna, cluster):
    cluster.latency(0.2, CLAIM)

    async def main():
        task = asyncio.create_task(enter_in_task(luna.claim("cluster-1")))
        await let_others_run_until(lambda: logged(cluster, CLAIM))
        task.cancel()
        with pytest.raises(asyncio.CancelledError) as raised:
            await task
        # What was raised keeps the task's frames, while the loop goes on.
        await let_others_run_until(lambda: have_returned(logged(cluster, CLAIM)))
        await let_others_run_until(lambda: nothing_is_locked(cluster))
        assert raised.value.__traceback__ is not None

    asyncio.run(main())


def test_a_claim_of_a_loop_that_is_gone_is_given_back(luna, cluster):
    cluster.latency(0.2, CLAIM)

    async def main():
        task = asyncio.create_task(enter_in_task(luna.claim("cluster-1")))
        await let_others_run_until(lambda: logged(cluster, CLAIM))
        return task

    loop = asyncio.new_event_loop()
    task = loop.run_until_complete(main())
    loop.close()
    wait_until_answered(cluster)
    task._log_destroy_pending = False


def test_a_token_that_a_task_has_seen_at_the_end_of_its_time_stays_its_own(luna, cluster):
    """The worker, which then comes to wake the task, must not take it for one that is gone."""
    cluster.latency(0.5, OPEN_SESSION)

    async def main():
        async with luna.claim("cluster-1", timeout=0.2) as token:
            assert not have_returned(logged(cluster, OPEN_SESSION)), "the machine is too slow"
            await let_others_run_until(lambda: have_returned(logged(cluster, OPEN_SESSION)))
            cluster.latency(0, OPEN_SESSION)
            with pytest.raises(AssertionError):
                await let_others_run_until(lambda: not token.slot.locked(), 0.2)

    asyncio.run(main())
    assert nothing_is_locked(cluster)


def test_a_claim_that_is_cancelled_before_its_turn_asks_nothing(luna, cluster):
    """So many claims at a time are given to threads, and the next one waits."""
    # A claim that comes back with what another one holds would ask again.
    cluster.switch("regrant", "off")
    cluster.latency(0.3, CLAIM)
    at_once = 16

    async def main():
        claims = [luna.claim("cluster-1") for _ in range(at_once + 1)]
        tasks = [asyncio.create_task(enter_in_task(claim)) for claim in claims]
        await let_others_run_until(lambda: len(logged(cluster, CLAIM)) == at_once)
        tasks[-1].cancel()
        await asyncio.wait(tasks)
        assert tasks[-1].cancelled()
        # There are fewer tokens than claims.
        outcomes = {type(task.exception()) for task in tasks[:-1]}
        assert outcomes <= {type(None), luna_ext.NoUnassignedTokenError}

    asyncio.run(main())
    # It would be asked for before one that begins now.
    enter(luna.claim("cluster-1"))
    assert len(logged(cluster, CLAIM)) == at_once + 1


def test_claims_work_again_after_many_that_got_no_thread(succeed):
    body = f"""
        {NO_MORE_THREADS}
        for _ in range(20):
            try:
                luna.claim("cluster-1", timeout=1).__enter__()
            except RuntimeError as error:
                refusal = error
        threading.stack_size(0)
        with luna.claim("cluster-1", timeout=20):
            print(refusal)
        luna.close()
    """
    assert " ".join(succeed(body)) == "can't start new thread"


@pytest.mark.signals
def test_ctrl_c_ends_a_timed_claim_while_the_device_is_silent(luna, cluster):
    cluster.latency(3, CLAIM)

    def interrupt(number, frame):
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        begin = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            enter(luna.claim("cluster-1", timeout=60))
    finally:
        signal.signal(signal.SIGALRM, previous)
    assert time.monotonic() - begin < 2.5
    wait_until_answered(cluster)


def test_a_claim_that_is_given_up_before_the_library_is_ready_asks_nothing(
    luna, cluster, call, wait_until_inside
):
    cluster.latency(1, "C_Initialize")
    reconnecting = call(luna.reconnect)
    wait_until_inside("C_Initialize")
    with pytest.raises(luna_ext.LockTimeoutError):
        enter(luna.claim("cluster-1", timeout=0.2))
    reconnecting.result(30)
    enter(luna.claim("cluster-1", timeout=20))
    assert_stays(lambda: len(logged(cluster, CLAIM)) == 1)
    assert nothing_is_locked(cluster)


def test_close_does_not_wait_for_a_claim_that_was_given_up(cluster):
    cluster.latency(2, CLAIM)
    luna = cluster.library()
    with pytest.raises(luna_ext.LockTimeoutError):
        enter(luna.claim("cluster-1", timeout=0.05))
    begin = time.monotonic()
    luna.close()
    assert time.monotonic() - begin < 1.5
    wait_until_called(cluster, "C_Finalize")
    assert nothing_is_locked(cluster)


def test_close_ends_claims_that_wait(cluster, call):
    cluster.fault(CLAIM, NONE_LEFT)
    luna = cluster.library()
    waiting = call(lambda: enter(luna.claim("cluster-1", timeout=60)))
    wait_until_called(cluster, CLAIM)
    luna.close()
    with pytest.raises(luna_ext.LibraryClosedError):
        waiting.result()


@pytest.mark.parametrize("way", ["thread", "timed", "task"])
def test_a_claim_of_a_library_that_was_closed_before_its_block_asks_nothing(luna, cluster, way):
    """Though another Library is open, so that the device could be asked."""
    closed = cluster.library()
    claim = closed.claim("cluster-1", timeout=10 if way == "timed" else 0)
    closed.close()
    with pytest.raises(luna_ext.LibraryClosedError):
        asyncio.run(enter_in_task(claim)) if way == "task" else enter(claim)
    assert logged(cluster, CLAIM) == []
    assert enter(luna.claim("cluster-1"))


def test_timed_claims_and_locks_of_the_same_slots_never_share_one(call):
    holders: dict[int, int] = {}
    clashes = []

    def hold(slot):
        me = threading.get_ident()
        if holders.setdefault(slot.slot_id, me) != me:
            clashes.append(slot.slot_id)
        os.sched_yield()
        if holders.pop(slot.slot_id, None) != me:
            clashes.append(slot.slot_id)

    with Cluster(keyrings=3) as cluster, cluster.library() as luna:

        def claim():
            for turn in range(100):
                try:
                    with luna.claim("cluster-1", timeout=0.001 if turn % 3 else 60) as token:
                        hold(token.slot)
                except (luna_ext.NoUnassignedTokenError, luna_ext.LockTimeoutError):
                    pass

        def lock():
            for turn in range(300):
                with luna.slot(1 + turn % 3).lock(timeout=60) as slot:
                    hold(slot)

        for caller in [call(claim), call(claim), call(lock), call(lock)]:
            caller.result(60)
        wait_until_free(cluster)
    assert clashes == []


@pytest.mark.luna_cluster(keyrings=1)
@pytest.mark.parametrize("way", ["thread", "task"])
def test_a_claim_that_gave_up_is_not_in_the_way_of_a_lock(
    luna, cluster, way, hold_here, call, wait_until_inside
):
    """It may still be at work: an unlock has crossed it, and a lock call is to make sure of it."""
    slot = luna.slot(1)
    holder = hold_here(slot)
    cluster.latency(0.3, CLAIM)

    def cross():
        wait_until_inside(CLAIM)
        holder.leave()
        cluster.latency(1.5, LOCK)
        wait_until_inside(LOCK)

    crossing = call(cross)
    claim = luna.claim("cluster-1", timeout=1.0)

    async def claim_and_lock():
        with pytest.raises(luna_ext.LockTimeoutError):
            await enter_in_task(claim)
        async with slot.lock(timeout=20):
            slot.ensure_held()

    if way == "thread":
        with pytest.raises(luna_ext.LockTimeoutError):
            enter(claim)
        with slot.lock(timeout=20):
            slot.ensure_held()
    else:
        asyncio.run(claim_and_lock())
    crossing.result()
    wait_until_free(cluster)


@pytest.mark.luna_cluster(keyrings=1)
@pytest.mark.parametrize("relock", ["granted", "wait", "error"])
def test_a_lock_call_is_answered_before_a_late_claim_of_its_slot_is_unlocked(succeed, relock):
    """Only then does the answer show the kind of the device, in a process that does not know it yet."""
    body = f"""
        cluster.switch("relock", {relock!r})
        polling = cluster.library(contention="poll")
        cluster.latency(0.6, "CA_LockClusteredSlot")
        cluster.latency(0.3, "CA_GetUnassignedSlot", after=True)

        def lock():
            with polling.slot(1):
                assert [token.owner for token in cluster.tokens()] == [os.getpid()]

        locking = in_thread(lock)
        wait_until_inside("CA_LockClusteredSlot")
        try:
            with luna.claim("cluster-1", timeout=0.1):
                print("claimed")
        except luna_ext.LockTimeoutError:
            print("late")
        cluster.latency(0, "CA_LockClusteredSlot")
        locking.join(20)
        print("stuck" if locking.is_alive() else "locked")
        sys.stdout.flush()
        if locking.is_alive():
            os._exit(0)
        wait_until(lambda: all(token.owner is None for token in cluster.tokens()))
        polling.close()
        luna.close()
    """
    assert succeed(body) == ["late", "locked"]
