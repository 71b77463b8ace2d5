"""`Library(handover=s)`: the end of a block hands the lock over to the next waiter of this process."""

import asyncio
import contextlib
import contextvars
import ctypes
import logging
import os
import signal
import sys
import threading
import time
from functools import partial

import pytest
from support import (
    DEVICE_ERROR,
    INIT_TOKEN,
    LOCK,
    PATIENCE,
    SESSION_INFO,
    UNLOCK,
    entry_of,
    let_device_forget_us,
    logged,
    nothing_is_locked,
    wait_until,
)

import luna_ext

LONG = 1000.0
"""Seconds in which no test ends."""
LONG_BLOCK = 0.1
"""Seconds after which the end of a block asks for the library's own session."""


@pytest.fixture
def luna(cluster):
    with cluster.library(handover=LONG) as luna:
        yield luna


class Party:
    """A thread that waits for a lock, holds it, and leaves its block, in which `last` is called last."""

    def __init__(self, lock, last=None):
        self._lock, self._last = lock, last
        self.entered, self._leave = threading.Event(), threading.Event()
        self.error = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        try:
            self._work()
        except BaseException as error:
            self.error = error

    def _work(self):
        with self._lock:
            self._stay()

    def _stay(self):
        self.entered.set()
        assert self._leave.wait(PATIENCE)
        self._do_last()

    def _do_last(self):
        if self._last is not None:
            self._last()

    def hold(self):
        wait_until(lambda: self.entered.is_set() or not self._thread.is_alive())
        assert self.entered.is_set(), self.error
        return self

    def leave(self):
        """Let the block end."""
        self._leave.set()
        self.end()

    def end(self):
        """Wait for it, and raise what it has raised."""
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        if self.error is not None:
            raise self.error


class TaskParty(Party):
    """The same in a task, whose event loop runs on a thread of its own."""

    def _work(self):
        asyncio.run(self._work_in_task())

    async def _work_in_task(self):
        async with self._lock:
            self.entered.set()
            assert await asyncio.to_thread(self._leave.wait, PATIENCE)
            self._do_last()


class AcquiringParty(Party):
    """By acquire() and release()."""

    def __init__(self, slot, last=None, **arguments):
        self._arguments = arguments
        super().__init__(slot, last)

    def _work(self):
        assert self._lock.acquire(**self._arguments)
        self._stay()
        self._lock.release()


WAYS = {
    "slot": lambda luna, *last: Party(luna.slot(1), *last),
    "token": lambda luna, *last: Party(luna.token("keyring1"), *last),
    "acquire": lambda luna, *last: AcquiringParty(luna.slot(1), *last),
    "timed acquire": lambda luna, *last: AcquiringParty(luna.slot(1), *last, timeout=PATIENCE),
    "lock": lambda luna, *last: Party(luna.slot(1).lock(), *last),
    "timed lock": lambda luna, *last: Party(luna.slot(1).lock(timeout=PATIENCE), *last),
    "heartbeat": lambda luna, *last: Party(luna.slot(1).lock(heartbeat=60), *last),
    "token.lock": lambda luna, *last: Party(luna.token("keyring1").lock(), *last),
    "lock_all": lambda luna, *last: Party(luna.lock_all([luna.slot(1)]), *last),
    "task": lambda luna, *last: TaskParty(luna.slot(1).lock(), *last),
    "timed task": lambda luna, *last: TaskParty(luna.slot(1).lock(timeout=PATIENCE), *last),
    "task with heartbeat": lambda luna, *last: TaskParty(luna.slot(1).lock(heartbeat=60), *last),
    "lock_all in a task": lambda luna, *last: TaskParty(luna.lock_all([luna.slot(1)]), *last),
    "claim": lambda luna, *last: Party(luna.claim("cluster-1"), *last),
    "timed claim": lambda luna, *last: Party(luna.claim("cluster-1", timeout=PATIENCE), *last),
    "claim in a task": lambda luna, *last: TaskParty(luna.claim("cluster-1"), *last),
}
CLAIMS = [way for way in WAYS if "claim" in way]
LOCKS = [way for way in WAYS if way not in CLAIMS]
EACH_KIND = pytest.mark.parametrize("way", ["slot", "task", "claim", "claim in a task"])
BOTH = pytest.mark.parametrize("way", ["slot", "task"])


