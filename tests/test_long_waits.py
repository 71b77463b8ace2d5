"""Waits that are long: on the main thread a signal ends them, and a WARNING comes while they last."""

import asyncio
import logging
import os
import re
import signal
import threading
import time

import pytest
from support import (
    CLAIM,
    DEVICE_ERROR,
    LOCK,
    MAY_FORK,
    NO_MORE_THREADS,
    NONE_LEFT,
    PATIENCE,
    TOKEN_INFO,
    logged,
    wait_until,
)

import luna_ext


class Stop(BaseException):
    """What a signal handler of these tests raises."""


def enter(block):
    with block:
        pytest.fail("entered")


FORMS = {
    "with slot": lambda luna: enter(luna.slot(1)),
    "acquire": lambda luna: luna.slot(1).acquire(),
    "timed acquire": lambda luna: luna.slot(1).acquire(timeout=60),
    "lock": lambda luna: enter(luna.slot(1).lock()),
    "timed lock": lambda luna: enter(luna.slot(1).lock(timeout=60)),
    "token.lock": lambda luna: enter(luna.token("keyring1").lock(timeout=60)),
    "with token": lambda luna: enter(luna.token("keyring1")),
}
CLAIMS = {
    "claim": lambda luna: enter(luna.claim("cluster-1")),
    "timed claim": lambda luna: enter(luna.claim("cluster-1", timeout=60)),
}
HANGS = {
    **{name: (LOCK, form) for name, form in FORMS.items()},
    **{name: (CLAIM, form) for name, form in CLAIMS.items()},
    "with token, its label": (TOKEN_INFO, FORMS["with token"]),
    "token.lock, its label": (TOKEN_INFO, FORMS["token.lock"]),
}


@pytest.fixture
def stopped_inside(cluster, wait_until_inside, call):
    """Run a function on the main thread, and have a signal handler raise while its device call lasts;
    how many seconds later the function had ended.
    """
    times = {}

    def stop(number, frame):
        raise Stop

    def run(function, inside):
        def interrupt():
            wait_until_inside(inside)
            times["sent"] = time.monotonic()
            signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)

        interrupting = call(interrupt)
        with pytest.raises(Stop):
            function()
        ended = time.monotonic()
        interrupting.result()
        return ended - times["sent"]

    previous = signal.signal(signal.SIGUSR1, stop)
    yield run
    signal.signal(signal.SIGUSR1, previous)


def comes_off(cluster):
    wait_until(lambda: not any(token.owner == os.getpid() for token in cluster.tokens()))


@pytest.mark.signals
@pytest.mark.parametrize("form", FORMS)
def test_a_signal_ends_a_wait_for_another_process(
    luna, cluster, hold_elsewhere, stopped_inside, form
):
    holder = hold_elsewhere(1)
    assert stopped_inside(lambda: FORMS[form](luna), LOCK) < 3
    assert not luna.slot(1).locked()
    holder.release()
    comes_off(cluster)
    hold_elsewhere(1)


@pytest.mark.signals
@pytest.mark.parametrize("form", HANGS)
def test_a_signal_ends_a_wait_for_a_device_that_hangs(luna, cluster, stopped_inside, form):
    function, wait = HANGS[form]
    cluster.latency(2.5, function)
    assert stopped_inside(lambda: wait(luna), function) < 2
    cluster.latency(0, function)
    assert not any(slot.locked() for slot in luna.slots())
    # What is still on its way comes off when it is there, and can be had again.
    with luna.slot(1).lock(timeout=20):
        pass
    comes_off(cluster)
    wait_until(lambda: all(entry.rv is not None for entry in cluster.log()))


@pytest.mark.signals
@pytest.mark.parametrize("form", FORMS)
def test_a_handler_that_returns_lets_the_wait_go_on(luna, hold_elsewhere, wait_until_inside, form):
    holder = hold_elsewhere(1)
    handled = []

    def handle(number, frame):
        handled.append(time.monotonic())
        holder.release()

    previous = signal.signal(signal.SIGUSR1, handle)

    def send():
        wait_until_inside(LOCK)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        if "acquire" in form:
            assert FORMS[form](luna)
            luna.slot(1).release()
        else:
            with pytest.raises(pytest.fail.Exception, match="entered"):
                FORMS[form](luna)
    finally:
        sender.join()
        signal.signal(signal.SIGUSR1, previous)
    assert len(handled) == 1


