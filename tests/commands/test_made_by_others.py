"""What others may have made: modules where luna-ext is started, and texts with commands for a terminal."""

import json
import re

import pytest

from luna_ext.stub import library_path


def test_no_module_of_the_working_directory_is_imported(command, cluster, hold_elsewhere, tmp_path):
    for name in ("click", "ctypes", "json", "logging", "queue", "rich", "subprocess", "threading"):
        (tmp_path / f"{name}.py").write_text("open(__file__ + '.ran', 'w').close()")
    cluster.switch("contention", "error")
    hold_elsewhere(1)
    assert command("tokens", cwd=tmp_path).returncode == 0
    assert command("lock", "--slot", 2, "--", "true", cwd=tmp_path).returncode == 0
    # Its helper is started, and finds the slot locked.
    assert "slot 1 cannot be locked" in command("probe", "--slot", 1, cwd=tmp_path).stderr
    assert list(tmp_path.glob("*.ran")) == []


def test_the_processes_of_the_demo_import_nothing_from_there(command, tmp_path):
    (tmp_path / "copyreg.py").write_text("open(__file__ + '.ran', 'w').close()")
    done = command("demo", cwd=tmp_path)
    assert (done.returncode, done.said) == (0, [])
    assert list(tmp_path.glob("*.ran")) == []


HOSTILE = "\x1b[2J\x9b31m\u202eabc\u2066\a\x7f"


@pytest.fixture
def hostile(cluster, assign, tmp_path, monkeypatch):
    """A library and a token that have such names."""
    library = tmp_path / f"lib{HOSTILE}.so"
    library.symlink_to(library_path())
    monkeypatch.setenv("LUNA_EXT_LIBRARY", str(library))
    assign(HOSTILE)
    return library


def assert_shows(done):
    for text in (done.stdout, done.stderr):
        assert [char for char in text if not (char.isprintable() or char == "\n")] == []
    assert r"\x1b[2J\x9b31m\u202eabc\u2066\x07\x7f" in done.stdout + done.stderr


@pytest.mark.parametrize(
    "line",
    [
        "tokens",
        "watch",
        "find LABEL",
        "assign cluster-1 LABEL --so-pin-file /none",
        "assign LABEL new --so-pin-file PIN",
        "claim LABEL -- true",
        "--debug claim LABEL -- true",
        "--debug lock --slot 1 -- true",
        "lock --slot 1 -- LABEL",
        "lock --slot LABEL -- true",
        "provision cluster-1 --count 1 --prefix LABEL --dry-run",
        "stub create --state STATE",
        "doctor",
        "--library /none/LABEL slots",
        "--library TEXT doctor",
        "LABEL",
    ],
)
def test_what_a_terminal_takes_for_commands_is_escaped(command, hostile, pin_file, tmp_path, line):
    text = tmp_path / f"text{HOSTILE}"
    text.write_text("no library")
    words = {"LABEL": HOSTILE, "PIN": str(pin_file()), "TEXT": str(text), "STATE": str(text)}
    assert_shows(command(*(re.sub("[A-Z]{3,}", lambda f: words[f[0]], w) for w in line.split())))


def test_json_is_plain_ascii(command, hostile):
    for line in ("tokens --json", "slots --json", "doctor --json"):
        done = command(*line.split())
        assert done.stdout.isascii()
        json.loads(done.stdout)
    assert json.loads(command("find", HOSTILE, "--json").stdout)[0]["label"] == HOSTILE