def handed_over(luna):
    stats = luna.stats().get(LOCK)
    return 0 if stats is None else stats.handed_over


@pytest.fixture
def count(luna):
    """How often locks were handed over since the test began."""
    before = handed_over(luna)
    return lambda: handed_over(luna) - before


def calls(cluster):
    """The lock and unlock calls of this process for slot 1, in order."""
    mine = [call for call in cluster.log() if (call.pid, call.slot_id) == (os.getpid(), 1)]
    return [call.function for call in mine if call.function in (LOCK, UNLOCK)]


@pytest.fixture
def queue(luna, wait_until_queued):
    """Parties that wait for slot 1, one behind the other."""

    def queue(*ways):
        parties = []
        for number, way in enumerate(ways, 1):
            parties.append(way(luna) if callable(way) else WAYS[way](luna))
            wait_until_queued(luna.slot(1), number)
        return parties

    return queue


# ---- what it does ----


@pytest.mark.parametrize("after", LOCKS)
def test_the_next_one_gets_the_lock_without_a_call(luna, cluster, queue, count, owner_of, after):
    first = WAYS["slot"](luna).hold()
    (second,) = queue(after)
    first.leave()
    second.hold()
    assert calls(cluster) == [LOCK]
    assert owner_of(1) == os.getpid()
    assert luna.slot(1).locked()
    assert count() == 1
    second.leave()
    assert calls(cluster) == [LOCK, UNLOCK]
    assert nothing_is_locked(cluster)


@pytest.mark.luna_cluster(keyrings=1)
@pytest.mark.parametrize("before", WAYS)
def test_each_end_of_a_block_hands_over(luna, cluster, queue, count, before):
    first = WAYS[before](luna).hold()
    second, third = queue("slot", "task")
    first.leave()
    second.hold()
    second.leave()
    third.hold()
    third.leave()
    assert count() == 2
    assert calls(cluster) == ([UNLOCK] if before in CLAIMS else [LOCK, UNLOCK])
    assert nothing_is_locked(cluster)


def test_waiters_get_it_in_the_order_in_which_they_came(luna, cluster, queue, count):
    first = WAYS["slot"](luna).hold()
    others = queue("task", "slot", "timed lock", "acquire", "timed task")
    first.leave()
    for number, other in enumerate(others):
        other.hold()
        assert not any(later.entered.is_set() for later in others[number + 1 :])
        other.leave()
    assert count() == len(others)
    assert calls(cluster) == [LOCK, UNLOCK]


@pytest.mark.parametrize("timeout", [None, PATIENCE])
def test_the_main_thread_gets_it_and_hands_it_over(
    luna, cluster, queue, count, call, wait_until_queued, timeout
):
    slot = luna.slot(1)
    first = WAYS["slot"](luna).hold()

    def leave():
        wait_until_queued(slot, 1)
        first.leave()

    leaving = call(leave)
    with slot if timeout is None else slot.lock(timeout=timeout):
        leaving.result()
        (second,) = queue("task")
    second.hold().leave()
    assert count() == 2
    assert calls(cluster) == [LOCK, UNLOCK]


def test_without_it_each_lock_is_unlocked(cluster, wait_until_queued):
    with cluster.library() as luna:
        first = WAYS["slot"](luna).hold()
        second = WAYS["slot"](luna)
        wait_until_queued(luna.slot(1), 1)
        first.leave()
        second.hold().leave()
        assert calls(cluster) == [LOCK, UNLOCK, LOCK, UNLOCK]


