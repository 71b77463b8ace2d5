"""Ctrl-C and cancellation at every moment of an operation: no lock leaks, no waiter is lost.

Each test sweeps the moment. What comes of an operation depends on it; what has to hold does not.
"""

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
from support import CLAIM, LOCK, UNLOCK, let_others_run_until, nothing_is_locked, wait_until

import luna_ext

STEPS = 60
LATENCY = 0.0005
# Long enough for every operation of these tests to be over on a machine that is not busy.
LONGEST = 0.003

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
    """Makes sure that this process holds nothing, and that a slot can be locked by anybody."""

    def held_by_us():
        return [token.slot_id for token in cluster.tokens() if token.owner == os.getpid()]

    def settle(slot):
        # What was in flight when its caller left is given back when it returns.
        wait_until(lambda: not held_by_us() and not slot.locked())

        def use():
            with slot.lock(timeout=10):
                return slot.slot_id in held_by_us()

        assert call(use).result(20)
        assert held_by_us() == []

    return settle


@pytest.fixture
def interrupted():
    """Runs a function in which KeyboardInterrupt is raised after a delay; whether it came."""
    armed = False

    def raise_once(number, frame):
        nonlocal armed
        if armed:
            armed = False
            raise KeyboardInterrupt

    def run(function, delay):
        nonlocal armed
        try:
            armed = True
            signal.setitimer(signal.ITIMER_REAL, max(delay, 1e-6))
            function()
            armed = False
        except KeyboardInterrupt:
            return True
        signal.setitimer(signal.ITIMER_REAL, 0)
        return False

    previous = signal.signal(signal.SIGALRM, raise_once)
    yield run
    signal.setitimer(signal.ITIMER_REAL, 0)
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
            # It may have come after acquire() returned True, and before anybody could see that.
            with contextlib.suppress(luna_ext.LockNotOwnedError):
                slot.release()
            raise

    return use


def in_turn(use):
    """With a timeout of 0 somebody else may have the lock; that is no failure."""

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
OF_A_CLAIM = {
    "claim": in_turn(lambda luna: enter(luna.claim("cluster-1"))),
    "claim(timeout)": lambda luna: enter(luna.claim("cluster-1", timeout=5)),
}


@pytest.mark.signals
@pytest.mark.usefixtures("slow_device")
@pytest.mark.parametrize("name", [*OF_A_SLOT, *OF_A_CLAIM])
def test_ctrl_c_at_any_moment_leaks_nothing(luna, settled, interrupted, name):
    use = {**OF_A_SLOT, **OF_A_CLAIM}[name]
    outcomes = set()
    for delay in sweep():
        outcomes.add(interrupted(lambda: use(luna), delay))
        settled(luna.slot(1))
    assert True in outcomes


@pytest.mark.signals
@pytest.mark.usefixtures("slow_device")
@pytest.mark.parametrize(
    "name", ["with slot", "acquire(timeout)", "slot.lock", "slot.lock(timeout=0)", "with token"]
)
def test_ctrl_c_behind_another_thread_loses_no_waiter(
    luna, call, settled, interrupted, wait_until_queued, name
):
    slot = luna.slot(1)

    def wait_and_hold(held):
        with slot:
            held.set()
            # So that the main thread's wait begins before it ends.
            time.sleep(LATENCY)
        return True

    for delay in sweep(2 * LONGEST):
        held = threading.Event()
        holder = call(lambda held=held: wait_and_hold(held))
        assert held.wait(10)
        waiter = call(lambda: wait_and_hold(threading.Event()))
        interrupted(lambda: OF_A_SLOT[name](luna), delay)
        assert holder.result()
        assert waiter.result()
        settled(slot)


