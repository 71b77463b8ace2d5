"""fork(): what a child has of the parent's library and locks, and that fork() never waits."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading

import pytest
from support import (
    CLAIM,
    GENERAL_ERROR,
    INIT_TOKEN,
    LOCK,
    MAY_FORK,
    TOKEN_INFO,
    UNLOCK,
    look_at_no_files,
    nothing_is_locked,
    wait_until,
)

import luna_ext


def test_in_a_forked_child_nothing_is_held(luna, owner_of, in_child):
    slot = luna.slot(1)
    parent = os.getpid()

    def child():
        held = slot.locked()
        try:
            slot.ensure_held()
        except luna_ext.LockNotOwnedError as error:
            told = "parent process" in str(error)
        try:
            slot.release()
        except luna_ext.LockNotOwnedError:
            refused = True
        return not held and told and refused and owner_of(1) == parent

    with slot:
        assert in_child(child) == 0
        slot.ensure_held()
        assert owner_of(1) == parent
    assert owner_of(1) is None


def test_an_inherited_with_ends_quietly_in_a_grandchild_too(luna, in_child):
    slot = luna.slot(1)

    def child():
        def grandchild():
            slot.__exit__(None, None, None)
            return not slot.locked()

        return in_child(grandchild) == 0

    with slot:
        assert in_child(child) == 0


def test_stats_count_for_one_process(luna, in_child):
    def child():
        before = luna.stats()
        with luna.slot(2):
            pass
        return before == {} and luna.stats()[LOCK].calls == 1

    with luna.slot(1):
        pass
    assert in_child(child) == 0


def test_an_inherited_block_ends_once(luna, in_child):
    slot = luna.slot(1)

    def child():
        slot.__exit__(None, None, None)
        with pytest.raises(luna_ext.LockNotOwnedError):
            slot.__exit__(None, None, None)
        return True

    with slot:
        assert in_child(child) == 0


def test_the_childs_first_call_initialises_anew(luna, owner_of, in_child):
    def child():
        with luna.slot(2):
            mine = owner_of(2) == os.getpid()
        return mine and len(luna.tokens()) == 8 and owner_of(1) == os.getppid()

    with luna.slot(1):
        assert in_child(child) == 0
        luna.slot(1).ensure_held()


def test_the_first_calls_of_many_threads_of_a_child_initialise_once(luna, cluster, call, in_child):
    cluster.latency(0.05, "C_Initialize")

    def child():
        together = threading.Barrier(8)

        def enter(slot_id):
            together.wait(10)
            with luna.slot(slot_id).lock(timeout=20) if slot_id % 2 else luna.slot(slot_id):
                return cluster.tokens()[slot_id - 1].owner == os.getpid()

        callers = [call(lambda slot_id=slot_id: enter(slot_id)) for slot_id in range(1, 9)]
        mine = [caller.result(30) for caller in callers]
        return all(mine) and luna.stats()["C_Initialize"].calls == 1

    with luna.slot(1):
        pass
    assert in_child(child) == 0


def test_a_child_whose_first_call_fails_can_try_again(luna, cluster, owner_of, in_child):
    def child():
        cluster.fault("C_Initialize", 0x30, times=1)
        try:
            luna.slot(1).acquire()
        except luna_ext.DeviceError as error:
            told = error.function == "C_Initialize"
        with luna.slot(1):
            return told and owner_of(1) == os.getpid()

    assert in_child(child) == 0


def test_an_inherited_with_ends_as_a_logged_no_op(luna, caplog, owner_of, in_child):
    slot = luna.slot(1)
    parent = os.getpid()
    code = 99
    try:
        with slot:
            child = os.fork()
        if child == 0:
            told = "ends in the child" in caplog.text
            code = 0 if told and owner_of(1) == parent and not slot.locked() else 1
    finally:
        if os.getpid() != parent:
            os._exit(code)
    # The parent has left its own block by now; the child looks while it may still be held, or not.
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 1)
    with slot:
        assert in_child(lambda: inherited_end(slot, caplog, parent, owner_of)) == 0
        assert owner_of(1) == parent


def inherited_end(slot, caplog, parent, owner_of):
    slot.__exit__(None, None, None)
    return "ends in the child" in caplog.text and owner_of(1) == parent


BLOCKS = {
    "slot": lambda luna: luna.slot(1),
    "timed lock": lambda luna: luna.slot(1).lock(timeout=10),
    "token": lambda luna: luna.token("keyring1"),
    "timed token": lambda luna: luna.token("keyring1").lock(timeout=10),
    "claim": lambda luna: luna.claim("cluster-1"),
    "condition": lambda luna: threading.Condition(luna.slot(1)),
}


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("error", [None, KeyError("the body's")])
def test_a_block_of_any_kind_is_inherited_without_its_lock(luna, cluster, caplog, kind, error):
    """The child leaves it while the parent is inside, in a thread that is not the main one too."""
    parent = os.getpid()
    block = BLOCKS[kind](luna)
    owners = []

    def enter():
        with block:
            held = [token.slot_id for token in cluster.tokens() if token.owner == parent]
            assert len(held) == 1
            child = os.fork()
            if child == 0:
                signal.alarm(45)
                left = False
                try:
                    left = leave(held[0])
                finally:
                    os._exit(0 if left else 1)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            owners.append(cluster.tokens()[held[0] - 1].owner)
            luna.slot(held[0]).ensure_held()
        return code

    def leave(held):
        suppressed = block.__exit__(error and type(error), error, None)
        slot = luna.slot(held)
        return (
            not suppressed
            and caplog.text.count("ends in the child") == 1
            and not getattr(error, "__notes__", ())
            and cluster.tokens()[held - 1].owner == parent
            and not slot.locked()
            and slot.acquire(timeout=0.05) is False
        )

    thread = threading.Thread(target=lambda: codes.append(enter()))
    codes = [enter()]
    thread.start()
    thread.join(60)
    assert codes == [0, 0]
    assert owners == [parent, parent]
    assert nothing_is_locked(cluster)


def test_an_inherited_async_with_ends_as_a_logged_no_op(luna, caplog, owner_of):
    slot = luna.slot(1)
    parent = os.getpid()

    async def main():
        code = 1
        try:
            async with slot.lock(timeout=10):
                child = os.fork()
                if child:
                    status = os.waitpid(child, 0)[1]
                    slot.ensure_held()
            if os.getpid() != parent:
                told = caplog.text.count("ends in the child") == 1
                code = 0 if told and owner_of(1) == parent and not slot.locked() else 2
        finally:
            if os.getpid() != parent:
                os._exit(code)
        return os.waitstatus_to_exitcode(status)

    assert asyncio.run(main()) == 0
    assert owner_of(1) is None


@pytest.mark.parametrize("looks_at_files", [True, False])
def test_a_loop_goes_on_in_the_child_though_a_thread_of_the_parent_was_to_tell_it(
    luna, in_child, hold_here, looks_at_files
):
    loop = asyncio.new_event_loop()
    tell = loop.call_soon_threadsafe
    begun, go = threading.Event(), threading.Event()

    def tell_late(*arguments, **options):
        begun.set()
        go.wait(60)
        return tell(*arguments, **options)

    async def enter(slot):
        async with slot.lock(timeout=20):
            return True

    def child():
        loop.call_soon_threadsafe = tell
        return loop.run_until_complete(enter(luna.slot(2)))

    if not looks_at_files:
        look_at_no_files(loop)
        loop.call_soon_threadsafe = tell_late
    holder = hold_here(luna.slot(1))
    waiting = loop.create_task(enter(luna.slot(1)))
    loop.run_until_complete(asyncio.sleep(0))
    holder.leave()
    wait_until(lambda: luna.slot(1).locked() if looks_at_files else begun.is_set())
    assert in_child(child) == 0
    go.set()
    assert loop.run_until_complete(waiting)
    loop.close()


def test_a_fork_inside_async_with(luna, owner_of):
    slot = luna.slot(1)

    async def main():
        lock = slot.lock()
        async with lock:
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    run = lock.__aexit__(None, None, None).__await__()
                    try:
                        run.send(None)
                    except StopIteration:
                        code = 0 if owner_of(1) == os.getppid() and not slot.locked() else 2
                finally:
                    os._exit(code)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            slot.ensure_held()

    asyncio.run(main())
    assert owner_of(1) is None


def test_a_child_leaves_an_inherited_block_and_locks_the_slot_itself(luna, owner_of, in_child):
    """What was inherited is forgotten with the block's end: the next one is the child's own."""
    slot = luna.slot(1)
    slot.acquire()
    reader, writer = os.pipe()

    def child():
        slot.__exit__(None, None, None)
        os.close(writer)
        os.read(reader, 1)
        with slot:
            mine = owner_of(1) == os.getpid()
        return mine and owner_of(1) is None

    def release_once_forked():
        slot.release()
        os.close(writer)

    child_pid = os.fork()
    if child_pid == 0:
        signal.alarm(45)
        code = 99
        try:
            code = 0 if child() else 1
        finally:
            os._exit(code)
    os.close(reader)
    release_once_forked()
    assert os.waitstatus_to_exitcode(os.waitpid(child_pid, 0)[1]) == 0


def test_a_fork_with_waiting_threads_leaves_them_to_the_parent(
    luna, call, owner_of, wait_until_queued, in_child
):
    slot = luna.slot(1)
    parent = os.getpid()

    def enter():
        with slot:
            return owner_of(1)

    def enter_in_time():
        with slot.lock(timeout=30):
            return owner_of(1)

    def child():
        with luna.slot(2):
            pass
        return (
            "waiting" not in repr(slot)
            and slot.acquire(timeout=0.05) is False
            and owner_of(1) == parent
        )

    with slot:
        waiting = [call(enter), call(enter_in_time), call(enter), call(enter_in_time)]
        wait_until_queued(slot, 4)
        assert in_child(child) == 0
    assert [caller.result() for caller in waiting] == [parent] * 4
    assert owner_of(1) is None


def test_a_fork_beside_a_thread_that_waits_for_a_condition(luna, call, owner_of, in_child):
    slot = luna.slot(1)
    condition = threading.Condition(slot)
    news = []

    def listen():
        with condition:
            return condition.wait_for(lambda: news, timeout=30)

    def tell():
        with condition:
            news.append(os.getpid())
            condition.notify_all()

    def talk():
        listening = call(listen)
        tell()
        return listening.result() == [os.getpid()] and owner_of(1) is None

    listening = call(listen)
    wait_until(lambda: condition._waiters)
    assert in_child(talk) == 0
    tell()
    assert listening.result() == [os.getpid()]
    assert owner_of(1) is None


def test_children_of_children_are_applications_of_their_own(luna, owner_of, in_child):
    def descend(generation):
        slot = luna.slot(generation)
        with slot:
            below = generation == 4 or in_child(lambda: descend(generation + 1)) == 0
            slot.ensure_held()
            mine = owner_of(generation) == os.getpid()
        owners = [owner_of(slot_id) for slot_id in range(1, generation)]
        return below and mine and None not in owners and len(set(owners)) == generation - 1

    assert descend(1)


def test_a_fork_while_another_thread_is_inside_the_device(luna, hold_elsewhere, owner_of, in_child):
    holder = hold_elsewhere(1)
    slot = luna.slot(1)
    assert slot.acquire(timeout=0.05) is False

    def child():
        with luna.slot(2).lock(timeout=5):
            return owner_of(2) == os.getpid() and not slot.locked()

    assert in_child(child) == 0
    holder.release()
    with slot.lock(timeout=10):
        assert owner_of(1) == os.getpid()


@pytest.mark.parametrize(
    ("function", "block"),
    [
        ("C_Initialize", "luna.close(); begin = cluster.library"),
        ("C_Finalize", "begin = luna.close"),
        ("CA_GetUnassignedSlot", "begin = luna.claim('cluster-1').__enter__"),
        ("CA_LockClusteredSlot", "begin = slot.acquire"),
        ("CA_UnlockClusteredSlot", "begin = lambda: slot.acquire() and slot.release()"),
    ],
)
def test_fork_does_not_wait_for_a_call_of_another_thread(succeed, cluster, function, block):
    """The call takes a minute; fork() and all that the child does is over before."""
    body = f"""
        {block}
        cluster.latency(60, {function!r})
        inside = in_thread(begin)
        wait_until_inside({function!r})
        child = os.fork()
        cluster.latency(0, {function!r})
        if child == 0:
            signal.alarm(40)
            with cluster.library() as mine:
                with mine.slot(2).lock(timeout=40), mine.slot(3):
                    owners = [token.owner for token in cluster.tokens()]
                calls = {{name: stats.calls for name, stats in mine.stats().items()}}
                with mine.claim("cluster-1"):
                    pass
            mine = owners[1] == owners[2] == os.getpid() and owners.count(os.getpid()) == 2
            os._exit(0 if mine and calls["C_Initialize"] == 1 else 1)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), inside.is_alive(), flush=True)
        os._exit(0)
    """
    assert succeed(body, options=MAY_FORK) == ["0", "True"]


def test_a_fork_in_the_midst_of_a_close_does_not_keep_the_child_from_closing(succeed, cluster):
    """The Library that was about to close in the parent is no user of the child's."""
    body = """
        slot.acquire()
        cluster.latency(60, "CA_UnlockClusteredSlot")
        in_thread(luna.close)
        wait_until_inside("CA_UnlockClusteredSlot")
        child = os.fork()
        if child == 0:
            signal.alarm(40)
            with cluster.library() as mine:
                mine.slots()
            calls = mine.stats()
            os._exit(0 if calls["C_Finalize"].calls == 1 else 1)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        os._exit(0)
    """
    assert succeed(body, options=MAY_FORK) == ["0"]


