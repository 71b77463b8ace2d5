"""close(): waits for the calls in flight, finalises once, and disturbs no other Library or thread."""

import asyncio
import contextlib
import contextvars
import ctypes
import logging
import os
import signal
import threading
import time

import pytest
from support import (
    AGAIN,
    CLAIM,
    DEVICE_ERROR,
    INIT_PIN,
    INIT_TOKEN,
    LOCK,
    NONE_LEFT,
    ON_BOTH,
    PATIENCE,
    SESSION_INFO,
    TOKEN_INFO,
    UNLOCK,
    assert_stays,
    enter,
    enter_async,
    finalisations,
    have_returned,
    let_device_forget_us,
    logged,
    nothing_is_locked,
    refuse_to_be_told,
    wait_until,
)

import luna_ext
from luna_ext.stub import library_path


def in_order(cluster):
    """Whether each C_Finalize came after the last call that had begun before it."""
    returned = 0.0
    for entry in cluster.log():
        assert entry.duration is not None, entry
        if entry.function == "C_Finalize" and entry.time < returned:
            return False
        returned = max(returned, entry.time + entry.duration)
    return True


def test_many_closes_wait_for_the_calls_of_many_threads(
    cluster, call, wait_until_inside, wait_until_queued
):
    luna = cluster.library()
    slots = [luna.slot(slot_id) for slot_id in range(1, 9)]
    token = luna.token("keyring8")

    def claim():
        with luna.claim("cluster-1"):
            pass

    # The device shows its kind, so that the claim below waits for no unlock.
    cluster.latency(1, CLAIM)
    claiming = call(claim)
    wait_until_inside(CLAIM)
    with slots[0]:
        pass
    claiming.result(30)
    slots[7].acquire(timeout=10)
    holding = threading.Event()
    unlock = threading.Event()

    def hold_and_release():
        slots[5].acquire()
        holding.set()
        assert unlock.wait(10)
        slots[5].release()

    releasing = call(hold_and_release)
    assert holding.wait(10)
    cluster.latency(0.3, LOCK, up_to=0.6)
    cluster.latency(0.5, UNLOCK)
    cluster.latency(0.5, CLAIM)
    cluster.latency(0.5, "C_GetTokenInfo")
    cluster.latency(0.1, "C_Finalize")
    unlock.set()
    waiting = [
        call(slots[0].acquire),
        call(slots[1].lock().__enter__),
        call(slots[2].lock(timeout=20).__enter__),
        call(luna.claim("cluster-1").__enter__),
    ]
    wait_until_inside(LOCK, 3)
    waiting.append(call(slots[0].lock().__enter__))
    wait_until_queued(slots[0], 1)
    telling = [call(luna.tokens), call(lambda: slots[3].token_info), call(token.ensure_held)]
    wait_until_inside("C_GetTokenInfo")
    wait_until_inside(CLAIM)
    wait_until_inside(UNLOCK)
    together = threading.Barrier(8)

    def close():
        together.wait(10)
        try:
            luna.close()
        except ResourceWarning as warning:
            # The first of these calls warns of the slot that was held.
            assert "slot 8 was still locked" in str(warning)  # noqa: PT017
        return luna.closed

    closing = [call(close) for _ in range(8)]
    assert [caller.result(30) for caller in closing] == [True] * 8
    for caller in waiting:
        with pytest.raises(luna_ext.LibraryClosedError):
            caller.result()
    assert releasing.result() is None
    for caller in telling:
        try:
            caller.result()
        except luna_ext.LunaError as error:
            assert isinstance(error, luna_ext.LibraryClosedError | luna_ext.LockNotOwnedError)  # noqa: PT017
    # By the last lock call that was given up, if one is out still.
    wait_until(lambda: finalisations(cluster) == [0])
    assert in_order(cluster)
    assert nothing_is_locked(cluster)
    for refused in (slots[0].acquire, slots[0].lock().__enter__, luna.tokens):
        with pytest.raises(luna_ext.LibraryClosedError):
            refused()
    assert cluster.log()[-1].function == "C_Finalize"


@ON_BOTH
def test_a_claim_in_flight_is_waited_for_and_not_kept(cluster, call, wait_until_inside):
    luna = cluster.library()
    cluster.latency(1, CLAIM)
    claiming = call(luna.claim("cluster-1", timeout=10).__enter__)
    wait_until_inside(CLAIM)
    luna.close()
    assert (finalisations(cluster), in_order(cluster)) == ([0], True)
    with pytest.raises(luna_ext.LibraryClosedError):
        claiming.result()
    assert nothing_is_locked(cluster)


def give_up_once_inside(slot, call, wait_until_inside):
    """Not before the device has the call, however busy the machine is."""
    waiting = call(lambda: slot.acquire(timeout=0.5))
    wait_until_inside(LOCK)
    assert waiting.result() is False


def test_a_call_that_hangs_in_a_given_up_lock_does_not_keep_close(
    cluster, hold_elsewhere, owner_of, call, wait_until_inside
):
    holder = hold_elsewhere(1)
    luna = cluster.library()
    give_up_once_inside(luna.slot(1), call, wait_until_inside)
    luna.close()
    assert finalisations(cluster) == []
    holder.release()
    wait_until(lambda: finalisations(cluster), 20)
    assert owner_of(1) is None


# What leaves a call at the device, and which.
LEFT_BEHIND = {
    "the label, for a thread": (
        TOKEN_INFO,
        enter,
        lambda luna: luna.token("keyring1").lock(timeout=0.3),
    ),
    "the label, for a task": (
        TOKEN_INFO,
        enter_async,
        lambda luna: luna.token("keyring1").lock(timeout=0.3),
    ),
    "a session, for a thread": (
        "C_OpenSession",
        enter,
        lambda luna: luna.slot(1).lock(timeout=0.3),
    ),
    "a session, for a task": (
        SESSION_INFO,
        enter_async,
        lambda luna: luna.slot(1).lock(timeout=0.3),
    ),
    "a session, for a claim": (
        "C_OpenSession",
        enter,
        lambda luna: luna.claim("cluster-1", timeout=0.3),
    ),
}


