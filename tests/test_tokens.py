"""Finding tokens by their label, and locking them."""

import ctypes
import os
import signal
import threading
import time

import pytest
from support import DEVICE_ERROR, NO_MORE_THREADS, TOKEN_INFO, entry_of, logged, wait_until

import luna_ext
from luna_ext.stub import Cluster

GET_SLOT_ID = "CA_GetSlotId"
PIN = "12345678"


def assign(luna, label, count=1):
    """Give `count` tokens one and the same label; their slots."""
    slots = []
    for _ in range(count):
        with luna.claim("cluster-1") as token:
            slots.append(token.assign(label, so_pin=PIN, unique=False).slot)
    return slots


def test_token_finds_the_one_with_the_label(luna, calls_of):
    token = luna.token("keyring3")
    assert token.label == "keyring3"
    assert token.slot is luna.slot(3)
    assert calls_of(GET_SLOT_ID) == 1
    assert token.info.label == "keyring3"
    assert token.info is token.info
    assert calls_of("C_GetTokenInfo") == 1
    assert "keyring3" in repr(token)


def test_no_such_token(luna):
    assert luna.find("nobody") == []
    with pytest.raises(luna_ext.TokenNotFoundError, match="nobody") as caught:
        luna.token("nobody")
    assert isinstance(caught.value, LookupError)


def test_an_ambiguous_label_lists_the_slots(luna):
    slots = assign(luna, "twice", 2)
    with pytest.raises(luna_ext.AmbiguousLabelError) as caught:
        luna.token("twice")
    assert set(caught.value.slot_ids) == {slot.slot_id for slot in slots}
    assert [token.slot for token in luna.find("twice")] == sorted(
        slots, key=lambda slot: slot.slot_id
    )


@pytest.mark.parametrize(("matches", "calls"), [(1, 1), (16, 1), (17, 2), (40, 2)])
def test_find_needs_one_call_for_up_to_16_matches(monkeypatch, matches, calls):
    with Cluster(keyrings=40) as cluster, cluster.library() as luna:
        slots = assign(luna, "same", matches)
        before = luna.stats().get(GET_SLOT_ID)
        found = luna.find("same")
        after = luna.stats()[GET_SLOT_ID]
        assert {token.slot for token in found} == set(slots)
        assert after.calls - (before.calls if before else 0) == calls


def test_a_buffer_that_is_too_small_for_no_reason_is_an_error_and_no_loop(luna, cluster):
    cluster.fault(GET_SLOT_ID, 0x150)
    with pytest.raises(luna_ext.BufferTooSmallError):
        luna.find("keyring1")
    # Once alone, it is asked again.
    cluster.fault(GET_SLOT_ID, 0x150, times=1)
    assert [token.label for token in luna.find("keyring1")] == ["keyring1"]


def test_with_token_locks_its_slot(luna, owner_of):
    token = luna.token("keyring2")
    with token as entered:
        assert entered is token
        assert owner_of(2) == os.getpid()
        token.ensure_held()
        with pytest.raises(luna_ext.LockReentryError), token:
            pass
    assert owner_of(2) is None
    with token.lock(timeout=5) as entered:
        assert entered is token
        assert owner_of(2) == os.getpid()
    with pytest.raises(luna_ext.LockNotOwnedError):
        token.ensure_held()


def test_a_token_that_changed_is_not_entered(luna, owner_of):
    tokens = luna.tokens()
    (slot,) = assign(luna, "changed")
    token = next(token for token in tokens if token.slot is slot)
    with pytest.raises(luna_ext.TokenChangedError, match="'changed'") as caught, token:
        pass
    assert caught.value.slot_id == slot.slot_id
    with pytest.raises(luna_ext.TokenChangedError), token.lock(timeout=5):
        pass
    assert not slot.locked()
    assert owner_of(slot.slot_id) is None
    with slot, pytest.raises(luna_ext.TokenChangedError):
        token.ensure_held()


