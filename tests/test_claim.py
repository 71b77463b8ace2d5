"""Claiming unassigned tokens, and assigning them."""

import contextlib
import contextvars
import ctypes
import logging
import os
import signal
import sys
import textwrap
import threading

import pytest
from support import (
    CLAIM,
    DEVICE_ERROR,
    DUAL_IDENTITY,
    INIT_TOKEN,
    LOCK,
    NONE_LEFT,
    UNLOCK,
    have_returned,
    logged,
    nothing_is_locked,
    wait_until,
)

import luna_ext
from luna_ext.info import CLUSTER_FUNCTIONS
from luna_ext.stub import Cluster, library_path

pytestmark = pytest.mark.usefixtures("regrant")

SO_PIN = "so-pin-never-shown"
USER_PIN = "user-pin-never-shown"


def test_claim_comes_locked_and_is_only_unlocked(luna, owner_of, calls_of):
    with luna.claim("cluster-1") as token:
        assert isinstance(token, luna_ext.Token)
        assert token.label == f"keyring{token.slot.slot_id}"
        assert owner_of(token.slot.slot_id) == os.getpid()
        assert token.slot.locked()
        token.ensure_held()
    assert owner_of(token.slot.slot_id) is None
    assert (calls_of(CLAIM), calls_of(LOCK), calls_of(UNLOCK)) == (1, 0, 1)


@pytest.mark.luna_cluster(first_slot=0)
def test_a_claim_that_does_not_say_of_which_slot_unlocks_none(
    cluster, luna, hold_elsewhere, owner_of
):
    hold_elsewhere(0)
    cluster.fault(CLAIM, 0, times=1, lost_reply=True)
    with pytest.raises(luna_ext.CryptokiError, match="has not written which slot") as caught:
        luna.claim("cluster-1").__enter__()
    assert (caught.value.rv, caught.value.function) == (0, CLAIM)
    assert logged(cluster, UNLOCK) == []
    (slot_id,) = (each.slot_id for each in cluster.tokens() if each.owner == os.getpid())
    # The advice helps.
    luna.reconnect()
    assert owner_of(slot_id) is None


def test_nothing_happens_before_the_with(luna, calls_of):
    luna.claim("cluster-1", timeout=1)
    assert calls_of(CLAIM) == 0


def test_claims_give_different_tokens_and_then_none(luna, cluster):
    claims = [luna.claim("cluster-1") for _ in range(8)]
    tokens = [claim.__enter__() for claim in claims]
    assert len({token.slot for token in tokens}) == 8
    with pytest.raises(luna_ext.NoUnassignedTokenError, match="cluster-1") as caught:
        luna.claim("cluster-1").__enter__()
    assert (caught.value.rv, caught.value.function) == (0x6, CLAIM)
    for claim in claims:
        claim.__exit__(None, None, None)
    assert nothing_is_locked(cluster)


@pytest.mark.luna_cluster(keyrings=16)
def test_a_claim_beside_locks_on_all_tokens_gets_none(luna, cluster, regrant):
    """The device says so, or gives it what this process holds as often as it asks."""
    with contextlib.ExitStack() as held:
        for slot in luna.slots():
            held.enter_context(slot)
        with pytest.raises(luna_ext.NoUnassignedTokenError):
            luna.claim("cluster-1").__enter__()
    answers = [one.rv for one in logged(cluster, CLAIM)]
    assert answers == ([0] * 16 if regrant == "on" else [NONE_LEFT])
    assert nothing_is_locked(cluster)


def test_a_claim_can_be_used_again_but_not_twice_at_once(luna):
    claim = luna.claim("cluster-1")
    with claim, pytest.raises(luna_ext.LockReentryError), claim:
        pass
    with claim as token:
        token.ensure_held()


def test_a_claim_that_is_interrupted_before_it_asks_can_be_used_again(luna, caplog, monkeypatch):
    def interrupt(level):
        raise KeyboardInterrupt

    claim = luna.claim("cluster-1")
    caplog.set_level(logging.DEBUG, "luna_ext")
    with monkeypatch.context() as patched:
        patched.setattr(logging.getLogger("luna_ext"), "isEnabledFor", interrupt)
        with pytest.raises(KeyboardInterrupt):
            claim.__enter__()
    with claim as token:
        token.ensure_held()


