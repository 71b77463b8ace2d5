"""assign, provision."""

import json
import os
import random
import re
import select
import signal

import pexpect
import pytest
from support import CLAIM, ON_BOTH, but_for_the_warning

from luna_ext.info import CLUSTER_FUNCTIONS


@pytest.fixture
def found(cluster):
    """Where each label is that was assigned: {label: slot IDs}. Nothing may be locked."""

    def look():
        labels = {}
        for token in cluster.tokens():
            assert token.owner is None, token
            if token.label != token.original_label:
                labels.setdefault(token.label, []).append(token.slot_id)
        return labels

    return look


@pytest.fixture
def provision(command, pin_file):
    def run(*options, **more):
        return command("provision", "cluster-1", "--so-pin-file", pin_file(), *options, **more)

    return run


def test_assign(command, found, pin_file):
    done = command("assign", "cluster-1", "payments 07", "--so-pin-file", pin_file())
    assert done.returncode == 0
    ((label, [slot_id]),) = found().items()
    assert done.stdout == f"assigned payments 07 in slot {slot_id}\n"
    assert label == "payments 07"


@pytest.mark.luna_cluster(keyrings=1)
def test_assign_where_nothing_is_left(command, hold_elsewhere, pin_file):
    """The code that `claim` has for it."""
    hold_elsewhere(1)
    done = command("assign", "cluster-1", "x", "--timeout", 0.2, "--so-pin-file", pin_file())
    assert done.returncode == 75
    (line,) = done.said
    assert "has no unassigned token, and none became free within 0.2 s; make more keyrings" in line


def test_what_is_known_of_a_failed_assignment_is_told(command, cluster, pin_file):
    cluster.fault("C_InitToken", 0x30, lost_reply=True)
    done = command("assign", "cluster-1", "x", "--so-pin-file", pin_file())
    assert done.returncode == 1
    (line,) = done.said
    assert "the token's label is 'x' now" in line


def test_provision_by_number(provision, found):
    done = provision("--count", 3, "--prefix", "payments-", "--first", 8)
    assert done.returncode == 0
    *lines, last = done.stdout.splitlines()
    assert last == "3 assigned, 0 skipped, 0 failed"
    labels = ["payments-10", "payments-8", "payments-9"]
    assert sorted(lines) == [f"assigned {label} in slot {found()[label][0]}" for label in labels]
    assert sorted(found()) == labels

    done = provision("--count", 4, "--prefix", "payments-", "--first", 8)
    assert done.stdout.splitlines()[-1] == "1 assigned, 3 skipped, 0 failed"


def test_provision_by_name(provision, found, tmp_path):
    file = tmp_path / "labels"
    file.write_text("Schlüssel 鍵\r\n\nsecond one\n#no third\n")
    assert provision("--labels", file).returncode == 0
    assert sorted(found()) == ["Schlüssel 鍵", "second one"]
    with file.open() as labels:
        done = provision("--labels", "-", stdin=labels)
    assert done.stdout.splitlines()[-1] == "0 assigned, 2 skipped, 0 failed"


@pytest.mark.parametrize(
    ("contents", "says"),
    [
        (b"good\n" + b"x" * 33, "is 33 bytes of UTF-8; at most 32 fit"),
        (b"good\n\ngood\n", "line 3: 'good' is in line 1 already"),
        (b"good\nblank \n", "line 2: the label 'blank ' ends in a blank"),
        (b"good\r\n blank\r\n", "line 2: the label ' blank' begins with a blank"),
        (b"good\n\xff\n", "line 2: it is not UTF-8"),
        ("good\n".encode("utf-16"), "line 1: it is not UTF-8"),
        (b"good\nb\x1bad\n", "line 2: the label 'b\\x1bad' has a character that is not shown"),
        ("good\nb\u202ead\n".encode(), "line 2: the label 'b\\u202ead' has a character"),
        (b"good\nb\0ad\n", "line 2: the label 'b\\x00ad' contains NUL"),
        (b"# nothing\n\n  \n", "it has no label"),
        (b"", "it has no label"),
        (
            b"".join(b"x%d\n" % number for number in range(3501)),
            "it has 3501 labels; a cluster has",
        ),
        (b"#" * (1 << 20) + b"\ngood\n", "is no file of labels"),
    ],
)
def test_a_bad_label_keeps_all_from_being_assigned(provision, found, tmp_path, contents, says):
    file = tmp_path / "labels"
    file.write_bytes(contents)
    done = provision("--labels", file)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.said
    assert says in line
    assert found() == {}


