"""The end of the interpreter: held locks are released, and the process ends in time without a crash."""

import re
import signal
import subprocess
import sys
import textwrap

import pytest
from support import (
    AGAIN,
    DEVICE_ERROR,
    HOST_MEMORY,
    LOCK,
    SESSION_INFO,
    UNLOCK,
    finalisations,
    logged,
    nothing_is_locked,
    wait_until,
)

from luna_ext.stub import Cluster

QUIET = ("-X", "dev")
# The exit itself gives the device 2 s; the rest is for a slow machine.
AT_MOST = 12.0


def check(done, *, returncode=0, warnings=0, error=None):
    """The program ended in time with `returncode`, and printed only the `error` and our `warnings`, each
    after its ERROR record.
    """
    said = done.stderr
    if error is not None:
        traceback = re.match(rf"(?sm)Traceback \(most recent call.*?^{error}.*?\n", said)
        assert traceback, done
        said = said[traceback.end() :]
    ours = r"(slot \d+ was still locked, .* when the interpreter exited)\n.*ResourceWarning: \1\n"
    rest, found = re.subn(ours, "", said)
    assert (rest, found) == ("", warnings), done
    assert done.returncode == returncode, done
    assert done.seconds is not None, done
    assert done.seconds < AT_MOST, done


def test_at_exit_held_locks_are_released(luna, owner_of, run):
    done = run("slot.acquire(); print(os.getpid())", options=())
    assert done.returncode == 0
    assert int(done.words[0]) > 0
    assert owner_of(1) is None
    # By default Python shows no ResourceWarning; a record goes to stderr.
    assert re.fullmatch(
        r"slot 1 was still locked, at .* when the interpreter exited\n", done.stderr
    )


def test_a_closed_library_exits_without_a_word(cluster, succeed):
    assert succeed("with slot: print('held')\nluna.close()") == ["held"]


def test_a_library_that_was_collected_is_finalised_at_exit(cluster, succeed):
    """A collection does not wait for the device, and leaves that to the exit."""
    body = """
        import gc, warnings
        with slot:
            pass
        warnings.simplefilter("ignore", ResourceWarning)
        del slot, luna
        gc.collect()
        print(sum(call.function == "C_Finalize" for call in cluster.log()))
    """
    assert succeed(textwrap.dedent(body)) == ["0"]
    assert finalisations(cluster) == [0]


def test_what_other_code_has_initialised_is_not_finalised_at_exit(cluster, succeed):
    body = """
        import ctypes
        luna.close()
        assert ctypes.CDLL(luna.path).C_Initialize(None) == 0
        luna = cluster.library()
        with luna.slot(1):
            pass
    """
    assert succeed(textwrap.dedent(body)) == []
    # That is the close.
    assert finalisations(cluster) == [0]


def test_an_uncaught_exception_inside_a_block_releases(luna, owner_of, run):
    done = run("with luna, slot: raise SystemExit(3)")
    assert (done.returncode, done.stderr) == (3, "")
    assert owner_of(1) is None


HELD = {
    "nothing": (0, "pass"),
    "released": (0, "with slot: pass"),
    "plain": (1, "slot.acquire()"),
    "timed": (1, "slot.acquire(timeout=20)"),
    "block": (1, "slot.lock(timeout=20).__enter__()"),
    "claim": (1, "token = luna.claim('cluster-1').__enter__()"),
    "token": (1, "luna.token('keyring2').__enter__()"),
    "two slots": (2, "slot.acquire(); luna.slot(2).acquire()"),
    "two libraries": (2, "slot.acquire(); other = cluster.library(); other.slot(2).acquire()"),
    "async": (
        1,
        """
        import asyncio
        loop = asyncio.new_event_loop()
        loop.run_until_complete(slot.lock(timeout=20).__aenter__())
        loop.close()
        """,
    ),
    "in an asyncio thread": (
        1,
        """
        import asyncio
        held = threading.Event()
        async def hold():
            async with slot.lock():
                held.set()
                await asyncio.Event().wait()
        in_thread(asyncio.run, hold())
        held.wait()
        """,
    ),
    "in a thread": (
        1,
        """
        held = threading.Event()
        def hold():
            with slot:
                held.set()
                threading.Event().wait()
        in_thread(hold)
        held.wait()
        """,
    ),
}
ENDS = {
    "the script's end": (0, None, "leaving()"),
    "sys.exit": (7, None, "leaving(); sys.exit(7)"),
    "an exception": (1, "KeyError: 'mine'", "leaving(); raise KeyError('mine')"),
}


