"""Several slots and tokens at a time: all or none, in one order for every program."""

import asyncio
import logging
import os
import random
import subprocess
import sys
import threading
import time

import pytest
from support import (
    DEVICE_ERROR,
    GENERAL_ERROR,
    LOCK,
    MAY_FORK,
    UNLOCK,
    enter,
    enter_async,
    let_others_run_until,
    logged,
    nothing_is_locked,
)

import luna_ext


def owners(cluster):
    return [token.slot_id for token in cluster.tokens() if token.owner == os.getpid()]


EACH_FORM = pytest.mark.parametrize("enter", [enter, enter_async])


def test_all_are_held_and_given_back_in_reverse(luna, cluster):
    token = luna.token("keyring5")
    targets = [luna.slot(7), token, luna.slot(2)]
    with luna.lock_all(targets) as held:
        assert held == tuple(targets)
        assert owners(cluster) == [2, 5, 7]
        for one in held:
            one.ensure_held()
    assert [call.slot_id for call in logged(cluster, LOCK)] == [2, 5, 7]
    assert [call.slot_id for call in logged(cluster, UNLOCK)] == [7, 5, 2]
    assert nothing_is_locked(cluster)


def test_tasks_hold_them_too(luna, cluster):
    async def main():
        async with luna.lock_all([luna.slot(3), luna.slot(1)], timeout=20) as (third, first):
            assert owners(cluster) == [1, 3]
            third.ensure_held()
            first.ensure_held()

    asyncio.run(main())
    assert nothing_is_locked(cluster)


def test_a_task_gives_them_back_in_reverse(succeed):
    """The unlock calls are made side by side; the audit events show in which order they were begun."""
    body = """
import asyncio
unlocked = []

def hook(event, arguments):
    if event == "luna_ext.unlock":
        unlocked.append(arguments[0])

async def main():
    async with luna.lock_all(map(luna.slot, (3, 1, 2))):
        pass

sys.addaudithook(hook)
asyncio.run(main())
print(*unlocked)
"""
    # Not with -X dev, in which asyncio tells of whatever takes long.
    assert succeed(body, options=("-W", "error")) == ["3", "2", "1"]


@EACH_FORM
def test_none_is_held_if_one_is_not_free(luna, cluster, hold_elsewhere, enter):
    hold_elsewhere(2)
    with pytest.raises(luna_ext.LockTimeoutError, match="slot 2") as caught:
        enter(luna.lock_all(map(luna.slot, (1, 2, 3)), timeout=0.3))
    assert (caught.value.slot_id, caught.value.timeout) == (2, 0.3)
    assert "within 0.3 s" in str(caught.value)
    assert owners(cluster) == []
    assert 3 not in [call.slot_id for call in logged(cluster, LOCK)]


@EACH_FORM
def test_a_timeout_of_0_waits_for_no_holder(luna, cluster, hold_here, enter):
    holder = hold_here(luna.slot(3))
    named = "slot 3 could not be locked at once: the thread '.*' of this process holds it"
    with pytest.raises(luna_ext.LockTimeoutError, match=named):
        enter(luna.lock_all(map(luna.slot, (1, 2, 3)), timeout=0))
    holder.leave()
    enter(luna.lock_all(map(luna.slot, (1, 2, 3)), timeout=0))
    assert nothing_is_locked(cluster)


def test_one_timeout_is_for_all(luna, cluster):
    cluster.latency(0.4, LOCK)
    with pytest.raises(luna_ext.LockTimeoutError, match="within 1 s"):
        enter(luna.lock_all(luna.slots(), timeout=1))
    assert len(logged(cluster, LOCK)) <= 3


@EACH_FORM
def test_what_is_free_is_not_taken_when_the_time_is_up(luna, cluster, enter):
    """A log handler takes all of it, when the first lock is there."""

    class Slow(logging.Handler):
        def emit(self, record):
            if "locked after" in record.getMessage():
                time.sleep(0.4)

    log, slow = logging.getLogger("luna_ext"), Slow()
    log.addHandler(slow)
    level = log.level
    log.setLevel(logging.DEBUG)
    try:
        with pytest.raises(luna_ext.LockTimeoutError, match=r"slot 2 .* within 0\.3 s"):
            enter(luna.lock_all([luna.slot(1), luna.slot(2)], timeout=0.3))
    finally:
        log.setLevel(level)
        log.removeHandler(slow)
    assert nothing_is_locked(cluster)