def test_what_no_one_waits_for_is_unlocked(luna, cluster, count):
    for _ in range(3):
        with luna.slot(1):
            pass
    assert calls(cluster) == 3 * [LOCK, UNLOCK]
    assert count() == 0


# ---- for how long ----


@BOTH
def test_after_its_time_the_lock_is_unlocked(cluster, wait_until_queued, way):
    seconds = 0.6
    with cluster.library(handover=seconds) as luna:
        before = handed_over(luna)
        first = WAYS[way](luna).hold()
        granted = time.monotonic()
        parties = []
        for number, behind in enumerate([way, "slot", "slot"], 1):
            parties.append(WAYS[behind](luna))
            wait_until_queued(luna.slot(1), number)
        first.leave()
        assert time.monotonic() - granted < seconds, "this machine is too slow for the test"
        second, third, last = parties
        second.hold()
        assert handed_over(luna) == before + 1
        # The time is that since the device's grant, not since this one's.
        wait_until(lambda: time.monotonic() - granted > seconds)
        second.leave()
        third.hold()
        assert calls(cluster) == [LOCK, UNLOCK, LOCK]
        third.leave()
        last.hold().leave()
        # The grant of the device begins it anew.
        assert handed_over(luna) == before + 2
        assert calls(cluster) == 2 * [LOCK, UNLOCK]


def test_other_processes_have_a_moment_between(cluster, wait_until_queued):
    """The device may keep no queue: its next lock call would be the first there."""
    with cluster.library(handover=0.2) as luna:
        first = WAYS["slot"](luna).hold()
        second = WAYS["slot"](luna)
        wait_until_queued(luna.slot(1), 1)
        time.sleep(0.2)
        first.leave()
        second.hold().leave()
        assert calls(cluster) == 2 * [LOCK, UNLOCK]
        unlocking, locking = logged(cluster, UNLOCK)[0], logged(cluster, LOCK)[1]
        assert locking.time - (unlocking.time + unlocking.duration) > 0.007


ELSEWHERE = """
import sys
slot.acquire()
slot.release()
print("ready", flush=True)
for _ in range(5):
    sys.stdin.readline()
    began = time.monotonic()
    with slot:
        print(time.monotonic() - began, flush=True)
"""


@pytest.mark.luna_cluster(keyrings=1)
def test_another_process_gets_its_turn(cluster, program):
    """However many threads here want the lock all the time."""
    with cluster.library(handover=0.05) as luna:
        slot, stop = luna.slot(1), threading.Event()

        def work():
            while not stop.is_set():
                with slot:
                    pass

        other = program(ELSEWHERE)
        other.expect("ready")
        threads = [threading.Thread(target=work) for _ in range(4)]
        before = handed_over(luna)
        for thread in threads:
            thread.start()
        waits = []
        for _ in range(5):
            already = handed_over(luna)
            wait_until(lambda already=already: handed_over(luna) > already + 10)
            other.process.stdin.write("\n")
            other.process.stdin.flush()
            waits.append(float(other.process.stdout.readline()))
        stop.set()
        for thread in threads:
            thread.join(PATIENCE)
        assert handed_over(luna) > before + 50
        # Not for ever: a hundred times as long, for machines that are busy.
        assert max(waits) < 5
        other.ended()


# ---- which Library says so ----


@BOTH
def test_the_library_of_the_block_that_ends_decides(luna, cluster, wait_until_queued, way):
    with cluster.library() as never:
        first = WAYS[way](luna).hold()
        second = WAYS[way](never)
        wait_until_queued(luna.slot(1), 1)
        third = WAYS[way](luna)
        wait_until_queued(luna.slot(1), 2)
        first.leave()
        second.hold()
        assert calls(cluster) == [LOCK]
        second.leave()
        third.hold()
        assert calls(cluster) == [LOCK, UNLOCK, LOCK]
        third.leave()


# ---- only what is certainly on ----