@pytest.mark.parametrize(
    ("held", "end"),
    [
        *((held, "the script's end") for held in HELD),
        *((held, end) for held in ("two slots", "in a thread") for end in list(ENDS)[1:]),
    ],
)
def test_an_exit_releases_what_is_held_and_says_so(cluster, run, held, end):
    warnings, body = HELD[held]
    returncode, error, way_out = ENDS[end]
    done = run(textwrap.dedent(body) + "\n" + way_out, options=QUIET)
    check(done, returncode=returncode, error=error, warnings=warnings)
    assert nothing_is_locked(cluster)
    log = [entry.function for entry in cluster.log()]
    unlocked = held == "released" or warnings
    assert log.count("CA_UnlockClusteredSlot") == unlocked
    assert (log.count("C_Finalize"), log[-1]) == (1, "C_Finalize")


def test_a_lock_that_was_lost_is_not_unlocked_at_exit(cluster, program, hold_elsewhere, owner_of):
    """Another process may hold it by then."""
    body = """
        slot.acquire()
        cluster.disconnect(os.getpid())
        try:
            slot.ensure_held()
        except luna_ext.LockLostError:
            print("lost", flush=True)
        sys.stdin.readline()
        leaving()
    """
    losing = program(body, options=QUIET)
    losing.expect("lost")
    holder = hold_elsewhere(1)
    check(losing.ended())
    assert logged(cluster, UNLOCK, losing.process.pid) == []
    assert owner_of(1) == holder.pid


HOLDING_ON = """
    slot.acquire()
    print("held", flush=True)
    sys.stdin.readline()
    leaving()
"""


def test_a_lock_that_the_exit_finds_lost_is_not_unlocked(
    cluster, program, hold_elsewhere, owner_of
):
    """Other code has initialised the library anew, and goes on with it."""
    losing = program(HOLDING_ON, options=QUIET)
    losing.expect("held")
    cluster.reinitialise(losing.process.pid)
    holder = hold_elsewhere(1)
    check(losing.ended(), warnings=1)
    made = {one.function for one in cluster.log() if one.pid == losing.process.pid}
    assert not made & {UNLOCK, "C_Finalize"}
    assert owner_of(1) == holder.pid


def test_a_lock_that_is_lost_while_the_exits_unlock_is_repeated_is_not_unlocked(
    cluster, program, call, hold_elsewhere, owner_of
):
    losing = program(HOLDING_ON, options=QUIET)
    losing.expect("held")
    pid = losing.process.pid
    elsewhere = call(lambda: hold_elsewhere(1))
    wait_until(lambda: [one.pid for one in cluster.log() if one.function == LOCK][1:])
    cluster.fault(UNLOCK, AGAIN)
    losing.process.stdin.write("\n")
    losing.process.stdin.flush()
    wait_until(lambda: logged(cluster, UNLOCK, pid))
    cluster.reinitialise(pid)
    holder = elsewhere.result()
    cluster.fault(UNLOCK, AGAIN, times=0)
    check(losing.ended(), warnings=1)
    assert owner_of(1) == holder.pid


@pytest.mark.parametrize("rv", [HOST_MEMORY, AGAIN, DEVICE_ERROR], ids=hex)
def test_one_passing_error_at_exit_is_no_loss(cluster, run, rv):
    cluster.fault(SESSION_INFO, rv, every=2, times=1)
    check(run("slot.acquire(); leaving()", options=QUIET), warnings=1)
    assert [one.rv for one in cluster.log() if one.function == SESSION_INFO][1] == rv
    assert len([one for one in cluster.log() if one.function == UNLOCK]) == 1


