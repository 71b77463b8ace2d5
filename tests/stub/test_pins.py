"""Login, wrong PINs, and the functions that set PINs and labels."""

import ctypes

import pytest
from pkcs11_client import (
    ARGUMENTS_BAD,
    CONTEXT_SPECIFIC,
    NO_SLOT,
    OK,
    OPEN_SESSION,
    OPERATION_NOT_INITIALIZED,
    PIN_INCORRECT,
    PIN_LEN_RANGE,
    PIN_LOCKED,
    RO_SESSION,
    RW_SESSION,
    SESSION_EXISTS,
    SESSION_HANDLE_INVALID,
    SESSION_READ_ONLY,
    SESSION_READ_ONLY_EXISTS,
    SESSION_READ_WRITE_SO_EXISTS,
    SLOT_ID_INVALID,
    SO,
    UNTOUCHED,
    USER,
    USER_ALREADY_LOGGED_IN,
    USER_ANOTHER_ALREADY_LOGGED_IN,
    USER_NOT_LOGGED_IN,
    USER_PIN_NOT_INITIALIZED,
    USER_TYPE_INVALID,
    called_elsewhere,
)

# ---- login ----


@pytest.mark.parametrize(("user", "pin", "state"), [(SO, b"so-pin-1", 4), (USER, b"user-pin", 3)])
def test_login_and_logout_change_the_state_of_all_sessions(module, token, user, pin, state):
    session, other = module.open_session(token), module.open_session(token)

    assert module.login(session, user, pin) == OK
    assert [module.session_state(each) for each in (session, other)] == [state, state]
    assert module.C_Logout(other) == OK
    assert [module.session_state(each) for each in (session, other)] == [2, 2]
    assert module.C_Logout(session) == USER_NOT_LOGGED_IN


def test_last_session_takes_the_login_with_it(module, token):
    session = module.open_session(token)
    assert module.login(session, USER, b"user-pin") == OK
    assert module.C_CloseSession(session) == OK

    assert module.session_state(module.open_session(token, RO_SESSION)) == 0


@pytest.mark.parametrize(
    ("first", "second", "rv"),
    [
        ((SO, b"so-pin-1"), (SO, b"so-pin-1"), USER_ALREADY_LOGGED_IN),
        ((USER, b"user-pin"), (USER, b"user-pin"), USER_ALREADY_LOGGED_IN),
        ((SO, b"so-pin-1"), (USER, b"user-pin"), USER_ANOTHER_ALREADY_LOGGED_IN),
        ((USER, b"user-pin"), (SO, b"so-pin-1"), USER_ANOTHER_ALREADY_LOGGED_IN),
    ],
)
def test_second_login_is_refused(module, token, first, second, rv):
    session = module.open_session(token)

    assert module.login(session, *first) == OK
    assert module.login(session, *second) == rv


def test_security_officer_and_read_only_sessions_exclude_each_other(module, token):
    reading = module.open_session(token, RO_SESSION)
    writing = module.open_session(token, RW_SESSION)
    handle = ctypes.c_ulong()

    assert module.login(writing) == SESSION_READ_ONLY_EXISTS
    assert module.C_CloseSession(reading) == OK
    assert module.login(writing) == OK
    assert (
        module.C_OpenSession(token, RO_SESSION, None, None, ctypes.byref(handle))
        == SESSION_READ_WRITE_SO_EXISTS
    )


def test_login_refuses_bad_arguments(module, token):
    session = module.open_session(token)

    assert module.login(session, 7) == USER_TYPE_INVALID
    assert module.login(session, CONTEXT_SPECIFIC) == OPERATION_NOT_INITIALIZED
    assert module.login(session + 1) == SESSION_HANDLE_INVALID
    assert module.C_Login(session, SO, None, 4) == ARGUMENTS_BAD
    assert module.C_Logout(session + 1) == SESSION_HANDLE_INVALID


@pytest.mark.usefixtures("dual_identity")
def test_user_cannot_log_in_before_there_is_a_pin(module):
    assert module.init_token(1) == OK

    assert module.login(module.open_session(1), USER, b"user-pin") == USER_PIN_NOT_INITIALIZED


