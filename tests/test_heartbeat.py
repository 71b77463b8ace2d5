"""A hold that is looked after: its loss is noticed while the block runs."""

import asyncio
import contextlib
import gc
import logging
import os
import sys
import threading
import time

import pytest
from support import (
    CLAIM,
    DEVICE_ERROR,
    INIT_TOKEN,
    LOCK,
    NO_MORE_THREADS,
    PATIENCE,
    SESSION_INFO,
    TOKEN_INFO,
    UNLOCK,
    assert_stays,
    have_returned,
    hold_loop_until_it_is_told,
    let_device_forget_us,
    let_others_run_until,
    logged,
    nothing_is_locked,
    refuse_to_be_told,
    wait_until,
)

import luna_ext

BEAT = 0.2
FORMS = {
    "lock": lambda luna, **options: luna.slot(1).lock(timeout=5, **options),
    "token.lock": lambda luna, **options: luna.token("keyring1").lock(timeout=5, **options),
    "claim": lambda luna, **options: luna.claim("cluster-1", timeout=5, **options),
}
EACH_FORM = pytest.mark.parametrize("make", FORMS.values(), ids=FORMS)


def reconnect_silently(cluster):
    """The client has dropped its connection and made another, as if nothing had happened."""
    cluster.reinitialise(os.getpid())


def forget_this_process(cluster):
    cluster.disconnect(os.getpid())


EACH_LOSS = pytest.mark.parametrize("lose", [reconnect_silently, forget_this_process])


def held_slot(luna):
    return next(slot for slot in luna.slots() if slot.locked())


def errors_in(caplog):
    return [record for record in caplog.records if record.levelno == logging.ERROR]


def questions(cluster):
    return len(logged(cluster, TOKEN_INFO))


def answered(cluster):
    return [entry for entry in logged(cluster, TOKEN_INFO) if entry.duration is not None]


# ---- in a thread ----


@EACH_LOSS
@EACH_FORM
def test_a_loss_is_noticed_in_time(luna, cluster, caplog, make, lose):
    with pytest.raises(luna_ext.LockLostError), make(luna, heartbeat=BEAT):
        slot = held_slot(luna)
        began = time.time()
        lose(cluster)
        assert slot.lost.wait(PATIENCE)
        wait_until(lambda: errors_in(caplog))
        assert not slot.locked()
        [record] = errors_in(caplog)
        assert f"slot {slot.slot_id}: the lock was lost" in record.getMessage()
        # Ten times as long, for a busy machine.
        assert record.created - began < 10 * BEAT
    assert logged(cluster, UNLOCK) == []
    luna.reconnect()


@EACH_FORM
def test_a_hold_that_is_not_lost_ends_as_ever(luna, cluster, caplog, make):
    with make(luna, heartbeat=0.02):
        slot = held_slot(luna)
        before = questions(cluster)
        wait_until(lambda: questions(cluster) > before + 3)
        assert slot.locked()
        assert not slot.lost
    assert caplog.records == []
    assert nothing_is_locked(cluster)


def test_nothing_is_asked_after_the_block(luna, cluster):
    lock = luna.slot(1).lock(heartbeat=0.02)
    with lock:
        wait_until(lambda: questions(cluster) > 1)
    before = questions(cluster)
    # One question may have been out.
    assert_stays(lambda: questions(cluster) <= before + 1)


def test_an_end_of_the_block_on_another_thread_leaves_the_heartbeat(luna, cluster, call):
    lock = luna.slot(1).lock(heartbeat=0.02)
    with lock:
        with pytest.raises(luna_ext.LockNotOwnedError):
            call(lambda: lock.__exit__(None, None, None)).result()
        before = questions(cluster)
        wait_until(lambda: questions(cluster) > before + 2)


def test_a_short_block_costs_no_call_more(luna, cluster):
    lock = luna.slot(1).lock(heartbeat=60)
    with lock:
        pass
    before = len(cluster.log())
    with lock:
        pass
    assert [entry.function for entry in cluster.log()[before:]] == [LOCK, UNLOCK]


