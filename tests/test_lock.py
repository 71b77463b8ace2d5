"""`with slot:`, acquire() and release(): one process, several threads."""

import asyncio
import gc
import itertools
import os
import signal
import statistics
import threading
import time
import warnings
from decimal import Decimal
from fractions import Fraction

import pytest
from support import (
    AGAIN,
    BUSY,
    DEVICE_ERROR,
    GENERAL_ERROR,
    LOCK,
    TOKEN_INFO,
    UNLOCK,
    enter,
    let_device_forget_us,
    logged,
    wait_until,
)

import luna_ext
from luna_ext.stub import Cluster


def test_with_locks_on_the_device_and_unlocks(luna, owner_of):
    slot = luna.slot(3)
    with slot as entered:
        assert entered is slot
        assert owner_of(3) == os.getpid()
        assert slot.locked()
    assert owner_of(3) is None
    assert not slot.locked()


def test_one_object_per_slot_id(luna):
    assert luna.slot(5) is luna.slot(5)
    assert luna.slot(5) is not luna.slot(6)
    assert luna.slots()[4] is luna.slot(5)
    assert luna.token("keyring5").slot is luna.slot(5)


def test_one_object_per_slot_id_and_library_however_many_there_are(cluster, luna):
    odd = [number << 32 for number in range(1, 300)]
    ids = [*range(1000, 3000), *odd, *(2**63 + number for number in odd), 2**32 - 1]
    slots = {slot_id: luna.slot(slot_id) for slot_id in ids}
    with cluster.library() as other:
        others = {slot_id: other.slot(slot_id) for slot_id in reversed(ids)}

        assert len({id(slot) for slot in (*slots.values(), *others.values())}) == 2 * len(ids)
        for slot_id in ids:
            assert luna.slot(slot_id) is slots[slot_id]
            assert other.slot(slot_id) is others[slot_id]
            assert slots[slot_id].slot_id == others[slot_id].slot_id == slot_id


def test_acquire_returns_true_and_takes_the_arguments_of_threading_lock(luna, owner_of):
    slot = luna.slot(1)
    for arguments in ((), (True,), (True, -1), (True, 5), (False,), (True, 0)):
        assert slot.acquire(*arguments) is True
        assert owner_of(1) == os.getpid()
        assert slot.release() is None
        assert owner_of(1) is None
    assert slot.acquire(blocking=True, timeout=2.5) is True
    slot.release()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((False, 1), ValueError),
        ((False, 0), ValueError),
        ((True, -2), ValueError),
        ((True, float("nan")), ValueError),
        ((True, threading.TIMEOUT_MAX * 2), OverflowError),
        ((True, "1"), TypeError),
        ((True, None), TypeError),
    ],
)
def test_acquire_refuses_what_threading_lock_refuses(luna, arguments, error, calls_of):
    before = calls_of(LOCK)
    with pytest.raises(error):
        luna.slot(1).acquire(*arguments)
    assert calls_of(LOCK) == before
    assert not luna.slot(1).locked()


class Index:
    """A number that is neither int nor float."""

    def __index__(self):
        return 3

    def __repr__(self):
        # A part of a test's name, which is to be the same in each process of pytest-xdist.
        return "Index()"


ARGUMENTS = [
    (),
    *((blocking,) for blocking in (True, False, 1, 0)),
    *(
        (blocking, timeout)
        for blocking in (True, False)
        for timeout in (
            -1, -1.0, 0, 0.0, 1, 0.5, True, False, Index(), -2, -0.5, -1e300, 1e300, 10**30,
            -(10**30), threading.TIMEOUT_MAX, threading.TIMEOUT_MAX * 2, float("nan"),
            float("inf"), -float("inf"), None, "1", b"1", 1j, Fraction(1, 2), Decimal(1), [],
        )
    ),
]  # fmt: skip


