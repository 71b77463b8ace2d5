"""Greenlets of gevent and of eventlet: each is a holder of its own, and none stops the others.

All greenlets of a thread stand still while one of them waits in C. So one that would have to wait gets an
error at once, which says what to do instead. Each program runs in a process of its own, because monkey
patching cannot be undone.
"""

import importlib.util
import subprocess
import sys
import textwrap
import threading

import pytest
from support import LOCK, NO_MORE_THREADS

LIBRARIES = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            importlib.util.find_spec(name) is None, reason=f"there is no {name} for this Python"
        ),
    )
    for name in ("gevent", "eventlet")
]
PREAMBLE = """
import contextlib, logging, os, re, subprocess, sys, time, warnings
# eventlet tells that it is in maintenance; both say so where they are patched late.
warnings.simplefilter("ignore")

if {library!r} == "gevent":
    import gevent, gevent.monkey
    patch, spawn, sleep = gevent.monkey.patch_all, gevent.spawn, gevent.sleep
    names = {{"gevent": gevent}}
    advice = re.compile(r"gevent\\.get_hub\\(\\)\\.threadpool\\.apply\\(function\\)")
    result = gevent.Greenlet.get
    in_pool = lambda function: gevent.get_hub().threadpool.apply(function)
else:
    import eventlet, eventlet.tpool
    patch, spawn, sleep = eventlet.monkey_patch, eventlet.spawn, eventlet.sleep
    names = {{"eventlet": eventlet}}
    advice = re.compile(r"eventlet\\.tpool\\.execute\\(function\\)")
    result = eventlet.greenthread.GreenThread.wait
    in_pool = eventlet.tpool.execute

if {patched!r} == "before":
    patch()
import luna_ext
from luna_ext.stub import STATE_VARIABLE, Cluster
if {patched!r} == "after":
    patch()
monotonic = time.monotonic
cluster = Cluster(os.environ[STATE_VARIABLE])
luna = cluster.library()
slot = luna.slot(1)
# The longest time in which another greenlet did not get its turn.
BOUND = 1.0
gaps = []

def tick():
    last = monotonic()
    while True:
        sleep(0.005)
        now = monotonic()
        gaps.append(now - last)
        last = now

def owner(slot_id=1):
    return cluster.tokens()[slot_id - 1].owner

def wait_until(condition):
    deadline = monotonic() + 20
    while not condition():
        assert monotonic() < deadline
        sleep(0.005)

def quick(function):
    begin = monotonic()
    try:
        return function()
    finally:
        assert monotonic() - begin < BOUND, monotonic() - begin

def refused(function):
    try:
        return function()
    except luna_ext.LunaError as error:
        return error

def enter(block):
    with block:
        return slot.locked()

def hold(seconds, what=None):
    with what or slot:
        sleep(seconds)
        slot.ensure_held()
    return "released"

WAYS = {{
    "with slot": lambda: enter(slot),
    "acquire": slot.acquire,
    "timed acquire": lambda: slot.acquire(timeout=5),
    "lock": lambda: enter(slot.lock()),
    "timed lock": lambda: enter(slot.lock(timeout=5)),
    "token": lambda: enter(token),
    "token.lock": lambda: enter(token.lock(timeout=5)),
}}
token = luna.token("keyring1")
ticker = spawn(tick)
sleep(0.05)
"""
END = """
sleep(0.02)
print("longest", max(gaps) < BOUND or max(gaps), flush=True)
os._exit(0)
"""


@pytest.fixture(params=["before", "after", "not"], ids=lambda patched: f"patched-{patched}")
def patched(request):
    """When the standard library was patched: before luna_ext was imported, after that, or not at all."""
    return request.param


