"""Ctrl-C and SIGTERM while a call of the client library does not return, and nothing is locked."""

import signal

import pytest
from support import PATIENCE, assert_stays, wait_until

from luna_ext.commands import screen

CALLS = [
    ("C_GetSlotList", "slots"),
    ("C_GetTokenInfo", "tokens"),
    ("CA_GetSlotId", "find keyring1"),
    ("CA_GetSlotId", "lock --label keyring1 -- true"),
    ("CA_GetSlotId", "assign cluster-1 new"),
    ("C_GetTokenInfo", "provision cluster-1 --count 1 --prefix new- --dry-run"),
    ("C_GetTokenInfo", "provision cluster-1 --count 1 --prefix new- --guard 1"),
    ("C_GetTokenInfo", "watch --json"),
]


def hang(cluster, function):
    """From now on, for longer than the test waits."""
    cluster.latency(10 * PATIENCE, function)


def is_called(cluster, function):
    return any(call.function == function for call in cluster.log())


@pytest.mark.parametrize(("function", "line"), CALLS)
def test_a_call_that_hangs_is_not_waited_for(start, cluster, function, line):
    hang(cluster, function)
    process = start(*line.split())
    wait_until(lambda: is_called(cluster, function))
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert stderr.splitlines()[-1] == "luna-ext: interrupted"


def test_nor_is_one_that_opens_the_library(start, cluster):
    hang(cluster, "C_Initialize")
    process = start("lock", "--slot", 1, "--", "true")
    # The call is not logged before it has found the cluster. This line comes before it.
    assert "is the stand-in" in process.stderr.readline()
    assert_stays(lambda: process.poll() is None)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 143


def test_the_screen_is_given_back(terminal, cluster):
    hang(cluster, "C_GetTokenInfo")
    watch = terminal("watch")
    wait_until(lambda: is_called(cluster, "C_GetTokenInfo"))
    watch.sendintr()
    assert watch.read().encode().count(screen.RESTORE) == 1
    watch.close()
    assert watch.exitstatus == 130