FORKING = """
def end_with_a_child(work):
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        work()
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    os._exit(0)
"""


def test_a_thread_that_comes_to_rest_just_before_a_fork_stays_with_the_parent(cluster):
    """What luna_ext does before a fork is not the last; a handler from before its import comes after it."""
    body = """
        import os, signal, time

        def use_a_thread():
            assert slot.acquire(timeout=20)
            slot.release()
            # It rests a moment after its work.
            for _ in range(20):
                time.sleep(0.001)

        os.register_at_fork(before=lambda: use_a_thread())
        from luna_ext.stub import STATE_VARIABLE, Cluster

        luna = Cluster(os.environ[STATE_VARIABLE]).library()
        slot = luna.slot(1)
        child = os.fork()
        if child == 0:
            signal.alarm(45)
            os._exit(0 if slot.acquire(timeout=5) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        luna.close()
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(body)], check=True, timeout=60)


def test_a_process_without_threads_of_its_own_forks_with_one_alone(cluster):
    """Python warns of any others. A handler from before the import is called after those of luna_ext."""
    body = """
        import os, threading

        counts = []
        os.register_at_fork(before=lambda: counts.append(len(os.listdir("/proc/self/task"))))
        from luna_ext.stub import STATE_VARIABLE, Cluster

        luna = Cluster(os.environ[STATE_VARIABLE]).library()

        def lock():
            with luna.slot(1):
                pass

        # More than once, for a busy machine may keep a thread from its end.
        for _ in range(5):
            locking = threading.Thread(target=lock)
            locking.start()
            locking.join()
            child = os.fork()
            if child == 0:
                os._exit(0)
            os.waitpid(child, 0)
        assert min(counts) == 1, counts
        luna.close()
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(body)], check=True, timeout=60)