def test_a_warning_that_is_an_error_keeps_no_other_from_being_said(cluster, run):
    done = run("slot.acquire(); luna.slot(2).acquire(); leaving()")
    assert done.returncode == 0
    assert [slot_id for slot_id in "12" if f"slot {slot_id} was still" in done.stderr] == ["1", "2"]
    assert nothing_is_locked(cluster)


def test_all_client_libraries_are_shut_down_whatever_the_first_one_says(cluster, run, tmp_path):
    """Two files are two client libraries, with a connection of its own each."""
    body = f"""
        import shutil
        from luna_ext.stub import library_path
        path = shutil.copy(library_path(), {str(tmp_path / "another.so")!r})
        import warnings
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            other = luna_ext.Library(path)
        slot.acquire()
        other.slot(2).acquire()
        leaving()
    """
    done = run(body)
    assert done.returncode == 0
    assert nothing_is_locked(cluster)
    assert [entry.function for entry in cluster.log()].count("C_Finalize") == 2
    assert [slot_id for slot_id in "12" if f"slot {slot_id} was still" in done.stderr] == ["1", "2"]


def test_threads_that_wait_for_the_device_do_not_keep_the_process(
    cluster, hold_elsewhere, program, owner_of
):
    """In a plain lock, behind it, in a timed one, and one that has been given up."""
    holder = hold_elsewhere(1)
    hold_elsewhere(2)
    hold_elsewhere(3)
    body = """
        def enter(lock):
            with lock:
                os._exit(99)
        in_thread(enter, slot)
        wait_until_inside("CA_LockClusteredSlot")
        in_thread(enter, slot)
        in_thread(enter, slot.lock(timeout=50))
        in_thread(enter, luna.slot(2).lock())
        in_thread(enter, luna.slot(2))
        wait_until_inside("CA_LockClusteredSlot", 2)
        while True:
            # On a busy machine it may be given up before the call is made.
            assert luna.slot(3).acquire(timeout=0.01) is False
            if any(call.slot_id == 3 and call.pid == os.getpid() for call in cluster.log()):
                break
        wait_until_inside("CA_LockClusteredSlot", 3)
        wait_until(lambda: "2 waiting" in repr(slot) and "2 waiting" in repr(luna.slot(2)))
        luna.slot({mine}).acquire()
    """
    started = [
        (end, program(textwrap.dedent(body.format(mine=mine)) + end[2], options=QUIET))
        for mine, end in enumerate(ENDS.values(), 4)
    ]
    for (returncode, error, _), running in started:
        check(running.ended(), returncode=returncode, error=error, warnings=1)
    assert {owner_of(slot_id) for slot_id in range(4, 7)} == {None}
    holder.release()
    assert owner_of(1) is None


def test_exit_with_a_thread_blocked_in_the_device_is_bounded(luna, hold_elsewhere, run):
    hold_elsewhere(1)
    body = """
        started = threading.Event()
        def block():
            started.set()
            slot.acquire()
        threading.Thread(target=block, daemon=True).start()
        started.wait()
        assert slot.acquire(timeout=0.05) is False
        other = luna.slot(2)
        other.acquire()
        print("exits")
    """
    done = run(body, options=(), timeout=10)
    assert (done.returncode, done.words) == (0, ["exits"]), done
    with luna.slot(2).lock(timeout=1):
        pass


@pytest.fixture
def run_each(program):
    """Run programs at the same time, each with a cluster of its own; [(Cluster, Ended)]."""
    clusters = []

    def run_each(bodies, **options):
        started = []
        for body in bodies:
            clusters.append(Cluster())
            variables = {"LUNA_STUB_STATE": clusters[-1].path}
            started.append((clusters[-1], program(body, **options, **variables)))
        return [(cluster, running.ended()) for cluster, running in started]

    yield run_each
    for cluster in clusters:
        cluster.destroy()


