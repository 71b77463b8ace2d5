"""Ctrl-C and SIGTERM while a call of the client library does not return, and nothing is locked."""

import os
import signal
import subprocess
import sys

import pytest
from support import (
    PATIENCE,
    assert_stays,
    but_for_the_warning,
    nothing_is_locked,
    of_session,
    wait_until,
)

from luna_ext.commands import screen

CALLS = [
    ("C_GetSlotList", "slots"),
    ("C_GetTokenInfo", "tokens"),
    ("CA_GetSlotId", "find keyring1"),
    ("CA_GetSlotId", "lock --label keyring1 -- true"),
    ("CA_GetSlotId", "assign cluster-1 new"),
    ("CA_GetSlotId", "provision cluster-1 --count 1 --prefix new- --dry-run"),
    ("C_GetTokenInfo", "provision cluster-1 --count 1 --prefix new- --guard 1"),
    ("C_GetSlotList", "watch --json"),
    ("C_GetTokenInfo", "probe --slot 1"),
    ("CA_LockClusteredSlot", "bench --slot 1 --threads 2"),
    ("CA_UnlockClusteredSlot", "bench --slot 1 --threads 2 --seconds 0.1"),
    # The command has ended, so that the lock's end is that of the process.
    ("CA_UnlockClusteredSlot", "lock --slot 1 -- true"),
    ("CA_UnlockClusteredSlot", "claim cluster-1 -- true"),
    *(
        ("C_Finalize", line)
        for line in (
            "slots",
            "tokens",
            "find keyring1",
            "lock --slot 1 -- true",
            "claim cluster-1 -- true",
            "probe --slot 1",
            "bench --slot 1 --seconds 0.1",
            "watch",
            "doctor",
        )
    ),
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
    (told,) = but_for_the_warning(stderr)
    assert told == "luna-ext: interrupted"


def test_watch_ends_as_ever_though_a_token_cannot_be_read(start, cluster):
    hang(cluster, "C_GetTokenInfo")
    process = start("watch", "--json")
    wait_until(lambda: is_called(cluster, "C_GetTokenInfo"))
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert but_for_the_warning(stderr) == []


@pytest.mark.parametrize("function", ["CA_UnlockClusteredSlot", "C_Finalize"])
@pytest.mark.parametrize("number", ["SIGTERM", "SIGHUP"])
def test_signals_of_others_end_a_command_that_has_run(start, cluster, function, number):
    hang(cluster, function)
    process = start("lock", "--slot", 1, "--", "true")
    wait_until(lambda: is_called(cluster, function))
    process.send_signal(getattr(signal, number))
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + getattr(signal, number)
    assert nothing_is_locked(cluster)


def test_what_was_assigned_is_told_though_the_library_does_not_close(start, cluster, pin_file):
    hang(cluster, "C_Finalize")
    process = start("assign", "cluster-1", "new", "--so-pin-file", pin_file())
    assert process.stdout.readline().startswith("assigned new in slot ")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 143


@pytest.mark.parametrize(
    ("module", "function", "words"),
    [
        ("assigning", "_free", ["assign", "cluster-1", "new"]),
        ("listing", "_in_json", ["tokens"]),
    ],
)
def test_a_signal_just_before_the_library_closes_ends_that_as_well(
    cluster, module, function, words
):
    hang(cluster, "C_Finalize")
    program = (
        f"import os, signal, sys; from luna_ext.commands import cli, {module}; "
        f"{module}.{function} = lambda *of: os.kill(os.getpid(), signal.SIGINT); "
        f"sys.exit(cli.run({words}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stdout) == (130, "")
    assert but_for_the_warning(done.stderr) == ["luna-ext: interrupted"]


# ---- what starts processes, and makes clusters of its own ----


@pytest.mark.parametrize("whom", ["it alone", "all of its processes"])
@pytest.mark.parametrize(("number", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
@pytest.mark.parametrize("line", ["demo", "bench --seconds 60 --latency 10000", "probe --slot 1"])
def test_nothing_is_left(start, cluster, tmp_path, line, number, code, whom):
    """A terminal sends its signals to all of the command's processes."""
    directory = tmp_path / "temporary"
    directory.mkdir()
    cluster.latency(PATIENCE, "CA_LockClusteredSlot")
    environment = {**os.environ, "TMPDIR": str(directory)}
    process = start(*line.split(), start_new_session=True, env=environment)
    if line == "probe --slot 1":
        wait_until(lambda: is_called(cluster, "CA_LockClusteredSlot"))
    else:
        wait_until(lambda: list(directory.glob("luna_stub-*/cluster")))
    if line == "demo":
        # The two are there, though they may not have begun.
        wait_until(lambda: len(of_session(process.pid)) >= 3)
    send = os.kill if whom == "it alone" else os.killpg
    send(process.pid, getattr(signal, number))
    _, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == code
    said = but_for_the_warning(stderr)
    assert said == (["luna-ext: interrupted"] if number == "SIGINT" else [])
    wait_until(lambda: not of_session(process.pid))
    assert list(directory.glob("luna_stub-*")) == []


def test_a_process_of_the_demo_that_is_killed_is_told_of(start):
    process = start("demo", start_new_session=True)
    process.stdout.readline()
    wait_until(lambda: len(of_session(process.pid)) >= 4)
    # The latest.
    os.kill(max(of_session(process.pid)), signal.SIGKILL)
    _, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert stderr == "luna-ext: one of the two processes has ended with -9; run it again\n"


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
    hang(cluster, "C_GetSlotList")
    watch = terminal("watch")
    wait_until(lambda: is_called(cluster, "C_GetSlotList"))
    watch.sendintr()
    assert watch.read().encode().count(screen.RESTORE) == 1
    watch.close()
    assert watch.exitstatus == 130
