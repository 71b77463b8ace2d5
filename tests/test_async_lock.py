"""`async with slot.lock()`."""

import asyncio
import contextvars
import gc
import logging
import os
import subprocess
import sys
import sysconfig
import threading
import weakref

import pytest
import uvloop
from support import (
    GENERAL_ERROR,
    LOCK,
    UNLOCK,
    assert_stays,
    hold_loop_until_it_is_told,
    let_device_forget_us,
    let_others_run_until,
    look_at_no_files,
    nothing_is_locked,
    refuse_to_be_told,
    wait_until,
)

import luna_ext


def eager_loop():
    """Tasks begin at once, where Python has that (3.12)."""
    loop = asyncio.new_event_loop()
    if hasattr(asyncio, "eager_task_factory"):
        loop.set_task_factory(asyncio.eager_task_factory)
    return loop


def test_async_with_holds_the_lock_for_the_task(luna, owner_of):
    slot = luna.slot(1)

    async def main():
        async with slot.lock(timeout=5) as entered:
            assert entered is slot
            slot.ensure_held()
            assert owner_of(1) == os.getpid()
            with pytest.raises(luna_ext.LockReentryError):
                async with slot.lock():
                    pass
            with pytest.raises(luna_ext.LockReentryError):
                slot.acquire()
            with pytest.raises(luna_ext.LockNotOwnedError, match="async with"):
                slot.release()
        assert owner_of(1) is None

    asyncio.run(main())


def test_two_tasks_of_one_thread_exclude_each_other(luna):
    slot = luna.slot(1)
    inside = most = 0

    async def enter():
        nonlocal inside, most
        async with slot.lock():
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0)
            inside -= 1

    async def main():
        await asyncio.gather(*(enter() for _ in range(50)))

    asyncio.run(main())
    assert most == 1


def test_another_task_does_not_own_the_lock(luna):
    slot = luna.slot(1)

    async def other():
        with pytest.raises(luna_ext.LockNotOwnedError):
            slot.ensure_held()
        with pytest.raises(luna_ext.LockReentryError, match="async with"):
            slot.acquire()

    async def main():
        # In a context of its own: what the holder starts may rely on the lock.
        context = contextvars.Context()
        async with slot.lock():
            await asyncio.create_task(other(), context=context)

    asyncio.run(main())


def threads():
    """All of the process, also those that Python's threading module does not know."""
    return len(os.listdir("/proc/self/task"))


def test_ten_thousand_tasks_wait_without_as_many_threads(luna):
    slot = luna.slot(1)
    inside = most = 0

    async def enter():
        nonlocal inside, most
        async with slot.lock():
            inside += 1
            most = max(most, inside)
            inside -= 1
            return threads()

    async def main():
        return max(await asyncio.gather(*(enter() for _ in range(10_000))))

    before = threads()
    # Two calls at a time are under way, and up to 8 workers are kept.
    assert asyncio.run(main()) <= before + 12
    assert most == 1


@pytest.mark.luna_cluster(keyrings=30)
def test_few_of_the_threads_of_many_calls_at_a_time_are_kept(luna, cluster):
    cluster.latency(0.5, LOCK)

    async def enter(slot_id):
        async with luna.slot(slot_id).lock():
            pass

    async def main():
        await asyncio.gather(*(enter(slot_id) for slot_id in range(1, 31)))

    before = threads()
    asyncio.run(main())
    wait_until(lambda: threads() <= before + 8)


LOOPS = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
    "eager tasks": eager_loop,
}


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("loop", LOOPS)
def test_every_event_loop_will_do(luna, hold_elsewhere, owner_of, loop, debug):
    holder = hold_elsewhere(1)
    order = []

    async def enter(name):
        async with luna.slot(1).lock(timeout=30):
            order.append(name)
            assert owner_of(1) == os.getpid()
            await asyncio.sleep(0)

    async def main():
        with pytest.raises(luna_ext.LockTimeoutError):
            async with luna.slot(1).lock(timeout=0.01):
                pass
        tasks = [asyncio.create_task(enter(number)) for number in range(5)]
        await let_others_run_until(lambda: f"{len(tasks)} waiting" in repr(luna.slot(1)))
        tasks[2].cancel()
        holder.release()
        await asyncio.wait(tasks)
        async with luna.claim("cluster-1", timeout=5) as token:
            token.ensure_held()
        async with luna.claim("cluster-1"):
            pass

    with asyncio.Runner(loop_factory=LOOPS[loop], debug=debug) as runner:
        runner.run(main())
    assert order == [0, 1, 3, 4]
    assert owner_of(1) is None