SILENT = {
    "CA_UnlockClusteredSlot": (1, "slot.acquire()"),
    "C_Finalize": (1, "slot.acquire()"),
    "CA_LockClusteredSlot": (0, "inside(luna.slot(2).lock(timeout=50).__enter__)"),
    "CA_GetUnassignedSlot": (0, "inside(luna.claim('cluster-1').__enter__)"),
    "C_GetTokenInfo": (0, "inside(luna.tokens)"),
}


def test_exit_with_a_device_that_does_not_answer_is_bounded(run_each):
    """Whatever it leaves unanswered; side by side, for each may take the whole 2 s."""
    body = """
        def inside(function):
            in_thread(function)
            wait_until_inside({silent!r})
        cluster.latency(30, {silent!r})
        {call}
        leaving()
        sys.exit(4)
    """
    bodies = [body.format(silent=silent, call=call) for silent, (_, call) in SILENT.items()]
    for (warnings, _), (cluster, done) in zip(
        SILENT.values(), run_each(bodies, options=QUIET), strict=True
    ):
        check(done, returncode=4, warnings=warnings)
        assert nothing_is_locked(cluster)


def test_a_call_that_was_given_up_is_not_waited_for(cluster, run, hold_elsewhere):
    hold_elsewhere(1)
    done = run("assert not slot.acquire(timeout=0.05); leaving()")
    check(done)
    # It would take the two seconds that an exit has.
    assert done.seconds < 1.5
    assert not any(entry.function == "C_Finalize" for entry in cluster.log())


def test_a_library_that_only_answers_slowly_is_waited_for(cluster, run):
    cluster.latency(0.3, "CA_UnlockClusteredSlot")
    cluster.latency(0.3, "C_Finalize")
    done = run("slot.acquire(); leaving()", options=QUIET)
    check(done, warnings=1)
    answers = {entry.function: entry.rv for entry in cluster.log()}
    assert (answers["CA_UnlockClusteredSlot"], answers["C_Finalize"]) == (0, 0)


def test_a_call_that_is_out_is_waited_for(cluster, run):
    body = """
        cluster.latency(0.5, "C_GetSlotList")
        in_thread(luna.slots)
        wait_until_inside("C_GetSlotList")
        leaving()
    """
    check(run(textwrap.dedent(body)))
    assert [call.rv for call in cluster.log() if call.function == "C_GetSlotList"][-1] == 0
    assert finalisations(cluster) == [0]


def test_a_device_that_is_busy_at_exit_is_asked_to_unlock_again(cluster, run):
    done = run(
        f"cluster.fault({UNLOCK!r}, {AGAIN}, times=2); slot.acquire(); leaving()", options=QUIET
    )
    check(done, warnings=1)
    answers = [entry.rv for entry in cluster.log() if entry.function == UNLOCK]
    assert answers == [AGAIN, AGAIN, 0]


def test_a_handler_of_atexit_hears_at_once_that_the_exit_has_taken_its_lock_off(cluster):
    """One from before the import is called last. Only other threads are held back meanwhile."""
    body = """
        import atexit, os, time

        def late():
            print(slot.lost.is_set())
            begin = time.monotonic()
            try:
                slot.release()
            except luna_ext.LockLostError:
                print("lost")
            print(time.monotonic() - begin < 1)

        atexit.register(late)
        import luna_ext
        from luna_ext.stub import STATE_VARIABLE, Cluster

        luna = Cluster(os.environ[STATE_VARIABLE]).library()
        slot = luna.slot(1)
        slot.acquire()
    """
    command = [sys.executable, "-c", textwrap.dedent(body)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=60)
    assert done.stdout.split() == ["True", "lost", "True"]


LATE = {
    "acquire": "slot.acquire()",
    "timed": "slot.lock(timeout=20).__enter__()",
    "token": "token.lock(timeout=20).__enter__()",
    "claim": "luna.claim('cluster-1').__enter__()",
    "timed claim": "luna.claim('cluster-1', timeout=20).__enter__()",
    "async": "asyncio.run(slot.lock().__aenter__())",
    "tokens": "list(luna.tokens())",
}