@pytest.mark.signals
@pytest.mark.parametrize("form", FORMS)
def test_a_handler_cannot_wait_for_what_its_thread_waits_for(
    luna, cluster, hold_elsewhere, wait_until_inside, call, form
):
    """It would wait for the wait that it interrupts."""
    holder = hold_elsewhere(1)
    refused = []

    def handle(number, frame):
        try:
            luna.slot(1).acquire(timeout=5)
        except luna_ext.LockReentryError as error:
            refused.append(str(error))
        raise Stop

    previous = signal.signal(signal.SIGUSR1, handle)

    def send():
        wait_until_inside(LOCK)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)

    sending = call(send)
    try:
        with pytest.raises(Stop):
            FORMS[form](luna)
    finally:
        sending.result()
        signal.signal(signal.SIGUSR1, previous)
    assert len(refused) == 1
    assert "waits for this lock already" in refused[0]
    holder.release()
    comes_off(cluster)


# ---- the WARNING records ----


def told(caplog):
    return [
        r.getMessage()
        for r in caplog.records
        if (r.name, r.levelno) == ("luna_ext", logging.WARNING)
    ]


def wait_in_a_task(block):
    async def wait():
        async with block:
            pass

    asyncio.run(wait())


def wait_in_a_thread(block):
    with block:
        pass


def test_every_wait_for_another_process_or_a_silent_device_is_told_of_while_it_lasts(
    luna, cluster, caplog, hold_elsewhere, call
):
    """At the same time, because each really has to last 5 seconds. A thread that makes the device call
    itself cannot warn of it; the watcher does.
    """
    holders = [hold_elsewhere(slot_id) for slot_id in range(1, 6)]
    cluster.latency(7, CLAIM)
    waiting = [
        call(lambda: wait_in_a_thread(luna.slot(1))),
        call(lambda: wait_in_a_thread(luna.slot(2).lock())),
        call(lambda: wait_in_a_thread(luna.slot(3).lock(timeout=60))),
        call(lambda: wait_in_a_task(luna.slot(4).lock())),
        call(lambda: wait_in_a_thread(luna.token("keyring5"))),
        call(lambda: wait_in_a_thread(luna.claim("cluster-1"))),
        call(lambda: wait_in_a_thread(luna.claim("cluster-1", timeout=60))),
        call(lambda: wait_in_a_task(luna.claim("cluster-1", timeout=60))),
    ]
    begin = time.monotonic()
    deadline = begin + 6.9
    while len(told(caplog)) < len(waiting) and time.monotonic() < deadline:
        time.sleep(0.01)
    texts = told(caplog)
    assert all(caller.is_alive() for caller in waiting)
    for slot_id in range(1, 6):
        assert sum(text.startswith(f"slot {slot_id}: still waiting") for text in texts) == 1, texts
    assert sum("cluster 'cluster-1': still waiting" in text for text in texts) == 3, texts
    for holder in holders:
        holder.release()
    for caller in waiting:
        caller.result(30)
    # Once each.
    assert told(caplog) == texts


def test_a_call_that_a_thread_makes_itself_is_not_told_of_before_it_is_long(
    luna, cluster, caplog, call
):
    """The watcher looks at it once a second."""
    cluster.latency(3.5, LOCK)
    call(lambda: wait_in_a_thread(luna.slot(1))).result(30)
    assert told(caplog) == []


def test_a_task_that_has_its_lock_or_claim_is_not_told_of(luna, caplog):
    """Its event loop looks for waits when they would have become long."""

    async def main():
        claim = luna.claim("cluster-1", timeout=20)
        async with claim as token, luna.slot(token.slot.slot_id % 8 + 1).lock():
            await asyncio.sleep(5.5)

    asyncio.run(main())
    assert told(caplog) == []


def test_a_claim_is_told_of_where_no_other_call_is_long(luna, cluster, caplog, call):
    """Of a thread that makes the call itself the watcher tells, which ends when there is none."""
    cluster.latency(9, CLAIM)
    claiming = call(lambda: wait_in_a_thread(luna.claim("cluster-1")))
    wait_until(lambda: told(caplog))
    assert "cluster 'cluster-1': still waiting" in told(caplog)[0]
    claiming.result(30)