def is_left_behind(luna, cluster, function):
    """Close the Library while the call is out: that does not wait for it, but finalises in the end."""
    luna.close()
    assert not have_returned(logged(cluster, function))
    assert finalisations(cluster) == []
    cluster.latency(0, function)
    wait_until(lambda: finalisations(cluster), 20)
    assert (finalisations(cluster), in_order(cluster)) == ([0], True)
    assert nothing_is_locked(cluster)


@pytest.mark.parametrize(("function", "way", "lock"), LEFT_BEHIND.values(), ids=LEFT_BEHIND)
def test_no_call_of_an_entry_that_was_given_up_keeps_close(cluster, function, way, lock):
    luna = cluster.library()
    cluster.latency(3, function)
    # A claim has its token already, and enters without the session.
    with contextlib.suppress(luna_ext.LockTimeoutError):
        way(lock(luna))
    is_left_behind(luna, cluster, function)


def test_no_call_of_tokens_that_was_interrupted_keeps_close(cluster, wait_until_inside):
    luna = cluster.library()
    cluster.latency(3, TOKEN_INFO)

    def interrupt():
        wait_until_inside(TOKEN_INFO)
        signal.raise_signal(signal.SIGINT)

    interrupter = threading.Thread(target=interrupt)
    interrupter.start()
    with pytest.raises(KeyboardInterrupt):
        luna.tokens()
    interrupter.join()
    is_left_behind(luna, cluster, TOKEN_INFO)


@pytest.mark.parametrize("ends", ["its end comes first", "close() comes first"])
def test_a_look_at_a_label_that_was_given_up_is_counted_once(
    cluster, ends, wait_until_inside, call
):
    """A close() waits for other calls as ever afterwards."""
    luna = cluster.library()
    token = luna.token("keyring1")
    cluster.latency(0.6, TOKEN_INFO)
    with pytest.raises(luna_ext.LockTimeoutError):
        enter(token.lock(timeout=0.2))
    if ends == "its end comes first":
        wait_until(lambda: have_returned(logged(cluster, TOKEN_INFO)))
    else:
        luna.close()
        wait_until(lambda: finalisations(cluster) == [0])
        luna = cluster.library()
    asking = call(lambda: luna.slot(2).token_info)
    wait_until(lambda: not have_returned(logged(cluster, TOKEN_INFO)))
    luna.close()
    asking.result()
    assert have_returned(logged(cluster, TOKEN_INFO))
    assert finalisations(cluster)[-1] == 0
    assert in_order(cluster)


@pytest.mark.parametrize("answer", ["granted", "an error"])
def test_a_given_up_lock_does_not_keep_close_after_a_call_that_a_thread_made_itself(
    cluster, hold_elsewhere, call, wait_until_inside, answer
):
    """Who makes the present call is what counts, not who made the one before."""
    luna = cluster.library()
    if answer == "an error":
        cluster.fault(LOCK, DEVICE_ERROR, times=1)
        with pytest.raises(luna_ext.DeviceError):
            call(luna.slot(1).acquire).result()
    else:
        call(lambda: use(luna.slot(1))).result()
    holder = hold_elsewhere(1)
    give_up_once_inside(luna.slot(1), call, wait_until_inside)
    call(luna.close).result()
    assert finalisations(cluster) == []
    holder.release()
    wait_until(lambda: finalisations(cluster), 20)


def test_the_lock_call_of_a_thread_that_was_queued_is_waited_for(
    cluster, hold_here, call, wait_until_queued, wait_until_inside
):
    luna = cluster.library()
    holder = hold_here(luna.slot(1))
    waiting = call(luna.slot(1).acquire)
    wait_until_queued(luna.slot(1), 1)
    cluster.latency(1, LOCK)
    holder.leave()
    wait_until_inside(LOCK)
    luna.close()
    assert (finalisations(cluster), in_order(cluster)) == ([0], True)
    with pytest.raises(luna_ext.LibraryClosedError):
        waiting.result()
    assert nothing_is_locked(cluster)


def test_a_lock_call_that_close_overtakes_is_no_success(cluster, call, wait_until_inside):
    cluster.latency(1, LOCK)
    luna = cluster.library()
    slot = luna.slot(1)
    waiting = call(slot.acquire)
    wait_until_inside(LOCK)
    luna.close()
    with pytest.raises(luna_ext.LibraryClosedError):
        waiting.result()
    assert not slot.locked()
    assert nothing_is_locked(cluster)


@pytest.fixture
def another_user_initialises(cluster):
    """Another user of the client library in this process, so that close() finalises nothing."""
    client = ctypes.CDLL(library_path())
    assert client.C_Initialize(None) == 0
    yield
    assert client.C_Finalize(None) == 0


@pytest.mark.usefixtures("another_user_initialises")
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
    assert nothing_is_locked(cluster)


@ON_BOTH
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
    wait_until(lambda: nothing_is_locked(cluster))
    assert [token.slot_id for token in cluster.tokens() if token.label == "new"] == claimed
    with pytest.raises(luna_ext.LockLostError):
        assigning.result()


def test_a_close_in_an_assignment_logs_the_so_out(cluster, call, wait_until_inside):
    """The session may not be the application's only one, and a login is that of all of them."""
    luna = cluster.library()

    def assign():
        with luna.claim("cluster-1") as token:
            token.assign("new", so_pin="12345678", user_pin="87654321")

    cluster.latency(0.5, INIT_PIN)
    assigning = call(assign)
    wait_until_inside(INIT_PIN)
    with pytest.warns(ResourceWarning, match="still locked"):
        luna.close()
    with pytest.raises(luna_ext.LockLostError):
        assigning.result()
    assert [one.rv for one in logged(cluster, "C_Logout")] == [0]