@pytest.mark.parametrize("used", ["with slot: pass", ""], ids=["used before", "never used"])
@pytest.mark.parametrize("statement", LATE.values(), ids=LATE)
def test_a_handler_of_atexit_that_comes_too_late_hears_it_at_once(cluster, statement, used):
    body = f"""
        import asyncio, atexit, os, time

        def late():
            begin = time.monotonic()
            try:
                {statement}
            except luna_ext.LibraryClosedError:
                print("closed")
            print(time.monotonic() - begin < 1)

        atexit.register(late)
        import luna_ext
        from luna_ext.stub import STATE_VARIABLE, Cluster

        luna = Cluster(os.environ[STATE_VARIABLE]).library()
        slot = luna.slot(1)
        token = luna.token("keyring2")
        # If it was used, there is a worker. No thread can be started any more.
        {used}
    """
    command = [sys.executable, "-c", textwrap.dedent(body)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=60)
    assert done.stdout.split() == ["closed", "True"]


@pytest.mark.parametrize("used", ["with slot: pass", ""], ids=["used before", "never used"])
@pytest.mark.parametrize("kind", ["acquire", "timed", "claim", "timed claim", "tokens"])
def test_a_finalizer_that_comes_after_the_exit_hears_at_once_that_the_library_is_closed(
    cluster, kind, used
):
    """No other thread runs any more by then, and none could be waited for."""
    body = f"""
        import os, time, luna_ext
        from luna_ext.stub import STATE_VARIABLE, Cluster

        class Late:
            def __del__(self, slot, luna, luna_ext, clock, write):
                begin = clock()
                try:
                    {LATE[kind]}
                except luna_ext.LibraryClosedError:
                    write(1, b"closed ")
                write(1, str(clock() - begin < 1).encode())

        luna = Cluster(os.environ[STATE_VARIABLE]).library()
        slot = luna.slot(1)
        # If it was used, there is a worker.
        {used}
        # Kept, for the names of the module are gone when it is called.
        Late.__del__.__defaults__ = slot, luna, luna_ext, time.monotonic, os.write
        late = Late()
    """
    command = [sys.executable, "-c", textwrap.dedent(body)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=60)
    assert done.stdout.split() == ["closed", "True"]


def test_a_token_that_a_thread_still_assigns_at_the_exit_is_not_unlocked_before(cluster, run):
    """Another program would claim it, and have it erased."""
    body = """
        def assign():
            with luna.claim("cluster-1") as token:
                token.assign("payments", so_pin="12345678")

        print(os.getpid())
        cluster.latency(40, "C_InitToken")
        in_thread(assign)
        wait_until_inside("C_InitToken")
    """
    ended = run(body, options=())
    cluster.latency(0, "C_InitToken")
    assert "was still locked" in ended.stderr
    assert logged(cluster, UNLOCK, int(ended.words[0])) == []


LEFT = {
    "a worker's call": "assert not slot.acquire(timeout=0.05)",
    "a thread's call": 'in_thread(slot.acquire); wait_until_inside("CA_LockClusteredSlot")',
    # No function of the program, whose names would not go then.
    "a thread's hold": (
        "in_thread(list, map(operator.call, (free.acquire, threading.Event().wait))); "
        "wait_until(free.locked)"
    ),
    "a thread that initialises": 'in_thread(luna.reconnect); wait_until_inside("C_Initialize")',
}


@pytest.mark.parametrize(
    ("left", "statement"),
    [
        ("a worker's call", "slot.acquire()"),
        ("a worker's call", "slot.acquire(timeout=40)"),
        ("a thread's call", "slot.acquire()"),
        ("a thread's call", "luna.close()"),
        ("a thread's hold", "free.acquire()"),
        ("a thread that initialises", "slot.acquire()"),
        ("a thread that initialises", "luna.close()"),
    ],
)
def test_what_a_thread_that_runs_no_more_has_left_keeps_no_finalizer_after_the_exit(
    cluster, run, hold_elsewhere, left, statement
):
    """Neither its device call, which never comes back, nor its hold."""
    hold_elsewhere(1)
    # But for that of this program.
    body = f"""
        import operator

        class Late:
            def __del__(self, slot, free, luna, luna_ext, write):
                try:
                    {statement}
                except luna_ext.LibraryClosedError:
                    write(1, b"closed")

        free = luna.slot(2)
        cluster.latency(40, "C_Initialize")
        {LEFT[left]}
        Late.__del__.__defaults__ = slot, free, luna, luna_ext, os.write
        late = Late()
    """
    ended = run(body, timeout=20, options=())
    cluster.latency(0, "C_Initialize")
    assert ended.returncode == 0
    assert ended.words == ([] if "close" in statement else ["closed"]), ended.stderr