def test_a_claims_block_is_entered_once_and_left_once(luna, cluster, call):
    claim = luna.claim("cluster-1")
    with pytest.raises(luna_ext.LockNotOwnedError):
        claim.__exit__(None, None, None)
    cluster.latency(0.1, CLAIM)
    barrier = threading.Barrier(2)
    outcomes = []
    end = threading.Event()

    def enter():
        barrier.wait(10)
        try:
            with claim:
                outcomes.append("entered")
                assert end.wait(60)
        except luna_ext.LockReentryError:
            outcomes.append("refused")

    callers = [call(enter), call(enter)]
    wait_until(lambda: len(outcomes) == 2)
    assert outcomes.count("refused") == 1
    held = [token for token in cluster.tokens() if token.owner is not None]
    assert len(held) == 1
    end.set()
    for caller in callers:
        caller.result()
    assert nothing_is_locked(cluster)
    with pytest.raises(luna_ext.LockNotOwnedError):
        claim.__exit__(None, None, None)


def test_a_claims_block_is_not_ended_by_another_thread(luna, hold_here):
    claim = luna.claim("cluster-1")
    holder = hold_here(claim)
    with pytest.raises(luna_ext.LockNotOwnedError):
        claim.__exit__(None, None, None)
    holder.leave()


def test_claim_waits_for_a_token_to_become_free(call):
    with Cluster(keyrings=1) as cluster, cluster.library() as luna:
        released = threading.Event()
        claimed = threading.Event()

        def hold():
            with luna.claim("cluster-1"):
                claimed.set()
                released.wait(10)

        holder = call(hold)
        assert claimed.wait(10)
        with pytest.raises(luna_ext.NoUnassignedTokenError, match=r"0\.05 s"):
            luna.claim("cluster-1", timeout=0.05).__enter__()
        threading.Timer(0.05, released.set).start()
        with luna.claim("cluster-1", timeout=10) as token:
            assert cluster.tokens()[0].owner == os.getpid()
        holder.result()
        assert token.label == "keyring1"


@pytest.mark.parametrize(
    ("arguments", "options", "error"),
    [
        ((1,), {}, TypeError),
        ((b"cluster-1",), {}, TypeError),
        (("",), {}, ValueError),
        (("a\0b",), {}, ValueError),
        (("cluster-1",), {"timeout": -1}, ValueError),
        (("cluster-1",), {"timeout": "1"}, TypeError),
    ],
)
def test_bad_arguments_do_not_reach_the_device(luna, calls_of, arguments, options, error):
    with pytest.raises(error):
        luna.claim(*arguments, **options)
    assert calls_of(CLAIM) == 0


def test_another_clusters_id_is_refused_by_the_device(luna):
    with pytest.raises(luna_ext.ArgumentsBadError) as caught, luna.claim("cluster-2"):
        pass
    assert "is 'cluster-2' the cluster's ID?" in caught.value.__notes__[0]


@pytest.mark.parametrize("rv", [0x7, 0x30, 0x150, 0x190, 0x8000001F])
def test_errors_of_a_claim_leave_nothing_locked(luna, cluster, rv):
    cluster.fault(CLAIM, rv, times=1)
    with pytest.raises(luna_ext.CryptokiError) as caught, luna.claim("cluster-1"):
        pass
    assert caught.value.rv == rv
    assert nothing_is_locked(cluster)


