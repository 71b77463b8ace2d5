"""Many labels at once, each of which gets an unassigned token."""

import contextlib
import ctypes
import json
import logging
import os
import random
import select
import signal
import sys
import threading
import warnings

import pytest
from support import (
    AGAIN,
    BUSY,
    CLAIM,
    DEVICE_ERROR,
    DUAL_IDENTITY,
    FIND,
    GENERAL_ERROR,
    INIT_PIN,
    INIT_TOKEN,
    MAY_FORK,
    ON_BOTH,
    SESSION_HANDLE_INVALID,
    UNLOCK,
    logged,
    wait_until,
)

import luna_ext
from luna_ext.info import CLUSTER_FUNCTIONS
from luna_ext.stub import library_path

SO_PIN, USER_PIN = "so-pin-1", "user-pin-1"
PIN_INCORRECT, PIN_INVALID = 0xA0, 0xA1
SLOT_ID_INVALID, TOKEN_NOT_PRESENT = 0x3, 0xE0
LABELS = [f"payments-{number}" for number in range(6)]

pytestmark = pytest.mark.luna_cluster(keyrings=8)


@pytest.fixture
def provision(luna):
    def call(labels=LABELS, *, so_pin=SO_PIN, **options):
        return luna_ext.provision(luna, "cluster-1", labels, so_pin=so_pin, **options)

    return call


@pytest.fixture
def labelled(cluster):
    """Where each label is that an assignment gave: {label: slot IDs}. Nothing may be locked."""

    def look():
        found = {}
        for token in cluster.tokens():
            assert token.owner is None, token
            if token.label != token.original_label:
                found.setdefault(token.label, []).append(token.slot_id)
        return found

    return look


def has_user_pin(luna, slot_id):
    return luna_ext.TokenFlag.USER_PIN_INITIALIZED in luna.slot(slot_id).token_info.flags


def slots_of(cluster, function):
    return [call.slot_id for call in cluster.log() if call.function == function]


@ON_BOTH
def test_each_label_gets_a_token(luna, provision, labelled):
    report = provision(user_pin=USER_PIN)
    assert list(report.assigned) == LABELS
    assert (report.skipped, report.failed) == ({}, {})
    assert labelled() == {label: [slot_id] for label, slot_id in report.assigned.items()}
    assert all(has_user_pin(luna, slot_id) for slot_id in report.assigned.values())


def test_what_is_there_is_skipped(provision, labelled, calls_of):
    first = provision(LABELS[:4])
    claimed = calls_of(CLAIM)
    again = provision()
    assert again.skipped == first.assigned
    assert list(again.assigned) == LABELS[4:]
    assert calls_of(CLAIM) - claimed == 2
    assert provision().skipped == {**first.assigned, **again.assigned}
    assert sorted(labelled()) == LABELS


def test_no_labels(provision, calls_of):
    assert provision([]) == luna_ext.ProvisionReport({}, {}, {})
    assert calls_of(CLAIM) == 0


@pytest.mark.luna_cluster(keyrings=8, password=SO_PIN)
@pytest.mark.parametrize("user_pin", [None, USER_PIN])
def test_so_many_device_calls_a_label_as_the_docstring_says(luna, provision, user_pin):
    provision(LABELS[:1], user_pin=user_pin)
    before = {name: stats.calls for name, stats in luna.stats().items()}
    provision(LABELS[1:], user_pin=user_pin, workers=1)
    made = {name: stats.calls - before.get(name, 0) for name, stats in luna.stats().items()}
    # On a busy machine a label may take long, and then it is asked for once more.
    assert made.pop("C_GetSessionInfo") >= 5
    # The first one's PIN is not proven yet.
    assert sum(made.values()) == 1 + 5 * (7 if user_pin is None else 12)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"labels": "payments"}, TypeError),
        ({"labels": ["good", 5]}, TypeError),
        ({"labels": ["good", "x" * 33]}, ValueError),
        ({"labels": ["good", ""]}, ValueError),
        ({"labels": ["good", "other", "good"]}, ValueError),
        ({"so_pin": ""}, ValueError),
        ({"so_pin": None}, TypeError),
        ({"user_pin": 1234}, TypeError),
        ({"workers": 0}, ValueError),
        ({"workers": 1.5}, TypeError),
        ({"guard": 1}, TypeError),
        ({"cluster_id": ""}, ValueError),
        ({"cluster_id": None}, TypeError),
    ],
)
def test_bad_arguments_do_not_reach_the_device(luna, arguments, error):
    before = luna.stats()
    cluster_id = arguments.pop("cluster_id", "cluster-1")
    with pytest.raises(error):
        luna_ext.provision(luna, cluster_id, **{"labels": LABELS, "so_pin": SO_PIN, **arguments})
    assert {name: stats.calls for name, stats in luna.stats().items()} == {
        name: stats.calls for name, stats in before.items()
    }


