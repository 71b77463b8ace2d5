"""What keyrings are like: made with a password, one or two identities, forced changes, lock-outs, a PED."""

import ctypes

import pytest
from pkcs11_client import (
    ARGUMENTS_BAD,
    DEVICE_ERROR,
    FUNCTION_NOT_SUPPORTED,
    LIMITED_USER,
    LIMITED_USER_OLD,
    OK,
    OPEN_SESSION,
    PIN_EXPIRED,
    PIN_INCORRECT,
    PIN_LEN_RANGE,
    PIN_LOCKED,
    RO_SESSION,
    SESSION_EXISTS,
    SESSION_HANDLE_INVALID,
    SLOT_ID_INVALID,
    SO,
    USER,
    USER_ALREADY_LOGGED_IN,
    USER_ANOTHER_ALREADY_LOGGED_IN,
    USER_NOT_LOGGED_IN,
    USER_PIN_NOT_INITIALIZED,
    called_elsewhere,
    owners,
)

from luna_ext.stub import Cluster

PASSWORD, OTHER = b"password-1", b"another-12"
LONG = b"a password of more than 16 bytes"
USER_PIN_SET, TO_BE_CHANGED, PED, INITIALISED = 0x8, 0x80000, 0x100, 0x400
USER_LOW, USER_LAST, USER_LOCKED = 0x10000, 0x20000, 0x40000
SO_LOW, SO_LAST, SO_LOCKED = 0x100000, 0x200000, 0x400000

made_with_a_password = pytest.mark.luna_cluster(password=PASSWORD)


def log_in(module, user, pin=PASSWORD, slot_id=1):
    """C_Login in a session of its own."""
    session = module.open_session(slot_id)
    rv = module.login(session, user, pin)
    if rv == OK:
        assert module.C_Logout(session) == OK
    assert module.C_CloseSession(session) == OK
    return rv


def logins(module, pin, slot_id=1):
    return [log_in(module, user, pin, slot_id) for user in (SO, USER)]


def pin_flags(module, slot_id=1):
    every = USER_LOW | USER_LAST | USER_LOCKED | SO_LOW | SO_LAST | SO_LOCKED
    return module.token_info(slot_id).flags & every


# ---- how a keyring is made ----


@pytest.mark.parametrize("password", ["password-1", PASSWORD, "pässword", "x" * 8, b"x" * 255])
def test_both_roles_of_a_new_keyring_have_its_password(
    tmp_path, monkeypatch, password, uninitialised
):
    cluster = Cluster(tmp_path / "made", password=password, keyrings=2)
    monkeypatch.setenv("LUNA_STUB_STATE", cluster.path)
    assert uninitialised.C_Initialize(None) == OK
    given = password.encode() if isinstance(password, str) else password

    for slot_id in (1, 2):
        assert uninitialised.token_info(slot_id).flags & (INITIALISED | USER_PIN_SET) == 0x408
        assert logins(uninitialised, given, slot_id) == [OK, OK]
        assert logins(uninitialised, b"x" * 9, slot_id) == [PIN_INCORRECT] * 2
    assert [token.label for token in cluster.tokens()] == ["keyring1", "keyring2"]


@pytest.mark.parametrize(
    ("password", "error"),
    [("", ValueError), ("x" * 7, ValueError), (b"x" * 256, ValueError), (1234, TypeError)],
)
def test_a_password_has_its_limits(tmp_path, password, error):
    with pytest.raises(error, match="password"):
        Cluster(tmp_path / "cluster", password=password)
    assert not (tmp_path / "cluster").exists()


@made_with_a_password
def test_the_marker_passes_the_password_on(module):
    assert logins(module, PASSWORD) == [OK, OK]