def test_a_child_does_not_wait_for_a_close_of_the_parent(succeed):
    body = f"""
        slot.acquire()
        cluster.latency(60, {UNLOCK!r})
        in_thread(luna.close)
        wait_until_inside({UNLOCK!r})
        end_with_a_child(luna.close)
    """
    assert succeed(FORKING + textwrap.dedent(body), options=MAY_FORK) == ["0"]


@pytest.mark.luna_cluster(keyrings=1)
def test_a_claim_of_a_child_does_not_wait_for_a_lock_call_of_the_parent(succeed):
    body = f"""
        def claim():
            begin = time.monotonic()
            with luna.claim("cluster-1"):
                pass
            assert time.monotonic() - begin < 5

        cluster.latency(10, {LOCK!r})
        in_thread(slot.acquire)
        wait_until_inside({LOCK!r})
        end_with_a_child(claim)
    """
    assert succeed(FORKING + textwrap.dedent(body), options=MAY_FORK) == ["0"]


def test_a_claim_of_the_parent_keeps_no_lock_of_the_child(succeed):
    body = f"""
        def owner(slot_id):
            return {{token.slot_id: token.owner for token in cluster.tokens()}}[slot_id]

        def lock():
            with luna.slot(5):
                assert owner(5) == os.getpid()
            wait_until(lambda: owner(5) is None)

        cluster.latency(60, {CLAIM!r})
        in_thread(luna.claim("cluster-1").__enter__)
        wait_until_inside({CLAIM!r})
        end_with_a_child(lock)
    """
    assert succeed(FORKING + textwrap.dedent(body), options=MAY_FORK) == ["0"]