def test_tasks_of_loops_in_several_threads_exclude_each_other(luna, call):
    slot = luna.slot(1)
    inside = most = 0

    async def enter():
        nonlocal inside, most
        async with slot.lock():
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0)
            inside -= 1

    async def main():
        await asyncio.gather(*(enter() for _ in range(50)))

    def plain():
        nonlocal inside, most
        for _ in range(200):
            with slot:
                inside += 1
                most = max(most, inside)
                os.sched_yield()
                inside -= 1

    for caller in [*(call(lambda: asyncio.run(main())) for _ in range(3)), call(plain)]:
        caller.result(60)
    assert most == 1


def test_nothing_runs_at_import():
    program = (
        "import os, sys, luna_ext; print(os.listdir('/proc/self/task'), 'asyncio' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=45, check=True
    )
    threads, asyncio_is_loaded = done.stdout.rsplit(maxsplit=1)
    assert threads.count(",") == 0
    assert asyncio_is_loaded == "False"


class WatchedLoop(asyncio.SelectorEventLoop):
    """Keeps its timers."""

    def __init__(self):
        super().__init__()
        self.timers = []

    def call_at(self, *arguments, **options):
        self.timers.append(super().call_at(*arguments, **options))
        return self.timers[-1]

    def due_later(self):
        return [each for each in self.timers if not each.cancelled() and each.when() > self.time()]


@pytest.mark.parametrize(
    "target",
    [
        lambda luna: luna.slot(1).lock(timeout=20),
        lambda luna: luna.token("keyring1").lock(timeout=20),
        lambda luna: luna.claim("cluster-1", timeout=20),
    ],
    ids=["slot", "token", "claim"],
)
def test_waits_that_are_over_leave_no_timers_to_the_loop(luna, cluster, target):
    cluster.latency(0.005)
    loop = WatchedLoop()

    async def main():
        for _ in range(10):
            async with target(luna):
                pass
        # All waits for slots have one, which looks after them.
        assert len(loop.due_later()) <= 1

    try:
        loop.run_until_complete(main())
    finally:
        loop.close()


def test_the_record_of_an_unlock_keeps_no_task_waiting(luna, log_as_before):
    """A log handler that waits until the next task has the lock."""
    has_lock = threading.Event()
    heard = []

    def wait(record):
        if "unlocked in" in record.getMessage():
            heard.append(has_lock.wait(20))
        return True

    logger = logging.getLogger("luna_ext")
    logger.setLevel(logging.DEBUG)
    logger.addFilter(wait)

    async def main():
        async with luna.slot(1).lock():
            follower = asyncio.create_task(follow())
            while "1 waiting" not in repr(luna.slot(1)):
                await asyncio.sleep(0)
        await follower

    async def follow():
        async with luna.slot(1).lock(timeout=20):
            has_lock.set()

    try:
        asyncio.run(main())
    finally:
        logger.removeFilter(wait)
    assert heard == [True, True]


def test_async_timeout(luna, hold_elsewhere):
    hold_elsewhere(1)

    async def main():
        with pytest.raises(luna_ext.LockTimeoutError):
            async with luna.slot(1).lock(timeout=0.05):
                pass

    asyncio.run(main())
    assert not luna.slot(1).locked()


def test_a_cancelled_waiter_leaks_nothing(luna, hold_elsewhere, owner_of, calls_of):
    holder = hold_elsewhere(1)
    slot = luna.slot(1)

    async def enter():
        async with slot.lock():
            return owner_of(1)

    async def main():
        first, second = asyncio.create_task(enter()), asyncio.create_task(enter())
        await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        holder.release()
        assert await second == os.getpid()

    asyncio.run(main())
    assert owner_of(1) is None
    # The call that the first one left behind served the second.
    assert calls_of(LOCK) == calls_of(UNLOCK) == 1


@pytest.mark.parametrize("looks_at_files", [True, False])
def test_a_loop_that_is_gone_gets_no_lock(luna, hold_elsewhere, owner_of, looks_at_files):
    """The task still exists, but its closed loop will never run it again."""
    holder = hold_elsewhere(1)
    slot = luna.slot(1)

    async def enter():
        async with slot.lock():
            pass

    loop = asyncio.new_event_loop()
    if not looks_at_files:
        look_at_no_files(loop)
    task = loop.create_task(enter())
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    holder.release()
    with slot.lock(timeout=10):
        assert owner_of(1) == os.getpid()
    assert not task.done()
    task._log_destroy_pending = False


