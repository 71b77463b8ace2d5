"""slots, tokens, find."""

import ctypes
import json

import pytest
from support import DUAL_IDENTITY

from luna_ext.stub import library_path


def rows(done):
    """A table's lines, in words."""
    return [line.split() for line in done.stdout.splitlines()]


def test_slots(command):
    done = command("slots")
    assert done.returncode == 0
    header, *lines = rows(done)
    assert header == ["slot", "description", "manufacturer", "firmware"]
    assert [line[0] for line in lines] == [str(number) for number in range(1, 9)]
    assert command("slots", "--all").stdout == done.stdout


def test_slots_for_programs(command):
    slots = json.loads(command("slots", "--json").stdout)
    assert [slot["slot_id"] for slot in slots] == list(range(1, 9))
    assert slots[0]["flags"] == ["token_present"]
    assert slots[0]["firmware_version"] == "1.00"


@DUAL_IDENTITY
def test_tokens(command, assign):
    slot_id = assign("payments-01")
    done = command("tokens")
    assert done.returncode == 0
    lines = rows(done)[1:]
    assert [line[0] for line in lines] == [str(number) for number in range(1, 9)]
    assert lines[slot_id - 1][1] == "payments-01"
    assert lines[slot_id - 1][-2:] == ["not", "set"]


def test_tokens_for_programs(command, luna):
    with luna.claim("cluster-1") as token:
        token.assign("payments-01", so_pin="so-pin-1", user_pin="user-pin-1")
    slot_id = token.slot.slot_id
    tokens = {token["slot_id"]: token for token in json.loads(command("tokens", "--json").stdout)}
    assert len(tokens) == 8
    assert tokens[slot_id]["label"] == "payments-01"
    assert "user_pin_initialized" in tokens[slot_id]["flags"]
    info = luna.slot(slot_id).token_info
    assert tokens[slot_id]["serial_number"] == info.serial_number
    assert command("tokens", "--workers", 3, "--json").stdout.count("slot_id") == 8


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_one_bad_token_hides_none_of_the_others(command, cluster, form):
    cluster.fault("C_GetTokenInfo", 0x80000020, every=3)
    done = command("tokens", "--workers", 1, *form)
    assert done.returncode == 1
    assert [f"keyring{n}" for n in range(1, 9) if f"keyring{n}" not in done.stdout] == [
        "keyring3",
        "keyring6",
    ]
    *_, first, second = done.stderr.splitlines()
    assert "slot 3: CKR_PARTITION_DISABLED" in first
    assert "slot 6: CKR_PARTITION_DISABLED" in second


def test_find(command, assign):
    slot_ids = sorted([assign("twice"), assign("twice")])
    done = command("find", "twice")
    assert done.returncode == 0
    assert [int(line[0]) for line in rows(done)[1:]] == slot_ids
    found = json.loads(command("find", "twice", "--json").stdout)
    assert [token["slot_id"] for token in found] == slot_ids


def test_find_of_nothing(command):
    done = command("find", "nobody")
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.said
    assert "no token has the label 'nobody'" in line
    done = command("find", "nobody", "--json")
    assert (done.returncode, json.loads(done.stdout)) == (1, [])


def test_a_label_that_is_none(command):
    done = command("find", "x" * 33)
    assert done.returncode == 2
    (line,) = done.said
    assert "at most 32 fit" in line


@pytest.mark.parametrize(
    ("label", "shown"),
    [
        ("\x1b[31mred", r"\x1b[31mred"),
        ("bell\x07\ttab\nline", r"bell\x07\ttab\nline"),
        ("\u202eright to left", r"\u202eright to left"),
        ("[bold]no markup[/bold]", "[bold]no markup[/bold]"),
        ("Schlüssel 鍵", "Schlüssel 鍵"),
    ],
)
def test_a_label_says_nothing_to_the_terminal(command, luna, label, shown):
    with luna.claim("cluster-1") as token:
        token.assign(label, so_pin="so-pin-1")
    done = command("tokens")
    assert shown in done.stdout
    assert not {"\x1b", "\x07", "\u202e", "\t"} & set(done.stdout)
    assert len(done.stdout.splitlines()) == 9
    labels = [token["label"] for token in json.loads(command("tokens", "--json").stdout)]
    assert label in labels


def test_a_label_that_is_not_utf_8(command, cluster):
    """Another library may have assigned it."""
    with cluster.library():
        module = ctypes.CDLL(library_path())
        label = b"\xff\xfe".ljust(32)
        assert module.C_InitToken(ctypes.c_ulong(1), b"so-pin-1", 8, label) == 0
    done = command("tokens")
    assert r"\udcff\udcfe" in done.stdout
    assert json.loads(command("tokens", "--json").stdout)[0]["label"] == "\udcff\udcfe"


def test_a_table_on_a_terminal(terminal):
    screen = terminal("tokens")
    screen.expect_exact("keyring8")
    screen.expect_exact("not set")
    screen.wait()
    assert screen.exitstatus == 0