def test_a_handler_of_atexit_that_comes_too_late_can_open_the_library_anew(cluster):
    body = """
        import atexit, os

        def late():
            with cluster.library() as again:
                print(len(again.slots()))

        atexit.register(late)
        from luna_ext.stub import STATE_VARIABLE, Cluster

        cluster = Cluster(os.environ[STATE_VARIABLE])
        luna = cluster.library()
    """
    command = [sys.executable, "-c", textwrap.dedent(body)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=60)
    assert int(done.stdout) == len(cluster.tokens())


def test_a_child_that_is_forked_during_the_exit_is_not_held_back_by_it(cluster):
    """It has no exit of its own under way, and nothing that would end the wait."""
    body = f"""
        import atexit, os, threading, time

        # The last one that is called.
        atexit.register(lambda: forking.join(40))
        import luna_ext
        from luna_ext.stub import STATE_VARIABLE, Cluster

        def fork():
            while not any(call.function == {UNLOCK!r} for call in cluster.log()):
                time.sleep(0.001)
            child = os.fork()
            if child == 0:
                begin = time.monotonic()
                try:
                    luna.slots()
                except luna_ext.LibraryClosedError:
                    os._exit(0 if time.monotonic() - begin < 1 else 1)
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

        cluster = Cluster(os.environ[STATE_VARIABLE])
        luna = cluster.library()
        cluster.latency(1.5, {UNLOCK!r})
        luna.slot(1).acquire()
        forking = threading.Thread(target=fork, daemon=True)
        forking.start()
    """
    command = [sys.executable, "-c", textwrap.dedent(body)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=60)
    assert done.stdout == "0\n"


def test_sigterm_with_a_handler_that_raises_releases(luna, owner_of, run):
    body = """
        import signal
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
        with luna, slot:
            os.kill(os.getpid(), signal.SIGTERM)
            threading.Event().wait(10)
    """
    done = run(body)
    assert (done.returncode, done.stderr) == (5, "")
    assert owner_of(1) is None


WAITS = {
    "idle": "ready(); threading.Event().wait()",
    "in a timed lock": "waits(lambda: slot.acquire(timeout=50))",
    "in a lock without a limit": "waits(lambda: slot.lock().__enter__())",
    "behind a thread": """
        held = threading.Event()
        def hold():
            with luna.slot(3):
                held.set()
                threading.Event().wait()
        in_thread(hold)
        held.wait()
        in_thread(lambda: wait_until(lambda: "1 waiting" in repr(luna.slot(3))) or ready())
        luna.slot(3).acquire()
    """,
    "in an event loop": """
        import asyncio
        async def main():
            async with luna.slot(4).lock():
                in_thread(lambda: wait_until_inside("CA_LockClusteredSlot") or ready())
                async with slot.lock(timeout=50):
                    pass
        asyncio.run(main())
    """,
    "polling": """
        cluster.fault("CA_LockClusteredSlot", 0x80000041)
        def refused():
            return any(entry.rv == 0x80000041 for entry in cluster.log())
        in_thread(lambda: wait_until(refused) or ready())
        slot.acquire()
    """,
}
SIGNALS = {
    "SIGTERM": (5, None, "signal.signal(signal.SIGTERM, end)"),
    "SIGINT": (-signal.SIGINT, "KeyboardInterrupt", "signal.signal(signal.SIGINT, interrupt)"),
}