@pytest.mark.signals
def test_ctrl_c_inside_a_claim_leaves_nothing_locked(luna, cluster):
    cluster.latency(0.2, CLAIM)
    main = threading.main_thread().ident
    timer = threading.Timer(0.05, signal.pthread_kill, (main, signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        luna.claim("cluster-1").__enter__()
    timer.join()
    for slot in luna.slots():
        # Queued behind the unlock, if that is still under way.
        with slot.lock(timeout=10):
            pass
    assert nothing_is_locked(cluster)


def test_assign_gives_the_label_and_the_pins(luna, cluster, owner_of):
    with luna.claim("cluster-1") as token:
        new = token.assign("payments-01", so_pin=SO_PIN, user_pin=USER_PIN)
        assert new.label == "payments-01"
        assert new.slot is token.slot
        assert owner_of(new.slot.slot_id) == os.getpid()
        new.ensure_held()
        with pytest.raises(luna_ext.TokenChangedError):
            token.ensure_held()
    flags = luna.token("payments-01").info.flags
    assert luna_ext.TokenFlag.TOKEN_INITIALIZED in flags
    assert luna_ext.TokenFlag.USER_PIN_INITIALIZED in flags
    assigned = [token for token in cluster.tokens() if token.label != token.original_label]
    assert [token.label for token in assigned] == ["payments-01"]


class TextOfAnotherKind(str):
    """As configuration libraries have them."""


ENDS_OF_UTF_8 = "\x7f\x80\u07ff\u0800\ud7ff\ue000\uffff\U00010000\U0010ffff"
"""The last characters of each length, and the first of the next; and those beside the surrogates."""


@DUAL_IDENTITY
@pytest.mark.parametrize(
    "kind", [str, TextOfAnotherKind, str.encode, lambda pin: bytearray(pin, "utf-8")]
)
def test_pins_of_every_kind(luna, kind):
    with luna.claim("cluster-1") as token:
        so_pin, user_pin = kind("sö-pin-1"), kind(f"ü€😀-{ENDS_OF_UTF_8}")
        new = token.assign("kind", so_pin=so_pin, user_pin=user_pin)
        assert so_pin == kind("sö-pin-1")
        assert luna_ext.TokenFlag.USER_PIN_INITIALIZED in new.info.flags
    # The device keeps exactly these bytes.
    assert log_in(new.slot.slot_id, 0, "sö-pin-1".encode()) == 0
    assert log_in(new.slot.slot_id, 1, f"ü€😀-{ENDS_OF_UTF_8}".encode()) == 0
    assert log_in(new.slot.slot_id, 1, b"another") == 0xA0


def log_in(slot_id, user, pin):
    """What C_Login answers to another user of the same client library."""
    client = ctypes.CDLL(library_path())
    session = ctypes.c_ulong()
    rv = client.C_OpenSession(ctypes.c_ulong(slot_id), 6, None, None, ctypes.byref(session))
    assert rv == 0
    rv = client.C_Login(session, ctypes.c_ulong(user), pin, ctypes.c_ulong(len(pin)))
    client.C_Logout(session)
    client.C_CloseSession(session)
    return rv


def test_a_pin_that_is_no_text_leaves_no_trace(luna):
    with luna.claim("cluster-1") as token, pytest.raises(ValueError, match="so_pin") as caught:
        token.assign("new", so_pin="\udc80 never shown")
    assert caught.value.__context__ is None
    assert caught.value.__cause__ is None


@DUAL_IDENTITY
def test_without_a_user_pin_no_session_is_opened(luna, calls_of):
    with luna.claim("cluster-1") as token:
        new = token.assign("no-user", so_pin=SO_PIN)
        assert luna_ext.TokenFlag.USER_PIN_INITIALIZED not in new.info.flags
    assert calls_of("C_Login") == 0
    assert calls_of("C_InitToken") == 1


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"so_pin": 12345678}, TypeError),
        ({"so_pin": None}, TypeError),
        ({"so_pin": ""}, ValueError),
        ({"so_pin": [49, 50, 51, 52]}, TypeError),
        ({"so_pin": "12345678\0never"}, ValueError),
        ({"so_pin": b"12345678\0"}, ValueError),
        ({"so_pin": SO_PIN, "user_pin": b"12345678\0never"}, ValueError),
        ({"so_pin": "\ud800 never shown"}, ValueError),
        ({"so_pin": memoryview(b"n-e-v-e-r-  shown")[::2]}, ValueError),
        ({"so_pin": SO_PIN, "user_pin": b""}, ValueError),
        ({"so_pin": SO_PIN, "user_pin": 1}, TypeError),
        ({}, TypeError),
    ],
)
def test_bad_pins_do_not_reach_the_device(luna, calls_of, options, error):
    with luna.claim("cluster-1") as token:
        with pytest.raises(error) as caught:
            token.assign("new", **options)
        assert "never" not in str(caught.value)
        assert calls_of("C_InitToken") == calls_of("C_GetTokenInfo") == 0
        assert token.slot.token_info.label == token.label


def test_a_pin_in_memory_of_the_callers_own(luna):
    with luna.claim("cluster-1") as token:
        assigned = token.assign("new", so_pin=memoryview(b"..so-pin-1..")[2:-2])
        assigned.change_pin("so-pin-1", "so-pin-2", role="so")