@pytest.mark.filterwarnings("ignore:slot 1 was still locked:ResourceWarning")
def test_the_newest_of_many_holders_of_closed_libraries_is_told_of_it(cluster):
    for _ in range(70):
        luna = cluster.library()
        slot = luna.slot(1)
        slot.acquire()
        luna.close()
    with pytest.raises(luna_ext.LockLostError):
        slot.release()


@pytest.mark.usefixtures("luna")  # stays open, so that the assignment's calls still go through
def test_what_a_close_has_put_off_for_an_assignment_is_over_for_the_next_holder(
    cluster, call, owner_of, wait_until_inside
):
    """Its lock comes off at once when its Library is closed, and not at the end of an assignment."""
    first, second = cluster.library(), cluster.library()
    claimed = []

    def assign():
        with first.claim("cluster-1") as token:
            claimed.append(token.slot.slot_id)
            token.assign("new", so_pin="12345678")

    cluster.latency(1, INIT_TOKEN)
    assigning = call(assign)
    wait_until_inside(INIT_TOKEN)
    with pytest.warns(ResourceWarning, match="still locked"):
        first.close()
    with pytest.raises(luna_ext.LockLostError):
        assigning.result()
    (slot_id,) = claimed
    slot = second.slot(slot_id)
    slot.acquire()
    with pytest.warns(ResourceWarning, match="still locked"):
        second.close()
    assert owner_of(slot_id) is None
    with pytest.raises(luna_ext.LockLostError):
        slot.release()


@pytest.mark.usefixtures("luna")  # stays open, so that the assignment's calls still go through
def test_a_close_waits_for_each_of_two_assignments(cluster, call, owner_of, wait_until_inside):
    """The second one is made by what the holder has started."""
    mine = cluster.library()
    claimed = []

    def assign():
        with mine.claim("cluster-1") as token:
            claimed.extend([token, contextvars.copy_context()])
            token.assign("long", so_pin="12345678")

    cluster.latency(4, INIT_TOKEN)
    assigning = call(assign)
    wait_until_inside(INIT_TOKEN)
    token, context = claimed
    cluster.latency(1, INIT_TOKEN)
    beside = call(lambda: context.run(token.assign, "short", so_pin="12345678"))
    wait_until_inside(INIT_TOKEN, 2)
    with pytest.warns(ResourceWarning, match="still locked"):
        mine.close()
    beside.result()
    assert owner_of(token.slot.slot_id) == os.getpid()
    assert not have_returned(logged(cluster, INIT_TOKEN))
    with pytest.raises(luna_ext.LockLostError):
        assigning.result()
    assert nothing_is_locked(cluster)


@pytest.mark.filterwarnings("ignore:slot . was still locked:ResourceWarning")
def test_a_close_beside_an_assignment_whose_lock_is_lost_lets_others_lock_at_once(
    cluster, luna, call, wait_until_inside
):
    """There is nothing to unlock, so nothing to wait for."""
    mine = cluster.library()
    claimed = []

    def assign():
        with mine.claim("cluster-1") as token:
            claimed.extend([token, contextvars.copy_context()])
            token.assign("label", so_pin="12345678")

    cluster.latency(2, INIT_TOKEN)
    assigning = call(assign)
    wait_until_inside(INIT_TOKEN)
    token, context = claimed
    let_device_forget_us(cluster)
    with pytest.raises(luna_ext.LockLostError):
        context.run(token.slot.ensure_held)
    mine.close()
    with luna.slot(token.slot.slot_id).lock(timeout=20):
        assert not have_returned(logged(cluster, INIT_TOKEN))
    with pytest.raises(luna_ext.LockLostError):
        assigning.result()


def give_up_a_lock_call(luna, cluster):
    # On a busy machine the time may be up before the call is at the device.
    while not logged(cluster, LOCK):
        assert luna.slot(1).acquire(timeout=0.05) is False


def test_a_given_up_lock_call_that_fails_finalises_when_it_returns(cluster, hold_elsewhere):
    hold_elsewhere(1)
    luna = cluster.library()
    give_up_a_lock_call(luna, cluster)
    luna.close()
    cluster.switch("contention", "error")
    wait_until(lambda: finalisations(cluster) == [0])


@ON_BOTH
def test_a_given_up_claim_that_gets_nothing_finalises_when_it_returns(cluster):
    cluster.latency(0.5, CLAIM)
    cluster.fault(CLAIM, NONE_LEFT)
    luna = cluster.library()
    with pytest.raises(luna_ext.LockTimeoutError):
        luna.claim("cluster-1", timeout=0.05).__enter__()
    luna.close()
    wait_until(lambda: finalisations(cluster) == [0])


def test_a_given_up_claim_that_came_back_keeps_no_close_from_waiting_for_a_lock_call(
    cluster, call, wait_until_inside
):
    """It counts no more among the calls that are not waited for."""
    luna = cluster.library()
    cluster.latency(0.3, CLAIM)
    with pytest.raises(luna_ext.LockTimeoutError):
        luna.claim("cluster-1", timeout=0.05).__enter__()
    wait_until(lambda: logged(cluster, UNLOCK) and have_returned(cluster.log()))
    cluster.latency(0.5, LOCK)
    locking = call(luna.slot(1).acquire)
    wait_until_inside(LOCK)
    luna.close()
    assert (finalisations(cluster), in_order(cluster)) == ([0], True)
    with pytest.raises(luna_ext.LibraryClosedError):
        locking.result()


def test_a_library_that_is_opened_beside_a_given_up_call_is_finalised(cluster, hold_elsewhere):
    holder = hold_elsewhere(1)
    luna = cluster.library()
    give_up_a_lock_call(luna, cluster)
    luna.close()
    again = cluster.library()
    holder.release()
    again.close()
    wait_until(lambda: [entry.rv for entry in logged(cluster, "C_Finalize")] == [0])


