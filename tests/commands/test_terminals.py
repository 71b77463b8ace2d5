"""Each subcommand that tells something: on terminals, in pipes, with NO_COLOR; with no tokens, and many."""

import json
import re

import click
import pexpect
import pytest
from rich.cells import cell_len

from luna_ext.commands import cli

SIZES = (60, 80, 200)
COLOR = re.compile(r"\x1b\[[\d;]*m")
OTHER_SEQUENCE = re.compile(r"\x1b\[[?\d;]*[A-Za-ln-z]")

TABLES = {
    "slots": "slots",
    "tokens": "tokens",
    "find": "find keyring3",
    "watch": "watch",
    "bench": "bench --seconds 0.1",
    "stub status": "stub status",
    "stub log": "stub log",
}
TEXTS = {
    "doctor": "doctor",
    "explain": "explain CKR_PIN_LOCKED 0x80000305",
    "probe": "probe --slot 1 --patience 0.1",
    "demo": "demo",
    "assign": "assign cluster-1 {label} --so-pin-file {pin}",
    "provision": "provision cluster-1 --count 2 --prefix {label} --dry-run",
}
FOR_SHELLS = {"completion", "stub create", "stub env"}
NOTHING = {"lock", "claim", "stub destroy"}
"""They print nothing of their own. So do the subcommands of the stand-in that steer it."""
LINES = TABLES | TEXTS


def paths(group=cli.luna_ext, above=()):
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from paths(command, (*above, name))
        else:
            yield " ".join((*above, name)), command


def test_each_subcommand_is_tried_here():
    told = {
        name for name, command in paths() if any("--json" in one.opts for one in command.params)
    }
    assert told == {*LINES}
    others = {name for name, _ in paths()} - told - FOR_SHELLS - NOTHING
    assert others == {
        f"stub {name}"
        for name in ("fault", "latency", "switch", "set-pins", "unlock-keyring", "pin-lengths")
    } | {"stub disconnect", "stub reinitialise"}


@pytest.fixture
def words(pin_file):
    """The command line of a subcommand; each time one that can be done."""
    labels = (f"a-label-of-31-bytes--------{number:04}" for number in range(1, 99))
    file = pin_file()

    def make(name):
        return LINES[name].format(label=next(labels), pin=file).split()

    return make


@pytest.fixture
def shown(terminal):
    """What is on a terminal after the command has ended, with the sequences for it."""

    def show(words, columns):
        screen = terminal(*words, columns=columns)
        if words[0] == "watch":
            screen.expect(r"of \d+ are locked")
            begin = screen.before + screen.after
            screen.sendintr()
        else:
            begin = ""
        screen.expect(pexpect.EOF)
        return begin + screen.before

    return show


def lines_of(text):
    """But for errors and warnings, which are not broken, so that they can be copied."""
    lines = OTHER_SEQUENCE.sub("\n", COLOR.sub("", text)).splitlines()
    return [line.rstrip() for line in lines if not line.startswith("luna-ext: ")]


def check(text, columns):
    assert "Traceback" not in text
    before = ""
    for line in lines_of(text):
        # A word that is longer, such as a path, is not broken; nor is what a list has in a line of its own.
        whole = len(line.split()) == 1 or before.endswith(":")
        assert cell_len(line) <= columns or whole, line
        before = line


@pytest.mark.parametrize("name", LINES)
def test_no_line_is_wider_than_the_terminal(shown, words, name):
    for columns in (*([20, 39] if name in TABLES else []), *SIZES):
        check(shown(words(name), columns), columns)


@pytest.mark.parametrize("name", LINES)
def test_without_colour(shown, command, words, name, monkeypatch):
    done = command(*words(name))
    assert "\x1b" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    monkeypatch.setenv("NO_COLOR", "1")
    text = shown(words(name), 80)
    assert not COLOR.search(text)
    check(text, 80)


WITH_TOKENS = ("slots", "tokens", "watch", "find", "stub status", "doctor")


@pytest.mark.parametrize("name", WITH_TOKENS)
def test_no_tokens(shown, command, cluster, words, name):
    cluster.fault("C_GetSlotList", 0)
    for columns in SIZES:
        check(shown(words(name), columns), columns)
    done = command(*words(name))
    assert "Traceback" not in done.stderr
    assert done.returncode in (0, 1)


@pytest.mark.luna_cluster(keyrings=3500, label="payments-of-a-long-name-")
@pytest.mark.parametrize("name", ["slots", "tokens", "stub status"])
def test_many_tokens(shown, command, words, name):
    """A row for each, whole in its label and serial number."""
    tokens = json.loads(command("tokens", "--json").stdout)
    for columns in (None, *SIZES):
        text = command(*words(name)).stdout if columns is None else shown(words(name), columns)
        if columns is not None:
            check(text, columns)
        rows = {
            row[0]: row for line in lines_of(text) if (row := line.split()) and row[0].isdecimal()
        }
        assert rows.keys() == {str(number) for number in range(1, 3501)}
        if name != "slots":
            labels = {number: row[1] for number, row in rows.items()}
            assert labels == {str(token["slot_id"]): token["label"] for token in tokens}
        if name == "tokens":
            serials = {number: row[2] for number, row in rows.items()}
            assert serials == {str(token["slot_id"]): token["serial_number"] for token in tokens}


@pytest.mark.luna_cluster(keyrings=3500, label="payments-of-a-long-name-")
def test_watch_with_many_tokens(shown, command, hold_elsewhere):
    hold_elsewhere(3500)
    for columns in SIZES:
        text = shown(["watch"], columns)
        check(text, columns)
        assert re.search(r"\b3500  payments-of-a-long-name-3500\b", text)
        assert "3499 more are not locked" in text
        assert "1 of 3500 are locked" in text
    lines = lines_of(command("watch").stdout)
    assert len(lines) == 3501
