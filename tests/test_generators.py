"""Blocks inside generators, which another thread, or the garbage collector there, may end."""

import gc
import logging
import os
import threading

import pytest
from support import UNLOCK, enter, nothing_is_locked

import luna_ext

FORMS = {
    "slot": lambda luna: luna.slot(1),
    "lock": lambda luna: luna.slot(1).lock(),
    "timed lock": lambda luna: luna.slot(1).lock(timeout=20),
    "token": lambda luna: luna.token("keyring1"),
    "token.lock": lambda luna: luna.token("keyring1").lock(timeout=20),
    "claim": lambda luna: luna.claim("cluster-1"),
    "lock_all": lambda luna: luna.lock_all([luna.slot(1)]),
    "timed claim": lambda luna: luna.claim("cluster-1", timeout=20),
}
ONE = pytest.mark.luna_cluster(keyrings=1)


def block(luna, form):
    with FORMS[form](luna):
        yield "inside"


def errors(caplog):
    return [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]


@ONE
@pytest.mark.parametrize("form", FORMS)
def test_a_block_that_another_thread_closes_gives_its_lock_back_and_is_told_of(
    luna, cluster, call, caplog, owner_of, form
):
    generator = block(luna, form)
    assert next(generator) == "inside"
    assert owner_of(1) == os.getpid()
    call(generator.close).result()
    assert owner_of(1) is None
    (text,) = errors(caplog)
    assert "slot 1: a generator was closed" in text
    assert "another thread" in text
    with luna.slot(1).lock(timeout=10):
        pass
    assert [entry.function for entry in cluster.log()].count(UNLOCK) == 2


def test_several_locks_are_given_back_though_another_thread_has_used_their_object(
    luna, cluster, call
):
    locks = luna.lock_all([luna.slot(1), luna.slot(2)])
    call(lambda: enter(locks)).result()
    generator = block_of(locks)
    next(generator)
    call(generator.close).result()
    assert nothing_is_locked(cluster)


@ONE
@pytest.mark.parametrize("form", sorted(FORMS.keys() - {"slot", "token"}))
def test_a_loss_at_the_slot_before_keeps_no_lock_from_being_given_back(
    luna, call, hold_here, caplog, owner_of, form
):
    """Of a block that runs on. A plain block of a slot may be that one, so it is left to its thread."""
    holder = hold_here(luna.slot(1))
    luna.reconnect()
    generator = block(luna, form)
    next(generator)
    call(generator.close).result()
    assert owner_of(1) is None
    assert "a generator was closed" in caplog.text
    with pytest.raises(luna_ext.LockLostError):
        holder.leave()


@ONE
@pytest.mark.parametrize("form", FORMS)
def test_a_block_that_is_collected_on_another_thread_gives_its_lock_back(
    luna, call, caplog, owner_of, form
):
    circle = [block(luna, form)]
    next(circle[0])
    circle.append(circle)
    # Not on this thread.
    gc.disable()
    try:
        del circle
        call(gc.collect).result()
    finally:
        gc.enable()
    assert owner_of(1) is None
    assert len(errors(caplog)) == 1


@ONE
@pytest.mark.parametrize("form", ["slot", "lock", "token", "claim"])
def test_a_block_that_its_own_thread_closes_is_nothing_to_tell_of(luna, caplog, owner_of, form):
    generator = block(luna, form)
    next(generator)
    generator.close()
    assert owner_of(1) is None
    assert errors(caplog) == []


@ONE
@pytest.mark.parametrize("form", ["lock", "timed lock"])
def test_a_generator_that_does_not_hold_any_more_takes_nothing_from_the_next_holder(
    luna, call, caplog, owner_of, form
):
    """Its lock was released in the block already; by now another thread holds the slot."""
    lock = FORMS[form](luna)
    generator = block_of(lock)
    next(generator)
    luna.slot(1).release()
    held, leave = threading.Event(), threading.Event()

    def hold():
        with luna.slot(1):
            held.set()
            leave.wait(20)
            luna.slot(1).ensure_held()

    holding = call(hold)
    assert held.wait(10)
    call(generator.close).result()
    assert owner_of(1) == os.getpid()
    # Nor is that said.
    assert errors(caplog) == []
    leave.set()
    holding.result()


@ONE
def test_a_generator_takes_nothing_from_who_holds_through_another_library(
    luna, cluster, call, hold_here, owner_of
):
    """The thread of the generator lives, but has released the lock by itself."""
    generator = block(luna, "slot")
    released, end = threading.Event(), threading.Event()

    def enter_and_release():
        next(generator)
        luna.slot(1).release()
        released.set()
        assert end.wait(30)

    entering = call(enter_and_release)
    assert released.wait(10)
    with cluster.library() as other:
        holder = hold_here(other.slot(1))
        generator.close()
        assert other.slot(1).locked()
        assert owner_of(1) == os.getpid()
        holder.leave()
    end.set()
    entering.result()


@ONE
def test_a_generator_whose_lock_is_lost_takes_nothing_from_the_next_holder(
    luna, call, hold_here, caplog, owner_of
):
    """Both have entered through one lock object, which knows the number of the newest hold."""
    lock = luna.slot(1).lock()
    generator = block_of(lock)
    next(generator)
    luna.reconnect()
    holder = hold_here(lock)
    call(generator.close).result()
    assert owner_of(1) == os.getpid()
    assert "a generator was closed" not in caplog.text
    holder.leave()


def block_of(lock):
    with lock:
        yield
