"""stub: the stand-in from the shell."""

import json
import subprocess
import sys

import pytest

import luna_ext
from luna_ext.stub import Cluster, library_path


@pytest.fixture
def state(tmp_path, monkeypatch):
    """Where there is no cluster yet; the environment does not name one either."""
    monkeypatch.delenv("LUNA_STUB_STATE")
    monkeypatch.delenv("LUNA_EXT_LIBRARY")
    return tmp_path / "it's a cluster"


def test_create_prints_what_a_shell_needs(command, state):
    options = ("--keyrings", 3, "--label", "x-", "--cluster-id", "c-9", "--first-slot", 50)
    done = command("stub", "create", "--state", state, *options)
    assert done.returncode == 0
    program = f'{done.stdout}\n"$1" -m luna_ext tokens --json'
    tokens = json.loads(
        subprocess.run(
            ["sh", "-c", program, "sh", sys.executable], capture_output=True, check=True
        ).stdout
    )
    assert [token["slot_id"] for token in tokens] == [50, 51, 52]
    assert [token["label"] for token in tokens] == ["x-1", "x-2", "x-3"]
    assert Cluster(state).cluster_id == "c-9"
    assert library_path() in done.stdout


def test_create_names_a_backend(command, state, tmp_path):
    module = tmp_path / "a module.so"
    assert command("stub", "create", "--state", state, "--backend", module).returncode == 2
    module.touch()
    done = command("stub", "create", "--state", state, "--backend", module)
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == f"export LUNA_STUB_BACKEND='{module}'"


def test_create_leaves_what_is_there(command, state):
    state.write_text("something else")
    done = command("stub", "create", "--state", state)
    assert done.returncode == 1
    assert done.said == [f"luna-ext: {state} is there already; `luna-ext stub destroy` removes it"]
    assert state.read_text() == "something else"


def test_status(command, cluster, hold_elsewhere):
    holder = hold_elsewhere(2)
    done = command("stub", "status")
    assert done.returncode == 0
    first, _, *rows = done.stdout.splitlines()
    assert first == f"cluster cluster-1 in {cluster.path}"
    assert rows[0].split() == ["1", "keyring1", "keyring1", "-"]
    assert rows[1].split() == ["2", "keyring2", "keyring2", str(holder.pid)]

    described = json.loads(command("stub", "status", "--json").stdout)
    assert described["cluster_id"] == "cluster-1"
    assert described["tokens"][1] == {
        "slot_id": 2,
        "label": "keyring2",
        "original_label": "keyring2",
        "owner": holder.pid,
    }


@pytest.mark.parametrize("rv", ["CKR_DEVICE_ERROR", "ckr_device_error", "0x30", "48"])
def test_fault(command, rv):
    assert command("stub", "fault", "CA_LockClusteredSlot", rv, "--times", 1).returncode == 0
    assert command("lock", "--slot", 1, "--", "true").returncode == 1
    assert command("lock", "--slot", 1, "--", "true").returncode == 0


def test_a_fault_that_is_taken_away(command):
    command("stub", "fault", "CA_LockClusteredSlot", "CKR_BUSY")
    command("stub", "fault", "CA_LockClusteredSlot", "CKR_BUSY", "--times", 0)
    assert command("lock", "--slot", 1, "--timeout", 1, "--", "true").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["C_Nothing", "0x30"], "there is no such C_ or CA_ function: 'C_Nothing'"),
        (["C_Login", "CKR_NOTHING"], "'CKR_NOTHING' is no return code"),
        (["C_Login", "-1"], "rv is a whole number from 0"),
    ],
)
def test_a_fault_that_cannot_be(command, arguments, says):
    done = command("stub", "fault", "--times", 1, "--", *arguments)
    assert done.returncode == 2
    (line,) = done.said
    assert says in line


def flags_of(command, slot_id):
    described = json.loads(command("tokens", "--json").stdout)
    (flags,) = [token["flags"] for token in described if token["slot_id"] == slot_id]
    return {flag for flag in flags if "pin" in flag or "initialized" in flag}


def test_create_with_a_password(command, state, monkeypatch):
    assert command("stub", "create", "--state", state, "--password", "short").returncode == 2
    assert not state.exists()
    assert command("stub", "create", "--state", state, "--password", "password-1").returncode == 0
    monkeypatch.setenv("LUNA_STUB_STATE", str(state))
    monkeypatch.setenv("LUNA_EXT_LIBRARY", library_path())
    assert flags_of(command, 8) == {"token_initialized", "user_pin_initialized"}


def test_pins_of_one_keyring(command, cluster):
    pins = ("--so-pin", "officer-1", "--user-pin", "user-pin-1")
    assert command("stub", "set-pins", 2, *pins).returncode == 0
    assert flags_of(command, 1) == set()
    assert flags_of(command, 2) == {"token_initialized", "user_pin_initialized"}
    assert command("stub", "set-pins", 2, "--so-pin", "officer-1").returncode == 0
    assert flags_of(command, 2) == {"token_initialized"}
    assert command("stub", "set-pins", 2).returncode == 0
    assert flags_of(command, 2) == set()


def test_a_keyring_is_unlocked(command, cluster):
    assert command("stub", "unlock-keyring", 2).returncode == 0
    done = command("stub", "unlock-keyring", 9)
    assert done.returncode == 2
    assert done.said == ["luna-ext: the cluster has no slot 9"]


def test_a_switch_and_the_lengths_of_pins(command, cluster, luna):
    assert command("stub", "switch", "authentication", "ped").returncode == 0
    assert command("stub", "pin-lengths", 4, 64).returncode == 0
    info = luna.slot(1).token_info
    assert luna_ext.TokenFlag.PROTECTED_AUTHENTICATION_PATH in info.flags
    assert (info.min_pin_length, info.max_pin_length) == (4, 64)

    done = command("stub", "switch", "authentication", "none")
    assert done.returncode == 2
    (line,) = done.said
    assert "no switch 'authentication' with a value 'none'" in line
    assert command("stub", "pin-lengths", 9, 8).returncode == 2


def test_destroy(command, state):
    command("stub", "create", "--state", state)
    of_backend = state.with_name(f"{state.name}.tokens")
    of_backend.mkdir()
    assert command("stub", "destroy", "--state", state).returncode == 0
    assert not state.exists()
    assert not of_backend.exists()
    for name in ("destroy", "status"):
        done = command("stub", name, "--state", state)
        assert done.returncode == 1
        assert done.said == [
            f"luna-ext: there is no state file {state}; `luna-ext stub create` makes one"
        ]


def test_destroy_leaves_what_is_no_cluster(command, state):
    state.write_text("something else")
    done = command("stub", "destroy", "--state", state)
    assert done.returncode == 1
    (line,) = done.said
    assert "not a state file of this version of the stand-in" in line
    assert state.read_text() == "something else"


def test_no_cluster_is_named(command, state):
    done = command("stub", "status")
    assert done.returncode == 2
    (line,) = done.said
    assert "Missing option '--state'" in line
