"""Slots, tokens, sessions, and what can be done in a session without a login."""

import ctypes
import os

import pytest
from pkcs11_client import (
    ARGUMENTS_BAD,
    BUFFER_TOO_SMALL,
    DEVICE_ERROR,
    FUNCTION_NOT_PARALLEL,
    MECHANISM_INVALID,
    NO_EVENT,
    NO_SLOT,
    NOT_INITIALIZED,
    OK,
    OPERATION_ACTIVE,
    OPERATION_NOT_INITIALIZED,
    RANDOM_SEED_NOT_SUPPORTED,
    RO_SESSION,
    RW_SESSION,
    SESSION_COUNT,
    SESSION_HANDLE_INVALID,
    SESSION_PARALLEL_NOT_SUPPORTED,
    SLOT_ID_INVALID,
    UNTOUCHED,
    SessionInfo,
    wait_for_call,
)

# ---- slots and tokens ----


def test_slots_are_counted_then_listed(module):
    count = ctypes.c_ulong(0)
    slots = (ctypes.c_ulong * 9)(*[UNTOUCHED] * 9)

    assert module.C_GetSlotList(1, None, ctypes.byref(count)) == OK
    assert count.value == 8
    assert module.C_GetSlotList(1, slots, ctypes.byref(count)) == OK
    assert list(slots) == [*range(1, 9), UNTOUCHED]


def test_too_small_list_of_all_slots_tells_the_count(module):
    count = ctypes.c_ulong(7)
    slots = (ctypes.c_ulong * 7)(*[UNTOUCHED] * 7)

    assert module.C_GetSlotList(0, slots, ctypes.byref(count)) == BUFFER_TOO_SMALL
    assert count.value == 8
    assert list(slots) == [UNTOUCHED] * 7


@pytest.mark.parametrize("function", ["C_GetSlotInfo", "C_GetTokenInfo"])
def test_information_needs_a_known_slot_and_a_place(module, function):
    place = ctypes.create_string_buffer(512)

    assert getattr(module, function)(1, place) == OK
    assert getattr(module, function)(NO_SLOT, place) == SLOT_ID_INVALID
    assert getattr(module, function)(1, None) == ARGUMENTS_BAD


def test_slot_list_and_library_information_need_a_place(module):
    assert module.C_GetSlotList(1, None, None) == ARGUMENTS_BAD
    assert module.C_GetInfo(None) == ARGUMENTS_BAD


def test_token_has_no_mechanisms(module):
    count = ctypes.c_ulong(UNTOUCHED)
    place = ctypes.create_string_buffer(64)

    assert module.C_GetMechanismList(1, None, ctypes.byref(count)) == OK
    assert count.value == 0
    assert module.C_GetMechanismList(NO_SLOT, None, ctypes.byref(count)) == SLOT_ID_INVALID
    assert module.C_GetMechanismList(1, None, None) == ARGUMENTS_BAD
    assert module.C_GetMechanismInfo(1, 0x1, place) == MECHANISM_INVALID
    assert module.C_GetMechanismInfo(NO_SLOT, 0x1, place) == SLOT_ID_INVALID


def test_tokens_never_come_or_go(module):
    slot = ctypes.c_ulong(UNTOUCHED)

    assert module.C_WaitForSlotEvent(0x1, ctypes.byref(slot), None) == NO_EVENT
    assert module.C_WaitForSlotEvent(0x1, None, None) == ARGUMENTS_BAD
    assert module.C_WaitForSlotEvent(0x0, ctypes.byref(slot), ctypes.byref(slot)) == ARGUMENTS_BAD
    assert slot.value == UNTOUCHED


def waiting_for_slot_event(module, cluster, call):
    """A thread in a blocking C_WaitForSlotEvent."""
    waiter = call(lambda: module.C_WaitForSlotEvent(0x0, ctypes.byref(ctypes.c_ulong()), None))
    wait_for_call(cluster, "C_WaitForSlotEvent")
    return waiter


def test_finalisation_ends_the_waiting_for_a_slot_event(module, cluster, call):
    waiter = waiting_for_slot_event(module, cluster, call)

    assert module.C_Finalize(None) == OK
    assert waiter.result() == NOT_INITIALIZED


def test_lost_connection_ends_the_waiting_for_a_slot_event(module, cluster, call):
    waiter = waiting_for_slot_event(module, cluster, call)

    cluster.disconnect(os.getpid())
    assert waiter.result() == DEVICE_ERROR


def test_legacy_functions_answer_as_the_standard_says(module):
    assert module.C_GetFunctionStatus(0) == FUNCTION_NOT_PARALLEL
    assert module.C_CancelFunction(0) == FUNCTION_NOT_PARALLEL


# ---- sessions ----


