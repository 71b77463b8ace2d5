"""Several processes on one cluster; fork; the end of the interpreter."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest

import luna_ext
from luna_ext.stub import library_path

PREAMBLE = """
import os, sys, threading, luna_ext
from luna_ext.stub import STATE_VARIABLE, Cluster
cluster = Cluster(os.environ[STATE_VARIABLE])
luna = cluster.library()
slot = luna.slot(1)
"""


def run(body, *, options=("-X", "dev", "-W", "error"), timeout=60):
    """Run a program in a process of its own; what it printed, its exit code."""
    return subprocess.run(
        [sys.executable, *options, "-c", PREAMBLE + textwrap.dedent(body)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def succeed(body, **options):
    done = run(body, **options)
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout.split()


def in_child(function):
    """Run in a forked child; its exit code. 0: it returned true."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            code = 0 if function() else 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_two_processes_exclude_each_other(cluster, tmp_path):
    counter = tmp_path / "counter"
    counter.write_text("0")
    body = f"""
        path = {str(counter)!r}
        def add():
            for _ in range(100):
                with slot:
                    with open(path) as file:
                        number = int(file.read())
                    with open(path, "w") as file:
                        file.write(str(number + 1))
        threads = [threading.Thread(target=add) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        luna.close()
    """
    processes = [
        subprocess.Popen([sys.executable, "-c", PREAMBLE + textwrap.dedent(body)]) for _ in range(3)
    ]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert counter.read_text() == "900"


def test_another_process_waits_for_the_lock(luna, hold_elsewhere, call, owner_of):
    holder = hold_elsewhere(1)
    slot = luna.slot(1)

    def enter():
        with slot:
            return owner_of(1)

    waiting = call(enter)
    assert owner_of(1) == holder.pid
    holder.release()
    assert waiting.result() == os.getpid()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_a_holder_that_dies_frees_its_locks(luna, hold_elsewhere, owner_of, how):
    holder = hold_elsewhere(1)
    assert owner_of(1) == holder.pid
    holder.process.send_signal(how)
    with luna.slot(1).lock(timeout=1):
        assert owner_of(1) == os.getpid()
    holder.process.communicate()
    holder.process.returncode = 0


def test_in_a_forked_child_nothing_is_held(luna, owner_of):
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


def test_an_inherited_with_ends_quietly_in_a_grandchild_too(luna):
    slot = luna.slot(1)

    def child():
        def grandchild():
            slot.__exit__(None, None, None)
            return not slot.locked()

        return in_child(grandchild) == 0

    with slot:
        assert in_child(child) == 0


def test_stats_count_for_one_process(luna):
    def child():
        before = luna.stats()
        with luna.slot(2):
            pass
        return before == {} and luna.stats()["CA_LockClusteredSlot"].calls == 1

    with luna.slot(1):
        pass
    assert in_child(child) == 0


def test_the_childs_first_call_initialises_anew(luna, owner_of):
    def child():
        with luna.slot(2):
            mine = owner_of(2) == os.getpid()
        return mine and len(luna.tokens()) == 8 and owner_of(1) == os.getppid()

    with luna.slot(1):
        assert in_child(child) == 0
        luna.slot(1).ensure_held()


def test_an_inherited_with_ends_as_a_logged_no_op(luna, caplog, owner_of):
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


def test_a_fork_while_another_thread_is_inside_the_device(luna, hold_elsewhere, call, owner_of):
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


def test_closing_in_the_child_leaves_the_parent_alone(luna, owner_of):
    def child():
        luna.close()
        return luna.closed

    with luna.slot(1):
        assert in_child(child) == 0
        luna.slot(1).ensure_held()
        assert owner_of(1) == os.getpid()


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(cluster, method):
    body = f"""
        import multiprocessing
        if __name__ == "__main__":
            luna.close()
            context = multiprocessing.get_context({method!r})
            with context.Pool(2) as pool:
                print(len(pool.map(abs, range(-8, 0))))
    """
    assert succeed(body, options=()) == ["8"]


def test_at_exit_held_locks_are_released(luna, owner_of):
    done = run("slot.acquire(); print(os.getpid())", options=())
    assert done.returncode == 0
    assert int(done.stdout) > 0
    assert owner_of(1) is None


def test_a_closed_library_exits_without_a_word(cluster):
    assert succeed("with slot: print('held')\nluna.close()") == ["held"]


def test_an_uncaught_exception_inside_a_block_releases(luna, owner_of):
    done = run("with luna, slot: raise SystemExit(3)")
    assert (done.returncode, done.stderr) == (3, "")
    assert owner_of(1) is None


def test_exit_with_a_thread_blocked_in_the_device_is_bounded(luna, hold_elsewhere):
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
    assert (done.returncode, done.stdout) == (0, "exits\n"), done
    with luna.slot(2).lock(timeout=1):
        pass


def test_exit_with_a_device_that_does_not_answer_is_bounded(cluster):
    body = """
        slot.acquire()
        from luna_ext.stub import Cluster
        Cluster(os.environ["LUNA_STUB_STATE"]).latency(60, "CA_UnlockClusteredSlot")
    """
    done = run(body, options=(), timeout=20)
    assert done.returncode == 0, done


def test_sigterm_with_a_handler_that_raises_releases(luna, owner_of):
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


def test_the_library_path_is_the_stand_in():
    assert os.path.isfile(library_path())