def test_a_copy_of_a_pin_does_not_come_along_into_a_forked_child(succeed):
    body = """
        from luna_ext._cluster import copied_pins
        so_pin, _ = copied_pins("so-pin-1", None)
        if os.fork() == 0:
            with luna.claim("cluster-1") as token:
                try:
                    token.assign("new", so_pin=so_pin)
                except ValueError as error:
                    print("child:", *str(error).split()[-3:])
            sys.stdout.flush()
            os._exit(0)
        os.wait()
        with luna.claim("cluster-1") as token:
            print(token.assign("new", so_pin=so_pin).label)
    """
    assert " ".join(succeed(body)) == "child: give it again new"


def test_assigning_the_original_label_is_refused(luna, calls_of):
    with luna.claim("cluster-1") as token:
        with pytest.raises(ValueError, match="stay unassigned"):
            token.assign(token.label, so_pin=SO_PIN)
        assert calls_of("C_InitToken") == 0


def test_assign_needs_the_lock(luna, call, calls_of):
    with luna.claim("cluster-1") as token, pytest.raises(luna_ext.LockNotOwnedError):
        call(lambda: token.assign("new", so_pin=SO_PIN)).result()
    with pytest.raises(luna_ext.LockNotOwnedError):
        token.assign("new", so_pin=SO_PIN)
    with token.slot, pytest.raises(luna_ext.LockNotOwnedError, match="since claim"):
        token.assign("new", so_pin=SO_PIN)
    found = luna.token("keyring1")
    with pytest.raises(luna_ext.LockNotOwnedError):
        found.assign("new", so_pin=SO_PIN)
    assert calls_of("C_InitToken") == 0


def test_assign_needs_a_claimed_token(luna, calls_of):
    with luna.token("keyring1") as token, pytest.raises(luna_ext.AssignmentConflictError):
        token.assign("new", so_pin=SO_PIN)
    with luna.claim("cluster-1") as token:
        new = token.assign("new", so_pin=SO_PIN)
        for again in (token, new):
            with pytest.raises(luna_ext.AssignmentConflictError):
                again.assign("newer", so_pin=SO_PIN)
    assert calls_of("C_InitToken") == 1


def test_a_label_that_is_there_is_refused_before_anything_is_erased(luna, cluster, calls_of):
    with luna.claim("cluster-1") as token:
        first = token.assign("new", so_pin=SO_PIN)
    with (
        luna.claim("cluster-1") as token,
        pytest.raises(luna_ext.AssignmentConflictError, match="unique=False") as raised,
    ):
        token.assign("new", so_pin=SO_PIN)
    assert raised.value.slot_ids == (first.slot.slot_id,)
    assert str(first.slot.slot_id) in str(raised.value)
    assert calls_of("C_InitToken") == 1
    assert nothing_is_locked(cluster)


def test_the_claim_can_be_assigned_another_label_then(luna):
    with luna.claim("cluster-1") as token:
        token.assign("new", so_pin=SO_PIN)
    with luna.claim("cluster-1") as token:
        with pytest.raises(luna_ext.AssignmentConflictError):
            token.assign("new", so_pin=SO_PIN)
        assert token.assign("newer", so_pin=SO_PIN).label == "newer"


def test_a_label_may_be_given_twice_if_one_says_so(luna, calls_of):
    for _ in range(2):
        with luna.claim("cluster-1") as token:
            token.assign("new", so_pin=SO_PIN, unique=False)
    assert len(luna.find("new")) == 2
    with pytest.raises(luna_ext.AmbiguousLabelError):
        luna.token("new")


def test_a_search_that_fails_erases_nothing(luna, cluster, calls_of):
    cluster.fault("CA_GetSlotId", DEVICE_ERROR)
    with luna.claim("cluster-1") as token, pytest.raises(luna_ext.DeviceError):
        token.assign("new", so_pin=SO_PIN)
    assert calls_of("C_InitToken") == 0


def test_a_token_that_was_assigned_behind_the_lock_is_left_alone(luna, cluster, calls_of):
    vendor_tool = ctypes.CDLL(library_path())
    # The library's own session stays on its token. One that has a session cannot be initialised.
    with luna.claim("cluster-1") as token:
        token.assign("elsewhere", so_pin=SO_PIN)
    with luna.claim("cluster-1") as token:
        assert token.info.label == token.label
        rv = vendor_tool.C_InitToken(
            ctypes.c_ulong(token.slot.slot_id), b"12345678", ctypes.c_ulong(8), b"other".ljust(32)
        )
        assert rv == 0
        with pytest.raises(luna_ext.AssignmentConflictError, match="'other'"):
            token.assign("new", so_pin=SO_PIN)
        assert token.info.label == "other"
    assert calls_of("C_InitToken") == 1
    assert luna.token("other").slot is token.slot