def test_session_is_opened_counted_and_closed(module):
    session = module.open_session(3, RW_SESSION)
    other = module.open_session(3, RO_SESSION)
    info = module.token_info(3)

    assert session != other
    assert (info.session_count, info.rw_session_count) == (2, 1)
    assert module.C_CloseSession(session) == OK
    assert module.C_CloseSession(session) == SESSION_HANDLE_INVALID
    assert module.session_state(other) == 0
    assert module.token_info(3).session_count == 1


def test_session_says_what_it_is(module):
    info = SessionInfo()
    session = module.open_session(3, RW_SESSION)

    assert module.C_GetSessionInfo(session, ctypes.byref(info)) == OK
    assert (info.slot_id, info.state, info.flags, info.device_error) == (3, 2, RW_SESSION, 0)
    assert module.C_GetSessionInfo(session, None) == ARGUMENTS_BAD
    assert module.C_GetSessionInfo(session + 1, ctypes.byref(info)) == SESSION_HANDLE_INVALID


def test_all_sessions_of_one_slot_are_closed(module):
    sessions = [module.open_session(3) for _ in range(3)]
    kept = module.open_session(4)

    assert module.C_CloseAllSessions(3) == OK
    assert [module.C_CloseSession(each) for each in sessions] == [SESSION_HANDLE_INVALID] * 3
    assert module.C_CloseSession(kept) == OK
    assert module.C_CloseAllSessions(NO_SLOT) == SLOT_ID_INVALID


def test_session_needs_a_known_slot_a_place_and_the_serial_flag(module):
    handle = ctypes.c_ulong(UNTOUCHED)
    place = ctypes.byref(handle)

    assert module.C_OpenSession(NO_SLOT, RW_SESSION, None, None, place) == SLOT_ID_INVALID
    assert module.C_OpenSession(1, RW_SESSION, None, None, None) == ARGUMENTS_BAD
    assert module.C_OpenSession(1, 0x2, None, None, place) == SESSION_PARALLEL_NOT_SUPPORTED
    assert handle.value == UNTOUCHED


def test_bad_session_comes_before_bad_arguments(module):
    nothing = {
        "C_GetSessionInfo": (None,),
        "C_Login": (1, None, 4),
        "C_InitPIN": (None, 4),
        "C_SetPIN": (None, 4, None, 4),
        "C_FindObjectsInit": (None, 1),
        "C_FindObjects": (None, 1, None),
        "C_SeedRandom": (None, 1),
        "C_GenerateRandom": (None, 1),
    }
    session = module.open_session(1)

    for function, arguments in nothing.items():
        call = getattr(module, function)
        assert call(session + UNTOUCHED, *arguments) == SESSION_HANDLE_INVALID, function
        assert call(session, *arguments) == ARGUMENTS_BAD, function


def test_sessions_run_out(module):
    handle = ctypes.c_ulong()
    room = module.token_info(1).max_session_count
    for _ in range(room):
        module.open_session(1)

    assert module.C_OpenSession(1, RW_SESSION, None, None, ctypes.byref(handle)) == SESSION_COUNT
    assert module.open_session(2) != 0  # the limit is each token's
    assert module.C_CloseAllSessions(1) == OK
    assert module.C_OpenSession(1, RW_SESSION, None, None, ctypes.byref(handle)) == OK


def test_finalisation_closes_the_sessions(module):
    session = module.open_session(1)
    assert module.C_Finalize(None) == OK
    assert module.C_Initialize(None) == OK

    assert module.C_CloseSession(session) == SESSION_HANDLE_INVALID
    assert module.token_info(1).session_count == 0


def test_search_finds_no_objects(module):
    session = module.open_session(1)
    found = ctypes.c_ulong(UNTOUCHED)
    place = ctypes.c_ulong()

    def find():
        return module.C_FindObjects(session, ctypes.byref(place), 1, ctypes.byref(found))

    assert find() == OPERATION_NOT_INITIALIZED
    assert module.C_FindObjectsInit(session, None, 0) == OK
    assert module.C_FindObjectsInit(session, None, 0) == OPERATION_ACTIVE
    assert find() == OK
    assert found.value == 0
    assert module.C_FindObjectsFinal(session) == OK
    assert module.C_FindObjectsFinal(session) == OPERATION_NOT_INITIALIZED


def test_random_numbers_are_random_and_take_no_seed(module):
    session = module.open_session(1)
    first, second = (ctypes.create_string_buffer(32) for _ in range(2))

    assert module.C_GenerateRandom(session, first, 32) == OK
    assert module.C_GenerateRandom(session, second, 32) == OK
    assert first.raw != second.raw
    assert module.C_SeedRandom(session, first, 32) == RANDOM_SEED_NOT_SUPPORTED
    assert module.C_GenerateRandom(session, None, 32) == ARGUMENTS_BAD
    assert module.C_GenerateRandom(session + 1, first, 32) == SESSION_HANDLE_INVALID