def outcome(function, *arguments, **options):
    try:
        return function(*arguments, **options)
    except Exception as error:
        return next(
            kind
            for kind in (TypeError, ValueError, OverflowError, RuntimeError)
            if isinstance(error, kind)
        )


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=repr)
def test_acquire_answers_as_threading_lock_does(luna, arguments):
    slot, lock = luna.slot(1), threading.Lock()
    assert outcome(slot.acquire, *arguments) == outcome(lock.acquire, *arguments)
    assert slot.locked() == lock.locked()
    assert outcome(slot.release) == outcome(lock.release)
    assert outcome(slot.release) == outcome(lock.release) is RuntimeError
    named = dict(zip(("blocking", "timeout"), arguments, strict=False))
    assert outcome(slot.acquire, **named) == outcome(lock.acquire, **named)
    assert outcome(slot.release) == outcome(lock.release)


@pytest.mark.parametrize("arguments", [(False,), (True, 0), (True, 0.02)])
def test_acquire_of_a_held_lock_answers_as_threading_lock_does(luna, call, arguments):
    slot, lock = luna.slot(1), threading.Lock()
    with slot, lock:
        assert call(lambda: slot.acquire(*arguments)).result() is False
        assert call(lambda: lock.acquire(*arguments)).result() is False
        for release in (slot.release, lock.release):
            assert outcome(call(release).result) in (None, RuntimeError)
        # A threading.Lock may be released by any thread, a slot by its holder only.
        assert slot.locked()
        assert not lock.locked()
        lock.acquire()


@pytest.mark.parametrize("timeout", [-1, -0.5, float("nan")])
def test_lock_refuses_a_negative_timeout(luna, timeout):
    with pytest.raises(ValueError, match="non-negative"):
        luna.slot(1).lock(timeout=timeout)


def test_the_same_thread_locks_again(luna, owner_of, calls_of):
    slot = luna.slot(1)
    with slot:
        before = calls_of(LOCK)
        with pytest.raises(luna_ext.LockReentryError) as caught:
            slot.acquire()
        assert caught.value.slot_id == 1
        with pytest.raises(luna_ext.LockReentryError), slot:
            pass
        with pytest.raises(luna_ext.LockReentryError), slot.lock(timeout=5):
            pass
        assert slot.acquire(blocking=False) is False
        assert calls_of(LOCK) == before
        assert owner_of(1) == os.getpid()
    assert owner_of(1) is None


def test_two_threads_exclude_each_other_though_the_device_would_not(luna, call):
    slot = luna.slot(1)
    inside = 0
    most = 0

    def enter():
        nonlocal inside, most
        for _ in range(200):
            with slot:
                inside += 1
                most = max(most, inside)
                os.sched_yield()
                inside -= 1

    for caller in [call(enter) for _ in range(4)]:
        caller.result(60)
    assert most == 1


def test_a_waiting_thread_asks_the_device_only_when_it_is_its_turn(
    luna, call, wait_until_queued, calls_of
):
    slot = luna.slot(1)

    def enter():
        with slot:
            return calls_of(LOCK), calls_of(UNLOCK)

    with slot:
        waiting = call(enter)
        wait_until_queued(slot, 1)
        assert calls_of(LOCK) == 1
    assert waiting.result() == (2, 1)


def test_release_by_a_thread_that_does_not_hold_it_unlocks_nothing(luna, call, owner_of, calls_of):
    slot = luna.slot(1)
    with pytest.raises(luna_ext.LockNotOwnedError, match="not locked by this process"):
        slot.release()
    with slot:
        before = calls_of(UNLOCK)
        with pytest.raises(luna_ext.LockNotOwnedError, match="another thread"):
            call(slot.release).result()
        assert calls_of(UNLOCK) == before
        assert owner_of(1) == os.getpid()


def test_ensure_held_tells_the_holder_from_others(luna, call):
    slot = luna.slot(1)
    with pytest.raises(luna_ext.LockNotOwnedError):
        slot.ensure_held()
    with slot:
        slot.ensure_held()
        with pytest.raises(luna_ext.LockNotOwnedError):
            call(slot.ensure_held).result()


def test_condition_works_on_a_slot(luna, call):
    condition = threading.Condition(luna.slot(2))
    order = []

    def consume():
        with condition:
            order.append("waits")
            entered.set()
            assert condition.wait(10)
            order.append("woken")

    entered = threading.Event()
    consumer = call(consume)
    assert entered.wait(10)
    with condition:
        order.append("notifies")
        condition.notify()
    consumer.result()
    assert order == ["waits", "notifies", "woken"]
    with pytest.raises(RuntimeError):
        condition.notify()