def test_assign_notices_a_lost_lock(luna, cluster, calls_of):
    with pytest.raises(luna_ext.LockLostError), luna.claim("cluster-1") as token:
        cluster.disconnect(os.getpid())
        with pytest.raises(luna_ext.LockLostError):
            token.assign("new", so_pin=SO_PIN)
        assert calls_of("C_InitToken") == 0


@pytest.mark.parametrize(
    ("function", "rv", "label_took"),
    [
        ("C_InitToken", 0xA0, False),
        ("C_OpenSession", 0xB1, True),
        ("C_Login", 0xA4, True),
        ("C_InitPIN", 0xA2, True),
    ],
)
def test_errors_of_each_step_say_how_far_it_came(luna, cluster, caplog, function, rv, label_took):
    caplog.set_level(logging.DEBUG)
    # The library's own session stays on its token.
    with luna.claim("cluster-1") as token:
        token.assign("elsewhere", so_pin=SO_PIN)
    with luna.claim("cluster-1") as token:
        cluster.fault(function, rv, times=1)
        with pytest.raises(luna_ext.CryptokiError) as caught:
            token.assign("new", so_pin=SO_PIN, user_pin=USER_PIN)
        assert (caught.value.function, caught.value.rv) == (function, rv)
        notes = " ".join(caught.value.__notes__)
        assert ("user_pin is not set" in notes) == label_took
        assert token.slot.token_info.label == ("new" if label_took else token.label)
        # The library's own.
        assert token.slot.token_info.session_count <= 1
        assert "never-shown" not in f"{caught.value!r} {caught.value} {notes} {caplog.text}"
    assert not token.slot.locked()


def test_wrong_pins_are_pin_errors(luna, cluster):
    with luna.claim("cluster-1") as token:
        with pytest.raises(luna_ext.PinError) as caught:
            token.assign("new", so_pin="1")
        assert caught.value.rv_name == "CKR_PIN_INCORRECT"
        assert any("label is 'keyring" in note for note in caught.value.__notes__)
        token.assign("new", so_pin=SO_PIN)


def test_a_label_that_did_not_take(luna, cluster):
    cluster.fault("C_InitToken", 0, times=1)
    with (
        luna.claim("cluster-1") as token,
        pytest.raises(luna_ext.AssignmentConflictError, match="reported success"),
    ):
        token.assign("new", so_pin=SO_PIN)


def test_the_end_of_a_claim_reports_like_the_end_of_a_lock(luna, cluster):
    cluster.fault(UNLOCK, DEVICE_ERROR, times=1)
    with pytest.raises(luna_ext.LockReleaseError), luna.claim("cluster-1"):
        pass
    cluster.fault(UNLOCK, DEVICE_ERROR, times=1)
    with pytest.raises(KeyError) as caught, luna.claim("cluster-1"):
        raise KeyError
    assert caught.value.__notes__


def test_threads_that_claim_and_lock_the_same_slots_never_share_one(luna, call):
    holders: dict[int, int] = {}
    clashes = []

    def hold(slot):
        me = threading.get_ident()
        if holders.setdefault(slot.slot_id, me) != me:
            clashes.append(slot.slot_id)
        os.sched_yield()
        if holders.pop(slot.slot_id, None) != me:
            clashes.append(slot.slot_id)

    def claim():
        for _ in range(150):
            with luna.claim("cluster-1", timeout=30) as token:
                hold(token.slot)

    def lock():
        for turn in range(300):
            slot = luna.slot(1 + turn % 8)
            with slot:
                hold(slot)

    for caller in [call(claim), call(claim), call(lock), call(lock)]:
        caller.result(60)
    assert clashes == []
    assert not any(slot.locked() for slot in luna.slots())


def test_held_locks_are_on_the_device_whatever_is_claimed_and_locked(luna, cluster, call, owner_of):
    stop = threading.Event()
    lost = []

    def check(slot):
        if owner_of(slot.slot_id) != os.getpid():
            lost.append(slot)

    def lock(first):
        turn = first
        while not stop.is_set():
            turn += 1
            with luna.slot(1 + turn % 3) as slot:
                if turn % 2:
                    check(slot)

    def claim():
        for _ in range(300):
            with luna.claim("cluster-1", timeout=10) as token:
                check(token.slot)

    others = [call(lambda first=first: lock(first)) for first in range(3)]
    claimers = [call(claim) for _ in range(2)]
    try:
        for caller in claimers:
            caller.result(60)
    finally:
        stop.set()
        for caller in others:
            caller.result()
    assert lost == []
    assert nothing_is_locked(cluster)