@pytest.mark.parametrize("missing", CLUSTER_FUNCTIONS)
def test_a_client_that_lacks_a_function_is_not_begun_with(cluster, old_client, missing):
    path = old_client(*(name for name in CLUSTER_FUNCTIONS if name != missing))
    with (
        luna_ext.Library(path) as luna,
        pytest.raises(luna_ext.UnsupportedFunctionError, match=missing) as caught,
    ):
        luna_ext.provision(luna, "cluster-1", LABELS, so_pin=SO_PIN)
    assert caught.value.function == missing
    assert not any(call.function.startswith("CA_") for call in cluster.log())


@ON_BOTH
def test_one_failure_does_not_stop_the_others(cluster, provision, labelled):
    cluster.fault(INIT_TOKEN, DEVICE_ERROR, times=1)
    report = provision()
    assert len(report.assigned) == 5
    ((label, error),) = report.failed.items()
    assert isinstance(error, luna_ext.DeviceError)
    assert sorted([label, *labelled()]) == LABELS
    assert list(provision().assigned) == [label]


@ON_BOTH
@pytest.mark.parametrize("workers", [1, 9])
def test_a_token_that_fails_is_met_by_one_label_alone(cluster, provision, labelled, workers):
    """Else a broken one could be claimed again and again, and fail them all."""
    cluster.fault(INIT_TOKEN, DEVICE_ERROR)
    # A worker that has failed and has no other label is done before the next one claims.
    cluster.latency(0.02, CLAIM)
    report = provision([f"label-{number}" for number in range(9)], workers=workers)
    assert len(report.failed) == 9
    assert sorted(slots_of(cluster, INIT_TOKEN)) == list(range(1, 9))
    last = [error for error in report.failed.values() if error.function != INIT_TOKEN]
    assert [type(error) for error in last] == [luna_ext.NoUnassignedTokenError]
    assert labelled() == {}


@pytest.mark.parametrize("rv", [SLOT_ID_INVALID, TOKEN_NOT_PRESENT, AGAIN, BUSY], ids=hex)
def test_a_token_that_vanishes_or_is_busy_at_the_first_call_says_nothing_of_the_pins(
    cluster, provision, rv
):
    cluster.fault(INIT_TOKEN, rv, times=1)
    report = provision()
    assert (len(report.assigned), len(report.failed)) == (len(LABELS) - 1, 1)


def test_a_pin_that_is_refused_at_first_is_tried_once(cluster, provision, labelled, calls_of):
    cluster.fault(INIT_TOKEN, PIN_INCORRECT)
    report = provision()
    assert list(report.failed) == LABELS
    assert all(isinstance(error, luna_ext.PinError) for error in report.failed.values())
    assert sum("not tried" in str(error) for error in report.failed.values()) == 5
    assert calls_of(INIT_TOKEN) == 1
    assert labelled() == {}


def test_no_token_is_claimed_for_a_pin_that_was_refused(cluster, provision, calls_of):
    cluster.fault(INIT_TOKEN, PIN_INCORRECT, times=1)
    assert list(provision(workers=1).failed) == LABELS
    assert calls_of(CLAIM) == 1


def test_a_user_pin_of_a_wrong_length_spoils_no_token(provision, labelled):
    report = provision(user_pin="1")
    assert list(report.failed) == LABELS
    assert all(isinstance(error, luna_ext.PinError) for error in report.failed.values())
    assert "the token takes 8 to 255" in str(report.failed[LABELS[0]])
    assert labelled() == {}