def test_the_function_is_called_once_with_the_error(luna, cluster):
    heard = []

    def on_lost(error):
        heard.append((error, threading.get_ident(), slot.locked()))

    slot = luna.slot(1)
    with (
        pytest.raises(luna_ext.LockLostError),
        slot.lock(heartbeat=BEAT, on_lost=on_lost),
    ):
        reconnect_silently(cluster)
        wait_until(lambda: heard)
        with pytest.raises(luna_ext.LockLostError):
            slot.ensure_held()
    luna.reconnect()
    [(error, thread, locked)] = heard
    assert isinstance(error, luna_ext.LockLostError)
    assert "its library was finalised" in str(error)
    assert error.slot_id == 1
    assert thread != threading.get_ident()
    assert not locked


def test_a_function_that_raises_is_logged(luna, cluster, caplog):
    def on_lost(error):
        raise RuntimeError("out of order")

    with pytest.raises(luna_ext.LockLostError), luna.slot(1).lock(heartbeat=BEAT, on_lost=on_lost):
        luna.reconnect()
        wait_until(lambda: "on_lost has raised" in caplog.text)
    assert "out of order" in caplog.text


@pytest.mark.parametrize("kind", [RuntimeError, SystemExit])
def test_the_function_is_called_although_a_log_filter_raises(luna, monkeypatch, kind):
    """On a thread of luna_ext, which does not end the program either."""

    def refuse(record):
        raise kind("out of order")

    heard, raised = threading.Event(), []
    monkeypatch.setattr(sys, "unraisablehook", lambda report: raised.append(str(report.exc_value)))
    logger = logging.getLogger("luna_ext")
    with (
        pytest.raises(luna_ext.LockLostError),
        luna.slot(1).lock(heartbeat=60, on_lost=lambda error: heard.set()),
    ):
        logger.addFilter(refuse)
        try:
            luna.reconnect()
            assert heard.wait(PATIENCE)
            wait_until(lambda: raised)
        finally:
            logger.removeFilter(refuse)
    assert raised == ["out of order"]


def test_a_function_that_takes_long_delays_no_other_hold(luna, cluster):
    def on_lost(error):
        released.append(release.wait(PATIENCE))

    release, released = threading.Event(), []
    with (
        contextlib.suppress(luna_ext.LockLostError),
        luna.slot(1).lock(heartbeat=BEAT, on_lost=on_lost),
        contextlib.suppress(luna_ext.LockLostError),
        luna.slot(2).lock(heartbeat=BEAT),
    ):
        lost = luna.slot(1).lost, luna.slot(2).lost
        luna.reconnect()
        assert all(event.wait(PATIENCE) for event in lost)
        release.set()
        wait_until(lambda: released)
    # Not only after the function had waited in vain.
    assert released == [True]


@pytest.mark.filterwarnings("ignore:slot 1 was still locked:ResourceWarning")
@pytest.mark.parametrize("end", ["reconnect", "close"])
def test_a_loss_that_this_program_brings_about_is_told_as_well(luna, end):
    heard = threading.Event()
    with (
        pytest.raises(luna_ext.LockLostError),
        luna.slot(1).lock(heartbeat=60, on_lost=lambda error: heard.set()) as slot,
    ):
        getattr(luna, end)()
        assert heard.wait(PATIENCE)
        assert slot.lost


@pytest.mark.filterwarnings("ignore:slot 1 was still locked:ResourceWarning")
def test_close_tells_before_its_unlock_is_answered(luna, cluster, call):
    """Nor does the heartbeat, which is due meanwhile, forget a hold that is over."""
    heard = threading.Event()
    with (
        pytest.raises(luna_ext.LockLostError),
        luna.slot(1).lock(heartbeat=0.02, on_lost=lambda error: heard.set()),
    ):
        cluster.latency(2, UNLOCK)
        closing = call(luna.close)
        assert heard.wait(PATIENCE)
        wait_until(lambda: logged(cluster, UNLOCK))
        assert not have_returned(logged(cluster, UNLOCK))
        closing.result()


def test_ensure_held_tells_the_function_too(luna, cluster):
    heard = threading.Event()
    with (
        pytest.raises(luna_ext.LockLostError),
        luna.slot(1).lock(heartbeat=60, on_lost=lambda error: heard.set()) as slot,
    ):
        forget_this_process(cluster)
        with pytest.raises(luna_ext.LockLostError):
            slot.ensure_held()
        assert slot.lost
        assert heard.wait(PATIENCE)
    luna.reconnect()


