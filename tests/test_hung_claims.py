"""Claims that are slow, hang or were given up: only the caller of each is delayed."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from support import ON_BOTH

BENCHMARK = Path(__file__).parent.parent / "benchmarks" / "claims_beside_locks.py"

# A claim that is given up, and will not be answered before the process ends.
HUNG = """
import asyncio
cluster.latency(3600, "CA_GetUnassignedSlot")

def give_up():
    try:
        with luna.claim("cluster-1", timeout=0.1):
            os._exit(99)
    except luna_ext.LockTimeoutError:
        pass

def give_up_in_a_task():
    async def enter():
        async with luna.claim("cluster-1", timeout=0.1):
            os._exit(99)
    try:
        asyncio.run(enter())
    except luna_ext.LockTimeoutError:
        pass

def left():
    return [token.slot_id for token in cluster.tokens() if token.owner == os.getpid()]

def took(function):
    begin = time.monotonic()
    function()
    return time.monotonic() - begin

def twenty_blocks():
    for slot_id in range(1, 21):
        with luna.slot(slot_id):
            pass

def a_task():
    async def enter():
        async with slot.lock(timeout=20):
            pass
    asyncio.run(enter())

def end(*said):
    print(*said, flush=True)
    os._exit(0)
"""
GIVEN_UP = pytest.mark.parametrize("given_up", ["give_up()", "give_up_in_a_task()"])
MANY = pytest.mark.luna_cluster(keyrings=21)


@ON_BOTH
@MANY
@GIVEN_UP
@pytest.mark.parametrize("blocks", ["twenty_blocks", "a_task"])
def test_a_hung_claim_keeps_no_block_from_its_end(cluster, succeed, given_up, blocks):
    body = f"{HUNG}\n{given_up}\nassert took({blocks}) < 2\nend(left())"
    assert succeed(body) == ["[]"]


@ON_BOTH
@MANY
@pytest.mark.parametrize("blocks", ["twenty_blocks", "a_task"])
def test_a_claim_that_hangs_and_is_waited_for_keeps_no_block_from_its_end(cluster, succeed, blocks):
    body = f"""{HUNG}
in_thread(luna.claim("cluster-1").__enter__)
in_thread(luna.claim("cluster-1", timeout=3000).__enter__)
wait_until_inside("CA_GetUnassignedSlot", 2)
assert took({blocks}) < 2
end(left())
"""
    assert succeed(body) == ["[]"]


@ON_BOTH
@MANY
@GIVEN_UP
def test_a_hung_claim_keeps_no_slot_from_being_locked_again(cluster, succeed, given_up):
    body = f"{HUNG}\n{given_up}\ntwenty_blocks()\nend(slot.acquire(timeout=10), left())"
    assert succeed(body) == ["True", "[1]"]


@ON_BOTH
@GIVEN_UP
@pytest.mark.parametrize("lost", [False, True])
def test_a_failed_unlock_beside_a_hung_claim_is_an_error_of_its_own_block(
    cluster, succeed, given_up, lost
):
    body = f"""{HUNG}
{given_up}
cluster.fault("CA_UnlockClusteredSlot", 0x30)
for function in ("C_GetTokenInfo", "C_GetSessionInfo"):
    cluster.fault(function, 0x30, times={-1 if lost else 0})
import logging
logging.getLogger("luna_ext").addHandler(logging.NullHandler())
try:
    with slot:
        pass
except luna_ext.LunaError as error:
    end(type(error).__name__)
"""
    assert succeed(body) == ["LockLostError" if lost else "LockReleaseError"]


@ON_BOTH
@GIVEN_UP
def test_closing_beside_a_hung_claim_takes_the_locks_off(cluster, run, given_up):
    body = f"""{HUNG}
import warnings
warnings.simplefilter("ignore", ResourceWarning)
{given_up}
other = cluster.library()
slot.acquire()
assert took(luna.close) < 2
end(left(), other.slot(1).acquire(timeout=10))
"""
    done = run(body)
    assert (done.returncode, done.words) == (0, ["[]", "True"])
    (line,) = done.stderr.splitlines()
    assert line.startswith("slot 1 was still locked")


@ON_BOTH
def test_sixteen_hung_claims_starve_no_other(cluster, succeed):
    """Neither those that are given up nor those that are waited for."""
    body = f"""{HUNG}
for _ in range(16):
    in_thread(luna.claim("cluster-1", timeout=3000).__enter__)
wait_until_inside("CA_GetUnassignedSlot", 16)
for _ in range(17):
    give_up()
cluster.latency(0, "CA_GetUnassignedSlot")
def claim():
    with luna.claim("cluster-1", timeout=20) as token:
        token.ensure_held()
async def claim_in_a_task():
    async with luna.claim("cluster-1", timeout=20) as token:
        token.ensure_held()
assert took(claim) < 5
assert took(lambda: asyncio.run(claim_in_a_task())) < 5
end(left())
"""
    assert succeed(body) == ["[]"]


def test_a_claim_that_is_queued_behind_stuck_ones_is_served_each_time(cluster, succeed):
    """Also after a while in which none was queued."""
    body = f"""{HUNG}
