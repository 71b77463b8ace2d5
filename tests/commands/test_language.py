"""What errors advise, in the command's own language."""

import re

import pytest

from luna_ext.commands.texts import in_one_line, in_our_words
from luna_ext.errors import error_for, named_codes
from luna_ext.explanations import explain

PYTHON = re.compile(r"Library|\w\(\)|unique=|erase=|role=|user_pin|luna_ext\.")
NO_SUBCOMMAND = "in Python: token.change_pin(old, new) does that, and with role"


@pytest.mark.parametrize("rv", named_codes())
def test_no_code_is_advised_in_python(rv):
    known = explain(rv)
    for says in (in_one_line(error_for(rv, "C_Login", 1)), in_our_words(known.advice)):
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
