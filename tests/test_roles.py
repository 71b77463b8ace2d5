"""The PINs of a keyring's two roles: one password or two, to be changed or not, entered at a pad."""

import contextvars
import ctypes
import gc
import itertools
import signal
import threading
import time
import traceback
import types

import pytest
from support import (
    CLAIM,
    DEVICE_ERROR,
    GENERAL_ERROR,
    INIT_PIN,
    INIT_TOKEN,
    SESSION_INFO,
    TOKEN_INFO,
    UNLOCK,
    entry_of,
    logged,
    wait_until,
)

import luna_ext
from luna_ext import PIN_PAD, TokenFlag
from luna_ext.info import CLUSTER_FUNCTIONS
from luna_ext.stub import library_path

PASSWORD, NEW = "keyring-password", "user-password"
PIN_INCORRECT, PIN_EXPIRED = 0xA0, 0xA3
USER_ALREADY_LOGGED_IN = 0x100
UNAVAILABLE = ctypes.c_ulong(-1).value
"""CK_UNAVAILABLE_INFORMATION"""
SO, USER = 0, 1
LABELS = [f"payments-{number}" for number in range(4)]

pytestmark = pytest.mark.luna_cluster(keyrings=6, password=PASSWORD)

OF_EACH_IDENTITY = pytest.mark.parametrize("identity", ["single", "dual"])
FRESH = pytest.mark.luna_cluster(password=None)


class OtherCode:
    """Other code of this process, on the same client library."""

    def __init__(self):
        self.client = ctypes.CDLL(library_path())

    def open(self, slot_id):
        session = ctypes.c_ulong()
        rv = self.client.C_OpenSession(
            ctypes.c_ulong(slot_id), 6, None, None, ctypes.byref(session)
        )
        assert rv == 0, hex(rv)
        return session

    def log_in(self, session, role, pin):
        return self.client.C_Login(
            session, ctypes.c_ulong(role), pin.encode(), ctypes.c_ulong(len(pin))
        )

    def log_out(self, session):
        return self.client.C_Logout(session)

    def close(self, session):
        assert self.client.C_CloseSession(session) == 0

    def try_pin(self, slot_id, role, pin):
        """What C_Login answers."""
        session = self.open(slot_id)
        rv = self.log_in(session, role, pin)
        if rv == 0:
            assert self.log_out(session) == 0
        self.close(session)
        return rv


@pytest.fixture
def other(luna):
    return OtherCode()


@pytest.fixture
def provision(luna):
    def call(labels=LABELS, *, so_pin=PASSWORD, **options):
        return luna_ext.provision(luna, "cluster-1", labels, so_pin=so_pin, **options)

    return call


@pytest.fixture
def assigned(luna):
    def assign(label="payments", *, so_pin=PASSWORD, **options):
        with luna.claim("cluster-1") as token:
            return token.assign(label, so_pin=so_pin, **options)

    return assign


def failures(cluster):
    """The calls that tried a PIN in vain."""
    return [
        call.function
        for call in cluster.log()
        if call.rv == PIN_INCORRECT and call.slot_id is not None
    ]


# ---- assign ----


@OF_EACH_IDENTITY
@pytest.mark.parametrize("forced", [False, True])
@pytest.mark.parametrize("password", [PASSWORD, None])
@pytest.mark.parametrize("user_pin", [None, PASSWORD, NEW])
def test_assign_whatever_the_keyring_is(
    cluster, other, assigned, luna, identity, forced, password, user_pin
):
    cluster.switch("identity", identity)
    cluster.switch("pin_change", "forced" if forced else "free")
    for token in cluster.tokens():
        cluster.set_pins(token.slot_id, password, password)
    slot_id = assigned(user_pin=user_pin).slot.slot_id
    made = [call.function for call in logged(cluster, INIT_PIN)]
    if user_pin is None:
        expected = PIN_INCORRECT if identity == "single" else 0x102
        assert made == []
    else:
        # One that both roles have is set already.
        assert len(made) == (identity == "dual" or user_pin == NEW)
        expected = PIN_EXPIRED if forced and made else 0
    assert other.try_pin(slot_id, USER, user_pin or NEW) == expected
    officers = NEW if identity == "single" and user_pin == NEW else PASSWORD
    assert other.try_pin(slot_id, SO, officers) == 0
    assert luna.token("payments").slot.slot_id == slot_id


def test_the_officers_last_try_is_not_used_up(cluster, luna, other, calls_of):
    cluster.switch("change_label", "on")
    with luna.claim("cluster-1") as token:
        for _ in range(9):
            assert other.try_pin(token.slot.slot_id, SO, "wrong-password") == PIN_INCORRECT
        assert TokenFlag.SO_PIN_FINAL_TRY in token.slot.token_info.flags
        logins = calls_of("C_Login")
        for erase in (True, False):
            with pytest.raises(luna_ext.PinError, match=r"one try left.* crypto officer"):
                token.assign("payments", so_pin=PASSWORD, erase=erase)
        with pytest.raises(luna_ext.PinError, match="one try left"):
            token.change_pin(PASSWORD, NEW, role="so")
        assert (calls_of(INIT_TOKEN), calls_of("C_Login")) == (0, logins)
        # The user's tries are counted apart.
        token.change_pin(PASSWORD, NEW)