def test_a_log_handler_that_raises_ends_the_wait_and_not_that_of_the_next(
    luna, monkeypatch, call, wait_until_queued
):
    class Refusal(Exception):
        pass

    def refuse(record):
        if "still waiting" in record.getMessage():
            raise Refusal

    handler = logging.Handler()
    handler.emit = refuse
    monkeypatch.setattr(logging.getLogger("luna_ext"), "handlers", [handler])
    slot = luna.slot(1)
    slot.acquire()
    waiting = call(lambda: wait_in_a_thread(slot))
    with pytest.raises(Refusal):
        waiting.result(30)
    waiting = call(lambda: wait_in_a_thread(slot))
    wait_until_queued(slot, 1)
    slot.release()
    waiting.result()


@pytest.mark.parametrize("wait", [wait_in_a_thread, wait_in_a_task])
@pytest.mark.parametrize("function", [CLAIM, LOCK])
def test_of_a_short_wait_nothing_is_told(cluster, caplog, wait, function):
    with cluster.library(contention="poll") as luna:
        cluster.fault(function, NONE_LEFT if function == CLAIM else DEVICE_ERROR, times=3)
        wait(luna.claim("cluster-1", timeout=20) if function == CLAIM else luna.slot(1).lock())
    assert len(logged(cluster, function)) == 4
    assert told(caplog) == []


def test_a_long_wait_is_told_of_on_both_sides_of_a_fork(luna, caplog, hold_elsewhere, call):
    """Of threads that make the device call themselves. Who looks after them ends before the fork."""
    holder = hold_elsewhere(1)

    def is_told_of():
        waiting = call(lambda: wait_in_a_thread(luna.slot(1)))
        wait_until(lambda: told(caplog))
        return waiting, told(caplog)[0].startswith("slot 1: still waiting")

    # From now on there is a thread that looks after long waits.
    call(lambda: wait_in_a_thread(luna.slot(2))).result()
    child = os.fork()
    if child == 0:
        signal.alarm(45)
        code = 99
        try:
            code = 0 if is_told_of()[1] else 1
        finally:
            os._exit(code)
    waiting, was_told = is_told_of()
    assert was_told
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    holder.release()
    waiting.result()


def test_a_child_looks_after_its_own_waits_though_the_parent_was_telling_of_one(succeed):
    """Who tells of it in the parent does not come to the end for which a fork waits a moment."""
    body = f"""
        import logging

        class Slow(logging.Handler):
            def emit(self, record):
                telling.set()
                assert go_on.wait(20)

        telling, go_on = threading.Event(), threading.Event()
        log = logging.getLogger("luna_ext")
        log.addHandler(Slow())
        cluster.latency(30, {LOCK!r})
        in_thread(slot.acquire)
        assert telling.wait(20)
        child = os.fork()
        if child == 0:
            signal.alarm(40)
            log.handlers.clear()
            in_thread(luna.slot(2).acquire)
            wait_until_inside({LOCK!r})
            # This thread, the one that waits, and one that looks after it.
            wait_until(lambda: len(os.listdir("/proc/self/task")) == 3)
            os._exit(0)
        go_on.set()
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        os._exit(0)
    """
    assert succeed(body, options=MAY_FORK) == ["0"]


def test_each_task_of_a_loop_is_told_of_its_long_wait_when_it_is_long(luna, hold_elsewhere, caplog):
    """One timer of the loop looks after all of its tasks. Those whose wait has ended are not told of."""
    holders = [hold_elsewhere(number) for number in (1, 2, 3)]
    begins = {}

    async def wait(number):
        begins[number] = time.monotonic()
        async with luna.slot(number).lock():
            pass

    async def main():
        ended = asyncio.create_task(wait(1))
        await asyncio.sleep(0.1)
        holders[0].release()
        await ended
        first = asyncio.create_task(wait(2))
        await asyncio.sleep(1)
        second = asyncio.create_task(wait(3))
        while len(told(caplog)) < 2:
            await asyncio.sleep(0.01)
            assert time.monotonic() < begins[3] + 20
        assert time.monotonic() >= begins[3] + 4.9
        for holder in holders[1:]:
            holder.release()
        await asyncio.gather(first, second)

    asyncio.run(main())
    assert [message[:7] for message in told(caplog)] == ["slot 2:", "slot 3:"]