@DUAL_IDENTITY
def test_a_user_pin_that_is_refused_at_first_spoils_one_token(cluster, provision, labelled, luna):
    cluster.fault(INIT_PIN, PIN_INVALID, times=1)
    report = provision(user_pin=USER_PIN)
    assert list(report.failed) == LABELS
    ((label, [slot_id]),) = labelled().items()
    assert not has_user_pin(luna, slot_id)
    assert list(provision(user_pin=USER_PIN).assigned) == LABELS
    assert labelled()[label] == [slot_id]
    assert has_user_pin(luna, slot_id)


@pytest.mark.luna_cluster(keyrings=8, password=SO_PIN)
@pytest.mark.parametrize("rv", [PIN_INCORRECT, 0x8000BEEF])
def test_a_pin_that_has_worked_is_not_tried_any_more_once_it_is_refused(
    cluster, provision, labelled, calls_of, rv
):
    cluster.fault(INIT_TOKEN, rv, every=3, times=1)
    report = provision(workers=1)
    assert list(report.assigned) == LABELS[:2]
    refusal, *others = report.failed.values()
    assert "not tried" not in str(refusal)
    assert all("not tried" in str(error) for error in others)
    assert all(isinstance(error, luna_ext.PinError) for error in others)
    assert refusal.rv == rv
    assert calls_of(INIT_TOKEN) == 3
    # Those that have not been tried are there for the next run.
    assert list(provision().assigned) == LABELS[2:]


# The vendor's for a PIN, a PED or a lock-out; of a name that says nothing; without a name.
@pytest.mark.parametrize("rv", [0x8000001C, 0x80000067, 0x8000009D, 0x8000002D, 0x5, 0x8000BEEF])
@pytest.mark.parametrize("function", [INIT_TOKEN, "C_Login"])
def test_whatever_the_code_an_unproven_pin_is_tried_once(
    cluster, provision, calls_of, rv, function
):
    cluster.fault(function, rv)
    report = provision(user_pin=USER_PIN)
    assert list(report.failed) == LABELS
    assert calls_of(function) == 1
    assert sum("not tried" in str(error) for error in report.failed.values()) == 5


def test_tokens_are_assigned_side_by_side_once_the_pins_have_worked(
    cluster, provision, call, wait_until_inside
):
    cluster.latency(0.3, INIT_TOKEN)
    running = call(lambda: provision(workers=4))
    wait_until_inside(INIT_TOKEN, 2)
    assert list(running.result(30).assigned) == LABELS


def test_an_error_of_a_call_without_a_pin_keeps_no_other_label_from_being_tried(cluster, provision):
    cluster.fault(CLAIM, GENERAL_ERROR, times=1)
    report = provision(workers=1)
    assert list(report.failed) == LABELS[:1]
    assert list(report.assigned) == LABELS[1:]


@ON_BOTH
def test_more_labels_than_tokens(provision, labelled):
    report = provision([f"label-{number}" for number in range(11)])
    assert len(report.assigned) == 8
    assert len(report.failed) == 3
    for error in report.failed.values():
        assert isinstance(error, luna_ext.NoUnassignedTokenError)
    assert len(labelled()) == 8


@DUAL_IDENTITY
def test_a_token_that_lacks_its_user_pin_gets_it(luna, cluster, provision):
    cluster.fault(INIT_PIN, DEVICE_ERROR, times=1)
    report = provision(user_pin=USER_PIN)
    (label,) = report.failed
    (token,) = luna.find(label)
    assert not has_user_pin(luna, token.slot.slot_id)

    again = provision(user_pin=USER_PIN)
    assert again.assigned == {label: token.slot.slot_id}
    assert again.skipped == report.assigned
    assert has_user_pin(luna, token.slot.slot_id)


@DUAL_IDENTITY
def test_a_user_pin_that_another_host_sets_meanwhile_is_left_alone(
    luna, cluster, provision, call, wait_until_queued, calls_of
):
    with luna.claim("cluster-1") as token:
        token = token.assign(LABELS[0], so_pin=SO_PIN)
    with token:
        waiting = call(lambda: provision(LABELS[:1], user_pin=USER_PIN))
        wait_until_queued(token.slot, 1)
        token._set_user_pin(SO_PIN, USER_PIN)
    assert waiting.result().skipped == {LABELS[0]: token.slot.slot_id}
    assert calls_of(INIT_PIN) == 1