def test_a_closed_loop_that_was_told_of_another_lock_gets_none(luna, hold_elsewhere, owner_of):
    """A loop is told once for all locks that it has not looked for. A closed one never looks."""
    holders = [hold_elsewhere(1), hold_elsewhere(2)]
    first, second = luna.slot(1), luna.slot(2)

    async def enter(slot):
        async with slot.lock():
            pass

    loop = asyncio.new_event_loop()
    tasks = [loop.create_task(enter(slot)) for slot in (first, second)]
    loop.run_until_complete(asyncio.sleep(0))
    holders[0].release()
    wait_until(first.locked)
    loop.close()
    holders[1].release()
    with second.lock(timeout=10):
        assert owner_of(2) == os.getpid()
    for task in tasks:
        assert not task.done()
        task._log_destroy_pending = False
    del task, tasks
    gc.collect()
    with first.lock(timeout=10):
        assert owner_of(1) == os.getpid()


def test_a_task_that_waits_for_the_lock_cannot_wait_once_more(luna, hold_elsewhere):
    """As where a coroutine is driven by hand."""
    hold_elsewhere(1)
    slot = luna.slot(1)

    async def main():
        entering = slot.lock().__aenter__()
        entering.send(None)
        with pytest.raises(luna_ext.LockReentryError, match="waits for this lock already"):
            async with slot.lock():
                pass
        entering.close()
        with pytest.raises(luna_ext.LockTimeoutError):
            async with slot.lock(timeout=0.1):
                pass

    asyncio.run(main())


@pytest.mark.parametrize(
    "looks_at_files",
    [
        pytest.param(
            True,
            marks=pytest.mark.skipif(
                sys.platform != "linux" or bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
                reason="loops are told by a file where there is a GIL, on Linux",
            ),
        ),
        False,
    ],
)
def test_a_loop_is_told_once_for_all_that_has_come_in(luna, looks_at_files):
    slots = [luna.slot(number) for number in (1, 2, 3, 4)]

    async def enter(slot):
        async with slot.lock():
            return slot.locked()

    async def main():
        loop = asyncio.get_running_loop()
        told = []
        tell, add_reader = loop.call_soon_threadsafe, loop.add_reader

        def count(*arguments, **options):
            told.append(None)
            return tell(*arguments, **options)

        def add_counting(file, look):
            def count_and_look():
                told.append(None)
                look()

            add_reader(file, count_and_look)

        loop.call_soon_threadsafe = count
        if looks_at_files:
            loop.add_reader = add_counting
        else:
            look_at_no_files(loop)
        tasks = [asyncio.create_task(enter(slot)) for slot in slots]
        await asyncio.sleep(0)
        # The loop stands still meanwhile.
        wait_until(lambda: all(slot.locked() for slot in slots))
        if looks_at_files:
            assert_stays(lambda: not told)
            while not told:
                await asyncio.sleep(0)
        else:
            wait_until(lambda: told)
        assert_stays(lambda: len(told) == 1)
        assert await asyncio.gather(*tasks) == [True] * 4

    asyncio.run(main())


def test_a_loop_that_stands_still_keeps_no_lock_from_a_thread(luna, call):
    """It is told of the unlock's answer, and does not look; then a worker sees to the next lock call."""
    slot = luna.slot(1)

    def lock_in_time():
        with slot.lock(timeout=20):
            return slot.locked()

    async def main():
        lock = slot.lock()
        await lock.__aenter__()
        end = lock.__aexit__(None, None, None)
        assert call(lock_in_time).result()
        await end

    asyncio.run(main())


def test_a_task_is_given_the_lock_of_a_loop_that_stands_still(luna, call, wait_until_queued):
    """The task is another loop's."""
    slot = luna.slot(1)

    async def enter():
        async with slot.lock(timeout=20):
            return slot.locked()

    async def main():
        lock = slot.lock()
        await lock.__aenter__()
        waiting = call(lambda: asyncio.run(enter()))
        wait_until_queued(slot, 1)
        end = lock.__aexit__(None, None, None)
        assert waiting.result()
        await end

    asyncio.run(main())


