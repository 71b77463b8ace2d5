"""Several processes on one cluster: programs, forked workers, multiprocessing."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest
from support import nothing_is_locked

from luna_ext.stub import library_path

COUNTING = """
import os

def add(path, lock, times):
    for _ in range(times):
        with lock:
            with open(path) as file:
                number = int(file.read())
            with open(path, "w") as file:
                file.write(str(number + 1))
"""


@pytest.fixture
def counter(tmp_path):
    path = tmp_path / "counter"
    path.write_text("0")
    return path


def test_two_processes_exclude_each_other(cluster, program, counter):
    body = f"""
        {textwrap.indent(COUNTING, " " * 8).strip()}
        threads = [in_thread(add, {str(counter)!r}, slot, 100) for _ in range(3)]
        for thread in threads:
            thread.join()
        luna.close()
    """
    ended = [started.ended() for started in [program(body) for _ in range(3)]]
    assert [(done.returncode, done.stderr) for done in ended] == [(0, "")] * 3
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


PREFORK = """
def work():
    # Requests, and then the wait for one more; a handler ends it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        for turn in range(25):
            add(path, slot.lock(timeout=30) if turn % 2 else slot, 1)
        os.write(ready, b"x")
        with luna.slot(3).lock(timeout=50):
            os._exit(71)
    except SystemExit as error:
        os._exit(error.code)
    finally:
        os._exit(70)

def start():
    child = os.fork()
    return child if child else work()

def wait_for_ready(count):
    for _ in range(count):
        assert os.read(read, 1) == b"x"

read, ready = os.pipe()
with luna.token("keyring1"), luna.slot(2):
    assert len(luna.tokens()) == 8
luna.slot(3).acquire()
workers = [start() for _ in range(4)]
wait_for_ready(4)
os.kill(workers[0], signal.SIGKILL)
assert os.waitstatus_to_exitcode(os.waitpid(workers[0], 0)[1]) == -signal.SIGKILL
workers[0] = start()
wait_for_ready(1)
for worker in workers:
    os.kill(worker, signal.SIGTERM)
codes = [os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) for worker in workers]
luna.slot(3).release()
print(*codes, [token.owner for token in cluster.tokens()].count(None))
luna.close()
"""


def test_forked_workers_of_an_open_library_exclude_each_other(succeed, cluster, counter):
    """As a server does that loads its application and then forks its workers, and later one more."""
    body = f"path = {str(counter)!r}\n{COUNTING}\n{PREFORK}"
    # Newer Pythons warn of any thread at a fork; luna_ext's worker threads are idle by then.
    options = ("-X", "dev", "-W", "ignore:This process:DeprecationWarning")
    assert succeed(body, options=options) == ["0", "0", "0", "0", "8"]
    assert counter.read_text() == "125"


MULTIPROCESSING = f"""
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from luna_ext.stub import Cluster
{COUNTING}
slots = None

def initialise(cluster_path):
    global luna, slots
    luna = Cluster(cluster_path).library()
    slots = [luna.slot(1), luna.slot(2)]

def work(counters):
    for turn, path in enumerate(counters):
        add(path, slots[turn].lock(timeout=50) if os.getpid() % 2 else slots[turn], 10)
    return os.getpid()

def work_alone(cluster_path, counters):
    if cluster_path is not None:
        initialise(cluster_path)
    work(counters)
    if cluster_path is not None:
        luna.close()

def main(method, cluster_path, *counters):
    initialise(cluster_path)
    with slots[0], slots[1]:
        pass
    context = multiprocessing.get_context(method)
    # A forked child has the parent's Library, any other opens its own.
    inherits = method == "fork"
    path = None if inherits else cluster_path
    own = {{}} if inherits else {{"initializer": initialise, "initargs": (cluster_path,)}}
    processes = [context.Process(target=work_alone, args=(path, counters)) for _ in range(2)]
    for process in processes:
        process.start()
    work(counters)
    for process in processes:
        process.join()
    print(*[process.exitcode for process in processes])
    with context.Pool(2, **own) as pool:
        results = [pool.apply_async(work, (counters,)) for _ in range(4)]
        work(counters)
        print(os.getpid() in [result.get(50) for result in results])
        pool.close()
        pool.join()
    with ProcessPoolExecutor(2, mp_context=context, **own) as executor:
        futures = [executor.submit(work, counters) for _ in range(4)]
        work(counters)
        print(os.getpid() in [future.result(50) for future in futures])
    luna.close()

if __name__ == "__main__":
    main(*sys.argv[1:])
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(cluster, counter, tmp_path, method):
    """Processes, pools and executors beside a parent that has the Library open and uses it."""
    other = tmp_path / "other"
    other.write_text("0")
    script = tmp_path / "program.py"
    script.write_text(MULTIPROCESSING)
    done = subprocess.run(
        [sys.executable, script, method, cluster.path, counter, other],
        capture_output=True,
        text=True,
        timeout=45,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert (done.returncode, done.stderr) == (0, ""), done
    assert done.stdout.split() == ["0", "0", "False", "False"]
    assert (counter.read_text(), other.read_text()) == ("130", "130")
    assert nothing_is_locked(cluster)


def test_the_library_path_is_the_stand_in():
    assert os.path.isfile(library_path())
