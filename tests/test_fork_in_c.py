"""Forks that Python does not hear of, as uWSGI and other C code make them; and client libraries that do not
notice a fork.
"""

import sys

import pytest
from support import UNLOCK, nothing_is_locked

# The child runs `in_child`, and its exit code is printed. PyDLL keeps the GIL, as C code does that forks.
FORK = """
import ctypes, gc
has_gil = getattr(sys, "_is_gil_enabled", lambda: True)()

def fork_in_c():
    pid = ctypes.PyDLL(None).fork()
    if pid == 0 and not has_gil:
        # To collect, Python would wait for those of the parent's threads that ran at the fork.
        gc.disable()
    return pid

def fork(in_child, ends=os._exit):
    sys.stdout.flush()
    pid = fork_in_c()
    if pid == 0:
        signal.alarm(40)
        code = 99
        try:
            code = in_child() or 0
        except BaseException as error:
            print("child:", repr(error), flush=True)
        sys.stdout.flush()
        ends(code)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)

def owner():
    return cluster.tokens()[0].owner
"""


def test_a_child_holds_nothing_and_its_first_call_initialises_anew(cluster, succeed):
    body = f"""{FORK}
parent = os.getpid()

def child():
    assert not slot.locked()
    assert len(luna.slots()) == 8
    assert slot.acquire(timeout=0.2) is False
    with luna.slot(2).lock(timeout=20):
        luna.slot(2).ensure_held()
    assert owner() == parent

with slot:
    fork(child)
    slot.ensure_held()
    assert owner() == parent
assert owner() is None
"""
    assert succeed(body) == ["0"]
    assert nothing_is_locked(cluster)


SPAWNS = {
    "posix_spawn": "os.waitpid(os.posix_spawn('/bin/true', ['true'], os.environ), 0)",
    "vfork": "import subprocess; subprocess.run(['true'], check=True)",
}


@pytest.mark.parametrize("spawn", SPAWNS.values(), ids=SPAWNS)
def test_a_program_that_is_started_leaves_the_lock_and_the_library_alone(cluster, succeed, spawn):
    body = f"""{FORK}
with slot.lock(heartbeat=0.02):
    before = len(cluster.log())
    {spawn}
    slot.ensure_held()
    assert owner() == os.getpid()
    # As ever: questions, and no C_Initialize.
    made = {{call.function for call in cluster.log()[before:]}}
print(*sorted(made))
assert owner() is None
"""
    assert succeed(body) == ["C_GetSessionInfo", "C_GetTokenInfo"]


