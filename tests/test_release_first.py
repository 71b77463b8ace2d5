"""The end of a block begins the release before anything else: nothing that raises can come before it.

A signal that is pending when a block ends is handled, by Python, at the first chance. If that comes
before the release has begun, a handler that raises leaves the lock set for good.
"""

import asyncio
import ctypes
import importlib.util
import inspect
import json
import logging
import os
import signal
from functools import partial

import pytest
from support import UNLOCK, wait_until

ASYNC_FORMS = [
    "lock",
    "timed-lock",
    "heartbeat",
    "token.lock",
    "lock_all",
    "claim",
    "timed-claim",
    "claim-heartbeat",
]
FORMS = ["slot", "token", *ASYNC_FORMS]


def make(luna, form):
    return {
        "slot": lambda: luna.slot(1),
        "lock": lambda: luna.slot(1).lock(),
        "timed-lock": lambda: luna.slot(1).lock(timeout=20),
        "heartbeat": lambda: luna.slot(1).lock(heartbeat=60),
        "token": lambda: luna.token("keyring1"),
        "token.lock": lambda: luna.token("keyring1").lock(timeout=20),
        "lock_all": lambda: luna.lock_all([luna.slot(1)]),
        "claim": lambda: luna.claim("cluster-1"),
        "timed-claim": lambda: luna.claim("cluster-1", timeout=20),
        "claim-heartbeat": lambda: luna.claim("cluster-1", heartbeat=60),
    }[form]()


class Stop(BaseException):
    """What a signal handler of these tests raises."""


class LastWord:
    """`LastWord(number).signal` brings a signal in and is but one operation of C, an attribute: Python
    has no chance to handle it before the next call has come to its end.
    """

    # The argument that ctypes passes on for the object itself; C's raise() does not look at it.
    _as_parameter_ = 0

    def __init_subclass__(cls, *, number):
        cls.signal = property(partial(getattr(ctypes.PyDLL(None), "raise"), number))


class LastAlarm(LastWord, number=signal.SIGALRM):
    pass


class LastInterrupt(LastWord, number=signal.SIGINT):
    pass


def unlock_calls(cluster):
    return sum(entry.function == UNLOCK for entry in cluster.log())


def held_by_us(cluster):
    return [token.slot_id for token in cluster.tokens() if token.owner == os.getpid()]


def wait_until_free(cluster):
    wait_until(lambda: not held_by_us(cluster))


@pytest.fixture
def on_alarm():
    """Have a function called at SIGALRM."""
    previous = signal.getsignal(signal.SIGALRM)
    yield partial(signal.signal, signal.SIGALRM)
    signal.signal(signal.SIGALRM, previous)


def no_records():
    """No DEBUG records are wanted, and the logger knows it."""
    logging.getLogger("luna_ext").isEnabledFor(logging.DEBUG)


def debug_records():
    logging.getLogger("luna_ext").setLevel(logging.DEBUG)


def empty_caches():
    """A change of any logger's level has all loggers forget what they know."""
    logging.getLogger("another").setLevel(logging.INFO)


WAYS = {"nothing told": no_records, "DEBUG": debug_records, "caches emptied": empty_caches}


@pytest.mark.signals
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("way", WAYS)
def test_a_signal_in_the_last_operation_of_a_block_finds_the_lock_released(
    luna, cluster, on_alarm, way, form
):
    unlocked = []

    def stop(number, frame):
        unlocked.append(unlock_calls(cluster))
        raise Stop

    on_alarm(stop)
    last = LastAlarm()
    for turn in range(1, 4):
        with pytest.raises(Stop), make(luna, form):
            WAYS[way]()
            last.signal  # noqa: B018
        assert unlocked == list(range(1, turn + 1))
        assert held_by_us(cluster) == []


@pytest.mark.signals
@pytest.mark.parametrize("way", WAYS)
def test_a_signal_before_release_finds_the_lock_released(luna, cluster, on_alarm, way):
    def stop(number, frame):
        assert unlock_calls(cluster) == 1
        raise Stop

    on_alarm(stop)
    last = LastAlarm()
    slot = luna.slot(1)
    release = slot.release
    slot.acquire()
    WAYS[way]()
    with pytest.raises(Stop):
        # The signal comes with the argument, and is seen when release() returns.
        release(*(last.signal or ()))
    assert held_by_us(cluster) == []


# ---- in event loops ----


def in_asyncio(main):
    asyncio.run(main())


def in_uvloop(main):
    import uvloop

    uvloop.run(main())


def in_a_bare_loop(main):
    """As asyncio.run(), but what is raised leaves the loop with its tasks as they are."""
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(main())
    finally:
        loop.close()


LOOPS = {"asyncio": in_asyncio, "uvloop": in_uvloop, "a bare loop": in_a_bare_loop}


