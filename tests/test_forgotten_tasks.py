"""Tasks that can never run again, for their event loop has ended without them: they lose their locks.

As with asyncio's own locks: nothing of the library keeps such a task, so it is collected, its coroutine is
closed, and the block that it is in comes to its end.
"""

import asyncio
import gc
import logging
import os
import sys
import weakref

import pytest
from support import CLAIM, LOCK, ON_BOTH, let_others_run_until, wait_until

import luna_ext

FORMS = {
    "lock": lambda luna, **options: luna.slot(1).lock(**options),
    "timed lock": lambda luna, **options: luna.slot(1).lock(timeout=30, **options),
    "token.lock": lambda luna, **options: luna.token("keyring1").lock(timeout=30, **options),
    "claim": lambda luna, **options: luna.claim("cluster-1", **options),
    "timed claim": lambda luna, **options: luna.claim("cluster-1", timeout=30, **options),
}
pytestmark = [
    ON_BOTH,
    pytest.mark.luna_cluster(keyrings=1),
    # asyncio tells of each task that is collected before it has ended.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


class Ended(Exception):
    """What ends the event loop while its tasks still wait."""


def leave_behind(coroutine, until, loop_of=asyncio.new_event_loop, close=True):
    """Run it as a task until the condition holds, and end the loop without it; a weak reference to it."""
    tasks = []

    async def main():
        # Only the event loop, and what the task waits for, know the task.
        task = asyncio.get_running_loop().create_task(coroutine)
        tasks.append(weakref.ref(task))
        del task
        await until()
        raise Ended

    loop = loop_of()
    with pytest.raises(Ended):
        loop.run_until_complete(main())
    if close:
        loop.close()
    return tasks[0]


def collect_until(condition):
    def holds_after_a_collection():
        gc.collect()
        return condition()

    wait_until(holds_after_a_collection)


@pytest.fixture
def free(cluster):
    return lambda: all(token.owner is None for token in cluster.tokens())


def test_several_locks_come_off_though_another_task_has_used_their_object(luna, free):
    locks = luna.lock_all([luna.slot(1)])

    async def use():
        async with locks:
            pass

    async def hold():
        async with locks:
            await asyncio.get_running_loop().create_future()

    asyncio.run(use())
    leave_behind(hold(), lambda: let_others_run_until(luna.slot(1).locked))
    collect_until(free)


def records(caplog):
    return [r.getMessage() for r in caplog.records if (r.name, r.levelno) == ("luna_ext", 40)]


@pytest.mark.parametrize("form", FORMS)
def test_a_block_that_can_never_end_is_ended_and_told_of(luna, free, caplog, form):
    async def hold(inside):
        async with FORMS[form](luna):
            inside.set()
            # A future that nothing else knows: nothing can wake the task.
            await asyncio.get_running_loop().create_future()

    inside = asyncio.Event()
    with pytest.warns(ResourceWarning, match=r"slot 1 was still locked, at .*test_forgotten_tasks"):
        task = leave_behind(hold(inside), inside.wait)
        collect_until(free)
    assert task() is None
    assert any(
        "slot 1 was still locked" in text and "collected" in text for text in records(caplog)
    )
    # And it can be locked again, by the process and by its device.
    with luna.slot(1).lock(timeout=10):
        luna.slot(1).ensure_held()
    with luna.claim("cluster-1", timeout=10):
        pass


@pytest.mark.parametrize("form", FORMS)
def test_a_block_of_an_async_generator_that_is_never_closed_is_ended(luna, free, caplog, form):
    """Its event loop would close it, but has ended."""

    async def generate():
        async with FORMS[form](luna):
            yield

    async def hold(inside):
        async for _ in generate():
            inside.set()
            await asyncio.get_running_loop().create_future()

    inside = asyncio.Event()
    with pytest.warns(ResourceWarning, match=r"slot 1 was still locked, at .*test_forgotten_tasks"):
        leave_behind(hold(inside), inside.wait)
        collect_until(free)
    assert any("collected" in text for text in records(caplog))
    with luna.slot(1).lock(timeout=10):
        luna.slot(1).ensure_held()


@pytest.mark.parametrize("form", FORMS)
def test_a_block_of_an_async_generator_may_outlive_its_task(luna, owner_of, form):
    """As that of a fixture, whose end is run by another task."""

    async def generate():
        async with FORMS[form](luna):
            yield

    generator = generate()
    with asyncio.Runner() as runner:
        runner.run(anext(generator))
        gc.collect()
        assert owner_of(1) == os.getpid()
        with pytest.raises(StopAsyncIteration):
            runner.run(anext(generator))
        wait_until(lambda: owner_of(1) is None)


@pytest.mark.filterwarnings("ignore:slot 1 was still locked:ResourceWarning")
@pytest.mark.filterwarnings("ignore:unclosed event loop:ResourceWarning")
@pytest.mark.parametrize("form", FORMS)
def test_a_heartbeat_keeps_neither_the_task_nor_its_loop(luna, free, form):
    """Nor does the object that the block was entered through, which the application keeps."""
    lock = FORMS[form](luna, heartbeat=60)
    loops = []

    async def hold(inside):
        loops.append(weakref.ref(asyncio.get_running_loop()))
        async with lock:
            inside.set()
            # The loop knows the timer, and through it the task.
            await asyncio.sleep(3600)

    inside = asyncio.Event()
    task = leave_behind(hold(inside), inside.wait, close=False)
    del inside
    collect_until(lambda: loops[0]() is None and task() is None and free())


@pytest.mark.parametrize("form", FORMS)
def test_a_lock_that_was_granted_to_a_task_that_did_not_hear_of_it_comes_off(
    luna, cluster, free, form
):
    make = FORMS[form](luna)

    async def enter():
        async with make:
            pytest.fail("the loop has ended")

    async def granted():
        # Two turns of the loop, in which the device is asked; then the loop stands still.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        wait_until(lambda: not free())

    task = leave_behind(enter(), granted)
    collect_until(lambda: task() is None and free())
    with luna.slot(1).lock(timeout=10):
        pass


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("function", [LOCK, CLAIM])
def test_a_task_that_is_collected_while_the_device_is_asked_gets_nothing(
    luna, cluster, free, form, function
):
    make = FORMS[form](luna)
    cluster.latency(0.2, function)

    async def enter():
        async with make:
            pytest.fail("the loop has ended")

    async def asked():
        for _ in range(3):
            await asyncio.sleep(0)

    task = leave_behind(enter(), asked)
    collect_until(lambda: task() is None)
    with luna.slot(1).lock(timeout=10):
        pass
    collect_until(free)


def test_a_lock_object_that_is_kept_does_not_keep_its_task(luna, free):
    lock = luna.slot(1).lock(timeout=30)

    async def hold(inside):
        async with lock:
            inside.set()
            await asyncio.get_running_loop().create_future()

    inside = asyncio.Event()
    with pytest.warns(ResourceWarning, match="slot 1"):
        task = leave_behind(hold(inside), inside.wait)
        collect_until(free)
    assert task() is None
    with lock:
        luna.slot(1).ensure_held()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_library_is_collected_with_the_task_that_used_it(cluster, free, monkeypatch):
    """A slot's lock keeps neither."""
    # Since CPython 3.15, a weak reference outlasts finalisers: what pytest keeps of those would keep the
    # Library.
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: None)
    monkeypatch.setattr(logging.getLogger("luna_ext"), "disabled", True)
    luna = cluster.library()
    library = weakref.ref(luna)

    async def hold(inside, luna):
        async with luna.slot(1).lock():
            inside.set()
            await asyncio.get_running_loop().create_future()

    inside = asyncio.Event()
    leave_behind(hold(inside, luna), inside.wait)
    del luna
    collect_until(lambda: library() is None and free())
    # One that was not closed leaves it to the next to finalise the client.
    with cluster.library():
        pass


@pytest.mark.usefixtures("luna")
def test_a_task_that_still_can_run_keeps_its_lock(luna, owner_of):
    """Something else than the library knows what it waits for."""

    async def hold(inside, leave):
        async with luna.slot(1).lock():
            inside.set()
            await leave.wait()

    async def main():
        inside, leave = asyncio.Event(), asyncio.Event()
        task = asyncio.create_task(hold(inside, leave))
        known = weakref.ref(task)
        del task
        await inside.wait()
        gc.collect()
        assert known() is not None
        assert owner_of(1) == os.getpid()
        leave.set()
        await let_others_run_until(lambda: owner_of(1) is None)

    asyncio.run(main())
    with pytest.raises(luna_ext.LockNotOwnedError):
        luna.slot(1).release()
    assert logging.getLogger("luna_ext").level == logging.NOTSET
