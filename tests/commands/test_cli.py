"""What all subcommands have in common: help, errors, exit codes."""

import importlib.metadata
import re
import subprocess
import sys

import pexpect
import pytest
from support import COMMAND, but_for_the_warning, with_streams

import luna_ext

SUBCOMMANDS = [
    "assign",
    "bench",
    "claim",
    "completion",
    "demo",
    "doctor",
    "explain",
    "find",
    "lock",
    "probe",
    "provision",
    "slots",
    "stub",
    "tokens",
    "watch",
]


def test_the_package_brings_the_command():
    (entry,) = (
        entry
        for entry in importlib.metadata.entry_points(group="console_scripts")
        if entry.name == "luna-ext"
    )
    assert entry.value == "luna_ext.__main__:main"


def test_version(command):
    done = command("--version")
    assert (done.returncode, done.stdout) == (0, f"luna-ext, version {luna_ext.__version__}\n")


def test_help_lists_all_subcommands(command):
    done = command("--help")
    assert done.returncode == 0
    listed = done.stdout.split("Commands:")[1].split("Examples:")[0]
    assert re.findall(r"^  (\w+)", listed, re.MULTILINE) == SUBCOMMANDS


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_each_subcommand_has_a_help(command, name):
    done = command(name, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"Usage: luna-ext {name}")
    assert done.stderr == ""


@pytest.mark.parametrize("group", [(), ("stub",)], ids=["luna-ext", "stub"])
def test_without_a_subcommand_the_help_is_shown(command, group):
    """As --help shows it, but that is what was asked for then."""
    done = command(*group)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == command(*group, "--help").stdout


def test_what_may_be_chosen_is_told_in_the_same_line(command):
    done = command("completion")
    assert done.returncode == 2
    (line,) = done.said
    assert "Choose from: bash, zsh, fish (`luna-ext completion --help` says more)" in line


OF_STUB = [
    f"stub {name}"
    for name in (
        "create",
        "env",
        "status",
        "log",
        "fault",
        "latency",
        "switch",
        "disconnect",
        "reinitialise",
        "set-pins",
        "unlock-keyring",
        "pin-lengths",
        "destroy",
    )
]


@pytest.mark.parametrize("name", [*SUBCOMMANDS, *OF_STUB])
def test_help_has_examples(command, name):
    examples = command(*name.split(), "--help").stdout.partition("Examples:\n")[2]
    assert re.search(rf"luna-ext .*\b{name}\b", examples)


