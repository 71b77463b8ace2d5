"""A garbage collection at any moment of a lock, a release or a claim: what it runs changes nothing.

The collector runs finalizers and callbacks wherever an object is made that it keeps track of, on any
thread, in the midst of whatever that thread does.
"""

import asyncio
import contextlib
import ctypes
import gc
import sys
import threading

import pytest
from support import DEVICE_ERROR, LOCK, MAY_FORK, wait_until

import luna_ext

COLLECTING = """
import asyncio, contextlib, gc

# Slots of the finalizers alone: no claim gives them, and two collections never run at a time.
THEIRS = [luna.slot(slot_id) for slot_id in (7, 8)]
running = False
runs = failures = 0

class Nasty(Exception):
    pass

class Garbage:
    "Only the collector can free it; its finalizer uses the library, leaves more of it, and raises."
    def __init__(self):
        self.me = self

    def __del__(self):
        global runs, failures
        if not running:
            return
        runs += 1
        Garbage()
        try:
            with THEIRS[0], THEIRS[1].lock(timeout=20):
                pass
            assert THEIRS[0].acquire(blocking=False)
            THEIRS[0].release()
            with contextlib.suppress(luna_ext.NoUnassignedTokenError, luna_ext.LockTimeoutError):
                with luna.claim("cluster-1", timeout=0.01):
                    pass
            # Whatever the library goes through just then has one more of them.
            assert not luna.slot(1000 + runs).locked()
            repr(luna.slot(1)), luna.stats()
            # They are never its own.
            with contextlib.suppress(luna_ext.LockNotOwnedError):
                THEIRS[1].release()
        except BaseException as error:
            failures += 1
            print("finalizer:", repr(error), file=sys.stderr)
        raise Nasty

def collected(phase, info):
    raise Nasty

def unraisable(what):
    if what.exc_type is not Nasty:
        print("unraisable:", repr(what.exc_value), what.err_msg, what.object, file=sys.stderr)

sys.unraisablehook = unraisable
def plain():
    with slot:
        held(slot)

def acquire():
    slot.acquire()
    held(slot)
    slot.release()

def timed():
    with slot.lock(timeout=20):
        held(slot)

def token():
    with known:
        held(known.slot)

def claim():
    with luna.claim("cluster-1", timeout=20) as token:
        held(token.slot)

def impatient():
    with contextlib.suppress(luna_ext.LockTimeoutError):
        with slot.lock(timeout=0.0005):
            held(slot)

async def tasks():
    async with slot.lock(timeout=20):
        held(slot)
    async with luna.claim("cluster-1", timeout=20) as token:
        held(token.slot)

def in_loop():
    asyncio.run(tasks())

def held(slot):
    owner = {token.slot_id: token.owner for token in cluster.tokens()}[slot.slot_id]
    assert owner == os.getpid(), (slot, owner)
    slot.ensure_held()

known = luna.token("keyring2")
loops = [plain, acquire, timed, token, claim, impatient, in_loop]
errors = []

def work(use):
    global running
    deadline = time.monotonic() + SECONDS
    try:
        while time.monotonic() < deadline:
            use()
    except BaseException as error:
        running = False
        errors.append((use.__name__, repr(error)))

running = True
gc.callbacks.append(collected)
gc.set_threshold(1)
Garbage()
threads = [in_thread(work, use) for use in loops]
work(plain)
for thread in threads:
    thread.join(60)
    assert not thread.is_alive()
running = False
gc.set_threshold(0)
gc.callbacks.clear()
# Without the GIL the collector looks less often whether it is due.
enough = 100 if getattr(sys, "_is_gil_enabled", lambda: True)() else 1
print(errors, failures, file=sys.stderr) if errors or failures else print(runs >= enough)
assert not any(each.locked() for each in luna.slots())

def given_back():
    return all(token.owner is None for token in cluster.tokens())

# What was given up comes off when its call is answered.
wait_until(given_back)
luna.close()
"""


def assign(cluster, slot_ids):
    """Have these tokens assigned, so that no claim gives them."""
    with cluster.library() as luna, contextlib.ExitStack() as stack:
        for _ in cluster.tokens():
            token = stack.enter_context(luna.claim(cluster.cluster_id))
            if token.slot.slot_id in slot_ids:
                token.assign(f"assigned{token.slot.slot_id}", so_pin="12345678")