def test_the_bodys_exception_goes_through_untouched(luna, owner_of):
    error = KeyError("mine")
    with pytest.raises(KeyError) as caught, luna.slot(1):
        raise error
    assert caught.value is error
    assert not hasattr(error, "__notes__")
    assert owner_of(1) is None


def test_body_fine_but_unlock_fails(luna, cluster):
    cluster.fault(UNLOCK, DEVICE_ERROR, times=1)
    with pytest.raises(luna_ext.LockReleaseError) as caught, luna.slot(1):
        pass
    assert caught.value.rv == DEVICE_ERROR
    assert caught.value.slot_id == 1
    assert isinstance(caught.value.__cause__, luna_ext.DeviceError)
    assert not luna.slot(1).locked()
    with luna.slot(1):
        pass


def test_body_raises_and_unlock_fails(luna, cluster, caplog):
    cluster.fault(UNLOCK, DEVICE_ERROR, times=1)
    with pytest.raises(KeyError) as caught, luna.slot(1):
        raise KeyError("mine")
    assert "CKR_DEVICE_ERROR" in caught.value.__notes__[0]
    assert [(record.name, record.levelname) for record in caplog.records] == [("luna_ext", "ERROR")]


@pytest.mark.parametrize("way", ["with", "acquire", "timed", "lock"])
def test_a_lock_call_that_fails_leaves_nothing_locked(luna, cluster, owner_of, way):
    slot = luna.slot(1)
    cluster.fault(LOCK, DEVICE_ERROR, times=1)
    with pytest.raises(luna_ext.DeviceError) as caught:
        if way == "with":
            with slot:
                pass
        elif way == "acquire":
            slot.acquire()
        elif way == "timed":
            slot.acquire(timeout=5)
        else:
            with slot.lock():
                pass
    assert (caught.value.function, caught.value.slot_id) == (LOCK, 1)
    assert not slot.locked()
    assert owner_of(1) is None
    with slot:
        assert owner_of(1) == os.getpid()


def test_a_failed_lock_call_lets_the_next_thread_try(luna, cluster, call, wait_until_queued):
    slot = luna.slot(1)

    def enter():
        with slot:
            return True

    with slot:
        waiting = [call(enter) for _ in range(2)]
        wait_until_queued(slot, 2)
        cluster.fault(LOCK, DEVICE_ERROR, times=1)
    results = []
    for caller in waiting:
        try:
            results.append(caller.result())
        except luna_ext.DeviceError as error:
            results.append(error.rv)
    assert sorted(results) == [True, DEVICE_ERROR]


def test_slot_ids_over_the_whole_range_reach_the_device(luna, monkeypatch, cluster):
    largest = 2**64 - 1
    with pytest.raises(luna_ext.SlotIdInvalidError) as caught, luna.slot(largest):
        pass
    assert caught.value.slot_id == largest
    assert luna.slot(largest).slot_id == largest
    luna.close()
    first = largest - 3
    with Cluster(keyrings=4, first_slot=first) as cluster, cluster.library() as far:
        assert [slot.slot_id for slot in far.slots()] == [first, first + 1, first + 2, largest]
        with far.slot(largest):
            assert cluster.tokens()[3].owner == os.getpid()
        assert far.token("keyring4").slot is far.slot(largest)


@pytest.mark.parametrize(
    ("slot_id", "error"),
    [
        (-1, OverflowError),
        (2**64, OverflowError),
        (10**30, OverflowError),
        ("1", TypeError),
        (1.0, TypeError),
        (None, TypeError),
    ],
)
def test_what_is_no_slot_id(luna, slot_id, error):
    with pytest.raises(error) as caught:
        luna.slot(slot_id)
    if error is OverflowError:
        assert f"{slot_id} is no slot ID" in str(caught.value)


def test_an_index_is_a_slot_id(luna):
    class Index:
        def __index__(self):
            return 4

    assert luna.slot(Index()) is luna.slot(4)