@pytest.mark.luna_cluster(keyrings=1)
def test_another_host_may_have_got_the_last_token_for_the_label(
    cluster, provision, call, wait_until_inside
):
    cluster.latency(1, CLAIM)
    waiting = call(lambda: provision(LABELS[:1]))
    wait_until_inside(CLAIM)
    label = LABELS[0].encode().ljust(32)
    assert ctypes.CDLL(library_path()).C_InitToken(ctypes.c_ulong(1), b"12345678", 8, label) == 0
    assert waiting.result().skipped == {LABELS[0]: 1}


@ON_BOTH
def test_an_unlock_that_fails_is_told(luna, cluster, provision):
    cluster.fault(UNLOCK, DEVICE_ERROR, times=1)
    report = provision()
    ((label, error),) = report.failed.items()
    assert isinstance(error, luna_ext.LockReleaseError)
    assert len(luna.find(label)) == 1
    assert len(report.assigned) == 5


def test_a_label_that_cannot_be_looked_up_at_the_end_is_said_to_be_assigned(
    luna, cluster, provision
):
    cluster.fault(FIND, GENERAL_ERROR, every=2, times=1)
    (error,) = provision(["payments"]).failed.values()
    (slot_id,) = [token.slot.slot_id for token in luna.find("payments")]
    assert f"the token in slot {slot_id} has been given the label 'payments'" in error.__notes__[0]
    # As the note says.
    assert provision(["payments"]).skipped == {"payments": slot_id}


def test_a_label_that_is_there_twice_is_a_conflict(luna, provision):
    slot_ids = []
    for _ in range(2):
        with luna.claim("cluster-1") as token:
            assigned = token.assign(LABELS[0], so_pin=SO_PIN, unique=False)
            slot_ids.append(assigned.slot.slot_id)
    report = provision()
    (error,) = report.failed.values()
    assert isinstance(error, luna_ext.AssignmentConflictError)
    assert error.slot_ids == tuple(sorted(slot_ids))
    assert all(str(slot_id) in str(error) for slot_id in slot_ids)
    assert list(report.assigned) == LABELS[1:]


@pytest.fixture
def without_user_pin(luna):
    """A token that has the first label, and lacks its user PIN."""
    with luna.claim("cluster-1") as token:
        return token.assign(LABELS[0], so_pin=SO_PIN)


def test_a_user_pin_that_cannot_be_looked_at_has_failed(cluster, provision, without_user_pin):
    cluster.fault("C_Login", DEVICE_ERROR, times=1)
    report = provision(LABELS[:1], user_pin=USER_PIN)
    assert isinstance(report.failed[LABELS[0]], luna_ext.DeviceError)
    assert provision(LABELS[:1], user_pin=USER_PIN).failed == {}


@DUAL_IDENTITY
def test_a_user_pin_is_not_set_where_the_lock_is_lost(luna, cluster, provision, without_user_pin):
    # The calls before it ask whether there is one, and check the label.
    cluster.fault("C_GetSessionInfo", SESSION_HANDLE_INVALID, times=1)
    report = provision(LABELS[:1], user_pin=USER_PIN)
    assert isinstance(report.failed[LABELS[0]], luna_ext.LockLostError)
    assert logged(cluster, "C_Login") == []
    # Else it would be left to the other code that seems to have initialised the library to finalise it.
    luna.reconnect()


@pytest.mark.parametrize(("identity", "function"), [("dual", INIT_PIN), ("single", "C_SetPIN")])
def test_close_does_not_unlock_while_a_user_pin_is_set(
    luna, cluster, provision, call, wait_until_inside, identity, function
):
    cluster.switch("identity", identity)
    with luna.claim("cluster-1") as token:
        token.assign(LABELS[0], so_pin=SO_PIN)
    cluster.latency(0.4, function)
    running = call(lambda: provision(LABELS[:1], user_pin=USER_PIN))
    wait_until_inside(function)
    with pytest.warns(ResourceWarning, match="still locked"):
        luna.close()
    with contextlib.suppress(luna_ext.LunaError):
        running.result()
    (setting,) = logged(cluster, function)
    # Where the last call is back before the unlock is made, C_Finalize drops the lock.
    freed = [
        call
        for name in (UNLOCK, "C_Finalize")
        for call in logged(cluster, name)
        if call.time > setting.time
    ]
    assert freed
    assert all(call.time >= setting.time + setting.duration for call in freed)


