"""Threads that end while they hold a lock, and those that come after them with the same ident."""

import logging
import os
import subprocess
import threading
import time

import pytest
from support import NO_MORE_THREADS, UNLOCK, assert_stays, nothing_is_locked, wait_until

import luna_ext

# The message about the lock of a thread that has ended may come as late as the Library's close().
pytestmark = pytest.mark.luna_leaves_locks


@pytest.fixture
def left_locked(luna):
    """A thread has locked slot 1, and ended; its ident."""
    # Workers that began later might get the ident of the thread that ends here, and keep it.
    begin = threading.Barrier(3)

    def make_a_worker_busy(slot):
        begin.wait()
        with slot.lock(timeout=20):
            begin.wait()

    busy = [threading.Thread(target=make_a_worker_busy, args=[luna.slot(n)]) for n in (2, 3, 4)]
    for each in busy:
        each.start()
    for each in busy:
        each.join()
    thread = threading.Thread(target=luna.slot(1).acquire)
    thread.start()
    thread.join()
    return thread.ident


def in_threads_with_ident(ident, function, wanted):
    """Call the function in one new thread after another, until so many of them had this ident."""
    found = []
    deadline = time.monotonic() + 20

    def work():
        result = function()
        if threading.get_ident() == ident:
            found.append(result)

    while len(found) < wanted:
        assert time.monotonic() < deadline, len(found)
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    return found


def refused(function):
    try:
        function()
    except luna_ext.LunaError as error:
        return type(error).__name__
    return "done"


WAYS = {
    "release": lambda luna: luna.slot(1).release(),
    "with": lambda luna: luna.slot(1).__exit__(None, None, None),
    "lock": lambda luna: luna.slot(1).lock().__exit__(None, None, None),
    "token": lambda luna: luna.token("keyring1").__exit__(None, None, None),
    "ensure_held": lambda luna: luna.slot(1).ensure_held(),
}


@pytest.mark.filterwarnings("ignore:slot 1 was still locked:ResourceWarning")
@pytest.mark.parametrize("way", WAYS)
def test_a_new_thread_with_a_dead_ones_ident_does_not_hold_its_lock(
    luna, cluster, left_locked, way
):
    """Idents are used again and again; the lock does not go by them."""
    ends = in_threads_with_ident(left_locked, lambda: refused(lambda: WAYS[way](luna)), 5)
    assert set(ends) == {"LockNotOwnedError"}
    # One unlock call at most: that for the thread that has ended.
    wait_until_unlocked(luna, cluster)
    unlocks = [entry for entry in cluster.log() if entry.function == UNLOCK and entry.slot_id == 1]
    assert len(unlocks) == 1


@pytest.mark.filterwarnings("ignore:slot 1 was still locked:ResourceWarning")
def test_a_new_thread_with_a_dead_ones_ident_is_no_reentry(luna, cluster, left_locked):
    def lock():
        with luna.slot(1).lock(timeout=10):
            return luna.slot(1).ensure_held()

    assert in_threads_with_ident(left_locked, lock, 3) == [None] * 3


def wait_until_unlocked(luna, cluster):
    wait_until(lambda: not luna.slot(1).locked() and cluster.tokens()[0].owner is None)


def test_the_lock_of_a_thread_that_has_ended_comes_off_and_is_told_of(
    luna, cluster, caplog, monkeypatch
):
    told = []
    monkeypatch.setattr("warnings.showwarning", lambda message, *more: told.append(str(message)))
    monkeypatch.setattr("warnings.filters", [("default", None, ResourceWarning, None, 0)])
    thread = threading.Thread(target=luna.slot(1).acquire)
    thread.start()
    thread.join()
    wait_until_unlocked(luna, cluster)
    wait_until(lambda: told)
    errors = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    for text in (*errors, *told):
        assert "slot 1 was still locked" in text
        assert "thread" in text
        assert f"{__file__.rsplit(os.sep, 1)[-1]}" in text or "threading.py" in text
    assert len(errors) == len(told) == 1


def test_the_lock_of_an_ended_thread_comes_off_though_no_thread_can_be_had(succeed):
    """Else it would stay locked as long as the process lasts."""
    body = f"""
        import warnings
        told = []
        warnings.simplefilter("always")
        warnings.showwarning = lambda *warning: told.append(warning)
        logging.getLogger("luna_ext").addHandler(logging.NullHandler())
        # Or a Thread object is made for the thread that has ended, of which CPython 3.13 complains at exit.
        logging.logThreads = False
        may_lock = threading.Event()

        def lock():
            may_lock.wait()
            slot.acquire()

        thread = in_thread(lock)
        {NO_MORE_THREADS}
        may_lock.set()
        thread.join()
        wait_until(lambda: not slot.locked())
        print(cluster.tokens()[0].owner, len(told))
        luna.close()
    """
    assert succeed(body) == ["None", "1"]