@pytest.mark.parametrize("relock", ["wait", "error"])
def test_a_claim_and_a_lock_call_for_one_slot(cluster, call, owner_of, relock):
    cluster.switch("relock", relock)
    contention = "poll" if relock == "error" else "block"
    with cluster.library(contention=contention) as luna:
        with luna.claim("cluster-1") as token:
            slot = token.slot

            def lock():
                with slot:
                    return owner_of(slot.slot_id)

            waiting = call(lock)
            assert owner_of(slot.slot_id) == os.getpid()
        assert waiting.result() == os.getpid()
        assert nothing_is_locked(cluster)


def test_a_release_does_not_wait_for_a_slow_claim(luna, cluster, call, owner_of, wait_until_inside):
    """The claim may have been given the same slot; the unlock is made once that is known."""
    cluster.latency(2, CLAIM)
    left = threading.Event()

    def claim():
        with luna.claim("cluster-1") as token:
            assert left.is_set()
            return owner_of(token.slot.slot_id)

    claiming = call(claim)
    wait_until_inside(CLAIM)
    for slot_id in range(1, 4):
        with luna.slot(slot_id):
            pass
    left.set()
    assert claiming.result() == os.getpid()
    wait_until(lambda: nothing_is_locked(cluster))


def hold_while_a_claim_unlocks(slot, cluster, owner_of):
    """The owner of the slot's lock once no unlock is under way any more."""
    with slot:
        wait_until(lambda: have_returned(logged(cluster, UNLOCK)))
        return owner_of(slot.slot_id)


@pytest.mark.luna_cluster(keyrings=1)
def test_no_lock_call_is_sent_while_a_claim_unlocks_the_slot(cluster, call, owner_of):
    """The device may grant the one and carry out the other afterwards."""
    with cluster.library(contention="poll") as luna:
        slot = luna.slot(1)
        cluster.fault(LOCK, DEVICE_ERROR)
        polling = call(lambda: hold_while_a_claim_unlocks(slot, cluster, owner_of))
        wait_until(lambda: len(logged(cluster, LOCK)) >= 2)
        with luna.claim("cluster-1", timeout=5) as token:
            assert token.slot is slot
            cluster.latency(0.8, UNLOCK)
            cluster.fault(LOCK, DEVICE_ERROR, times=0)
        cluster.latency(0, UNLOCK)
        assert polling.result() == os.getpid()


@pytest.mark.luna_cluster(keyrings=1)
def test_a_claim_does_not_unlock_while_a_lock_call_for_the_slot_is_outstanding(
    cluster, luna, call, wait_until_inside, owner_of
):
    cluster.latency(0.3, LOCK)
    cluster.latency(0.7, UNLOCK)
    locking = call(lambda: hold_while_a_claim_unlocks(luna.slot(1), cluster, owner_of))
    wait_until_inside(LOCK)
    with contextlib.suppress(luna_ext.NoUnassignedTokenError), luna.claim("cluster-1"):
        pass
    assert locking.result() == os.getpid()


# What is looked for is the end, which stays longest in memory that is freed and given out again. It
# is kept masked, so that what looks for it is not found.
HEAP = """
import ctypes, mmap

def mask(text):
    return bytearray(byte ^ 0x5A for byte in text)

def copies(masked):
    with open("/proc/self/maps") as maps:
        (line,) = [line for line in maps if line.rstrip().endswith("[heap]")]
    low, high = (int(address, 16) for address in line.split()[0].split("-"))
    # Not in the heap.
    heap = mmap.mmap(-1, high - low)
    memory = os.open("/proc/self/mem", os.O_RDONLY)
    assert os.preadv(memory, [heap], low) == high - low
    os.close(memory)
    wanted = mask(masked)
    found, at = 0, heap.find(wanted)
    while at >= 0:
        found, at = found + 1, heap.find(wanted, at + 1)
    wanted[:] = bytes(len(wanted))
    return found

secret = bytearray(64)
for index in range(len(secret)):
    secret[index] = ord("0") + os.urandom(1)[0] % 10
masked = mask(secret[-12:])
malloc = ctypes.CDLL(None).malloc
malloc.restype = ctypes.c_void_p
address = malloc(ctypes.c_size_t(len(secret)))
"""