@made_with_a_password
def test_pins_of_one_keyring_are_set_from_outside(cluster, module):
    for _ in range(3):
        assert log_in(module, USER, b"a wrong one") == PIN_INCORRECT

    cluster.set_pins(1, "officer", b"u")
    assert pin_flags(module) == 0
    assert (log_in(module, SO, b"officer"), log_in(module, USER, b"u")) == (OK, OK)
    cluster.set_pins(1, b"officer")
    assert log_in(module, USER, b"u") == USER_PIN_NOT_INITIALIZED
    assert logins(module, PASSWORD, 2) == [OK, OK]
    cluster.set_pins(1, None)
    assert module.token_info(1).flags & (INITIALISED | USER_PIN_SET) == 0
    assert module.init_token(1, "new", OTHER) == OK
    assert log_in(module, SO, OTHER) == OK


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ((9, "officer"), ValueError, "no slot 9"),
        ((-1, "officer"), ValueError, "slot_id"),
        ((1, ""), ValueError, "so_pin has 1 to 255 bytes"),
        ((1, "x" * 256), ValueError, "so_pin has 1 to 255 bytes"),
        ((1, "officer", b""), ValueError, "user_pin has 1 to 255 bytes"),
        ((1, None, "user"), ValueError, "not initialised"),
        ((1, 1234), TypeError, "so_pin"),
    ],
)
def test_pins_that_cannot_be_set(cluster, arguments, error, says):
    with pytest.raises(error, match=says):
        cluster.set_pins(*arguments)


def test_a_pin_is_not_shown_in_an_error(cluster):
    with pytest.raises(ValueError, match="so_pin") as caught:
        cluster.set_pins(1, "secret" * 50)
    assert "secret" not in str(caught.value)


# ---- one identity, or two ----


def test_a_fresh_keyring_s_user_gets_the_security_officer_s_pin(module):
    assert module.init_token(1, "new", PASSWORD) == OK

    assert module.token_info(1).flags & USER_PIN_SET
    assert logins(module, PASSWORD) == [OK, OK]


@made_with_a_password
def test_with_one_identity_a_new_pin_of_one_role_is_the_other_s(module):
    session = module.open_session(1)
    assert module.login(session, SO, PASSWORD) == OK
    assert module.init_pin(session, OTHER) == OK
    assert module.C_CloseSession(session) == OK
    assert logins(module, OTHER) == [OK, OK]

    session = module.open_session(1)
    assert module.set_pin(session, OTHER, b"by the user") == OK
    assert module.C_CloseSession(session) == OK
    assert logins(module, b"by the user") == [OK, OK]

    session = module.open_session(1)
    assert module.login(session, SO, b"by the user") == OK
    assert module.set_pin(session, b"by the user", b"by the officer") == OK
    assert module.C_CloseSession(session) == OK
    assert logins(module, b"by the officer") == [OK, OK]
    assert logins(module, PASSWORD) == [PIN_INCORRECT] * 2


@made_with_a_password
def test_with_one_identity_init_token_leaves_the_password(module):
    assert module.init_token(1, "new", PASSWORD) == OK

    assert module.token_info(1).flags & USER_PIN_SET
    assert logins(module, PASSWORD) == [OK, OK]


@made_with_a_password
def test_with_one_identity_each_role_has_its_wrong_tries(module):
    assert log_in(module, USER, b"a wrong one") == PIN_INCORRECT
    session = module.open_session(1)
    assert module.login(session, SO, PASSWORD) == OK
    assert module.set_pin(session, PASSWORD, OTHER) == OK
    assert pin_flags(module) == USER_LOW

    assert module.init_pin(session, PASSWORD) == OK
    assert pin_flags(module) == 0


@made_with_a_password
@pytest.mark.usefixtures("dual_identity")
def test_with_two_identities_each_role_has_its_pin(module):
    session = module.open_session(1)
    assert module.login(session, SO, PASSWORD) == OK
    assert module.init_pin(session, OTHER) == OK
    assert module.C_CloseSession(session) == OK
    assert (log_in(module, SO), log_in(module, USER, OTHER)) == (OK, OK)

    assert module.init_token(1, "new", PASSWORD) == OK
    assert not module.token_info(1).flags & USER_PIN_SET
    assert log_in(module, USER, OTHER) == USER_PIN_NOT_INITIALIZED


# ---- a change that is forced ----


@pytest.fixture
def forced(cluster, module):
    """A session of the keyring whose user has a PIN from the security officer."""
    cluster.switch("pin_change", "forced")
    session = module.open_session(1)
    assert module.login(session, SO, PASSWORD) == OK
    assert module.init_pin(session, OTHER) == OK
    assert module.C_Logout(session) == OK
    return session