@pytest.mark.parametrize(
    ("flag", "says"),
    [(TokenFlag.SO_PIN_LOCKED, "locked out"), (TokenFlag.SO_PIN_FINAL_TRY, "one try left")],
)
def test_a_locked_officer_is_not_asked(old_client, cluster, calls_of, flag, says):
    """The stand-in erases a keyring where other devices lock its SO out."""
    path = old_client(*luna_ext.info.CLUSTER_FUNCTIONS, token_flags=int(flag))
    with luna_ext.Library(path) as luna, luna.claim("cluster-1") as token:
        with pytest.raises(luna_ext.PinError, match=says):
            token.assign("payments", so_pin=PASSWORD)
        with pytest.raises(luna_ext.PinError, match=says):
            token.change_pin(PASSWORD, NEW, role="so")
    assert (calls_of(INIT_TOKEN), calls_of("C_Login")) == (0, 0)


@pytest.mark.parametrize("flag", [TokenFlag.USER_PIN_LOCKED, TokenFlag.USER_PIN_FINAL_TRY])
def test_a_locked_user_is_not_asked_by_a_run_that_is_resumed(old_client, cluster, calls_of, flag):
    path = old_client(*luna_ext.info.CLUSTER_FUNCTIONS, token_flags=int(flag))
    with luna_ext.Library(path) as luna:
        report = luna_ext.provision(luna, "cluster-1", ["keyring1"], so_pin=PASSWORD, user_pin=NEW)
    assert isinstance(report.failed["keyring1"], luna_ext.PinError)
    assert calls_of("C_Login") == 0


def test_provision_ends_at_an_officers_last_try(cluster, provision, other, calls_of):
    for token in cluster.tokens():
        for _ in range(9):
            other.try_pin(token.slot_id, SO, "wrong-password")
    report = provision()
    assert list(report.failed) == LABELS
    assert all(isinstance(error, luna_ext.PinError) for error in report.failed.values())
    assert sum("not tried, for" in str(error) for error in report.failed.values()) == 3
    assert calls_of(INIT_TOKEN) == 0


@pytest.mark.parametrize("role", ["so", "user"])
def test_a_login_of_other_code_is_left_alone(cluster, luna, other, assigned, caplog, role):
    """Where it is the SO's, it is used. That it stays is nothing to tell of."""
    cluster.switch("change_label", "on")
    with luna.claim("cluster-1") as token:
        session = other.open(token.slot.slot_id)
        assert other.log_in(session, SO if role == "so" else USER, PASSWORD) == 0
        if role == "so":
            new = token.assign("payments", so_pin=PASSWORD, user_pin=NEW, erase=False)
            assert new.slot.token_info.label == "payments"
        else:
            with pytest.raises(
                luna_ext.CryptokiError, match="another user of this process"
            ) as caught:
                token.assign("payments", so_pin=PASSWORD, erase=False)
            assert caught.value.rv_name == "CKR_USER_ANOTHER_ALREADY_LOGGED_IN"
        # Still logged in.
        assert (
            other.log_in(session, SO if role == "so" else USER, PASSWORD) == USER_ALREADY_LOGGED_IN
        )
        other.close(session)
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("function", ["C_Logout", "C_CloseSession"])
def test_a_login_that_cannot_be_ended_is_told(cluster, luna, assigned, caplog, function, raises):
    cluster.switch("regrant", "off")
    # The library's own session, which C_InitToken ends, is on another token.
    with luna.slot(6):
        if raises:
            cluster.fault(INIT_PIN, 0x5, times=1)
        cluster.fault(function, 0x5, times=1)
        if raises:
            with pytest.raises(luna_ext.CryptokiError) as caught:
                assigned(user_pin=NEW)
            assert any(function in note for note in caught.value.__notes__)
        else:
            assigned(user_pin=NEW)
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert f"{function} answered CKR_GENERAL_ERROR" in record.getMessage()
    assert "reconnect()" in record.getMessage()
    # The advice helps.
    luna.reconnect()
    token = luna.token("payments")
    assert token.slot.token_info.session_count == 0


@pytest.mark.parametrize(
    ("function", "rv"), [("C_Logout", 0x190), ("C_CloseSession", 0x190), ("C_Logout", 0x101)]
)
def test_a_login_that_has_ended_before_is_nothing_to_tell_of(
    cluster, luna, assigned, caplog, function, rv
):
    """C_Finalize ends logins and sessions, and a C_Logout of other code ends a login."""
    cluster.switch("regrant", "off")
    with luna.slot(6):
        cluster.fault(function, rv, times=1)
        assigned(user_pin=NEW)
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
    luna.reconnect()