def test_waiters_go_on_when_ensure_held_finds_a_loss(luna, cluster, call, wait_until_queued):
    with pytest.raises(luna_ext.LockLostError), luna.slot(1).lock(heartbeat=60) as slot:
        waiting = call(lambda: hold_once(slot))
        wait_until_queued(slot, 1)
        let_device_forget_us(cluster)
        with pytest.raises(luna_ext.LockLostError):
            slot.ensure_held()
        assert waiting.result() is False
        assert slot.lost


def test_an_answer_after_the_block_tells_of_no_loss(luna, cluster, caplog):
    with luna.slot(1).lock(heartbeat=BEAT) as slot:
        lost = slot.lost
        cluster.fault(TOKEN_INFO, DEVICE_ERROR, times=2)
        cluster.fault(SESSION_INFO, DEVICE_ERROR)
        cluster.latency(1, TOKEN_INFO)
        wait_until(lambda: questions(cluster) == 1)
        cluster.latency(0, TOKEN_INFO)
    assert answered(cluster) == []
    wait_until(lambda: len(answered(cluster)) == 2)
    assert_stays(lambda: not lost)
    with pytest.raises(luna_ext.LockNotOwnedError):
        slot.release()
    assert caplog.records == []


def test_one_passing_error_is_no_loss(luna, cluster, caplog):
    with luna.slot(1).lock(heartbeat=0.02) as slot:
        cluster.fault(TOKEN_INFO, DEVICE_ERROR, times=1)
        before = questions(cluster)
        wait_until(lambda: questions(cluster) > before + 4)
        assert not slot.lost
    assert caplog.records == []


def test_an_error_that_stays_is_told_of_once_while_the_session_lives(luna, cluster, caplog):
    with luna.slot(1).lock(heartbeat=0.02) as slot:
        cluster.fault(TOKEN_INFO, DEVICE_ERROR)
        before = questions(cluster)
        wait_until(lambda: questions(cluster) > before + 8)
        assert not slot.lost
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "CKR_DEVICE_ERROR" in record.getMessage()


def test_an_error_that_comes_again_is_told_of_again(luna, cluster, caplog):
    def some_questions():
        before = questions(cluster)
        wait_until(lambda: questions(cluster) > before + 2)

    # Each question is put twice before it counts as not answered.
    with luna.slot(1).lock(heartbeat=0.02):
        cluster.fault(TOKEN_INFO, DEVICE_ERROR, times=2)
        wait_until(lambda: len(caplog.records) == 1)
        some_questions()
        cluster.fault(TOKEN_INFO, DEVICE_ERROR, times=2)
        wait_until(lambda: len(caplog.records) == 2)


def test_an_error_is_told_of_once_by_a_log_that_takes_long(luna, cluster, monkeypatch):
    release, told = threading.Event(), []

    def take_long(record):
        told.append(record.getMessage())
        assert release.wait(PATIENCE)
        return True

    with luna.slot(1).lock(heartbeat=0.02):
        monkeypatch.setattr(logging.getLogger("luna_ext"), "filters", [take_long])
        cluster.fault(TOKEN_INFO, DEVICE_ERROR)
        wait_until(lambda: told)
        before = questions(cluster)
        wait_until(lambda: questions(cluster) > before + 4)
        assert len(told) == 1
        release.set()


def test_a_device_that_does_not_answer_is_told_of(luna, cluster, caplog):
    with luna.slot(1).lock(heartbeat=BEAT) as slot:
        cluster.latency(2, TOKEN_INFO)
        wait_until(lambda: "does not answer whether its lock is still held" in caplog.text)
        cluster.latency(0, TOKEN_INFO)
        assert not slot.lost
    assert len(caplog.records) == 1


def test_a_question_that_hangs_delays_no_other(luna, cluster, caplog, wait_until_inside):
    with contextlib.ExitStack() as stack:
        cluster.latency(2, TOKEN_INFO)
        for number in (1, 2, 3):
            stack.enter_context(luna.slot(number).lock(heartbeat=BEAT))
        wait_until_inside(TOKEN_INFO)
        [hanging] = logged(cluster, TOKEN_INFO)
        # Those that begin now are answered at once.
        cluster.latency(0, TOKEN_INFO)
        wait_until(
            lambda: {entry.slot_id for entry in answered(cluster)} == {1, 2, 3} - {hanging.slot_id}
        )
        assert logged(cluster, TOKEN_INFO)[0].duration is None