@pytest.mark.parametrize("latency", [0, 0.0003])
def test_collections_in_the_midst_of_everything_change_nothing(cluster, succeed, latency):
    """Their finalizers lock and unlock other slots, and raise, as a callback of the collector does."""
    assign(cluster, {7, 8})
    cluster.latency(latency)
    # Not with -X dev, in which asyncio tells of whatever takes long.
    done = succeed(f"SECONDS = 2\n{COLLECTING}", options=("-W", "error"))
    assert done == ["True"]


def test_a_finalizer_does_not_wait_for_the_worker_that_runs_it(luna, cluster, monkeypatch):
    """The worker makes the error of a lock call, which only then gives up the turn that others wait for."""
    slot, ends = luna.slot(1), []
    make = luna_ext.DeviceError.__init__

    class Garbage:
        def __init__(self):
            self.me = self

        def __del__(self):
            try:
                ends.append(slot.acquire())
                slot.release()
            except luna_ext.LockReentryError as error:
                ends.append(error)

    def collect(*arguments, **options):
        gc.collect()
        make(*arguments, **options)

    monkeypatch.setattr(luna_ext.DeviceError, "__init__", collect)
    cluster.fault(LOCK, DEVICE_ERROR, times=1)
    gc.disable()
    try:
        Garbage()
        with pytest.raises(luna_ext.DeviceError):
            slot.acquire(timeout=10)
    finally:
        gc.enable()
    assert [type(end) for end in ends] == [luna_ext.LockReentryError]
    assert slot.acquire(timeout=10)
    slot.release()


def in_line(luna):
    async def enter():
        async with luna.slot(1).lock():
            pass

    async def main():
        await asyncio.gather(*(enter() for _ in range(100)))

    asyncio.run(main())


def give_up(luna):
    def wait():
        for _ in range(100):
            assert luna.slot(1).acquire(timeout=1e-5) is False

    with luna.slot(1):
        waiting = threading.Thread(target=wait)
        waiting.start()
        waiting.join()


def give_up_in_tasks(luna):
    async def wait():
        with pytest.raises(luna_ext.LockTimeoutError):
            async with luna.slot(1).lock(timeout=1e-5):
                pass

    async def main():
        async with luna.slot(1).lock():
            await asyncio.gather(*(wait() for _ in range(100)))

    asyncio.run(main())


def claim(luna):
    for _ in range(100):
        with luna.claim("cluster-1", timeout=20):
            pass


def acquire(luna):
    for _ in range(100):
        luna.slot(1).acquire()
        luna.slot(1).release()


def check_labels(luna):
    for _ in range(50):
        with luna.token("keyring1"):
            pass
        with luna.token("keyring1").lock(timeout=20):
            pass


def look_after(luna):
    for _ in range(50):
        with luna.slot(1).lock(heartbeat=60):
            pass
        with luna.claim("cluster-1", heartbeat=60):
            pass


EACH_WORK = [in_line, give_up, give_up_in_tasks, claim, acquire, check_labels, look_after]


@pytest.mark.parametrize("work", EACH_WORK)
def test_nothing_is_left_in_memory(luna, cluster, work):
    """Also references count: those to the code that asks for a lock."""
    cluster.switch("log", "off")

    def used():
        gc.collect()
        return sys.getallocatedblocks() + sys.getrefcount(work.__code__)

    for _ in range(3):
        work(luna)
    before = used()
    for _ in range(5):
        work(luna)
    # One block for each of so many would be five times as much.
    wait_until(lambda: used() < before + 100, 10)


HEAP = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="the C library does not tell what is used"
)


# How much of C's heap is used: mallinfo().uordblks.
C_HEAP = """
import ctypes

class Info(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

mallinfo = ctypes.CDLL(None).mallinfo2
mallinfo.restype = Info
"""


@HEAP
def test_threads_that_have_ended_leave_nothing_in_memory(succeed):
    """Those of the library, which a fork ends when they have nothing to do."""
    body = f"""{C_HEAP}
def begin_one_and_end_it():
    assert slot.acquire(timeout=20)
    slot.release()
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)

for _ in range(20):
    begin_one_and_end_it()
before = mallinfo().uordblks
for _ in range(200):
    begin_one_and_end_it()
print((mallinfo().uordblks - before) // 200)
luna.close()
"""
    (each,) = succeed(body, options=MAY_FORK)
    assert int(each) < 16