def test_slots_and_their_locks_are_not_made_or_pickled_by_users(luna):
    import pickle

    slot = luna.slot(1)
    several = luna.lock_all([slot])
    for made in (
        *(luna_ext.ClusterSlot, luna_ext.SlotLock, luna_ext.Token, luna_ext.Claim),
        type(several),
    ):
        with pytest.raises(TypeError, match="comes from"):
            made()
    things = (slot, slot.lock(), several, luna.token("keyring1"), luna.claim("cluster-1"), luna)
    for thing in things:
        with pytest.raises(TypeError, match="process"):
            pickle.dumps(thing)


def test_objects_that_no_library_made_are_not_to_be_had():
    for kind in (luna_ext.ClusterSlot, luna_ext.SlotLock, luna_ext.Token, luna_ext.Claim):
        with pytest.raises(TypeError):
            kind.__new__(kind)
        with pytest.raises(TypeError):
            object.__new__(kind)


def test_repr_says_which_slot_and_whether_it_is_locked(luna):
    slot = luna.slot(7)
    assert "7" in repr(slot)
    assert "unlocked" in repr(slot)
    with slot:
        assert repr(slot).endswith(", locked by the thread 'MainThread'>")


def test_slot_info_and_token_info(luna):
    slot = luna.slot(2)
    assert luna_ext.SlotFlag.TOKEN_PRESENT in slot.info.flags
    assert slot.token_info.label == "keyring2"
    assert slot.token_info.min_pin_length == 8
    with pytest.raises(luna_ext.SlotIdInvalidError):
        _ = luna.slot(99).info
    with pytest.raises(luna_ext.SlotIdInvalidError):
        _ = luna.slot(99).token_info


def test_lost_connection_is_seen_by_ensure_held_and_at_the_end(luna, cluster):
    slot = luna.slot(1)
    with pytest.raises(luna_ext.LockLostError) as at_end, slot:
        cluster.disconnect(os.getpid())
        with pytest.raises(luna_ext.LockLostError) as caught:
            slot.ensure_held()
        assert caught.value.rv_name == "CKR_DEVICE_ERROR"
    assert at_end.value.slot_id == 1
    assert not slot.locked()


def test_lost_connection_is_seen_at_the_end_alone(luna, cluster):
    with pytest.raises(luna_ext.LockLostError), luna.slot(1):
        cluster.disconnect(os.getpid())


def test_an_error_that_does_not_mean_a_lost_connection_loses_nothing(luna, cluster, owner_of):
    cluster.fault("C_GetTokenInfo", 0x2, times=1)
    with luna.slot(1):
        with pytest.raises(luna_ext.CryptokiError, match="CKR_HOST_MEMORY"):
            luna.slot(1).ensure_held()
        luna.slot(1).ensure_held()
    assert owner_of(1) is None


@pytest.mark.parametrize("code", [AGAIN, BUSY])
def test_a_busy_device_has_lost_nothing(luna, cluster, code):
    with luna.slot(1) as slot:
        cluster.fault(TOKEN_INFO, code, times=1)
        with pytest.raises(luna_ext.DeviceError):
            slot.ensure_held()
        slot.ensure_held()


def test_a_lost_lock_is_not_unlocked_under_its_next_holder(luna, cluster, owner_of, calls_of):
    slot = luna.slot(1)
    let_device_forget_us(cluster)
    before = calls_of(UNLOCK)
    with pytest.raises(luna_ext.LockLostError), slot, pytest.raises(luna_ext.LockLostError):
        slot.ensure_held()
    assert calls_of(UNLOCK) == before


def test_a_lock_taken_through_one_library_is_not_released_through_another(luna, owner_of, cluster):
    with cluster.library() as other, luna.slot(1):
        with pytest.raises(luna_ext.LockNotOwnedError, match="another Library"):
            other.slot(1).release()
        assert owner_of(1) == os.getpid()


def test_polling_waits_where_the_device_answers_an_error(cluster, hold_elsewhere, call, owner_of):
    cluster.switch("contention", "error")
    holder = hold_elsewhere(1)
    with cluster.library(contention="poll") as luna:
        slot = luna.slot(1)
        assert slot.acquire(timeout=0.05) is False

        def use():
            with slot:
                return owner_of(1)

        waiting = call(use)
        holder.release()
        assert waiting.result() == os.getpid()