@pytest.mark.luna_cluster(keyrings=1)
@EACH_KIND
def test_a_long_block_asks_for_the_session_first(luna, cluster, queue, count, way):
    first = WAYS[way](luna).hold()
    second, third = queue("slot", "task")
    time.sleep(LONG_BLOCK)
    asked = len(logged(cluster, SESSION_INFO))
    first.leave()
    second.hold()
    (asking,) = logged(cluster, SESSION_INFO)[asked:]
    # It was just asked for, unless the machine was busy with other things meanwhile.
    second.leave()
    third.hold()
    assert all(
        call.time > asking.time + 0.02 for call in logged(cluster, SESSION_INFO)[asked + 1 :]
    )
    # By now, none of several short blocks may be longer ago.
    time.sleep(LONG_BLOCK)
    asked = len(logged(cluster, SESSION_INFO))
    third.leave()
    assert len(logged(cluster, SESSION_INFO)) == asked + 1
    assert count() == 2


@BOTH
def test_a_lock_that_the_session_does_not_vouch_for_is_unlocked(luna, cluster, queue, count, way):
    first = WAYS[way](luna).hold()
    (second,) = queue("slot")
    time.sleep(LONG_BLOCK)
    # No answer, which is no loss either.
    cluster.fault(SESSION_INFO, DEVICE_ERROR, times=1)
    first.leave()
    second.hold()
    assert calls(cluster) == [LOCK, UNLOCK, LOCK]
    second.leave()
    assert count() == 0


@BOTH
def test_a_lock_that_was_dropped_is_not_handed_over(reinitialise, luna, cluster, queue, count, way):
    first = WAYS[way](luna).hold()
    second, third = queue("slot", "task")
    time.sleep(LONG_BLOCK)
    reinitialise()
    with pytest.raises(luna_ext.LockLostError, match="finalised"):
        first.leave()
    second.hold()
    assert calls(cluster) == [LOCK, LOCK]
    second.leave()
    third.hold().leave()
    assert count() == 1


def test_a_lock_whose_loss_another_thread_has_noticed_meanwhile_is_not_handed_over(
    reinitialise, luna, cluster, queue, count, call, monkeypatch
):
    """The answer that the session is there was on its way when other code initialised the library."""
    ask = ctypes.CDLL(luna.path).C_GetSessionInfo
    answered, noticed = threading.Event(), threading.Event()

    @ctypes.CFUNCTYPE(ctypes.c_ulong, ctypes.c_ulong, ctypes.c_void_p)
    def ask_slowly(session, info):
        rv = ask(ctypes.c_ulong(session), ctypes.c_void_p(info))
        if not answered.is_set():
            answered.set()
            assert noticed.wait(PATIENCE)
        return rv

    first = WAYS["slot"](luna).hold()
    other = luna.slot(2)
    other.acquire()
    (second,) = queue("slot")
    time.sleep(LONG_BLOCK)
    address = ctypes.cast(ask_slowly, ctypes.c_void_p).value
    # Its place among the functions of the standard.
    monkeypatch.setattr(entry_of(luna, 15), "value", address)
    leaving = call(first.leave)
    assert answered.wait(PATIENCE)
    reinitialise()
    with pytest.raises(luna_ext.LockLostError):
        other.ensure_held()
    noticed.set()
    leaving.result()
    second.hold()
    assert (count(), calls(cluster)) == (0, [LOCK, LOCK])
    second.leave()


def reconnect(luna, cluster):
    luna.reconnect()


def hear_of_the_loss(luna, cluster):
    let_device_forget_us(cluster)
    with pytest.raises(luna_ext.LockLostError):
        luna.slot(1).ensure_held()


@BOTH
@pytest.mark.parametrize("lose", [reconnect, hear_of_the_loss])
def test_a_lock_that_is_known_to_be_lost_is_not_handed_over(luna, cluster, queue, count, way, lose):
    first = WAYS[way](luna, partial(lose, luna, cluster)).hold()
    second, third = queue("slot", "task")
    with pytest.raises(luna_ext.LockLostError):
        first.leave()
    second.hold()
    assert calls(cluster) == [LOCK, LOCK]
    second.leave()
    third.hold().leave()
    assert count() == 1


