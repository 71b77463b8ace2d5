"""probe: it finds out what the stand-in's switches say."""

import itertools
import os
import re
import signal

import pexpect
import pytest
from support import LOCK, wait_until

from luna_ext.info import CLUSTER_FUNCTIONS

CONTENTION, RELOCK, UNLOCK = "lock_by_other", "lock_by_holder", "unlock_by_other"
APPLICATION, KILL, DELAY = "one_application", "free_after_kill", "delays_other_calls"
CLAIM, SETTING = "claim_of_held", "setting"


def answer(is_answered, rv_name):
    return {"answer": is_answered, "rv_name": rv_name}


GRANTED, REFUSED = answer("granted", "CKR_OK"), answer("error", "CKR_DEVICE_ERROR")

ANSWERS = {
    ("contention", "wait"): (CONTENTION, answer("waits", "CKR_OK")),
    ("contention", "error"): (CONTENTION, REFUSED),
    ("relock", "granted"): (RELOCK, GRANTED),
    ("relock", "wait"): (RELOCK, answer("waits", None)),
    ("relock", "error"): (RELOCK, REFUSED),
    ("unlock_owner", "unchecked"): (UNLOCK, answer("unlocked", "CKR_OK")),
    ("unlock_owner", "checked"): (UNLOCK, answer("refused", "CKR_DEVICE_ERROR")),
}


@pytest.fixture
def probe(command, locked, cluster, read_json):
    """The findings; the slot is unlocked afterwards, and no process is left."""

    def run(*options):
        done = command("probe", "--slot", 3, "--patience", 0.3, "--json", *options)
        assert (done.returncode, done.said) == (0, [])
        assert locked() == {}
        pids = {call.pid for call in cluster.log()} - {os.getpid()}
        assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)
        used = {call.slot_id for call in cluster.log() if call.function.startswith("CA_")}
        assert used == {3} or "--cluster" in options
        return read_json("probe", done)

    return run


@pytest.mark.parametrize(
    "values",
    [*itertools.product(["wait", "error"], ["granted", "wait", "error"], ["unchecked", "checked"])],
    ids=",".join,
)
def test_each_switch_is_found_out(probe, cluster, values):
    expected = {}
    for name, value in zip(["contention", "relock", "unlock_owner"], values, strict=True):
        cluster.switch(name, value)
        question, said = ANSWERS[name, value]
        expected[question] = said
    found = probe()
    assert {question: found[question] for question in expected} == expected
    contention, relock, unlock_owner = values
    known = unlock_owner == "checked" or contention != relock
    assert found[APPLICATION] == {"answer": "no" if known else "unknown", "application_id": []}
    assert found[KILL]["seconds"] < 5
    if contention == "wait":
        assert found[DELAY]["answer"] == "no"
        assert found[DELAY]["seconds"] < 1
        assert found[SETTING] == {"contention": "block"}
    else:
        assert found[DELAY] == {"answer": "not_asked", "seconds": None}
        assert found[SETTING] == {"contention": "poll"}
    assert found[CLAIM] == answer("not_asked", None)


@pytest.mark.parametrize("unlock_owner", ["unchecked", "checked"])
@pytest.mark.parametrize("contention", ["wait", "error"])
def test_processes_that_are_one_application(probe, cluster, contention, unlock_owner):
    cluster.switch("application", "shared")
    cluster.switch("contention", contention)
    cluster.switch("unlock_owner", unlock_owner)
    found = probe()
    assert found[CONTENTION] == found[RELOCK] == GRANTED
    assert found[APPLICATION]["answer"] == "yes"
    assert found[SETTING] == {"contention": None}


def test_what_is_said_of_processes_that_are_one_application(command, cluster):
    cluster.switch("application", "shared")
    lines = command("probe", "--slot", 3, "--patience", 0.3).stdout.splitlines()
    assert lines[0].endswith(": is granted as well: THIS LOCK DOES NOT EXCLUDE OTHER PROCESSES.")
    assert "it looks so: a lock that one holds is GRANTED TO THE OTHER AT ONCE" in lines[3]
    assert lines[-1].endswith(": none: this lock does not exclude other processes.")


@pytest.mark.parametrize("relock", ["wait", "error"])
def test_processes_that_are_one_application_which_is_granted_a_lock_once(probe, cluster, relock):
    cluster.switch("application", "shared")
    cluster.switch("contention", relock)
    cluster.switch("relock", relock)
    assert probe()[APPLICATION]["answer"] == "unknown"


def test_claims(probe, cluster):
    cluster.switch("regrant", "off")
    assert probe("--cluster", "cluster-1")[CLAIM] == answer("no", None)


def test_claims_of_what_their_own_process_holds(probe, cluster):
    cluster.switch("regrant", "on")
    assert probe("--cluster", "cluster-1")[CLAIM] == answer("yes", None)


def test_findings_for_people(command):
    done = command("probe", "--slot", 3, "--patience", 0.3)
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines == [
        "A lock call while another process holds the lock: waits, and answers CKR_OK once the lock is "
        "unlocked.",
        "A second lock call of the process that holds it: is granted.",
        "An unlock call by a process that does not hold it: takes the lock off: THE OWNER IS NOT CHECKED.",
        "Are two processes one application to the device: no: a lock call of the process that holds the "
        "lock is answered in another way.",
        lines[4],
        lines[5],
        "Can a claim return a slot that its process holds: not asked; --cluster ID asks it, and claims "
        "other slots for that.",
        "The setting for this device: --contention block (the default).",
    ]
    assert re.fullmatch(r"How long until a killed holder's lock is free: \d\.\d+ s\.", lines[4])
    assert re.fullmatch(
        r"Does a lock call that waits delay its process's other calls: no: C_GetTokenInfo takes "
        r"\d+\.\d ms meanwhile\.",
        lines[5],
    )