def pauses(cluster):
    """Seconds from the end of each unlock call of this process to its next lock call."""
    mine = [entry for entry in cluster.log() if entry.pid == os.getpid()]
    calls = [entry for entry in mine if entry.function in (LOCK, UNLOCK)]
    return [
        after.time - before.time - before.duration
        for before, after in itertools.pairwise(calls)
        if before.function == UNLOCK
    ]


@pytest.mark.parametrize("on", ["the main thread", "another thread"])
def test_a_polling_process_leaves_the_lock_to_others_that_want_it(
    cluster, hold_elsewhere, call, on
):
    def lock_again_and_again():
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            with slot:
                pass

    run = (
        (lambda function: function())
        if on == "the main thread"
        else (lambda function: call(function).result())
    )
    cluster.switch("contention", "error")
    # Else the log would not hold all calls.
    cluster.latency(0.001, LOCK)
    with cluster.library(contention="poll") as luna:
        # Of no other test: what was met stays known for 5 s.
        slot = luna.slot(7 if on == "the main thread" else 8)
        run(lock_again_and_again)
        # No other process has wanted it. A busy machine may make a few pauses.
        assert sum(pause >= 0.025 for pause in pauses(cluster)) < 3
        alone = len(pauses(cluster))
        holder = hold_elsewhere(slot.slot_id)
        waiting = call(lambda: enter(slot))
        wait_until(lambda: any(entry.rv == DEVICE_ERROR for entry in cluster.log()))
        holder.release()
        waiting.result()
        run(lock_again_and_again)
        contended = pauses(cluster)[alone:]
        left = [index for index, pause in enumerate(contended) if pause >= 0.025]
        assert len(left) >= 3
        # In between it has the lock again and again.
        assert statistics.median(contended[left[1] :]) < 0.025


def test_a_polling_process_that_comes_back_later_has_left_the_lock_for_long_enough(
    cluster, hold_elsewhere, call
):
    cluster.switch("contention", "error")
    with cluster.library(contention="poll") as luna:
        slot = luna.slot(6)
        holder = hold_elsewhere(6)
        waiting = call(lambda: enter(slot))
        wait_until(lambda: any(entry.rv == DEVICE_ERROR for entry in cluster.log()))
        holder.release()
        waiting.result()
        time.sleep(1)
        began = time.monotonic()
        call(lambda: enter(slot)).result()
        assert time.monotonic() - began < 0.5


@pytest.mark.parametrize("wait", [{}, {"timeout": 20}])
def test_a_polling_process_asks_less_often_at_first(cluster, call, wait):
    """A pause is 50 ms, give or take a fifth, and 21 ms only when the wait has lasted."""
    cluster.fault(LOCK, DEVICE_ERROR, times=1)
    with cluster.library(contention="poll") as luna:
        slot = luna.slot(1)
        assert call(lambda: slot.acquire(**wait) and slot.release() is None).result(30)
    refused, granted = logged(cluster, LOCK)
    assert granted.time - refused.time > 0.03


def test_a_polling_process_asks_seldom_whatever_the_number_of_its_waiters(
    cluster, hold_elsewhere, call
):
    cluster.switch("contention", "error")
    with cluster.library(contention="poll") as luna:
        holder = hold_elsewhere(1)
        slot = luna.slot(1)
        waiting = [call(lambda: enter(slot)) for _ in range(8)]
        wait_until(lambda: any(entry.rv == DEVICE_ERROR for entry in cluster.log()))
        refused = [entry for entry in cluster.log() if entry.rv == DEVICE_ERROR]
        end = refused[0].time + 1.5
        wait_until(lambda: time.time() > end)
        refused = [entry for entry in cluster.log() if entry.rv == DEVICE_ERROR]
        holder.release()
        for one in waiting:
            one.result()
    # It asks, and at most 50 times a second.
    assert 20 <= sum(entry.time < end for entry in refused) <= 75