@pytest.mark.skipif(sys.platform != "linux", reason="it counts files in /proc")
def test_loops_leave_no_file_open(luna):
    async def enter():
        async with luna.slot(1).lock():
            pass

    def count_files():
        return len(os.listdir("/proc/self/fd"))

    def run_two_in_turns():
        loops = [asyncio.new_event_loop() for _ in range(2)]
        for loop in loops * 3:
            loop.run_until_complete(enter())
        opened.append(count_files())
        for loop in loops:
            loop.close()
        gc.collect()
        left.append(count_files())

    opened, left = [], []
    for _ in range(4):
        run_two_in_turns()
    assert opened[2:] == opened[1:2] * 2
    assert left[2:] == left[1:2] * 2


@pytest.mark.parametrize("error", [MemoryError, RuntimeError])
def test_a_loop_that_could_not_be_told_is_told_again(luna, caplog, error):
    async def main():
        refuse_to_be_told(asyncio.get_running_loop(), [error("no room")] * 3)
        async with luna.slot(1).lock(timeout=20):
            luna.slot(1).ensure_held()

    asyncio.run(main())
    (record,) = [one for one in caplog.records if one.levelname == "ERROR"]
    assert f"{error.__name__}('no room')" in record.getMessage()


def test_a_loop_that_can_never_be_told_is_not_kept(luna):
    """The task's time is up as ever, and its lock comes off."""

    async def main():
        loop = asyncio.get_running_loop()
        refuse_to_be_told(loop, iter(MemoryError, None))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1), luna.slot(1).lock():
                pytest.fail("the loop was not told")
        return weakref.ref(loop)

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        loop = runner.run(main())
    del runner

    def is_gone():
        gc.collect()
        return loop() is None

    wait_until(is_gone)
    with luna.slot(1).lock(timeout=10):
        pass


@pytest.mark.parametrize("looks_at_files", [True, False])
def test_what_has_come_in_outlasts_an_exception_in_the_loop(luna, looks_at_files):
    """As a signal handler's, while the first of several tasks is woken."""

    class Loop(asyncio.SelectorEventLoop):
        fails = False

        def call_soon(self, callback, *arguments, **options):
            handle = super().call_soon(callback, *arguments, **options)
            if self.fails:
                self.fails = False
                raise KeyboardInterrupt
            return handle

    slots = [luna.slot(number) for number in (1, 2, 3)]

    async def enter(slot):
        async with slot.lock():
            return slot.locked()

    async def stand_still():
        await asyncio.sleep(0)
        wait_until(lambda: all(slot.locked() for slot in slots))
        loop.fails = True
        await asyncio.sleep(10)

    loop = Loop()
    if not looks_at_files:
        look_at_no_files(loop)
    tasks = [loop.create_task(enter(slot)) for slot in slots]
    still = loop.create_task(stand_still())
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(still)
    still.cancel()
    assert loop.run_until_complete(asyncio.gather(*tasks)) == [True] * 3
    loop.run_until_complete(asyncio.gather(still, return_exceptions=True))
    loop.close()


def test_cancelling_during_the_unlock_does_not_strand_it(luna, cluster, owner_of):
    slot = luna.slot(1)
    cluster.latency(0.05, UNLOCK)

    async def enter(leaving):
        async with slot.lock():
            leaving.set()

    async def main():
        leaving = asyncio.Event()
        task = asyncio.create_task(enter(leaving))
        await leaving.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    with slot.lock(timeout=10):
        assert owner_of(1) == os.getpid()
    assert owner_of(1) is None


@pytest.mark.parametrize("timeout", [None, 20])
def test_a_task_may_wait_by_a_plain_with_for_another_thread(
    luna, hold_here, call, wait_until_queued, timeout
):
    """Its loop stands still meanwhile, but the wait ends."""
    slot = luna.slot(1)
    holder = hold_here(slot)

    def leave():
        wait_until_queued(slot, 1)
        holder.leave()

    async def main():
        leaving = call(leave)
        with slot.lock(timeout=timeout):
            slot.ensure_held()
        leaving.result()

    asyncio.run(main())


def test_errors_reach_the_task(luna, cluster):
    async def main():
        cluster.fault(LOCK, 0x30, times=1)
        with pytest.raises(luna_ext.DeviceError):
            async with luna.slot(1).lock():
                pass
        cluster.fault(UNLOCK, 0x30, times=1)
        with pytest.raises(luna_ext.LockReleaseError):
            async with luna.slot(1).lock():
                pass
        cluster.fault(UNLOCK, 0x30, times=1)
        with pytest.raises(KeyError) as caught:
            async with luna.slot(1).lock():
                raise KeyError
        assert "CKR_DEVICE_ERROR" in caught.value.__notes__[0]

    asyncio.run(main())