def test_a_library_that_opens_while_others_wait_to_finalise_is_not_finalised(cluster, call):
    first, last = cluster.library(), cluster.library()
    first.close()
    cluster.latency(1, "C_Finalize")
    closing = call(last.close)
    wait_until(lambda: logged(cluster, "C_Finalize"))
    # It waits for that, and so do the closes behind it, which have seen that something is to be finalised.
    opening = call(cluster.library)
    assert_stays(opening.is_alive)
    again = [call(first.close) for _ in range(8)]
    closing.result()
    cluster.latency(0, "C_Finalize")
    with opening.result() as luna:
        for thread in again:
            thread.result()
        with luna.slot(1):
            luna.slot(1).ensure_held()
        assert finalisations(cluster) == [0]


@pytest.mark.parametrize("function", ["C_Finalize", "C_Initialize"])
def test_a_library_that_is_closed_while_a_reconnect_lasts_is_finalised(
    cluster, call, wait_until_inside, function
):
    luna = cluster.library()
    cluster.latency(1, function)
    reconnecting = call(luna.reconnect)
    wait_until_inside(function)
    luna.close()
    assert [entry.rv for entry in logged(cluster, "C_Finalize")] == [0, 0]
    reconnecting.result()


def has_ended_within(thread, seconds):
    thread.join(seconds)
    return not thread.is_alive()


def test_a_library_that_is_closed_while_a_reconnect_waits_for_calls_is_finalised(
    cluster, hold_elsewhere, call, wait_until_inside
):
    luna = cluster.library()
    holder = hold_elsewhere(1)
    locking = call(lambda: enter(luna.slot(1)))
    wait_until_inside(LOCK)
    reconnecting = call(luna.reconnect)
    # Calls wait for it.
    wait_until(lambda: not has_ended_within(call(luna.slots), 0.05))
    closing = call(luna.close)
    with pytest.raises(luna_ext.DeviceError, match="initialised anew"):
        reconnecting.result()
    holder.release()
    closing.result()
    assert [entry.rv for entry in logged(cluster, "C_Finalize")] == [0]
    with pytest.raises(luna_ext.LibraryClosedError):
        locking.result()


def test_a_reconnect_behind_another_one_is_refused_once_the_library_is_closed(
    cluster, hold_elsewhere, call, on_alarm
):
    """Else it would initialise the library anew when close() has looked for the last time."""
    luna = cluster.library()
    holder = hold_elsewhere(1)
    give_up_a_lock_call(luna, cluster)
    first = call(luna.reconnect)
    wait_until(lambda: not has_ended_within(call(luna.slots), 0.05))

    def close():
        luna.close()
        closed.append(call(holder.release))

    closed = []
    # While this thread waits for the first one, which waits for the call.
    on_alarm(close)
    with pytest.raises(luna_ext.LibraryClosedError):
        luna.reconnect()
    with pytest.raises(luna_ext.DeviceError, match="initialised anew"):
        first.result()
    closed[0].result()
    wait_until(lambda: [entry.rv for entry in logged(cluster, "C_Finalize")] == [0])


def test_a_library_that_is_closed_while_a_child_initialises_it_is_finalised(
    cluster, call, in_child, wait_until_inside
):
    def child():
        cluster.latency(1, "C_Initialize")
        asking = call(luna.slots)
        wait_until_inside("C_Initialize")
        luna.close()
        with pytest.raises(luna_ext.LibraryClosedError):
            asking.result()
        return [entry.rv for entry in logged(cluster, "C_Finalize")] == [0]

    with cluster.library() as luna:
        assert in_child(child) == 0


# ---- a device that is busy when the library is closed ----


def is_told_to_ask_again(cluster):
    return any(entry.rv == AGAIN for entry in logged(cluster, UNLOCK))


def test_a_release_that_close_overtakes_unlocks_nothing_afterwards(cluster, hold_here, call):
    luna = cluster.library()
    holder = hold_here(luna.slot(1))
    cluster.fault(UNLOCK, AGAIN)
    releasing = call(holder.leave)
    wait_until(lambda: is_told_to_ask_again(cluster))
    luna.close()
    cluster.fault(UNLOCK, AGAIN, times=0)
    # An unlock without C_Initialize would be an error.
    releasing.result()


def test_a_busy_unlock_is_not_repeated_beside_the_finalisation(cluster, hold_here, call):
    luna = cluster.library()
    holder = hold_here(luna.slot(1))
    cluster.fault(UNLOCK, AGAIN)
    # Longer than the pauses between the first tries.
    cluster.latency(0.3, "C_Finalize")
    releasing = call(holder.leave)
    wait_until(lambda: is_told_to_ask_again(cluster))
    luna.close()
    releasing.result()
    assert cluster.log()[-1].function == "C_Finalize"


def test_a_busy_unlock_is_not_repeated_after_the_next_initialise(
    cluster, hold_here, call, hold_elsewhere, owner_of
):
    luna = cluster.library()
    holder = hold_here(luna.slot(1))
    cluster.fault(UNLOCK, AGAIN)
    releasing = call(holder.leave)
    wait_until(lambda: is_told_to_ask_again(cluster))
    luna.close()
    next_holder = hold_elsewhere(1)
    with cluster.library():
        cluster.fault(UNLOCK, AGAIN, times=0)
        with contextlib.suppress(luna_ext.LockError):
            releasing.result()
        assert owner_of(1) == next_holder.pid