@ON_BOTH
@pytest.mark.luna_cluster(keyrings=1)
def test_a_token_that_failed_is_kept_until_the_last_worker_has_ended(cluster, provision):
    cluster.fault(INIT_TOKEN, DEVICE_ERROR, times=1)
    cluster.latency(0.3, CLAIM)
    report = provision(LABELS[:2], workers=2)
    assert report.assigned == {}
    errors = {type(error) for error in report.failed.values()}
    assert errors == {luna_ext.DeviceError, luna_ext.NoUnassignedTokenError}


def test_tokens_that_failed_come_off_although_a_log_filter_raises(cluster, provision, monkeypatch):
    """Two unlocks fail, which is logged; the others are made, and no worker is waited for in vain."""

    def refuse(record):
        raise RuntimeError("out of order")

    raised = []
    monkeypatch.setattr(sys, "unraisablehook", lambda report: raised.append(str(report.exc_value)))
    cluster.fault(INIT_TOKEN, DEVICE_ERROR, times=5)
    cluster.fault(UNLOCK, DEVICE_ERROR, times=2)
    logger = logging.getLogger("luna_ext")
    logger.addFilter(refuse)
    try:
        report = provision(LABELS[:5], workers=1)
    finally:
        logger.removeFilter(refuse)
    assert sorted(report.failed) == LABELS[:5]
    assert [bool(token.owner) for token in cluster.tokens()].count(True) == 2
    wait_until(lambda: raised)
    assert raised == ["out of order"]


# ---- while it runs ----


def test_progress_is_told_on_the_callers_thread(cluster, provision):
    provision(LABELS[:2])
    cluster.fault(INIT_TOKEN, DEVICE_ERROR, times=1)
    told, threads = [], set()

    def on_progress(progress):
        threads.add(threading.get_ident())
        told.append(progress)

    report = provision(on_progress=on_progress)
    assert threads == {threading.get_ident()}
    assert [progress.done for progress in told] == [1, 2, 3, 4, 5, 6]
    assert {progress.total for progress in told} == {6}
    by_label = {progress.label: progress for progress in told}
    for outcome in ("assigned", "skipped", "failed"):
        labels = {label for label, progress in by_label.items() if progress.outcome == outcome}
        assert labels == set(getattr(report, outcome))
    (failed,) = report.failed
    assert by_label[failed].error is report.failed[failed]
    assert by_label[LABELS[0]].slot_id == report.skipped[LABELS[0]]


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_a_progress_that_raises_ends_it(cluster, provision, labelled, kind):
    cluster.latency(0.005)

    def on_progress(progress):
        raise kind("enough")

    with pytest.raises(kind, match="enough"):
        provision(workers=2, on_progress=on_progress)
    assert 1 <= len(labelled()) < 6
    assert len(provision().failed) == 0
    assert sorted(labelled()) == LABELS


@pytest.mark.signals
def test_ctrl_c_ends_it(cluster, provision, labelled):
    cluster.latency(0.05)
    previous = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(KeyboardInterrupt):
            provision(workers=2)
    finally:
        signal.signal(signal.SIGALRM, previous)
    assert len(labelled()) < 6


AT_EACH_LINE = """
from luna_ext import provisioning

FILES = (provisioning.__file__, threading.__file__)
places = set()

def trace(frame, event, argument):
    "In front of each line that the calling thread comes to, once."
    if frame.f_code.co_filename not in FILES:
        return None
    place = (frame.f_code, frame.f_lineno)
    if event == "line" and place not in places:
        places.add(place)
        handle()
    return trace

def provision(number):
    labels = [f"{number}-{letter}" for letter in "ab"]
    sys.settrace(trace)
    try:
        return luna_ext.provision(luna, "cluster-1", labels, so_pin="12345678", workers=2)
    finally:
        sys.settrace(None)
"""


