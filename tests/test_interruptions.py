"""Ctrl-C and cancellation at every moment of an operation: no lock leaks, no waiter is lost.

On threads, the moment is one that the test brings about: inside a device call, or together with the
grant, for which the signal handler itself provides. For tasks, most tests sweep the moment: what
comes of an operation depends on it, what has to hold does not.
"""

import _thread
import asyncio
import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from functools import partial

import pytest
from support import (
    CLAIM,
    DEVICE_ERROR,
    LOCK,
    NO_MORE_THREADS,
    ON_BOTH,
    TOKEN_INFO,
    UNLOCK,
    have_returned,
    hold_loop_until_it_is_told,
    let_others_run_until,
    logged,
    nothing_is_locked,
    wait_until,
)

import luna_ext

STEPS = 60
LATENCY = 0.0005
# Long enough for every operation of these tests to be over on a machine that is not busy.
LONGEST = 0.003
# A handler that raises just behind `__enter__`: docs/lock.md says what to do. The next version has no
# such place.
MAY_LEAVE_A_LOCK = sys.version_info[:2] == (3, 14)


def give_back_what_a_handler_left(slot):
    if MAY_LEAVE_A_LOCK:
        with contextlib.suppress(luna_ext.LockNotOwnedError):
            slot.release()


# Holds and leaves slot 1 by turns, until its standard input ends.
CONTENDER = """
import os, sys, threading
from luna_ext.stub import STATE_VARIABLE, Cluster

ended = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
with Cluster(os.environ[STATE_VARIABLE]).library(contention="poll") as luna:
    print("ready", flush=True)
    while not ended.wait(0.002):
        with luna.slot(1):
            ended.wait(0.002)
"""


def sweep(longest=LONGEST, steps=STEPS):
    return [longest * step / steps for step in range(steps)]


@pytest.fixture
def slow_device(cluster):
    for function in (LOCK, UNLOCK, CLAIM):
        cluster.latency(LATENCY, function)