def test_close_does_not_wait_for_a_question_that_hangs(cluster, succeed):
    body = """
        cluster.latency(3600, "C_GetTokenInfo")
        with slot.lock(heartbeat=0.02):
            wait_until_inside("C_GetTokenInfo")
        began = time.monotonic()
        luna.close()
        print(time.monotonic() - began < 2, flush=True)
    """
    assert succeed(body) == ["True"]
    assert nothing_is_locked(cluster)


# Keeps the messages of the log records of a program in `heard`.
HEAR = """
        import logging

        heard = []
        handler = logging.Handler()
        handler.emit = lambda record: heard.append(record.getMessage())
        logging.getLogger("luna_ext").addHandler(handler)
"""


def test_a_hold_that_no_thread_can_ask_for_is_told_of(succeed):
    body = f"""{HEAR}
        def hold():
            # This leaves one thread, which looks after the hold then.
            with slot.lock(timeout=5):
                pass
            {NO_MORE_THREADS}
            while not heard:
                try:
                    with slot.lock(heartbeat=0.1):
                        wait_until(lambda: heard)
                except RuntimeError:
                    # That thread was not idle yet.
                    pass

        in_thread(hold).join()
        print(heard)
    """
    assert "cannot be asked" in " ".join(succeed(body))


def test_a_block_that_no_thread_can_look_after_is_not_entered(cluster, succeed):
    body = f"""
        {NO_MORE_THREADS}
        try:
            slot.lock(heartbeat=60).__enter__()
        except RuntimeError:
            print(slot.locked(), slot.lost.is_set(), cluster.tokens()[0].owner)
    """
    assert succeed(body) == ["False", "False", "None"]
    assert [entry.function for entry in cluster.log()].count(UNLOCK) == 1


def test_a_claim_that_no_thread_can_look_after_is_given_back(cluster, succeed):
    body = f"""
        def claim():
            # This thread makes its device calls itself.
            {NO_MORE_THREADS}
            claiming = luna.claim("cluster-1", heartbeat=60)
            try:
                claiming.__enter__()
            except RuntimeError as error:
                print(error)
            assert all(token.owner is None for token in cluster.tokens())
            threading.stack_size(0)
            with claiming as token:
                token.ensure_held()

        in_thread(claim).join()
        print({{token.owner for token in cluster.tokens()}})
    """
    assert " ".join(succeed(body)) == "can't start new thread {None}"
    calls = [entry.function for entry in cluster.log()]
    assert (calls.count(CLAIM), calls.count(UNLOCK)) == (2, 2)


def test_a_loss_that_no_thread_can_tell_of_is_told_by_the_one_that_finds_it(succeed):
    """All workers are in lock calls that the device does not answer."""
    body = f"""
        def keep_workers_busy():
            for number in range(2, 9):
                try:
                    luna.slot(number).acquire(timeout=0.1)
                except RuntimeError:
                    return

        logging.getLogger("luna_ext").addHandler(logging.NullHandler())
        lost = []
        with luna.slot(1).lock(heartbeat=60, on_lost=lost.append):
            cluster.latency(3600, "CA_LockClusteredSlot")
            {NO_MORE_THREADS}
            keep_workers_busy()
            cluster.fault({TOKEN_INFO!r}, {DEVICE_ERROR}, times=2)
            cluster.fault("C_GetSessionInfo", {DEVICE_ERROR}, times=1)
            try:
                slot.ensure_held()
            except luna_ext.LockLostError:
                print(slot.lost.is_set(), len(lost), flush=True)
            os._exit(0)
    """
    assert succeed(body) == ["True", "1"]


def test_a_fork_after_which_no_thread_can_be_had_is_told_of(succeed):
    body = f"""{HEAR}
        with slot.lock(heartbeat=60):
            {NO_MORE_THREADS}
            child = os.fork()
            if child == 0:
                os._exit(0)
            os.waitpid(child, 0)
        print(heard)
    """
    assert "no lock is asked for by its heartbeat" in " ".join(succeed(body))


def test_a_short_heartbeat_beside_a_long_one(luna, cluster):
    with luna.slot(1).lock(heartbeat=60), luna.slot(2).lock(heartbeat=0.02):
        # A keeper that nothing wakes looks after 5 seconds.
        wait_until(lambda: questions(cluster) > 20, 5)
        assert {entry.slot_id for entry in logged(cluster, TOKEN_INFO)} == {2}