@pytest.mark.luna_cluster(keyrings=400)
def test_ctrl_c_at_any_line_of_it_ends_it_with_nothing_locked(succeed):
    body = f"""{AT_EACH_LINE}
def handle():
    raise KeyboardInterrupt

interrupts = 0
for number in range(100):
    try:
        report = provision(number)
        break
    except KeyboardInterrupt:
        interrupts += 1
    assert not any(token.owner for token in cluster.tokens())
assert interrupts > 20, places
print(len(report.assigned))
"""
    assert succeed(body) == ["2"]


@pytest.mark.luna_cluster(keyrings=400)
def test_a_child_that_a_signal_handler_forks_at_any_line_of_it_ends(succeed):
    """It makes it on its own, or is told that its parent does."""
    body = f"""{AT_EACH_LINE}
children = []

def handle():
    sys.settrace(None)
    children.append(os.fork())
    if children[-1] == 0:
        signal.alarm(40)

for number in range(100):
    before = len(children)
    try:
        report = provision(number)
    except RuntimeError as error:
        assert "this is the child" in str(error)
        # In whose calls another thread would have its turn.
        for _ in range(50):
            with luna.slot(1):
                pass
        mine = [entry.function for entry in cluster.log() if entry.pid == os.getpid()]
        assert "CA_GetSlotId" not in mine
    if children and children[-1] == 0:
        os._exit(0)
    if len(children) == before:
        break
    child = os.waitpid(children[-1], 0)
    assert child[1] == 0, (child, places)
assert len(children) > 20, places
print(len(report.assigned))
"""
    assert succeed(body, options=MAY_FORK) == ["2"]


def test_closing_the_library_fails_what_is_left(cluster, labelled):
    cluster.latency(0.005)
    luna = cluster.library()

    def on_progress(progress):
        if progress.done == 1:
            luna.close()

    with warnings.catch_warnings():
        # Whether a token is held at that moment is chance.
        warnings.simplefilter("ignore", ResourceWarning)
        report = luna_ext.provision(
            luna, "cluster-1", LABELS, so_pin=SO_PIN, workers=1, on_progress=on_progress
        )
    assert len(report.assigned) + len(report.failed) == 6
    assert any(isinstance(error, luna_ext.LibraryClosedError) for error in report.failed.values())
    labelled()


# ---- several processes ----

PROVISION = """
    import json
    slot_id = {guard}
    print("ready", flush=True)
    sys.stdin.readline()
    report = luna_ext.provision(
        luna,
        "cluster-1",
        [f"payments-{{number}}" for number in range({count})],
        so_pin="so-pin-1",
        user_pin="user-pin-1",
        workers={workers},
        guard=None if slot_id is None else luna.slot(slot_id),
    )
    failed = {{label: getattr(error, "slot_ids", None) for label, error in report.failed.items()}}
    luna.close()
    print(json.dumps([report.assigned, report.skipped, failed], separators=(",", ":")))
"""


@pytest.fixture
def at_once(program):
    """What processes report that provision the same labels at the same moment."""

    def run(processes, *, guard=None):
        body = PROVISION.format(guard=guard, count=len(LABELS), workers=2)
        started = [program(body) for _ in range(processes)]
        for one in started:
            one.expect("ready")
        for one in started:
            one.process.stdin.write("\n")
            one.process.stdin.flush()
        ends = [one.ended() for one in started]
        assert [(end.returncode, end.stderr) for end in ends] == [(0, "")] * processes
        return [json.loads(end.words[0]) for end in ends]

    return run


@ON_BOTH
@pytest.mark.luna_cluster(keyrings=20)
def test_two_hosts_without_a_guard_find_what_came_up_twice(cluster, at_once, labelled):
    cluster.latency(0.2, CLAIM)
    reports = at_once(2)
    found = labelled()
    assert set(found) == set(LABELS)
    twice = {label: sorted(slot_ids) for label, slot_ids in found.items() if len(slot_ids) > 1}
    assert twice
    told = {}
    for _, _, failed in reports:
        told.update(failed)
    assert {label: sorted(slot_ids) for label, slot_ids in told.items()} == twice


@ON_BOTH
@pytest.mark.luna_cluster(keyrings=20)
def test_a_guard_lets_no_label_come_up_twice(luna, cluster, at_once, labelled):
    with luna.claim("cluster-1") as token:
        guard = token.assign("guard", so_pin=SO_PIN).slot.slot_id
    cluster.latency(0.1, CLAIM)
    reports = at_once(3, guard=guard)
    assert all(len(slot_ids) == 1 for slot_ids in labelled().values())
    assert [failed for _, _, failed in reports] == [{}] * 3
    assert sorted(len(assigned) for assigned, _, _ in reports) == [0, 0, len(LABELS)]
    assert sorted(len(skipped) for _, skipped, _ in reports) == [0, len(LABELS), len(LABELS)]