@pytest.mark.parametrize("user", [SO, USER])
@pytest.mark.parametrize("pin", [b"", b"wrong", b"so-pin-", b"user-pin1", b"user-piX", b"x" * 300])
def test_wrong_pin_is_refused(module, token, user, pin):
    session = module.open_session(token)

    assert module.login(session, user, pin) == PIN_INCORRECT
    assert module.session_state(session) == 2


def test_wrong_tries_are_counted_until_the_pin_is_locked(module, token):
    session = module.open_session(token)
    low, last, locked = 0x10000, 0x20000, 0x40000

    def wrong_try():
        rv = module.login(session, USER, b"a wrong one")
        return rv, module.token_info(token).flags & (low | last | locked)

    assert [wrong_try() for _ in range(8)] == [(PIN_INCORRECT, low)] * 8
    assert wrong_try() == (PIN_INCORRECT, low | last)
    assert wrong_try() == (PIN_INCORRECT, low | locked)
    assert wrong_try() == (PIN_LOCKED, low | locked)
    assert module.login(session, USER, b"user-pin") == PIN_LOCKED


def test_right_pin_forgets_the_wrong_tries(module, token):
    session = module.open_session(token)
    assert module.login(session, USER, b"a wrong one") == PIN_INCORRECT
    assert module.token_info(token).flags & 0x10000 == 0x10000
    assert module.login(session, USER, b"user-pin") == OK

    assert module.token_info(token).flags & 0x10000 == 0


# ---- C_InitToken, C_InitPIN, C_SetPIN ----


def test_init_token_gives_label_and_security_officer_s_pin(module):
    before = module.token_info(1)
    assert module.init_token(1, "paid", b"officer-1") == OK
    after = module.token_info(1)

    assert before.label == b"keyring1".ljust(32)
    assert after.label == b"paid".ljust(32)
    assert (before.flags & 0x400, after.flags & 0x400) == (0, 0x400)
    assert module.login(module.open_session(1), SO, b"officer-1") == OK


def test_init_token_of_an_initialised_token_needs_its_pin(module):
    assert module.init_token(1, "first", b"officer-1") == OK

    assert module.init_token(1, "second", b"another-1") == PIN_INCORRECT
    assert module.token_info(1).label == b"first".ljust(32)
    assert module.init_token(1, "second", b"officer-1") == OK
    assert module.token_info(1).label == b"second".ljust(32)


def test_init_token_erases_the_user_s_pin(module, token):
    assert module.token_info(token).flags & 0x8 == 0x8
    assert module.init_token(token, "again") == OK

    assert module.token_info(token).flags & 0x8 == 0
    assert module.login(module.open_session(token), USER, b"user-pin") == USER_PIN_NOT_INITIALIZED


def test_init_token_is_refused_while_there_is_a_session(module):
    session = module.open_session(1)

    assert module.init_token(1, "new") == SESSION_EXISTS
    assert module.token_info(1).label == b"keyring1".ljust(32)
    assert module.C_CloseSession(session) == OK
    assert module.init_token(1, "new") == OK


def test_init_token_is_refused_while_another_process_has_a_session(module, cluster):
    with called_elsewhere(OPEN_SESSION) as process:
        assert module.init_token(1, "new") == SESSION_EXISTS
        assert module.init_token(2, "new") == OK

        cluster.disconnect(process.pid)
        assert module.init_token(1, "new") == OK


def test_session_of_a_killed_process_is_gone(module):
    with called_elsewhere(OPEN_SESSION) as process:
        process.kill()
        process.wait()

    assert module.init_token(1, "new") == OK


def test_session_of_a_killed_process_is_not_its_successor_s(module):
    with called_elsewhere(OPEN_SESSION) as process:
        process.kill()
        process.wait()

    # The table of applications gives the next process the place of the dead one.
    with called_elsewhere("module.C_GetInfo(ctypes.create_string_buffer(256))"):
        assert module.init_token(1, "new") == OK


@pytest.mark.parametrize("pin", [b"", b"1234567", b"x" * 256])
def test_pin_length_has_its_limits_in_init_token(module, pin):
    # The standard's list of answers of C_InitToken does not have CKR_PIN_LEN_RANGE.
    assert module.init_token(1, "new", pin) == PIN_INCORRECT
    assert module.token_info(1).label == b"keyring1".ljust(32)


