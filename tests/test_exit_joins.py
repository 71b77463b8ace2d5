"""The interpreter's exit, with handlers that join threads which use the library in a loop."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

SECONDS = 2
# For the interpreter's own end, and for a machine that is busy, with a dozen programs side by side.
MARGIN = 3

# A thread that works until it is told to stop, and the handler that tells it so and joins it, as servers
# have it. One that is registered before luna_ext is imported runs after luna_ext's own.
STOPPING = """
import atexit, sys, threading, time
stopping = threading.Event()
thread = None

def stop():
    stopping.set()
    if thread is not None:
        thread.join()
        print("joined", flush=True)

if "before" in sys.argv[1]:
    atexit.register(stop)
"""
LOOPS = {
    "with slot": """
        with luna.slot(1):
            pass
    """,
    "lock": """
        with luna.slot(1).lock(timeout=5):
            pass
    """,
    "a held lock": """
        with luna.slot(1):
            stopping.wait()
    """,
    "claim": """
        with luna.claim("cluster-1", timeout=5):
            pass
    """,
    "tokens": """
        luna.tokens()
    """,
    "in a loop": """
        asyncio.run(enter())
    """,
}
WORKING = """
import asyncio, logging, os
import luna_ext
from luna_ext.stub import STATE_VARIABLE, Cluster
logging.getLogger("luna_ext").addHandler(logging.NullHandler())
cluster = Cluster(os.environ[STATE_VARIABLE])
luna = cluster.library()
if "after" in sys.argv[1]:
    atexit.register(stop)
began = threading.Event()

async def enter():
    async with luna.slot(1).lock(timeout=5):
        pass

def step():
{step}

def work():
    if "{errors}" == "end it":
        while not stopping.is_set():
            began.set()
            step()
    while not stopping.is_set():
        began.set()
        try:
            step()
        except luna_ext.LunaError:
            pass

threading.excepthook = lambda arguments: None
thread = threading.Thread(target=work, daemon=True)
thread.start()
began.wait()
time.sleep(0.1)
print(time.monotonic(), flush=True)
"""


ERRORS = ["end it", "are passed over"]


@pytest.fixture
def exit_of(cluster):
    """Run programs side by side; of each, how many handlers said that they had joined, and how many
    seconds its exit took.
    """

    def run(programs, registered):
        started = [
            subprocess.Popen(
                [sys.executable, "-c", program, registered],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for program in programs
        ]
        # Each in a thread, for its end is to be seen when it comes.
        with ThreadPoolExecutor(len(started)) as pool:
            return list(pool.map(ended, started))

    return run


def ended(process):
    out, err = process.communicate(timeout=60)
    now = time.monotonic()
    assert process.returncode == 0, (out, err)
    began, *joined = out.split()
    assert set(joined) <= {"joined"}, (out, err)
    return len(joined), now - float(began)


@pytest.mark.parametrize("registered", ["before", "after", "before and after"])
def test_exit_takes_2_seconds_whichever_handler_joins_whom(exit_of, registered):
    programs = [
        STOPPING + WORKING.format(step=step, errors=errors)
        for step in LOOPS.values()
        for errors in ERRORS
    ]
    for joined, seconds in exit_of(programs, registered):
        assert joined == len(registered.split(" and "))
        assert seconds < SECONDS + MARGIN


@pytest.mark.parametrize("function", ["CA_LockClusteredSlot", "CA_UnlockClusteredSlot"])
def test_exit_takes_2_seconds_though_the_joined_threads_device_call_is_slow(
    exit_of, cluster, function
):
    """The joined thread comes back when the exit's time is up, or its call is answered."""
    latency = 1.5
    cluster.latency(latency, function)
    program = STOPPING + WORKING.format(step=LOOPS["with slot"], errors="end it")
    ((joined, seconds),) = exit_of([program], "before")
    assert joined == 1
    assert seconds < SECONDS + latency + MARGIN