@made_with_a_password
def test_the_user_has_to_change_what_the_security_officer_has_set(module, forced):
    assert module.login(forced, USER, b"a wrong one") == PIN_INCORRECT
    assert module.login(forced, USER, OTHER) == PIN_EXPIRED
    assert module.session_state(forced) == 2
    assert module.token_info(1).flags & TO_BE_CHANGED
    assert log_in(module, SO, OTHER) == OK

    assert module.set_pin(forced, OTHER, b"my own one") == OK
    assert not module.token_info(1).flags & TO_BE_CHANGED
    assert module.login(forced, USER, b"my own one") == OK


@made_with_a_password
def test_what_the_keyring_was_made_with_need_not_be_changed(cluster, module):
    cluster.switch("pin_change", "forced")
    assert not module.token_info(1).flags & TO_BE_CHANGED
    assert log_in(module, USER) == OK


@made_with_a_password
def test_no_change_is_forced_while_the_switch_is_free(cluster, module, forced):
    cluster.switch("pin_change", "free")
    assert not module.token_info(1).flags & TO_BE_CHANGED
    assert module.login(forced, USER, OTHER) == OK


# ---- wrong tries ----


@made_with_a_password
def test_ten_wrong_tries_lock_the_user_out_until_the_keyring_is_unlocked(cluster, module):
    for _ in range(10):
        assert log_in(module, USER, b"1234567") == PIN_INCORRECT
    assert pin_flags(module) == USER_LOW | USER_LOCKED
    assert log_in(module, USER) == PIN_LOCKED
    assert log_in(module, SO) == OK

    cluster.unlock_keyring(1)
    assert pin_flags(module) == 0
    assert log_in(module, USER) == OK


@made_with_a_password
def test_a_new_pin_from_the_security_officer_unlocks_the_user(module):
    for _ in range(10):
        assert log_in(module, USER, b"1234567") == PIN_INCORRECT
    session = module.open_session(1)
    assert module.login(session, SO, PASSWORD) == OK
    assert module.init_pin(session, PASSWORD) == OK
    assert module.C_CloseSession(session) == OK
    assert log_in(module, USER) == OK


@made_with_a_password
def test_wrong_old_pins_count_too(module):
    session = module.open_session(1)
    for _ in range(10):
        assert module.set_pin(session, b"a wrong one", OTHER) == PIN_INCORRECT
    assert module.set_pin(session, PASSWORD, OTHER) == PIN_LOCKED


@made_with_a_password
def test_a_short_try_of_the_user_does_not_count(module):
    for _ in range(11):
        assert log_in(module, USER, b"123456") == PIN_INCORRECT
    assert pin_flags(module) == 0
    assert log_in(module, USER) == OK


@pytest.mark.parametrize(("length", "rv"), [(16, PIN_LOCKED), (17, OK)])
def test_a_long_password_never_locks(cluster, module, length, rv):
    cluster.set_pins(1, "officer-1", "x" * length)
    for _ in range(10):
        assert log_in(module, USER, b"a wrong one") == PIN_INCORRECT
    assert log_in(module, USER, b"x" * length) == rv


def test_unlocking_needs_a_slot(cluster):
    with pytest.raises(ValueError, match="no slot 9"):
        cluster.unlock_keyring(9)


def is_as_new(module, cluster, slot_id=1):
    token = cluster.tokens()[slot_id - 1]
    info = module.token_info(slot_id)
    return token.label == token.original_label and not info.flags & (INITIALISED | USER_PIN_SET)


@pytest.mark.luna_cluster(password=LONG)
@pytest.mark.parametrize("way", ["C_Login", "C_SetPIN", "C_InitToken"])
def test_ten_wrong_tries_of_the_security_officer_erase_the_keyring(cluster, module, way):
    assert module.init_token(1, "assigned", LONG) == OK
    session = module.open_session(1) if way != "C_InitToken" else None
    if way == "C_SetPIN":
        assert module.login(session, SO, LONG) == OK

    def wrong_try():
        if way == "C_Login":
            return module.login(session, SO, b"w")
        if way == "C_SetPIN":
            return module.set_pin(session, b"w", OTHER)
        return module.init_token(1, "new", b"w")

    assert [wrong_try() for _ in range(8)] == [PIN_INCORRECT] * 8
    assert pin_flags(module) == SO_LOW
    assert wrong_try() == PIN_INCORRECT
    assert pin_flags(module) == SO_LOW | SO_LAST
    assert not is_as_new(module, cluster)
    assert wrong_try() == PIN_LOCKED
    assert pin_flags(module) == 0
    assert is_as_new(module, cluster)
    assert module.token_info(1).session_count == 0
    assert module.init_token(1, "again", OTHER) == OK
    assert logins(module, OTHER) == [OK, OK]


