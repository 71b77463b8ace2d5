"""Where assign and provision get their PINs from."""

import contextlib
import ctypes
import mmap
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import termios
from pathlib import Path

import pexpect
import pytest
from support import ANOTHER_USER, COMMAND, GIVES_FILES_AWAY, with_streams

import luna_ext
from luna_ext.commands import pin_memory
from luna_ext.info import CLUSTER_FUNCTIONS

PIN = "so-pin-1"


@pytest.fixture
def assign(command):
    def run(*options, **more):
        return command("assign", "cluster-1", "new", *options, **more)

    return run


@pytest.fixture
def labels(cluster):
    def look():
        assert all(token.owner is None for token in cluster.tokens())
        return [token.label for token in cluster.tokens()]

    return look


@pytest.mark.parametrize(
    "contents",
    [
        b"so-pin-1",
        b"so-pin-1\n",
        b"so-pin-1\r\n",
        b"so-pin-1\nwhat comes behind\n",
        b"\xff\xfe\x80-pin-1\n",
    ],
)
def test_the_first_line_of_a_file(assign, labels, pin_file, luna, contents):
    done = assign("--so-pin-file", pin_file(contents))
    assert (done.returncode, done.said) == (0, [])
    assert done.stdout.startswith("assigned new in slot ")
    slot_id = int(done.stdout.split()[-1])
    assert labels()[slot_id - 1] == "new"
    # It is this PIN and no other that the token has now: the user's can be set with it.
    pin = contents.split(b"\n")[0].rstrip(b"\r")
    with luna.token("new") as token:
        token._set_user_pin(pin, "user-pin-1")


def test_a_link_to_a_good_file(assign, pin_file, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(pin_file())
    assert assign("--so-pin-file", link).returncode == 0


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o644, 0o666])
def test_a_file_that_others_can_read_or_write(assign, labels, pin_file, mode):
    file = pin_file(mode=mode)
    done = assign("--so-pin-file", file)
    assert done.returncode == 1
    (line,) = done.said
    assert f"{file} has mode {mode:04o}" in line
    assert f"chmod 600 {file}" in line
    assert "new" not in labels()


@GIVES_FILES_AWAY
def test_a_file_of_another_user(assign, pin_file):
    file = pin_file()
    os.chown(file, ANOTHER_USER, ANOTHER_USER)
    done = assign("--so-pin-file", file)
    assert done.returncode == 1
    (line,) = done.said
    assert f"{file} belongs to another user (UID {ANOTHER_USER})" in line


@pytest.mark.parametrize(
    ("contents", "says"),
    [
        (b"", "is empty"),
        (b"\nso-pin-1\n", "is empty"),
        (b"\r\n", "is empty"),
        (b"x" * 300, "has more than 256 bytes"),
        (b"so-pin\0-1\n", "contains a NUL"),
    ],
)
def test_a_file_without_a_pin(assign, labels, pin_file, contents, says):
    file = pin_file(contents)
    done = assign("--so-pin-file", file)
    assert done.returncode == 1
    (line,) = done.said
    assert f"the first line of {file} {says}; that is no SO PIN" in line
    assert "new" not in labels()


@pytest.mark.parametrize(
    ("contents", "says"),
    [
        (b"\xef\xbb\xbfso-pin-1\r\n", "byte order mark"),
        ("\ufeffso-pin-1\r\n".encode("utf-16-le"), "byte order mark"),
        ("\ufeffso-pin-1\r\n".encode("utf-16-be"), "byte order mark"),
        ("\xa0so-pin-1\n".encode(), "begins or ends with a blank"),
        ("so-pin-1\xa0\n".encode(), "begins or ends with a blank"),
        (b" so-pin-1\n", "begins or ends with a blank"),
        (b"so-pin-1 \r\n", "begins or ends with a blank"),
        (b"so-pin-1\t\n", "begins or ends with a blank"),
        ("so-pin-1\u3000\n".encode(), "begins or ends with a blank"),
        ("so-pin-1\u2028\n".encode(), "begins or ends with a blank"),
        ("so-pin-1\ufeff\n".encode(), "has a character that is not shown"),
        ("so-\u200bpin-1\n".encode(), "has a character that is not shown"),
        # The end of a file of DOS; what an arrow key leaves; the lines of an old Mac.
        (b"so-pin-1\x1a", "has a character that is not shown"),
        (b"so-pin-1\x1b[D\n", "has a character that is not shown"),
        (b"so-pin-1\rwhat comes behind\r", "has a character that is not shown"),
    ],
)
def test_what_an_editor_has_added_is_no_part_of_a_pin(assign, labels, pin_file, contents, says):
    file = pin_file(contents)
    done = assign("--so-pin-file", file)
    assert done.returncode == 1
    (line,) = done.said
    assert says in line
    assert str(file) in line
    assert "so-pin-1" not in line
    assert "new" not in labels()