FORMS = {
    "slot": "slot",
    "lock": "slot.lock(timeout=20)",
    "token": "luna.token('keyring1')",
    "claim": "luna.claim('cluster-1')",
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_an_inherited_block_ends_in_the_child_without_an_unlock(cluster, run, form):
    body = f"""{FORK}
with {form}:
    pid = fork_in_c()
    held = [token.slot_id for token in cluster.tokens() if token.owner is not None]
if pid == 0:
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
unlocks = [call.pid for call in cluster.log() if call.function == {UNLOCK!r}]
assert unlocks == [os.getpid()], unlocks
"""
    done = run(body)
    assert done.returncode == 0, done
    assert nothing_is_locked(cluster)


ENDS = [
    pytest.param(
        "sys.exit",
        marks=pytest.mark.skipif(
            not getattr(sys, "_is_gil_enabled", lambda: True)(),
            reason="Without the GIL Python waits, at exit, for the parent's threads",
        ),
    ),
    "os._exit",
]


@pytest.mark.parametrize("ends", ENDS)
def test_the_end_of_a_child_leaves_the_parents_locks_alone(cluster, run, ends):
    body = f"""{FORK}
with slot:
    pid = fork_in_c()
    if pid == 0:
        {ends}(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    slot.ensure_held()
    assert owner() == os.getpid()
assert [call.pid for call in cluster.log() if call.function == "C_Finalize"] == []
"""
    done = run(body)
    assert done.returncode == 0, done
    assert nothing_is_locked(cluster)


def test_a_child_that_closes_its_library_leaves_the_parents_locks_alone(cluster, succeed):
    body = f"""{FORK}
with slot:
    fork(luna.close)
    slot.ensure_held()
    assert owner() == os.getpid()
"""
    assert succeed(body) == ["0"]


def test_children_of_children(cluster, succeed):
    body = f"""{FORK}
def grandchild():
    assert not slot.locked()
    with luna.slot(3) as third:
        third.ensure_held()

def child():
    fork(grandchild)
    with luna.slot(2) as second:
        second.ensure_held()
        fork(grandchild)
        second.ensure_held()

with slot:
    fork(child)
    slot.ensure_held()
"""
    assert succeed(body) == ["0", "0", "0"]
    assert nothing_is_locked(cluster)


def test_a_thread_that_forks_before_it_has_locked_inherits_no_block(cluster, succeed):
    """The child's child: the block is one of the child's main thread."""
    body = f"""{FORK}
def grandchild():
    for call in (slot.release, lambda: slot.__exit__(None, None, None)):
        try:
            call()
        except luna_ext.LockNotOwnedError:
            print("not owned", flush=True)

def main_thread_sleeps():
    with open(f"/proc/self/task/{{os.getpid()}}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] == "S"

def fork_beside_a_sleeping_main_thread():
    # If it asked for the GIL at the fork, the grandchild would hand the GIL over to it, and wait.
    for _ in range(3):
        time.sleep(0)
        wait_until(main_thread_sleeps)
    fork(grandchild)

def child():
    with slot.lock(timeout=20):
        in_thread(fork_beside_a_sleeping_main_thread).join()

# The main thread has a number when it forks.
with slot:
    pass
fork(child)
"""
    assert succeed(body) == ["not", "owned"] * 2 + ["0", "0"]


def test_a_signal_handler_may_fork_in_c_while_a_lock_is_waited_for(
    cluster, succeed, hold_elsewhere
):
    """The child waits anew, and gives up on time; the parent gets the lock."""
    holder = hold_elsewhere(1)
    body = f"""{FORK}
children = []

def handler(*_):
    children.append(fork_in_c())

signal.signal(signal.SIGUSR1, handler)

def send():
    wait_until_inside("CA_LockClusteredSlot")
    os.kill(os.getpid(), signal.SIGUSR1)

in_thread(send)
entered = slot.acquire(timeout=2)
if children == [0]:
    print(entered, slot.locked(), flush=True)
    os._exit(0)
os.waitpid(children[0], 0)
print(entered)
"""
    assert succeed(body) == ["False", "False", "False"]
    holder.release()


def test_a_child_that_a_signal_handler_forks_in_c_gets_the_lock_in_its_turn(
    program, hold_elsewhere
):
    """The worker that asks for it is the parent's, and the child has no limit of time."""
    holder = hold_elsewhere(1)
    body = f"""{FORK}
children = []

def handler(*_):
    children.append(fork_in_c())
    if children == [0]:
        signal.alarm(40)

signal.signal(signal.SIGUSR1, handler)

def send():
    wait_until_inside("CA_LockClusteredSlot")
    os.kill(os.getpid(), signal.SIGUSR1)
    wait_until(lambda: children)
    print("forked", flush=True)

in_thread(send)
with slot:
    slot.ensure_held()
    assert owner() == os.getpid()
if children == [0]:
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]))
"""
    running = program(body)
    running.expect("forked")
    holder.release()
    done = running.ended()
    assert (done.returncode, done.words) == (0, ["0"]), done


FIRST_CALLS = {
    "a new Library": "cluster.library().slots()",
    "slots": "luna.slots()",
    "reconnect": "luna.reconnect()",
    "tokens": "luna.tokens()",
    "lock_all": "luna.lock_all([luna.slot(4)]).__enter__(); luna.slot(4).release()",
    "pkcs11": "luna.pkcs11().get_slots()",
    "claim": "luna.claim('cluster-1', timeout=20).__enter__()",
}


@pytest.mark.parametrize("call", FIRST_CALLS.values(), ids=FIRST_CALLS)
def test_any_call_may_be_the_childs_first(cluster, run, call):
    body = f"""{FORK}
warnings.simplefilter("ignore", ResourceWarning)

def grandchild():
    {call}
    assert not slot.locked()
    with luna.slot(3) as third:
        third.ensure_held()

def child():
    # Before any call of its own, so that C_Initialize is still due.
    fork(grandchild)
    fork(grandchild)
    {call}
    with luna.slot(2) as second:
        second.ensure_held()

with slot:
    fork(child)
    slot.ensure_held()
"""
    done = run("import warnings\n" + body, options=())
    assert done.returncode == 0, done
    assert done.words == ["0", "0", "0"], done


@pytest.mark.skipif(
    getattr(sys, "_is_gil_enabled", lambda: True)(),
    reason="With the GIL, no other thread is between two lines of C at such a fork",
)
def test_what_a_thread_of_the_parents_was_in_at_the_fork_is_free_in_the_child(cluster, succeed):
    body = f"""{FORK}
def look(slot):
    while not over:
        slot.locked()

def child():
    with luna.slot(8).lock(timeout=30):
        pass

over = False
luna.slot(8)
threads = [in_thread(look, luna.slot(number)) for number in range(1, 5)]
for _ in range(10):
    fork(child)
over = True
for thread in threads:
    thread.join()
"""
    assert succeed(body) == ["0"] * 10


def test_an_inherited_block_of_a_task_ends_in_the_child_without_an_unlock(cluster, run):
    body = f"""{FORK}
import asyncio
pids = []

async def main():
    async with slot.lock(timeout=20):
        pids.append(fork_in_c())
    if pids == [0]:
        # And the slot is one that the child can lock, once the parent has released it.
        assert slot.acquire(timeout=20)
        os._exit(0)

asyncio.run(main())
assert os.waitstatus_to_exitcode(os.waitpid(pids[0], 0)[1]) == 0
unlocks = [call.pid for call in cluster.log() if call.function == {UNLOCK!r}]
assert unlocks == [os.getpid()], unlocks
"""
    done = run(body)
    assert done.returncode == 0, done
    assert nothing_is_locked(cluster)


# ---- client libraries that do not notice a fork ----

UNAWARE = """
cluster.fault("C_Initialize", 0x191)
def child():
    for _ in range(2):
        try:
            luna.slots()
        except luna_ext.CryptokiError as error:
            print("each process one after the fork" in str(error))
    try:
        with slot:
            pass
    except luna_ext.CryptokiError as error:
        print(error.rv_name)
    try:
        cluster.library()
    except luna_ext.CryptokiError as error:
        print(error.rv_name)
"""


@pytest.mark.parametrize("how", ["fork(child)", "in_python(child)"])
def test_a_client_library_that_does_not_notice_forks_is_refused_in_the_child(succeed, how):
    body = f"""{FORK}{UNAWARE}
def in_python(child):
    sys.stdout.flush()
    if os.fork() == 0:
        child()
        sys.stdout.flush()
        os._exit(0)
    os.wait()
{how}
"""
    code = "CKR_CRYPTOKI_ALREADY_INITIALIZED"
    assert succeed(body)[:4] == ["True", "True", code, code]


def test_a_library_that_each_process_opens_after_the_fork_works(succeed):
    """What the error advises."""
    body = f"""{FORK}
luna.close()
def child():
    with cluster.library() as own, own.slot(1) as first:
        first.ensure_held()
for _ in range(2):
    fork(child)
"""
    assert succeed(body) == ["0", "0"]


def test_other_code_may_initialise_the_library_in_a_child_of_a_process_that_has_closed_it(succeed):
    """It was finalised at the fork, so there is nothing of the parent's that the child could inherit."""
    body = f"""{FORK}
luna.close()
def child():
    assert ctypes.CDLL(luna.path).C_Initialize(None) == 0
    with cluster.library() as own, own.slot(1) as first:
        first.ensure_held()
fork(child)
"""
    assert succeed(body) == ["0"]


def test_a_client_library_that_other_code_has_open_at_the_fork_is_the_parents(succeed):
    """Though the parent has closed its own Library. The client library does not notice the fork."""
    body = f"""{FORK}
luna.close()
assert ctypes.CDLL(luna.path).C_Initialize(None) == 0
with cluster.library() as own, own.slot(1) as first:
    first.ensure_held()
cluster.fault("C_Initialize", 0x191)

def child():
    try:
        cluster.library()
    except luna_ext.CryptokiError as error:
        print(error.rv_name, "each process one after the fork" in str(error))

fork(child)
assert ctypes.CDLL(luna.path).C_Finalize(None) == 0
"""
    assert succeed(body) == ["CKR_CRYPTOKI_ALREADY_INITIALIZED", "True", "0"]


def test_other_code_of_the_child_may_have_initialised_the_library(succeed):
    """The session that the parent kept is not there, so it is a new application."""
    body = f"""{FORK}
def child():
    assert ctypes.CDLL(luna.path).C_Initialize(None) == 0
    with slot:
        slot.ensure_held()

with slot:
    pass
fork(child)
"""
    assert succeed(body) == ["0"]


def test_other_code_of_the_child_may_initialise_the_library_after_the_child_has_closed_it(succeed):
    """What the child had of its parent is gone by then, though the child has locked nothing."""
    body = f"""{FORK}
def child():
    luna.slots()
    luna.close()
    assert ctypes.CDLL(luna.path).C_Initialize(None) == 0
    with cluster.library() as own, own.slot(1) as first:
        first.ensure_held()
fork(child)
"""
    assert succeed(body) == ["0"]