USES = f"""{C_HEAP}
import asyncio, contextlib, gc

# One for all: a loop that is made anew leaves something of asyncio's each time.
loop = asyncio.new_event_loop()
refused = contextlib.suppress(luna_ext.LunaError)

def another_library():
    with cluster.library() as other, other.slot(2):
        pass

def closed_while_it_holds():
    with cluster.library() as other:
        other.slot(2).acquire()

def opened_anew():
    global luna
    luna.close()
    luna = cluster.library()
    with luna.slot(1):
        pass

def on_a_thread():
    in_thread(lambda: (luna.slot(1).acquire(), luna.slot(1).release())).join()

def timed():
    with luna.slot(1).lock(timeout=20, heartbeat=60):
        pass

def given_up():
    def wait():
        with refused, luna.slot(1).lock(timeout=1e-4):
            pass

    with luna.slot(1):
        in_thread(wait).join()

def several():
    with luna.lock_all([luna.slot(1), luna.slot(2)], timeout=20):
        pass

def claims():
    for timeout in (0, 20):
        with luna.claim("cluster-1", timeout=timeout):
            pass
    with refused, luna.claim("no-such", timeout=0):
        pass

def claims_on_a_thread():
    in_thread(claims).join()

def tokens():
    luna.tokens()
    luna.find("keyring1")
    with luna.token("keyring1").lock():
        pass

def failures():
    for function in ("CA_LockClusteredSlot", "CA_UnlockClusteredSlot"):
        cluster.fault(function, 0x30, times=1)
        with refused, luna.slot(1):
            pass
    with luna.slot(1):
        pass

def in_tasks():
    async def enter(slot_id):
        async with luna.slot(slot_id).lock():
            pass
        async with luna.claim("cluster-1"):
            pass
        with refused:
            async with luna.slot(slot_id).lock(timeout=1e-4):
                await asyncio.sleep(0)

    async def main():
        await asyncio.gather(*(enter(1 + index % 2) for index in range(4)))

    loop.run_until_complete(main())

def used():
    gc.collect()
    return mallinfo().uordblks, sys.getallocatedblocks()

logging.getLogger("luna_ext").setLevel(logging.CRITICAL + 1)
cluster.switch("log", "off")
for use in (
    another_library, closed_while_it_holds, opened_anew, on_a_thread, timed, given_up, several, claims,
    claims_on_a_thread, tokens, failures, in_tasks,
):
    for _ in range(70):
        use()
    sizes = [used()]
    for _ in range(6):
        for _ in range(50):
            use()
        sizes.append(used())
    # A cache grows now and then; what is lost with each use is lost in all periods.
    heap, blocks = ([after - before for before, after in zip(each, each[1:])] for each in zip(*sizes))
    if min(heap) >= 16 * 50 or min(blocks) >= 50:
        print(use.__name__, heap, blocks)
loop.close()
luna.close()
"""


@HEAP
def test_no_use_leaves_anything_in_the_heap(succeed):
    # What the allocator keeps for itself would count as used.
    exact = {"MALLOC_ARENA_MAX": "1", "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0"}
    assert succeed(USES, options=(), **exact) == []


def test_a_child_that_a_finalizer_forks_in_a_worker_waits_for_a_lock(succeed):
    """The worker was asking for it in the parent."""
    body = """
        import gc

        slot = luna.slot(1)
        make = luna_ext.DeviceError.__init__

        def hold(held):
            with slot:
                held.set()
                while "1 waiting" not in repr(slot):
                    time.sleep(0.01)

        def wait_in_child():
            held = threading.Event()
            threading.Thread(target=hold, args=(held,)).start()
            assert held.wait(20)
            with slot:
                print("locked", flush=True)

        class Garbage:
            def __init__(self):
                self.me = self

            def __del__(self):
                child = os.fork()
                if child:
                    os.waitpid(child, 0)
                    return
                try:
                    wait_in_child()
                finally:
                    os._exit(0)

        def collect(*arguments, **options):
            gc.collect()
            make(*arguments, **options)

        luna_ext.DeviceError.__init__ = collect
        cluster.fault("CA_LockClusteredSlot", 0x30, times=1)
        gc.disable()
        Garbage()
        try:
            slot.acquire(timeout=20)
        except luna_ext.DeviceError:
            print("refused", flush=True)
    """
    assert succeed(body, options=MAY_FORK) == ["locked", "refused"]