def test_a_claim_that_the_parent_has_given_up_does_not_count_in_the_child(succeed):
    """There close() would not wait for as many calls."""
    body = f"""
        def finalisations():
            mine = [entry for entry in cluster.log() if entry.pid == os.getpid()]
            return [entry.rv for entry in mine if entry.function == "C_Finalize"]

        def lock():
            try:
                slot.acquire()
            except luna_ext.LibraryClosedError:
                pass

        def close_beside_a_lock_call():
            cluster.latency(0.5, {LOCK!r})
            in_thread(lock)
            wait_until_inside({LOCK!r})
            luna.close()
            assert finalisations() == [0]

        cluster.latency(3600, {CLAIM!r})
        try:
            luna.claim("cluster-1", timeout=0.1).__enter__()
        except luna_ext.LockTimeoutError:
            end_with_a_child(close_beside_a_lock_call)
    """
    assert succeed(FORKING + textwrap.dedent(body), options=MAY_FORK) == ["0"]


def test_a_child_cannot_assign_what_its_parent_has_claimed(succeed):
    """Not under a lock of its own either: the parent's claim has ended in between."""
    body = """
        claim = luna.claim("cluster-1")
        token = claim.__enter__()
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            signal.alarm(45)
            os.close(writer)
            os.read(reader, 1)
            code = 1
            with token.slot:
                try:
                    token.assign("the child's", so_pin="12345678")
                except luna_ext.LockNotOwnedError:
                    code = 0
            os._exit(code)
        claim.__exit__(None, None, None)
        os.close(writer)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        luna.close()
    """
    assert succeed(body, options=MAY_FORK) == ["0"]


