"""An unlock that fails: what its error says is true, and what it advises helps."""

import os

import pytest
from support import UNLOCK

import luna_ext

FORMS = {
    "slot": "with luna.slot(1): pass",
    "release": "slot.acquire(); slot.release()",
    "lock": "with luna.slot(1).lock(timeout=20): pass",
    "token": "with luna.token('keyring1'): pass",
    "claim": "with luna.claim('cluster-1'): pass",
    "async": "asyncio.run(enter(luna.slot(1).lock(timeout=20)))",
    "async claim": "asyncio.run(enter(luna.claim('cluster-1', timeout=20)))",
}
FAILING = """
import asyncio, logging
logging.getLogger("luna_ext").addHandler(logging.NullHandler())

async def enter(block):
    async with block:
        pass

def owner():
    return cluster.tokens()[0].owner

def use():
    {use}

cluster.switch("relock", {relock!r})
cluster.fault("CA_UnlockClusteredSlot", 0x30, times={times}, lost_reply={lost_reply})
others = [cluster.library() for _ in range(2)]
try:
    use()
except luna_ext.LockReleaseError as error:
    said = str(error)
    assert error.slot_id == 1 and error.function == "CA_UnlockClusteredSlot"
cluster.fault("CA_UnlockClusteredSlot", 0x30, times=0)
assert not slot.locked()
"""
# The advice, word for word: "Library.reconnect() does that, and drops all its locks".
ADVICE = """
assert "Library.reconnect() does that, and drops all its locks" in said, said
luna.reconnect()
assert owner() is None
assert slot.acquire(timeout=10)
slot.ensure_held()
assert owner() == os.getpid()
slot.release()
use()
assert owner() is None
for library in (luna, *others):
    library.close()
"""
ONE = pytest.mark.luna_cluster(keyrings=1)


def failing(form, relock, lost_reply=False, times=1):
    return FAILING.format(use=FORMS[form], relock=relock, lost_reply=lost_reply, times=times)


@ONE
@pytest.mark.parametrize("relock", ["granted", "wait", "error"])
@pytest.mark.parametrize("form", FORMS)
def test_to_reconnect_makes_the_slot_usable(cluster, succeed, form, relock):
    assert succeed(failing(form, relock) + "assert owner() == os.getpid()" + ADVICE) == []


@ONE
@pytest.mark.parametrize("relock", ["granted", "wait", "error"])
def test_an_unlock_whose_answer_was_lost_may_have_taken_the_lock_off(cluster, succeed, relock):
    """The error says "may"; the slot can be used at once."""
    body = f"""
assert owner() is None
assert "may stay set" in said
assert slot.acquire(timeout=10)
assert owner() == os.getpid()
slot.release()
{ADVICE}
"""
    assert succeed(failing("slot", relock, lost_reply=True) + body) == []


@ONE
def test_where_a_second_lock_call_is_granted_the_slot_is_usable_at_once(cluster, succeed):
    body = """
assert owner() == os.getpid()
with slot.lock(timeout=10):
    slot.ensure_held()
assert owner() is None
for library in (luna, *others):
    library.close()
"""
    assert succeed(failing("slot", "granted") + body) == []


REFUSED = """
assert owner() == os.getpid()
try:
    with slot.lock(timeout=0.3):
        os._exit(99)
except (luna_ext.LockTimeoutError, luna_ext.DeviceError):
    pass
assert not slot.locked()
"""


@ONE
def test_where_a_second_lock_call_is_refused_the_advice_still_helps_after_one(cluster, succeed):
    assert succeed(failing("slot", "error") + REFUSED + ADVICE) == []


@ONE
def test_where_a_second_lock_call_waits_a_lock_is_refused_in_time(cluster, succeed):
    """The lock that is still set does not count as held. The next lock call waits as long as it is set."""
    assert succeed(failing("slot", "wait") + REFUSED + "os._exit(0)") == []


@ONE
@pytest.mark.parametrize("relock", ["wait", "error"])
def test_an_unlock_that_fails_for_long_says_so_at_each_end(cluster, luna, relock):
    cluster.switch("relock", relock)
    cluster.fault(UNLOCK, 0x30)
    with pytest.raises(luna_ext.LockReleaseError) as caught, luna.slot(1):
        pass
    assert "may stay set" in str(caught.value)
    assert cluster.tokens()[0].owner == os.getpid()