@pytest.fixture(params=LIBRARIES)
def in_greenlets(request, cluster, patched):
    """Run a program; what it printed. No greenlet of it stops the others."""

    def run(body):
        preamble = PREAMBLE.format(library=request.param, patched=patched)
        done = subprocess.run(
            [sys.executable, "-c", preamble + textwrap.dedent(body) + END],
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.returncode == 0, done.stderr
        *words, longest, short = done.stdout.split()
        assert (longest, short) == ("longest", "True"), (done.stdout, done.stderr)
        return words

    return run


def test_a_greenlet_does_not_release_anothers_lock(in_greenlets):
    body = """
    holding = spawn(hold, 0.3)
    wait_until(slot.locked)
    def others():
        for way in (
            slot.release,
            slot.ensure_held,
            lambda: slot.__exit__(None, None, None),
            lambda: slot.lock().__exit__(None, None, None),
            lambda: token.__exit__(None, None, None),
        ):
            assert isinstance(quick(lambda: refused(way)), luna_ext.LockNotOwnedError)
        return owner() == os.getpid()
    assert others()
    assert result(spawn(others))
    print(result(holding))
    assert owner() is None
    """
    assert in_greenlets(body) == ["released"]


def test_a_greenlet_that_would_wait_for_another_is_told_of_the_pool_of_threads(in_greenlets):
    """At once, in every way to lock; and what the message advises works."""
    body = """
    holding = spawn(hold, 3)
    wait_until(slot.locked)
    def others():
        for way in WAYS.values():
            error = quick(lambda: refused(way))
            assert isinstance(error, luna_ext.LockReentryError), error
            assert advice.search(str(error)), error
            sleep(0.01)
        assert quick(lambda: slot.acquire(blocking=False)) is False
        assert isinstance(quick(lambda: refused(slot.lock(timeout=0).__enter__)), luna_ext.LunaError)
        return str(error)
    others()
    said = result(spawn(others))
    assert holding and slot.locked()
    function = lambda: enter(slot.lock(timeout=20))
    print(eval(advice.search(said).group(), {**names, "function": function}))
    function = lambda: enter(slot)
    print(eval(advice.search(said).group(), {**names, "function": function}))
    print(result(holding))
    assert owner() is None
    """
    assert in_greenlets(body) == ["True", "True", "released"]


def test_a_greenlet_that_would_wait_for_another_process_is_told_of_the_pool_of_threads(
    in_greenlets, hold_elsewhere
):
    holder = hold_elsewhere(1)
    timer = threading.Timer(8, holder.release)
    timer.start()
    body = """
    def others():
        for way in WAYS.values():
            error = quick(lambda: refused(way))
            assert isinstance(error, luna_ext.LunaError), error
            assert advice.search(str(error)), error
            sleep(0.01)
        assert quick(lambda: slot.acquire(blocking=False)) is False
        return str(error)
    others()
    said = result(spawn(others))
    assert not slot.locked()
    function = lambda: enter(slot)
    print(eval(advice.search(said).group(), {**names, "function": function}))
    wait_until(lambda: owner() is None)
    """
    assert in_greenlets(body) == ["True"]
    timer.join()


def test_a_device_that_hangs_does_not_stop_the_greenlets(in_greenlets, cluster):
    cluster.latency(1, "CA_LockClusteredSlot")
    cluster.latency(1, "CA_GetUnassignedSlot")
    body = """
    ways = {
        **WAYS,
        "claim": lambda: enter_claim(luna.claim("cluster-1")),
        "timed claim": lambda: enter_claim(luna.claim("cluster-1", timeout=5)),
    }
    def enter_claim(claim):
        with claim:
            return True
    for name, way in ways.items():
        error = quick(lambda: refused(way))
        assert isinstance(error, luna_ext.LunaError), (name, error)
        assert advice.search(str(error)), (name, error)
        sleep(0.01)
    # What was given up comes off, and by a thread of the pool all can be had.
    wait_until(lambda: all(each.owner is None for each in cluster.tokens()))
    for name, function in ways.items():
        if "acquire" not in name:
            assert eval(advice.search(str(error)).group(), {**names, "function": function})
    """
    assert in_greenlets(body) == []


@pytest.mark.parametrize("patched", ["not"], indirect=True)
def test_a_greenlet_that_would_wait_does_not_stop_those_of_another_thread_than_main(
    in_greenlets, hold_elsewhere
):
    hold_elsewhere(1)
    body = """
    import threading
    def others():
        for way in WAYS.values():
            error = quick(lambda: refused(way))
            assert isinstance(error, luna_ext.LunaError), error
            assert advice.search(str(error)), error
            sleep(0.01)
        print(type(error).__name__)

    def run():
        spawn(tick)
        sleep(0.05)
        result(spawn(others))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    wait_until(lambda: not thread.is_alive())
    assert not slot.locked()
    """
    assert in_greenlets(body) == ["LockReentryError"]


@pytest.mark.parametrize("patched", ["not"], indirect=True)
def test_a_greenlet_that_gets_no_thread_does_not_stop_the_others(in_greenlets, cluster):
    """A thread that waits without a limit would make the call itself."""
    cluster.latency(2, LOCK)
    body = f"""
    import threading
    {NO_MORE_THREADS}
    for way in ("with slot", "acquire", "lock"):
        try:
            quick(WAYS[way])
        except RuntimeError as error:
            print(type(error).__name__)
    assert owner() is None
    """
    assert in_greenlets(body) == ["RuntimeError"] * 3


def test_a_program_that_has_only_imported_greenlet_waits_as_others_do(succeed):
    """As packages do that may use it."""
    pytest.importorskip("greenlet")
    body = """
        import greenlet

        def hold(seconds):
            with slot:
                entered.set()
                wait_until(lambda: "1 waiting" in repr(slot))
                time.sleep(seconds)

        for lock in (slot, slot.lock(), slot.lock(timeout=20)):
            entered = threading.Event()
            in_thread(hold, 0.3)
            assert entered.wait(20)
            with lock:
                print(slot.locked())
    """
    assert succeed(body) == ["True"] * 3


def test_a_wait_for_a_loss_does_not_stop_the_greenlets(in_greenlets, cluster):
    body = """
    def wait():
        with slot:
            assert not slot.lost.wait(0)
            return refused(lambda: slot.lost.wait(30))

    error = quick(wait)
    assert isinstance(error, luna_ext.LockReentryError), error
    assert advice.search(str(error)), error
    """
    assert in_greenlets(body) == []


def test_a_label_that_takes_long_to_read_does_not_stop_the_greenlets(in_greenlets, cluster):
    cluster.latency(1, "C_GetTokenInfo")
    body = """
    for name in ("token", "token.lock"):
        error = quick(lambda: refused(WAYS[name]))
        assert isinstance(error, luna_ext.LunaError), (name, error)
        assert advice.search(str(error)), (name, error)
        assert not slot.locked()
        sleep(0.01)
    function = WAYS["token"]
    print(eval(advice.search(str(error)).group(), {**names, "function": function}))
    """
    assert in_greenlets(body) == ["True"]


def test_a_claim_that_waits_for_a_token_does_not_stop_the_greenlets(in_greenlets, cluster):
    cluster.fault("CA_GetUnassignedSlot", 0x6)
    body = """
    def enter_claim():
        with luna.claim("cluster-1", timeout=2):
            return True
    print(type(refused(lambda: result(spawn(enter_claim)))).__name__)
    """
    (end,) = in_greenlets(body)
    assert end in ("LockReentryError", "NoUnassignedTokenError")


def test_greenlets_that_find_a_slot_free_lock_it_by_turns(in_greenlets):
    body = """
    count = 0
    def work(number):
        global count
        own = luna.slot(1 + number % 8)
        for _ in range(20):
            while True:
                try:
                    with own:
                        before = count
                        sleep(0.001)
                        count += 1
                        own.ensure_held()
                    break
                except luna_ext.LockReentryError:
                    sleep(0.002)
    for each in [spawn(work, number) for number in range(16)]:
        result(each)
    print(count)
    assert not any(each.owner for each in cluster.tokens())
    """
    assert in_greenlets(body) == ["320"]


def test_greenlets_may_read_the_tokens_and_claim(in_greenlets):
    body = """
    def read():
        tokens = luna.tokens(workers=4)
        assert luna.find("keyring2") and luna.token("keyring3").info
        with luna.claim("cluster-1", timeout=5) as token:
            token.ensure_held()
            sleep(0.01)
        with luna.claim("cluster-1") as token:
            return len(tokens)
    print(*[result(each) for each in [spawn(read) for _ in range(5)]])
    print(read())
    """
    assert in_greenlets(body) == ["8"] * 6


def test_greenlets_may_provision(in_greenlets):
    body = """
    cluster.latency(0.05, "C_InitToken")
    labels = ["a", "b", "c"]
    done = spawn(lambda: luna_ext.provision(luna, "cluster-1", labels, so_pin="12345678", workers=2))
    print(*sorted(result(done).assigned), owner())
    """
    assert in_greenlets(body) == ["a", "b", "c", "None"]


def test_greenlets_that_end_with_a_lock_leave_it_to_no_other(in_greenlets):
    """Numbers of greenlets are not used again."""
    body = """
    result(spawn(slot.acquire))
    for _ in range(50):
        assert isinstance(result(spawn(refused, slot.release)), luna_ext.LockNotOwnedError)
    assert slot.locked()
    with warnings.catch_warnings():
        luna.close()
    print(owner())
    """
    assert in_greenlets(body) == ["None"]


def test_locks_of_threads_beside_greenlets_exclude_each_other(in_greenlets):
    body = """
    held = []
    def work():
        for _ in range(50):
            with slot.lock(timeout=20):
                held.append(1)
                assert len(held) == 1
                held.pop()
        return "done"
    print(*[result(each) for each in [spawn(in_pool, work) for _ in range(4)]])
    """
    assert in_greenlets(body) == ["done"] * 4
