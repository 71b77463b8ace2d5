"""The sequence diagrams of docs/concepts/edges.md: each is what happens, call by call."""

import asyncio
import contextlib
import ctypes
import gc
import importlib.util
import os
import re
import signal
import threading

import pytest
from blocks import TREE, blocks_of
from sequence import parse
from support import (
    BUSY,
    CLAIM,
    DEVICE_ERROR,
    GENERAL_ERROR,
    LOCK,
    NONE_LEFT,
    UNLOCK,
    enter,
    finalisations,
    have_returned,
    logged,
    wait_until,
)

import luna_ext

PAGE = TREE / "docs" / "concepts" / "edges.md"
CLUSTER = "cluster"
ALREADY_INITIALIZED = 0x191


def diagrams():
    """By its heading, the text of each diagram."""
    headings = re.findall(r"^### (.*)$", PAGE.read_text(), re.MULTILINE)
    pictures = [block.text for block in blocks_of(PAGE) if block.language == "mermaid"]
    assert len(headings) == len(pictures)
    return dict(zip(headings, pictures, strict=True))


def calls_in(diagram):
    """What a diagram says of the calls: each function, with its answer, None where none is shown."""
    participants, steps = parse(diagram)
    calls, open_calls = [], {}
    for step in steps:
        if not step.arrow:
            continue
        word = re.match(r"\w+", step.text)[0]
        if participants[step.target] == CLUSTER:
            open_calls[step.source] = len(calls)
            calls.append([word, None])
        elif participants[step.source] == CLUSTER:
            calls[open_calls.pop(step.target)][1] = word
    return [tuple(call) for call in calls]


@pytest.fixture(autouse=True)
def is_as_drawn(request, reinitialise, luna, cluster):
    """Compares the calls of a test with the diagram below the heading that its docstring is."""
    yield
    if request.function.__doc__ is None:
        return
    wanted = calls_in(diagrams()[request.function.__doc__.rstrip(".")])
    shown = {LOCK, UNLOCK, CLAIM} | {function for function, _ in wanted}
    log = [(call.function, call.rv_name) for call in cluster.log()]
    first = next(i for i, (function, _) in enumerate(log) if function == wanted[0][0])
    assert [call for call in log[first:] if call[0] in shown] == wanted


@pytest.fixture(scope="module")
def tests(request):
    return [value for name, value in vars(request.module).items() if name.startswith("test_")]


def test_every_diagram_is_compared(tests):
    assert {test.__doc__.rstrip(".") for test in tests if test.__doc__} == {*diagrams()}


def test_two_threads_want_one_slot(luna, cluster, call, wait_until_queued):
    """Two threads want one slot."""
    with luna.slot(1):
        second = call(lambda: enter(luna.slot(1)))
        wait_until_queued(luna.slot(1), 1)
    second.result()


def test_two_threads_want_one_slot_with_handover(cluster, call, wait_until_queued):
    """Two threads want one slot, with handover."""
    with cluster.library(handover=30) as luna:
        with luna.slot(1):
            second = call(lambda: enter(luna.slot(1)))
            wait_until_queued(luna.slot(1), 1)
        second.result()


def test_the_same_thread_locks_again(luna):
    """The same thread locks again."""
    with luna.slot(1), pytest.raises(luna_ext.LockReentryError), luna.slot(1):
        pass


def test_a_thread_releases_what_another_one_holds(luna, call):
    """A thread releases what another one holds."""
    with luna.slot(1), pytest.raises(luna_ext.LockNotOwnedError):
        call(luna.slot(1).release).result()


def test_the_block_raises(luna):
    """The block raises."""
    with pytest.raises(ValueError, match="of the block"), luna.slot(1):
        raise ValueError("of the block")


def test_a_thread_that_the_holder_has_started(luna):
    """A thread that the holder has started relies on the lock."""

    async def main():
        async with luna.slot(1).lock():
            await asyncio.to_thread(luna.slot(1).ensure_held)

    asyncio.run(main())