@pytest.mark.parametrize("rv", [0x30, 0x5, 0x8000BEEF])
def test_a_login_whose_reply_is_lost_is_told(cluster, luna, assigned, other, caplog, rv):
    assigned()
    with luna.token("payments") as token:
        cluster.fault("C_Login", rv, times=1, lost_reply=True)
        with pytest.raises(luna_ext.CryptokiError) as caught:
            token.change_pin(PASSWORD, NEW, role="so")
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert "C_Login answered" in record.getMessage()
    assert "reconnect()" in record.getMessage()
    assert any("C_Login answered" in note for note in caught.value.__notes__)
    # It stays as long as the library's own session does. The advice helps.
    session = other.open(token.slot.slot_id)
    assert other.log_in(session, SO, PASSWORD) == USER_ALREADY_LOGGED_IN
    luna.reconnect()
    assert other.try_pin(token.slot.slot_id, SO, PASSWORD) == 0


def test_a_login_whose_reply_is_lost_is_told_though_close_has_come_in_between(
    cluster, luna, assigned, caplog, call, wait_until_inside
):
    def work():
        with luna.token("payments") as token:
            token.change_pin(PASSWORD, NEW, role="so")

    assigned()
    cluster.fault("C_Login", DEVICE_ERROR, times=1, lost_reply=True)
    cluster.latency(0.5, "C_Login")
    working = call(work)
    wait_until_inside("C_Login")
    with pytest.warns(ResourceWarning, match="still locked"):
        luna.close()
    with pytest.raises(luna_ext.LunaError) as caught:
        working.result()
    assert any("C_Login answered" in note for note in caught.value.__notes__)
    assert "C_Login answered" in caplog.text


def test_a_login_that_has_ended_with_the_library_is_not_said_to_last(
    cluster, luna, other, assigned, caplog, call
):
    cluster.latency(0.5, "C_Login", after=True)
    running = call(lambda: assigned(user_pin=NEW))
    wait_until(lambda: logged(cluster, "C_Login"))
    assert other.client.C_Finalize(None) == 0
    with pytest.raises(luna_ext.NotInitializedError):
        running.result()
    assert "reconnect()" not in caplog.text


# ---- change_pin ----


@OF_EACH_IDENTITY
@pytest.mark.parametrize("role", ["user", "so"])
def test_change_pin(cluster, luna, other, assigned, identity, role):
    cluster.switch("identity", identity)
    slot_id = assigned(user_pin=PASSWORD).slot.slot_id
    with luna.token("payments") as token:
        token.change_pin(PASSWORD, NEW, role=role)
    changed = {"so": SO, "user": USER}[role]
    assert other.try_pin(slot_id, changed, NEW) == 0
    assert other.try_pin(slot_id, 1 - changed, NEW if identity == "single" else PASSWORD) == 0


def test_a_users_pin_that_begins_as_the_officers_is_another_one(other, assigned):
    slot_id = assigned(user_pin=PASSWORD + "1").slot.slot_id
    assert other.try_pin(slot_id, USER, PASSWORD + "1") == 0


def test_a_pin_that_has_to_be_changed_is_changed(cluster, luna, other, assigned):
    cluster.switch("pin_change", "forced")
    slot_id = assigned(user_pin=NEW).slot.slot_id
    assert TokenFlag.USER_PIN_TO_BE_CHANGED in luna.slot(slot_id).token_info.flags
    assert other.try_pin(slot_id, USER, NEW) == PIN_EXPIRED
    with luna.token("payments") as token:
        token.change_pin(NEW, "chosen-by-the-user")
    assert other.try_pin(slot_id, USER, "chosen-by-the-user") == 0
    assert TokenFlag.USER_PIN_TO_BE_CHANGED not in luna.slot(slot_id).token_info.flags


def test_an_officer_that_is_let_in_to_change_its_pin_changes_it(luna, cluster, other, caplog):
    """CKR_PIN_EXPIRED of C_Login does not say whether the role is logged in."""
    cluster.fault("C_Login", PIN_EXPIRED, times=1, lost_reply=True)
    with luna.token("keyring1") as token:
        token.change_pin(PASSWORD, NEW, role="so")
    assert caplog.records == []
    assert other.try_pin(1, SO, NEW) == 0


def test_an_officer_that_is_not_let_in_to_change_its_pin_has_another_way(luna, cluster, other):
    cluster.fault("C_Login", PIN_EXPIRED)
    with luna.token("keyring1") as token:
        with pytest.raises(luna_ext.PinError) as caught:
            token.change_pin(PASSWORD, NEW, role="so")
        assert "token.change_pin(old, new), without role, changes both" in caught.value.__notes__[0]
        token.change_pin(PASSWORD, NEW)
    cluster.fault("C_Login", 0, times=0)
    assert other.try_pin(1, SO, NEW) == 0