def test_a_busy_unlock_is_not_repeated_after_an_initialise_within_its_pause(
    cluster, hold_here, call, hold_elsewhere, owner_of
):
    """Closed and opened again between two tries, so that it cannot see that it was closed."""
    luna = cluster.library()
    holder = hold_here(luna.slot(1))
    elsewhere = call(lambda: hold_elsewhere(1))
    wait_until(lambda: any(entry.function == LOCK for entry in of_others(cluster)))
    cluster.fault(UNLOCK, AGAIN)
    releasing = call(holder.leave)
    # The first pauses are short.
    wait_until(lambda: len(logged(cluster, UNLOCK)) > 4)
    luna.close()
    with cluster.library():
        cluster.fault(UNLOCK, AGAIN, times=0)
        next_holder = elsewhere.result()
        releasing.result()
        assert owner_of(1) == next_holder.pid


def of_others(cluster):
    return [entry for entry in cluster.log() if entry.pid != os.getpid()]


def test_close_wakes_a_waiter_behind_that_of_another_library(
    cluster, hold_elsewhere, call, wait_until_queued
):
    holder = hold_elsewhere(1)

    def wait_through(luna, number):
        slot = luna.slot(1)
        waiting = call(lambda: slot.acquire(timeout=PATIENCE) and slot.release() is None)
        wait_until_queued(slot, number)
        return waiting

    with cluster.library() as luna:
        first = wait_through(luna, 1)
        closed = cluster.library()
        second = wait_through(closed, 2)
        closed.close()
        with pytest.raises(luna_ext.LibraryClosedError):
            second.result(PATIENCE / 2)
        holder.release()
        assert first.result()


@pytest.mark.filterwarnings("ignore:slot 1 was still locked:ResourceWarning")
def test_a_holder_hears_of_the_close_before_its_lock_is_off(cluster, call, wait_until_inside):
    luna = cluster.library()
    slot = luna.slot(1)
    slot.acquire()
    lost = slot.lost
    cluster.latency(0.5, UNLOCK)
    closing = call(luna.close)
    wait_until_inside(UNLOCK)
    assert lost
    assert nothing_is_locked(cluster) is False
    closing.result()


@pytest.mark.signals
def test_a_signal_handler_may_close_while_main_waits_in_close(cluster, call, wait_until_inside):
    """close() in close(), and both wait for the same call."""
    luna = cluster.library()
    cluster.latency(0.5, LOCK)
    waiting = call(luna.slot(1).acquire)
    wait_until_inside(LOCK)
    closed = []
    previous = signal.signal(signal.SIGALRM, lambda *_: closed.append(luna.close()))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        luna.close()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert closed == [None]
    with pytest.raises(luna_ext.LibraryClosedError):
        waiting.result()
    assert (finalisations(cluster), in_order(cluster)) == ([0], True)


@pytest.mark.signals
@pytest.mark.parametrize("timeout", [-1, 50])
def test_a_signal_handler_may_close_while_main_waits_for_a_lock(cluster, call, timeout):
    luna = cluster.library()
    slot = luna.slot(1)
    held, done = threading.Event(), threading.Event()

    def hold():
        slot.acquire()
        held.set()
        assert done.wait(20)
        with pytest.raises(luna_ext.LockLostError):
            slot.release()

    def close(*_):
        with pytest.warns(ResourceWarning, match="slot 1 was still locked"):
            luna.close()

    holding = call(hold)
    assert held.wait(10)
    previous = signal.signal(signal.SIGALRM, close)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(luna_ext.LibraryClosedError):
            slot.acquire(timeout=timeout)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    done.set()
    holding.result()
    assert finalisations(cluster) == [0]
    assert nothing_is_locked(cluster)


@pytest.mark.signals
def test_a_signal_handler_may_close_while_main_assigns(cluster, on_alarm):
    """close() waits for an assignment, and this one waits for the handler."""
    luna = cluster.library()
    cluster.latency(0.3, INIT_TOKEN)
    # The error is made in Python, where the handler runs.
    cluster.fault(INIT_TOKEN, DEVICE_ERROR)

    def close():
        with pytest.warns(ResourceWarning, match="still locked"):
            luna.close()

    with pytest.raises(luna_ext.DeviceError), luna.claim("cluster-1") as token:
        on_alarm(close)
        token.assign("new", so_pin="12345678")
    assert luna.closed
    assert nothing_is_locked(cluster)


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


@pytest.mark.signals
def test_a_signal_that_interrupts_close_leaves_it_to_be_done_again(
    cluster, call, wait_until_inside
):
    luna = cluster.library()
    # The worker of an earlier test may still pause between two tries, and would make the call: close()
    # does not wait for a worker's call that no thread waits for any more.
    with luna.slot(1):
        pass
    cluster.latency(1.5, LOCK)
    waiting = call(luna.slot(1).acquire)
    wait_until_inside(LOCK)

    def interrupt(*_):
        raise InterruptedError

    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        try:
            luna.close()
        except InterruptedError:
            pass
        else:
            pytest.fail(f"close() has not waited for the call: {waiting}, {cluster.log()[-8:]}")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert luna.closed
    luna.close()
    assert (finalisations(cluster), in_order(cluster)) == ([0], True)
    with pytest.raises(luna_ext.LibraryClosedError):
        waiting.result()


@pytest.mark.signals
def test_a_lock_that_a_handlers_close_took_is_not_released_under_its_next_holder(
    cluster, hold_here, on_alarm, owner_of
):
    """The interrupted wait was granted the lock before; it ends with the handler's exception, and must not
    unlock what another thread holds by then.
    """
    with cluster.library() as other:
        luna = cluster.library()
        slot = luna.slot(1)
        holder = hold_here(other.slot(1))
        next_holder = []

        def close_and_raise():
            holder.leave()
            wait_until(slot.locked)
            with pytest.warns(ResourceWarning, match="slot 1 was still locked"):
                luna.close()
            next_holder.append(hold_here(other.slot(1)))
            raise KeyboardInterrupt

        on_alarm(close_and_raise)
        with pytest.raises(KeyboardInterrupt):
            slot.acquire(timeout=20)
        assert_stays(lambda: owner_of(1) == os.getpid())
        assert next_holder[0].leave() is other.slot(1)