def test_another_thread_closes_a_generator(luna, call):
    """Another thread closes a generator that holds the lock."""

    def work():
        with luna.slot(1):
            yield

    generator = work()
    next(generator)
    call(generator.close).result()


def test_a_task_is_cancelled_while_it_waits(luna, cluster, hold_elsewhere, wait_until_inside):
    """A task is cancelled while it waits."""

    async def main():
        async def lock():
            async with luna.slot(1).lock():
                pass

        task = asyncio.create_task(lock())
        await asyncio.to_thread(wait_until_inside, LOCK)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    holder = hold_elsewhere(1)
    asyncio.run(main())
    holder.release()
    wait_until(lambda: logged(cluster, UNLOCK))


def test_ctrl_c_while_the_main_thread_waits(luna, cluster, hold_elsewhere, call, wait_until_inside):
    """Ctrl-C while the main thread waits."""
    holder = hold_elsewhere(1)

    def interrupt():
        wait_until_inside(LOCK)
        signal.raise_signal(signal.SIGINT)

    interrupter = call(interrupt)
    with pytest.raises(KeyboardInterrupt), luna.slot(1):
        pass
    interrupter.result()
    holder.release()
    wait_until(lambda: logged(cluster, UNLOCK))


def test_ctrl_c_while_a_task_waits(luna, cluster, hold_elsewhere, call, wait_until_inside):
    """Ctrl-C while a task waits in the event loop."""
    holder = hold_elsewhere(1)

    async def lock():
        async with luna.slot(1).lock():
            pass

    def interrupt():
        wait_until_inside(LOCK)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    interrupter = call(interrupt)
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(lock())
    interrupter.result()
    holder.release()
    wait_until(lambda: logged(cluster, UNLOCK))


@pytest.mark.skipif(importlib.util.find_spec("greenlet") is None, reason="no greenlet installed")
def test_another_greenlet_wants_the_slot(luna):
    """Another greenlet wants the slot."""
    import greenlet

    with luna.slot(1), pytest.raises(luna_ext.LockReentryError):
        greenlet.greenlet(enter).switch(luna.slot(1))


def test_the_interpreter_exits(run):
    """The interpreter exits."""
    run("slot.acquire()")


def test_a_holder_is_gone(luna, cluster):
    """A holder is gone."""
    with pytest.warns(ResourceWarning) as warned:
        thread = threading.Thread(target=luna.slot(1).acquire)
        thread.start()
        thread.join()
        del thread
        gc.collect()
        # Another thread may warn, after the unlock.
        wait_until(lambda: warned.list)
    wait_until(lambda: logged(cluster, UNLOCK))


def test_a_fork(luna, in_child):
    """A fork."""

    def leave():
        block.close()
        return True

    with contextlib.ExitStack() as block:
        block.enter_context(luna.slot(1))
        assert in_child(leave) == 0


def test_a_fork_and_the_client_library_does_not_notice_it(luna, cluster, in_child):
    """A fork, and the client library does not notice it."""

    def use():
        with pytest.raises(luna_ext.CryptokiError, match="each process one after the fork"):
            luna.slots()
        return True

    cluster.fault("C_Initialize", ALREADY_INITIALIZED)
    assert in_child(use) == 0
    with luna.slot(1):
        pass


def test_the_event_loop_of_a_waiting_task_is_closed(
    luna, cluster, hold_elsewhere, wait_until_inside
):
    """The event loop of a waiting task is closed."""
    holder = hold_elsewhere(1)

    async def enter_async():
        async with luna.slot(1).lock():
            pass

    loop = asyncio.new_event_loop()
    task = loop.create_task(enter_async())
    loop.run_until_complete(asyncio.sleep(0))
    wait_until_inside(LOCK)
    loop.close()
    holder.release()
    wait_until(lambda: logged(cluster, UNLOCK))
    assert not task.done()
    task._log_destroy_pending = False