def test_no_login_is_left_of_an_officer_whose_pin_has_to_be_changed(luna, cluster, other):
    cluster.switch("change_label", "on")
    with luna.claim("cluster-1") as token:
        # With the last session of a token its login ends.
        session = other.open(token.slot.slot_id)
        cluster.fault("C_Login", PIN_EXPIRED, times=1, lost_reply=True)
        with pytest.raises(luna_ext.PinError):
            token.assign("payments", so_pin=PASSWORD, erase=False)
        assert other.log_in(session, SO, PASSWORD) == 0
        other.log_out(session)
        other.close(session)


def test_a_login_that_fails_in_a_client_that_does_not_tell_of_sessions(
    cluster, old_client, in_child
):
    """Nothing says then whether the role is logged in all the same."""
    client = old_client(*CLUSTER_FUNCTIONS, without="C_GetSessionInfo")
    cluster.fault("C_Login", 0x5, times=1)

    def fails():
        with (
            luna_ext.Library(client) as luna,
            luna.claim("cluster-1") as token,
            pytest.raises(luna_ext.CryptokiError) as caught,
        ):
            token.assign("payments", so_pin=PASSWORD, user_pin=NEW)
        return caught.value.function == "C_Login"

    assert in_child(fails) == 0


def test_change_pin_needs_the_lock(luna, assigned, calls_of):
    assigned()
    token = luna.token("payments")
    with pytest.raises(luna_ext.LockNotOwnedError):
        token.change_pin(PASSWORD, NEW)
    assert calls_of("C_SetPIN") == 0


def test_change_pin_looks_at_the_label(luna, assigned, calls_of):
    with luna.claim("cluster-1") as token:
        token.assign("payments", so_pin=PASSWORD)
        with pytest.raises(luna_ext.TokenChangedError):
            token.change_pin(PASSWORD, NEW)
    assert calls_of("C_SetPIN") == 0


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"old": ""}, ValueError),
        ({"new": ""}, ValueError),
        ({"old": None}, TypeError),
        ({"new": 12345678}, TypeError),
        ({"role": "officer"}, ValueError),
        ({"old": PIN_PAD}, ValueError),
        ({"new": PIN_PAD}, ValueError),
        ({"old": PIN_PAD, "new": PIN_PAD}, ValueError),
    ],
)
def test_bad_arguments_of_change_pin(luna, calls_of, arguments, error):
    options = {"old": PASSWORD, "new": NEW, **arguments}
    role = {"role": options.pop("role")} if "role" in options else {}
    with luna.token("keyring1") as token, pytest.raises(error):
        token.change_pin(options["old"], options["new"], **role)
    assert calls_of("C_SetPIN") == 0


OF_A_SESSION = ("C_Login", "C_SetPIN", "C_InitPIN", "CA_ChangeLabel", "C_Logout", "C_CloseSession")


def change_users(token):
    token.change_pin(PASSWORD, NEW)


def change_officers(token):
    token.change_pin(PASSWORD, NEW, role="so")


def relabel(token):
    token.assign("payments", so_pin=PASSWORD, erase=False)


def assign_with_users(token):
    token.assign("payments", so_pin=PASSWORD, user_pin=NEW)


@pytest.mark.parametrize(
    ("inside", "work"),
    [
        ("C_OpenSession", relabel),
        (SESSION_INFO, change_users),
        (SESSION_INFO, change_officers),
        ("C_Login", change_officers),
        ("C_Login", relabel),
        ("C_Login", assign_with_users),
        ("C_InitToken", assign_with_users),
    ],
)
def test_a_session_of_an_earlier_connection_is_not_used(
    cluster, luna, call, wait_until_inside, inside, work
):
    """Its handle may be that of another program's session by now, or of other code's."""
    cluster.switch("identity", "dual")

    def work_in_a_block():
        with luna.claim("cluster-1") as token:
            cluster.latency(0.3, inside)
            work(token)

    working = call(work_in_a_block)
    wait_until_inside(inside)
    reconnecting = call(luna.reconnect)
    with pytest.raises(luna_ext.CryptokiError, match="SESSION_HANDLE_INVALID"):
        working.result()
    reconnecting.result()
    functions = [entry.function for entry in cluster.log()]
    since = functions[functions.index("C_Finalize") :]
    assert [function for function in since if function in OF_A_SESSION] == []


@pytest.mark.parametrize("locked_again", [False, True])
def test_a_token_is_not_erased_after_the_connection_of_its_lock(
    cluster, luna, call, monkeypatch, locked_again
):
    """While assign() waits until the sessions of others have ended, in a thread that the holder started."""
    session_exists = 0xB6
    cluster.fault("C_InitToken", session_exists, times=1)
    pauses, goes_on = threading.Event(), threading.Event()

    def pause(seconds):
        pauses.set()
        assert goes_on.wait(20)

    with pytest.raises(luna_ext.LockLostError), luna.claim("cluster-1") as token:
        slot = token.slot
        context = contextvars.copy_context()
        with monkeypatch.context() as patched:
            patched.setattr(time, "sleep", pause)
            working = call(lambda: context.run(assign_with_users, token))
            assert pauses.wait(20)
        luna.reconnect()
    if locked_again:
        slot.acquire()
    goes_on.set()
    with pytest.raises(luna_ext.CryptokiError, match="SESSION_HANDLE_INVALID"):
        working.result()
    if locked_again:
        slot.release()
    assert len(logged(cluster, INIT_TOKEN)) == 1
    assert "payments" not in [token.label for token in cluster.tokens()]


