"""probe: it finds out what the stand-in's switches say."""

import itertools
import json
import os
import signal

import pexpect
import pytest
from support import LOCK, wait_until

from luna_ext.info import CLUSTER_FUNCTIONS

CONTENTION = "A lock call while another process holds the lock"
RELOCK = "A second lock call of the process that holds it"
UNLOCK = "An unlock call by a process that does not hold it"
APPLICATION = "Are two processes one application to the device"
KILL = "How long until a killed holder's lock is free"
DELAY = "Does a lock call that waits delay its process's other calls"
CLAIM = "Can a claim return a slot that its process holds"
SETTING = "The setting for this device"

ANSWERS = {
    ("contention", "wait"): (CONTENTION, "waits, and answers CKR_OK once the lock is unlocked"),
    ("contention", "error"): (CONTENTION, "answers CKR_DEVICE_ERROR"),
    ("relock", "granted"): (RELOCK, "is granted"),
    ("relock", "wait"): (RELOCK, "waits for the lock that its own process holds"),
    ("relock", "error"): (RELOCK, "answers CKR_DEVICE_ERROR"),
    ("unlock_owner", "unchecked"): (UNLOCK, "takes the lock off: THE OWNER IS NOT CHECKED"),
    ("unlock_owner", "checked"): (UNLOCK, "answers CKR_DEVICE_ERROR: the owner is checked"),
}


@pytest.fixture
def probe(command, locked, cluster):
    """The findings; the slot is unlocked afterwards, and no process is left."""

    def run(*options):
        done = command("probe", "--slot", 3, "--patience", 0.3, "--json", *options)
        assert (done.returncode, done.said) == (0, [])
        assert locked() == {}
        pids = {call.pid for call in cluster.log()} - {os.getpid()}
        assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)
        used = {call.slot_id for call in cluster.log() if call.function.startswith("CA_")}
        assert used == {3} or "--cluster" in options
        return json.loads(done.stdout)

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
        question, answer = ANSWERS[name, value]
        expected[question] = answer
    found = probe()
    assert {question: found[question] for question in expected} == expected
    contention, relock, unlock_owner = values
    if unlock_owner == "checked":
        apart = "no: only the process that holds a lock can take it off"
    elif contention != relock:
        apart = "no: a lock call of the process that holds the lock is answered in another way"
    else:
        apart = "it cannot be told: "
    assert found[APPLICATION].startswith(apart)
    assert float(found[KILL].removesuffix(" s")) < 5
    if values[0] == "wait":
        assert found[DELAY].startswith("no: C_GetTokenInfo takes ")
        assert found[SETTING] == 'contention="block" (the default)'
    else:
        assert found[DELAY] == "no lock call waits"
        assert found[SETTING] == 'contention="poll"'
    assert found[CLAIM].startswith("not asked")


@pytest.mark.parametrize("unlock_owner", ["unchecked", "checked"])
@pytest.mark.parametrize("contention", ["wait", "error"])
def test_processes_that_are_one_application(probe, cluster, contention, unlock_owner):
    cluster.switch("application", "shared")
    cluster.switch("contention", contention)
    cluster.switch("unlock_owner", unlock_owner)
    found = probe()
    assert found[CONTENTION] == "is granted as well: THIS LOCK DOES NOT EXCLUDE OTHER PROCESSES"
    assert found[RELOCK] == "is granted"
    assert found[APPLICATION].startswith(
        "it looks so: a lock that one holds is GRANTED TO THE OTHER AT ONCE"
    )
    assert found[SETTING] == "none: this lock does not exclude other processes"


@pytest.mark.parametrize("relock", ["wait", "error"])
def test_processes_that_are_one_application_which_is_granted_a_lock_once(probe, cluster, relock):
    cluster.switch("application", "shared")
    cluster.switch("contention", relock)
    cluster.switch("relock", relock)
    assert probe()[APPLICATION].startswith("it cannot be told: the device answers both processes")


def test_claims(probe, cluster):
    cluster.switch("regrant", "off")
    assert probe("--cluster", "cluster-1")[CLAIM] == (
        "no: 7 other slots were claimed, and then none was left or enough"
    )


def test_claims_of_what_their_own_process_holds(probe, cluster):
    cluster.switch("regrant", "on")
    assert probe("--cluster", "cluster-1")[CLAIM].startswith("yes: a claim has returned ")


def test_findings_for_people(command):
    done = command("probe", "--slot", 3, "--patience", 0.3)
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0] == f"{CONTENTION}: waits, and answers CKR_OK once the lock is unlocked."
    assert lines[-1] == f'{SETTING}: contention="block" (the default).'


def test_a_device_that_is_busy_needs_no_setting(command, cluster):
    """An answer that is asked again in any case."""
    cluster.switch("contention", "error")
    # Each process has its own C_Initialize; the second lock call is the other process's.
    cluster.fault("CA_LockClusteredSlot", 0x80000041, every=2, times=1)
    found = json.loads(command("probe", "--slot", 3, "--patience", 0.3, "--json").stdout)
    assert found[CONTENTION] == "answers CKR_AGAIN"
    assert found[SETTING].startswith('contention="block" (the default)')


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
    screen.expect_exact(SETTING)
    screen.expect(pexpect.EOF)
    screen.wait()
    assert screen.exitstatus == 0
    assert command("probe", "--slot", 3, "--patience", 0.3, "--yes").returncode == 0
    used = {call.slot_id for call in cluster.log() if call.function.startswith("CA_")}
    assert used == {3}


@pytest.mark.parametrize("application", ["shared", "process"])
def test_the_application_id_of_the_configuration_is_named(
    command, device, cluster, monkeypatch, tmp_path, application
):
    monkeypatch.setenv("ChrystokiConfigurationPath", str(tmp_path))
    (tmp_path / "Chrystoki.conf").write_text("Misc = {\n  AppIdMajor = 1;\n  AppIdMinor = 2;\n}\n")
    cluster.switch("application", application)
    done = command("probe", "--slot", 3, "--patience", 0.3, "--yes", "--json")
    said = json.loads(done.stdout)[APPLICATION]
    sets = f"; {tmp_path / 'Chrystoki.conf'} sets AppIdMajor = 1, AppIdMinor = 2 for all processes"
    assert said.endswith(sets) == (application == "shared")


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


def test_a_cluster_that_there_is_not_is_named(probe):
    answer = probe("--cluster", "no-such-cluster")[CLAIM]
    assert answer == (
        "CA_GetUnassignedSlot answers CKR_ARGUMENTS_BAD: is 'no-such-cluster' the cluster's ID? The "
        "cluster's administrator has it"
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