def test_many_holds_need_few_threads(luna, cluster):
    before = len(sys._current_frames())
    with contextlib.ExitStack() as stack:
        for slot in luna.slots():
            stack.enter_context(slot.lock(heartbeat=0.05))
        wait_until(
            lambda: (
                len({entry.slot_id for entry in logged(cluster, TOKEN_INFO)}) == len(luna.slots())
            )
        )
        assert len(sys._current_frames()) <= before + 3
        # The session is asked for once in a round, not once for each hold. On a busy machine holds may at
        # first have rounds of their own.
        wait_until(lambda: len(logged(cluster, SESSION_INFO)) < questions(cluster))


def test_the_session_is_asked_for_although_a_round_never_ends(luna, cluster):
    """When the last hold has been asked for, the first one is due again."""
    with (
        contextlib.suppress(luna_ext.LockLostError),
        luna.slot(1).lock(heartbeat=0.01) as slot,
        contextlib.suppress(luna_ext.LockLostError),
        luna.slot(2).lock(heartbeat=0.01),
    ):
        cluster.latency(0.02, TOKEN_INFO)
        before = questions(cluster)
        wait_until(lambda: questions(cluster) > before + 4)
        reconnect_silently(cluster)
        assert slot.lost.wait(PATIENCE)
    luna.reconnect()


# ---- the event ----


def test_the_event_is_that_of_one_hold(luna, call, wait_until_queued):
    slot = luna.slot(1)
    # It was that of the hold before.
    with slot:
        assert not slot.lost
    with pytest.raises(luna_ext.LockLostError), slot.lock(heartbeat=60):
        lost = slot.lost
        assert slot.lost is lost
        assert not lost.wait(0)
        luna.reconnect()
        assert lost.is_set()
        assert call(lambda: hold_once(slot)).result() is False
        # Another hold has come and gone.
        assert lost
        assert slot.lost.is_set()
    with slot:
        assert not slot.lost


def hold_once(slot):
    with slot:
        return slot.lost.is_set()


def test_all_that_wait_for_a_loss_hear_of_it(luna, call):
    slot = luna.slot(1)
    slot.acquire()
    lost = slot.lost
    waiting = [call(lost.wait) for _ in range(4)]
    assert not lost.wait(0.01)
    luna.reconnect()
    assert all(each.result(30) for each in waiting)
    with pytest.raises(luna_ext.LockLostError):
        slot.release()


def test_a_thread_that_looks_for_a_loss_does_not_wait_for_it(luna, call):
    with luna.slot(1) as slot:
        assert call(lambda: slot.lost.wait(0)).result() is False


def test_the_end_of_a_hold_is_no_loss(luna):
    with luna.slot(1) as slot:
        lost = slot.lost
    assert not lost.wait(0)


def test_a_hold_that_has_ended_before_a_fork_is_not_lost_by_it(luna, in_child):
    with luna.slot(1) as slot:
        lost = slot.lost
    assert in_child(lambda: not lost and not slot.lost) == 0


def test_the_event_of_a_hold_is_set_in_a_child(luna, in_child):
    """Also one that was asked for before the fork."""
    with luna.slot(1) as slot:
        lost = slot.lost
        assert in_child(lambda: lost.is_set() and lost.wait(0)) == 0
        assert not lost


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"heartbeat": 0}, ValueError),
        ({"heartbeat": -1}, ValueError),
        ({"heartbeat": "1"}, TypeError),
        ({"heartbeat": float("nan")}, ValueError),
        ({"heartbeat": 1e300}, OverflowError),
        ({"on_lost": print}, ValueError),
        ({"heartbeat": 1, "on_lost": 5}, TypeError),
    ],
)
@EACH_FORM
def test_wrong_arguments(luna, cluster, make, options, error):
    with pytest.raises(error):
        make(luna, **options)
    assert logged(cluster, LOCK) == []


def test_an_event_cannot_be_made_or_sent(luna):
    with pytest.raises(TypeError):
        luna_ext.LostEvent()
    with pytest.raises(TypeError):
        luna.slot(1).lost.__reduce__()


def test_an_event_says_whether_it_is_set(luna, cluster):
    luna.slot(1).acquire()
    lost = luna.slot(1).lost
    assert repr(lost) == "<luna_ext.LostEvent, not set>"
    cluster.disconnect(os.getpid())
    with pytest.raises(luna_ext.LockLostError):
        luna.slot(1).ensure_held()
    assert repr(lost) == "<luna_ext.LostEvent, set>"
    with pytest.raises(luna_ext.LockLostError):
        luna.slot(1).release()


