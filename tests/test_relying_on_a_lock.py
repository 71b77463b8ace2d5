"""Who may rely on a lock: its holder, and what the holder starts. Only the block that locks releases."""

import asyncio
import concurrent.futures
import contextvars
import gc
import sys
import threading
import unittest

import pytest
from support import INIT_TOKEN, TOKEN_INFO, logged, nothing_is_locked, wait_until

import luna_ext

pytest_plugins = ["pytester"]

SO_PIN = "12345678"


def in_pool(function):
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(contextvars.copy_context().run, function).result()


def test_a_thread_that_a_task_starts_may_rely_on_its_lock(luna, cluster):
    async def main():
        async with luna.slot(1).lock() as slot:
            await asyncio.to_thread(slot.ensure_held)
        async with luna.token("keyring2").lock() as token:
            await asyncio.to_thread(token.ensure_held)
        async with luna.claim("cluster-1") as token:
            new = await asyncio.to_thread(token.assign, "new", so_pin=SO_PIN)
            await asyncio.to_thread(new.ensure_held)

    asyncio.run(main())
    assert len(logged(cluster, INIT_TOKEN)) == 1
    assert nothing_is_locked(cluster)


def test_a_child_task_may_rely_on_its_parents_lock(luna):
    async def grandchild():
        await asyncio.to_thread(luna.slot(1).ensure_held)
        luna.slot(1).ensure_held()

    async def child():
        luna.slot(1).ensure_held()
        async with luna.slot(2).lock() as slot:
            slot.ensure_held()
        await asyncio.create_task(grandchild())

    async def main():
        async with luna.slot(1).lock(), asyncio.TaskGroup() as group:
            group.create_task(child())
            group.create_task(child())

    asyncio.run(main())


@pytest.mark.parametrize("on_main", [True, False])
def test_what_starts_in_another_context_relies_on_a_lock_that_was_taken_there(luna, call, on_main):
    """A thread that has locked before has noted in its own context that it is the one that asks."""
    slot = luna.slot(1)

    def rely():
        with slot:
            in_pool(slot.ensure_held)

    def lock_in_contexts():
        rely()
        contextvars.Context().run(rely)
        rely()
        contextvars.Context().run(rely)

    if on_main:
        lock_in_contexts()
    else:
        call(lock_in_contexts).result()


@pytest.mark.parametrize("on_main", [True, False])
def test_a_thread_of_a_pool_may_rely_on_it_in_a_copied_context(luna, call, on_main):
    def work():
        with luna.slot(1) as slot:
            in_pool(slot.ensure_held)
        with luna.slot(1).lock(timeout=20) as slot:
            in_pool(slot.ensure_held)
        with luna.claim("cluster-1") as token:
            in_pool(token.ensure_held)
        slot.acquire()
        in_pool(slot.ensure_held)
        slot.release()

    if on_main:
        work()
    else:
        call(work).result(30)


def test_a_thread_that_was_first_used_in_anothers_context_starts_its_own(luna):
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        with luna.slot(1) as slot:
            pool.submit(contextvars.copy_context().run, slot.ensure_held).result()

        def lock_and_copy():
            with luna.slot(2) as second:
                in_pool(second.ensure_held)

        pool.submit(lock_and_copy).result()


def test_others_may_not(luna, call):
    async def stranger():
        with pytest.raises(luna_ext.LockNotOwnedError):
            luna.slot(1).ensure_held()

    async def main():
        # Begun before any lock: it was not started by a holder.
        other = asyncio.create_task(stranger(), context=contextvars.Context())
        async with luna.slot(1).lock() as slot:
            await other
            with pytest.raises(luna_ext.LockNotOwnedError):
                call(slot.ensure_held).result()

    asyncio.run(main())
    with luna.slot(1) as slot, pytest.raises(luna_ext.LockNotOwnedError):
        call(slot.ensure_held).result()


def test_after_the_block_nothing_may(luna):
    with luna.slot(1) as slot:
        context = contextvars.copy_context()
    with pytest.raises(luna_ext.LockNotOwnedError):
        context.run(slot.ensure_held)