def test_closing_in_the_child_leaves_the_parent_alone(luna, owner_of, in_child):
    def child():
        luna.close()
        return luna.closed

    with luna.slot(1):
        assert in_child(child) == 0
        luna.slot(1).ensure_held()
        assert owner_of(1) == os.getpid()


def test_a_child_that_has_used_the_library_closes_only_its_own(luna, cluster, owner_of, in_child):
    def child():
        with luna.slot(2):
            luna.tokens()
        luna.close()
        return luna.stats()["C_Finalize"].calls == 1

    with luna.slot(1):
        assert in_child(child) == 0
        luna.slot(1).ensure_held()
        assert owner_of(1) == os.getpid()
    finalised = {entry.pid for entry in cluster.log() if entry.function == "C_Finalize"}
    assert len(finalised) == 1
    assert os.getpid() not in finalised


@pytest.mark.parametrize("used", [False, True])
def test_a_child_that_exits_ends_nothing_of_the_parents(run, cluster, used):
    """sys.exit() in the child runs the exit of Python, with all that is registered there."""
    done = run(
        f"""
        slot.acquire()
        child = os.fork()
        if child == 0:
            if {used}:
                luna.slot(2).acquire()
            sys.exit(3)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        slot.ensure_held()
        owners = [token.owner for token in cluster.tokens()]
        print(code, owners[0] == os.getpid(), owners[1], flush=True)
        slot.release()
        luna.close()
        """,
        options=("-X", "dev"),
    )
    assert (done.returncode, done.words) == (0, ["3", "True", "None"]), done
    # A record and a warning.
    assert done.stderr.count("ResourceWarning") == used
    assert done.stderr.count("slot 2 was still") == len(done.stderr.splitlines()) == 2 * used
    finalised = [entry.pid for entry in cluster.log() if entry.function == "C_Finalize"]
    assert len(finalised) == 1 + used