def test_a_close_that_is_interrupted_while_it_tells_an_event_loop_is_finished(
    cluster, call, hold_here, wait_until_queued, owner_of
):
    """If a signal handler raises during close(), close() finishes first and then raises that."""
    with cluster.library():
        luna = cluster.library()
        slot = luna.slot(1)
        holder = hold_here(slot)

        async def wait():
            refuse_to_be_told(asyncio.get_running_loop(), [KeyboardInterrupt()])
            async with slot.lock(timeout=20):
                pass

        waiting = call(lambda: asyncio.run(wait()))
        wait_until_queued(slot, 1)
        with pytest.raises(KeyboardInterrupt):
            luna.close()
        with pytest.raises(luna_ext.LibraryClosedError):
            waiting.result()
        assert owner_of(1) is None
        with pytest.raises(luna_ext.LockLostError):
            holder.leave()


@pytest.mark.luna_cluster(keyrings=32)
def test_a_close_that_is_interrupted_while_it_fails_claims_is_finished(
    cluster, call, wait_until_inside
):
    """More claims than workers make at a time; close() itself tells the others."""
    luna = cluster.library()

    async def claim():
        async with luna.claim("cluster-1", timeout=20):
            pass

    async def claim_many():
        refuse_to_be_told(asyncio.get_running_loop(), [KeyboardInterrupt()])
        return await asyncio.gather(*(claim() for _ in range(24)), return_exceptions=True)

    cluster.latency(0.5, CLAIM)
    claiming = call(lambda: asyncio.run(claim_many()))
    wait_until_inside(CLAIM, 16)
    with pytest.raises(KeyboardInterrupt):
        luna.close()
    assert finalisations(cluster) == [0]
    assert {type(error) for error in claiming.result()} == {luna_ext.LibraryClosedError}


@pytest.mark.luna_cluster(keyrings=32)
@pytest.mark.parametrize("wants", ["a lock", "a claim"])
def test_a_close_that_is_interrupted_while_it_makes_an_error_leaves_no_waiter(
    cluster, call, monkeypatch, wait_until_inside, wait_until_queued, wants
):
    """An error is made in Python, where a signal handler may run and raise."""
    luna = cluster.library()
    closing_thread = threading.get_ident()
    make = luna_ext.LibraryClosedError.__init__

    def be_interrupted(error, *arguments, **options):
        if threading.get_ident() == closing_thread:
            monkeypatch.undo()
            raise KeyboardInterrupt
        make(error, *arguments, **options)

    async def claim():
        async with luna.claim("cluster-1", timeout=20):
            pass

    async def claim_many():
        # More than workers make at a time.
        return await asyncio.gather(*(claim() for _ in range(24)), return_exceptions=True)

    def lock():
        try:
            luna.slot(1).acquire()
        except luna_ext.LunaError as error:
            return [error]

    with cluster.library() as other, other.slot(1):
        if wants == "a lock":
            waiting = call(lock)
            wait_until_queued(other.slot(1), 1)
        else:
            cluster.latency(0.5, CLAIM)
            waiting = call(lambda: asyncio.run(claim_many()))
            wait_until_inside(CLAIM, 16)
        monkeypatch.setattr(luna_ext.LibraryClosedError, "__init__", be_interrupted)
        with pytest.raises(KeyboardInterrupt):
            luna.close()
        assert {type(error) for error in waiting.result(5)} == {luna_ext.LibraryClosedError}


def test_who_hears_of_a_failed_finalisation_may_open_the_library(cluster, succeed):
    """Nothing is held while the record is written; in a process of its own, for it could hang."""
    body = """
        import logging
        def open_once(record):
            opened.append(cluster.library())
            return False
        opened = []
        logging.getLogger("luna_ext").addFilter(open_once)
        cluster.fault("C_Finalize", 0x30, times=1)
        closing = in_thread(luna.close)
        closing.join(30)
        if closing.is_alive():
            os._exit(1)
        with opened[0] as luna, luna.slot(1):
            pass
    """
    assert succeed(body) == []


@ON_BOTH
def test_storms_of_open_and_close_with_locks(cluster, call):
    """Each thread opens, locks in all ways, closes; sometimes the Library of another thread.

    A thread whose Library was closed while it held a lock gets an error, and another thread gets the lock
    at once.
    """
    holders = {}
    clashes = []
    current = []
    together = threading.Barrier(6)
    looking = threading.Lock()

    def enter(slot_id, luna):
        with looking:
            before = holders.get(slot_id)
            if before is not None and not before.closed:
                clashes.append(slot_id)
            holders[slot_id] = luna
        os.sched_yield()
        with looking:
            if holders.get(slot_id) is luna:
                del holders[slot_id]
            elif not luna.closed:
                clashes.append(slot_id)

    def work(number):
        together.wait(10)
        counted = 0
        for turn in range(40):
            luna = cluster.library()
            current.append(luna)
            try:
                with luna.slot(1 + turn % 2):
                    enter(1 + turn % 2, luna)
                with luna.slot(3).lock(timeout=20):
                    enter(3, luna)
                with luna.claim("cluster-1", timeout=20) as token:
                    enter(token.slot.slot_id, luna)
                counted += 1
            except (luna_ext.LibraryClosedError, luna_ext.LockLostError):
                pass
            if turn % 4 == number % 4:
                close(current.pop(0))
            close(luna)
        return counted

    def close(luna):
        with contextlib.suppress(ResourceWarning):
            luna.close()

    work_of_all = [call(lambda number=number: work(number)) for number in range(6)]
    assert all(caller.result(90) for caller in work_of_all)
    assert clashes == []
    assert nothing_is_locked(cluster)
    assert set(finalisations(cluster)) == {0}
    opened = [entry.rv for entry in cluster.log() if entry.function == "C_Initialize"]
    assert set(opened) == {0}
    assert in_order(cluster)
    with cluster.library() as luna, luna.slot(1):
        pass


