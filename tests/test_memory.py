"""If no memory is left when a claim comes back, nothing stays locked."""

import subprocess
import sys

import pytest
from support import nothing_is_locked

from luna_ext.stub import STATE_VARIABLE

pytest.importorskip(
    "_testcapi", reason="CPython's own tests, which can let allocations fail, are not installed"
)

# The first allocation of the claim's thread is for the table of slots.
OUT_OF_MEMORY = """
import ctypes, os, threading
import _testcapi, luna_ext
from luna_ext.stub import STATE_VARIABLE, Cluster

cluster = Cluster(os.environ[STATE_VARIABLE])
ended = threading.Lock()
ended.acquire()
outcome = []

with cluster.library() as luna:
    def claim():
        try:
            with luna.claim("cluster-1", timeout=20):
                outcome.append("claimed")
        except MemoryError:
            outcome.append("no memory")
        finally:
            ended.release()

    # CPython crashes where a thread that begins finds no memory for its thread state. So the worker begins
    # with this claim; and if it is not idle yet at the next one, which then begins a worker more, that has
    # its thread state before the memory ends.
    first, following = ctypes.pythonapi.PyInterpreterState_ThreadHead, ctypes.pythonapi.PyThreadState_Next
    for function in (first, following):
        function.argtypes, function.restype = [ctypes.c_void_p], ctypes.c_void_p
    interpreter = ctypes.pythonapi.PyInterpreterState_Get
    interpreter.restype = ctypes.c_void_p

    def all_threads_have_begun():
        states, state = 0, first(interpreter())
        while state:
            states, state = states + 1, following(state)
        return states == len(os.listdir("/proc/self/task"))

    try:
        luna.claim("no such cluster", timeout=20).__enter__()
    except luna_ext.CryptokiError:
        pass
    cluster.latency(0.5, "CA_GetUnassignedSlot", after=True)
    threading.Thread(target=claim).start()
    while not any(
        call.function == "CA_GetUnassignedSlot" and call.rv is None for call in cluster.log()
    ):
        pass
    while not all_threads_have_begun():
        pass
    wait, fail, end = ended.acquire, _testcapi.set_nomemory, _testcapi.remove_mem_hooks
    fail(0, 1)
    wait()
    end()
    print(*outcome)
"""


@pytest.mark.luna_cluster(keyrings=1)
def test_a_claim_that_finds_no_memory_leaves_nothing_locked(cluster, monkeypatch):
    monkeypatch.setenv(STATE_VARIABLE, cluster.path)
    done = subprocess.run(
        [sys.executable, "-c", OUT_OF_MEMORY],
        capture_output=True,
        text=True,
        timeout=45,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "no memory\n"), done.stderr
    assert nothing_is_locked(cluster)
    unlocks = [call for call in cluster.log() if call.function == "CA_UnlockClusteredSlot"]
    assert len(unlocks) == 1