def test_another_process_has_the_lock_and_the_device_lets_the_call_wait(
    luna, hold_elsewhere, call, wait_until_inside
):
    """Another process has the lock, and the device lets the call wait."""
    holder = hold_elsewhere(1)
    waiter = call(lambda: enter(luna.slot(1)))
    wait_until_inside(LOCK)
    holder.release()
    waiter.result()


def test_another_process_has_the_lock_and_the_device_answers_an_error(
    cluster, hold_elsewhere, call
):
    """Another process has the lock, and the device answers an error."""
    cluster.switch("contention", "error")
    holder = hold_elsewhere(1)
    with cluster.library(contention="poll") as luna:
        waiter = call(lambda: enter(luna.slot(1)))
        wait_until(lambda: logged(cluster, LOCK) and have_returned(logged(cluster, LOCK)))
        holder.release()
        waiter.result()


def test_the_time_is_up_while_the_call_waits(luna, cluster, hold_elsewhere):
    """The time is up while the call waits."""
    holder = hold_elsewhere(1)
    with pytest.raises(luna_ext.LockTimeoutError), luna.slot(1).lock(timeout=0.05):
        pass
    holder.release()
    wait_until(lambda: logged(cluster, UNLOCK))


def test_a_holder_is_killed(luna, hold_elsewhere):
    """A holder is killed."""
    hold_elsewhere(1).kill()
    with luna.slot(1):
        pass


def test_the_device_is_busy(luna, cluster):
    """The device is busy."""
    cluster.fault(LOCK, BUSY, times=1)
    with luna.slot(1):
        pass


def test_one_of_several_cannot_be_locked(luna, cluster):
    """One of several cannot be locked."""
    cluster.fault(LOCK, GENERAL_ERROR, every=2)
    with (
        pytest.raises(luna_ext.CryptokiError) as raised,
        luna.lock_all([luna.slot(2), luna.slot(1)]),
    ):
        pass
    assert raised.value.slot_id == 2


def test_the_unlock_fails(luna, cluster):
    """The unlock fails."""
    cluster.fault(UNLOCK, DEVICE_ERROR, times=1)
    with pytest.raises(luna_ext.LockReleaseError), luna.slot(1):
        pass


def test_the_block_raises_and_the_unlock_fails(luna, cluster):
    """The block raises, and the unlock fails."""
    cluster.fault(UNLOCK, DEVICE_ERROR, times=1)
    with pytest.raises(ValueError, match="of the block") as raised, luna.slot(1):
        raise ValueError("of the block")
    assert raised.value.__notes__


def test_the_connection_is_lost_while_the_lock_is_held(luna, cluster):
    """The connection is lost while the lock is held."""
    with pytest.raises(luna_ext.LockLostError), luna.slot(1):
        cluster.disconnect(os.getpid())
        luna.slot(1).ensure_held()


def test_the_heartbeat_notices_a_loss(luna, cluster):
    """The heartbeat notices a loss."""

    async def main():
        async with luna.slot(1).lock(heartbeat=0.1):
            cluster.disconnect(os.getpid())
            await asyncio.Event().wait()

    with pytest.raises(luna_ext.LockLostError):
        asyncio.run(main())


def test_other_code_initialises_the_client_library_anew(reinitialise, luna):
    """Other code initialises the client library anew."""
    with pytest.raises(luna_ext.LockLostError), luna.slot(1):
        reinitialise()
        luna.slot(1).ensure_held()


def test_other_code_finalises_the_client_library(luna):
    """Other code finalises the client library."""
    with pytest.raises(luna_ext.LockLostError), luna.slot(1):
        assert ctypes.CDLL(luna.path).C_Finalize(None) == 0
        luna.slot(1).ensure_held()
    luna.reconnect()
    with luna.slot(1):
        pass


def test_you_connect_anew(luna):
    """You connect anew."""
    with pytest.raises(luna_ext.LockLostError), luna.slot(1):
        luna.reconnect()