@pytest.mark.filterwarnings("ignore:slot 1 was still locked:ResourceWarning")
def test_a_fast_lock_call_that_close_overtakes_gives_no_lock(cluster, call):
    """A thread that waits for the GIL gets it while the call is out, and closes the Library."""
    locked = []

    def lock_again_and_again(luna, slot, begun, closed):
        with contextlib.suppress(luna_ext.LibraryClosedError, luna_ext.LockLostError):
            while True:
                with slot:
                    begun.set()
                    if luna.closed:
                        assert closed.wait(PATIENCE)
                        locked.append(slot.locked())

    for _ in range(100):
        luna = cluster.library()
        begun, closed = threading.Event(), threading.Event()
        locking = call(lambda: lock_again_and_again(luna, luna.slot(1), begun, closed))  # noqa: B023
        assert begun.wait(PATIENCE)
        luna.close()
        closed.set()
        locking.result()
    assert not any(locked)


def test_a_close_goes_on_as_soon_as_the_call_that_it_waits_for_is_back(cluster, call):
    """Of many, one at least: it does not only look for that now and then."""
    late = []
    for _ in range(20):
        luna = cluster.library()
        cluster.latency(0.02, TOKEN_INFO)
        slot = luna.slot(1)
        before = len(logged(cluster, TOKEN_INFO))
        asking = call(lambda slot=slot: slot.token_info)
        wait_until(lambda before=before: len(logged(cluster, TOKEN_INFO)) > before)
        luna.close()
        asking.result()
        late.append(time.time() - logged(cluster, TOKEN_INFO)[-1].time)
    assert min(late) < 0.04


def test_a_close_that_is_not_the_first_waits_as_the_first_does(cluster, call, wait_until_inside):
    """Also while the first one is still taking off what is held."""
    luna = cluster.library()
    luna.slot(1).acquire()
    cluster.latency(0.5, UNLOCK)
    closing = call(luna.close)
    wait_until_inside(UNLOCK)
    luna.close()
    assert (finalisations(cluster), in_order(cluster)) == ([0], True)
    with pytest.raises(ResourceWarning):
        closing.result()


# ---- beside another Library, so that nothing is finalised ----


def use(slot):
    with slot:
        return True


def test_close_fails_those_who_wait_behind_another_library(cluster, call, wait_until_queued):
    luna = cluster.library()
    slot = luna.slot(1)
    with cluster.library() as other, other.slot(1):
        waiting = [call(slot.acquire), call(lambda: slot.acquire(timeout=50))]
        wait_until_queued(slot, 2)
        luna.close()
        for caller in waiting:
            with pytest.raises(luna_ext.LibraryClosedError):
                caller.result()


@pytest.mark.parametrize("in_task", [False, True])
def test_a_wait_whose_time_ends_just_when_close_is_to_fail_it_ends(
    luna, cluster, call, hold_here, wait_until_queued, monkeypatch, in_task
):
    """What it would fail with is still being made, so it has not failed by then."""
    closing = cluster.library()
    hold_here(luna.slot(1))
    make = luna_ext.LibraryClosedError.__init__

    def make_slowly(self, *arguments, **options):
        time.sleep(1.2)
        make(self, *arguments, **options)

    monkeypatch.setattr(luna_ext.LibraryClosedError, "__init__", make_slowly)
    slot = closing.slot(1)

    def wait_in_task():
        try:
            enter_async(slot.lock(timeout=1))
        except luna_ext.LockTimeoutError:
            return False

    waiting = call(wait_in_task if in_task else lambda: slot.acquire(timeout=1))
    wait_until_queued(luna.slot(1), 1)
    closing.close()
    assert waiting.result() is False


@pytest.mark.parametrize("on", ["the main thread", "another thread"])
def test_a_library_that_an_audit_hook_closes_is_not_waited_through(succeed, on):
    """The hook is called before the lock is asked for, so the close could not yet end the wait."""
    body = f"""
        held, leave = threading.Event(), threading.Event()
        other = cluster.library()
        to_close = []

        def hold():
            with other.slot(1):
                held.set()
                assert leave.wait(40)

        def close(event, arguments):
            if event == "luna_ext.lock" and to_close:
                signal.alarm(30)
                to_close.pop().close()

        def lock():
            try:
                slot.acquire()
            except luna_ext.LibraryClosedError:
                print("closed")

        holding = in_thread(hold)
        assert held.wait(20)
        sys.addaudithook(close)
        to_close.append(luna)
        if {on == "the main thread"}:
            lock()
        else:
            in_thread(lock).join(10)
        leave.set()
        holding.join()
        other.close()
    """
    assert succeed(body) == ["closed"]


def test_close_over_a_lock_that_is_lost_passes_the_turn(cluster, call, wait_until_queued):
    with cluster.library() as other:
        luna = cluster.library()
        slot = luna.slot(1)
        lost, end = threading.Event(), threading.Event()

        def lose():
            slot.acquire()
            let_device_forget_us(cluster)
            with pytest.raises(luna_ext.LockLostError):
                slot.ensure_held()
            lost.set()
            assert end.wait(60)

        losing = call(lose)
        assert lost.wait(10)
        waiting = call(lambda: use(other.slot(1)))
        wait_until_queued(slot, 1)
        with pytest.warns(ResourceWarning, match="slot 1 was still locked"):
            luna.close()
        assert waiting.result() is True
        end.set()
        losing.result()


def acquire_and_ensure(slot):
    slot.acquire()
    slot.ensure_held()


def test_ensure_held_that_close_overtakes_tells_of_the_loss(cluster, call, wait_until_inside):
    with cluster.library():
        luna = cluster.library()
        cluster.latency(0.4, TOKEN_INFO)
        holding = call(lambda: acquire_and_ensure(luna.slot(1)))
        wait_until_inside(TOKEN_INFO)
        with pytest.warns(ResourceWarning, match="slot 1 was still locked"):
            luna.close()
        with pytest.raises(luna_ext.LockLostError):
            holding.result()