def test_releasing_stays_with_the_block(luna, cluster):
    async def main():
        async with luna.slot(1).lock() as slot:
            with pytest.raises(luna_ext.LockNotOwnedError):
                await asyncio.to_thread(slot.release)
            slot.ensure_held()

    asyncio.run(main())
    with luna.slot(1) as slot:
        with pytest.raises(luna_ext.LockNotOwnedError):
            in_pool(slot.release)
        slot.ensure_held()
    assert nothing_is_locked(cluster)


def in_task(luna, call, wait_until_inside):
    """The task is cancelled while a thread that it has started assigns the token."""

    async def work():
        async with luna.claim("cluster-1") as token:
            await asyncio.to_thread(token.assign, "payments", so_pin="so-pin-1")

    async def main():
        task = asyncio.create_task(work())
        await asyncio.to_thread(wait_until_inside, INIT_TOKEN)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


def in_block(luna, call, wait_until_inside):
    """The block ends while another thread assigns the token in its context."""
    with luna.claim("cluster-1") as token:
        context = contextvars.copy_context()
        running = call(lambda: context.run(lambda: token.assign("payments", so_pin="so-pin-1")))
        wait_until_inside(INIT_TOKEN)
    # It can lock again meanwhile: that it held the lock before is over.
    with token.slot.lock(timeout=10):
        assert running.result().label == "payments"


@pytest.mark.luna_cluster(keyrings=1)
@pytest.mark.parametrize("way", [in_task, in_block])
def test_a_token_that_is_being_assigned_stays_locked_though_the_block_has_ended(
    luna, cluster, call, wait_until_inside, way
):
    """Else another program would claim it, and the call would erase it there."""
    cluster.latency(0.5, INIT_TOKEN)
    way(luna, call, wait_until_inside)
    wait_until(lambda: nothing_is_locked(cluster))
    (assigning,) = logged(cluster, INIT_TOKEN)
    unlocking = logged(cluster, "CA_UnlockClusteredSlot")[0]
    assert assigning.rv == 0
    assert unlocking.time >= assigning.time + assigning.duration
    assert luna.token("payments").slot.slot_id == 1
    wait_until(lambda: not luna.slot(1).locked())


@pytest.mark.luna_cluster(keyrings=1)
def test_the_last_one_of_the_calls_that_the_block_has_left_unlocks(
    luna, cluster, call, wait_until_inside
):
    cluster.latency(0.8, INIT_TOKEN)
    with luna.claim("cluster-1") as token:
        contexts = [contextvars.copy_context() for _ in range(2)]
        assigning = call(lambda: contexts[0].run(lambda: token.assign("payments", so_pin=SO_PIN)))
        wait_until_inside(INIT_TOKEN)
        cluster.latency(0.2, TOKEN_INFO)
        looking = call(lambda: contexts[1].run(lambda: token.assign("other", so_pin=SO_PIN)))
        wait_until_inside(TOKEN_INFO)
    with pytest.raises(luna_ext.LunaError):
        looking.result()
    assert luna.slot(1).locked()
    assigning.result()
    wait_until(lambda: nothing_is_locked(cluster))
    (assigned,) = logged(cluster, INIT_TOKEN)
    (unlocking,) = logged(cluster, "CA_UnlockClusteredSlot")
    assert unlocking.time >= assigned.time + assigned.duration


@pytest.mark.luna_cluster(keyrings=1)
def test_a_waiter_is_told_of_an_assignment_that_the_block_has_left(
    luna, cluster, call, wait_until_inside
):
    cluster.latency(1, INIT_TOKEN)
    with luna.claim("cluster-1") as token:
        context = contextvars.copy_context()
        running = call(lambda: context.run(lambda: token.assign("payments", so_pin=SO_PIN)))
        wait_until_inside(INIT_TOKEN)
    assert "calls that its last holder has started" in repr(token.slot)
    with pytest.raises(luna_ext.LockTimeoutError, match="are still at work on its token"):
        token.slot.lock(timeout=0).__enter__()
    running.result()


@pytest.mark.luna_cluster(keyrings=2)
def test_what_the_block_has_left_does_not_keep_the_claim(luna, cluster, call, wait_until_inside):
    cluster.latency(1, INIT_TOKEN)
    claim = luna.claim("cluster-1")
    with claim as token:
        context = contextvars.copy_context()
        running = call(lambda: context.run(lambda: token.assign("payments", so_pin=SO_PIN)))
        wait_until_inside(INIT_TOKEN)
    with claim as other:
        assert other.slot is not token.slot
    running.result()