def test_an_error_on_the_way_in_tells_of_a_lock_that_stays(luna, cluster):
    cluster.fault(LOCK, GENERAL_ERROR, every=2, times=1)
    cluster.fault(UNLOCK, DEVICE_ERROR, times=1)
    with pytest.raises(luna_ext.CryptokiError) as caught:
        enter(luna.lock_all(map(luna.slot, (1, 2))))
    assert owners(cluster) == [1]
    [note] = caught.value.__notes__
    assert "slot 1" in note
    assert "may stay set" in note
    luna.reconnect()


@EACH_FORM
def test_none_is_held_if_a_token_has_another_label_by_now(luna, cluster, enter):
    token = luna.token("keyring4")
    assign_slot_4(luna)
    with pytest.raises(luna_ext.TokenChangedError) as caught:
        enter(luna.lock_all([luna.slot(1), token, luna.slot(8)]))
    assert caught.value.slot_id == 4
    assert nothing_is_locked(cluster)


def assign_slot_4(luna):
    while True:
        with luna.claim("cluster-1") as token:
            if token.slot.slot_id == 4:
                token.assign("new", so_pin="12345678")
                return


@EACH_FORM
def test_none_is_held_if_the_device_refuses_one(luna, cluster, enter):
    cluster.fault(LOCK, GENERAL_ERROR, every=2, times=1)
    with pytest.raises(luna_ext.CryptokiError) as caught:
        enter(luna.lock_all(map(luna.slot, (1, 2, 3))))
    assert caught.value.slot_id == 2
    assert nothing_is_locked(cluster)


@EACH_FORM
def test_an_unlock_that_fails_does_not_keep_the_others(luna, cluster, enter):
    cluster.fault(UNLOCK, DEVICE_ERROR, every=2, times=1)
    with pytest.raises(luna_ext.LockReleaseError) as caught:
        enter(luna.lock_all(map(luna.slot, (1, 2, 3))))
    # A task's unlock calls are made at a time, so any may be the second.
    assert owners(cluster) == [caught.value.slot_id]
    luna.reconnect()


@EACH_FORM
def test_of_several_unlocks_that_fail_the_first_is_raised_and_names_the_others(
    luna, cluster, enter
):
    cluster.fault(UNLOCK, DEVICE_ERROR, times=2)
    with pytest.raises(luna_ext.LockReleaseError) as caught:
        enter(luna.lock_all(map(luna.slot, (1, 2, 3))))
    [note] = caught.value.__notes__
    failed = owners(cluster)
    assert len(failed) == 2
    failed.remove(caught.value.slot_id)
    assert f"slot {failed[0]}" in note
    luna.reconnect()


ALL_THREE = """
import asyncio

def all_three():
    return luna.lock_all(map(luna.slot, (1, 2, 3)))

def threads():
    with all_three():
        pass

async def tasks():
    async with all_three():
        pass
"""


@pytest.mark.parametrize("form", ["threads", "tasks"])
def test_an_audit_hook_that_raises_at_the_end_does_not_keep_the_others_locked(succeed, form):
    """In a process of its own: an audit hook cannot be taken off."""
    body = f"""
def hook(event, arguments):
    if event == "luna_ext.unlock":
        raise RuntimeError(f"no {{arguments[0]}}")

{ALL_THREE}
sys.addaudithook(hook)
try:
    threads() if {form == "threads"} else asyncio.run(tasks())
except RuntimeError as error:
    print(*str(error).split(), *[word for note in error.__notes__ for word in note.split()])
wait_until(lambda: all(token.owner is None for token in cluster.tokens()))
"""
    assert succeed(body) == ["no", "3", "luna_ext:", "no", "2", "luna_ext:", "no", "1"]


def test_a_ctrl_c_behind_an_unlock_that_fails_is_not_swallowed(succeed):
    """In a process of its own, as above: the hook stands for a handler that raises within a release."""
    body = f"""
def hook(event, arguments):
    if (event, arguments) == ("luna_ext.unlock", (1,)):
        raise KeyboardInterrupt

logging.disable()
sys.addaudithook(hook)
cluster.fault({UNLOCK!r}, {DEVICE_ERROR}, times=1)
try:
    with luna.lock_all(map(luna.slot, (1, 2, 3))):
        pass
except KeyboardInterrupt as error:
    print("slot 3" in error.__notes__[0])
print([token.slot_id for token in cluster.tokens() if token.owner is not None] == [3])
luna.reconnect()
"""
    assert succeed(body) == ["True", "True"]