@made_with_a_password
def test_a_right_pin_of_the_security_officer_forgets_its_wrong_tries(module):
    for right in (lambda: log_in(module, SO), lambda: module.init_token(1, "new", PASSWORD)):
        assert log_in(module, SO, b"w") == PIN_INCORRECT
        assert pin_flags(module) == SO_LOW
        assert right() == OK
        assert pin_flags(module) == 0


@made_with_a_password
def test_an_erased_keyring_s_sessions_are_gone_everywhere(cluster, module):
    with called_elsewhere(OPEN_SESSION):
        session, other = module.open_session(1), module.open_session(2)
        assert module.login(session, USER, PASSWORD) == OK
        assert module.C_Logout(session) == OK
        for _ in range(9):
            assert module.login(session, SO, b"w") == PIN_INCORRECT
        assert module.init_token(1, "new", PASSWORD) == SESSION_EXISTS
        assert module.login(session, SO, b"w") == PIN_LOCKED

        assert module.C_CloseSession(session) == SESSION_HANDLE_INVALID
        assert module.C_CloseSession(other) == OK
        assert module.init_token(1, "new", PASSWORD) == OK


GUESSING = """[
    module.C_OpenSession(ctypes.c_ulong(1), ctypes.c_ulong(6), None, None, ctypes.byref(handle)),
    *[module.C_Login(handle, ctypes.c_ulong(0), b"w", ctypes.c_ulong(1)) for _ in range(10)],
][0]"""


@made_with_a_password
def test_a_session_notices_that_another_process_had_the_keyring_erased(cluster, module):
    session, other = module.open_session(1), module.open_session(1, RO_SESSION)
    assert module.login(session, USER, PASSWORD) == OK
    with called_elsewhere(GUESSING):
        assert is_as_new(module, cluster)
        assert module.C_Logout(session) == SESSION_HANDLE_INVALID
        assert module.C_CloseSession(other) == SESSION_HANDLE_INVALID
        assert module.session_state(module.open_session(1)) == 2
        assert module.C_CloseAllSessions(1) == OK
        assert module.init_token(1, "new", OTHER) == OK
        assert log_in(module, USER, OTHER) == OK


@pytest.mark.luna_cluster(password=PASSWORD, keyrings=1)
def test_an_erased_keyring_can_be_claimed(cluster, module):
    assert module.init_token(1, "assigned", PASSWORD) == OK
    assert module.get_unassigned_slot()[0] != OK
    for _ in range(10):
        log = module.init_token(1, "new", b"w")
    assert log == PIN_LOCKED
    assert module.get_unassigned_slot()[:2] == (OK, 1)


# ---- a PED ----


@pytest.fixture
def ped(cluster, module):
    cluster.switch("authentication", "ped")
    return module


@made_with_a_password
def test_with_a_ped_pins_are_null_and_right(ped):
    assert ped.token_info(1).flags & PED
    assert ped.C_InitToken(1, None, 0, b"new".ljust(32)) == OK
    session = ped.open_session(1)
    assert ped.C_Login(session, SO, None, 0) == OK
    assert ped.C_InitPIN(session, None, 0) == OK
    assert ped.C_SetPIN(session, None, 0, None, 0) == OK
    assert ped.C_Logout(session) == OK
    assert ped.C_Login(session, USER, None, 0) == OK


@made_with_a_password
@pytest.mark.parametrize(("pin", "length"), [(PASSWORD, len(PASSWORD)), (b"", 0), (None, 8)])
def test_with_a_ped_no_pin_is_passed(ped, pin, length):
    assert ped.C_InitToken(1, pin, length, b"new".ljust(32)) == ARGUMENTS_BAD
    session = ped.open_session(1)
    assert ped.C_Login(session, SO, pin, length) == ARGUMENTS_BAD
    assert ped.C_Login(session, SO, None, 0) == OK
    assert ped.C_InitPIN(session, pin, length) == ARGUMENTS_BAD
    assert ped.C_SetPIN(session, pin, length, None, 0) == ARGUMENTS_BAD
    assert ped.C_SetPIN(session, None, 0, pin, length) == ARGUMENTS_BAD