@pytest.mark.luna_cluster(keyrings=40)
@pytest.mark.parametrize("how", SIGNALS)
def test_a_signal_ends_a_program_that_waits(cluster, program, hold_elsewhere, owner_of, how):
    """A handler raises SystemExit or KeyboardInterrupt, while another slot is held."""
    hold_elsewhere(1)
    returncode, error, handle = SIGNALS[how]
    body = """
        def end(*_):
            leaving()
            sys.exit(5)
        def interrupt(*_):
            leaving()
            signal.default_int_handler(*_)
        def ready():
            print("ready", flush=True)
        def waits(wait):
            in_thread(lambda: wait_until_inside("CA_LockClusteredSlot") or ready())
            wait()
    """
    started = []
    for number, waits in enumerate(WAITS.values()):
        parts = [body, f"held = luna.slot({10 + number}); held.acquire()", handle, waits]
        running = program("\n".join(map(textwrap.dedent, parts)), options=QUIET)
        running.expect("ready")
        started.append(running)
    for running in started:
        running.process.send_signal(getattr(signal, how))
    for waits, running in zip(WAITS, started, strict=True):
        held = 2 if waits == "behind a thread" else 1
        check(running.ended(), returncode=returncode, error=error, warnings=held)
    assert [owner_of(slot_id) for slot_id in range(2, 41)] == [None] * 39


def test_a_signal_inside_a_device_call_ends_the_program_when_the_call_returns(
    cluster, program, hold_elsewhere, owner_of
):
    holder = hold_elsewhere(1)
    body = """
        def end(*_):
            leaving()
            sys.exit(5)
        signal.signal(signal.SIGTERM, end)
        in_thread(lambda: wait_until_inside("CA_LockClusteredSlot") or print("ready", flush=True))
        slot.acquire()
        os._exit(99)
    """
    started = program(body, options=QUIET)
    started.expect("ready")
    started.process.send_signal(signal.SIGTERM)
    holder.release()
    check(started.ended(), returncode=5)
    assert owner_of(1) is None


def test_sys_exit_inside_a_task_releases_its_lock(cluster, run):
    body = """
        import asyncio
        async def main():
            waiting = asyncio.create_task(wait())
            async with slot.lock():
                await asyncio.sleep(0)
                leaving()
                sys.exit(6)
        async def wait():
            async with slot.lock():
                # If it comes to hold it, before the other one's exit is seen, it is cancelled.
                await asyncio.Event().wait()
        asyncio.run(main())
    """
    check(run(body), returncode=6)
    assert nothing_is_locked(cluster)


@pytest.mark.parametrize("end", ["sys.exit", "an exception"])
def test_closing_first_ends_threads_that_would_keep_the_process(cluster, run, end):
    """Python joins threads that are no daemons before anything is called at exit."""
    returncode, error, way_out = ENDS[end]
    body = f"""
        def enter(lock):
            try:
                with lock:
                    os._exit(99)
            except luna_ext.LibraryClosedError:
                os.write(1, b"ended\\n")
        with luna:
            slot.acquire()
            in_thread(enter, slot, daemon=False)
            in_thread(enter, slot.lock(), daemon=False)
            wait_until(lambda: "2 waiting" in repr(slot))
            {way_out}
    """
    done = run(body, options=QUIET)
    assert done.returncode == returncode
    assert done.words.count("ended") == 2, done
    assert (error or "slot 1 was still locked") in done.stderr
    assert nothing_is_locked(cluster)


LAST_MINUTE = {
    "a plain lock": "with slot: held(1)",
    "a lock": "with slot.lock(timeout=20): held(1)",
    "a task's lock": """
        import asyncio
        async def enter():
            async with slot.lock(timeout=20):
                held(1)
        asyncio.run(enter())
    """,
    "a claim": "with luna.claim('cluster-1', timeout=20) as token: held(token.slot.slot_id)",
    "the tokens": "assert luna.tokens()",
    "a library that tells its holders": """
        luna.close()
        os.environ["LUNA_EXT_WATCH"] = os.environ["WATCHED"]
        with cluster.library() as again, again.slot(1):
            held(1)
            wait_until(lambda: os.listdir(os.environ["WATCHED"]))
    """,
}
# As Python itself does it since 3.12.
NO_THREADS_ANY_MORE = """
import _thread
def start_new_thread(*arguments):
    raise RuntimeError("can't create new thread at interpreter shutdown")
_thread.start_new_thread = start_new_thread
"""