@pytest.mark.parametrize("form", ["threads", "tasks"])
def test_a_ctrl_c_while_all_are_given_back_that_were_locked_is_not_swallowed(succeed, form):
    """One of them is not to be had; in a process of its own, as above."""
    body = f"""
def hook(event, arguments):
    if (event, arguments) == ("luna_ext.unlock", (2,)):
        raise KeyboardInterrupt

{ALL_THREE}
sys.addaudithook(hook)
cluster.fault({LOCK!r}, {DEVICE_ERROR}, times=1, every=3)
try:
    threads() if {form == "threads"} else asyncio.run(tasks())
except KeyboardInterrupt as error:
    print("CKR_DEVICE_ERROR" in error.__notes__[0])
wait_until(lambda: all(token.owner is None for token in cluster.tokens()))
"""
    assert succeed(body) == ["True"]


def test_a_task_that_is_cancelled_while_all_are_given_back_hears_of_what_has_failed(succeed):
    """In a process of its own, as above."""
    body = f"""
def hook(event, arguments):
    if (event, arguments) == ("luna_ext.unlock", (3,)):
        raise RuntimeError("no")

async def main():
    task = asyncio.create_task(tasks())
    while not any(call.function == {UNLOCK!r} for call in cluster.log()):
        await asyncio.sleep(0.001)
    task.cancel()
    try:
        await task
    except asyncio.CancelledError as error:
        print(*error.__notes__)

{ALL_THREE}
sys.addaudithook(hook)
cluster.latency(1, {UNLOCK!r})
asyncio.run(main())
wait_until(lambda: all(token.owner is None for token in cluster.tokens()))
"""
    assert succeed(body) == ["luna_ext:", "no"]


def test_a_ctrl_c_while_a_child_gives_back_what_it_has_locked_is_not_swallowed(
    program, hold_elsewhere
):
    """A signal handler has forked on the way in, and the child begins anew; in a process of its own, as
    above.
    """
    holder = hold_elsewhere(2)
    body = """
    def fork(number, frame):
        global child
        child = os.fork()

    def send():
        wait_until_inside("CA_LockClusteredSlot")
        os.kill(os.getpid(), signal.SIGUSR1)
        wait_until(lambda: child is not None)
        print("forked", flush=True)

    def hook(event, arguments):
        if child == 0 and event == "luna_ext.unlock":
            raise KeyboardInterrupt

    child = None
    sys.addaudithook(hook)
    signal.signal(signal.SIGUSR1, fork)
    in_thread(send)
    try:
        with luna.lock_all([luna.slot(2)]):
            if child == 0:
                os._exit(2)
    except KeyboardInterrupt:
        os._exit(3 if child == 0 else 4)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    running = program(body, options=MAY_FORK)
    running.expect("forked")
    holder.release()
    done = running.ended()
    assert (done.returncode, done.words) == (0, ["3"]), done


def test_an_exception_of_the_body_goes_on(luna, cluster):
    with pytest.raises(ValueError, match="body"), luna.lock_all(luna.slots()):
        raise ValueError("body")
    assert nothing_is_locked(cluster)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda luna: [luna.slot(1), luna.slot(1)], ValueError),
        (lambda luna: [luna.slot(1), luna.token("keyring1")], ValueError),
        (lambda luna: [1, 2], TypeError),
        (lambda luna: [luna.slot(1).lock()], TypeError),
        (lambda luna: 5, TypeError),
    ],
)
def test_bad_targets_do_not_reach_the_device(luna, cluster, make, error):
    with pytest.raises(error):
        luna.lock_all(make(luna))
    assert logged(cluster, LOCK) == []


def test_a_slot_of_another_library_is_refused(luna, cluster):
    with cluster.library() as other, pytest.raises(ValueError, match="another Library"):
        luna.lock_all([luna.slot(1), other.slot(2)])


def test_none_at_all_is_no_lock(luna, cluster):
    with luna.lock_all([]) as held:
        assert held == ()
    none = luna.lock_all([])
    with none, none:
        pass
    assert logged(cluster, LOCK) == []


def test_one_object_serves_many_threads(luna, cluster, call):
    locks = luna.lock_all([luna.slot(2), luna.slot(1)])
    inside = []

    def work():
        for _ in range(20):
            with locks:
                inside.append(threading.get_ident())
                assert inside == [threading.get_ident()]
                inside.pop()

    for thread in [call(work) for _ in range(4)]:
        thread.result(60)
    assert nothing_is_locked(cluster)


def test_another_thread_cannot_end_the_block(luna, cluster, call):
    locks = luna.lock_all([luna.slot(1), luna.slot(2)])
    with locks:
        with pytest.raises(luna_ext.LockNotOwnedError):
            call(lambda: locks.__exit__(None, None, None)).result()
        assert owners(cluster) == [1, 2]
    assert nothing_is_locked(cluster)
    with pytest.raises(luna_ext.LockNotOwnedError):
        locks.__exit__(None, None, None)


@pytest.mark.signals
def test_ctrl_c_while_it_waits_leaves_none_locked(cluster, luna, hold_elsewhere):
    """The signal comes when the wait for the second has begun."""
    hold_elsewhere(2)
    program = """
