"""completion: what is typed into a real shell, and what a shell is told that asks."""

import os
import shutil
import subprocess
import sys

import pexpect
import pytest
from support import PATIENCE, install_command

SHELLS = {
    "bash": (["--norc", "--noprofile"], 'eval "$(luna-ext completion bash)"'),
    "zsh": (
        ["-f"],
        'bindkey -e; autoload -U compinit; compinit -D; eval "$(luna-ext completion zsh)"',
    ),
    "fish": (["--no-config"], "luna-ext completion fish | source"),
}
TYPED = {
    "luna-ext lo": ["lock"],
    "luna-ext lock --slot 1": ["lock", "--slot", "19"],
    "luna-ext lock --slot=": ["lock", "--slot=19"],
    "luna-ext lock --label pa": ["lock", "--label", "pay, ment:1"],
    "luna-ext lock --label=pa": ["lock", "--label=pay, ment:1"],
    "luna-ext find 'pay, m": ["find", "pay, ment:1"],
    "luna-ext find pay,\\ ment:": ["find", "pay, ment:1"],
    "luna-ext lock --all p": ["lock", "--all", "pay, ment:1"],
    "luna-ext stub latency 1 CA_Un": ["stub", "latency", "1", "CA_UnlockClusteredSlot"],
    "luna-ext lock --slot 19 -- ./rot": ["lock", "--slot", "19", "--", "./rotate-keys"],
    "luna-ext claim c -- sh -c rot": ["claim", "c", "--", "sh", "-c", "rotate-keys"],
}
BEGINNING, END = "\x01", "\x05"
"""Control-A and control-E, which move the cursor in each of the shells."""


@pytest.fixture
def shell(request, cluster, tmp_path, monkeypatch):
    """A shell that has been told to complete luna-ext, in a directory with the file rotate-keys."""
    name = request.param
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    program = tmp_path / "bin" / "luna-ext"
    program.parent.mkdir()
    install_command(program)
    (tmp_path / "rotate-keys").touch()
    arguments, told = SHELLS[name]
    environment = {
        **os.environ,
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "LUNA_STUB_STATE": cluster.path,
    }
    screen = pexpect.spawn(
        name,
        arguments,
        timeout=PATIENCE,
        encoding="utf-8",
        env=environment,
        cwd=str(tmp_path),
        dimensions=(50, 200),
    )
    screen.sendline(f"{told}; echo re''ady")
    screen.expect_exact("ready")
    yield screen
    screen.close(force=True)


@pytest.mark.luna_cluster(keyrings=1, first_slot=19, label="pay, ment:")
@pytest.mark.parametrize("shell", SHELLS, indirect=True)
def test_what_is_typed_is_completed(shell):
    for typed, words in TYPED.items():
        # The shell itself then tells what it takes the line for.
        shell.send(f"{typed}\t{BEGINNING}printf '<%s>' [ {END} ]\r")
        shell.expect(r"<\[>(.*?)<\]>")
        assert shell.match[1] == "".join(f"<{word}>" for word in ["luna-ext", *words])


@pytest.mark.luna_cluster(keyrings=1, first_slot=1, label="a 'b' \"$(echo c)`echo d`\\")
@pytest.mark.parametrize("shell", SHELLS, indirect=True)
def test_what_a_shell_would_run_is_quoted_as_the_word_is(shell):
    for quote in ("", "'", '"'):
        shell.send(f"luna-ext find {quote}a\t{BEGINNING}printf '<%s>' [ {END} ]\r")
        shell.expect(r"<\[>(.*?)<\]>")
        label = "a 'b' \"$(echo c)`echo d`\\1"
        assert shell.match[1] == "".join(f"<{word}>" for word in ["luna-ext", "find", label])


def ask(typed, program="from luna_ext.commands import cli; sys.exit(cli.run())"):
    """What luna-ext answers to a shell."""
    return subprocess.run(
        [sys.executable, "-c", f"import sys; {program}"],
        env={**os.environ, "_LUNA_EXT_COMPLETE": "bash_complete", "COMP_LINE": f"luna-ext {typed}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("pro", ["plain,probe", "plain,provision"]),
        ("lock --slot 1 ./b", ["file,./b"]),
        ("lock --slot 1 -- cp -w ", ["file,"]),
        ("lock --all keyring1 -- cp ", ["file,"]),
        ("--library /l", ["file,/l"]),
        ("provision cluster-1 --guard 8", ["plain,8"]),
        ("tokens --label keyring8", ["plain,keyring8"]),
        ("stub unlock-keyring 8", ["plain,8"]),
        ("stub fault C_Login CKR_DEVICE_M", ["plain,CKR_DEVICE_MEMORY"]),
        ("explain CKR_PIN_LO", ["plain,CKR_PIN_LOCKED"]),
        ("assign cluster-1 keyring1", []),
        ("stub create --first-slot ", []),
        ("find 'keyring1' \"--j", ["plain,--json"]),
    ],
)
def test_what_is_offered(cluster, typed, offered):
    done = ask(typed)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == offered


def test_what_goes_wrong_is_not_told_where_a_person_is_typing(cluster, monkeypatch):
    cluster.fault("C_GetSlotList", 0x30)
    done = ask("lock --slot ")
    assert (done.stdout, done.stderr) == ("", "")
    monkeypatch.setenv("LUNA_EXT_LIBRARY", "/nonexistent")
    done = ask("lock --label ")
    assert (done.stdout, done.stderr) == ("", "")


def test_one_bad_token_hides_no_label(cluster):
    cluster.fault("C_GetTokenInfo", 0x30, times=1)
    assert len(ask("find ").stdout.splitlines()) == len(cluster.tokens()) - 1


def test_a_device_that_does_not_answer_is_given_up(cluster):
    cluster.latency(10 * PATIENCE, "C_Initialize")
    done = ask(
        "lock --slot ",
        "from luna_ext.commands import cli, completing; completing.SECONDS = 0.1; sys.exit(cli.run())",
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")
