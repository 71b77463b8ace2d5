"""The timeout of `token.lock()` covers all of the entry: the lock, and the look at the label."""

import asyncio
import os
import time

import pytest
from support import LOCK, TOKEN_INFO, UNLOCK, have_returned, wait_until

import luna_ext

TIMEOUT = 0.3


def in_thread(lock):
    with lock:
        return "entered"


def in_task(lock):
    async def main():
        async with lock:
            return "entered"

    return asyncio.run(main())


WAYS = pytest.mark.parametrize("enter", [in_thread, in_task])
# A device whose grants count keeps the lock if one unlock call is missing; one that does not check who
# unlocks takes off the lock of the next holder if there is one too many.
GRANTS = pytest.mark.parametrize("grants", ["once", "counted"])


def calls_are_answered(cluster):
    wait_until(lambda: have_returned(cluster.log()))


def comes_off_once(cluster):
    """A lock call that was given up may not have had its effect yet, nor the unlock have begun."""

    def answered(function):
        return sum((entry.function, entry.rv) == (function, 0) for entry in cluster.log())

    wait_until(lambda: answered(UNLOCK))
    calls_are_answered(cluster)
    assert answered(LOCK) == answered(UNLOCK) == 1
    assert not any(token.owner == os.getpid() for token in cluster.tokens())


@WAYS
@GRANTS
@pytest.mark.parametrize("after", [False, True], ids=["before its effect", "after its effect"])
@pytest.mark.parametrize("function", [LOCK, TOKEN_INFO])
def test_a_token_is_entered_in_time_or_not_at_all(luna, cluster, enter, grants, function, after):
    """Whichever of its calls is slow; and whatever comes late is given back, once."""
    cluster.switch("grants", grants)
    token = luna.token("keyring1")
    cluster.latency(1.2, function, after=after)
    begin = time.monotonic()
    with pytest.raises(luna_ext.LockTimeoutError, match=f"{TIMEOUT:g} s") as caught:
        enter(token.lock(timeout=TIMEOUT))
    assert (caught.value.function, caught.value.timeout) == (function, TIMEOUT)
    assert TIMEOUT <= time.monotonic() - begin < 1
    comes_off_once(cluster)
    assert not token.slot.locked()
    cluster.latency(0, function, after=after)
    assert enter(token.lock(timeout=10)) == "entered"


@WAYS
@GRANTS
def test_both_calls_of_an_entry_share_the_timeout(luna, cluster, enter, grants):
    """Neither is longer than it alone."""
    cluster.switch("grants", grants)
    token = luna.token("keyring1")
    cluster.latency(0.25, LOCK)
    cluster.latency(0.75, TOKEN_INFO)
    begin = time.monotonic()
    with pytest.raises(luna_ext.LockTimeoutError):
        enter(token.lock(timeout=0.5))
    assert 0.5 <= time.monotonic() - begin < 0.95
    comes_off_once(cluster)


@WAYS
def test_a_label_that_is_read_in_time_is_enough(luna, cluster, enter):
    cluster.latency(0.1, LOCK)
    cluster.latency(0.1, TOKEN_INFO)
    assert enter(luna.token("keyring1").lock(timeout=10)) == "entered"
    comes_off_once(cluster)


@WAYS
@pytest.mark.parametrize("error", [0x30, 0x3, 0xE0])
def test_a_label_that_cannot_be_read_gives_the_lock_back_once(luna, cluster, enter, error):
    token = luna.token("keyring1")
    cluster.fault(TOKEN_INFO, error)
    with pytest.raises(luna_ext.CryptokiError):
        enter(token.lock(timeout=10))
    comes_off_once(cluster)


@WAYS
def test_a_timeout_of_0_covers_the_label_as_well(luna, cluster, enter):
    """It waits for an answer of the device, for a quarter of a second, and for no holder."""
    token = luna.token("keyring1")
    cluster.latency(1.2, TOKEN_INFO)
    begin = time.monotonic()
    with pytest.raises(luna_ext.LockTimeoutError):
        enter(token.lock(timeout=0))
    assert time.monotonic() - begin < 1
    comes_off_once(cluster)


def test_a_cancelled_look_at_the_label_gives_the_lock_back_once(luna, cluster):
    token = luna.token("keyring1")
    cluster.latency(0.5, TOKEN_INFO)

    async def main():
        async with asyncio.timeout(0.2):
            async with token.lock(timeout=10):
                pytest.fail("entered")

    with pytest.raises(TimeoutError):
        asyncio.run(main())
    comes_off_once(cluster)