@pytest.mark.parametrize("function", [INIT_TOKEN, "C_SetPIN"])
def test_no_heartbeat_asks_for_what_the_block_has_left(
    luna, cluster, call, wait_until_inside, function
):
    def rely(token):
        if function == INIT_TOKEN:
            token.assign("new", so_pin=SO_PIN)
        else:
            token.change_pin(SO_PIN, "87654321", role="so")

    with luna.claim("cluster-1") as token:
        assigned = token.assign("payments", so_pin=SO_PIN)
    cluster.latency(0.5, function)
    beats = {"heartbeat": 0.02}
    block = luna.claim("cluster-1", **beats) if function == INIT_TOKEN else assigned.lock(**beats)
    with block as token:
        context = contextvars.copy_context()
        running = call(lambda: context.run(rely, token))
        wait_until_inside(function)
    left = len(cluster.log())
    running.result()
    at_work = logged(cluster, function)[-1]
    end = at_work.time + at_work.duration
    asking = [call for call in cluster.log()[left:] if call.function == TOKEN_INFO]
    # One was on its way when the block ended.
    assert len([call for call in asking if call.time < end]) <= 1


@pytest.fixture
def asking(luna, cluster, call, wait_until_inside):
    """What a holder of slot 1 has started asks the device whether the lock is held; the call."""
    luna.slot(1).acquire()
    context = contextvars.copy_context()
    cluster.latency(0.5, TOKEN_INFO)
    call_under_way = call(lambda: context.run(luna.slot(1).ensure_held))
    wait_until_inside(TOKEN_INFO)
    return call_under_way


def test_what_a_holder_has_started_hears_that_it_has_released_meanwhile(luna, asking):
    luna.slot(1).release()
    with pytest.raises(luna_ext.LockNotOwnedError, match="has released it while") as caught:
        asking.result()
    assert (caught.value.slot_id, caught.value.function) == (1, TOKEN_INFO)


@pytest.mark.luna_cluster(keyrings=1)
def test_an_assignment_whose_holder_has_released_before_it_began_erases_nothing(
    luna, cluster, call, wait_until_inside
):
    with luna.claim("cluster-1") as token:
        context = contextvars.copy_context()
        cluster.latency(0.5, TOKEN_INFO)
        running = call(lambda: context.run(lambda: token.assign("payments", so_pin=SO_PIN)))
        wait_until_inside(TOKEN_INFO)
    with pytest.raises(luna_ext.LockNotOwnedError, match="Nothing was done"):
        running.result()
    assert logged(cluster, INIT_TOKEN) == []
    wait_until(lambda: nothing_is_locked(cluster))


def test_what_a_holder_has_started_hears_that_the_library_was_closed_meanwhile(luna, asking):
    with pytest.warns(ResourceWarning, match="still"):
        luna.close()
    with pytest.raises(luna_ext.LockLostError, match="its Library was closed"):
        asking.result()


def test_what_a_holder_has_started_hears_that_the_lock_is_lost(luna):
    with pytest.raises(luna_ext.LockLostError), luna.slot(1) as slot:
        context = contextvars.copy_context()
        luna.reconnect()
        with pytest.raises(luna_ext.LockLostError):
            context.run(slot.ensure_held)
        with pytest.raises(luna_ext.LockLostError):
            in_pool(slot.ensure_held)


def test_a_task_that_has_locked_another_slot_hears_that_its_parents_lock_is_lost(luna):
    async def child():
        async with luna.slot(2).lock():
            pass
        luna.reconnect()
        with pytest.raises(luna_ext.LockLostError):
            luna.slot(1).ensure_held()

    async def main():
        with pytest.raises(luna_ext.LockLostError):
            async with luna.slot(1).lock():
                await asyncio.create_task(child())

    asyncio.run(main())


def test_tasks_that_start_each_other_for_ever_keep_their_parents_lock(luna):
    async def main(left):
        async with luna.slot(left % 8 + 1).lock() as slot:
            await asyncio.to_thread(slot.ensure_held)
            child = asyncio.create_task(main(left - 1)) if left else None
        if child is not None:
            await child

    asyncio.run(main(100))