@pytest.mark.parametrize(("role", "logged_in"), [("user", SO), ("so", USER)])
def test_a_pin_is_not_changed_while_the_other_role_is_logged_in(
    luna, other, calls_of, role, logged_in
):
    """C_SetPIN would change the PIN of that role, and try the wrong one."""
    with luna.token("keyring1") as token:
        session = other.open(token.slot.slot_id)
        assert other.log_in(session, logged_in, PASSWORD) == 0
        with pytest.raises(luna_ext.CryptokiError, match="log out first") as caught:
            token.change_pin(PASSWORD, NEW, role=role)
        assert (caught.value.function, calls_of("C_SetPIN")) == ("C_SetPIN", 0)
        assert other.log_out(session) == 0
        # The advice helps.
        token.change_pin(PASSWORD, NEW, role=role)
        other.close(session)


@pytest.mark.parametrize("role", ["user", "so"])
def test_change_pin_uses_a_login_in_the_same_role(luna, other, role):
    with luna.token("keyring1") as token:
        session = other.open(token.slot.slot_id)
        number = {"so": SO, "user": USER}[role]
        assert other.log_in(session, number, PASSWORD) == 0
        token.change_pin(PASSWORD, NEW, role=role)
        assert other.log_in(session, number, NEW) == USER_ALREADY_LOGGED_IN
        other.close(session)


@pytest.mark.parametrize("pin", ["7 bytes", "x" * 256])
def test_a_new_pin_of_a_wrong_length_changes_nothing(cluster, luna, calls_of, pin):
    with luna.claim("cluster-1") as token:
        with pytest.raises(luna_ext.PinError, match="takes 8 to 255"):
            token.assign("payments", so_pin=PASSWORD, user_pin=pin)
        with pytest.raises(luna_ext.PinError, match="takes 8 to 255"):
            token.change_pin(PASSWORD, pin)
        assert (calls_of(INIT_TOKEN), calls_of("C_SetPIN")) == (0, 0)


@pytest.mark.parametrize("length", [8, 255])
def test_a_new_pin_of_the_least_or_the_greatest_length_is_taken(assigned, other, length):
    pin = "x" * length
    new = assigned(user_pin=pin)
    assert other.try_pin(new.slot.slot_id, USER, pin) == 0


@pytest.mark.parametrize(
    "lengths",
    [(0, 0), (4, 8), (UNAVAILABLE, UNAVAILABLE), (255, UNAVAILABLE)],
    ids=["none", "swapped", "unavailable", "the least unavailable"],
)
def test_lengths_that_are_of_no_use_refuse_no_pin(luna, other, monkeypatch, lengths):
    """What a client tells as the longest and the shortest PIN."""
    word = ctypes.c_ulong
    tell = other.client.C_GetTokenInfo

    @ctypes.CFUNCTYPE(word, word, ctypes.POINTER(word))
    def get_token_info(slot_id, info):
        rv = tell(word(slot_id), info)
        # ulMaxPinLen and ulMinPinLen
        info[17], info[18] = lengths
        return rv

    address = ctypes.cast(get_token_info, ctypes.c_void_p).value
    monkeypatch.setattr(entry_of(luna, 6), "value", address)
    with luna.token("keyring1") as token:
        token.change_pin(PASSWORD, NEW)
    assert other.try_pin(token.slot.slot_id, USER, NEW) == 0


def test_a_wrong_pin_is_not_changed(luna, other):
    with luna.token("keyring1") as token:
        with pytest.raises(luna_ext.PinError):
            token.change_pin("wrong-password", NEW)
        assert other.try_pin(token.slot.slot_id, USER, PASSWORD) == 0


# ---- without erasing ----


@OF_EACH_IDENTITY
@pytest.mark.parametrize("user_pin", [None, PASSWORD, NEW])
def test_assign_without_erasing(cluster, luna, other, assigned, calls_of, identity, user_pin):
    cluster.switch("change_label", "on")
    cluster.switch("identity", identity)
    new = assigned(erase=False, user_pin=user_pin)
    assert (new.label, new.slot.token_info.label) == ("payments", "payments")
    assert calls_of(INIT_TOKEN) == 0
    assert calls_of(INIT_PIN) == (user_pin is not None)
    assert other.try_pin(new.slot.slot_id, USER, user_pin or PASSWORD) == 0
    # It is assigned: no claim gives it any more.
    for label in LABELS:
        assert assigned(label).slot is not new.slot


def test_a_device_that_cannot_change_labels(assigned, cluster, luna):
    with pytest.raises(luna_ext.UnsupportedFunctionError, match="erase=True") as caught:
        assigned(erase=False)
    assert caught.value.function == "CA_ChangeLabel"
    assert all(token.label == token.original_label for token in cluster.tokens())
    assigned(erase=True)