def test_a_pin_with_a_blank_inside(assign, labels, pin_file):
    assert assign("--so-pin-file", pin_file(b"so pin 1\n")).returncode == 0
    assert "new" in labels()


def test_what_is_no_file(assign, tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo, 0o600)
    for path, says in (
        (tmp_path / "none", "No such file or directory"),
        (tmp_path, "is not a regular file"),
        # No process has it open for writing; the command must not wait for one.
        (fifo, "is not a regular file"),
        ("/dev/null", "is not a regular file"),
    ):
        done = assign("--so-pin-file", path)
        assert done.returncode == 1
        (line,) = done.said
        assert str(path) in line
        assert says in line


@pytest.mark.parametrize("options", [(), ("--ask-user-pin",)])
def test_a_pad(assign, cluster, labels, options):
    cluster.switch("authentication", "ped")
    done = assign("--pin-pad", *options)
    assert (done.returncode, done.said) == (0, [])
    assert "new" in labels()
    inits = [call for call in cluster.log() if call.function == "C_InitPIN"]
    # With single identity the user has it too, which only a user of the pad can tell.
    assert len(inits) == len(options)


def test_a_pad_that_is_not_there(assign, labels):
    done = assign("--pin-pad")
    assert done.returncode == 2
    assert (
        "no protected authentication path" in done.stderr.replace("\n", " ")
        or "has none" in done.stderr
    )
    assert "new" not in labels()


@pytest.mark.parametrize("option", ["--so-pin-file", "--user-pin-file"])
def test_a_pad_and_a_file(assign, labels, pin_file, option):
    done = assign("--pin-pad", option, pin_file())
    assert done.returncode == 2
    assert "new" not in labels()


GIVES_LABEL_NEW = pytest.mark.parametrize(
    "way",
    [
        ("assign", "cluster-1", "new1"),
        ("provision", "cluster-1", "--count", "1", "--prefix", "new"),
    ],
    ids=lambda way: way[0],
)


