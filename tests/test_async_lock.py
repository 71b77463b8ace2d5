"""`async with slot.lock()`."""

import asyncio
import os

import pytest

import luna_ext

LOCK = "CA_LockClusteredSlot"
UNLOCK = "CA_UnlockClusteredSlot"


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
        async with slot.lock():
            await asyncio.create_task(other())

    asyncio.run(main())


def threads():
    """All of the process, also those that Python's threading module does not know."""
    return len(os.listdir("/proc/self/task"))


def test_many_tasks_need_few_threads(luna):
    slot = luna.slot(1)

    async def enter():
        async with slot.lock():
            return threads()

    async def main():
        return max(await asyncio.gather(*(enter() for _ in range(1000))))

    before = threads()
    # Two calls at a time are under way, and up to 8 workers are kept.
    assert asyncio.run(main()) <= before + 12


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
    assert all(token.owner is None for token in cluster.tokens())