def test_a_file_as_an_editor_of_windows_leaves_it(provision, found, tmp_path):
    file = tmp_path / "labels"
    file.write_bytes("\ufeffgood\r\n# a comment\r\n\r\nb\u00e9tter\r\n".encode())
    done = provision("--labels", file)
    assert done.returncode == 0
    assert sorted(found()) == ["b\u00e9tter", "good"]


def test_what_would_be_done(command, assign, found):
    """Without a PIN, for none is needed."""
    slot_id = assign("x2")
    done = command("provision", "cluster-1", "--count", 3, "--prefix", "x", "--dry-run")
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        "x1 would be assigned",
        f"x2 is there already, in slot {slot_id}",
        "x3 would be assigned",
        "2 would be assigned, 1 skipped",
    ]
    assert list(found()) == ["x2"]


def test_a_token_that_cannot_be_read_hides_no_plan(command, assign, cluster):
    slot_id = assign("x2")
    cluster.fault("C_GetTokenInfo", 0x80000020)
    done = command("provision", "cluster-1", "--count", 2, "--prefix", "x", "--dry-run")
    assert (done.returncode, done.said) == (0, [])
    assert done.stdout.splitlines() == [
        "x1 would be assigned",
        f"x2 is there already, in slot {slot_id}",
        "1 would be assigned, 1 skipped",
    ]


def test_fewer_unassigned_tokens_than_labels_are_told_of(command, assign, old_client):
    """Where it is known; a device does not tell it."""
    assign("x2")
    options = ("provision", "cluster-1", "--prefix", "x", "--dry-run", "--count")
    assert command(*options, 8).returncode == 0
    done = command(*options, 9)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (1, "8 would be assigned, 1 skipped")
    assert done.said == [
        "luna-ext: 1 of them would find no token: 7 are unassigned. Make more keyrings on the appliance, "
        "or give fewer labels"
    ]
    (free,) = (line for line in command("tokens", "--unassigned").stdout.splitlines()[1:2])
    done = command(*options, 8, "--guard", free.split()[0])
    assert done.returncode == 1
    assert "1 of them would find no token: 6 are unassigned, without the guard. " in done.said[-1]
    client = ("--library", old_client(*CLUSTER_FUNCTIONS))
    assert command(*client, *options, 9).returncode == 0
    done = command("--library", old_client("CA_GetSlotId"), *options, 1)
    assert (done.returncode, done.stdout) == (1, "")
    assert "has no CA_GetUnassignedSlot, which provision needs" in done.said[-1]


@pytest.mark.parametrize(("number", "form"), [(signal.SIGINT, []), (signal.SIGTERM, ["--json"])])
def test_how_far_it_came_when_it_is_ended(start, cluster, pin_file, number, form):
    cluster.latency(0.05)
    process = start(
        *("provision", "cluster-1", "--count", 8, "--prefix", "x", "--workers", 1),
        *("--so-pin-file", pin_file(), *form),
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    first = process.stdout.readline()
    if form:
        assert json.loads(first)["label"] == "x1"
    else:
        assert first.startswith("assigned x1 in slot ")
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    (line,) = but_for_the_warning(stderr)
    done = 1 + stdout.count('"progress"' if form else "assigned x")
    if form:
        end = json.loads(stdout.splitlines()[-1])
        assert (end["event"], end["complete"], end["assigned"]) == ("end", False, done)
    assert re.fullmatch(
        rf"luna-ext: ended after {done} of 8 labels: {done} assigned, 0 skipped, 0 failed. "
        "The same command goes on from there",
        line,
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["assign", "cluster-1", "keyring3"], "the label 'keyring3' is there already, in slot 3"),
        (["provision", "cluster-1", "--count", "1", "--prefix", "x" * 32], "at most 32 fit"),
        (["assign", "cluster-1", "x" * 33], "at most 32 fit"),
    ],
)
def test_pins_are_asked_for_when_all_else_is_well(command, words, says):
    """Here they cannot be, which would be the error else."""
    done = command(*words)
    assert done.returncode in (1, 2)
    (line,) = done.said
    assert says in line