# Starts a process some twenty times.
@pytest.mark.limit(4)
@ON_BOTH
@pytest.mark.luna_cluster(keyrings=40)
def test_killed_at_any_moment_and_run_again_it_comes_to_an_end(luna, cluster, program, labelled):
    cluster.latency(0.002)
    chance = random.Random(5)
    body = PROVISION.format(guard=None, count=30, workers=4)
    kills = 0
    # The time that each has grows, so that one of them has enough.
    while kills < 200:
        one = program(body)
        one.expect("ready")
        one.process.stdin.write("\n")
        one.process.stdin.flush()
        # A process that has finished by then has printed its result.
        if select.select([one.process.stdout], [], [], chance.uniform(0, 0.04) + kills * 0.01)[0]:
            break
        one.process.kill()
        assert one.ended().returncode == -signal.SIGKILL
        kills += 1
    end = one.ended()
    assert (end.returncode, end.stderr) == (0, "")
    assert 3 <= kills < 200
    found = labelled()
    assert len(found) == 30
    assert all(len(slot_ids) == 1 for slot_ids in found.values())
    assert all(has_user_pin(luna, slot_id) for (slot_id,) in found.values())


# ---- the guard ----


def test_the_guard_is_locked_meanwhile(luna, provision, owner_of):
    owners = set()
    provision(guard=luna.slot(8), on_progress=lambda progress: owners.add(owner_of(8)))
    assert owners == {os.getpid()}
    assert owner_of(8) is None


def test_a_guard_that_is_a_token_keeps_its_label(luna, provision):
    with luna.claim("cluster-1") as token:
        guard = token.assign("guard", so_pin=SO_PIN)
    assert len(provision(guard=guard).assigned) == 6
    with pytest.raises(luna_ext.LockReentryError), guard:
        provision(guard=guard)


def test_a_connection_that_is_lost_loses_the_guard(luna, cluster, provision):
    def on_progress(progress):
        cluster.disconnect(os.getpid())

    with pytest.raises(luna_ext.LockLostError):
        provision(guard=luna.slot(8), on_progress=on_progress)


# ---- what ends a worker ----

ENDED = """
import ctypes, logging
logging.getLogger("luna_ext").addHandler(logging.StreamHandler(sys.stdout))
workers = []

class Stop(BaseException):
    pass

def hook(event, arguments):
    if event == "luna_ext.claim":
        workers.append(threading.get_ident())
    if event == "luna_ext.assign" and AT == "assign":
        raise Stop

def stop():
    "Raised in the worker when its claim returns: between that and whatever comes next."
    wait_until_inside("CA_GetUnassignedSlot")
    raising = ctypes.pythonapi.PyThreadState_SetAsyncExc
    assert raising(ctypes.c_ulong(workers[0]), ctypes.py_object(Stop)) == 1

sys.addaudithook(hook)
if AT == "claim":
    cluster.latency(0.3, "CA_GetUnassignedSlot")
    in_thread(stop)
try:
    luna_ext.provision(luna, "cluster-1", ["first"], so_pin="12345678", workers=1)
except Stop:
    print("Stop")
# A claim that is interrupted in its very last step is given back by a thread of luna_ext.
wait_until(lambda: not any(each.locked() for each in luna.slots()))
wait_until(lambda: all(token.owner is None for token in cluster.tokens()))
called = [entry.function for entry in cluster.log() if entry.rv == 0]
assert called.count("CA_UnlockClusteredSlot") == called.count("CA_GetUnassignedSlot")
luna.close()
"""


@ON_BOTH
@pytest.mark.parametrize("at", ["claim", "assign"])
def test_whatever_ends_a_worker_is_raised_and_leaves_no_token_locked(cluster, succeed, at):
    """The token is not left locked until the worker's thread has ended either, which would be an ERROR."""
    assert succeed(f"AT = {at!r}\n{ENDED}", options=()) == ["Stop"]