@pytest.mark.filterwarnings("ignore:slot 1 was still locked:ResourceWarning")
@pytest.mark.parametrize("way", ["with", "lock", "claim", "async"])
def test_waiters_behind_a_thread_that_has_ended_get_its_lock(luna, call, left_locked, way):
    import asyncio

    def enter():
        if way == "with":
            with luna.slot(1):
                return True
        if way == "lock":
            with luna.slot(1).lock(timeout=10):
                return True
        if way == "claim":
            claimed = set()
            for _ in range(20):
                with luna.claim("cluster-1", timeout=10) as token:
                    claimed.add(token.slot.slot_id)
            return bool(claimed)

        async def enter_in_task():
            async with luna.slot(1).lock(timeout=10):
                return True

        return asyncio.run(enter_in_task())

    assert call(enter).result()


@pytest.mark.filterwarnings("ignore:slot . was still locked:ResourceWarning")
def test_a_claim_of_a_thread_that_has_ended_comes_off(luna, cluster):
    thread = threading.Thread(target=luna.claim("cluster-1").__enter__)
    thread.start()
    thread.join()
    wait_until(lambda: nothing_is_locked(cluster))
    assert not any(slot.locked() for slot in luna.slots())


def test_what_a_thread_leaves_behind_may_still_release(luna, cluster, caplog):
    """A generator whose block runs when its thread ends is closed with the thread's own things."""
    local = threading.local()

    def block():
        with luna.slot(1):
            yield

    def work():
        local.generator = block()
        next(local.generator)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    wait_until_unlocked(luna, cluster)
    assert [entry.function for entry in cluster.log()].count(UNLOCK) == 1


@pytest.mark.filterwarnings("ignore:slot 1 was still locked:ResourceWarning")
def test_what_a_thread_leaves_behind_has_time_to_release(luna, owner_of):
    """Its block still has something to do when the thread has ended."""
    local, owners = threading.local(), []

    def block():
        with luna.slot(1):
            try:
                yield
            finally:
                time.sleep(0.05)
                owners.append(owner_of(1))

    def work():
        # A thread's things go in the order in which they came: what tells of its end is there since
        # its first lock, so that the generator is closed after that.
        with luna.slot(2):
            pass
        local.generator = block()
        next(local.generator)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    wait_until(lambda: owners and not luna.slot(1).locked())
    assert owners == [os.getpid()]


@pytest.mark.filterwarnings("ignore:slot 1 was still locked:ResourceWarning")
def test_the_next_holder_keeps_the_lock_that_came_off_just_after_its_thread_had_ended(
    luna, cluster, owner_of
):
    """Taken off by a close() here. Who looks after it a moment later finds another holder."""
    closing = cluster.library()
    thread = threading.Thread(target=closing.slot(1).acquire)
    thread.start()
    thread.join()
    closing.close()
    with luna.slot(1) as slot:
        assert_stays(lambda: slot.locked() and owner_of(1) == os.getpid(), 0.6)
        slot.ensure_held()


@pytest.mark.filterwarnings("ignore:slot 1 was still locked:ResourceWarning")
def test_a_generator_of_an_ended_thread_leaves_the_next_holder_its_lock(
    luna, call, hold_here, owner_of
):
    def block():
        with luna.slot(1):
            yield

    slot, generator = luna.slot(1), block()
    call(lambda: next(generator)).result()
    # The lock of the thread, which has ended, comes off.
    wait_until(lambda: not slot.locked())
    holder = hold_here(slot)
    generator.close()
    assert slot.locked()
    assert owner_of(1) == os.getpid()
    holder.leave()


THREAD_OF_C_CODE = """
#include <pthread.h>
static void (*function)(int);
static void *run(void *nothing) { function(1); function(2); return nothing; }
int call_twice(void (*given)(int)) {
    pthread_t thread;
    function = given;
    return pthread_create(&thread, NULL, run, NULL) || pthread_join(thread, NULL);
}
"""


def test_the_lock_of_a_thread_of_c_code_that_came_to_python_twice_comes_off(
    cluster, succeed, tmp_path
):
    """Python takes it for a new thread each time it calls, and for one that ends each time it returns."""
    source, library = tmp_path / "thread.c", tmp_path / "thread.so"
    source.write_text(THREAD_OF_C_CODE)
    command = ["cc", "-shared", "-fPIC", "-pthread", str(source), "-o", str(library)]
    subprocess.run(command, check=True)
    body = f"""
        import ctypes, logging, warnings
        warnings.simplefilter("ignore", ResourceWarning)
        logging.getLogger("luna_ext").addHandler(logging.NullHandler())

        def use(times):
            with slot:
                pass
            if times == 2:
                slot.acquire()

        callback = ctypes.CFUNCTYPE(None, ctypes.c_int)(use)
        assert ctypes.CDLL({str(library)!r}).call_twice(callback) == 0
        wait_until(lambda: not slot.locked())
        with slot.lock(timeout=20):
            print("locked")
        luna.close()
    """
    assert succeed(body) == ["locked"]