@pytest.mark.luna_cluster(keyrings=1)
def test_a_close_waits_for_an_assignment_in_a_child_that_was_forked_in_one(succeed):
    """The end of the one that the fork has cut off counts for the parent alone."""
    body = f"""
        import logging, warnings
        logging.getLogger("luna_ext").addHandler(logging.NullHandler())

        def fork(number, frame):
            global child
            child = os.fork()

        def send():
            wait_until_inside({INIT_TOKEN!r})
            signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)

        def assign():
            try:
                with mine.claim("cluster-1", timeout=20) as token:
                    token.assign("new", so_pin="12345678")
            except luna_ext.LunaError:
                pass

        child = None
        signal.signal(signal.SIGUSR1, fork)
        cluster.latency(0.3, {INIT_TOKEN!r})
        cluster.fault({INIT_TOKEN!r}, {GENERAL_ERROR}, times=1)
        in_thread(send)
        with luna.claim("cluster-1") as token:
            try:
                # The handler runs while the error is made.
                token.assign("old", so_pin="12345678")
            except luna_ext.LunaError:
                pass
        if child == 0:
            signal.alarm(40)
            mine = cluster.library()
            assigning = in_thread(assign)
            wait_until_inside({INIT_TOKEN!r})
            warnings.simplefilter("ignore")
            mine.close()
            assigning.join()
            ours = [entry for entry in cluster.log() if entry.pid == os.getpid()]
            (initialised,) = [entry for entry in ours if entry.function == {INIT_TOKEN!r}]
            unlocked = [entry.time for entry in ours if entry.function == {UNLOCK!r}]
            os._exit(0 if min(unlocked) >= initialised.time + initialised.duration else 1)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        luna.close()
    """
    assert succeed(body, options=MAY_FORK) == ["0"]


def test_a_thread_that_forks_is_the_childs_main_thread_which_signals_interrupt(succeed):
    """A thread that is not the main one makes its device calls itself, and no handler runs meanwhile."""
    body = """
        class Stop(BaseException):
            pass

        def stop(number, frame):
            raise Stop

        def fork_in_a_thread():
            with luna.slot(2):
                pass
            children.append(os.fork())
            if children == [0]:
                signal.setitimer(signal.ITIMER_REAL, 0.5)
                try:
                    slot.acquire()
                except Stop:
                    os._exit(0)
                os._exit(1)

        def has_ended():
            pid, status = os.waitpid(children[0], os.WNOHANG)
            if pid:
                print(os.waitstatus_to_exitcode(status))
            return pid

        children = []
        signal.signal(signal.SIGALRM, stop)
        with slot:
            in_thread(fork_in_a_thread).join()
            try:
                wait_until(has_ended)
            except AssertionError:
                os.kill(children[0], signal.SIGKILL)
        luna.close()
    """
    assert succeed(body, options=MAY_FORK) == ["0"]


FORKING_IN_A_HANDLER = """
import asyncio, logging
logging.getLogger("luna_ext").addHandler(logging.NullHandler())
children = []

def fork(number, frame):
    child = os.fork()
    if child:
        children.append(child)
    else:
        children.clear()
        signal.alarm(50)

signal.signal(signal.SIGUSR1, fork)

def send():
    wait_until_inside({function!r})
    signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
    wait_until(lambda: children)
    {release}

def hold(what):
    owners = {{token.slot_id: token.owner for token in cluster.tokens()}}
    what.ensure_held()
    number = getattr(what, "slot", what).slot_id
    assert owners[number] == os.getpid(), (owners, os.getpid())
    # Not at once: a child that believed that it holds this lock would see it with the parent.
    time.sleep(0.2)
    what.ensure_held()

async def in_task(block):
    async with block as what:
        hold(what)

def in_block(block):
    with block as what:
        hold(what)

def in_all(*targets):
    with luna.lock_all(targets) as held:
        for one in held:
            hold(one)

def acquire(**options):
    assert slot.acquire(**options)
    hold(slot)
    slot.release()

def acquire_late():
    try:
        slot.acquire()
    except luna_ext.LibraryClosedError:
        pass

def looked_after():
    # This thread has lost an earlier hold, and was not told of that.
    slot.acquire()
    luna.reconnect()
    return luna.token("keyring1").lock(heartbeat=60, on_lost=lambda error: os._exit(3))

{latency}
parent = os.getpid()
sender = in_thread(send)
{wait}
if os.getpid() == parent:
    sender.join()
    code = os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1])
    assert code == 0, code
    assert all(token.owner is None for token in cluster.tokens())
    luna.close()
    print("both")
else:
    # What the parent has begun does not count here: close() waits for the call of another thread.
    cluster.latency(0.3, {lock!r})
    in_thread(acquire_late)
    wait_until_inside({lock!r})
    luna.close()
    finalised = [entry.pid for entry in cluster.log() if entry.function == "C_Finalize"]
    os._exit(0 if os.getpid() in finalised else 4)
"""
WAITS = {
    "with slot": (LOCK, "in_block(slot)"),
    "acquire": (LOCK, "acquire()"),
    "timed acquire": (LOCK, "acquire(timeout=40)"),
    "lock": (LOCK, "in_block(slot.lock())"),
    "timed lock": (LOCK, "in_block(slot.lock(timeout=40))"),
    "token": (LOCK, "in_block(luna.token('keyring1'))"),
    "token.lock": (LOCK, "in_block(luna.token('keyring1').lock(timeout=40))"),
    "claim": (CLAIM, "in_block(luna.claim('cluster-1'))"),
    "timed claim": (CLAIM, "in_block(luna.claim('cluster-1', timeout=40))"),
    "lock_all": (LOCK, "in_all(slot, luna.slot(2))"),
    "lock_all, its second": (TOKEN_INFO, "in_all(slot, luna.token('keyring2'))"),
    "the label of a token": (TOKEN_INFO, "in_block(luna.token('keyring1'))"),
    "the label of a timed token": (TOKEN_INFO, "in_block(luna.token('keyring1').lock(timeout=40))"),
    "the label of a token that is looked after": (TOKEN_INFO, "in_block(looked_after())"),
}


