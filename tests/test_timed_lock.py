"""Timeouts, and locks that another process holds; `slot.lock()` with `with`."""

import _thread
import gc
import os
import sys
import textwrap
import threading
import time
import types

import pytest
from support import (
    AGAIN,
    CLAIM,
    DEVICE_ERROR,
    LOCK,
    NO_MORE_THREADS,
    UNLOCK,
    logged,
    nothing_is_locked,
    wait_until,
)

import luna_ext


def test_lock_gives_the_slot_and_holds_it(luna, owner_of):
    slot = luna.slot(1)
    lock = slot.lock(timeout=5)
    for _ in range(2):
        with lock as entered:
            assert entered is slot
            assert owner_of(1) == os.getpid()
            slot.ensure_held()
        assert owner_of(1) is None


def test_lock_does_nothing_before_the_with(luna, calls_of):
    luna.slot(1).lock(timeout=5)
    assert calls_of(LOCK) == 0


def test_timeout_is_kept_while_the_device_call_blocks(luna, hold_elsewhere, owner_of):
    holder = hold_elsewhere(1)
    slot = luna.slot(1)
    begin = time.monotonic()
    with pytest.raises(luna_ext.LockTimeoutError) as caught, slot.lock(timeout=0.1):
        pass
    assert 0.1 <= time.monotonic() - begin < 5
    assert isinstance(caught.value, TimeoutError)
    assert (caught.value.slot_id, caught.value.timeout) == (1, 0.1)
    assert "another process or host holds it, or the device does not answer" in str(caught.value)
    assert slot.acquire(timeout=0.1) is False
    assert slot.acquire(blocking=False) is False
    assert owner_of(1) == holder.pid


def test_a_late_grant_is_unlocked_at_once(luna, hold_elsewhere, owner_of, calls_of):
    holder = hold_elsewhere(1)
    slot = luna.slot(1)
    assert slot.acquire(timeout=0.05) is False
    holder.release()
    # The call that was left behind is granted now; a further one of this process would be
    # granted by the device as well, so another process has to look.
    again = hold_elsewhere(1)
    assert owner_of(1) == again.pid
    assert not slot.locked()
    assert calls_of(LOCK) == calls_of(UNLOCK) == 1


def test_a_late_grant_goes_to_the_next_waiter(luna, hold_elsewhere, call, owner_of, calls_of):
    holder = hold_elsewhere(1)
    slot = luna.slot(1)
    assert slot.acquire(timeout=0.05) is False

    def wait_and_work():
        with slot:
            return owner_of(1), calls_of(LOCK)

    waiting = call(wait_and_work)
    assert slot.acquire(timeout=0.05) is False
    holder.release()
    assert waiting.result() == (os.getpid(), 1)
    assert owner_of(1) is None


def test_timed_and_plain_waiters_get_their_turns_in_order(luna, call, wait_until_queued):
    slot = luna.slot(1)
    order = []

    def plain(name):
        with slot:
            order.append(name)

    def timed(name):
        with slot.lock(timeout=30):
            order.append(name)

    with slot:
        waiting = []
        for name in range(6):
            waiting.append(call(lambda name=name: (plain if name % 2 else timed)(name)))
            wait_until_queued(slot, name + 1)
    for caller in waiting:
        caller.result()
    assert order == list(range(6))


def test_a_killed_holder_frees_the_lock(luna, hold_elsewhere, owner_of):
    holder = hold_elsewhere(1)
    assert owner_of(1) == holder.pid
    holder.kill()
    with luna.slot(1).lock(timeout=1):
        assert owner_of(1) == os.getpid()


def test_timeout_zero_asks_once(luna, hold_elsewhere):
    with luna.slot(1).lock(timeout=0):
        pass
    hold_elsewhere(1)
    with pytest.raises(luna_ext.LockTimeoutError), luna.slot(1).lock(timeout=0):
        pass


def test_close_does_not_wait_for_the_call_that_was_left_behind(cluster, hold_elsewhere):
    holder = hold_elsewhere(1)
    with (
        pytest.raises(luna_ext.LockTimeoutError),
        cluster.library() as luna,
        luna.slot(1).lock(timeout=0.05),
    ):
        pass
    assert luna.closed
    finalized = luna.stats().get("C_Finalize", luna_ext.FunctionStats()).calls
    holder.release()
    # Its late grant was given back before the client was finalised; a new Library waits for that.
    assert hold_elsewhere(1).pid
    with cluster.library() as again:
        assert again.stats()["C_Finalize"].calls == finalized + 1


def test_timeout_zero_does_not_wait_for_a_thread_of_this_process(luna, call, calls_of):
    with luna.slot(1):
        before = calls_of(LOCK)
        with pytest.raises(luna_ext.LockReentryError), luna.slot(1).lock(timeout=0):
            pass
        holder = r"at once: the thread 'MainThread' of this process holds it, locked in a with"
        with pytest.raises(luna_ext.LockTimeoutError, match=holder) as caught:
            call(luna.slot(1).lock(timeout=0).__enter__).result()
        assert caught.value.timeout == 0
        assert calls_of(LOCK) == before