@pytest.mark.parametrize(
    ("line", "shows", "code"),
    [
        ("doctor", "the stand-in", 1),
        ("slots", "description", 0),
        ("find keyring2", "keyring2", 0),
        ("find nobody", "no token has the label 'nobody'", 1),
        ("claim cluster-1 -- echo ran", "ran", 0),
        ("explain 0xA4", "lunash keyring unlock", 0),
        ("stub status", "lock held by PID", 0),
        ("stub fault C_InitToken nonsense", "nonsense", 2),
        ("demo", "held by two at once: 0", 0),
        ("bench --seconds 0.1", "locked per second", 0),
        ("completion bash", "_LUNA_EXT_COMPLETE", 0),
    ],
)
def test_on_a_terminal(terminal, line, shows, code):
    screen = terminal(*line.split())
    screen.expect_exact(shows)
    screen.expect(pexpect.EOF)
    screen.wait()
    assert screen.exitstatus == code
    assert "Traceback" not in screen.before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["--nonsense"], "--nonsense"),
        (["lock"], "Missing argument 'COMMAND...'"),
        (["lock", "--slot", "x", "--", "true"], "'x' is not a valid integer"),
        (["lock", "--slot", "-1", "--", "true"], "-1 is not in the range"),
        (["lock", "--timeout", "-1", "--slot", "1", "--", "true"], "-1.0 is not in the range"),
        (["lock", "--", "true"], "either --slot, --label or --all"),
        (["lock", "--slot", "1", "--label", "x", "--", "true"], "either --slot, --label or --all"),
        (["provision", "cluster-1"], "--labels FILE, or --count N and --prefix P"),
        (["provision", "cluster-1", "--count", "2"], "--labels FILE, or --count N"),
        (["stub", "fault", "C_Login"], "Missing argument 'RV'"),
    ],
)
def test_a_wrong_command_line_is_told_in_one_line(command, arguments, says):
    done = command(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("luna-ext: ")
    assert says in line
    assert "--help` says more" in line


def test_an_error_is_one_line(command, cluster):
    cluster.fault("CA_LockClusteredSlot", 0x30)
    done = command("lock", "--slot", 1, "--", "true")
    assert done.returncode == 1
    (line,) = done.said
    assert line.startswith("luna-ext: CA_LockClusteredSlot on slot 1: CKR_DEVICE_ERROR (0x30)")


def test_debug_shows_the_traceback_and_what_is_logged(command, cluster):
    cluster.fault("CA_UnlockClusteredSlot", 0x30)
    done = command("--debug", "lock", "--slot", 1, "--", "true")
    assert done.returncode == 1
    assert "luna-ext: slot 1: locked after" in done.stderr
    cluster.fault("CA_LockClusteredSlot", 0x30)
    done = command("--debug", "lock", "--slot", 1, "--", "true")
    assert "Traceback (most recent call last)" in done.stderr
    # The command's own options are its own.
    done = command("lock", "--slot", 1, "--", "true", "--debug")
    assert "Traceback" not in done.stderr


def test_a_library_that_is_not_there_is_one_line_with_all_places(command, monkeypatch):
    monkeypatch.delenv("LUNA_EXT_LIBRARY")
    monkeypatch.setenv("ChrystokiConfigurationPath", "/nonexistent")
    done = command("tokens")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "Looked at: the environment variable LUNA_EXT_LIBRARY: not set; /nonexistent" in line


def test_the_option_names_the_library(command, tmp_path):
    done = command("--library", tmp_path / "none.so", "tokens")
    assert done.returncode == 1
    assert f"'{tmp_path / 'none.so'}' does not exist" in done.stderr


def test_the_stand_in_is_warned_of_in_one_line(command):
    done = command("tokens")
    assert done.returncode == 0
    (line,) = done.stderr.splitlines()
    assert line.startswith("luna-ext: warning: ")
    assert "is the stand-in, not an HSM's client library" in line


@pytest.mark.luna_cluster(keyrings=3500)
def test_who_reads_may_leave(cluster):
    """As `head` does."""
    writer = subprocess.Popen(
        [*COMMAND, "tokens", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    writer.stdout.read(10)
    writer.stdout.close()
    said = writer.stderr.read().decode()
    writer.stderr.close()
    assert writer.wait(30) == 1
    assert but_for_the_warning(said) == []


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_without_the_extra_it_says_what_to_install(cluster, missing):
    program = (
        f"import sys; sys.modules['{missing}'] = None; sys.argv = ['luna-ext', 'tokens']; "
        "import runpy; runpy.run_module('luna_ext', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.endswith(
        f"luna-ext: the command needs the package {missing}: pip install click rich\n"
    )


# ---- streams ----


def closed(stream, *arguments):
    """Run the command with this stream closed, as a shell does it."""
    words = with_streams(stream, *COMMAND, *arguments)
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=30)


@pytest.mark.parametrize(
    ("stream", "why"),
    [(">&-", "Bad file descriptor"), (">/dev/full", "No space left on device")],
)
@pytest.mark.parametrize("arguments", [["tokens"], ["tokens", "--json"], ["completion", "bash"]])
def test_an_output_that_cannot_be_written_is_one_line(cluster, stream, why, arguments):
    done = closed(stream, *arguments)
    assert done.returncode == 1
    (line,) = but_for_the_warning(done.stderr)
    assert line == (f"luna-ext: the standard output cannot be written: {why}; let it go elsewhere")


def test_an_output_without_a_buffer_is_as_one_with(cluster, monkeypatch):
    """As containers often have it."""
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")
    said = closed(">/dev/full", "tokens").stderr
    assert "the standard output cannot be written: No space left on device" in said


def test_what_has_no_output_needs_no_stream(cluster, locked):
    for stream in (">&-", "<&-", "2>&-", ">&- <&- 2>&-"):
        assert closed(stream, "lock", "--slot", "1", "--", "true").returncode == 0
    assert locked() == {}


def test_errors_that_cannot_be_told_change_nothing(cluster):
    for stream in ("2>/dev/full", "2>&-"):
        assert closed(stream, "lock", "--slot", "1", "--", "true").returncode == 0
        assert closed(stream, "find", "none").returncode == 1
        assert closed(stream, "nonsense").returncode == 2


def test_a_closed_output_is_closed_for_the_command_too(cluster):
    """Not a file of luna-ext, or of the client library, that has taken its place."""
    done = closed(">&-", "lock", "--slot", "1", "--", "sh", "-c", "echo x")
    assert done.returncode != 0
    assert closed("2>&-", "lock", "--slot", "1", "--", "sh", "-c", "echo x").stdout == "x\n"


def test_an_error_of_its_own_is_one_line_too(cluster, tmp_path):
    program = (
        "import sys; from luna_ext.commands import cli; "
        "cli.luna_ext.callback = lambda **options: {}['what']; sys.exit(cli.run(['slots']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("luna-ext: an error of luna-ext itself, KeyError: 'what'. ")


# ---- on a terminal ----


def test_long_lines_are_broken_between_words(terminal):
    lines = terminal("explain", "CKR_PIN_LOCKED", columns=60).read().splitlines()
    assert len(lines) > 4
    assert max(map(len, lines)) <= 60
    whole = " ".join(" ".join(lines).split())
    assert "a keyring is unlocked by the crypto officer of the cluster's partition" in whole
    assert all(line.startswith("    ") for line in lines[1:])


def test_the_demo_too(terminal):
    lines = terminal("demo", columns=60).read().splitlines()
    assert max(map(len, lines)) <= 60
    assert lines[-1].endswith("held by two at once: 0.")


def test_no_summary_of_a_subcommand_is_cut_off(command, monkeypatch):
    for columns in ("60", "80"):
        monkeypatch.setenv("COLUMNS", columns)
        for group in ((), ("stub",)):
            lines = command(*group, "--help").stdout.partition("Commands:")[2].splitlines()
            assert not any(line.endswith("...") for line in lines)