@GIVES_LABEL_NEW
def test_two_pins_from_one_descriptor(cluster, luna, pin_file, way):
    file = pin_file(b"so-pin-1\nuser-pin-1\n")
    options = ["--so-pin-fd", "7", "--user-pin-fd", "7"]
    done = subprocess.run(
        with_streams('7<"$0"', *COMMAND, *way, *options, of=file),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    assert luna_ext.TokenFlag.USER_PIN_INITIALIZED in luna.token("new1").info.flags


def test_a_pin_from_the_input(assign, luna, pin_file):
    with pin_file().open() as file:
        assert assign("--so-pin-fd", 0, stdin=file).returncode == 0
    assert luna.token("new").label == "new"


def test_a_descriptor_that_is_not_open(assign, labels):
    done = assign("--so-pin-fd", 77)
    assert done.returncode == 1
    assert done.said == [
        "luna-ext: the SO PIN cannot be read from descriptor 77: Bad file descriptor"
    ]
    assert "new" not in labels()


def test_from_a_file_and_a_descriptor(assign, pin_file):
    done = assign("--so-pin-file", pin_file(), "--so-pin-fd", 0)
    assert done.returncode == 2
    (line,) = done.said
    assert "from a file or from a descriptor, not from both" in line


def test_no_option_takes_the_pin_itself(command):
    for name in ("assign", "provision"):
        shown = command(name, "--help").stdout
        assert "--so-pin-file" in shown
        assert "--so-pin " not in shown
        assert command(name, "cluster-1", "new", "--so-pin", PIN).returncode == 2


def test_without_a_terminal_there_is_no_prompt(assign):
    done = assign()
    assert done.returncode == 1
    assert done.said == [
        "luna-ext: no terminal to ask for the SO PIN; use --so-pin-file or --so-pin-fd"
    ]


@GIVES_LABEL_NEW
def test_a_prompt(terminal, luna, way):
    screen = terminal(*way, "--ask-user-pin")
    for what, pin in (("SO PIN", PIN), ("user PIN", "user-pin-1")):
        screen.expect_exact(f"{what}: ")
        screen.waitnoecho()
        screen.sendline(pin)
        screen.expect_exact("Repeat for confirmation: ")
        screen.sendline(pin)
    # The second one shows a bar meanwhile.
    screen.expect("assigned new1 in slot |1 assigned, 0 skipped, 0 failed")
    screen.expect(pexpect.EOF)
    assert PIN not in screen.before
    screen.wait()
    assert screen.exitstatus == 0
    assert luna_ext.TokenFlag.USER_PIN_INITIALIZED in luna.token("new1").info.flags


def test_a_prompt_that_is_left(terminal, labels):
    screen = terminal("assign", "cluster-1", "new")
    screen.expect_exact("SO PIN: ")
    screen.waitnoecho()
    screen.sendintr()
    screen.expect_exact("luna-ext: interrupted")
    screen.expect(pexpect.EOF)
    screen.wait()
    assert screen.exitstatus == 130
    assert "new" not in labels()


@pytest.mark.parametrize("number", ["SIGQUIT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGALRM"])
@pytest.mark.parametrize("options", [(), ("--so-pin-fd", "0")], ids=["prompt", "descriptor"])
def test_a_signal_at_the_prompt_lets_the_terminal_show_again(terminal, labels, number, options):
    screen = terminal("assign", "cluster-1", "new", *options)
    screen.expect_exact("SO PIN: ")
    screen.waitnoecho()
    with open(os.dup(screen.child_fd), "rb") as terminal_itself:
        screen.kill(getattr(signal, number))
        screen.expect(pexpect.EOF)
        assert termios.tcgetattr(terminal_itself)[3] & termios.ECHO
    screen.wait()
    ended = screen.signalstatus or screen.exitstatus - 128
    assert ended == getattr(signal, number)
    assert "new" not in labels()


SHELL = """
import os, signal, sys, termios
# What a shell does for one job; it leaves the terminal's modes alone.
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
job = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, setpgroup=0)
os.tcsetpgrp(0, job)
os.kill(job, signal.SIGCONT)
while os.WIFSTOPPED(os.waitpid(job, os.WUNTRACED)[1]):
    os.tcsetpgrp(0, os.getpgrp())
    print("stopped, shown:", bool(termios.tcgetattr(0)[3] & termios.ECHO), flush=True)
    input()
    os.tcsetpgrp(0, job)
    os.kill(job, signal.SIGCONT)
"""


def answer_unseen(screen):
    """Give the PIN twice; the terminal does not show it, and the token is assigned."""
    for asked in ("SO PIN: ", "Repeat for confirmation: "):
        screen.expect_exact(asked)
        screen.waitnoecho()
        screen.sendline(PIN)
    screen.expect_exact("assigned new in slot ")
    assert PIN not in screen.before


def test_ctrl_z_at_the_prompt_lets_the_terminal_show_again(terminal, luna):
    words = [*COMMAND, "assign", "cluster-1", "new"]
    screen = terminal("-c", SHELL, *words, program=(sys.executable,))
    screen.expect_exact("SO PIN: ")
    screen.waitnoecho()
    screen.sendcontrol("z")
    screen.expect_exact("stopped, shown: True")
    screen.sendline()
    answer_unseen(screen)


def test_a_ctrl_z_that_stops_nothing_does_not_show_the_pin(terminal, luna):
    """Where there is no shell, a process is not stopped."""
    screen = terminal("assign", "cluster-1", "new")
    screen.expect_exact("SO PIN: ")
    screen.waitnoecho()
    screen.sendcontrol("z")
    answer_unseen(screen)


def test_a_prompt_that_is_not_answered_the_same_way_twice(terminal, luna):
    screen = terminal("assign", "cluster-1", "new")
    for pin, again in (("", None), (PIN, "so-pin-2"), (PIN, PIN)):
        screen.expect_exact("SO PIN: ")
        screen.waitnoecho()
        screen.sendline(pin)
        if again is not None:
            screen.expect_exact("Repeat for confirmation: ")
            screen.sendline(again)
            if again != pin:
                screen.expect_exact("luna-ext: that was not the same SO PIN; once more")
    screen.expect_exact("assigned new in slot ")


def test_a_prompt_that_ends(terminal, labels):
    screen = terminal("assign", "cluster-1", "new")
    screen.expect_exact("SO PIN: ")
    screen.waitnoecho()
    screen.sendeof()
    screen.expect_exact("luna-ext: interrupted")
    screen.expect(pexpect.EOF)
    assert "new" not in labels()


def test_a_descriptor_that_is_a_terminal_does_not_show_it(terminal, luna):
    screen = terminal("assign", "cluster-1", "new", "--so-pin-fd", 0, "--user-pin-fd", 0)
    shown = ""
    for what, pin in (("SO PIN", PIN), ("user PIN", "user-pin-1")):
        screen.expect_exact(f"{what}: ")
        shown += screen.before
        screen.waitnoecho()
        screen.sendline(pin)
    screen.expect_exact("assigned new in slot ")
    assert "-pin-1" not in shown + screen.before
    # As it was.
    assert screen.getecho()


# ---- what is left of it in the memory ----

SECRETS = (b"a-secret-of-SO-4711", b"a-secret-of-user-4711")


def where_is(pid, secret):
    """The flags of each mapping of the process that has this, one for each place where it is."""
    found = []
    smaps = Path(f"/proc/{pid}/smaps").read_text()
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for begin, end, flags in re.findall(
            r"^([0-9a-f]+)-([0-9a-f]+) rw(?:.*\n(?![0-9a-f]+-))*VmFlags: (.*)$", smaps, re.MULTILINE
        ):
            pages = []
            for page in range(int(begin, 16), int(end, 16), mmap.PAGESIZE):
                memory.seek(page)
                # A newer glibc's mapping has threads' stacks and their guards, which cannot be read.
                with contextlib.suppress(OSError):
                    pages.append(memory.read(mmap.PAGESIZE))
            found += [flags.split()] * b"".join(pages).count(secret)
    return found


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may look into such a process")
@pytest.mark.parametrize("way", ["prompt", "file"])
def test_a_pin_is_in_memory_that_is_not_written_anywhere(
    terminal, cluster, pin_file, wait_until_inside, way
):
    files = [pin_file(secret + b"\n", name=f"pin{n}") for n, secret in enumerate(SECRETS)]
    options = {
        "prompt": ["--ask-user-pin"],
        "file": ["--so-pin-file", files[0], "--user-pin-file", files[1]],
    }[way]
    cluster.latency(60, "C_InitToken")
    screen = terminal("assign", "cluster-1", "new", *options)
    for secret in SECRETS if way == "prompt" else ():
        for asked in ("PIN: ", "Repeat for confirmation: "):
            screen.expect_exact(asked)
            screen.waitnoecho()
            screen.sendline(secret.decode())
    wait_until_inside("C_InitToken", pid=screen.pid)
    for secret in SECRETS:
        places = where_is(screen.pid, secret)
        # The command's, and the one that the client library gets.
        assert len(places) == 2
        for flags in places:
            # Locked, not in dumps, wiped in forked children.
            assert {"lo", "dd", "wf"} <= {*flags}
    limits = Path(f"/proc/{screen.pid}/limits").read_text()
    assert re.search(r"^Max core file size +0 ", limits, re.MULTILINE)


def test_a_process_is_not_dumped_while_it_has_a_pin():
    def is_dumpable():
        return ctypes.CDLL(None).prctl(3, 0, 0, 0, 0) == 1

    before = is_dumpable(), resource.getrlimit(resource.RLIMIT_CORE)
    with pin_memory.never_dumped():
        assert not is_dumpable()
        assert resource.getrlimit(resource.RLIMIT_CORE)[0] == 0
    assert (is_dumpable(), resource.getrlimit(resource.RLIMIT_CORE)) == before


def test_a_pin_is_never_shown(command, cluster, pin_file):
    file = pin_file(b"secret-officer\n")
    command("assign", "cluster-1", "first", "--so-pin-file", file)
    for rv in (0xA0, 0x30, 0x7):
        cluster.fault("C_InitToken", rv, times=1)
        done = command("--debug", "assign", "cluster-1", "new", "--so-pin-file", file)
        assert done.returncode == 1
        assert "secret" not in done.stdout + done.stderr


# ---- other users ----


@pytest.fixture
def weak_client(old_client, monkeypatch, tmp_path):
    """A client library in a directory that all users may write to."""
    library = tmp_path / "open" / "client.so"
    library.parent.mkdir()
    library.parent.chmod(0o777)
    shutil.copy(old_client(*CLUSTER_FUNCTIONS), library)
    monkeypatch.setenv("LUNA_EXT_LIBRARY", str(library))
    return library


@pytest.mark.parametrize(
    "words",
    [("assign", "cluster-1", "x"), ("provision", "cluster-1", "--count", 1, "--prefix", "x")],
)
def test_no_pin_where_other_users_may_change_the_library(
    command, weak_client, cluster, pin_file, words
):
    """It is not even loaded, and no PIN is asked for, which would be an error here."""
    done = command(*words)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    weak = weak_client.parent
    assert line == (
        f"luna-ext: other users may change what this process loads: {weak} is writable by all users (mode "
        f"0777). So they could get the PINs. What to do: chmod go-w {weak}; or, if you know that they are "
        "to have that right, give --insecure"
    )
    assert cluster.log() == []
    done = command(*words, "--insecure", "--so-pin-file", pin_file())
    assert done.returncode == 0
    (line,) = done.stderr.splitlines()
    assert "A user who does gets its PINs" in line
    weak_client.parent.chmod(0o755)
    assert command(*words[:-1], "y", "--so-pin-file", pin_file()).stderr == ""


def test_what_asks_for_no_pin_goes_on_where_other_users_may_change_the_library(
    command, weak_client
):
    options = ("--count", 1, "--prefix", "x", "--dry-run")
    for words in (
        ("tokens",),
        ("provision", "cluster-1", *options),
        ("lock", "--slot", 1, "--", "true"),
    ):
        done = command(*words)
        assert done.returncode == 0
        assert "is writable by all users" in done.stderr


def test_doctor_tells_of_other_users(command, weak_client, read_json):
    done = command("doctor", "--json")
    (found,) = (each for each in read_json("doctor", done) if each["what"] == "other_users")
    assert done.returncode == 1
    assert (found["ok"], found["values"]) == (False, {"weak_paths": [str(weak_client.parent)]})
    assert found["advice"] == f"chmod go-w {weak_client.parent}"


@pytest.mark.parametrize("typed", ["so-pin\0-1", "so-pin\x1b[D-1", "so-pin-1\u200b"])
def test_what_is_typed_and_not_shown(terminal, typed):
    screen = terminal("assign", "cluster-1", "new")
    screen.expect("SO PIN: ")
    screen.sendline(typed)
    screen.expect(pexpect.EOF)
    screen.wait()
    assert screen.exitstatus == 1
    assert screen.before.splitlines()[-1] == (
        "luna-ext: a character was typed that is not shown, as by an arrow key; no PIN has one"
    )
