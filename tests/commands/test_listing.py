"""slots, tokens, find."""

import ctypes
import json
import re

import pexpect
import pytest
from rich.cells import cell_len
from support import DUAL_IDENTITY, but_for_the_warning

from luna_ext.info import CLUSTER_FUNCTIONS
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


@pytest.mark.parametrize("words", [("slots",), ("slots", "--all")], ids=" ".join)
def test_one_bad_slot_hides_none_of_the_others(command, cluster, read_json, words):
    cluster.fault("C_GetSlotInfo", 0x80000020, every=3)
    done = command(*words)
    assert done.returncode == 1
    _, *lines = rows(done)
    assert [line[0] for line in lines] == [str(number) for number in range(1, 9)]
    errors = [line for line in lines if line[1] == "error:"]
    assert errors == [[number, "error:", "CKR_PARTITION_DISABLED", "-", "-"] for number in "36"]
    # What to do is told once.
    (line,) = done.said
    assert "C_GetSlotInfo on slot 3: CKR_PARTITION_DISABLED" in line
    assert line.endswith("(so for 1 more)")
    cluster.fault("C_GetSlotInfo", 0x80000020, every=3)
    done = command(*words, "--json")
    assert done.returncode == 1
    slots = read_json("slots", done)
    assert [slot["error"] for slot in slots[1:4]] == [None, "CKR_PARTITION_DISABLED", None]
    assert (slots[2]["description"], slots[2]["flags"]) == (None, None)


@DUAL_IDENTITY
def test_tokens(command, assign):
    slot_id = assign("payments-01")
    done = command("tokens")
    assert done.returncode == 0
    lines = rows(done)[1:]
    assert [line[0] for line in lines] == [str(number) for number in range(1, 9)]
    assert lines[slot_id - 1][1] == "payments-01"
    assert lines[slot_id - 1][3:5] == ["not", "set"]


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


def test_one_bad_token_hides_none_of_the_others(command, cluster):
    cluster.fault("C_GetTokenInfo", 0x80000020, every=3)
    done = command("tokens", "--workers", 1)
    assert done.returncode == 1
    lines = rows(done)[1:]
    assert [line[0] for line in lines] == [str(number) for number in range(1, 9)]
    assert [" ".join(line[1:4]) for line in lines if line[1] != f"keyring{line[0]}"] == [
        "error: CKR_PARTITION_DISABLED -",
        "error: CKR_PARTITION_DISABLED -",
    ]
    # What to do is told once.
    (line,) = done.said
    assert "slot 3: CKR_PARTITION_DISABLED" in line
    assert line.endswith("(so for 1 more)")


def test_a_bad_token_for_programs(command, cluster, read_json):
    cluster.fault("C_GetTokenInfo", 0x80000020, every=3, times=1)
    done = command("tokens", "--workers", 1, "--json")
    assert done.returncode == 1
    tokens = read_json("tokens", done)
    assert [(token["slot_id"], token["label"]) for token in tokens[1:4]] == [
        (2, "keyring2"),
        (3, None),
        (4, "keyring4"),
    ]
    assert [token["error"] for token in tokens[1:4]] == [None, "CKR_PARTITION_DISABLED", None]


@pytest.mark.parametrize("words", [("slots",), ("slots", "--all"), ("tokens",)], ids=" ".join)
def test_where_there_are_none(command, cluster, words):
    cluster.fault("C_GetSlotList", 0)
    for form in ((), ("--json",)):
        done = command(*words, *form)
        assert done.returncode == 0
        assert json.loads(done.stdout) == [] if form else len(rows(done)) == 1
        (line,) = done.said
        assert "`luna-ext doctor`" in line


def test_tokens_by_their_label(command, assign, cluster):
    slot_id = assign("payments-01")
    assert [line[0] for line in rows(command("tokens", "--label", "pay*-0[12]"))[1:]] == [
        str(slot_id)
    ]
    done = command("tokens", "--label", "Keyring*")
    assert (done.returncode, len(rows(done))) == (0, 1)
    (line,) = done.said
    assert "`luna-ext tokens` lists all" in line
    # It may be the one that was meant.
    cluster.fault("C_GetTokenInfo", 0x80000020, times=1)
    done = command("tokens", "--label", "none")
    assert done.returncode == 1
    assert "CKR_PARTITION_DISABLED" in done.stdout


def test_unassigned_tokens(command, assign):
    slot_ids = {assign("payments-01"), assign("payments-02")}
    tokens = json.loads(command("tokens", "--unassigned", "--json").stdout)
    assert {token["slot_id"] for token in tokens} == {*range(1, 9)} - slot_ids


def test_which_tokens_are_unassigned_a_device_does_not_tell(command, old_client):
    done = command("--library", old_client(*CLUSTER_FUNCTIONS), "tokens", "--unassigned")
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.said
    assert "`luna-ext claim`" in line