@pytest.mark.parametrize("wait", [{}, {"timeout": 20}])
def test_a_busy_device_is_asked_less_and_less_often(luna, cluster, call, wait):
    """The pauses are random: 10 ms at least, and from the fifth one on 0.13 s on average."""
    cluster.fault(LOCK, AGAIN, times=15)
    slot = luna.slot(1)
    assert call(lambda: slot.acquire(**wait) and slot.release() is None).result(30)
    began = [entry.time for entry in logged(cluster, LOCK)]
    assert len(began) == 16
    assert all(later - earlier > 0.009 for earlier, later in itertools.pairwise(began))
    assert began[-1] - began[0] > 0.3


@pytest.mark.parametrize("wait", [{}, {"timeout": 20}, {"blocking": False}])
@pytest.mark.parametrize("on", ["the main thread", "another thread"])
def test_polling_does_not_ask_again_after_any_other_error(cluster, call, wait, on):
    with cluster.library(contention="poll") as luna:
        slot = luna.slot(1)
        cluster.fault(LOCK, GENERAL_ERROR, times=1)
        with pytest.raises(luna_ext.CryptokiError) as raised:
            if on == "the main thread":
                slot.acquire(**wait)
            else:
                call(lambda: slot.acquire(**wait)).result()
        assert raised.value.rv == GENERAL_ERROR
        assert not slot.locked()


def test_close_ends_polling_though_another_library_is_open(cluster, luna, hold_elsewhere, call):
    cluster.switch("contention", "error")
    hold_elsewhere(1)
    polling = cluster.library(contention="poll")
    waiting = call(polling.slot(1).acquire)
    wait_until(lambda: any(entry.rv == DEVICE_ERROR for entry in cluster.log()))
    polling.close()
    with pytest.raises(luna_ext.LibraryClosedError):
        waiting.result()
    assert not luna.closed


def test_who_waits_behind_a_polling_library_that_is_closed_goes_on(
    cluster, hold_elsewhere, call, wait_until_queued
):
    cluster.switch("contention", "error")
    holder = hold_elsewhere(1)
    with cluster.library(contention="poll") as luna:
        closing = cluster.library(contention="poll")
        first = call(closing.slot(1).acquire)
        wait_until(lambda: any(entry.rv == DEVICE_ERROR for entry in cluster.log()))

        def use():
            with luna.slot(1):
                return True

        second = call(use)
        wait_until_queued(luna.slot(1), 1)
        closing.close()
        with pytest.raises(luna_ext.LibraryClosedError):
            first.result()
        holder.release()
        assert second.result() is True


def test_blocking_raises_where_the_device_answers_an_error(luna, cluster, hold_elsewhere):
    cluster.switch("contention", "error")
    hold_elsewhere(1)
    with pytest.raises(luna_ext.DeviceError), luna.slot(1):
        pass


@pytest.mark.parametrize("code", [AGAIN, BUSY])
def test_busy_devices_are_asked_again(luna, cluster, owner_of, code):
    cluster.fault(LOCK, code, times=2)
    with luna.slot(1):
        assert owner_of(1) == os.getpid()