import os, signal, sys, threading
from luna_ext.stub import STATE_VARIABLE, Cluster
cluster = Cluster(os.environ[STATE_VARIABLE])
with cluster.library() as luna:
    def interrupt():
        while not any(call.pid == os.getpid() and call.slot_id == 2 for call in cluster.log()):
            pass
        os.kill(os.getpid(), signal.SIGINT)
    threading.Thread(target=interrupt).start()
    try:
        with luna.lock_all([luna.slot(1), luna.slot(2)]):
            os._exit(99)
    except KeyboardInterrupt:
        print([token.slot_id for token in cluster.tokens() if token.owner == os.getpid()])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, stdout=subprocess.PIPE, text=True, timeout=60
    )
    assert done.stdout.split() == ["[]"]


CROWD = """
import os, random, sys
from luna_ext.stub import STATE_VARIABLE, Cluster
chance = random.Random(int(sys.argv[1]))
with Cluster(os.environ[STATE_VARIABLE]).library() as luna:
    for _ in range(int(sys.argv[2])):
        slots = chance.sample(range(1, 7), chance.randint(1, 4))
        with luna.lock_all(map(luna.slot, slots)):
            for slot in slots:
                with open(f"{sys.argv[3]}/{slot}", "x"):
                    pass
            for slot in slots:
                os.unlink(f"{sys.argv[3]}/{slot}")
"""


def test_many_programs_with_overlapping_sets_come_to_an_end(cluster, tmp_path, monkeypatch):
    """Each names its slots in an order of its own. A file that is there already shows a second holder."""
    monkeypatch.setenv("LUNA_STUB_STATE", cluster.path)
    seed = random.randrange(1000)
    programs = [
        subprocess.Popen(
            [sys.executable, "-c", CROWD, str(seed + number), "200", str(tmp_path)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(6)
    ]
    for program in programs:
        _, said = program.communicate(timeout=50)
        assert (program.returncode, said) == (0, ""), f"seed {seed}"
    assert nothing_is_locked(cluster)


def test_a_task_that_holds_nothing_ends_none_of_two_blocks(luna, cluster):
    """Those of one object: the first one's locks are lost, the second one holds them."""

    async def hold(entered, leave):
        async with both:
            entered.set()
            await leave.wait()

    async def leave_for_others():
        with pytest.raises(luna_ext.LockNotOwnedError):
            await both.__aexit__(None, None, None)

    async def main():
        entered, leave = asyncio.Event(), asyncio.Event()
        losing = asyncio.create_task(hold(entered, leave))
        await entered.wait()
        await asyncio.to_thread(luna.reconnect)
        async with both:
            await asyncio.create_task(leave_for_others())
            leave.set()
            with pytest.raises(luna_ext.LockLostError):
                await losing
            assert owners(cluster) == [1, 2]
        assert nothing_is_locked(cluster)

    both = luna.lock_all([luna.slot(1), luna.slot(2)])
    asyncio.run(main())


def test_a_block_whose_task_is_cancelled_at_its_end_is_over(luna, cluster, call):
    """Else it would count beside the one of a generator that another thread closes."""
    locks = luna.lock_all([luna.slot(1)])

    def generate():
        with locks:
            yield

    async def hold():
        async with locks:
            cluster.latency(0.2, UNLOCK)

    async def main():
        task = asyncio.create_task(hold())
        await let_others_run_until(lambda: logged(cluster, UNLOCK))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    cluster.latency(0, UNLOCK)
    generator = generate()
    next(generator)
    call(generator.close).result()
    assert nothing_is_locked(cluster)