def test_a_task_is_told_of_its_long_wait_though_the_loop_had_looked_in_vain(
    luna, hold_elsewhere, caplog
):
    holders = [hold_elsewhere(number) for number in (1, 2)]

    async def wait(number):
        async with luna.slot(number).lock():
            pass

    async def main():
        loop = asyncio.get_running_loop()
        call_later, timers = loop.call_later, []

        def call_soon(delay, *call):
            """So it looks early, and in vain."""
            timers.append(call_later(0.2, *call))

        loop.call_later = call_soon
        short = asyncio.create_task(wait(1))
        await asyncio.sleep(0)
        del loop.call_later
        holders[0].release()
        await short
        while loop.time() < timers[-1].when() + 0.1:
            await asyncio.sleep(0.01)
        long = asyncio.create_task(wait(2))
        while not told(caplog):
            await asyncio.sleep(0.01)
        holders[1].release()
        await long

    asyncio.run(asyncio.wait_for(main(), PATIENCE))
    assert [message[:7] for message in told(caplog)] == ["slot 2:"]


def test_a_long_wait_that_no_thread_can_look_after_is_told_of_at_its_end(succeed):
    body = f"""
        import logging
        logging.getLogger("luna_ext").addHandler(logging.StreamHandler(sys.stdout))

        def lock():
            assert begin.wait(20)
            with slot:
                pass

        begin = threading.Event()
        locking = in_thread(lock)
        cluster.latency(5.2, {LOCK!r})
        {NO_MORE_THREADS}
        begin.set()
        locking.join()
        luna.close()
    """
    said = " ".join(succeed(body))
    assert re.fullmatch(r"slot 1: locked, after a wait of \d\.\d+ s", said), said


def test_a_claim_whose_long_wait_was_told_of_still_ends_in_time(succeed):
    body = f"""
        import logging
        logging.getLogger("luna_ext").addHandler(logging.StreamHandler(sys.stdout))
        cluster.latency(3600, {CLAIM!r})
        begin = time.monotonic()
        try:
            luna.claim("cluster-1", timeout=5.4).__enter__()
        except luna_ext.LockTimeoutError:
            print(5.4 <= time.monotonic() - begin < 9, flush=True)
        os._exit(0)
    """
    *said, in_time = succeed(body)
    assert " ".join(said).startswith("cluster 'cluster-1': still waiting"), said
    assert in_time == "True"


def test_a_handler_that_locks_the_slot_whose_long_wait_it_is_told_of_is_refused(
    cluster, hold_elsewhere, call
):
    """It would wait for the thread that it runs in, which tells of it between two lock calls."""
    cluster.switch("contention", "error")
    holder = hold_elsewhere(1)
    answers = []

    def lock_as_well(record):
        if "still waiting" in record.getMessage():
            try:
                answers.append(slot.acquire(timeout=1))
            except luna_ext.LunaError as error:
                answers.append(type(error).__name__)
        return True

    logger = logging.getLogger("luna_ext")
    logger.addFilter(lock_as_well)
    try:
        with cluster.library(contention="poll") as luna:
            slot = luna.slot(1)
            waiting = call(lambda: wait_in_a_thread(slot))
            wait_until(lambda: answers)
            holder.release()
            waiting.result()
    finally:
        logger.removeFilter(lock_as_well)
    assert answers == ["LockReentryError"]