def test_a_ped_makes_the_keys_of_a_fresh_keyring(ped, dual_identity):
    session = ped.open_session(1)
    assert ped.C_Login(session, SO, None, 0) == PIN_INCORRECT
    assert ped.C_CloseSession(session) == OK
    assert ped.C_InitToken(1, None, 0, b"new".ljust(32)) == OK
    session = ped.open_session(1)
    assert ped.C_Login(session, USER, None, 0) == USER_PIN_NOT_INITIALIZED
    assert ped.C_Login(session, SO, None, 0) == OK
    assert ped.C_InitPIN(session, None, 0) == OK
    assert ped.token_info(1).flags & (INITIALISED | USER_PIN_SET) == 0x408
    assert ped.C_Logout(session) == OK
    assert ped.C_Login(session, USER, None, 0) == OK


def test_no_password_is_a_ped_s_key(cluster, ped):
    assert ped.C_InitToken(1, None, 0, b"new".ljust(32)) == OK
    cluster.switch("authentication", "password")
    assert not ped.token_info(1).flags & PED
    assert log_in(ped, SO, b"") == PIN_INCORRECT
    assert log_in(ped, USER, PASSWORD) == PIN_INCORRECT


# ---- lengths ----


def test_lengths_of_pins_can_be_others(cluster, module):
    info = module.token_info(1)
    assert (info.min_pin_len, info.max_pin_len) == (8, 255)
    cluster.pin_lengths(4, 10)
    info = module.token_info(1)
    assert (info.min_pin_len, info.max_pin_len) == (4, 10)

    assert module.init_token(1, "new", b"123") == PIN_INCORRECT
    assert module.init_token(1, "new", b"1234") == OK
    session = module.open_session(1)
    assert module.set_pin(session, b"1234", b"x" * 11) == PIN_LEN_RANGE
    assert module.set_pin(session, b"1234", b"x" * 10) == OK


@pytest.mark.parametrize(("least", "most"), [(0, 8), (8, 256), (9, 8)])
def test_lengths_of_pins_have_limits(cluster, module, least, most):
    with pytest.raises(ValueError, match=r"least|most"):
        cluster.pin_lengths(least, most)
    assert module.token_info(1).min_pin_len == 8


# ---- the vendor's role, and a label that is changed ----


@made_with_a_password
@pytest.mark.parametrize("user", [LIMITED_USER, LIMITED_USER_OLD])
def test_the_limited_user_has_no_pin(module, user):
    session = module.open_session(1)
    assert module.login(session, user, PASSWORD) == USER_PIN_NOT_INITIALIZED
    assert module.login(session, USER, PASSWORD) == OK
    assert module.login(session, USER, PASSWORD) == USER_ALREADY_LOGGED_IN
    assert module.login(session, user, PASSWORD) == USER_ANOTHER_ALREADY_LOGGED_IN


def change_label(module, session, label, slot_id=1):
    return module.CA_ChangeLabel(session, slot_id, label, len(label))


@made_with_a_password
def test_few_clients_change_labels(module):
    session = module.open_session(1)
    assert module.login(session, SO, PASSWORD) == OK
    assert change_label(module, session, b"new") == FUNCTION_NOT_SUPPORTED
    assert module.token_info(1).label == b"keyring1".ljust(32)


@made_with_a_password
@pytest.mark.parametrize("label", [b"n", b"new", b"new" + b" " * 29, b"x" * 32])
def test_a_label_is_changed_and_nothing_erased(cluster, module, label):
    cluster.switch("change_label", "on")
    session = module.open_session(1)
    assert module.login(session, SO, PASSWORD) == OK
    assert change_label(module, session, label) == OK

    assert module.token_info(1).label == label.ljust(32)
    assert module.get_slot_id(label.decode(), 1)[:2] == (OK, 1)
    assert module.C_CloseSession(session) == OK
    assert logins(module, PASSWORD) == [OK, OK]
    (call,) = [call for call in cluster.log() if call.function == "CA_ChangeLabel"]
    assert (call.slot_id, call.rv) == (1, OK)