def test_a_token_that_changed_is_not_entered_without_a_thread_either(succeed):
    """The main thread leaves the look at the label to a worker, if one can be had."""
    body = f"""
        tokens = [luna.token(f"keyring{{number}}") for number in range(1, 9)]

        def assign():
            assert no_more_threads.wait(20)
            # This thread makes its device calls itself.
            with luna.claim("cluster-1") as token:
                changed.append(token.assign("changed", so_pin={PIN!r}).slot)

        changed, no_more_threads = [], threading.Event()
        assigning = in_thread(assign)
        {NO_MORE_THREADS}
        no_more_threads.set()
        assigning.join()
        (token,) = [token for token in tokens if token.slot in changed]
        try:
            with token:
                print("entered")
        except luna_ext.TokenChangedError:
            print(token.slot.locked())
        tokens.remove(token)
        with tokens[0]:
            print(tokens[0].slot.locked())
    """
    assert succeed(body) == ["False", "True"]


def test_an_error_while_the_label_is_checked_unlocks(luna, cluster, owner_of):
    token = luna.token("keyring1")
    for way in (token, token.lock(timeout=5)):
        cluster.fault("C_GetTokenInfo", DEVICE_ERROR, times=1)
        with pytest.raises(luna_ext.DeviceError), way:
            pass
        assert owner_of(1) is None
        assert not token.slot.locked()


def test_tokens_lists_all_with_their_information(luna, calls_of):
    tokens = luna.tokens()
    assert [token.slot.slot_id for token in tokens] == list(range(1, 9))
    asked = calls_of("C_GetTokenInfo")
    assert [token.info.label for token in tokens] == [f"keyring{n}" for n in range(1, 9)]
    assert [token.label for token in tokens] == [token.info.label for token in tokens]
    assert calls_of("C_GetTokenInfo") == asked == 8
    assert len(luna.tokens(workers=1)) == 8


def test_tokens_leaves_out_what_vanished_and_raises_the_rest(luna, cluster):
    cluster.fault("C_GetTokenInfo", 0xE0, times=1)
    assert len(luna.tokens()) == 7
    cluster.fault("C_GetTokenInfo", 0x3, times=2)
    assert len(luna.tokens()) == 6
    cluster.fault("C_GetTokenInfo", DEVICE_ERROR, times=1)
    with pytest.raises(luna_ext.DeviceError):
        luna.tokens()
    with pytest.raises(ValueError, match="at least 1"):
        luna.tokens(workers=0)
    with pytest.raises(TypeError):
        luna.tokens(workers="2")


@pytest.mark.luna_cluster(keyrings=100)
@pytest.mark.parametrize("workers", [1, 3, 16, 200])
def test_tokens_are_read_by_so_many_threads_at_most(luna, cluster, workers):
    cluster.latency(0.002, "C_GetTokenInfo")
    assert len(luna.tokens(workers=workers)) == 100
    threads = {call.thread_id for call in cluster.log() if call.function == "C_GetTokenInfo"}
    assert 1 <= len(threads) <= workers
    assert len(threads) > 1 or workers == 1


@pytest.fixture
def call_reader(call, wait_until_inside):
    """Have a function called on the main thread, by a signal, while tokens are being read for it."""
    heard, senders = threading.Event(), []
    previous = signal.getsignal(signal.SIGALRM)

    def send():
        wait_until_inside(TOKEN_INFO)
        # To this thread: the main thread is not woken, as by one that comes just before its wait.
        signal.pthread_kill(threading.get_ident(), signal.SIGALRM)
        assert heard.wait(10)

    def start(function):
        def handle(number, frame):
            heard.set()
            function()

        signal.signal(signal.SIGALRM, handle)
        senders.append(call(send))

    yield start
    for sender in senders:
        sender.result()
    signal.signal(signal.SIGALRM, previous)


@pytest.fixture
def rest_stays_unread(cluster, calls_of):
    """The reads come to an end, and most tokens were not read."""

    def look():
        cluster.latency(0.01, TOKEN_INFO)
        before = None
        while before != (now := calls_of(TOKEN_INFO)):
            before = now
            # No event shows that none begins any more.
            time.sleep(0.3)
        assert now < 1000

    return look


