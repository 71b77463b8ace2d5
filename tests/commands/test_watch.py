"""watch, and the files in which processes write which locks they hold."""

import json
import os
import signal
import time

import pexpect
import pytest
from support import wait_until

from luna_ext import holders
from luna_ext.info import CLUSTER_FUNCTIONS

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


def test_a_pid_that_is_another_process_s_by_now(luna, directory):
    described = {
        "pid": os.getpid(),
        "started": "1",
        "library": luna.path,
        "since": {"1": 1.0},
    }
    (directory / f"{os.getpid()}-0.json").write_text(json.dumps(described))
    assert holders.read(luna.path) == {}


@pytest.mark.parametrize("text", ["", "[]", '{"pid": 1}', '{"pid": "x", "started": null}', "\xff"])
def test_a_file_that_says_nothing(luna, directory, text):
    (directory / "1-0.json").write_text(text, encoding="latin-1")
    assert holders.read(luna.path) == {}


def test_a_forked_child_tells_for_itself(directory, program, luna):
    process = program("""
        child = os.fork()
        with luna.slot(1 if child else 3):
            print(os.getpid(), flush=True)
            sys.stdin.readline() if child else time.sleep(3600)
    """)
    pids = [int(process.process.stdout.readline()) for _ in range(2)]
    wait_until(lambda: set(holders.read(luna.path)) == {1, 3})
    found = {slot_id: holder.pid for slot_id, holder in holders.read(luna.path).items()}
    assert set(found.values()) == set(pids)
    os.kill(found[3], signal.SIGKILL)
    tell(process)


def test_a_directory_that_is_not_there_is_warned_of(tmp_path, caplog):
    holders._publish(str(tmp_path / "none"), "library.so", lambda: {1: 1})
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert str(tmp_path / "none") in record.getMessage()


def test_without_the_variable_nothing_is_told(luna, tmp_path, monkeypatch):
    monkeypatch.delenv(holders.VARIABLE, raising=False)
    assert holders.read(luna.path) == {}


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