def test_a_client_that_cannot_provision_asks_for_no_pin(command, old_client):
    library = old_client("CA_GetSlotId", "CA_LockClusteredSlot")
    done = command("--library", library, "provision", "cluster-1", "--count", 1, "--prefix", "x")
    assert done.returncode == 1
    (line,) = done.said
    assert "has no CA_GetUnassignedSlot, which provision needs" in line


def test_labels_from_both(provision, tmp_path):
    file = tmp_path / "labels"
    file.write_text("good\n")
    done = provision("--labels", file, "--count", 3, "--prefix", "x")
    assert done.returncode == 2
    assert provision("--labels", tmp_path / "none").returncode == 2


def test_failures_are_told_and_counted(provision, cluster, found):
    cluster.fault("C_InitToken", 0x30, times=1)
    done = provision("--count", 9, "--prefix", "x")
    assert done.returncode == 1
    *lines, last = done.stdout.splitlines()
    assert last == "7 assigned, 0 skipped, 2 failed"
    failed = [line for line in lines if line.startswith("failed ")]
    assert len(failed) == 2
    assert sum("CKR_DEVICE_ERROR" in line for line in failed) == 1
    assert sum("no unassigned token" in line for line in failed) == 1
    assert len(found()) == 7


def test_fresh_tokens_that_took_a_pin_that_others_refuse_are_named(provision, cluster, found):
    cluster.fault("C_InitToken", 0xA0, every=4, times=1)
    done = provision("--count", 8, "--prefix", "x")
    assert done.returncode == 1
    told = [line for line in done.stdout.splitlines() if "was not initialised before" in line]
    assert len(told) >= 3
    assert sorted(line.split()[0] for line in told) == sorted(found())


def test_a_bar_on_a_terminal(terminal, cluster, found, pin_file):
    cluster.fault("C_InitToken", 0x30, times=1)
    options = ("--so-pin-file", pin_file(), "--count", 5, "--prefix", "x", "--workers", 1)
    screen = terminal("provision", "cluster-1", *options)
    screen.expect(r"failed x1: .*CKR_DEVICE_ERROR")
    # The cursor stays, or a Ctrl-Z would leave the terminal without one.
    shown = screen.before
    screen.expect_exact("5/5")
    assert "\x1b[?25l" not in shown + screen.before
    screen.expect_exact("4 assigned, 0 skipped, 1 failed")
    screen.expect(pexpect.EOF)
    screen.wait()
    assert screen.exitstatus == 1
    assert len(found()) == 4