@BOTH
def test_a_lock_that_is_just_being_lost_is_not_handed_over(
    luna, cluster, queue, count, call, wait_until_inside, way
):
    first = WAYS[way](luna).hold()
    (second,) = queue("slot")
    cluster.latency(0.5, "C_Finalize")
    reconnecting = call(luna.reconnect)
    wait_until_inside("C_Finalize")
    with contextlib.suppress(luna_ext.LockLostError):
        first.leave()
    reconnecting.result()
    second.hold()
    assert count() == 0
    second.leave()


@pytest.mark.luna_cluster(keyrings=1)
@pytest.mark.parametrize("way", ["claim", "claim in a task"])
def test_a_token_that_is_being_assigned_is_not_handed_over(
    luna, cluster, queue, count, wait_until_inside, way
):
    """The call would erase it under the next holder."""
    cluster.latency(0.3, INIT_TOKEN)
    assigning = []

    def assign():
        context = contextvars.copy_context()
        token = tokens[0]
        assigning.append(
            threading.Thread(
                target=context.run, args=(partial(token.assign, "payments", so_pin="so-pin-1"),)
            )
        )
        assigning[0].start()
        wait_until_inside(INIT_TOKEN)

    tokens = []

    class Keeping:
        """Keeps the Token that the claim gives."""

        def __init__(self, claim):
            self._claim = claim

        def __enter__(self):
            tokens.append(self._claim.__enter__())

        def __exit__(self, *error):
            return self._claim.__exit__(*error)

        async def __aenter__(self):
            tokens.append(await self._claim.__aenter__())

        def __aexit__(self, *error):
            return self._claim.__aexit__(*error)

    kind = TaskParty if way == "claim in a task" else Party
    first = kind(Keeping(luna.claim("cluster-1")), assign).hold()
    (second,) = queue("slot")
    first.leave()
    second.hold()
    assigning[0].join(PATIENCE)
    assert calls(cluster) == [UNLOCK, LOCK]
    second.leave()
    assert count() == 0
    (call,) = logged(cluster, INIT_TOKEN)
    assert logged(cluster, UNLOCK)[0].time >= call.time + call.duration


# ---- the next hold is one of its own ----


@BOTH
def test_the_one_before_cannot_release_it(luna, cluster, queue, way):
    gone = threading.Event()

    def release_again():
        luna.slot(1).release()
        second.hold()
        with pytest.raises(luna_ext.LockNotOwnedError):
            luna.slot(1).ensure_held()
        gone.set()

    first = Party(luna.slot(1), release_again).hold()
    (second,) = queue(way)
    with pytest.raises(luna_ext.LockNotOwnedError):
        first.leave()
    assert gone.is_set()
    assert luna.slot(1).locked()
    assert calls(cluster) == [LOCK]
    second.leave()
    assert calls(cluster) == [LOCK, UNLOCK]


def test_a_generator_of_the_one_before_does_not_end_it(luna, cluster, queue):
    def hold():
        with luna.slot(1).lock():
            yield

    generator, parties = hold(), []

    def release_and_leave_the_block_open():
        next(generator)
        parties.extend(queue("slot"))
        luna.slot(1).release()

    thread = threading.Thread(target=release_and_leave_the_block_open)
    thread.start()
    thread.join(PATIENCE)
    second = parties[0].hold()
    generator.close()
    assert luna.slot(1).locked()
    assert calls(cluster) == [LOCK]
    second.leave()
    assert calls(cluster) == [LOCK, UNLOCK]


@BOTH
def test_a_loss_is_told_to_the_present_holder_alone(luna, cluster, queue, way):
    told = {"first": [], "second": []}
    events = []

    def make(name):
        kind = TaskParty if way == "task" else Party
        lock = luna.slot(1).lock(heartbeat=60, on_lost=told[name].append)
        return kind(lock, lambda: events.append(luna.slot(1).lost) if name == "first" else None)

    first = make("first").hold()
    (second,) = queue(lambda _: make("second"))
    first.leave()
    second.hold()
    luna.reconnect()
    with pytest.raises((luna_ext.LockLostError, asyncio.CancelledError)):
        second.leave()
    wait_until(lambda: told["second"])
    assert told["first"] == []
    assert not events[0].is_set()