# ---- in a task ----


@EACH_LOSS
@EACH_FORM
def test_a_block_of_a_task_is_cancelled(luna, cluster, make, lose):
    async def main():
        with pytest.raises(luna_ext.LockLostError) as raised:
            async with make(luna, heartbeat=BEAT):
                lose(cluster)
                await asyncio.sleep(PATIENCE)
        assert isinstance(raised.value.__cause__, asyncio.CancelledError)
        task = asyncio.current_task()
        assert task.cancelling() == 0
        await asyncio.sleep(0)

    asyncio.run(main())
    assert logged(cluster, UNLOCK) == []
    luna.reconnect()


def test_a_block_is_cancelled_though_its_loop_could_not_be_told_at_first(luna, caplog):
    async def main():
        heard = []
        with pytest.raises(luna_ext.LockLostError):
            async with luna.slot(1).lock(heartbeat=60, on_lost=heard.append):
                refuse_to_be_told(asyncio.get_running_loop(), [MemoryError()])
                luna.reconnect()
                await asyncio.sleep(PATIENCE)
        wait_until(lambda: heard)

    asyncio.run(main())
    assert "slot 1: the lock was lost" in caplog.text


def test_blocks_in_each_other(luna):
    """Both are lost at the same moment: the outer one tells, the inner one in a note."""

    heard = threading.Semaphore(0)

    def on_lost(error):
        heard.release()

    async def main():
        with pytest.raises(luna_ext.LockLostError) as raised:
            async with (
                luna.slot(1).lock(heartbeat=60, on_lost=on_lost),
                luna.slot(2).lock(heartbeat=60, on_lost=on_lost),
            ):
                luna.reconnect()
                # The event loop, which both have told by now, comes to both in the same turn.
                assert heard.acquire(timeout=PATIENCE)
                assert heard.acquire(timeout=PATIENCE)
                await asyncio.sleep(PATIENCE)
        assert raised.value.slot_id == 1
        assert "slot 2" in "".join(raised.value.__cause__.__notes__)
        assert asyncio.current_task().cancelling() == 0

    asyncio.run(main())


@pytest.mark.filterwarnings("ignore:slot 2 was still locked:ResourceWarning")
def test_only_the_inner_block_is_lost(luna, cluster):
    async def main():
        async with luna.slot(1).lock(heartbeat=60) as outer:
            other = cluster.library()
            with pytest.raises(luna_ext.LockLostError):
                async with other.slot(2).lock(heartbeat=60):
                    await asyncio.to_thread(other.close)
                    await asyncio.sleep(PATIENCE)
            outer.ensure_held()

    asyncio.run(main())


def test_a_loss_at_the_very_end_of_the_block(luna):
    """The block ends before the event loop comes to cancel it."""

    async def main():
        with pytest.raises(luna_ext.LockLostError):
            async with luna.slot(1).lock(heartbeat=60):
                luna.reconnect()
        task = asyncio.current_task()
        for _ in range(20):
            await asyncio.sleep(0.005)
        assert task.cancelling() == 0

    asyncio.run(main())


def test_a_loss_that_is_still_being_told_does_not_cancel_what_follows_the_block(luna):
    told, go_on = threading.Event(), threading.Event()

    def on_lost(error):
        told.set()
        assert go_on.wait(PATIENCE)

    async def main():
        with pytest.raises(luna_ext.LockLostError):
            async with luna.slot(1).lock(heartbeat=60, on_lost=on_lost):
                luna.reconnect()
                # The event loop does not come to anything else meanwhile.
                assert told.wait(PATIENCE)
        for _ in range(20):
            await asyncio.sleep(0.005)
        assert asyncio.current_task().cancelling() == 0

    try:
        asyncio.run(main())
    finally:
        go_on.set()


def test_a_loss_before_the_block_is_told_in_it(luna, hold_here):
    """The lock is granted and lost while the event loop is busy."""
    heard = threading.Event()

    async def hold():
        async with luna.slot(1).lock(heartbeat=60, on_lost=lambda error: heard.set()):
            await asyncio.Event().wait()

    async def main():
        holder = hold_here(luna.slot(1))
        task = asyncio.create_task(hold())
        await let_others_run_until(lambda: "1 waiting" in repr(luna.slot(1)))
        hold_loop_until_it_is_told(asyncio.get_running_loop(), holder.leave)
        luna.reconnect()
        with pytest.raises(luna_ext.LockLostError):
            await asyncio.wait_for(task, PATIENCE)

    asyncio.run(main())
    assert heard.wait(PATIENCE)


