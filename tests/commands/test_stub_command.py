"""stub: the stand-in from the shell."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest
from support import DEVICE_ERROR, LOCK, logged

import luna_ext
from luna_ext.stub import STATE_VARIABLE, Cluster, library_path


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


def test_env_prints_again_what_create_has_printed(command, state, tmp_path, monkeypatch):
    module = tmp_path / "a module.so"
    module.touch()
    created = command("stub", "create", "--state", state, "--backend", module).stdout
    assert command("stub", "env", "--state", state, "--backend", module).stdout == created
    assert "LUNA_STUB_BACKEND" not in command("stub", "env", "--state", state).stdout
    monkeypatch.setenv("LUNA_STUB_STATE", str(state))
    monkeypatch.setenv("LUNA_STUB_BACKEND", str(module))
    assert command("stub", "env").stdout == created


def test_create_leaves_what_is_there(command, state):
    state.write_text("something else")
    done = command("stub", "create", "--state", state)
    assert done.returncode == 1
    assert done.said == [
        f"luna-ext: {state} is there already, and is no cluster of the stand-in; give --state another file"
    ]
    assert state.read_text() == "something else"


def test_what_is_advised_of_a_state_file_helps_as_it_is_written(command, state, tmp_path):
    def advised(*words):
        (line,) = command("stub", *words, "--state", state).said
        _, name, *rest = shlex.split(re.search("`(.*)`", line)[1])
        assert name == "stub"
        assert command(name, *rest).returncode == 0

    advised("status")
    assert Cluster(state).cluster_id == "cluster-1"
    advised("create")
    assert not state.exists()
    done = command("stub", "status", "--state", "")
    assert done.returncode == 2
    assert "LUNA_STUB_STATE'): it is empty" in done.said[0]


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


def test_a_fault_that_strikes_by_chance(command, luna):
    def struck(seed):
        chance = ("--probability", 0.5, "--seed", seed)
        assert command("stub", "fault", LOCK, "CKR_DEVICE_ERROR", *chance).returncode == 0
        for _ in range(40):
            try:
                luna.slot(1).acquire()
                luna.slot(1).release()
                yield False
            except luna_ext.DeviceError:
                yield True

    first, again, another = ([*struck(seed)] for seed in (7, 7, 8))
    assert 5 < sum(first) < 35
    assert again == first != another


def test_a_fault_that_is_taken_away(command):
    command("stub", "fault", "CA_LockClusteredSlot", "CKR_BUSY")
    command("stub", "fault", "CA_LockClusteredSlot", "CKR_BUSY", "--times", 0)
    assert command("lock", "--slot", 1, "--timeout", 1, "--", "true").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["C_Nothing", "0x30"], "there is no such C_ or CA_ function: 'C_Nothing'"),
        (["C_Login", "CKR_NOTHING"], "'CKR_NOTHING' is no return code"),
        (["C_Login", "-1"], "-1 is no return code: a CK_RV is 0 to "),
    ],
)
def test_a_fault_that_cannot_be(command, arguments, says):
    done = command("stub", "fault", "--times", 1, "--", *arguments)
    assert done.returncode == 2
    (line,) = done.said
    assert says in line


def test_latency(command, cluster, luna):
    def durations():
        luna.slot(1).acquire()
        luna.slot(1).release()
        return logged(cluster, LOCK)[-1].duration, logged(cluster, "CA_UnlockClusteredSlot")[
            -1
        ].duration

    assert command("stub", "latency", 0.03, LOCK, "--up-to", 0.04, "--seed", 5).returncode == 0
    assert command("stub", "latency", 0.03, LOCK, "--after").returncode == 0
    lock, unlock = durations()
    assert lock > 0.06 > unlock
    assert command("stub", "latency", 0.03).returncode == 0
    assert min(durations()) > 0.03
    done = command("stub", "latency", 2, "--up-to", 1)
    assert done.returncode == 2
    assert done.said == ["luna-ext: --up-to is not less than seconds, as 1.0 is"]


def test_a_process_is_disconnected_or_initialised_anew(command, cluster, luna):
    for name, code in (("reinitialise", 0), ("disconnect", DEVICE_ERROR)):
        with pytest.raises(luna_ext.LockLostError), luna.slot(1):
            assert command("stub", name, os.getpid()).returncode == 0
            luna.slot(1).ensure_held()
        assert logged(cluster, "C_GetTokenInfo")[-1].rv == code
    luna.reconnect()
    done = command("stub", "disconnect", 1)
    assert done.returncode == 1
    assert done.said == [
        "luna-ext: process 1 has not initialised the stand-in on this cluster; `luna-ext stub log` shows "
        "which processes have"
    ]


def test_log(command, cluster, luna):
    with luna.slot(2):
        pass
    calls = json.loads(command("stub", "log", "--json").stdout)
    assert calls == [{**call._asdict(), "rv_name": call.rv_name} for call in cluster.log()]
    assert {call["pid"] for call in calls} == {os.getpid()}

    head, row = command("stub", "log", "--last", 1).stdout.splitlines()
    assert head.split()[:4] == ["number", "function", "slot", "result"]
    number, function, slot_id, rv, _, _, pid, thread = row.split()
    last = cluster.log()[-1]
    assert (int(number), int(pid), int(thread)) == (last.number, last.pid, last.thread_id)
    assert (function, slot_id, rv) == ("CA_UnlockClusteredSlot", "2", "CKR_OK")


def test_log_of_a_call_that_has_not_returned(command, cluster, luna, hold_elsewhere):
    hold_elsewhere(3)
    assert not luna.slot(3).acquire(timeout=0.01)
    (row,) = [
        line
        for line in command("stub", "log").stdout.splitlines()
        if LOCK in line and str(os.getpid()) in line
    ]
    assert row.split()[3:5] == ["-", "-"]


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
    assert (
        "no switch 'authentication' with a value 'none'; `luna-ext stub switch --help` says" in line
    )
    assert command("stub", "pin-lengths", 9, 8).returncode == 2


@pytest.mark.parametrize("on", ["pipe", "terminal"])
def test_exports_of_a_path_with_commands_for_a_terminal(command, terminal, tmp_path, on):
    state = tmp_path / "it's 100% c\\a\x1b[31m\n\u202e"
    if on == "pipe":
        exports = command("stub", "create", "--state", state).stdout
    else:
        screen = terminal("stub", "create", "--state", state)
        screen.expect(pexpect.EOF)
        exports = screen.before.replace("\r", "")
        assert "\x1b" not in exports
        assert "\u202e" not in exports
    for shell in ("sh", "bash"):
        program = f'{exports}test -f "$LUNA_STUB_STATE"'
        assert subprocess.run([shell, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("disconnect", os.getpid()),
        ("reinitialise", os.getpid()),
        ("fault", LOCK, "CKR_BUSY"),
        ("latency", 1),
        ("pin-lengths", 4, 64),
        ("set-pins", 50),
        ("switch", "contention", "error"),
        ("unlock-keyring", 50),
    ],
    ids=lambda arguments: arguments[0],
)
def test_the_option_names_the_cluster_and_not_the_environment(
    command, cluster, tmp_path, arguments
):
    """Its slots are others, and this process works on it."""
    before = Path(cluster.path).read_bytes()
    with Cluster(tmp_path / "named", first_slot=50) as named, named.library():
        environment = {**os.environ, STATE_VARIABLE: cluster.path}
        done = command("stub", *arguments, "--state", named.path, env=environment)
    assert (done.returncode, done.said) == (0, [])
    assert Path(cluster.path).read_bytes() == before


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
            f"luna-ext: there is no state file {state}; `luna-ext stub create --state "
            f"{shlex.quote(str(state))}` makes one"
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