def test_a_client_that_cannot_change_labels(cluster, old_client, calls_of):
    path = old_client(*luna_ext.info.CLUSTER_FUNCTIONS)
    with luna_ext.Library(path) as luna, luna.claim("cluster-1") as token:
        with pytest.raises(luna_ext.UnsupportedFunctionError, match="erase=True") as caught:
            token.assign("payments", so_pin=PASSWORD, erase=False)
        assert caught.value.function == "CA_ChangeLabel"
        assert calls_of("C_Login") == 0


@FRESH
def test_a_fresh_token_has_no_pin_to_log_in_with(cluster, assigned, calls_of):
    cluster.switch("change_label", "on")
    with pytest.raises(luna_ext.AssignmentConflictError, match="erase=True"):
        assigned(erase=False)
    assert calls_of("C_Login") == 0
    assigned(erase=True)


def test_a_label_that_was_not_changed(cluster, assigned):
    cluster.switch("change_label", "on")
    cluster.fault("CA_ChangeLabel", 0)
    with pytest.raises(luna_ext.AssignmentConflictError, match="CA_ChangeLabel reported success"):
        assigned(erase=False)


def test_what_is_in_the_token_is_kept_or_said(cluster, assigned):
    cluster.switch("change_label", "on")
    cluster.fault("CA_ChangeLabel", 0x30, lost_reply=True, times=1)
    with pytest.raises(luna_ext.DeviceError) as caught:
        assigned(erase=False)
    assert any("label is 'payments' now" in note for note in caught.value.__notes__)


def test_that_the_label_cannot_be_read_back_is_said(cluster, assigned, call, wait_until_inside):
    cluster.latency(1, INIT_TOKEN)
    cluster.fault(INIT_TOKEN, DEVICE_ERROR)
    assigning = call(assigned)
    wait_until_inside(INIT_TOKEN)
    cluster.fault(TOKEN_INFO, DEVICE_ERROR)
    with pytest.raises(luna_ext.DeviceError) as caught:
        assigning.result()
    assert any("could not be read back" in note for note in caught.value.__notes__)
    cluster.fault(TOKEN_INFO, 0, times=0)


# ---- a PED ----


@pytest.fixture
def ped(cluster):
    cluster.switch("authentication", "ped")


@OF_EACH_IDENTITY
@pytest.mark.parametrize("user_pin", [None, PIN_PAD])
def test_a_ped_gets_no_pins(cluster, luna, ped, assigned, provision, identity, user_pin):
    cluster.switch("identity", identity)
    cluster.switch("change_label", "on")
    assigned(so_pin=PIN_PAD, user_pin=user_pin)
    assigned("other", so_pin=PIN_PAD, user_pin=user_pin, erase=False)
    with luna.token("payments") as token:
        if user_pin is PIN_PAD:
            token.change_pin(PIN_PAD, PIN_PAD)
        token.change_pin(PIN_PAD, PIN_PAD, role="so")
    report = provision(so_pin=PIN_PAD, user_pin=user_pin)
    assert list(report.assigned) == LABELS
    assert list(provision(so_pin=PIN_PAD, user_pin=user_pin).skipped) == LABELS


def test_at_a_ped_a_pin_that_is_there_is_not_asked_for(ped, provision, calls_of):
    provision(so_pin=PIN_PAD, user_pin=PIN_PAD)
    before = calls_of("C_Login")
    assert list(provision(so_pin=PIN_PAD, user_pin=PIN_PAD).skipped) == LABELS
    assert calls_of("C_Login") == before


def test_at_a_ped_one_token_is_assigned_at_a_time(cluster, ped, provision):
    cluster.latency(0.01, INIT_TOKEN)
    provision(so_pin=PIN_PAD, workers=4)
    calls = logged(cluster, INIT_TOKEN)
    assert len(calls) == len(LABELS)
    for earlier, later in itertools.pairwise(calls):
        assert later.time >= earlier.time + earlier.duration


def test_a_pad_that_is_not_there(luna, provision, calls_of):
    with luna.claim("cluster-1") as token:
        for options in ({"so_pin": PIN_PAD}, {"so_pin": PASSWORD, "user_pin": PIN_PAD}):
            with pytest.raises(ValueError, match="protected authentication path"):
                token.assign("payments", **options)
    report = provision(so_pin=PIN_PAD)
    assert list(report.failed) == LABELS
    assert sum("not tried" in str(error) for error in report.failed.values()) == 3
    assert calls_of(INIT_TOKEN) == 0


def test_a_pad_that_is_not_there_uses_up_no_try(cluster, provision):
    provision(user_pin=NEW)
    report = provision(so_pin=PIN_PAD, user_pin="another-password")
    assert list(report.failed) == LABELS
    assert sum(isinstance(error, ValueError) for error in report.failed.values()) == 1
    assert failures(cluster) == []