def test_a_token_is_checked_after_the_lock(luna, cluster):
    token = luna.token("keyring1")

    async def main():
        async with token.lock(timeout=5) as entered:
            assert entered is token
            token.ensure_held()
        for claimed in range(8):
            with luna.claim("cluster-1") as unassigned:
                unassigned.assign(f"new-{claimed}", so_pin="12345678")
        with pytest.raises(luna_ext.TokenChangedError):
            async with token.lock(timeout=5):
                pass

    asyncio.run(main())
    assert not token.slot.locked()
    assert nothing_is_locked(cluster)


@pytest.mark.parametrize("fails", [True, False])
def test_an_unlock_that_fails_is_noted_on_the_cancellation_that_comes_with_it(
    luna, cluster, wait_until_inside, fails
):
    cluster.latency(0.3, UNLOCK)
    cluster.fault(UNLOCK, GENERAL_ERROR, times=int(fails))

    async def enter():
        async with luna.slot(1).lock():
            pass

    async def main():
        task = asyncio.create_task(enter())
        await asyncio.to_thread(wait_until_inside, UNLOCK)
        # The loop handles the answer and the cancellation in the same step.
        hold_loop_until_it_is_told(asyncio.get_running_loop())
        task.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        notes = getattr(caught.value, "__notes__", [])
        assert ["may stay set" in note for note in notes] == [True] * fails

    asyncio.run(main())


def test_a_coroutine_that_is_closed_after_the_library_leaves_the_next_holders_lock(
    cluster, owner_of
):
    luna = cluster.library()

    async def main(other):
        entered = asyncio.Event()

        async def hold():
            async with luna.slot(1).lock():
                entered.set()
                await asyncio.Event().wait()

        coroutine = hold()
        task = asyncio.create_task(coroutine)
        # asyncio would complain of a task that is not seen to its end.
        task._log_destroy_pending = False
        await entered.wait()
        with pytest.warns(ResourceWarning, match="slot 1 was still locked"):
            luna.close()
        async with other.slot(1).lock():
            coroutine.close()
            await asyncio.to_thread(assert_stays, lambda: owner_of(1) == os.getpid())
            other.slot(1).ensure_held()

    with cluster.library() as other:
        asyncio.run(main(other))


def test_a_thread_that_holds_cannot_wait_in_a_task(luna):
    async def main():
        with luna.slot(1):
            async with luna.slot(1).lock():
                pass

    with pytest.raises(luna_ext.LockReentryError):
        asyncio.run(main())
    assert not luna.slot(1).locked()


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


@pytest.mark.parametrize("tasks", ["hold", "wait"])
def test_a_callback_does_not_wait_for_tasks_of_its_own_loop(luna, hold_elsewhere, tasks):
    """The loop would stand still meanwhile, as for a task that waits by a plain `with`."""
    slot = luna.slot(1)
    holder = hold_elsewhere(1) if tasks == "wait" else None

    async def use(leave):
        async with slot.lock():
            await leave.wait()

    def come(refused):
        try:
            slot.acquire(timeout=5)
        except luna_ext.LockReentryError as error:
            refused.set_result(str(error))
        else:
            refused.set_result("waited")

    async def main():
        loop, leave = asyncio.get_running_loop(), asyncio.Event()
        using = asyncio.create_task(use(leave))
        await let_others_run_until(
            lambda: slot.locked() if holder is None else "1 waiting" in repr(slot)
        )
        refused = loop.create_future()
        loop.call_soon(come, refused)
        try:
            assert "tasks of this thread's event loop" in await refused
        finally:
            if holder is not None:
                holder.release()
            leave.set()
            await using

    asyncio.run(main())


def test_a_lost_lock_of_a_task_goes_to_those_who_wait(luna, cluster, call, wait_until_queued):
    slot = luna.slot(1)
    waiting = []

    def use(block):
        with block:
            return True

    async def lose():
        async with slot.lock():
            waiting.extend([call(lambda: use(slot)), call(lambda: use(slot.lock(timeout=20)))])
            wait_until_queued(slot, 2)
            let_device_forget_us(cluster)
            with pytest.raises(luna_ext.LockLostError):
                slot.ensure_held()

    with pytest.raises(luna_ext.LockLostError):
        asyncio.run(lose())
    assert [caller.result() for caller in waiting] == [True, True]


def test_a_coroutine_that_is_closed_releases(luna, owner_of):
    slot = luna.slot(1)

    async def hold():
        async with slot.lock():
            await asyncio.Event().wait()

    async def main():
        task = asyncio.create_task(coroutine)
        await let_others_run_until(slot.locked)
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