@pytest.fixture
def contender(cluster):
    """Another process that takes slot 1 again and again."""
    process = subprocess.Popen(
        [sys.executable, "-c", CONTENDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    yield
    process.communicate()
    assert process.returncode == 0


@pytest.fixture
def settled(cluster, call):
    """Makes sure that this process holds nothing, and that a slot can be locked by any process."""

    def held_by_us():
        return [token.slot_id for token in cluster.tokens() if token.owner == os.getpid()]

    def nothing_is_under_way():
        return have_returned([one for one in cluster.log() if one.pid == os.getpid()])

    def settle(slot):
        # What was in flight when its caller left is given back when it returns.
        wait_until(lambda: nothing_is_under_way() and not held_by_us() and not slot.locked())

        def use():
            with slot.lock(timeout=10):
                return slot.slot_id in held_by_us()

        assert call(use).result(20)
        assert held_by_us() == []

    return settle


@pytest.fixture
def interrupted(call):
    """Runs a function, and raises in it once another thread, which looks at it, says so.

    Whether it came in time to be raised there: a handler that runs later does nothing.
    """
    armed = False

    def run(function, when, raising=lambda: None):
        """`when` returns at the moment of the signal; `raising` is what the handler does first."""
        nonlocal armed

        def raise_once(number, frame):
            nonlocal armed
            if armed:
                armed = False
                raising()
                raise KeyboardInterrupt

        def send():
            when()
            signal.pthread_kill(threading.main_thread().ident, signal.SIGALRM)

        signal.signal(signal.SIGALRM, raise_once)
        armed = True
        sending = call(send)
        came = False
        try:
            function()
        except KeyboardInterrupt:
            came = True
        armed = False
        sending.result()
        return came

    previous = signal.getsignal(signal.SIGALRM)
    yield run
    signal.signal(signal.SIGALRM, previous)


def all_have_ended(threads):
    return not any(thread.is_alive() for thread in threads)


# ---- threads ----


def enter(block):
    with block:
        pass


def acquire_and_release(*arguments, **options):
    def use(luna):
        slot = luna.slot(1)
        try:
            if slot.acquire(*arguments, **options):
                slot.release()
        except KeyboardInterrupt:
            # It may have come after acquire() returned True, and before the `if` looked at that.
            with contextlib.suppress(luna_ext.LockNotOwnedError):
                slot.release()
            raise

    return use


def in_turn(use):
    """With a timeout of 0 the call may find the lock held; that is no failure."""

    def try_use(luna):
        with contextlib.suppress(luna_ext.LockTimeoutError, luna_ext.NoUnassignedTokenError):
            use(luna)

    return try_use


OF_A_SLOT = {
    "with slot": lambda luna: enter(luna.slot(1)),
    "acquire": acquire_and_release(),
    "acquire(timeout)": acquire_and_release(timeout=5),
    "acquire(False)": acquire_and_release(False),
    "slot.lock": lambda luna: enter(luna.slot(1).lock()),
    "slot.lock(timeout)": lambda luna: enter(luna.slot(1).lock(timeout=5)),
    "slot.lock(timeout=0)": in_turn(lambda luna: enter(luna.slot(1).lock(timeout=0))),
    "with token": lambda luna: enter(luna.token("keyring1")),
    "token.lock": lambda luna: enter(luna.token("keyring1").lock()),
}
AT_ONCE = ("acquire(False)", "slot.lock(timeout=0)")
OF_A_CLAIM = {
    "claim": in_turn(lambda luna: enter(luna.claim("cluster-1"))),
    "claim(timeout)": lambda luna: enter(luna.claim("cluster-1", timeout=5)),
}


CALLS = {
    "with token": (LOCK, TOKEN_INFO, UNLOCK),
    "token.lock": (LOCK, TOKEN_INFO, UNLOCK),
    **dict.fromkeys(OF_A_CLAIM, (CLAIM, UNLOCK)),
}


@ON_BOTH
@pytest.mark.signals
@pytest.mark.parametrize(
    ("name", "function"),
    [
        (name, function)
        for name in (*OF_A_SLOT, *OF_A_CLAIM)
        for function in CALLS.get(name, (LOCK, UNLOCK))
    ],
)
def test_ctrl_c_inside_a_device_call_leaks_nothing(
    luna, cluster, settled, interrupted, wait_until_inside, name, function
):
    use = {**OF_A_SLOT, **OF_A_CLAIM}[name]
    cluster.latency(0.5, function)
    assert interrupted(lambda: use(luna), lambda: wait_until_inside(function))
    give_back_what_a_handler_left(luna.slot(1))
    settled(luna.slot(1))


def a_grant_had_time_to_come(slot):
    """Where a worker makes the lock call. Where the calling thread makes it, there is none."""
    with contextlib.suppress(AssertionError):
        wait_until(slot.locked, 0.1)


@pytest.mark.signals
@pytest.mark.parametrize("moment", ["before its turn", "with its turn"])
@pytest.mark.parametrize("name", [name for name in OF_A_SLOT if name not in AT_ONCE])
def test_ctrl_c_behind_another_thread_loses_no_waiter(
    luna, call, hold_here, settled, interrupted, wait_until_queued, name, moment
):
    slot = luna.slot(1)
    # A Token is looked for before.
    luna.token("keyring1")
    holder = hold_here(slot)
    behind = []

    def let_its_turn_come():
        behind.append(call(lambda: enter(slot.lock(timeout=20))))
        wait_until_queued(slot, 2)
        if moment == "with its turn":
            holder.leave()
            a_grant_had_time_to_come(slot)

    assert interrupted(
        lambda: OF_A_SLOT[name](luna), lambda: wait_until_queued(slot, 1), let_its_turn_come
    )
    holder.leave()
    assert behind[0].result() is None
    settled(slot)


@pytest.mark.signals
@pytest.mark.parametrize("name", ["with slot", "acquire(timeout)", "slot.lock"])
@pytest.mark.parametrize("contention", ["block", "poll"])
def test_ctrl_c_behind_another_process_leaks_nothing_and_loses_no_waiter(
    cluster, call, settled, interrupted, hold_elsewhere, contention, name
):
    cluster.switch("contention", "wait" if contention == "block" else "error")
    holder = hold_elsewhere(1)
    leaving = threading.Event()

    def leave():
        assert leaving.wait(30)
        holder.release()

    with cluster.library(contention=contention) as luna:
        slot = luna.slot(1)
        releasing = threading.Thread(target=leave)
        releasing.start()

        behind = []

        def has_asked():
            wait_until(lambda: logged(cluster, LOCK))
            behind.append(call(lambda: enter(slot.lock(timeout=20))))
            wait_until(lambda: "waiting" in repr(slot))
            # A thread that is inside the device call itself takes the signal when that returns.
            threading.Timer(0.05, leaving.set).start()

        def let_the_grant_come():
            leaving.set()
            releasing.join(30)
            a_grant_had_time_to_come(slot)

        assert interrupted(lambda: OF_A_SLOT[name](luna), has_asked, let_the_grant_come)
        releasing.join(30)
        assert behind[0].result() is None
        settled(slot)


@pytest.mark.signals
@pytest.mark.parametrize("moment", ["between two calls", "inside the second"])
@pytest.mark.parametrize("name", ["with slot", "slot.lock", "with token"])
def test_ctrl_c_while_the_device_is_asked_again_leaks_nothing_and_loses_no_waiter(
    cluster, call, settled, interrupted, name, moment
):
    refused = 4 if moment == "between two calls" else 1

    def is_the_moment():
        calls = logged(cluster, LOCK)
        return sum(one.rv == DEVICE_ERROR for one in calls) >= refused and (
            refused > 1 or not have_returned(calls)
        )

    cluster.fault(LOCK, DEVICE_ERROR, times=-1 if refused > 1 else refused)
    cluster.latency(0.1, LOCK)
    with cluster.library(contention="poll") as luna:
        slot = luna.slot(1)
        behind = []

        def asked_with_another_behind():
            wait_until(lambda: logged(cluster, LOCK))
            behind.append(call(lambda: enter(slot.lock(timeout=20))))
            wait_until(is_the_moment)

        assert interrupted(lambda: OF_A_SLOT[name](luna), asked_with_another_behind)
        cluster.fault(LOCK, DEVICE_ERROR, times=0)
        assert behind[0].result() is None
        settled(slot)


@ON_BOTH
@pytest.mark.signals
@pytest.mark.luna_cluster(keyrings=1)
def test_ctrl_c_together_with_the_token_that_a_claim_waits_for_leaks_nothing(
    luna, cluster, hold_here, settled, interrupted, wait_until_inside
):
    slot = luna.slot(1)
    holder = hold_here(slot)

    def one_is_asked_for():
        cluster.latency(0.3, CLAIM)
        wait_until_inside(CLAIM)
        # The delay comes before the answer is found.
        holder.leave()

    def let_it_be_given():
        wait_until(lambda: any(one.rv == 0 for one in logged(cluster, CLAIM)))
        a_grant_had_time_to_come(slot)

    assert interrupted(
        lambda: enter(luna.claim("cluster-1", timeout=20)), one_is_asked_for, let_it_be_given
    )
    settled(slot)


@pytest.mark.signals
@pytest.mark.parametrize("function", ["C_Initialize", "C_Finalize"])
def test_ctrl_c_while_a_library_opens_or_closes_leaves_it_usable(
    cluster, settled, interrupted, wait_until_inside, function
):
    cluster.latency(0.1, function)

    def use():
        with cluster.library() as luna, luna.slot(1):
            pass

    # A Library that was interrupted on its way to its user is never closed.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        assert interrupted(use, lambda: wait_until_inside(function))
    with cluster.library() as luna:
        settled(luna.slot(1))
    assert luna.closed
    called = [call.function for call in cluster.log() if call.rv == 0]
    assert called.count("C_Initialize") == called.count("C_Finalize")


class Interruption(Exception):
    """What a signal handler of these tests raises."""


@pytest.mark.signals
@pytest.mark.parametrize("timeout", [-1, 20])
def test_acquire_gives_the_lock_back_if_a_handler_raises_that_comes_with_it(
    luna, call, hold_here, settled, wait_until_queued, timeout
):
    """The signal does not end the wait, but the grant does. The caller could not release."""

    def interrupt(number, frame):
        raise Interruption

    def let_both_come():
        wait_until_queued(slot, 1)
        _thread.interrupt_main(signal.SIGALRM)
        holder.leave()

    slot = luna.slot(1)
    holder = hold_here(slot)
    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        coming = call(let_both_come)
        with pytest.raises(Interruption):
            slot.acquire(timeout=timeout)
    finally:
        signal.signal(signal.SIGALRM, previous)
    coming.result()
    settled(slot)


class LoopOfAHandlerThatRaises(asyncio.SelectorEventLoop):
    """A signal comes whenever a timer is cancelled."""

    def _timer_handle_cancelled(self, handle):
        super()._timer_handle_cancelled(handle)
        signal.raise_signal(signal.SIGALRM)


@pytest.mark.signals
def test_a_task_gives_the_lock_back_if_a_handler_raises_when_its_wait_has_ended(luna, settled):
    """The timer of the wait is cancelled when the lock is granted."""

    def interrupt(number, frame):
        raise Interruption

    async def main():
        async with luna.slot(1).lock(timeout=20):
            pytest.fail("the block has begun")

    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        with (
            asyncio.Runner(loop_factory=LoopOfAHandlerThatRaises) as runner,
            pytest.raises(Interruption),
        ):
            runner.run(main())
    finally:
        signal.signal(signal.SIGALRM, previous)
    settled(luna.slot(1))


@pytest.mark.signals
def test_signals_at_any_moment_leak_nothing_and_hit_no_other(luna, cluster, call, owner_of):
    """A handler that raises, twice in short succession, while other threads use the same slot."""
    slot = luna.slot(1)
    stop = threading.Event()
    left = 0

    def others():
        count = 0
        while not stop.is_set():
            with slot.lock(timeout=30):
                count += 1
        return count

    def interrupt(number, frame):
        nonlocal left
        if left:
            left -= 1
            raise Interruption

    def be_interrupted_twice():
        nonlocal left
        try:
            # In here, so that no interruption can come before it can be caught.
            left = 2
            deadline = time.monotonic() + 30
            while left:
                assert time.monotonic() < deadline
                with slot.lock(timeout=30):
                    pass
        except Interruption:
            wait_until(lambda: not left)

    threads = [call(others) for _ in range(2)]
    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0007)
    try:
        for _ in range(300):
            # Two levels, for the second may come while the first is being caught.
            with contextlib.suppress(Interruption):
                be_interrupted_twice()
            give_back_what_a_handler_left(slot)
    finally:
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        stop.set()
    assert left == 0
    assert all(caller.result(30) > 0 for caller in threads)
    with slot.lock(timeout=10):
        assert owner_of(1) == os.getpid()
    assert nothing_is_locked(cluster)


@ON_BOTH
@pytest.mark.signals
def test_a_signal_handler_may_use_another_slot_after_a_failed_claim(luna, cluster, owner_of):
    cluster.fault(CLAIM, 0x30, times=1)
    cluster.latency(0.1, CLAIM)
    used = []

    def use_another(number, frame):
        with luna.slot(2):
            used.append(owner_of(2))

    previous = signal.signal(signal.SIGALRM, use_another)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(luna_ext.DeviceError), luna.claim("cluster-1"):
            pass
    finally:
        signal.signal(signal.SIGALRM, previous)
    assert used == [os.getpid()]


# ---- tasks ----


async def use_async(block):
    async with block:
        await asyncio.sleep(LATENCY)


async def cancel_after(delay, work):
    task = asyncio.ensure_future(work)
    asyncio.get_running_loop().call_later(delay, task.cancel)
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()


async def end_by_timeout(delay, work):
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(delay):
            await work


async def end_by_wait_for(delay, work):
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(work, delay)


async def end_by_a_failing_sibling(delay, work):
    async def fail():
        await asyncio.sleep(delay)
        raise ZeroDivisionError

    with contextlib.suppress(ExceptionGroup):
        async with asyncio.TaskGroup() as group:
            group.create_task(work)
            group.create_task(fail())


OTHER_ENDS = [end_by_timeout, end_by_wait_for, end_by_a_failing_sibling]

ASYNC = {
    "slot.lock": lambda luna: luna.slot(1).lock(),
    "slot.lock(timeout)": lambda luna: luna.slot(1).lock(timeout=5),
    "token.lock": lambda luna: luna.token("keyring1").lock(timeout=5),
    "claim": lambda luna: luna.claim("cluster-1", timeout=5),
}


def run(*mains):
    """As asyncio.run(); what asyncio complains of by its exception handler is a failure."""
    complaints = []

    async def listening(main):
        asyncio.get_running_loop().set_exception_handler(
            lambda loop, context: complaints.append(context)
        )
        await main()

    for main in mains:
        asyncio.run(listening(main))
    gc.collect()
    assert complaints == []


@ON_BOTH
@pytest.mark.usefixtures("slow_device")
@pytest.mark.luna_cluster(keyrings=1)
@pytest.mark.parametrize(
    ("name", "end"),
    [
        *((name, cancel_after) for name in ASYNC),
        *((name, end) for name in ("slot.lock", "claim") for end in OTHER_ENDS),
    ],
)
def test_a_task_that_ends_at_any_moment_leaks_nothing(luna, settled, name, end):
    async def main():
        for delay in sweep():
            await end(delay, use_async(ASYNC[name](luna)))

    run(main)
    settled(luna.slot(1))


@ON_BOTH
@pytest.mark.luna_cluster(keyrings=1)
@pytest.mark.parametrize("name", ASYNC)
def test_a_task_that_is_cancelled_after_any_number_of_steps_leaks_nothing(luna, settled, name):
    async def main():
        for steps in range(STEPS):
            task = asyncio.create_task(use_async(ASYNC[name](luna)))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled() or task.result() is None
            await asyncio.wait_for(use_async(luna.slot(1).lock()), 10)

    run(main)
    settled(luna.slot(1))


@ON_BOTH
@pytest.mark.luna_cluster(keyrings=1)
@pytest.mark.parametrize(
    ("name", "function"),
    [
        *((name, CLAIM if name == "claim" else LOCK) for name in ASYNC),
        *((name, UNLOCK) for name in ASYNC),
        ("token.lock", TOKEN_INFO),
    ],
)
def test_a_cancellation_that_comes_together_with_an_answer_leaks_nothing(
    luna, cluster, settled, wait_until_inside, name, function
):
    luna.token("keyring1")
    cluster.latency(0.5, function)

    async def main():
        task = asyncio.create_task(use_async(ASYNC[name](luna)))
        await asyncio.to_thread(wait_until_inside, function)
        hold_loop_until_it_is_told(asyncio.get_running_loop())
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled() or task.result() is None

    run(main)
    settled(luna.slot(1))


@pytest.mark.parametrize("name", ["slot.lock", "slot.lock(timeout)", "token.lock"])
def test_a_cancellation_that_comes_together_with_the_turn_loses_no_waiter(
    luna, call, hold_here, settled, wait_until_queued, name
):
    slot = luna.slot(1)

    async def main():
        holder = hold_here(slot)
        task = asyncio.create_task(use_async(ASYNC[name](luna)))
        await asyncio.to_thread(wait_until_queued, slot, 1)
        behind = call(lambda: enter(slot.lock(timeout=20)))
        await asyncio.to_thread(wait_until_queued, slot, 2)
        hold_loop_until_it_is_told(asyncio.get_running_loop(), holder.leave)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        await asyncio.to_thread(behind.result)

    run(main)
    settled(slot)


@pytest.mark.usefixtures("slow_device")
@pytest.mark.luna_cluster(keyrings=1)
@pytest.mark.parametrize("name", ASYNC)
def test_a_task_that_is_cancelled_behind_another_loses_no_waiter(luna, settled, name):
    async def main():
        for delay in sweep(2 * LONGEST):
            async with asyncio.timeout(20), asyncio.TaskGroup() as group:
                group.create_task(use_async(luna.slot(1).lock()))
                await asyncio.sleep(0)
                group.create_task(cancel_after(delay, use_async(ASYNC[name](luna))))
                await asyncio.sleep(0)
                group.create_task(use_async(luna.slot(1).lock()))

    run(main)
    settled(luna.slot(1))


@ON_BOTH
@pytest.mark.usefixtures("slow_device")
@pytest.mark.luna_cluster(keyrings=1)
@pytest.mark.parametrize("name", ["slot.lock", "token.lock", "claim"])
def test_a_task_that_is_cancelled_behind_a_thread_loses_no_waiter(luna, call, settled, name):
    slot = luna.slot(1)

    def hold(held):
        with slot:
            held.set()
            time.sleep(LATENCY)
        return True

    async def main():
        for delay in sweep(2 * LONGEST):
            held = threading.Event()
            holder = call(lambda held=held: hold(held))
            assert held.wait(10)
            waiter = call(lambda: hold(threading.Event()))
            await cancel_after(delay, use_async(ASYNC[name](luna)))
            await let_others_run_until(partial(all_have_ended, (holder, waiter)))
            assert holder.result()
            assert waiter.result()

    run(main)
    settled(slot)


@ON_BOTH
@pytest.mark.usefixtures("slow_device", "contender")
@pytest.mark.luna_cluster(keyrings=1)
@pytest.mark.parametrize("name", ["slot.lock(timeout)", "claim"])
def test_a_task_that_is_cancelled_behind_another_process_leaks_nothing(luna, settled, name):
    async def main():
        for delay in sweep(2 * LONGEST):
            await cancel_after(delay, use_async(ASYNC[name](luna)))
            await asyncio.wait_for(use_async(luna.slot(1).lock()), 10)

    run(main)
    settled(luna.slot(1))


@pytest.mark.usefixtures("slow_device")
@pytest.mark.luna_cluster(keyrings=1)
@pytest.mark.parametrize("name", ASYNC)
def test_a_main_that_ends_at_any_moment_of_its_tasks_leaks_nothing(luna, settled, name):
    tasks = []

    async def main(delay):
        tasks.extend(asyncio.create_task(use_async(ASYNC[name](luna))) for _ in range(2))
        await asyncio.sleep(delay)

    run(*(partial(main, delay) for delay in sweep()))
    assert all(task.cancelled() or task.exception() is None for task in tasks)
    settled(luna.slot(1))


@pytest.mark.usefixtures("slow_device")
@pytest.mark.luna_cluster(keyrings=1)
@pytest.mark.parametrize("name", ASYNC)
def test_a_loop_that_is_closed_at_any_moment_of_a_task_leaks_nothing(luna, settled, name):
    for delay in sweep():
        work = use_async(ASYNC[name](luna))
        loop = asyncio.new_event_loop()
        task = loop.create_task(work)
        loop.run_until_complete(asyncio.sleep(delay))
        loop.close()
        # asyncio would complain of a task that was not run to its end.
        task._log_destroy_pending = False
        work.close()
        settled(luna.slot(1))


@pytest.mark.signals
@pytest.mark.usefixtures("slow_device")
@pytest.mark.luna_cluster(keyrings=1)
@pytest.mark.parametrize("name", ASYNC)
def test_ctrl_c_at_any_moment_of_asyncio_run_leaks_nothing(luna, settled, name):
    running = False

    async def main(delay):
        nonlocal running
        # Not earlier: a signal before asyncio's own handler is there, or after it is gone, is not
        # turned into a cancellation, and asyncio.run() itself does not survive it everywhere.
        running = True
        signal.setitimer(signal.ITIMER_REAL, max(delay, 1e-6))
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(2):
                    group.create_task(use_async(ASYNC[name](luna)))
        finally:
            running = False

    def interrupt(number, frame):
        if running:
            signal.raise_signal(signal.SIGINT)

    outcomes = set()
    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        for delay in sweep(2 * LONGEST):
            try:
                asyncio.run(main(delay))
            except KeyboardInterrupt:
                outcomes.add("interrupted")
            settled(luna.slot(1))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert outcomes == {"interrupted"}


def test_ctrl_c_ends_the_first_wait_of_a_process(succeed):
    """Of whose threads the library knows none before."""
    program = f"""
def interrupt():
    wait_until_inside("{LOCK}")
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

cluster.latency(5, "{LOCK}")
in_thread(interrupt)
try:
    slot.acquire()
except KeyboardInterrupt:
    print(*[call.rv for call in cluster.log() if call.function == "{LOCK}"], flush=True)
os._exit(0)
"""
    assert succeed(program) == ["None"], "the call is still out"


@pytest.mark.signals
@pytest.mark.parametrize("behind", [1, 0])
def test_a_turn_that_comes_while_a_handler_ends_the_wait_goes_to_the_next(succeed, behind):
    """Where no thread can be had, the main thread is to make the call itself; it does not any more."""
    program = f"""
leave = threading.Event()
said = []

class Stop(BaseException):
    pass

def hold():
    with slot:
        assert leave.wait(20)

def lock_behind_the_main_thread():
    wait_until(lambda: "1 waiting" in repr(slot))
    with slot:
        said.append("locked")

def stop(number, frame):
    leave.set()
    holding.join()
    raise Stop

def send():
    wait_until(lambda: "{1 + behind} waiting" in repr(slot))
    signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)

signal.signal(signal.SIGUSR1, stop)
holding = in_thread(hold)
wait_until(slot.locked)
others = [in_thread(lock_behind_the_main_thread) for _ in range({behind})] + [in_thread(send)]
{NO_MORE_THREADS}
try:
    slot.acquire()
except Stop:
    said.append("stopped")
for other in others:
    other.join(20)
print(*sorted(said), repr(slot).split()[-1], luna.lock_stats().waiting)
luna.close()
"""
    assert succeed(program, options=()) == [
        *["locked"] * behind,
        "stopped",
        "unlocked>",
        "0",
    ]