def test_a_device_that_is_busy_needs_no_setting(probe, cluster):
    """An answer that is asked again in any case."""
    cluster.switch("contention", "error")
    # Each process has its own C_Initialize; the second lock call is the other process's.
    cluster.fault("CA_LockClusteredSlot", 0x80000041, every=2, times=1)
    found = probe()
    assert found[CONTENTION] == answer("error", "CKR_AGAIN")
    assert found[SETTING] == {"contention": "block"}


def test_a_slot_that_is_locked(command, hold_elsewhere, cluster, locked):
    cluster.switch("contention", "error")
    holder = hold_elsewhere(3)
    done = command("probe", "--slot", 3)
    assert done.returncode == 1
    (line,) = done.said
    assert "slot 3 cannot be locked: CA_LockClusteredSlot answers CKR_DEVICE_ERROR" in line
    assert locked() == {3: holder.pid}


def test_a_slot_that_is_not_there(command):
    done = command("probe", "--slot", 99)
    assert done.returncode == 1
    (line,) = done.said
    assert "CKR_SLOT_ID_INVALID" in line


# ---- what is not the stand-in ----


@pytest.fixture
def device(old_client, monkeypatch):
    library = old_client(*CLUSTER_FUNCTIONS)
    monkeypatch.setenv("LUNA_EXT_LIBRARY", str(library))
    return library


@pytest.mark.parametrize("answer", ["n", ""])
def test_a_real_device_is_not_touched_without_a_yes(terminal, device, cluster, answer):
    screen = terminal("probe", "--slot", 3)
    screen.expect_exact("Lock and unlock slot 3 ('keyring3') of a real device? [y/N]: ")
    screen.sendline(answer)
    screen.expect(pexpect.EOF)
    screen.wait()
    assert screen.exitstatus != 0
    assert not any(call.function.startswith("CA_") for call in cluster.log())


def test_without_a_terminal_it_refuses(command, device, cluster):
    done = command("probe", "--slot", 3)
    assert done.returncode != 0
    assert not any(call.function.startswith("CA_") for call in cluster.log())


def test_a_real_device_is_probed_after_a_yes(terminal, command, device, cluster):
    screen = terminal("probe", "--slot", 3, "--patience", 0.3)
    screen.expect_exact("[y/N]: ")
    screen.sendline("y")
    screen.expect_exact("The setting for this device")
    screen.expect(pexpect.EOF)
    screen.wait()
    assert screen.exitstatus == 0
    assert command("probe", "--slot", 3, "--patience", 0.3, "--yes").returncode == 0
    used = {call.slot_id for call in cluster.log() if call.function.startswith("CA_")}
    assert used == {3}


@pytest.mark.parametrize("application", ["shared", "process"])
def test_the_application_id_of_the_configuration_is_named(
    command, device, cluster, monkeypatch, tmp_path, application, read_json
):
    monkeypatch.setenv("ChrystokiConfigurationPath", str(tmp_path))
    (tmp_path / "Chrystoki.conf").write_text("Misc = {\n  AppIdMajor = 1;\n  AppIdMinor = 2;\n}\n")
    cluster.switch("application", application)
    options = ("--slot", 3, "--patience", 0.3, "--yes")
    if application == "shared":
        sets = (
            f"; {tmp_path / 'Chrystoki.conf'} sets AppIdMajor = 1, AppIdMinor = 2 for all processes"
        )
        assert f"{sets}.\n" in command("probe", *options).stdout
        return
    done = command("probe", *options, "--json")
    assert read_json("probe", done)[APPLICATION] == {
        "answer": "no",
        "application_id": [
            {"entry": "AppIdMajor", "value": "1"},
            {"entry": "AppIdMinor", "value": "2"},
        ],
    }


def test_ctrl_c_leaves_no_process_and_no_lock(terminal, cluster, locked):
    screen = terminal("probe", "--slot", 3)
    # The other process waits for the lock then.
    wait_until(lambda: any((call.function, call.rv) == (LOCK, None) for call in cluster.log()))
    screen.sendintr()
    screen.expect_exact("luna-ext: interrupted")
    assert "Traceback" not in screen.before
    screen.expect(pexpect.EOF)
    screen.wait()
    assert screen.exitstatus == 130
    assert locked() == {}


def test_a_cluster_that_there_is_not_is_named(command):
    done = command("probe", "--slot", 3, "--patience", 0.3, "--cluster", "no-such-cluster")
    assert done.stdout.splitlines()[-2].endswith(
        ": CA_GetUnassignedSlot answers CKR_ARGUMENTS_BAD: is 'no-such-cluster' the cluster's ID? The "
        "cluster's administrator has it."
    )


def test_a_client_library_without_the_functions(command, old_client):
    library = old_client("CA_GetSlotId", "CA_UnlockClusteredSlot")
    done = command("--library", library, "probe", "--slot", 3, "--yes")
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"luna-ext: {library} has no CA_LockClusteredSlot, so ")


def test_a_process_of_the_probe_that_is_killed(start, cluster, locked):
    """As a client library that crashes ends it."""
    probe = start("probe", "--slot", 3, "--patience", 60)
    wait_until(lambda: any((call.function, call.rv) == (LOCK, None) for call in cluster.log()))
    (waits,) = {call.pid for call in cluster.log() if (call.function, call.rv) == (LOCK, None)}
    os.kill(waits, signal.SIGKILL)
    _, said = probe.communicate(timeout=30)
    assert probe.returncode == 1
    assert said.splitlines()[1:] == [
        "luna-ext: a process that calls the client library has ended with -9; run `luna-ext doctor`"
    ]
    wait_until(lambda: locked() == {})