@made_with_a_password
def test_what_a_change_of_a_label_refuses(cluster, module):
    cluster.switch("change_label", "on")
    session = module.open_session(1)
    assert change_label(module, session, b"new") == USER_NOT_LOGGED_IN
    assert module.login(session, USER, PASSWORD) == OK
    assert change_label(module, session, b"new") == USER_NOT_LOGGED_IN
    assert module.C_Logout(session) == OK
    assert module.login(session, SO, PASSWORD) == OK
    assert change_label(module, session, b"") == ARGUMENTS_BAD
    assert change_label(module, session, b"x" * 33) == ARGUMENTS_BAD
    assert module.CA_ChangeLabel(session, 1, None, 3) == ARGUMENTS_BAD
    assert change_label(module, session, b"new", 2) == SLOT_ID_INVALID
    assert change_label(module, session + 1, b"new") == SESSION_HANDLE_INVALID
    cluster.fault("CA_ChangeLabel", DEVICE_ERROR, times=1)
    assert change_label(module, session, b"new") == DEVICE_ERROR
    assert module.token_info(1).label == b"keyring1".ljust(32)


# ---- several processes that are one application ----


LOCK = "module.CA_LockClusteredSlot(ctypes.c_ulong(1))"


@pytest.fixture
def shared(cluster, module):
    cluster.switch("application", "shared")
    return module


def test_one_application_is_granted_what_its_other_process_holds(cluster, shared):
    with called_elsewhere(LOCK) as process:
        assert shared.CA_LockClusteredSlot(1) == OK
        assert owners(cluster) == {1: process.pid}
        assert shared.CA_UnlockClusteredSlot(1) == OK
        assert owners(cluster) == {}


def test_one_application_s_locks_are_relocked_as_the_switch_says(cluster, shared):
    cluster.switch("relock", "error")
    with called_elsewhere(LOCK):
        assert shared.CA_LockClusteredSlot(1) == DEVICE_ERROR


def test_one_application_may_unlock_where_the_owner_is_checked(cluster, shared):
    cluster.switch("unlock_owner", "checked")
    assert shared.CA_UnlockClusteredSlot(1) == DEVICE_ERROR
    with called_elsewhere(LOCK):
        assert shared.CA_UnlockClusteredSlot(1) == OK
        cluster.switch("application", "process")
    with called_elsewhere(LOCK):
        assert shared.CA_UnlockClusteredSlot(1) == DEVICE_ERROR


@pytest.mark.luna_cluster(keyrings=1)
def test_one_application_s_claim_may_give_what_its_other_process_holds(cluster, shared):
    with called_elsewhere(LOCK):
        assert shared.get_unassigned_slot()[:2] == (OK, 1)
        assert shared.get_unassigned_slot()[0] != OK
        assert shared.CA_UnlockClusteredSlot(1) == OK
        assert shared.get_unassigned_slot()[:2] == (OK, 1)


def test_one_application_s_lock_goes_with_the_process_that_was_granted_it(cluster, shared):
    with called_elsewhere(LOCK) as process:
        process.kill()
        process.wait()
    assert owners(cluster) == {}
    cluster.switch("relock", "error")
    assert shared.CA_LockClusteredSlot(1) == OK


# ---- the table of the vendor's functions ----


UNKNOWN = 1024
OWN = (
    "CA_GetFunctionList",
    "CA_GetSlotId",
    "CA_GetUnassignedSlot",
    "CA_LockClusteredSlot",
    "CA_UnlockClusteredSlot",
    "CA_ChangeLabel",
)


def test_the_vendor_s_functions_are_in_a_table(uninitialised):
    address = ctypes.c_void_p()
    assert uninitialised.CA_GetFunctionList(None) == ARGUMENTS_BAD
    assert uninitialised.CA_GetFunctionList(ctypes.byref(address)) == OK
    members = (ctypes.c_void_p * (1 + UNKNOWN + len(OWN))).from_address(address.value)

    # Where a program that was compiled with the vendor's header finds its functions, there are none.
    for place in range(1, 1 + UNKNOWN):
        call = ctypes.CFUNCTYPE(ctypes.c_ulong, ctypes.c_ulong)(members[place])
        assert call(1) == FUNCTION_NOT_SUPPORTED
    assert members[1 + UNKNOWN :] == [
        ctypes.cast(getattr(uninitialised.library, name), ctypes.c_void_p).value for name in OWN
    ]
    assert uninitialised.C_Initialize(None) == OK
    assert uninitialised.CA_GetFunctionList(ctypes.byref(ctypes.c_void_p())) == OK