def test_the_library_is_closed_while_the_lock_is_held(luna, cluster):
    """The Library is closed while the lock is held."""
    with (
        pytest.raises(luna_ext.LockLostError),
        pytest.warns(ResourceWarning),
        luna.slot(1),
    ):
        luna.close()


def test_the_library_is_closed_while_a_thread_waits(
    luna, cluster, hold_elsewhere, call, wait_until_inside
):
    """The Library is closed while a thread waits."""
    holder = hold_elsewhere(1)
    waiter = call(lambda: enter(luna.slot(1).lock(timeout=30)))
    wait_until_inside(LOCK)
    luna.close()
    with pytest.raises(luna_ext.LibraryClosedError):
        waiter.result()
    holder.release()
    wait_until(lambda: 0 in finalisations(cluster))


def test_a_claim_is_not_used(luna, cluster):
    """A claim is not used."""
    with luna.claim(cluster.cluster_id):
        pass


@pytest.mark.luna_cluster(keyrings=1)
def test_a_claim_gives_what_this_process_holds(luna, cluster, call):
    """A claim gives what this process holds."""
    cluster.switch("regrant", "on")
    with luna.slot(1), pytest.raises(luna_ext.NoUnassignedTokenError):
        call(lambda: enter(luna.claim(cluster.cluster_id))).result()


@pytest.mark.luna_cluster(keyrings=1)
def test_a_claim_gives_the_slot_for_which_a_lock_call_is_under_way(
    luna, cluster, call, wait_until_inside
):
    """A claim gives the slot for which a lock call is under way."""
    cluster.latency(0.5, LOCK)
    locking = call(lambda: enter(luna.slot(1)))
    wait_until_inside(LOCK)
    cluster.latency(0, LOCK)
    with luna.claim(cluster.cluster_id):
        wait_until(lambda: have_returned(logged(cluster, LOCK)))
    locking.result()


# In a process of its own, which does not know its device yet.
CROSSING = f"""
cluster.latency(0.5, "{CLAIM}", after=True)
def claim():
    with luna.claim("cluster-1"):
        pass
slot.acquire()
claiming = threading.Thread(target=claim)
claiming.start()
wait_until_inside("{CLAIM}")
slot.release()
claiming.join()
"""


@pytest.mark.luna_cluster(keyrings=1)
def test_a_claim_crosses_an_unlock_of_the_same_slot(succeed, cluster):
    """A claim crosses an unlock of the same slot."""
    cluster.switch("regrant", "on")
    succeed(CROSSING)


def test_the_block_ends_while_the_token_is_still_being_assigned(luna, cluster, wait_until_inside):
    """The block ends while the token is still being assigned."""
    cluster.latency(1, "C_InitToken")

    async def claim():
        async with luna.claim(cluster.cluster_id) as token:
            await asyncio.to_thread(token.assign, "payments-01", so_pin="so-pin-1")

    async def main():
        task = asyncio.create_task(claim())
        await asyncio.to_thread(wait_until_inside, "C_InitToken")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    wait_until(lambda: logged(cluster, UNLOCK))
    (erasure,), (unlock,) = logged(cluster, "C_InitToken"), logged(cluster, UNLOCK)
    assert unlock.time >= erasure.time + erasure.duration


def test_no_unassigned_token_is_left(luna, cluster):
    """No unassigned token is left."""
    cluster.fault(CLAIM, NONE_LEFT, times=1)
    with pytest.raises(luna_ext.NoUnassignedTokenError), luna.claim(cluster.cluster_id):
        pass


@pytest.mark.luna_cluster(keyrings=1)
def test_a_token_has_another_label_by_now(luna, cluster):
    """A token has another label by now."""
    (token,) = luna.tokens()
    with luna.claim(cluster.cluster_id) as claimed:
        claimed.assign("payments-01", so_pin="so-pin-1")
    with pytest.raises(luna_ext.TokenChangedError), token:
        pass