def test_the_error_of_a_call_that_was_given_up_is_no_other_waiters(
    cluster, luna, call, wait_until_queued
):
    slot = luna.slot(1)
    cluster.latency(0.6, LOCK)
    cluster.fault(LOCK, DEVICE_ERROR, times=1)
    timed = call(lambda: slot.acquire(timeout=0.3))
    wait_until_queued(slot, 1)

    def use():
        with slot:
            return True

    plain = call(use)
    assert timed.result() is False
    assert plain.result() is True


def test_a_late_grant_is_unlocked_though_the_device_is_busy(
    luna, cluster, hold_elsewhere, call, wait_until_inside
):
    holder = hold_elsewhere(1)
    waiting = call(lambda: luna.slot(1).acquire(timeout=0.5))
    wait_until_inside(LOCK)
    assert waiting.result() is False
    cluster.fault(UNLOCK, AGAIN, times=2)
    # Its own unlock would meet the fault as well.
    holder.kill()
    wait_until(lambda: [entry.rv for entry in logged(cluster, UNLOCK)] == [AGAIN, AGAIN, 0])
    wait_until(lambda: nothing_is_locked(cluster))


def test_a_device_that_stays_busy_is_asked_less_and_less_often(luna, cluster, calls_of):
    """It would be asked more than 40 times if the pauses stayed as short as the first one."""
    cluster.fault(LOCK, AGAIN)
    assert luna.slot(1).acquire(timeout=0.7) is False
    assert calls_of(LOCK) < 30


def test_a_waiter_that_comes_while_a_late_grant_is_taken_off_gets_the_lock(
    luna, cluster, hold_elsewhere, call, wait_until_inside
):
    holder, slot = hold_elsewhere(1), luna.slot(1)
    assert slot.acquire(timeout=0.05) is False
    cluster.latency(2, UNLOCK)
    # Its own unlock would meet the latency as well.
    holder.kill()
    wait_until_inside(UNLOCK)
    waiting = call(lambda: slot.acquire(timeout=20) and slot.release())
    cluster.latency(0, UNLOCK)
    waiting.result()


def test_a_worker_in_a_call_that_was_given_up_gets_no_other_call_to_make(luna, hold_elsewhere):
    hold_elsewhere(1)
    assert luna.slot(1).acquire(timeout=0.05) is False
    assert luna.slot(2).acquire(timeout=20) is True
    luna.slot(2).release()


def test_a_timeout_that_is_longer_than_the_wait_that_is_warned_of_is_kept(luna, hold_elsewhere):
    hold_elsewhere(1)
    begin = time.monotonic()
    assert luna.slot(1).acquire(timeout=5.3) is False
    assert 5.3 <= time.monotonic() - begin < 6.5


NEEDS_A_THREAD = {
    "acquire": "assert slot.acquire(timeout=20)\nslot.release()",
    "lock": "plainly(slot.lock(timeout=20))",
    "async lock": "asyncio.run(enter(slot.lock()))",
    "token": "plainly(luna.token('keyring1').lock(timeout=20))",
    "claim": "plainly(luna.claim('cluster-1', timeout=20))",
    "async claim": "asyncio.run(enter(luna.claim('cluster-1')))",
    "tokens": "luna.tokens()",
}


@pytest.mark.parametrize("kind", NEEDS_A_THREAD)
def test_without_a_thread_nothing_is_locked(cluster, succeed, kind):
    program = f"""
import asyncio

async def enter(lock):
    async with lock:
        pass

def plainly(lock):
    with lock:
        pass

def use():
{textwrap.indent(NEEDS_A_THREAD[kind], "    ")}

{NO_MORE_THREADS}
try:
    use()
except RuntimeError as error:
    print(error)
assert all(token.owner is None for token in cluster.tokens())
with slot, luna.slot(2):
    pass
threading.stack_size(0)
use()
"""
    assert " ".join(succeed(program)) == "can't start new thread"


def test_a_task_that_gets_no_thread_for_its_lock_call_keeps_no_close_waiting(succeed):
    body = f"""
        import asyncio

        async def enter():
            async with slot.lock():
                pass

        def use():
            with slot:
                pass

        # Not by the main thread, for which a worker would make the call, and be there for the task.
        in_thread(use).join()
        {NO_MORE_THREADS}
        try:
            asyncio.run(enter())
        except RuntimeError as error:
            print(error)
        luna.close()
    """
    assert " ".join(succeed(body)) == "can't start new thread"


def test_a_waiter_without_a_worker_thread_does_not_block_the_next_one(succeed, owner_of):
    program = f"""
said = []

def timed():
    try:
        with slot.lock(timeout=30):
            pass
    except RuntimeError as error:
        said.append(str(error))

def plain():
    with slot:
        said.append("and yet locked")

# Not by the main thread, for which a worker would make the call, and be there for the next one.
leave = threading.Event()

def hold():
    with slot:
        leave.wait()

holder = in_thread(hold)
wait_until(slot.locked)
first = in_thread(timed)
wait_until(lambda: "1 waiting" in repr(slot))
second = in_thread(plain)
wait_until(lambda: "2 waiting" in repr(slot))
{NO_MORE_THREADS}
leave.set()
holder.join()
first.join()
second.join()
print(*sorted(said, reverse=True))
"""
    assert " ".join(succeed(program)) == "can't start new thread and yet locked"
    assert owner_of(1) is None