# Sixteen are made at once; who looks after the stuck ones has one more made.
for _ in range(17):
    in_thread(luna.claim("cluster-1", timeout=3000).__enter__)
wait_until_inside("CA_GetUnassignedSlot", 17)
# No event tells that he has seen that no more are queued, and is gone.
time.sleep(0.6)
cluster.latency(0, "CA_GetUnassignedSlot")
with luna.claim("cluster-1", timeout=20) as token:
    token.ensure_held()
end(left())
"""
    assert succeed(body) == ["[]"]


def test_the_thread_that_looks_after_stuck_claims_ends_with_them(cluster):
    """They are counted when luna_ext has ended those that have nothing to do, before a fork."""
    body = """
        import asyncio, contextlib, os, time

        counts = []
        os.register_at_fork(before=lambda: counts.append(len(os.listdir("/proc/self/task"))))
        import luna_ext
        from luna_ext.stub import STATE_VARIABLE, Cluster

        async def give_up():
            with contextlib.suppress(luna_ext.LockTimeoutError):
                async with luna.claim("cluster-1", timeout=0.3):
                    pass

        async def main():
            # Sixteen are made at once, the others are queued.
            await asyncio.gather(*[give_up() for _ in range(20)])

        cluster = Cluster(os.environ[STATE_VARIABLE])
        cluster.latency(0.5, "CA_GetUnassignedSlot")
        with cluster.library() as luna:
            asyncio.run(main())
            deadline = time.monotonic() + 30
            while 1 not in counts:
                assert time.monotonic() < deadline, counts
                child = os.fork()
                if child == 0:
                    os._exit(0)
                os.waitpid(child, 0)
    """
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(body)]
    subprocess.run(command, check=True, timeout=60)


def test_closing_one_library_fails_no_queued_claim_of_another(cluster, succeed):
    body = f"""{HUNG}
other = cluster.library()

async def claim():
    async with luna.claim("cluster-1", timeout=1):
        pass

async def main():
    # Sixteen are made at once, the others are queued.
    claims = [asyncio.ensure_future(claim()) for _ in range(30)]
    while sum(entry.function == "CA_GetUnassignedSlot" for entry in cluster.log()) < 16:
        await asyncio.sleep(0)
    other.close()
    ended = await asyncio.gather(*claims, return_exceptions=True)
    end(*{{type(error).__name__ for error in ended}})

asyncio.run(main())
"""
    # Not with -X dev, in which asyncio tells of whatever takes long.
    assert succeed(body, options=("-W", "error")) == ["LockTimeoutError"]


def test_claims_that_have_come_back_late_let_no_more_be_made_at_a_time(cluster, succeed):
    """While they were stuck, others could be made beside them; afterwards no more than before."""
    body = f"""{HUNG}
def calls():
    return [entry for entry in cluster.log() if entry.function == "CA_GetUnassignedSlot"]

async def claim(seconds):
    try:
        async with luna.claim("cluster-1", timeout=seconds):
            os._exit(99)
    except luna_ext.LockTimeoutError:
        pass

async def give_up(count, seconds):
    await asyncio.gather(*[claim(seconds) for _ in range(count)])

cluster.latency(3, "CA_GetUnassignedSlot")
for _ in range(2):
    asyncio.run(give_up(16, 0.5))
wait_until(lambda: len(calls()) == 32 and all(entry.rv is not None for entry in calls()))
wait_until(lambda: not left())
cluster.latency(3600, "CA_GetUnassignedSlot")
asyncio.run(give_up(64, 1))
# Sixteen, and now and then one more beside those that are stuck.
end(len(calls()) - 32 < 32)
"""
    # Not with -X dev, in which asyncio tells of whatever takes long.
    assert succeed(body, options=("-W", "error")) == ["True"]


@ON_BOTH
def test_claims_that_come_back_late_give_back_what_they_got(cluster, succeed):
    body = f"""{HUNG}
cluster.latency(0.5, "CA_GetUnassignedSlot", after=True)
cluster.latency(0, "CA_GetUnassignedSlot")
for _ in range(3):
    give_up()
    give_up_in_a_task()
assert left()
def called(function):
    return sum(entry.function == function for entry in cluster.log())
# On a slow machine a claim may be given up before its call has begun.
claims = called("CA_GetUnassignedSlot")
wait_until(lambda: not left() and called("CA_UnlockClusteredSlot") == claims)
assert 0 < claims == called("CA_GetUnassignedSlot") <= 6
end("done")
"""
    assert succeed(body) == ["done"]


@pytest.mark.skipif(not BENCHMARK.exists(), reason="a tree without the benchmarks")
@pytest.mark.limit(3)
def test_claims_leave_the_locks_beside_them_their_pace():
    """With margins for a busy machine; benchmarks/claims_beside_locks.py measures exactly."""

    def measured():
        command = [sys.executable, str(BENCHMARK), "--json", "--seconds", "1.5"]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=100)
        return json.loads(done.stdout)

    # Other tests run beside it, and may have the processor just then: one of three times counts.
    all_ratios = []
    for _ in range(3):
        ratios = measured()
        all_ratios.append(ratios)
        if ratios["beside"] > 0.5 and ratios["progress"] > 0.05 and ratios["pause"] < 1:
            return
    pytest.fail(f"{all_ratios}")