WHETHER_THREADS = pytest.mark.parametrize(
    "starts", ["", NO_THREADS_ANY_MORE], ids=["as it is", "no threads"]
)


@WHETHER_THREADS
@pytest.mark.parametrize("kind", LAST_MINUTE)
def test_a_handler_of_atexit_can_still_lock(cluster, succeed, tmp_path, kind, starts):
    handler = f"""
def held(slot_id):
    owners = {{token.slot_id: token.owner for token in cluster.tokens()}}
    assert owners[slot_id] == os.getpid()

def handler():
{textwrap.indent(textwrap.dedent(LAST_MINUTE[kind]), "    ")}
    print("done")

import atexit
atexit.register(handler)
"""
    assert succeed(handler + starts, WATCHED=str(tmp_path)) == ["done"]
    assert nothing_is_locked(cluster)


@WHETHER_THREADS
def test_threads_that_outlive_the_main_thread_can_still_lock(cluster, succeed, starts):
    work = """
def work():
    threading.main_thread().join()
    for _ in range(3):
        with slot.lock(timeout=20):
            print("held")

for _ in range(3):
    in_thread(work, daemon=False)
"""
    assert succeed(work + starts) == ["held"] * 9
    assert nothing_is_locked(cluster)


# asyncio cannot be imported any more by a thread while the interpreter exits.
BUSY = """
import asyncio
import random
chance = random.Random({seed})

def plain(slot):
    with slot:
        pass

def timed(slot):
    with slot.lock(timeout=20):
        pass

def at_once(slot):
    if slot.acquire(blocking=False):
        slot.release()

def claim(slot):
    with luna.claim("cluster-1", timeout=20):
        pass

def tokens(slot):
    slot.token_info

def in_loop(slot):
    async def enter():
        async with slot.lock(timeout=20):
            pass

    async def main():
        while True:
            await asyncio.gather(enter(), enter())

    asyncio.run(main())

def work(slot, kind):
    while True:
        kind(slot)

kinds = [plain, timed, at_once, claim, tokens, in_loop]
for kind in chance.sample(kinds, 5):
    in_thread(work, chance.choice([slot, luna.slot(2)]), kind)
time.sleep(chance.random() / 20)
if chance.random() < 0.3:
    luna.slot(3).acquire()
leaving()
if chance.random() < 0.5:
    sys.exit(8)
raise KeyError("mine")
"""


@pytest.mark.parametrize("first", range(0, 40, 4))
def test_busy_threads_break_no_exit(run_each, first):
    bodies = [BUSY.format(seed=seed) for seed in range(first, first + 4)]
    for cluster, done in run_each(bodies, options=QUIET):
        assert done.returncode in (1, 8), done
        assert done.seconds < AT_MOST
        assert nothing_is_locked(cluster)
        said = re.sub(r"(?sm)\ATraceback.*?^KeyError: 'mine'\n", "", done.stderr)
        assert re.sub(r"(.*ResourceWarning: )?slot \d+ was still locked, .*\n", "", said) == "", (
            done
        )


def test_no_heartbeat_asks_beside_the_exits_finalisation(cluster, run):
    body = """
        cluster.latency(0.5, "C_Finalize")
        lock = slot.lock(heartbeat=0.1)
        lock.__enter__()
        wait_until(lambda: sum(call.function == "C_GetSessionInfo" for call in cluster.log()) > 3)
    """
    assert run(body, options=QUIET).returncode == 0
    functions = [call.function for call in cluster.log()]
    # If a question was out just then, the exit does not finalise.
    end = functions.index("C_Finalize") if "C_Finalize" in functions else len(functions)
    assert "C_GetSessionInfo" not in functions[end:]