@pytest.mark.parametrize("pin", [b"so-pin-1", b"x" * 255])
def test_shortest_and_longest_pin_work(module, pin):
    assert module.init_token(1, "new", pin) == OK
    assert module.login(module.open_session(1), SO, pin) == OK


def test_init_token_refuses_bad_arguments(module):
    assert module.init_token(NO_SLOT) == SLOT_ID_INVALID
    assert module.C_InitToken(1, None, 4, b"new".ljust(32)) == ARGUMENTS_BAD
    assert module.C_InitToken(1, b"so-pin-1", 4, None) == ARGUMENTS_BAD
    assert module.token_info(1).label == b"keyring1".ljust(32)


def test_init_pin_sets_the_user_s_pin(module):
    assert module.init_token(1) == OK
    session = module.open_session(1)
    assert module.login(session) == OK

    assert module.init_pin(session, b"user-pin") == OK
    assert module.token_info(1).flags & 0x8 == 0x8
    assert module.C_Logout(session) == OK
    assert module.login(session, USER, b"user-pin") == OK


def test_init_pin_needs_the_security_officer(module, token):
    session = module.open_session(token)

    assert module.init_pin(session) == USER_NOT_LOGGED_IN
    assert module.login(session, USER, b"user-pin") == OK
    assert module.init_pin(session) == USER_NOT_LOGGED_IN


def test_init_pin_refuses_bad_arguments(module, token):
    session = module.open_session(token)
    assert module.login(session) == OK

    assert module.init_pin(session, b"1234567") == PIN_LEN_RANGE
    assert module.init_pin(session, b"x" * 256) == PIN_LEN_RANGE
    assert module.C_InitPIN(session, None, 4) == ARGUMENTS_BAD
    assert module.init_pin(session + 1) == SESSION_HANDLE_INVALID


@pytest.mark.parametrize(
    ("login", "old", "user"),
    [
        (None, b"user-pin", USER),
        ((USER, b"user-pin"), b"user-pin", USER),
        ((SO, b"so-pin-1"), b"so-pin-1", SO),
    ],
)
def test_set_pin_changes_the_pin_of_the_role_that_is_logged_in_or_the_user_s(
    module, token, login, old, user
):
    session = module.open_session(token)
    if login is not None:
        assert module.login(session, *login) == OK

    assert module.set_pin(session, old, b"changed-1") == OK
    assert module.C_CloseSession(session) == OK
    session = module.open_session(token)
    assert module.login(session, user, old) == PIN_INCORRECT
    assert module.login(session, user, b"changed-1") == OK


def test_set_pin_needs_the_old_pin(module, token):
    session = module.open_session(token)

    assert module.set_pin(session, b"wrong", b"changed-1") == PIN_INCORRECT
    assert module.login(session, USER, b"user-pin") == OK


def test_set_pin_refuses_bad_arguments(module, token):
    session = module.open_session(token)

    assert (
        module.set_pin(module.open_session(token, RO_SESSION), b"user-pin", b"new-pin-1")
        == SESSION_READ_ONLY
    )
    assert module.set_pin(session, b"user-pin", b"new-pin") == PIN_LEN_RANGE
    assert module.set_pin(session, b"user-pin", b"x" * 256) == PIN_LEN_RANGE
    assert module.set_pin(session + UNTOUCHED, b"user-pin", b"new-pin-1") == SESSION_HANDLE_INVALID
    assert module.C_SetPIN(session, None, 4, b"new-pin-1", 4) == ARGUMENTS_BAD
    assert module.C_SetPIN(session, b"user-pin", 4, None, 4) == ARGUMENTS_BAD


def test_labels_and_pins_are_the_cluster_s_and_logins_the_process_s(module, token):
    session = module.open_session(token)
    assert module.login(session, USER, b"user-pin") == OK
    assert module.C_Finalize(None) == OK
    assert module.C_Initialize(None) == OK

    session = module.open_session(token)
    assert module.session_state(session) == 2
    assert module.login(session, USER, b"user-pin") == OK
    assert module.token_info(token).label == b"token".ljust(32)