@pytest.mark.signals
def test_ctrl_c_while_waiting_for_another_thread(luna, call):
    slot = luna.slot(1)
    release = threading.Event()
    held = threading.Event()

    def hold():
        with slot:
            held.set()
            release.wait(10)

    holder = call(hold)
    assert held.wait(10)
    main = threading.main_thread().ident
    for way in (slot.acquire, slot.lock().__enter__, lambda: slot.acquire(timeout=10)):
        timer = threading.Timer(0.05, signal.pthread_kill, (main, signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            way()
        timer.join()
    release.set()
    holder.result()
    with slot:
        pass


@pytest.mark.signals
def test_ctrl_c_inside_the_device_call_leaves_nothing_locked(luna, cluster, owner_of):
    slot = luna.slot(1)
    cluster.latency(0.2, LOCK)
    main = threading.main_thread().ident
    timer = threading.Timer(0.05, signal.pthread_kill, (main, signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        slot.acquire()
    timer.join()
    cluster.latency(0, LOCK)
    assert slot.acquire(timeout=10)
    slot.release()
    assert owner_of(1) is None


def test_close_releases_what_is_held_and_tells_the_holder(cluster, owner_of):
    luna = cluster.library()
    slot = luna.slot(1)
    slot.acquire()
    with pytest.warns(ResourceWarning, match=rf"slot 1 .*{__file__}:\d+"):
        luna.close()
    assert owner_of(1) is None
    with pytest.raises(luna_ext.LockLostError):
        slot.release()
    assert not slot.locked()


def test_close_wakes_the_threads_that_wait(cluster, call):
    luna = cluster.library()
    slot = luna.slot(1)
    with pytest.raises(luna_ext.LockLostError), slot:
        waiting = [call(slot.acquire), call(lambda: slot.acquire(timeout=60))]
        with pytest.warns(ResourceWarning, match="in a with statement"):
            luna.close()
        for caller in waiting:
            with pytest.raises(luna_ext.LibraryClosedError):
                caller.result()


def test_a_library_that_was_not_closed_warns_and_releases(cluster, owner_of):
    luna = cluster.library()
    luna.slot(1).acquire()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del luna
        gc.collect()
    assert {warning.category for warning in caught} == {ResourceWarning}
    messages = " ".join(str(warning.message) for warning in caught)
    assert "unclosed Library for" in messages
    assert f"slot 1 was still locked, at {__file__}" in messages
    assert owner_of(1) is None
    cluster.library().close()


def test_a_worker_that_has_nothing_to_do_keeps_no_library(cluster):
    luna = cluster.library()
    luna.tokens(workers=2)

    # It is its warning that tells: the record of that has the Library as its source.
    def is_gone():
        gc.collect()
        return caught

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del luna
        wait_until(is_gone)
    assert {warning.category for warning in caught} == {ResourceWarning}
    # C_Finalize may take long, and is left to the next Library.
    cluster.library().close()


def test_two_libraries_share_the_locks_of_one_client(luna, cluster, owner_of):
    with cluster.library() as other:
        assert other.slot(1) is not luna.slot(1)
        with luna.slot(1):
            assert other.slot(1).locked()
            with pytest.raises(luna_ext.LockReentryError):
                other.slot(1).acquire()
        with other.slot(2):
            assert luna.slot(2).acquire(False) is False
    with luna.slot(1):
        assert owner_of(1) == os.getpid()


@pytest.mark.parametrize("code", [AGAIN, BUSY])
@pytest.mark.parametrize("way", ["with", "task"])
def test_a_busy_device_is_asked_to_unlock_again(luna, cluster, owner_of, code, way):
    cluster.fault(UNLOCK, code, times=2)

    async def in_task():
        async with luna.slot(1).lock():
            pass

    if way == "with":
        with luna.slot(1):
            pass
    else:
        asyncio.run(in_task())
    assert owner_of(1) is None


def test_a_device_that_stays_busy_fails_the_release(luna, cluster):
    cluster.fault(UNLOCK, BUSY)
    with pytest.raises(luna_ext.LockReleaseError, match="CKR_BUSY"), luna.slot(1):
        pass
    cluster.fault(UNLOCK, 0, times=0)
    with luna.slot(1):
        pass


def test_a_waiter_gets_the_lock_after_a_busy_unlock(luna, cluster, call, wait_until_queued):
    slot = luna.slot(1)

    def enter():
        with slot:
            return True

    with slot:
        waiting = call(enter)
        wait_until_queued(slot, 1)
        cluster.fault(UNLOCK, AGAIN, times=2)
    assert waiting.result()


def test_condition_with_many_threads_and_timeouts(luna, call, wait_until_queued):
    slot = luna.slot(2)
    condition = threading.Condition(slot)
    items: list[int] = []
    waiting = threading.Barrier(5)

    def consume():
        waiting.wait(10)
        with condition:
            assert condition.wait_for(lambda: items, timeout=10)
            return items.pop()

    consumers = [call(consume) for _ in range(4)]
    waiting.wait(10)
    with condition:
        assert condition.wait(timeout=0.01) is False
        slot.ensure_held()
        items.extend(range(4))
        condition.notify_all()
    assert sorted(caller.result() for caller in consumers) == [0, 1, 2, 3]
    assert not slot.locked()
    for use in (condition.wait, condition.notify, condition.notify_all):
        with pytest.raises(RuntimeError):
            use()