def test_a_loss_while_the_lock_is_logged_is_told_in_the_block(luna, hold_here, log_as_before):
    """Another thread has the lock by then, whose hold is none of this block's."""
    heard, holders = threading.Event(), []

    class Lose(logging.Handler):
        def handle(self, record):
            # Without the handler's lock, which the other thread needs meanwhile.
            self.emit(record)

        def emit(self, record):
            if "locked after" in record.getMessage() and not holders:
                holders.append(None)
                luna.reconnect()
                holders.append(hold_here(luna.slot(1)))

    logger = logging.getLogger("luna_ext")
    logger.addHandler(Lose())
    logger.setLevel(logging.DEBUG)
    lock = luna.slot(1).lock(heartbeat=60, on_lost=lambda error: heard.set())
    with pytest.raises(luna_ext.LockLostError), lock:
        assert heard.wait(PATIENCE)
    assert holders[1].leave() is luna.slot(1)


def test_each_hold_of_one_lock_object_has_a_heartbeat_of_its_own(luna, cluster):
    """The first one is lost while its label is checked, and the second begins before that is answered."""
    heard = []
    lock = luna.token("keyring1").lock(heartbeat=60, on_lost=heard.append)

    async def hold(entered, leave):
        async with lock:
            entered.set()
            await leave.wait()

    async def main():
        entered, leave = asyncio.Event(), asyncio.Event()
        cluster.latency(1, TOKEN_INFO)
        first = asyncio.create_task(hold(asyncio.Event(), asyncio.Event()))
        await let_others_run_until(lambda: logged(cluster, TOKEN_INFO))
        cluster.latency(0, TOKEN_INFO)
        with pytest.raises(luna_ext.LockLostError), luna.slot(2) as other:
            reconnect_silently(cluster)
            other.ensure_held()
        second = asyncio.create_task(hold(entered, leave))
        await asyncio.wait_for(entered.wait(), PATIENCE)
        with pytest.raises(luna_ext.LockLostError):
            await asyncio.wait_for(first, PATIENCE)
        await let_others_run_until(lambda: heard)
        leave.set()
        await second

    asyncio.run(main())
    assert len(heard) == 1
    luna.reconnect()


def test_a_cancellation_by_others_stays_one(luna):
    async def main():
        entered = asyncio.Event()

        async def work():
            async with luna.slot(1).lock(heartbeat=60):
                entered.set()
                await asyncio.sleep(PATIENCE)

        task = asyncio.create_task(work())
        await entered.wait()
        luna.reconnect()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()

    asyncio.run(main())


def test_a_cancellation_before_the_block_is_not_taken_for_that_of_the_loss(luna):
    counts = []

    async def clean_up():
        try:
            await asyncio.Event().wait()
        finally:
            with pytest.raises(luna_ext.LockLostError):
                async with luna.slot(1).lock(heartbeat=60):
                    luna.reconnect()
                    await asyncio.sleep(PATIENCE)
            counts.append(asyncio.current_task().cancelling())

    async def main():
        task = asyncio.create_task(clean_up())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert counts == [1]


def test_a_generators_block_takes_its_cancellation_back(luna):
    """The task is cancelled outside of the generator, which is closed then."""

    async def numbers():
        async with luna.slot(1).lock(heartbeat=60):
            yield 1

    async def main():
        with pytest.raises(asyncio.CancelledError):
            async with contextlib.aclosing(numbers()) as each:
                async for _ in each:
                    luna.reconnect()
                    await asyncio.sleep(PATIENCE)
        assert asyncio.current_task().cancelling() == 0

    asyncio.run(main())


@pytest.mark.filterwarnings("ignore:slot . was still locked:ResourceWarning")
def test_close_beside_an_assignment_tells_when_the_lock_comes_off(luna, cluster, call):
    async def main():
        cluster.latency(1, INIT_TOKEN)
        with pytest.raises(luna_ext.LockLostError):
            async with luna.claim("cluster-1", heartbeat=60) as token:
                assigning = asyncio.ensure_future(
                    asyncio.to_thread(token.assign, "new", so_pin="12345678", user_pin="12345678")
                )
                await let_others_run_until(lambda: logged(cluster, INIT_TOKEN))
                closing = call(luna.close)
                await asyncio.sleep(PATIENCE)
        assert have_returned(logged(cluster, INIT_TOKEN))
        assert asyncio.current_task().cancelling() == 0
        with contextlib.suppress(luna_ext.LunaError):
            await assigning
        closing.result()

    asyncio.run(main())


