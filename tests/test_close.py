"""close(): waits for the calls in flight, finalises once, and gets along with everybody."""

import contextlib
import os
import signal
import threading

import pytest
from support import CLAIM, LOCK, UNLOCK, finalisations, nothing_is_locked, wait_until

import luna_ext


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
            # One of them, whoever is first, has to tell of what was held.
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
    assert finalisations(cluster) == [0]
    assert in_order(cluster)
    assert nothing_is_locked(cluster)
    for refused in (slots[0].acquire, slots[0].lock().__enter__, luna.tokens):
        with pytest.raises(luna_ext.LibraryClosedError):
            refused()
    assert cluster.log()[-1].function == "C_Finalize"


def test_a_claim_in_flight_is_waited_for_and_not_kept(cluster, call, wait_until_inside):
    luna = cluster.library()
    cluster.latency(0.3, CLAIM)
    claiming = call(luna.claim("cluster-1", timeout=10).__enter__)
    wait_until_inside(CLAIM)
    luna.close()
    assert (finalisations(cluster), in_order(cluster)) == ([0], True)
    with pytest.raises(luna_ext.LibraryClosedError):
        claiming.result()
    assert nothing_is_locked(cluster)


def test_a_call_that_hangs_in_a_given_up_lock_does_not_keep_close(
    cluster, hold_elsewhere, owner_of
):
    holder = hold_elsewhere(1)
    luna = cluster.library()
    assert luna.slot(1).acquire(timeout=0.01) is False
    luna.close()
    assert finalisations(cluster) == []
    holder.release()
    wait_until(lambda: finalisations(cluster), 20)
    assert owner_of(1) is None


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
def test_a_signal_that_interrupts_close_leaves_it_to_be_done_again(
    cluster, call, wait_until_inside
):
    luna = cluster.library()
    cluster.latency(0.5, LOCK)
    waiting = call(luna.slot(1).acquire)
    wait_until_inside(LOCK)

    def interrupt(*_):
        raise InterruptedError

    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(InterruptedError):
            luna.close()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert luna.closed
    luna.close()
    assert (finalisations(cluster), in_order(cluster)) == ([0], True)
    with pytest.raises(luna_ext.LibraryClosedError):
        waiting.result()


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


def test_storms_of_open_and_close_with_locks(cluster, call):
    """Each thread opens, locks in all ways, closes; sometimes somebody else's Library.

    Whose Library is closed under him hears that his lock is lost, and another one has it at once.
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