def test_its_heartbeat_asks_for_it(luna, cluster, queue):
    first = WAYS["slot"](luna).hold()
    told = threading.Event()
    (second,) = queue(
        lambda luna: Party(luna.slot(1).lock(heartbeat=0.2, on_lost=lambda error: told.set()))
    )
    first.leave()
    second.hold()
    cluster.disconnect(os.getpid())
    assert told.wait(PATIENCE)
    with pytest.raises(luna_ext.LockLostError):
        second.leave()


@pytest.mark.luna_cluster(keyrings=1)
@pytest.mark.parametrize("in_task", [False, True])
def test_token_lock_looks_at_the_label_after_it(luna, cluster, queue, count, in_task):
    old = luna.token("keyring1")
    claim = luna.claim("cluster-1")

    class Assigning:
        def __enter__(self):
            self.token = claim.__enter__()

        def __exit__(self, *error):
            self.token.assign("payments", so_pin="so-pin-1")
            return claim.__exit__(*error)

    first = Party(Assigning()).hold()
    kind = TaskParty if in_task else Party
    second, third = queue(lambda luna: kind(old.lock(timeout=PATIENCE)), "slot")
    first.leave()
    with pytest.raises(luna_ext.TokenChangedError):
        second.end()
    # And goes on to the next one.
    third.hold().leave()
    assert count() == 2
    assert calls(cluster) == [UNLOCK]


@pytest.mark.luna_cluster(keyrings=1)
@pytest.mark.parametrize("way", CLAIMS)
def test_a_claimed_token_can_be_claimed_elsewhere_in_the_end(luna, cluster, queue, run, way):
    """The library's own session must not stay on it, for no token with a session can be assigned."""
    first = WAYS[way](luna).hold()
    (second,) = queue("slot")
    first.leave()
    second.hold().leave()
    done = run(
        """
        with luna.claim("cluster-1") as token:
            token.assign("payments", so_pin="so-pin-1")
        """
    )
    assert (done.returncode, done.stderr) == (0, "")


# ---- waiters that are gone ----


@BOTH
@pytest.mark.parametrize("gone", ["timed lock", "timed task"])
def test_one_that_has_given_up_is_passed_over(luna, cluster, queue, count, way, gone):
    first = WAYS[way](luna).hold()
    lock = luna.slot(1).lock(timeout=0.2)
    kind = TaskParty if "task" in gone else Party
    second, third = queue(lambda _: kind(lock), way)
    with pytest.raises(luna_ext.LockTimeoutError):
        second.end()
    first.leave()
    third.hold().leave()
    assert count() == 1
    assert calls(cluster) == [LOCK, UNLOCK]


def test_a_task_whose_loop_is_closed_is_passed_over(luna, cluster, queue):
    first = WAYS["slot"](luna).hold()
    loop = asyncio.new_event_loop()

    async def wait():
        async with luna.slot(1).lock():
            pytest.fail("the loop has ended")

    async def begin():
        task = asyncio.create_task(wait())
        await asyncio.sleep(0)
        return task

    task = loop.run_until_complete(begin())
    loop.close()
    assert "1 waiting" in repr(luna.slot(1))
    second = WAYS["slot"](luna)
    wait_until(lambda: "2 waiting" in repr(luna.slot(1)))
    first.leave()
    second.hold().leave()
    wait_until(lambda: nothing_is_locked(cluster))
    assert not luna.slot(1).locked()
    # asyncio tells of it when it is collected.
    task._log_destroy_pending = False
    with pytest.raises(RuntimeError):
        task.get_coro().throw(RuntimeError)