def test_pin_pad_is_one_object():
    import copy
    import pickle

    assert pickle.loads(pickle.dumps(PIN_PAD)) is copy.deepcopy(PIN_PAD) is PIN_PAD
    assert repr(PIN_PAD) == "luna_ext.PIN_PAD"


# ---- provision ----


@OF_EACH_IDENTITY
@pytest.mark.parametrize("forced", [False, True])
@pytest.mark.parametrize("password", [PASSWORD, None])
@pytest.mark.parametrize("user_pin", [PASSWORD, NEW])
@pytest.mark.parametrize("killed_before", [INIT_TOKEN, "C_OpenSession", INIT_PIN, "C_Logout", None])
def test_provision_and_resume(
    cluster, luna, program, other, provision, identity, forced, password, user_pin, killed_before
):
    """A process is killed at that call of the first label; it is run again; and once more."""
    cluster.switch("identity", identity)
    cluster.switch("pin_change", "forced" if forced else "free")
    for token in cluster.tokens():
        cluster.set_pins(token.slot_id, password, password)
    if killed_before is not None:
        cluster.latency(30, killed_before)
        killed = program(
            f"""
            print("ready", flush=True)
            luna_ext.provision(
                luna, "cluster-1", {LABELS[:1]!r}, so_pin={PASSWORD!r}, user_pin={user_pin!r}
            )
            """
        )
        killed.expect("ready")
        # It ends by itself where it makes no such call.
        while not any(
            call.function == killed_before and call.rv is None and call.pid == killed.process.pid
            for call in cluster.log()
        ):
            if killed.process.poll() is not None:
                break
        killed.process.kill()
        assert killed.ended().returncode in (0, -signal.SIGKILL)
        cluster.latency(0)
    report = provision(user_pin=user_pin)
    assert report.failed == {}
    again = provision(user_pin=user_pin)
    assert (again.assigned, again.failed) == ({}, {})
    assert again.skipped == {**report.assigned, **report.skipped}
    right = {0, PIN_EXPIRED} if forced else {0}
    officers = user_pin if identity == "single" else PASSWORD
    for slot_id in again.skipped.values():
        assert other.try_pin(slot_id, USER, user_pin) in right
        assert other.try_pin(slot_id, SO, officers) == 0


def test_a_users_pin_that_is_the_officers_is_not_tried_on_what_is_assigned(provision, calls_of):
    """With single identity it cannot be another one."""
    provision(user_pin=PASSWORD)
    before = calls_of("C_Login")
    assert list(provision(user_pin=PASSWORD).skipped) == LABELS
    assert calls_of("C_Login") == before


def test_a_pin_that_the_user_has_chosen_is_left_alone(cluster, luna, provision, other):
    provision(user_pin=NEW)
    slot_ids = []
    for label in LABELS:
        with luna.token(label) as token:
            token.change_pin(NEW, "chosen-by-the-user")
            slot_ids.append(token.slot.slot_id)
    for times in (1, 2):
        report = provision(user_pin=NEW)
        assert list(report.failed) == LABELS
        assert sum("not tried, for" in str(error) for error in report.failed.values()) == 3
        # Of the user of one token alone, and none of an SO.
        assert failures(cluster) == ["C_Login", "C_SetPIN"] * times
    # The advice helps.
    assert provision(["other"], user_pin=NEW).failed == {}
    assert provision().failed == {}
    for slot_id in slot_ids:
        assert other.try_pin(slot_id, USER, "chosen-by-the-user") == 0


@pytest.mark.luna_cluster(keyrings=10, password=PASSWORD)
def test_a_pin_that_others_accept_is_not_tried_on_many_whose_users_have_chosen_theirs(
    cluster, luna, provision
):
    labels = [f"payments-{number}" for number in range(8)]
    provision(labels, user_pin=NEW)
    for label in labels:
        with luna.token(label) as token:
            token.change_pin(NEW, "chosen-by-the-user")
    cluster.latency(0.05, "C_Login")
    report = provision([*labels, "other"], user_pin=NEW)
    assert list(report.assigned) == ["other"]
    assert failures(cluster) == ["C_Login", "C_SetPIN"]


def test_with_dual_identity_no_users_pin_is_tried(cluster, luna, provision, other):
    cluster.switch("identity", "dual")
    provision(LABELS[:3], user_pin=NEW)
    for label in LABELS[:3]:
        with luna.token(label) as token:
            token.change_pin(NEW, "chosen-by-the-user")
    # The label that is assigned shows what kind of device it is.
    report = provision(user_pin=NEW)
    assert list(report.skipped) == LABELS[:3]
    assert list(report.assigned) == LABELS[3:]
    assert failures(cluster) == []


def test_the_users_last_try_is_not_used_up(cluster, luna, provision, other):
    provision(LABELS[:1], user_pin=NEW)
    with luna.token(LABELS[0]) as token:
        token.change_pin(NEW, "user-chose-it")
    for _ in range(10):
        report = provision(LABELS[:1], user_pin=NEW)
        assert isinstance(report.failed[LABELS[0]], luna_ext.PinError)
    assert "one try left" in str(report.failed[LABELS[0]])
    assert "crypto officer of the cluster's partition" in str(report.failed[LABELS[0]])
    assert len(failures(cluster)) == 9
    assert other.try_pin(token.slot.slot_id, USER, "user-chose-it") == 0