@pytest.mark.signals
@pytest.mark.parametrize("form", ASYNC_FORMS)
@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_a_signal_in_the_last_operation_of_an_async_block_finds_the_release_begun(
    luna, cluster, on_alarm, loop, form, error
):
    if loop == "uvloop" and importlib.util.find_spec("uvloop") is None:
        pytest.skip("there is no uvloop for this Python")
    locked = []

    def stop(number, frame):
        locked.append(any(slot.locked() for slot in luna.slots()))
        raise error

    async def main():
        async with make(luna, form):
            debug_records()
            LastAlarm().signal  # noqa: B018

    on_alarm(stop)
    for _ in range(3):
        with pytest.raises(error):
            LOOPS[loop](main)
        wait_until_free(cluster)
    assert locked == [False] * 3


@pytest.mark.signals
@pytest.mark.parametrize("form", ASYNC_FORMS)
def test_ctrl_c_in_the_last_operation_of_an_async_block_cancels_a_task_that_has_left_it(
    luna, cluster, form
):
    """asyncio.run() turns Ctrl-C into a cancellation, which reaches the task while it awaits the unlock."""
    cluster.latency(0.05, UNLOCK)
    left = []

    async def main():
        try:
            async with make(luna, form):
                LastInterrupt().signal  # noqa: B018
        finally:
            left.append(any(slot.locked() for slot in luna.slots()))

    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            asyncio.run(main())
        wait_until_free(cluster)
    assert left == [False] * 3


# ---- what runs between the call and the release ----

# Each Python function that begins between the end of a block and its release is noted in `early`: a
# signal handler, or what raises, could come in there as well.
PROFILED = """
import asyncio, contextlib, json, logging, threading

events, early, seen = [], [], set()
armed = False

def audit(event, arguments):
    if event.startswith("luna_ext."):
        events.append(event)

def profile(frame, event, argument):
    global armed
    if event == "call" and armed and frame.f_code.co_name not in ("profile", "arm"):
        seen.add(frame.f_code.co_name)
        if any(each.locked() for each in slots):
            early.append(frame.f_code.co_name)
        else:
            armed = False

class Arm:
    "An attribute, so that nothing is called on the way from here to the end of the block."
    @property
    def now(self):
        global armed
        logging.getLogger("another").setLevel(level)
        armed = True

sys.addaudithook(audit)
log = logging.getLogger("luna_ext")
log.addHandler(logging.NullHandler())
log.propagate = False
slots = luna.slots()
arm = Arm()
def block(form):
    with make(luna, form):
        arm.now

def release(form):
    slot.acquire()
    call = slot.release
    arm.now
    call()

async def async_block(form):
    async with make(luna, form):
        arm.now

def loop(form):
    asyncio.run(async_block(form))

def use(function, form, name):
    global armed
    sys.setprofile(profile)
    try:
        function(form)
    finally:
        sys.setprofile(None)
    armed = False
    row = [name, form, sorted(set(early)), "luna_ext.unlock" in events, sorted(seen)]
    print(json.dumps(row, separators=(",", ":")))
    early.clear(), events.clear(), seen.clear()

def use_all(name):
    use(release, "slot", name)
    for form in FORMS:
        use(block, form, name)
        if form not in ("slot", "token"):
            use(loop, form, name + "-async")

for level in (logging.DEBUG, logging.INFO):
    log.setLevel(level)
    use_all("main")
    in_thread(use_all, "thread").join()
luna.close()
"""


def test_no_python_runs_between_the_end_of_a_block_and_the_begin_of_its_release(cluster, run):
    """With DEBUG on or off, an audit hook, and loggers that have forgotten their levels."""
    forms = f"FORMS = {FORMS}\n{inspect.getsource(make)}"
    done = run(forms + PROFILED, options=("-X", "dev"))
    assert (done.returncode, done.stderr) == (0, ""), done
    rows = [json.loads(line) for line in done.words]
    assert len(rows) == 2 * 2 * (1 + len(FORMS) + len(ASYNC_FORMS))
    for name, form, early, audited, seen in rows:
        assert early == [], (name, form)
        # Else the profile function would have had nothing to see.
        assert audited, (name, form)
        assert seen, (name, form)


@pytest.mark.parametrize("beside", ["another lock", "a claim under way"])
def test_no_collection_begins_between_the_end_of_a_block_and_its_unlock(cluster, succeed, beside):
    """The library looks through all slots meanwhile: for its own session, or for a doubt."""
    body = f"""
import gc
early = []
def look(phase, info):
    owner = cluster.tokens()[slot.slot_id - 1].owner
    if phase == "start" and owner == os.getpid() and not slot.locked():
        early.append(phase)

if {beside!r} == "another lock":
    claim = luna.claim("cluster-1")
    slot = claim.__enter__().slot
    end = lambda: claim.__exit__(None, None, None)
    other = luna.slot(slot.slot_id % 8 + 1)
    other.acquire()
else:
    # So that the kind of the device is wanted.
    cluster.latency(1, "CA_GetUnassignedSlot")
    slot = luna.slot(1)
    slot.acquire()
    claiming = in_thread(lambda: luna.claim("cluster-1").__enter__())
    wait_until_inside("CA_GetUnassignedSlot")
    end = slot.release
luna.slots()
gc.callbacks.append(look)
gc.set_threshold(1)
kept = [[] for _ in range(100)]
end()
gc.set_threshold(0)
print(early, flush=True)
os._exit(0)
"""
    assert succeed(body) == ["[]"]