def test_beside_a_timeout(luna):
    async def main():
        with pytest.raises(luna_ext.LockLostError):
            async with asyncio.timeout(PATIENCE):
                async with luna.slot(1).lock(heartbeat=60):
                    async with asyncio.timeout(PATIENCE):
                        luna.reconnect()
                        await asyncio.sleep(PATIENCE)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                async with luna.slot(1).lock(heartbeat=60):
                    await asyncio.sleep(PATIENCE)

    asyncio.run(main())


def test_in_a_group_of_tasks(luna):
    async def main():
        async def work():
            await asyncio.sleep(PATIENCE)

        with pytest.raises(luna_ext.LockLostError):
            async with luna.slot(1).lock(heartbeat=60), asyncio.TaskGroup() as group:
                group.create_task(work())
                luna.reconnect()

    asyncio.run(main())


def test_a_block_that_takes_the_cancellation_hears_of_the_loss_all_the_same(luna):
    async def main():
        with pytest.raises(luna_ext.LockLostError):
            async with luna.slot(1).lock(heartbeat=60):
                luna.reconnect()
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(PATIENCE)
        assert asyncio.current_task().cancelling() == 0
        await asyncio.sleep(0.01)

    asyncio.run(main())


def test_an_exception_in_place_of_the_cancellation_goes_on(luna):
    async def main():
        with pytest.raises(KeyError) as raised:
            async with luna.slot(1).lock(heartbeat=60):
                luna.reconnect()
                try:
                    await asyncio.sleep(PATIENCE)
                except asyncio.CancelledError:
                    raise KeyError from None
        assert "the lock was lost" in "".join(raised.value.__notes__)
        assert asyncio.current_task().cancelling() == 0

    asyncio.run(main())


def test_an_exception_of_the_block_goes_on(luna):
    async def main():
        with pytest.raises(KeyError) as raised:
            async with luna.slot(1).lock(heartbeat=60):
                luna.reconnect()
                raise KeyError
        assert "the lock was lost" in "".join(raised.value.__notes__)

    asyncio.run(main())


def test_a_task_that_is_gone_loses_its_lock_all_the_same(luna, cluster, caplog):
    """Neither the heartbeat nor the function keeps the task."""

    async def hold(entered):
        def on_lost(error):
            frames.append(sys._getframe())

        frames = []
        async with luna.slot(1).lock(heartbeat=0.02, on_lost=on_lost):
            entered.set()
            await asyncio.Event().wait()

    async def main():
        entered = asyncio.Event()
        task = asyncio.create_task(hold(entered))
        await entered.wait()
        asyncio.tasks._unregister_task(task)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(main())
    loop.close()
    del loop
    with pytest.warns(ResourceWarning) as warned:
        for _ in range(50):
            gc.collect()
            # Another thread may have collected it, and warns after it has begun the unlock.
            if nothing_is_locked(cluster) and len(warned) > 0:
                break
            time.sleep(0.02)
    assert nothing_is_locked(cluster)


# ---- a fork ----


def test_the_parents_heartbeat_goes_on_after_a_fork(luna, cluster, in_child):
    def child():
        assert slot.lost
        assert not slot.locked()
        time.sleep(0.1)
        return logged(cluster, TOKEN_INFO) == []

    with luna.slot(1).lock(heartbeat=0.02) as slot:
        wait_until(lambda: questions(cluster) > 1)
        assert in_child(child) == 0
        before = questions(cluster)
        wait_until(lambda: questions(cluster) > before + 2)
        assert not slot.lost


def test_a_child_has_a_heartbeat_of_its_own(luna, cluster, in_child):
    def child():
        with pytest.raises(luna_ext.LockLostError), luna.slot(1).lock(heartbeat=BEAT) as slot:
            forget_this_process(cluster)
            assert slot.lost.wait(PATIENCE)
        return True

    with luna.slot(2).lock(heartbeat=0.02):
        wait_until(lambda: questions(cluster) > 1)
        assert in_child(child) == 0