def test_a_release_that_gets_no_thread_is_made_at_once(succeed):
    """Also beside a claim, whose end a worker may wait for."""
    body = f"""
        def owner(slot_id):
            return {{token.slot_id: token.owner for token in cluster.tokens()}}[slot_id]

        def claim():
            luna.claim("cluster-1").__enter__()
            claimed.set()
            threading.Event().wait()

        claimed = threading.Event()
        cluster.latency(0.5, {CLAIM!r})
        in_thread(claim)
        wait_until_inside({CLAIM!r})
        with luna.slot(5):
            {NO_MORE_THREADS}
        assert claimed.wait(20)
        wait_until(lambda: owner(5) is None)
        print("free", flush=True)
        os._exit(0)
    """
    assert succeed(body) == ["free"]


def test_a_thread_that_threading_does_not_know_is_named_by_its_ident(luna, monkeypatch):
    slot, leave, left = luna.slot(1), threading.Event(), threading.Event()
    # A log record of the thread would make it known.
    monkeypatch.setattr("logging.logThreads", False)

    def hold():
        with slot:
            leave.wait()
        left.set()

    ident = _thread.start_new_thread(hold, ())
    wait_until(slot.locked)
    try:
        with pytest.raises(luna_ext.LockTimeoutError, match=f"the thread {ident} of this process"):
            slot.lock(timeout=0).__enter__()
    finally:
        leave.set()
        assert left.wait(20)


@pytest.mark.parametrize("collects", [True, False])
def test_an_error_that_names_the_holder_leaves_garbage_collection_as_it_was(
    luna, hold_here, collects
):
    hold_here(luna.slot(1))
    if not collects:
        gc.disable()
    try:
        with pytest.raises(luna_ext.LockTimeoutError, match=", now at "):
            luna.slot(1).lock(timeout=0).__enter__()
        assert gc.isenabled() is collects
    finally:
        gc.enable()


def test_a_task_whose_release_gets_no_thread_makes_it_itself(succeed):
    """All workers are in lock calls that the device does not answer."""
    body = f"""
        import asyncio

        async def keep_workers_busy():
            for number in range(2, 9):
                try:
                    async with luna.slot(number).lock(timeout=0.1):
                        pass
                except luna_ext.LockTimeoutError:
                    continue
                except RuntimeError:
                    return

        async def main():
            async with slot.lock():
                cluster.latency(3600, {LOCK!r})
                {NO_MORE_THREADS}
                await keep_workers_busy()
            print(cluster.tokens()[0].owner, slot.locked(), flush=True)
            os._exit(0)

        asyncio.run(main())
    """
    assert succeed(body) == ["None", "False"]


def test_a_task_whose_release_just_after_the_grant_gets_no_thread_makes_it_itself(succeed):
    """A worker makes it, if there is one, without the GIL. No close waits for a call that was not made."""
    body = f"""
        import asyncio

        async def enter(number):
            async with luna.slot(number).lock():
                pass

        async def main():
            # The first lock makes more calls.
            await enter(1)
            async with slot.lock():
                cluster.latency(0.3, {LOCK!r})
                {NO_MORE_THREADS}
                others = [asyncio.create_task(enter(number)) for number in range(2, 9)]
                await asyncio.sleep(0)
            print(cluster.tokens()[0].owner, slot.locked())
            await asyncio.gather(*others, return_exceptions=True)
            luna.close()

        asyncio.run(main())
    """
    assert succeed(body) == ["None", "False"]


def test_a_lock_while_another_thread_imports_asyncio(luna, monkeypatch, owner_of):
    """A module is in sys.modules before it has any of its names."""
    monkeypatch.setitem(sys.modules, "asyncio", types.ModuleType("asyncio"))
    with luna.slot(1).lock(timeout=10):
        assert owner_of(1) == os.getpid()


@pytest.mark.luna_cluster(keyrings=12)
@pytest.mark.skipif(sys.platform != "linux", reason="counts the threads in /proc")
def test_of_many_threads_that_have_waited_at_a_time_eight_are_kept(succeed):
    body = f"""
        def hold(number):
            with luna.slot(number).lock(timeout=30):
                pass

        def threads():
            return len(os.listdir("/proc/self/task"))

        # The main thread, and one of ThreadSanitizer's where it watches.
        before = threads()

        def hold_at_a_time(count, seconds):
            cluster.latency(seconds, {LOCK!r})
            holding = [in_thread(hold, number) for number in range(1, count + 1)]
            wait_until_inside({LOCK!r}, count)
            for thread in holding:
                thread.join()

        hold_at_a_time(12, 1.5)
        wait_until(lambda: threads() == before + 8)
        # Those that have ended are not taken for idle ones: the eight are kept for good.
        hold_at_a_time(8, 0.7)
        time.sleep(2.2)
        assert threads() == before + 8
        luna.close()
    """
    assert succeed(body) == []