@pytest.mark.parametrize("form", WAITS)
def test_a_fork_in_a_signal_handler_while_the_device_is_waited_for(cluster, program, form):
    """The handler returns in both: the child waits anew and gets a lock of its own, the parent goes on."""
    function, wait = WAITS[form]
    latency = f"cluster.latency(0.5, {function!r})"
    release = f"cluster.latency(0, {function!r})"
    body = FORKING_IN_A_HANDLER.format(
        function=function, wait=wait, latency=latency, release=release, lock=LOCK
    )
    done = program(body, options=MAY_FORK).ended()
    assert (done.returncode, done.words, done.stderr) == (0, ["both"], ""), done


def test_a_fork_while_a_claim_is_logged_leaves_it_to_the_parent(program):
    """Its handler returns in both: the child claims a token of its own."""
    body = """
        class Fork(logging.Handler):
            child = None

            def handle(self, record):
                # Without the handler's lock, which Python makes anew in the child, in its midst.
                self.emit(record)

            def emit(self, record):
                if "locked after" in record.getMessage() and self.child is None:
                    self.child = os.fork()

        fork = Fork()
        logging.getLogger("luna_ext").addHandler(fork)
        logging.getLogger("luna_ext").setLevel(logging.DEBUG)
        logging.getLogger("luna_ext").propagate = False
        with luna.claim("cluster-1") as token:
            owner = {each.slot_id: each.owner for each in cluster.tokens()}[token.slot.slot_id]
            code = 0 if owner == os.getpid() and token.slot.locked() else 1
            if fork.child:
                code += os.waitstatus_to_exitcode(os.waitpid(fork.child, 0)[1])
        luna.close()
        os._exit(code)
    """
    done = program(body, options=MAY_FORK).ended()
    assert (done.returncode, done.stderr) == (0, ""), done


def test_a_fork_in_a_signal_handler_behind_another_thread_that_waits(succeed):
    """In the child that thread is not there, and the one that waits behind it waits anew."""
    body = """
        child = None
        held, leave = threading.Event(), threading.Event()

        def fork(number, frame):
            global child
            child = os.fork()
            if child == 0:
                signal.alarm(30)

        def hold():
            with slot:
                held.set()
                assert leave.wait(20)

        def lock():
            with slot:
                pass

        def send():
            wait_until(lambda: "2 waiting" in repr(slot))
            signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
            wait_until(lambda: child is not None)
            leave.set()

        signal.signal(signal.SIGUSR1, fork)
        threads = [in_thread(hold)]
        assert held.wait(20)
        threads.append(in_thread(lock))
        wait_until(lambda: "1 waiting" in repr(slot))
        threads.append(in_thread(send))
        with slot:
            slot.ensure_held()
        if child != 0:
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            for thread in threads:
                thread.join(20)
        luna.close()
        if child == 0:
            os._exit(0)
    """
    assert succeed(body, options=MAY_FORK) == ["0"]