@pytest.mark.signals
@pytest.mark.luna_cluster(keyrings=1000)
def test_the_first_error_keeps_the_rest_from_being_read(
    luna, cluster, call_reader, rest_stays_unread
):
    """At once, although the thread that is to raise it is busy."""

    def be_busy():
        cluster.fault(TOKEN_INFO, DEVICE_ERROR, times=1)
        wait_until(lambda: DEVICE_ERROR in [one.rv for one in logged(cluster, TOKEN_INFO)])
        rest_stays_unread()

    cluster.latency(0.1, TOKEN_INFO)
    call_reader(be_busy)
    with pytest.raises(luna_ext.DeviceError) as caught:
        luna.tokens(workers=4)
    assert caught.value.function == TOKEN_INFO


@pytest.mark.signals
@pytest.mark.luna_cluster(keyrings=1000)
def test_an_interrupt_keeps_the_rest_from_being_read(luna, cluster, call_reader, rest_stays_unread):
    cluster.latency(0.1, TOKEN_INFO)
    call_reader(lambda: signal.default_int_handler(signal.SIGINT, None))
    with pytest.raises(KeyboardInterrupt):
        luna.tokens(workers=4)
    rest_stays_unread()


@pytest.mark.luna_cluster(keyrings=3500)
def test_all_tokens_of_the_largest_cluster(luna):
    tokens = luna.tokens()
    assert [token.label for token in tokens] == [f"keyring{n}" for n in range(1, 3501)]


def test_slots_of_a_large_cluster():
    with Cluster(keyrings=3500) as cluster, cluster.library() as luna:
        assert [slot.slot_id for slot in luna.slots()] == list(range(1, 3501))
        assert luna.slots(token_present=False) == luna.slots()
        assert luna.token("keyring3500").slot.slot_id == 3500


@pytest.mark.parametrize("token_present", [True, False])
def test_the_client_is_told_whether_slots_without_a_token_are_wanted(
    luna, monkeypatch, token_present
):
    word, told = ctypes.c_ulong, []

    @ctypes.CFUNCTYPE(word, ctypes.c_ubyte, ctypes.c_void_p, ctypes.POINTER(word))
    def list_one_slot(wanted, slots, count):
        told.append(wanted)
        count[0] = 1
        if slots:
            word.from_address(slots).value = 1
        return 0

    address = ctypes.cast(list_one_slot, ctypes.c_void_p).value
    monkeypatch.setattr(entry_of(luna, 4), "value", address)
    assert luna.slots(token_present=token_present) == [luna.slot(1)]
    assert told == [token_present, token_present]


# ---- one token that cannot be read ----


def test_one_bad_token_hides_none_of_the_others(luna, cluster):
    bad = []
    cluster.fault(TOKEN_INFO, DEVICE_ERROR, every=3)
    tokens = luna.tokens(workers=1, on_error=lambda slot, error: bad.append((slot, error)))
    slot_ids = [slot.slot_id for slot, _ in bad]
    assert slot_ids == [3, 6]
    assert [error.slot_id for _, error in bad] == slot_ids
    assert all(isinstance(error, luna_ext.DeviceError) for _, error in bad)
    assert [token.slot.slot_id for token in tokens] == [1, 2, 4, 5, 7, 8]


def test_without_a_function_the_error_names_the_slot(luna, cluster):
    cluster.fault(TOKEN_INFO, DEVICE_ERROR, every=3)
    with pytest.raises(luna_ext.DeviceError, match="slot 3") as raised:
        luna.tokens(workers=1)
    assert raised.value.slot_id == 3


def test_what_the_function_raises_goes_on(luna, cluster):
    def on_error(slot, error):
        raise error

    cluster.fault(TOKEN_INFO, DEVICE_ERROR)
    with pytest.raises(luna_ext.DeviceError, match="slot 1:"):
        luna.tokens(on_error=on_error)


def test_a_function_that_is_none_is_refused(luna, calls_of):
    with pytest.raises(TypeError):
        luna.tokens(on_error=5)
    assert calls_of(TOKEN_INFO) == 0