@pytest.mark.signals
@pytest.mark.usefixtures("slow_device", "contender")
@pytest.mark.parametrize("name", ["with slot", "slot.lock"])
@pytest.mark.parametrize("contention", ["block", "poll"])
def test_ctrl_c_behind_another_process_leaks_nothing(
    cluster, settled, interrupted, contention, name
):
    cluster.switch("contention", "wait" if contention == "block" else "error")
    with cluster.library(contention=contention) as luna:
        for delay in sweep(4 * LONGEST, STEPS // 3):
            interrupted(lambda: OF_A_SLOT[name](luna), delay)
            settled(luna.slot(1))


@pytest.mark.signals
@pytest.mark.usefixtures("slow_device")
@pytest.mark.parametrize("name", ["with slot", "slot.lock", "with token"])
def test_ctrl_c_while_the_device_is_asked_again_leaks_nothing(cluster, settled, interrupted, name):
    # The second call begins 10 to 20 ms after the first, and has to be hit as well.
    cluster.latency(0.005, LOCK)
    with cluster.library(contention="poll") as luna:
        for delay in sweep(0.035, STEPS // 2):
            cluster.fault(LOCK, 0x30, times=1)
            interrupted(lambda: OF_A_SLOT[name](luna), delay)
            cluster.fault(LOCK, 0x30, times=0)
            settled(luna.slot(1))


@pytest.mark.signals
@pytest.mark.usefixtures("slow_device")
@pytest.mark.luna_cluster(keyrings=1)
def test_ctrl_c_while_a_claim_waits_for_a_token_leaks_nothing(luna, call, settled, interrupted):
    slot = luna.slot(1)

    def hold(held):
        with slot:
            held.set()
            time.sleep(4 * LATENCY)

    for delay in sweep(6 * LONGEST, STEPS // 2):
        held = threading.Event()
        holder = call(lambda held=held: hold(held))
        assert held.wait(10)
        interrupted(lambda: enter(luna.claim("cluster-1", timeout=5)), delay)
        holder.result()
        settled(slot)


@pytest.mark.signals
def test_ctrl_c_while_a_library_opens_or_closes_leaves_it_usable(cluster, settled, interrupted):
    cluster.latency(LATENCY, "C_Initialize")
    cluster.latency(LATENCY, "C_Finalize")

    def use():
        with cluster.library() as luna, luna.slot(1):
            pass

    for delay in sweep():
        # A Library that was interrupted on its way to its user is closed by nobody.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            interrupted(use, delay)
        with cluster.library() as luna:
            settled(luna.slot(1))
        assert luna.closed
        called = [call.function for call in cluster.log() if call.rv == 0]
        assert called.count("C_Initialize") == called.count("C_Finalize")


@pytest.mark.signals
@pytest.mark.parametrize("options", [{}, {"timeout": 10}], ids=["plain", "timed"])
def test_a_turn_that_comes_while_a_handler_raises_is_passed_on(
    luna, call, hold_here, on_alarm, wait_until_queued, owner_of, options
):
    slot = luna.slot(1)
    holder = hold_here(slot)
    behind = []

    def let_the_turn_come():
        wait_until_queued(slot, 1)
        behind.append(call(lambda: enter(slot.lock(timeout=5))))
        wait_until_queued(slot, 2)
        holder.leave()
        if options:
            # A worker makes the call meanwhile.
            wait_until(slot.locked)
        raise KeyboardInterrupt

    on_alarm(let_the_turn_come)
    with pytest.raises(KeyboardInterrupt):
        slot.acquire(**options)
    assert behind[0].result() is None
    wait_until(lambda: owner_of(1) is None)


class Interruption(Exception):
    """What a signal handler of these tests raises."""


@pytest.mark.signals
def test_signals_at_any_moment_leak_nothing_and_hit_nobody_else(luna, cluster, call, owner_of):
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
            # In here, so that no interruption can come before somebody catches it.
            left = 2
            while left:
                with slot.lock(timeout=30):
                    pass
        except Interruption:
            while left:
                pass

    threads = [call(others) for _ in range(2)]
    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0007)
    try:
        for _ in range(300):
            # Two levels, for the second may come while the first is being caught.
            with contextlib.suppress(Interruption):
                be_interrupted_twice()
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
        # asyncio would complain, and rightly, of a task that nobody has seen to its end.
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