def test_find(command, assign):
    slot_ids = sorted([assign("twice"), assign("twice")])
    done = command("find", "twice")
    assert done.returncode == 0
    assert [int(line[0]) for line in rows(done)[1:]] == slot_ids
    found = json.loads(command("find", "twice", "--json").stdout)
    assert [token["slot_id"] for token in found] == slot_ids


def test_one_bad_token_that_is_found_hides_none_of_the_others(command, assign, cluster, read_json):
    slot_ids = sorted(assign("same") for _ in range(3))
    cluster.fault("C_GetTokenInfo", 0x80000020, every=2, times=1)
    done = command("find", "same")
    assert done.returncode == 1
    assert [(int(line[0]), line[1]) for line in rows(done)[1:]] == [
        (slot_ids[0], "same"),
        (slot_ids[1], "error:"),
        (slot_ids[2], "same"),
    ]
    (line,) = done.said
    assert f"slot {slot_ids[1]}: CKR_PARTITION_DISABLED" in line
    cluster.fault("C_GetTokenInfo", 0x80000020, every=2, times=1)
    done = command("find", "same", "--json")
    assert done.returncode == 1
    errors = [token["error"] for token in read_json("find", done)]
    assert errors == [None, "CKR_PARTITION_DISABLED", None]


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


# ---- on terminals ----


@pytest.fixture
def shown(terminal):
    """The lines that the command prints on a terminal of so many columns."""

    def show(*arguments, columns):
        screen = terminal(*arguments, columns=columns)
        text = screen.read()
        screen.wait()
        return but_for_the_warning(text)

    return show


def test_the_size_of_the_terminal_is_known_without_a_buffer_as_well(terminal, monkeypatch):
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")
    screen = terminal("tokens", columns=60)
    screen.expect(pexpect.EOF)
    assert "user PIN" in screen.before
    assert "model" not in screen.before


@pytest.mark.parametrize(
    ("columns", "last"),
    [(200, "model"), (78, "firmware"), (60, "sessions"), (51, "user PIN"), (41, "serial number")],
)
def test_a_narrow_terminal_loses_columns_from_the_right(shown, columns, last):
    header, rule, *lines = shown("tokens", columns=columns)
    names = re.split("  +", header)
    assert (
        names
        == ["slot", "label", "serial number", "user PIN", "sessions", "firmware", "model"][
            : len(names)
        ]
    )
    assert names[-1] == last
    assert {*rule} == {"─"}
    assert len(lines) == 8
    for number, line in enumerate(lines, 1):
        assert len(line) <= columns
        assert re.match(rf"   {number}  keyring{number}  \d{{15}}{number}( |$)", line)


@pytest.mark.parametrize("columns", [20, 39])
def test_a_very_narrow_terminal_has_a_list(shown, columns):
    lines = shown("find", "keyring3", columns=columns)
    assert lines[:2] == ["slot: 3", "label: keyring3"]
    # No serial number is broken: it has a line of its own, if need be.
    serial, *lines = "\n".join(lines[2:]).replace(":\n  ", ": ").split("\n")
    assert re.fullmatch(r"serial number: \d{16}", serial)
    assert lines == [
        "user PIN: not set",
        "sessions: 0",
        "firmware: 1.00",
        "model: Cluster keyring",
        "",
    ]


def test_no_serial_number_is_broken_where_it_fits(shown):
    lines = shown("find", "keyring3", columns=20)
    assert max(map(len, lines)) <= 20
    assert re.fullmatch(r"  \d{16}", lines[lines.index("serial number:") + 1])


@pytest.mark.luna_cluster(keyrings=1, first_slot=10**18, label="a-label-of-thirty-one-bytes----")
def test_what_is_too_long_for_a_table_is_a_list(shown):
    lines = shown("tokens", columns=50)
    assert lines[:2] == [f"slot: {10**18}", "label: a-label-of-thirty-one-bytes----1"]
    assert shown("tokens", columns=60)[0].split() == ["slot", "label"]


def test_columns_are_even_whatever_the_width_of_characters(command, shown, assign):
    assign("鍵鍵鍵")
    for lines in (command("tokens").stdout.splitlines(), shown("tokens", columns=60)):
        begins = {
            cell_len(line[: found.start()])
            for line in lines
            if (found := re.search(r"\d{16}", line))
        }
        assert len(begins) == 1


@pytest.mark.parametrize("columns", [None, 100])
def test_characters_that_the_locale_does_not_have(command, shown, assign, monkeypatch, columns):
    assign("Schlüssel 鍵")
    monkeypatch.setenv("LC_ALL", "C")
    monkeypatch.setenv("PYTHONUTF8", "0")
    if columns is None:
        text = command("find", "keyring1").stdout + command("tokens").stdout
    else:
        text = "\n".join(shown("tokens", columns=columns))
        assert "\n-----" in text
    assert r"Schl\xfcssel \u9375  " in text
    assert text.isascii()


def test_any_output_has_what_its_encoding_has_not(command, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "koi8-r")
    done = command("bench", "--seconds", 0.1)
    assert (done.returncode, done.said) == (0, [])
    assert r"wait p50, \xb5s" in done.stdout