def test_a_cancelled_task_that_has_just_got_it_gives_it_on(luna, cluster, queue):
    """The cancellation comes while the loop has not yet heard of the lock."""
    first = WAYS["slot"](luna).hold()
    second = None

    async def wait():
        async with luna.slot(1).lock():
            pytest.fail("it was cancelled")

    async def main():
        nonlocal second
        task = asyncio.create_task(wait())
        while "1 waiting" not in repr(luna.slot(1)):
            await asyncio.sleep(0)
        second = WAYS["slot"](luna)
        wait_until(lambda: "2 waiting" in repr(luna.slot(1)))
        # The loop stands still while this one leaves.
        first.leave()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    second.hold().leave()
    wait_until(lambda: nothing_is_locked(cluster))


class Refused(Exception):
    pass


@BOTH
def test_a_log_handler_that_raises_gives_it_on(luna, cluster, queue, way, caplog):
    first = WAYS["slot"](luna).hold()

    class Refusing(logging.Filter):
        def filter(self, record):
            if "locked after" in record.getMessage():
                log.removeFilter(self)
                raise Refused
            return True

    log = logging.getLogger("luna_ext")
    second, third = queue(way, "slot")
    refusing = Refusing()
    with caplog.at_level(logging.DEBUG, "luna_ext"):
        # Wanted for waits that have begun after that.
        fourth = WAYS[way](luna)
        wait_until(lambda: "3 waiting" in repr(luna.slot(1)))
        first.leave()
        second.hold().leave()
        log.addFilter(refusing)
        third.hold().leave()
        with pytest.raises(Refused):
            fourth.end()
    wait_until(lambda: nothing_is_locked(cluster))
    assert not luna.slot(1).locked()


# ---- the ends ----


@BOTH
def test_close_of_the_holders_library_unlocks(luna, cluster, wait_until_queued, way):
    closing = cluster.library(handover=LONG)
    first = WAYS[way](closing).hold()
    second = WAYS[way](luna)
    wait_until_queued(luna.slot(1), 1)
    with pytest.warns(ResourceWarning):
        closing.close()
    second.hold()
    assert calls(cluster) == [LOCK, UNLOCK, LOCK]
    with pytest.raises(luna_ext.LockLostError):
        first.leave()
    second.leave()


@BOTH
def test_waiters_of_a_closed_library_are_passed_over(luna, cluster, count, wait_until_queued, way):
    first = WAYS["slot"](luna).hold()
    closing = cluster.library(handover=LONG)
    second = WAYS[way](closing)
    wait_until_queued(luna.slot(1), 1)
    third = WAYS[way](luna)
    wait_until_queued(luna.slot(1), 2)
    closing.close()
    with pytest.raises(luna_ext.LibraryClosedError):
        second.end()
    first.leave()
    third.hold().leave()
    assert count() == 1


def test_in_a_child_nothing_is_held(luna, queue, count, in_child):
    first = WAYS["slot"](luna).hold()
    codes = []

    def child():
        slot = luna.slot(1)
        with pytest.raises(luna_ext.LockNotOwnedError):
            slot.release()
        return not slot.locked() and "waiting" not in repr(slot) and luna.stats() == {}

    second, third = queue(
        lambda luna: Party(luna.slot(1), lambda: codes.append(in_child(child))), "slot"
    )
    first.leave()
    second.hold().leave()
    assert codes == [0]
    third.hold().leave()
    assert count() == 2


def test_a_block_that_a_child_inherits_ends_there_without_a_call(luna, cluster, queue):
    first = WAYS["slot"](luna).hold()
    codes = []

    def fork_in_block():
        child = None
        with luna.slot(1).lock():
            child = os.fork()
        if child == 0:
            # The end of the block was a no-op here, or the parent's lock is off.
            os._exit(0 if luna.stats() == {} else 1)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    thread = threading.Thread(target=fork_in_block)
    thread.start()
    wait_until(lambda: "1 waiting" in repr(luna.slot(1)))
    first.leave()
    thread.join(PATIENCE)
    assert codes == [0]
    assert calls(cluster) == [LOCK, UNLOCK]


