"""watch, and the files in which processes write which locks they hold."""

import itertools
import json
import os
import re
import shlex
import signal
import sys
import threading
import time
from functools import partial

import pexpect
import pytest
from support import (
    ANOTHER_USER,
    DEVICE_ERROR,
    GIVES_FILES_AWAY,
    MAY_FORK,
    TOKEN_INFO,
    assert_stays,
    logged,
    wait_until,
)

from luna_ext import holders
from luna_ext.commands import watching
from luna_ext.info import CLUSTER_FUNCTIONS
from luna_ext.stub import library_path

HOLD = """
    path = os.environ.get("LUNA_EXT_LIBRARY_OF_TEST")
    if path:
        luna.close()
        luna = luna_ext.Library(path)
    with luna.slot(2), luna.slot(5):
        print("held", flush=True)
        sys.stdin.readline()
    print("released", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def directory(tmp_path, monkeypatch):
    """The directory in which processes write which locks they hold."""
    place = tmp_path / "holders"
    place.mkdir()
    monkeypatch.setenv(holders.VARIABLE, str(place))
    return place


def tell(process):
    process.process.stdin.write("\n")
    process.process.stdin.flush()


def rows(done):
    return {int(line.split()[0]): line.split()[2] for line in done.stdout.splitlines()[1:]}


# ---- the files ----


def test_a_process_tells_what_it_holds(luna, directory, program):
    began = time.time()
    process = program(HOLD)
    process.expect("held")
    wait_until(lambda: set(holders.read(luna.path)) == {2, 5})
    for holder in holders.read(luna.path).values():
        assert holder.pid == process.process.pid
        assert began - 1 <= holder.since <= time.time()
    assert holders.read("/another/library.so") == {}

    tell(process)
    process.expect("released")
    wait_until(lambda: holders.read(luna.path) == {})


def test_what_a_killed_process_has_told_is_swept_up(luna, directory, program):
    process = program(HOLD)
    process.expect("held")
    wait_until(lambda: len(holders.read(luna.path)) == 2)
    process.process.kill()
    process.ended()
    assert holders.read(luna.path) == {}
    assert list(directory.glob("*.json")) == []


LIBRARY = "/a/library.so"


@pytest.fixture
def tell_of(directory):
    """Write a file as this process would of its lock of a slot, but for some of what that says."""
    holders._write(directory / "1-0.json", LIBRARY, {})
    mine = json.loads((directory / "1-0.json").read_text())
    (directory / "1-0.json").unlink()

    def write(slot_id, **others):
        file = directory / f"{os.getpid()}-{slot_id}.json"
        file.write_text(json.dumps({**mine, "since": {slot_id: 1.0}, **others}))
        return file

    return write


def test_a_pid_that_is_another_process_s_by_now(tell_of):
    file = tell_of(1, started="1")
    assert holders.read(LIBRARY) == {}
    assert not file.exists()


def link(file):
    target = file.rename(file.with_name("elsewhere"))
    file.symlink_to(target)


def fifo(file):
    file.unlink()
    os.mkfifo(file)


def directory_of_its_name(file):
    file.unlink()
    file.mkdir()


def too_large(file):
    file.write_text(file.read_text() + " " * holders.MOST_BYTES)


def says(text):
    return lambda file: file.write_text(text, encoding="latin-1")


@pytest.mark.parametrize(
    "spoil",
    [
        link,
        fifo,
        directory_of_its_name,
        too_large,
        says(""),
        says("[]"),
        says('{"pid": 1}'),
        says('{"pid": "x", "started": null}'),
        says("\xff"),
        says("[" * 50_000),
        says('{"pid": Infinity, "namespace": 1}'),
        lambda file: says(file.read_text().replace('{"2": 1.0}', "[2]"))(file),
        lambda file: says(file.read_text().replace("1.0", "Infinity"))(file),
        lambda file: says(file.read_text().replace("1.0", "-1e300"))(file),
    ],
)
def test_a_bad_file_says_nothing_and_hides_no_other(tell_of, spoil):
    # Whichever of them is read first.
    for slot_id in (1, 2, 3):
        tell_of(slot_id)
    spoil(tell_of(2))
    assert set(holders.read(LIBRARY)) == {1, 3}


def test_a_file_that_fits_holds_all_keyrings_of_a_cluster(directory):
    holders._write(
        directory / f"{os.getpid()}-0.json", LIBRARY, dict.fromkeys(range(3500), 1e9 + 0.5)
    )
    assert len(holders.read(LIBRARY)) == 3500


def test_more_locks_than_fit_are_warned_of(directory, caplog, monkeypatch):
    file = directory / f"{os.getpid()}-{threading.get_ident():x}.json"
    monkeypatch.setattr(holders, "INTERVAL", 0)
    held = iter([{1: 1}, dict.fromkeys(range(10**9, 10**9 + 5000), 1)])
    holders._publish(str(directory), LIBRARY, lambda: next(held))
    (record,) = caplog.records
    assert "5000 locks do not fit" in record.getMessage()
    assert not file.exists()


def test_a_lock_that_was_taken_again_between_two_looks_is_held_since_then(directory, monkeypatch):
    monkeypatch.setattr(holders, "INTERVAL", 0)
    monkeypatch.setattr(holders.time, "time", partial(next, itertools.count(1000)))
    held = iter([{1: 7, 2: 3}, {1: 8, 2: 3}])
    # It ends with the looks that there are.
    with pytest.raises(StopIteration):
        holders._publish(str(directory), LIBRARY, lambda: next(held))
    since = {slot_id: holder.since for slot_id, holder in holders.read(LIBRARY).items()}
    assert since == {1: 1001, 2: 1000}


@GIVES_FILES_AWAY
def test_only_the_owner_of_a_process_tells_of_it(tell_of):
    os.chown(tell_of(1), ANOTHER_USER, ANOTHER_USER)
    assert holders.read(LIBRARY) == {}


@GIVES_FILES_AWAY
def test_what_others_have_left_is_not_swept_up(tell_of):
    file = tell_of(1, started="1")
    os.chown(file, ANOTHER_USER, ANOTHER_USER)
    assert holders.read(LIBRARY) == {}
    assert file.exists()


def test_what_a_container_has_told_is_neither_believed_nor_swept_up(tell_of):
    files = [tell_of(1, namespace=1), tell_of(2, namespace=1, started="1")]
    assert holders.read(LIBRARY) == {}
    assert all(file.exists() for file in files)


def test_a_forked_child_tells_for_itself(directory, program, luna):
    process = program(
        """
        child = os.fork()
        with luna.slot(1 if child else 3):
            print(os.getpid(), flush=True)
            sys.stdin.readline() if child else time.sleep(3600)
    """,
        options=MAY_FORK,
    )
    pids = [int(process.process.stdout.readline()) for _ in range(2)]
    wait_until(lambda: set(holders.read(luna.path)) == {1, 3})
    found = {slot_id: holder.pid for slot_id, holder in holders.read(luna.path).items()}
    assert set(found.values()) == set(pids)
    os.kill(found[3], signal.SIGKILL)
    tell(process)


def test_a_process_tells_once_however_often_it_opens_the_library(luna, directory, program):
    process = program("""
        with cluster.library() as again, again.slot(2):
            print("held", flush=True)
            sys.stdin.readline()
    """)
    process.expect("held")
    wait_until(lambda: set(holders.read(luna.path)) == {2})
    # Another thread that tells would write a file of its own.
    assert_stays(lambda: len(list(directory.iterdir())) == 1, 1.5 * holders.INTERVAL)
    tell(process)


def test_a_directory_that_is_not_there_is_warned_of(tmp_path, caplog):
    holders._publish(str(tmp_path / "none"), "library.so", lambda: {1: 1})
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert str(tmp_path / "none") in record.getMessage()


def test_without_the_variable_nothing_is_told(luna, tmp_path, monkeypatch):
    monkeypatch.delenv(holders.VARIABLE, raising=False)
    assert holders.read(luna.path) == {}


def test_an_empty_variable_is_none(program, tmp_path):
    process = program(
        """
        os.chdir(os.environ["PLACE"])
        with cluster.library() as again, again.slot(2):
            print("held", flush=True)
            sys.stdin.readline()
    """,
        PLACE=str(tmp_path),
        **{holders.VARIABLE: ""},
    )
    process.expect("held")
    assert_stays(lambda: list(tmp_path.iterdir()) == [], 1.5 * holders.INTERVAL)
    tell(process)


def test_a_process_tells_in_the_directory_that_was_named_wherever_it_goes(
    cluster, program, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "told").mkdir()
    process = program(
        """
        os.chdir("/")
        with slot:
            print("held", flush=True)
            sys.stdin.readline()
        """,
        **{holders.VARIABLE: "told"},
    )
    process.expect("held")
    wait_until(lambda: list((tmp_path / "told").iterdir()))
    tell(process)


# ---- the command ----


def test_without_a_terminal_the_table_is_printed_once(command, hold_elsewhere):
    holder = hold_elsewhere(3)
    done = command("watch")
    assert done.returncode == 0
    shown = rows(done)
    assert list(shown) == list(range(1, 9))
    assert shown.pop(3) == str(holder.pid)
    assert set(shown.values()) == {"-"}


def test_holders_of_a_device_are_those_that_tell(
    command, old_client, monkeypatch, directory, program, hold_elsewhere
):
    library = old_client(*CLUSTER_FUNCTIONS)
    # This one works with the stand-in by another path, and is not shown.
    hold_elsewhere(3)
    process = program(HOLD, LUNA_EXT_LIBRARY_OF_TEST=str(library))
    process.expect("held")
    wait_until(lambda: len(holders.read(str(library))) == 2)
    shown = rows(command("--library", library, "watch"))
    assert [slot_id for slot_id, who in shown.items() if who != "-"] == [2, 5]
    assert shown[2] == str(process.process.pid)


def test_on_a_terminal_it_goes_on_until_ctrl_c(terminal, hold_elsewhere):
    screen = terminal("watch", "--interval", 0.1)
    screen.expect_exact("keyring8")
    holder = hold_elsewhere(3)
    screen.expect_exact(f"{holder.pid} ")
    holder.release()
    screen.expect(r"keyring3 +-")
    screen.sendintr()
    screen.expect(pexpect.EOF)
    screen.wait()
    assert screen.exitstatus == 0


def test_the_stand_in_tells_since_when_and_proc_by_what(command, hold_elsewhere):
    hold_elsewhere(3)
    header, line = command("watch", "--held").stdout.splitlines()
    assert header.split() == ["slot", "label", "PID", "held", "for", "command"]
    assert re.search(r"  \d s  ", line)
    assert line.endswith(" 3")
    assert sys.executable in line


@pytest.fixture
def holds_of_old(directory):
    """Locks that this process tells of, held for hours and minutes."""
    since = {2: time.time() - 61, 5: time.time() - 2 * 3600 - 1, 7: time.time() - 1}
    holders._write(directory / f"{os.getpid()}-0.json", library_path(), since)


@pytest.mark.parametrize(
    ("options", "slot_ids"),
    [
        (("--held",), [2, 5, 7]),
        (("--held", "--sort", "age"), [5, 2, 7]),
        (("--sort", "age", "--label", "keyring[1-3]"), [2, 1, 3]),
        (("--sort", "label", "--label", "*ring8"), [8]),
        (("--sort", "pid", "--label", "*[127]"), [2, 7, 1]),
        (("--label", "none*"), []),
    ],
)
def test_what_is_shown_and_in_which_order(command, holds_of_old, options, slot_ids):
    done = command("watch", *options)
    assert list(rows(done)) == slot_ids
    if "age" in options:
        # However long the command took on a busy machine.
        assert re.search(r"  1 min \d+ s  ", done.stdout)


@pytest.mark.parametrize(
    ("seconds", "says"),
    [
        (-5, "0 s"),
        (59.9, "59 s"),
        (60, "1 min 0 s"),
        (3599, "59 min 59 s"),
        (7260, "2 h 1 min"),
        (86400 * 3 + 3700, "3 d 1 h"),
    ],
)
def test_an_age_has_two_parts_at_most(seconds, says):
    assert watching.age(seconds) == says


def test_a_token_that_cannot_be_read_is_shown(command, cluster):
    cluster.fault("C_GetTokenInfo", 0x80000020, times=1)
    done = command("watch", "--label", "none*")
    assert done.returncode == 0
    # Whether its label matches is not known.
    assert done.stdout.count("  error: CKR_PARTITION_DISABLED  ") == 1
    assert "keyring" not in done.stdout


@pytest.mark.parametrize("place", [None, "/nonexistent"])
def test_a_device_of_which_no_holder_tells(command, old_client, monkeypatch, place):
    library = old_client(*CLUSTER_FUNCTIONS)
    if place is None:
        monkeypatch.delenv(holders.VARIABLE, raising=False)
    else:
        monkeypatch.setenv(holders.VARIABLE, place)
    done = command("--library", library, "watch")
    assert done.returncode == 0
    (line,) = done.said
    assert holders.VARIABLE in line
    assert (place or "is not set") in line


def test_the_screen_says_that_no_holder_tells(terminal, old_client, monkeypatch):
    monkeypatch.delenv(holders.VARIABLE, raising=False)
    screen = terminal("--library", old_client(*CLUSTER_FUNCTIONS), "watch")
    screen.expect_exact(TO_SCREEN)
    screen.expect_exact("0 of 8 are locked")
    screen.expect_exact("LUNA_EXT_WATCH is not set, so no locks are known")


def test_a_directory_of_an_odd_name_is_escaped_on_the_screen(terminal, old_client, monkeypatch):
    monkeypatch.setenv(holders.VARIABLE, "/none/\x1b]0;abc\u202e")
    screen = terminal("--library", old_client(*CLUSTER_FUNCTIONS), "watch")
    screen.expect_exact(TO_SCREEN)
    screen.expect_exact(r"no locks are known: /none/\x1b]0;abc\u202e (LUNA_EXT_WATCH)")


# ---- on a terminal ----

TO_SCREEN, FROM_SCREEN, CURSOR_SHOWN = "\x1b[?1049h", "\x1b[?1049l", "\x1b[?25h"


def test_where_all_do_not_fit_those_that_are_held_are_shown(terminal, hold_elsewhere):
    for slot_id in (2, 5, 6, 7):
        hold_elsewhere(slot_id)
    screen = terminal("watch", lines=6)
    screen.expect_exact("1 more do not fit; 4 more are not locked: --all; 4 of 8 are locked")
    assert "keyring1" not in screen.before
    assert "keyring6" in screen.before
    screen = terminal("watch", "--all", lines=6)
    screen.expect_exact("5 more do not fit; 4 of 8 are locked")
    assert "keyring1" in screen.before
    screen = terminal("watch", lines=1)
    screen.expect_exact("4 more do not fit; 4 more are not locked: --all; 4 of 8 are locked")
    screen = terminal("watch", lines=11)
    screen.expect_exact("4 of 8 are locked")
    assert "keyring8" in screen.before
    assert "more" not in screen.before


def test_a_narrow_screen_loses_columns_from_the_right(terminal, hold_elsewhere):
    holder = hold_elsewhere(3)
    screen = terminal("watch", "--held", columns=50)
    screen.expect_exact("held for")
    screen.expect(rf"keyring3  {holder.pid}  \d s +\S+…")
    screen = terminal("watch", "--held", columns=40)
    screen.expect(rf"keyring3  {holder.pid}  \d s +\r")
    screen = terminal("watch", "--held", columns=20)
    screen.expect_exact("slot: 3")
    screen.expect_exact("label: keyring3")


def test_an_error_of_the_device_is_shown_until_it_has_passed(terminal, cluster, hold_elsewhere):
    screen = terminal("watch", "--interval", 0.1)
    screen.expect_exact("keyring8")
    cluster.fault("C_GetSlotList", DEVICE_ERROR, times=1)
    screen.expect_exact("CKR_DEVICE_ERROR")
    screen.expect(r"0 of 8 are locked +\r\n +\r\n")
    screen.sendintr()
    screen.expect(pexpect.EOF)
    screen.wait()
    assert screen.exitstatus == 0


def test_ctrl_z_gives_the_terminal_back(terminal, monkeypatch):
    monkeypatch.setenv("PS1", "READY")
    shell = terminal("--norc", "--noprofile", "-i", program=("bash",), lines=20)
    shell.expect_exact("READY")
    shell.sendline(shlex.join([sys.executable, "-m", "luna_ext", "watch", "--interval", "60"]))
    shell.expect_exact(TO_SCREEN)
    shell.expect_exact("0 of 8 are locked")
    shell.sendcontrol("z")
    shell.expect_exact(FROM_SCREEN)
    assert CURSOR_SHOWN in shell.before
    shell.expect_exact("Stopped")
    shell.sendline("bg; wait -n %1; echo in the back")
    shell.expect_exact("\nin the back")
    assert TO_SCREEN not in shell.before
    shell.sendline("fg")
    shell.expect_exact(TO_SCREEN)
    # It is drawn at once, not at the end of the interval.
    shell.expect_exact("0 of 8 are locked")
    shell.sendintr()
    shell.expect_exact(FROM_SCREEN)
    shell.sendline("echo code=$?")
    shell.expect_exact("code=0")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_ends_it_and_gives_the_terminal_back(terminal, number):
    screen = terminal("watch")
    screen.expect_exact("0 of 8 are locked")
    screen.kill(number)
    screen.expect_exact(FROM_SCREEN)
    screen.expect(pexpect.EOF)
    screen.wait()
    assert screen.exitstatus == 128 + number


def test_a_new_size_is_drawn_at_once(terminal):
    screen = terminal("watch", "--interval", 60, lines=20)
    screen.expect_exact("\n0 of 8 are locked")
    screen.setwinsize(6, 200)
    screen.expect_exact("8 more are not locked: --all; 0 of 8 are locked")


def test_a_terminal_on_which_nothing_is_drawn_anew(terminal, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    screen = terminal("watch")
    screen.expect(pexpect.EOF)
    assert "keyring8" in screen.before
    assert "\x1b" not in screen.before


# ---- for programs ----


def test_a_line_for_each_change(start, hold_elsewhere, assign, json_of):
    watch = start("watch", "--json", "--interval", 0.1, "--label", "keyring[34]")

    def told():
        return json_of("watch", watch.stdout.readline())

    before = time.time()
    assert [told()["slot_id"] for _ in range(2)] == [3, 4]
    holder = hold_elsewhere(3)
    line = told()
    assert before - 1 <= line.pop("since") <= line.pop("time") <= time.time()
    command = line.pop("command")
    assert command[0] == sys.executable
    assert command[-1] == "3"
    assert line == {"slot_id": 3, "label": "keyring3", "error": None, "pid": holder.pid}
    holder.release()
    line = told()
    del line["time"]
    assert line == {
        "slot_id": 3,
        "label": "keyring3",
        "error": None,
        "pid": None,
        "since": None,
        "command": None,
    }


def test_a_line_for_a_new_label(start, cluster, assign):
    watch = start("watch", "--json", "--interval", 0.1)
    for _ in range(8):
        watch.stdout.readline()
    slot_id = assign("payments-01")
    for line in watch.stdout:
        told = json.loads(line)
        if told["label"] == "payments-01":
            break
    assert told["slot_id"] == slot_id


def test_only_what_is_held_and_what_no_longer_is(start, hold_elsewhere):
    holder = hold_elsewhere(3)
    watch = start("watch", "--json", "--held", "--interval", 0.1)
    first = json.loads(watch.stdout.readline())
    holder.release()
    second = json.loads(watch.stdout.readline())
    assert [(line["slot_id"], line["pid"]) for line in (first, second)] == [
        (3, holder.pid),
        (3, None),
    ]


def test_a_lost_connection_is_told_and_made_anew(start, cluster, assign):
    watch = start("watch", "--json", "--label", "payments-*", "--interval", 0.1)
    wait_until(lambda: logged(cluster, TOKEN_INFO, watch.pid))
    cluster.disconnect(watch.pid)
    _, line = (watch.stderr.readline() for _ in range(2))
    assert "CKR_DEVICE_ERROR" in line
    slot_id = assign("payments-01")
    # A token that could not be read just then is told of as well.
    lines = (json.loads(line) for line in watch.stdout)
    assert next(line for line in lines if line["error"] is None)["slot_id"] == slot_id
    watch.terminate()
    assert watch.communicate(timeout=30)[1] == ""


@pytest.mark.luna_cluster(keyrings=3000)
def test_not_all_tokens_are_read_each_time(start, cluster, hold_elsewhere):
    watch = start("watch", "--json", "--held", "--interval", 0.1)
    for slot_id in (3, 4):
        holder = hold_elsewhere(slot_id)
        assert json.loads(watch.stdout.readline())["pid"] == holder.pid
    assert len(logged(cluster, TOKEN_INFO, watch.pid)) == 3000


@pytest.mark.parametrize("end", ["reader", signal.SIGINT, signal.SIGTERM])
def test_it_ends_with_its_reader_and_by_signals(start, end):
    watch = start("watch", "--json", "--interval", 0.1)
    watch.stdout.readline()
    if end == "reader":
        watch.stdout.close()
        watch.stdout = None
    else:
        watch.send_signal(end)
    _, errors = watch.communicate(timeout=30)
    assert watch.returncode == (143 if end == signal.SIGTERM else 0)
    assert len(errors.splitlines()) == 1


def test_that_there_is_nothing_to_show_is_told(command):
    done = command("watch", "--held")
    assert (done.returncode, done.said) == (0, ["luna-ext: none of 8 tokens is locked"])
    done = command("watch", "--label", "none")
    assert (done.returncode, done.said) == (0, ["luna-ext: no token is one of those"])