def test_no_copy_of_a_pin_is_left_in_memory(succeed):
    body = """
        ctypes.memmove(address, (ctypes.c_char * len(secret)).from_buffer(secret), len(secret))
        print(copies(masked))
        ctypes.memset(address, 0, len(secret))
        for number in range(8):
            with luna.claim("cluster-1") as token:
                token.assign(f"label-{number}", so_pin=secret, user_pin=secret)
        secret[:] = bytes(len(secret))
        print(copies(masked))
        luna.close()
    """
    assert_no_copy_is_left(succeed, body)


@pytest.mark.skipif(sys.platform != "linux", reason="looks for the memory in /proc/self/smaps")
@pytest.mark.parametrize("fails", [False, True])
def test_the_memory_of_a_pin_is_given_back(luna, cluster, fails):
    """It is wiped in forked children, as no other memory of this process is."""

    def kept():
        with open("/proc/self/smaps") as maps:
            return sum("wf" in line.split() for line in maps if line.startswith("VmFlags:"))

    before = kept()
    cluster.latency(0.5, INIT_TOKEN)
    if fails:
        cluster.fault(INIT_TOKEN, DEVICE_ERROR)
    with luna.claim("cluster-1") as token:
        context, errors = contextvars.copy_context(), []

        def assign():
            try:
                token.assign("payments", so_pin="12345678", user_pin=b"87654321")
            except luna_ext.DeviceError as error:
                errors.append(str(error))

        working = threading.Thread(target=context.run, args=(assign,))
        working.start()
        wait_until(lambda: logged(cluster, INIT_TOKEN))
        assert kept() > before
        working.join()
    assert len(errors) == fails
    assert kept() == before


def assert_no_copy_is_left(succeed, body):
    """The program prints how many copies there are while there is one, and afterwards."""
    one, none = succeed(HEAP + textwrap.dedent(body))
    if one == "0":
        pytest.skip("malloc() takes its memory from elsewhere than the heap")
    assert (one, none) == ("1", "0")


@pytest.mark.parametrize("timeout", [0, 5])
def test_a_claim_that_does_not_say_which_slot_it_gives(old_client, cluster, timeout):
    """No slot is taken for it, and none is unlocked."""
    with luna_ext.Library(old_client(*CLUSTER_FUNCTIONS, nameless_claims=True)) as luna:
        with pytest.raises(luna_ext.CryptokiError) as caught:
            luna.claim("cluster-1", timeout=timeout).__enter__()
        assert (caught.value.rv, caught.value.function) == (0, "CA_GetUnassignedSlot")
        assert "has not written which slot it gives" in str(caught.value)
        assert len([token for token in cluster.tokens() if token.owner is not None]) == 1
        # As the error says.
        luna.reconnect()
        assert [token for token in cluster.tokens() if token.owner is not None] == []
        assert not any(slot.locked() for slot in luna.slots())
    assert "CA_UnlockClusteredSlot" not in {call.function for call in cluster.log()}


def test_a_claim_that_does_not_say_the_label_is_not_assigned(old_client, cluster):
    """Another claim would be no better."""
    with (
        luna_ext.Library(old_client(*CLUSTER_FUNCTIONS, unlabelled_claims=True)) as luna,
        luna.claim("cluster-1") as token,
    ):
        assert token.label == ""
        with pytest.raises(luna_ext.AssignmentConflictError) as caught:
            token.assign("payments", so_pin="so-pin-1")
        assert "the client has not told its label with the claim" in str(caught.value)
        assert "laim another" not in str(caught.value)
    assert "C_InitToken" not in {call.function for call in cluster.log()}


def test_no_copy_of_a_pin_that_cannot_be_encoded_is_left_in_memory(succeed):
    """Its last character is the one that cannot. Python keeps the text with two bytes for each."""
    body = """
        ctypes.memmove(address, (ctypes.c_char * len(secret)).from_buffer(secret), len(secret))
        print(copies(masked))
        ctypes.memset(address, 0, len(secret))
        text = secret.decode() + chr(0xDC80)
        with luna.claim("cluster-1") as token:
            for number in range(8):
                try:
                    token.assign("label", so_pin=text)
                except ValueError:
                    pass
        secret[:] = bytes(len(secret))
        print(copies(masked))
        luna.close()
    """
    assert_no_copy_is_left(succeed, body)