@pytest.mark.luna_cluster(keyrings=40, password=PASSWORD)
def test_a_pin_that_a_fresh_token_has_taken_is_not_proven(cluster, luna, provision, calls_of):
    """20 tokens of 40 are fresh: the mistyped PIN is tried on one of the others, and on no more."""
    slots = [token.slot_id for token in cluster.tokens()]
    for slot_id in slots[::2]:
        cluster.set_pins(slot_id, None)
    report = provision([f"label-{number}" for number in range(40)], so_pin="mistyped-password")
    assert report.fresh == report.assigned
    assert set(report.assigned.values()) <= set(slots[::2])
    assert len(report.assigned) + len(report.failed) == 40
    assert failures(cluster) == [INIT_TOKEN]
    for slot_id in slots[1::2]:
        assert luna.slot(slot_id).token_info.label.startswith("keyring")


def test_a_pin_that_a_login_of_other_code_made_needless_is_not_proven(cluster, provision, other):
    """The mistyped PIN is tried on one of the tokens that are claimed afterwards, and on no more."""
    cluster.switch("identity", "dual")
    (slot_id,) = provision(LABELS[:1]).assigned.values()
    session = other.open(slot_id)
    assert other.log_in(session, SO, PASSWORD) == 0
    # Until then the first label's token has its user PIN.
    cluster.latency(0.5, CLAIM)
    cluster.latency(0.1, INIT_TOKEN)
    report = provision(so_pin="mistyped-password", user_pin=NEW)
    assert set(report.failed) >= set(LABELS[1:])
    assert failures(cluster) == [INIT_TOKEN]
    other.close(session)


@FRESH
def test_fresh_tokens_are_told_of(provision):
    report = provision()
    assert report.fresh == report.assigned
    assert list(report.fresh) == LABELS


def test_tokens_that_have_a_pin_are_not_called_fresh(provision):
    assert provision().fresh == {}


@FRESH
def test_no_traceback_leads_to_a_pin(cluster, provision):
    cluster.fault(INIT_PIN, 0x30)
    cluster.fault(INIT_TOKEN, 0xA0, every=3, times=1)
    so_pin, user_pin = "officers-secret-9f2", "users-secret-7a1"
    report = provision(so_pin=so_pin, user_pin=user_pin)
    assert list(report.failed) == LABELS
    secrets = (so_pin, user_pin, so_pin.encode(), user_pin.encode())
    frames = frames_of(report.failed.values())
    assert frames
    assert not any(frame.f_locals for frame in frames)
    for thing in what_is_left_by(frames):
        assert thing not in secrets


@pytest.mark.parametrize("ended_by", ["a callback", "the guard", "an argument", "the client"])
def test_what_ends_provision_leads_to_no_copy_of_a_pin(cluster, luna, ended_by):
    def end(progress):
        if ended_by == "a callback":
            raise ValueError
        if progress.done == progress.total:
            cluster.fault(UNLOCK, GENERAL_ERROR)

    cluster.fault(INIT_PIN, DEVICE_ERROR, times=1)
    options = {"on_progress": end, "guard": 6 if ended_by == "an argument" else luna.slot(6)}
    cluster_id = "" if ended_by == "the client" else "cluster-1"
    with pytest.raises((ValueError, TypeError, luna_ext.LockReleaseError)) as caught:
        luna_ext.provision(luna, cluster_id, LABELS, so_pin=PASSWORD, user_pin=NEW, **options)
    frames = frames_of([caught.value])
    assert "provision" in [frame.f_code.co_name for frame in frames]
    assert list(what_is_left_by(frames))
    cluster.fault(UNLOCK, 0, times=0)
    luna.reconnect()


def frames_of(errors):
    """Those of the tracebacks of these errors, and of the errors that they came from."""
    frames = []
    for error in errors:
        while error is not None:
            frames += [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
            error = error.__cause__ or error.__context__
    return frames


def what_is_left_by(frames):
    """All that these frames keep alive; no copy of a PIN is among it."""
    seen, left = set(), [frame.f_locals for frame in frames if frame.f_globals is not globals()]
    for thing in gc.get_referents(*frames):
        # What a frame's function refers to from outside outlives the frame's locals.
        left += getattr(thing, "__closure__", None) or ()
    while left:
        thing = left.pop()
        # Nor do they keep a copy from being wiped, which Python code cannot see.
        assert type(thing).__name__ != "Pin"
        if id(thing) in seen or isinstance(thing, types.ModuleType | type | types.FunctionType):
            continue
        seen.add(id(thing))
        yield thing
        # Not into the frames that run at this moment, those of this test among them.
        left += [each for each in gc.get_referents(thing) if not isinstance(each, types.FrameType)]