@pytest.mark.parametrize("daemon", [True, False])
def test_the_exit_hands_nothing_over(cluster, run, daemon):
    done = run(
        f"""
        luna = cluster.library(handover=1000)
        slot = luna.slot(1)

        def work():
            try:
                while True:
                    with slot:
                        pass
            except luna_ext.LunaError:
                pass

        threads = [in_thread(work, daemon={daemon}) for _ in range(4)]
        stats = lambda: luna.stats().get("CA_LockClusteredSlot")
        wait_until(lambda: stats() is not None and stats().handed_over > 100)
        if not {daemon}:
            luna.close()
        leaving()
        """,
        options=("-X", "dev"),
    )
    assert done.returncode == 0
    assert done.seconds < 10
    assert nothing_is_locked(cluster)


# ---- told ----


class Stop(BaseException):
    pass


@pytest.mark.signals
@pytest.mark.parametrize("waits", ["slot", "task"])
def test_a_signal_at_the_end_of_the_block_is_handled_after_it(luna, cluster, queue, count, waits):
    """The main thread does not wake a task itself: the handler would run in there, and be lost."""

    def stop(number, frame):
        raise Stop

    class LastWord:
        """An attribute of it brings a signal in, which Python handles after the next call."""

        _as_parameter_ = 0
        signal = property(partial(getattr(ctypes.PyDLL(None), "raise"), signal.SIGALRM))

    last = LastWord()
    previous = signal.signal(signal.SIGALRM, stop)
    try:
        for number in range(1, 6):
            with pytest.raises(Stop), luna.slot(1):
                (second,) = queue(waits)
                last.signal  # noqa: B018
            second.hold().leave()
            assert count() == number
    finally:
        signal.signal(signal.SIGALRM, previous)
    assert nothing_is_locked(cluster)


@BOTH
def test_a_debug_record_tells_of_it(luna, queue, caplog, way):
    with caplog.at_level(logging.DEBUG, "luna_ext"):
        first = WAYS[way](luna).hold()
        (second,) = queue("slot")
        first.leave()
        second.hold()
        wait_until(lambda: "handed over" in caplog.text)
        assert "unlocked" not in caplog.text
        second.leave()
    assert caplog.text.count("handed over to the next waiter of this process") == 1
    assert caplog.text.count("unlocked in") == 1


def test_it_is_an_audit_event_as_any_release(luna, queue):
    events, listens = [], True

    def listen(event, arguments):
        if listens and event == "luna_ext.unlock":
            events.append(arguments)

    sys.addaudithook(listen)
    first = WAYS["slot"](luna).hold()
    (second,) = queue("slot")
    first.leave()
    assert events == [(1,)]
    second.hold().leave()
    assert events == [(1,), (1,)]
    listens = False


def test_stats_count_it_though_no_lock_call_was_made(cluster, in_child):
    """In a child, which counts from nothing: what a claim has got was handed over."""

    def child():
        with cluster.library(handover=LONG) as luna:
            first = Party(luna.claim("cluster-1")).hold()
            slot = next(slot for slot in luna.slots() if slot.locked())
            second = Party(slot)
            wait_until(lambda: "1 waiting" in repr(slot))
            first.leave()
            second.hold().leave()
            stats = luna.stats()[LOCK]
            return (stats.calls, stats.handed_over) == (0, 1)

    assert in_child(child) == 0


# ---- a device that answers an error ----


@BOTH
def test_polling_waiters_get_it_as_well(cluster, wait_until_queued, way):
    cluster.switch("contention", "error")
    with cluster.library(contention="poll", handover=LONG) as luna:
        first = WAYS[way](luna).hold()
        second = WAYS[way](luna)
        wait_until_queued(luna.slot(1), 1)
        first.leave()
        second.hold().leave()
        assert calls(cluster) == [LOCK, UNLOCK]