def test_tasks_that_start_each_other_for_ever_do_not_keep_what_has_started_them(luna, cluster):
    cluster.switch("log", "off")
    used = []

    async def go_on(left, ended):
        async with luna.slot(1).lock():
            pass
        if left % 300 == 0:
            gc.collect()
            used.append(sys.getallocatedblocks())
        if left:
            # Only the event loop keeps it, and it is over before its child begins.
            asyncio.get_running_loop().call_soon(begin, left - 1, ended)
        else:
            ended.set()

    def begin(left, ended):
        running[:] = [asyncio.create_task(go_on(left, ended))]

    async def main():
        ended = asyncio.Event()
        begin(900, ended)
        await ended.wait()

    running = []
    asyncio.run(main())
    # One block for each task would be more than that.
    assert used[-1] < used[1] + 300


@pytest.mark.luna_cluster(keyrings=40)
def test_a_task_may_rely_on_its_parents_lock_however_long_the_chain_of_parents_is(luna):
    async def main(left, parent=None):
        async with luna.slot(left).lock() as slot:
            if parent is not None:
                parent.ensure_held()
            if left > 1:
                await asyncio.create_task(main(left - 1, slot))

    asyncio.run(main(40))


def test_a_context_that_asyncio_keeps_for_a_test_case(luna, cluster):
    """Each part of such a test runs in a task of its own."""

    class Case(unittest.IsolatedAsyncioTestCase):
        async def asyncSetUp(self):
            self.slot = await self.enterAsyncContext(luna.slot(1).lock())

        async def test_it_is_held(self):
            self.slot.ensure_held()
            await asyncio.to_thread(self.slot.ensure_held)

    result = unittest.TestResult()
    Case("test_it_is_held").run(result)
    assert (result.testsRun, result.errors, result.failures) == (1, [], [])
    # unittest begins the end of the context, and does not wait for it.
    wait_until(lambda: nothing_is_locked(cluster))


def test_fixtures_of_pytest_asyncio(pytester, monkeypatch):
    """The fixture's two halves and the test run in a task each."""
    pytest.importorskip("pytest_asyncio")
    monkeypatch.delenv("LUNA_EXT_FORBID_STUB", raising=False)
    pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function")
    pytester.makepyfile(
        f"""
        import asyncio
        import gc
        import os

        import pytest
        import pytest_asyncio

        import luna_ext

        @pytest.fixture
        def locked(luna_cluster):
            def locked():
                return [token.slot_id for token in luna_cluster.tokens() if token.owner == os.getpid()]

            assert locked() == []
            yield locked
            # The fixtures that depend on this one have ended.
            assert locked() == []

        @pytest_asyncio.fixture
        async def slot(luna, locked):
            async with luna.slot(3).lock() as slot:
                yield slot

        @pytest_asyncio.fixture
        async def claimed(luna, locked):
            async with luna.claim("cluster-1") as token:
                yield token

        @pytest.mark.asyncio
        async def test_it_is_held(slot, locked):
            # The fixture's task is gone.
            gc.collect()
            slot.ensure_held()
            await asyncio.to_thread(slot.ensure_held)
            await asyncio.create_task(asyncio.to_thread(slot.ensure_held))
            assert locked() == [3]

        def test_it_is_held_for_a_test_without_a_loop(slot, locked):
            slot.ensure_held()
            assert locked() == [3]

        @pytest.mark.asyncio
        async def test_what_is_claimed_can_be_assigned(claimed):
            token = await asyncio.to_thread(claimed.assign, "new", so_pin={SO_PIN!r})
            await asyncio.to_thread(token.ensure_held)

        @pytest.mark.asyncio
        async def test_releasing_stays_with_the_fixture(slot, locked):
            with pytest.raises(luna_ext.LockNotOwnedError):
                slot.release()
            assert locked() == [3]
        """
    )
    result = pytester.runpytest_subprocess("-W", "error")
    result.assert_outcomes(passed=4)


def test_threads_that_are_only_started_beside_a_holder_may_not(luna):
    heard = []

    def ask():
        try:
            luna.slot(1).ensure_held()
        except luna_ext.LockNotOwnedError:
            heard.append("not owned")

    with luna.slot(1):
        # A thread has an empty context, unless Python is told otherwise.
        thread = threading.Thread(target=lambda: contextvars.Context().run(ask))
        thread.start()
        thread.join()
    assert heard == ["not owned"]
