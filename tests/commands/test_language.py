"""What errors advise, in the command's own language."""

import re

import pytest
from support import DUAL_IDENTITY

from luna_ext.commands.texts import in_one_line, in_our_words
from luna_ext.errors import error_for, named_codes
from luna_ext.explanations import explain

PYTHON = re.compile(
    r"\bLibrary\b|\w\(|\w=|\b\w+_info\b|PIN_PAD|\b(so|user)_pin\b|\bcluster_id\b|\bup_to\b|luna_ext\."
)
NO_SUBCOMMAND = "in Python: token.change_pin(old, new) does that, and with role"


@pytest.mark.parametrize("rv", named_codes())
def test_no_code_is_advised_in_python(rv):
    known = explain(rv)
    for says in (
        in_one_line(error_for(rv, "C_Login", 1)),
        in_our_words(known.advice),
        in_our_words(known.meaning),
    ):
        assert NO_SUBCOMMAND in says or not PYTHON.search(says)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("lock --slot 99 -- true", "`luna-ext slots` lists the ones that it knows"),
        ("lock --label none -- true", "`luna-ext tokens` lists all"),
        ("lock --label same -- true", "`luna-ext find LABEL` shows them; name one by its slot"),
    ],
)
def test_what_to_do_is_a_subcommand(command, assign, line, says):
    assign("same")
    assign("same")
    done = command(*line.split())
    assert done.returncode == 1
    (told,) = done.said
    assert says in told
    assert not PYTHON.search(told)


def test_where_no_library_is_found(command, monkeypatch):
    monkeypatch.delenv("LUNA_EXT_LIBRARY")
    (line,) = command("slots").said
    assert "name its libCryptoki2 by luna-ext --library FILE or in the environment variable" in line


def test_a_device_that_has_gone(command, cluster):
    cluster.fault("CA_LockClusteredSlot", 0x30)
    (line,) = command("lock", "--slot", 1, "--", "true").said
    assert line.endswith("check the network and the HSM's health (vtl verify), then run it again")


@pytest.mark.parametrize("state", ["", "/etc/passwd"])
def test_a_stand_in_without_its_cluster(command, monkeypatch, state):
    """There is no network to check, nor an HSM."""
    monkeypatch.setenv("LUNA_STUB_STATE", state)
    (line,) = command("slots").said
    assert f"LUNA_STUB_STATE names ({state!r}): `luna-ext stub create --state FILE` makes" in line
    doctor = command("doctor").stdout
    assert "let `luna-ext stub create --state FILE` make a cluster" in doctor
    assert "vtl verify" not in line + doctor
    monkeypatch.setenv("LUNA_STUB_TRACE", "1")
    assert "luna_ext stand-in: C_Initialize: " in command("slots").stderr


def test_the_environment_says_what_contention_means(command, cluster, hold_elsewhere, monkeypatch):
    cluster.switch("contention", "error")
    hold_elsewhere(1)
    words = ("lock", "--slot", 1, "--timeout", 0.3, "--", "true")
    assert command(*words).returncode == 1
    monkeypatch.setenv("LUNA_EXT_CONTENTION", "poll")
    assert command(*words).returncode == 75
    assert command("--contention", "block", *words).returncode == 1
    monkeypatch.setenv("LUNA_EXT_CONTENTION", "nonsense")
    done = command(*words)
    assert done.returncode == 2
    assert "nonsense" in done.stderr


REFUSED = ("CA_UnlockClusteredSlot", 0x30)


@pytest.mark.parametrize("words", [("lock", "--slot", 1), ("claim", "cluster-1")])
def test_a_lock_that_may_be_left(command, cluster, words):
    cluster.fault(*REFUSED, times=1)
    (line,) = command(*words, "--", "true").said
    assert line.endswith(
        "The lock may stay set until this process disconnects, which it does at its end"
    )


@DUAL_IDENTITY
@pytest.mark.parametrize(
    ("function", "says"),
    [
        (
            "C_Logout",
            "the role may stay logged in for the whole process. It ends with this process",
        ),
        (
            "C_InitPIN",
            "but the user's PIN is not set; `luna-ext provision` with this label and the right PINs",
        ),
    ],
)
def test_an_assignment_that_is_not_whole(command, cluster, pin_file, function, says):
    cluster.fault(function, 0x5, times=1)
    pins = ("--so-pin-file", pin_file(), "--user-pin-file", pin_file(b"user-pin-1\n", name="user"))
    said = " ".join(command("assign", "cluster-1", "x", *pins).said)
    assert says in said
    assert not PYTHON.search(said)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("assign cluster-1 x --pin-pad", "--pin-pad is for tokens with a protected"),
        ("stub set-pins 1 --so-pin= ", "--so-pin has 1 to 255 bytes, not 0"),
        ("stub set-pins 1 --user-pin aaaaaaaa", "is not initialised has no --user-pin"),
        ("stub latency 3 --up-to 1", "--up-to is not less than seconds"),
        ("stub create --state new --cluster-id=", "a --cluster-id has 1 to 64 bytes"),
        ("stub switch x y", "`luna-ext stub switch --help` says which there are"),
        ("stub disconnect 999999999", "`luna-ext stub log` shows which processes have"),
    ],
)
def test_what_is_wrong_is_an_option(command, line, says):
    (told,) = command(*line.split()).said
    assert says in told
    assert not PYTHON.search(told)


def test_a_value_that_is_called_as_an_option_stays_as_it_is(command):
    (line,) = command("find", "user_pin").said
    assert "'user_pin'" in line