def test_a_loss_that_is_found_out_after_a_close_is_not_the_next_holders(
    cluster, call, wait_until_inside, owner_of
):
    with cluster.library() as other:
        luna = cluster.library()
        # The library opens its own session now.
        with other.slot(1):
            pass
        cluster.latency(0.4, TOKEN_INFO)
        let_device_forget_us(cluster)
        holding = call(lambda: acquire_and_ensure(luna.slot(1)))
        wait_until_inside(TOKEN_INFO)
        with pytest.warns(ResourceWarning, match="slot 1 was still locked"):
            luna.close()
        with other.slot(1):
            with pytest.raises(luna_ext.LockLostError):
                holding.result()
            other.slot(1).ensure_held()
        assert owner_of(1) is None


def test_a_close_is_a_loss_to_the_holder_alone(cluster, hold_here, caplog):
    luna = cluster.library()
    slot = luna.slot(1)
    holder = hold_here(slot)
    with pytest.warns(ResourceWarning, match="slot 1 was still locked") as warned:
        luna.close()
    # By default Python shows no ResourceWarning.
    assert caplog.record_tuples == [("luna_ext", logging.ERROR, str(warned[0].message))]
    with pytest.raises(luna_ext.LockNotOwnedError):
        slot.release()
    with pytest.raises(luna_ext.LockLostError):
        holder.leave()


def test_a_closed_library_gives_no_slots(cluster):
    with cluster.library() as luna:
        slot = luna.slot(1)
    # Nor one that it has given before.
    for number in (1, 2):
        with pytest.raises(luna_ext.LibraryClosedError):
            luna.slot(number)
    with pytest.raises(luna_ext.LibraryClosedError):
        slot.acquire()
    with pytest.raises(luna_ext.LibraryClosedError), luna:
        pass
    # Another Library holds the lock, which is not what these are told.
    with cluster.library() as other, other.slot(1):
        for enter_it in (enter, enter_async):
            with pytest.raises(luna_ext.LibraryClosedError):
                enter_it(slot.lock(timeout=0))


def test_a_list_of_slots_that_close_overtakes_is_read_no_further(cluster, call, wait_until_inside):
    """It takes two calls, and the second one would begin after close()."""
    luna = cluster.library()
    cluster.latency(1.5, "C_GetSlotList")
    reading = call(luna.slots)
    wait_until_inside("C_GetSlotList")
    luna.close()
    with pytest.raises(luna_ext.LibraryClosedError):
        reading.result()
    assert len(logged(cluster, "C_GetSlotList")) == 1


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


@pytest.mark.usefixtures("luna")  # stays open, so that the device could still be asked
def test_a_task_whose_library_was_closed_hears_of_the_loss(cluster):
    async def main():
        luna = cluster.library()
        slot = luna.slot(1)
        with pytest.raises(luna_ext.LockLostError):
            async with slot.lock():
                with pytest.warns(ResourceWarning, match="slot 1 was still locked"):
                    luna.close()
                # Also in a context that does not come from this one.
                for run in (contextvars.copy_context().run, contextvars.Context().run):
                    with pytest.raises(luna_ext.LockLostError):
                        run(slot.ensure_held)

    asyncio.run(main())


@pytest.mark.parametrize(
    "form", ["slot.acquire()", "slot.acquire(timeout=5)", "asyncio.run(enter())"]
)
def test_a_library_that_closes_just_before_a_thread_queues_up_leaves_the_queue_whole(succeed, form):
    """An audit hook closes it at that moment. The threads of another Library wait for the same slot."""
    body = f"""
    import asyncio
    other = cluster.library()
    held, leave = threading.Event(), threading.Event()
    to_close = []

    def hold():
        with other.slot(1):
            held.set()
            assert leave.wait(40)

    def wait():
        with other.slot(1):
            print("locked")

    async def enter():
        async with slot.lock(timeout=5):
            pass

    def close(event, arguments):
        if event == "luna_ext.lock" and to_close:
            to_close.pop().close()

    def lock():
        try:
            {form}
        except luna_ext.LibraryClosedError:
            print("closed")

    holding = in_thread(hold)
    assert held.wait(20)
    waiting = [in_thread(wait) for _ in range(2)]
    wait_until(lambda: "2 waiting" in repr(other.slot(1)))
    sys.addaudithook(close)
    to_close.append(luna)
    locking = in_thread(lock)
    locking.join(20)
    assert "2 waiting" in repr(other.slot(1)), other.slot(1)
    leave.set()
    for thread in (holding, *waiting):
        thread.join(20)
        assert not thread.is_alive()
    other.close()
    """
    assert succeed(body) == ["closed", "locked", "locked"]


@pytest.mark.luna_cluster(keyrings=1)
def test_a_lock_call_that_close_has_come_before_is_not_taken_for_one_that_is_out(succeed):
    """A claim's lock would come off a moment later, for it waits for a lock call of its slot."""
    body = """
        def lock():
            try:
                slot.acquire()
            except luna_ext.LibraryClosedError:
                print("closed")

        # Before the first lock call a session is opened.
        cluster.latency(0.5, "C_OpenSession")
        locking = in_thread(lock)
        wait_until_inside("C_OpenSession")
        luna.close()
        locking.join()
        cluster.latency(0, "C_OpenSession")
        with cluster.library() as luna:
            claim = luna.claim("cluster-1")
            claim.__enter__()
            begin = time.monotonic()
            claim.__exit__(None, None, None)
            print(time.monotonic() - begin < 0.4)
        assert not any(call.function == "CA_LockClusteredSlot" for call in cluster.log())
    """
    assert succeed(body) == ["closed", "True"]