def test_a_child_that_waits_anew_has_what_is_left_of_its_time(succeed):
    """The handler takes most of it; the parent gets the lock, which the child cannot have in time."""
    body = f"""
        def fork(number, frame):
            global child
            time.sleep(2)
            child = os.fork()

        def send():
            wait_until_inside({TOKEN_INFO!r})
            signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)

        child = None
        signal.signal(signal.SIGUSR1, fork)
        lock = luna.token("keyring1").lock(timeout=4)
        cluster.latency(2.5, {TOKEN_INFO!r})
        sender = in_thread(send)
        begin = time.monotonic()
        try:
            with lock:
                if child == 0:
                    os._exit(2)
                print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        except luna_ext.LockTimeoutError:
            if child == 0:
                os._exit(0 if time.monotonic() - begin < 5.5 else 1)
            raise
        luna.close()
    """
    assert succeed(body, options=MAY_FORK) == ["0"]


@pytest.mark.parametrize("form", ["with slot", "timed acquire", "lock", "timed lock", "token"])
def test_a_fork_in_a_signal_handler_while_another_process_holds_the_lock(
    cluster, program, hold_elsewhere, form
):
    holder = hold_elsewhere(1)
    function, wait = WAITS[form]
    body = FORKING_IN_A_HANDLER.format(
        function=function,
        wait=wait,
        latency="",
        release="print('forked', flush=True)",
        lock=LOCK,
    )
    running = program(body, options=MAY_FORK)
    running.expect("forked")
    holder.release()
    done = running.ended()
    assert (done.returncode, done.words, done.stderr) == (0, ["both"], ""), done


WAITS_FOR_ANOTHER = {
    "reconnect": ("luna.reconnect", "C_Initialize", "luna.slots()"),
    "close": ("luna.close", UNLOCK, "luna.close()"),
}


@pytest.mark.parametrize("wait", WAITS_FOR_ANOTHER)
def test_a_child_that_a_signal_handler_forks_does_not_wait_for_another_threads_end(run, wait):
    """The main thread waits until the other one has connected anew, or has closed."""
    begun, function, call = WAITS_FOR_ANOTHER[wait]
    body = f"""
def fork(number, frame):
    global child
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        cluster.latency(0, {function!r})

def send():
    # No event shows that the main thread waits; a signal before that shows nothing.
    time.sleep(0.5)
    signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)

child = None
signal.signal(signal.SIGUSR1, fork)
in_thread(slot.acquire).join()
cluster.latency(3, {function!r})
in_thread({begun})
wait_until_inside({function!r})
in_thread(send)
{call}
if child == 0:
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = run(body, options=MAY_FORK)
    assert (done.returncode, done.words) == (0, ["0"]), done


GATHERING = {
    "tokens": "luna.tokens(workers=2)",
    "provision": (
        "luna_ext.provision(luna, 'cluster-1', ['a', 'b', 'c', 'd'], so_pin='12345678', workers=2)"
    ),
}


@pytest.mark.parametrize("call", GATHERING.values(), ids=GATHERING)
def test_a_child_that_a_signal_handler_forks_does_not_wait_for_threads_of_the_parent(succeed, call):
    """The parent's call goes on; the child's ends with an error that says so, and it may call anew."""
    body = f"""
children = []

def handler(*_):
    children.append(os.fork())
    if children == [0]:
        signal.alarm(40)

signal.signal(signal.SIGUSR1, handler)

def send():
    wait_until_inside("C_GetTokenInfo")
    os.kill(os.getpid(), signal.SIGUSR1)

cluster.latency(0.5, "C_GetTokenInfo")
in_thread(send)
try:
    {call}
    print("done", flush=True)
except RuntimeError as error:
    assert "this is the child" in str(error)
    print("child", len(luna.tokens()), flush=True)
if children == [0]:
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]))
"""
    assert sorted(succeed(body, options=MAY_FORK)) == sorted(["done", "child", "8", "0"])