def test_a_long_wait_for_a_holder_of_this_process_names_it(luna, caplog, call):
    """The record names the thread or task that holds the lock, and where it locked."""
    held = [threading.Event() for _ in range(3)]
    leave = threading.Event()

    def hold():
        luna.slot(1).acquire()
        held[0].set()
        leave.wait(60)
        luna.slot(1).release()

    def hold_in_a_block():
        with luna.slot(2).lock():
            held[1].set()
            leave.wait(60)

    async def hold_in_a_task():
        asyncio.current_task().set_name("the holding task")
        async with luna.slot(3).lock():
            held[2].set()
            while not leave.is_set():
                await asyncio.sleep(0.01)

    holding = [
        threading.Thread(target=hold, name="the first holder"),
        threading.Thread(target=hold_in_a_block, name="the second holder"),
        threading.Thread(target=lambda: asyncio.run(hold_in_a_task())),
    ]
    for thread in holding:
        thread.start()
    assert all(event.wait(10) for event in held)
    waiting = [
        call(lambda: wait_in_a_thread(luna.slot(1))),
        call(lambda: wait_in_a_task(luna.slot(2).lock())),
        call(lambda: wait_in_a_thread(luna.slot(3).lock(timeout=60))),
    ]
    wait_until(lambda: len(told(caplog)) >= 3)
    leave.set()
    for caller in (*holding, *waiting):
        caller.join(20)
    texts = sorted(told(caplog))
    place = rf"locked at {re.escape(__file__)}:\d+"
    for number, who in enumerate(
        [
            "the thread 'the first holder'",
            "the thread 'the second holder'",
            "the task 'the holding t",
        ]
    ):
        assert f"slot {number + 1}: still waiting" in texts[number]
        assert who in texts[number]
        assert re.search(place, texts[number]), texts[number]


# ---- a client library that is not initialised soon ----

INITIALISE = "C_Initialize"


def of_initialising(caplog):
    return [text for text in told(caplog) if INITIALISE in text]


@pytest.mark.parametrize("way", ["Library", "reconnect"])
def test_a_client_that_takes_long_to_initialise_is_told_of_while_it_lasts(
    cluster, caplog, call, way
):
    with cluster.library() as luna:
        if way == "Library":
            luna.close()
        cluster.latency(6, INITIALISE)
        opening = call(luna.reconnect if way == "reconnect" else cluster.library)
        wait_until(lambda: of_initialising(caplog))
        assert opening.is_alive()
        cluster.latency(0, INITIALISE)
        opened = opening.result(30)
        assert len((opened or luna).slots()) == 8
        if opened:
            opened.close()
    (text,) = of_initialising(caplog)
    assert text.startswith(f"{luna.path!r}: C_Initialize has not answered for 5 s")


def test_the_record_of_a_client_that_takes_long_to_initialise_delays_nothing(cluster, call):
    """A log handler that waits for what comes after the call."""
    told_of, opened, left = [], threading.Event(), threading.Event()

    def wait(record):
        if INITIALISE in record.getMessage():
            told_of.append(record)
            assert opened.wait(30)
            left.set()
        return True

    logger = logging.getLogger("luna_ext")
    logger.addFilter(wait)
    try:
        cluster.latency(5.5, INITIALISE)
        with call(cluster.library).result(30) as luna:
            assert len(told_of) == 1
            opened.set()
            assert left.wait(30)
            assert len(luna.slots()) == 8
    finally:
        opened.set()
        logger.removeFilter(wait)


def test_opening_and_connecting_anew_leave_no_thread_behind(succeed):
    body = """
        for _ in range(100):
            luna.reconnect()
            assert os.listdir("/proc/self/task") == [str(os.getpid())]
            luna.close()
            luna = cluster.library()
            assert os.listdir("/proc/self/task") == [str(os.getpid())]
        luna.close()
    """
    assert succeed(body) == []


def test_a_client_is_initialised_though_no_thread_can_look_after_it(succeed):
    body = f"""
        luna.close()
        {NO_MORE_THREADS}
        with cluster.library() as luna:
            print(len(luna.slots()))
            luna.reconnect()
            print(len(luna.slots()))
    """
    assert succeed(body) == ["8", "8"]


@pytest.mark.parametrize("told_before", [False, True])
def test_a_client_that_is_never_initialised_does_not_delay_the_exit(run, told_before):
    body = f"""
        import logging

        class Told(logging.Handler):
            def emit(self, record):
                telling.set()

        telling = threading.Event()
        logging.getLogger("luna_ext").addHandler(Told())
        luna.close()
        cluster.latency(3600, {INITIALISE!r})
        in_thread(cluster.library)
        wait_until_inside({INITIALISE!r})
        if {told_before}:
            assert telling.wait(20)
        leaving()
    """
    ended = run(body)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.seconds < 4