@pytest.mark.parametrize(("number", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_ends_it_in_order(start, cluster, found, pin_file, number, code):
    cluster.latency(0.02)
    options = ("--so-pin-file", pin_file(), "--count", 8, "--prefix", "x", "--workers", 2)
    process = start("provision", "cluster-1", *options)
    assert process.stdout.readline().startswith("assigned x")
    process.send_signal(getattr(signal, number))
    process.communicate(timeout=30)
    assert process.returncode == code
    assert 1 <= len(found()) < 8


@pytest.mark.luna_cluster(keyrings=40)
def test_killed_and_run_again_it_is_complete_in_the_end(start, cluster, found, pin_file):
    cluster.latency(0.004)
    chance = random.Random(3)
    file = pin_file(b"so-pin-1\n", name="so")
    options = ("--so-pin-file", file, "--count", 30, "--prefix", "x")
    kills = 0
    # The time that each has grows, so that one of them has enough.
    while kills < 200:
        process = start("provision", "cluster-1", *options)
        # From its first word on.
        process.stdout.readline()
        ended = select.select([process.stdout], [], [], 0)[0] and process.poll() is not None
        try:
            process.wait(chance.uniform(0, 0.02) + 0.005 * kills)
            ended = True
        except Exception:
            process.kill()
            kills += 1
        if ended:
            break
    assert 2 <= kills < 200
    assert process.stdout.read().splitlines()[-1].endswith("0 failed")
    labels = found()
    assert len(labels) == 30
    assert all(len(slot_ids) == 1 for slot_ids in labels.values())


@pytest.mark.luna_cluster(keyrings=30)
@pytest.mark.parametrize("guarded", [False, True])
def test_two_hosts_at_once(start, command, cluster, found, pin_file, guarded):
    guard = ()
    if guarded:
        done = command("assign", "cluster-1", "guard", "--so-pin-file", pin_file())
        guard = ("--guard", done.stdout.split()[-1])
    cluster.latency(0.3, CLAIM)
    options = ("--so-pin-file", pin_file(), "--count", 6, "--prefix", "x", "--workers", 2, *guard)
    processes = [start("provision", "cluster-1", *options) for _ in range(2)]
    told = [process.communicate(timeout=45)[0] for process in processes]
    codes = sorted(process.returncode for process in processes)
    slots = found()
    slots.pop("guard", None)
    assert sorted(slots) == [f"x{number}" for number in range(1, 7)]
    twice = {label for label, slot_ids in slots.items() if len(slot_ids) > 1}
    reported = set(re.findall(r"failed (\w+): the label '\w+' is there 2 times", "".join(told)))
    assert reported == twice
    if guarded:
        assert (twice, codes) == (set(), [0, 0])
        last = sorted(text.splitlines()[-1] for text in told)
        assert last == ["0 assigned, 6 skipped, 0 failed", "6 assigned, 0 skipped, 0 failed"]
    else:
        assert twice
        assert 1 in codes


@pytest.mark.luna_cluster(keyrings=4)
@ON_BOTH
def test_the_guard_of_a_fresh_cluster_is_not_claimed(provision, found, cluster):
    """And that is said where a label has got no token because of it."""
    done = provision("--count", 4, "--prefix", "x", "--guard", 2)
    assert (done.returncode, len(found())) == (1, 3)
    assert cluster.tokens()[1].label == "keyring2"
    assert done.said == [
        "luna-ext: the guard, slot 2 with the label 'keyring2', was locked, and so not claimed. If it is "
        "unassigned, run this again with a --guard that is assigned"
    ]
    assigned = next(iter(found().values()))[0]
    cluster.fault("C_InitToken", 0x30, times=1)
    done = provision("--count", 4, "--prefix", "x", "--guard", assigned)
    assert (done.returncode, done.said) == (1, [])
    done = provision("--count", 4, "--prefix", "x", "--guard", assigned)
    assert (done.returncode, done.said) == (0, [])
    assert found().keys() == {"x1", "x2", "x3", "x4"}


def test_a_cluster_that_is_known_to_be_another(command):
    done = command("provision", "another", "--count", 1, "--prefix", "x", "--dry-run")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.said == ["luna-ext: the cluster's ID is 'cluster-1', not 'another'"]


def test_what_the_guard_would_be(command, found):
    options = ("--count", 1, "--prefix", "x", "--guard", 2, "--dry-run")
    done = command("provision", "cluster-1", *options)
    assert done.said == [
        "luna-ext: the guard, slot 2 with the label 'keyring2', would be locked meanwhile, and not be "
        "claimed"
    ]
    assert found() == {}


@pytest.mark.parametrize("form", [[], ["--dry-run"]])
def test_a_guard_that_is_not_there(command, form):
    """It is told before a PIN is asked for, which would be an error here."""
    done = command("provision", "cluster-1", "--count", 1, "--prefix", "x", "--guard", 99, *form)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.said
    assert "on slot 99: CKR_SLOT_ID_INVALID" in line


def test_the_user_pin_is_set(provision, command, pin_file):
    done = provision(
        "--count", 2, "--prefix", "x", "--user-pin-file", pin_file(b"user-pin-1\n", name="u")
    )
    assert done.returncode == 0
    tokens = json.loads(command("tokens", "--json").stdout)
    flags = {token["label"]: token["flags"] for token in tokens}
    assert all("user_pin_initialized" in flags[label] for label in ("x1", "x2"))


@pytest.mark.parametrize("name", ["assign", "provision"])
def test_the_help_says_what_the_pins_are(command, name):
    text = " ".join(command(name, "--help").stdout.split())
    assert "This erases the token" in text
    assert re.search("password that (the keyring has|all the keyrings have) already", text)
    assert "with single identity, a cluster's default, both roles have one password" in text
