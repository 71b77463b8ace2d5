"""The stand-in's C interface, called by ctypes as any other client would: every code is reached."""

import ctypes
import os
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from luna_ext.stub import STATE_VARIABLE, library_path

HEADER = (Path(__file__).parent.parent / "include" / "cryptoki_v2.h").read_text()
FUNCTIONS = re.findall(r"^ +X\((C_\w+),", HEADER, re.MULTILINE)
CLUSTER_FUNCTIONS = {
    "CA_GetSlotId": (0x0, 0x7, 0x30, 0x150, 0x190),
    "CA_GetUnassignedSlot": (0x0, 0x6, 0x7, 0x30, 0x150, 0x190),
    "CA_LockClusteredSlot": (0x0, 0x3, 0x30),
    "CA_UnlockClusteredSlot": (0x0, 0x3, 0x30),
}
# The functions that have a meaning on a cluster in a file.
MEANINGFUL = """
    C_Initialize C_Finalize C_GetInfo C_GetFunctionList C_GetSlotList C_GetSlotInfo C_GetTokenInfo
    C_GetMechanismList C_GetMechanismInfo C_InitToken C_InitPIN C_SetPIN C_OpenSession
    C_CloseSession C_CloseAllSessions C_GetSessionInfo C_Login C_Logout C_FindObjectsInit
    C_FindObjects C_FindObjectsFinal C_SeedRandom C_GenerateRandom C_GetFunctionStatus
    C_CancelFunction C_WaitForSlotEvent
"""
WITHOUT_MEANING = [name for name in FUNCTIONS if name not in MEANINGFUL.split()]

OK = 0x0
SLOT_ID_INVALID = 0x3
FUNCTION_FAILED = 0x6
ARGUMENTS_BAD = 0x7
NO_EVENT = 0x8
CANT_LOCK = 0xA
DEVICE_ERROR = 0x30
FUNCTION_NOT_PARALLEL = 0x51
FUNCTION_NOT_SUPPORTED = 0x54
MECHANISM_INVALID = 0x70
OPERATION_ACTIVE = 0x90
OPERATION_NOT_INITIALIZED = 0x91
PIN_INCORRECT = 0xA0
PIN_LEN_RANGE = 0xA2
PIN_LOCKED = 0xA4
SESSION_COUNT = 0xB1
SESSION_HANDLE_INVALID = 0xB3
SESSION_PARALLEL_NOT_SUPPORTED = 0xB4
SESSION_READ_ONLY = 0xB5
SESSION_EXISTS = 0xB6
SESSION_READ_ONLY_EXISTS = 0xB7
SESSION_READ_WRITE_SO_EXISTS = 0xB8
USER_ALREADY_LOGGED_IN = 0x100
USER_NOT_LOGGED_IN = 0x101
USER_PIN_NOT_INITIALIZED = 0x102
USER_TYPE_INVALID = 0x103
USER_ANOTHER_ALREADY_LOGGED_IN = 0x104
RANDOM_SEED_NOT_SUPPORTED = 0x120
BUFFER_TOO_SMALL = 0x150
NOT_INITIALIZED = 0x190
ALREADY_INITIALIZED = 0x191

SO, USER, CONTEXT_SPECIFIC = 0, 1, 2
RO_SESSION, RW_SESSION = 0x4, 0x6
NO_SLOT = 99
UNTOUCHED = 0xABCDEF
CALLBACK = ctypes.CFUNCTYPE(ctypes.c_ulong, ctypes.c_void_p)


class Unassigned(ctypes.Structure):
    _fields_ = (("slot_id", ctypes.c_ulong), ("label", ctypes.c_char * 32))


class TokenInfo(ctypes.Structure):
    _fields_ = (
        ("label", ctypes.c_char * 32),
        ("manufacturer", ctypes.c_char * 32),
        ("model", ctypes.c_char * 16),
        ("serial_number", ctypes.c_char * 16),
        ("flags", ctypes.c_ulong),
        ("max_session_count", ctypes.c_ulong),
        ("session_count", ctypes.c_ulong),
        ("max_rw_session_count", ctypes.c_ulong),
        ("rw_session_count", ctypes.c_ulong),
        ("rest", ctypes.c_char * 72),
    )


class SessionInfo(ctypes.Structure):
    _fields_ = (
        ("slot_id", ctypes.c_ulong),
        ("state", ctypes.c_ulong),
        ("flags", ctypes.c_ulong),
        ("device_error", ctypes.c_ulong),
    )


class InitializeArguments(ctypes.Structure):
    _fields_ = (
        ("mutex_functions", CALLBACK * 4),
        ("flags", ctypes.c_ulong),
        ("reserved", ctypes.c_void_p),
    )


class Module:
    """The stand-in, loaded as a C program would: arguments and answers are plain numbers."""

    def __init__(self):
        self.library = ctypes.CDLL(library_path())

    def __getattr__(self, name):
        function = getattr(self.library, name)
        function.restype = ctypes.c_ulong

        def call(*arguments):
            return function(
                *(ctypes.c_ulong(each) if isinstance(each, int) else each for each in arguments)
            )

        return call

    def get_slot_id(self, label, room):
        """CA_GetSlotId with so many places: the code, the count, and what is in the places."""
        places = (ctypes.c_ulong * (room + 1))(*[UNTOUCHED] * (room + 1))
        count = ctypes.c_ulong(room)
        rv = self.CA_GetSlotId(label.encode().ljust(32), places, ctypes.byref(count))
        return rv, count.value, list(places)

    def get_unassigned_slot(self, cluster_id=b"cluster-1"):
        info = Unassigned(UNTOUCHED)
        rv = self.CA_GetUnassignedSlot(cluster_id, ctypes.byref(info))
        return rv, info.slot_id, info.label

    def init_token(self, slot_id, label="token", pin=b"1234"):
        return self.C_InitToken(slot_id, pin, len(pin), label.encode().ljust(32))

    def token_info(self, slot_id):
        info = TokenInfo()
        assert self.C_GetTokenInfo(slot_id, ctypes.byref(info)) == OK
        return info

    def open_session(self, slot_id=1, flags=RW_SESSION):
        handle = ctypes.c_ulong()
        assert self.C_OpenSession(slot_id, flags, None, None, ctypes.byref(handle)) == OK
        return handle.value

    def session_state(self, session):
        info = SessionInfo()
        assert self.C_GetSessionInfo(session, ctypes.byref(info)) == OK
        return info.state

    def login(self, session, user=SO, pin=b"1234"):
        return self.C_Login(session, user, pin, len(pin))

    def init_pin(self, session, pin=b"user"):
        return self.C_InitPIN(session, pin, len(pin))

    def set_pin(self, session, old, new):
        return self.C_SetPIN(session, old, len(old), new, len(new))


@pytest.fixture
def uninitialised(cluster, monkeypatch):
    monkeypatch.setenv(STATE_VARIABLE, cluster.path)
    module = Module()
    yield module
    # The library is one for the whole process: the next test has to find it closed.
    cluster.fault("C_Finalize", OK, times=0)
    module.C_Finalize(None)


@pytest.fixture
def module(uninitialised):
    assert uninitialised.C_Initialize(None) == OK
    return uninitialised


@pytest.fixture
def token(module):
    """The slot of a token that has SO PIN 1234 and user PIN user."""
    assert module.init_token(1) == OK
    session = module.open_session(1)
    assert module.login(session) == OK
    assert module.init_pin(session) == OK
    assert module.C_CloseSession(session) == OK
    return 1


OTHER_APPLICATION = """
import ctypes, sys

module = ctypes.CDLL(sys.argv[1])
assert module.C_Initialize(None) == 0
assert module.CA_LockClusteredSlot(ctypes.c_ulong(int(sys.argv[2]))) == 0
print("locked", flush=True)
sys.stdin.read()
"""


@contextmanager
def locked_elsewhere(slot_id):
    command = [sys.executable, "-c", OTHER_APPLICATION, library_path(), str(slot_id)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"locked\n"
        yield process
        process.stdin.close()
    assert process.returncode == 0


def owners(cluster):
    return {token.slot_id: token.owner for token in cluster.tokens() if token.owner is not None}


def call_plainly(module, function):
    """The cluster function with arguments that are in order."""
    if function == "CA_GetSlotId":
        return module.get_slot_id("keyring1", 1)[0]
    if function == "CA_GetUnassignedSlot":
        return module.get_unassigned_slot()[0]
    return getattr(module, function)(1)


# ---- every code of the four cluster functions ----


@pytest.mark.parametrize(
    ("function", "rv"), [(name, rv) for name, codes in CLUSTER_FUNCTIONS.items() for rv in codes]
)
def test_fault_answers_the_code_and_has_no_effect(module, cluster, function, rv):
    cluster.fault(function, rv, times=2)

    assert [call_plainly(module, function) for _ in range(3)] == [rv, rv, OK]


@pytest.mark.parametrize("function", ["CA_LockClusteredSlot", "CA_GetUnassignedSlot"])
def test_fault_locks_nothing(module, cluster, function):
    cluster.fault(function, OK)

    assert call_plainly(module, function) == OK
    assert owners(cluster) == {}


@pytest.mark.parametrize("function", CLUSTER_FUNCTIONS)
def test_lost_connection_is_a_device_error_until_initialised_anew(module, cluster, function):
    cluster.disconnect(os.getpid())

    assert call_plainly(module, function) == DEVICE_ERROR
    assert call_plainly(module, function) == DEVICE_ERROR
    assert module.C_Finalize(None) == OK
    assert module.C_Initialize(None) == OK
    assert call_plainly(module, function) == OK


@pytest.mark.parametrize(
    ("function", "rv"),
    [
        ("CA_GetSlotId", NOT_INITIALIZED),
        ("CA_GetUnassignedSlot", NOT_INITIALIZED),
        # These two have no such code.
        ("CA_LockClusteredSlot", DEVICE_ERROR),
        ("CA_UnlockClusteredSlot", DEVICE_ERROR),
    ],
)
def test_call_before_initialisation_and_after_finalisation(uninitialised, function, rv):
    assert call_plainly(uninitialised, function) == rv
    assert uninitialised.C_Initialize(None) == OK
    assert call_plainly(uninitialised, function) == OK
    assert uninitialised.C_Finalize(None) == OK
    assert call_plainly(uninitialised, function) == rv


# ---- CA_GetSlotId ----


def test_slot_of_a_label_is_found(module):
    assert module.get_slot_id("keyring3", 1) == (OK, 1, [3, UNTOUCHED])


def test_no_slot_of_a_label_is_no_error(module):
    assert module.get_slot_id("nowhere", 1) == (OK, 0, [UNTOUCHED, UNTOUCHED])


def test_slots_of_a_label_are_counted_without_a_list(module):
    for slot_id in (2, 5):
        assert module.init_token(slot_id, "same") == OK
    count = ctypes.c_ulong(0)

    assert module.CA_GetSlotId(b"same".ljust(32), None, ctypes.byref(count)) == OK
    assert count.value == 2


@pytest.mark.parametrize("room", [0, 1, 2])
def test_too_small_list_of_slots_tells_the_count(module, room):
    for slot_id in (2, 5, 7):
        assert module.init_token(slot_id, "same") == OK

    rv, count, places = module.get_slot_id("same", room)

    assert (rv, count) == (BUFFER_TOO_SMALL, 3)
    assert places[room] == UNTOUCHED


@pytest.mark.parametrize("room", [3, 4])
def test_large_enough_list_of_slots_is_filled(module, room):
    for slot_id in (2, 5, 7):
        assert module.init_token(slot_id, "same") == OK

    rv, count, places = module.get_slot_id("same", room)

    assert (rv, count) == (OK, 3)
    assert sorted(places[:3]) == [2, 5, 7]
    assert places[3] == UNTOUCHED


def test_slot_of_a_label_needs_label_and_count(module):
    count = ctypes.c_ulong(1)
    slot = ctypes.c_ulong(UNTOUCHED)

    assert module.CA_GetSlotId(None, ctypes.byref(slot), ctypes.byref(count)) == ARGUMENTS_BAD
    assert module.CA_GetSlotId(b"keyring1".ljust(32), ctypes.byref(slot), None) == ARGUMENTS_BAD
    assert module.CA_GetSlotId(b"keyring1".ljust(32), None, None) == ARGUMENTS_BAD
    assert (slot.value, count.value) == (UNTOUCHED, 1)


def test_label_matches_in_all_of_its_32_bytes(module):
    assert module.init_token(1, "a" * 32) == OK

    assert module.get_slot_id("a" * 31, 1)[:2] == (OK, 0)
    assert module.get_slot_id("a" * 31 + "b", 1)[:2] == (OK, 0)
    assert module.get_slot_id("a" * 32, 1)[:2] == (OK, 1)


# ---- CA_GetUnassignedSlot ----


def test_unassigned_slot_comes_locked_with_its_label(module, cluster):
    rv, slot_id, label = module.get_unassigned_slot()

    assert rv == OK
    assert label == f"keyring{slot_id}".encode().ljust(32)
    assert owners(cluster) == {slot_id: os.getpid()}


def test_unassigned_slots_run_out_when_all_are_locked(module, cluster):
    slots = {module.get_unassigned_slot()[1] for _ in range(8)}

    assert slots == set(range(1, 9))
    assert module.get_unassigned_slot()[:2] == (FUNCTION_FAILED, UNTOUCHED)
    assert module.CA_UnlockClusteredSlot(5) == OK
    assert module.get_unassigned_slot()[:2] == (OK, 5)


def test_unassigned_slots_run_out_when_all_are_assigned(module, cluster):
    for slot_id in range(1, 9):
        assert module.init_token(slot_id, f"assigned{slot_id}") == OK

    assert module.get_unassigned_slot()[:2] == (FUNCTION_FAILED, UNTOUCHED)
    assert owners(cluster) == {}


def test_token_with_its_original_label_again_is_unassigned_again(module):
    for slot_id in range(1, 9):
        assert module.init_token(slot_id, f"assigned{slot_id}") == OK
    assert module.init_token(4, "keyring4") == OK

    assert module.get_unassigned_slot()[:2] == (OK, 4)


def test_unassigned_slot_needs_cluster_and_place(module, cluster):
    info = Unassigned(UNTOUCHED)

    assert module.CA_GetUnassignedSlot(None, ctypes.byref(info)) == ARGUMENTS_BAD
    assert module.CA_GetUnassignedSlot(b"cluster-1", None) == ARGUMENTS_BAD
    assert info.slot_id == UNTOUCHED
    assert owners(cluster) == {}


@pytest.mark.parametrize("cluster_id", [b"", b"cluster", b"cluster-2", b"cluster-11", b"x" * 100])
def test_unassigned_slot_of_another_cluster_is_an_argument_error(module, cluster, cluster_id):
    assert module.get_unassigned_slot(cluster_id)[:2] == (ARGUMENTS_BAD, UNTOUCHED)
    assert owners(cluster) == {}


# ---- CA_LockClusteredSlot and CA_UnlockClusteredSlot ----


def test_lock_is_set_and_taken_off(module, cluster):
    assert module.CA_LockClusteredSlot(3) == OK
    assert owners(cluster) == {3: os.getpid()}
    assert module.CA_UnlockClusteredSlot(3) == OK
    assert owners(cluster) == {}


@pytest.mark.parametrize("slot_id", [0, 9, NO_SLOT, 2**32 + 1, 2**64 - 1])
def test_lock_of_an_unknown_slot_is_refused(module, cluster, slot_id):
    assert module.CA_LockClusteredSlot(slot_id) == SLOT_ID_INVALID
    assert module.CA_UnlockClusteredSlot(slot_id) == SLOT_ID_INVALID
    assert owners(cluster) == {}


def test_lock_that_another_process_has_is_a_device_error_if_so_switched(module, cluster):
    cluster.switch("contention", "error")

    with locked_elsewhere(3) as other:
        assert module.CA_LockClusteredSlot(3) == DEVICE_ERROR
        assert owners(cluster) == {3: other.pid}
    assert module.CA_LockClusteredSlot(3) == OK


def test_second_lock_of_one_process_is_granted_by_default(module):
    assert [module.CA_LockClusteredSlot(3) for _ in range(2)] == [OK, OK]


def test_second_lock_of_one_process_is_a_device_error_if_so_switched(module, cluster):
    cluster.switch("relock", "error")

    assert [module.CA_LockClusteredSlot(3) for _ in range(2)] == [OK, DEVICE_ERROR]
    assert owners(cluster) == {3: os.getpid()}


def test_unlock_takes_off_another_process_s_lock_by_default(module, cluster):
    with locked_elsewhere(3):
        assert module.CA_UnlockClusteredSlot(3) == OK
        assert owners(cluster) == {}


def test_unlock_checks_the_owner_if_so_switched(module, cluster):
    cluster.switch("unlock_owner", "checked")

    with locked_elsewhere(3) as other:
        assert module.CA_UnlockClusteredSlot(3) == DEVICE_ERROR
        assert owners(cluster) == {3: other.pid}
    assert module.CA_UnlockClusteredSlot(3) == DEVICE_ERROR
    assert module.CA_LockClusteredSlot(3) == OK
    assert module.CA_UnlockClusteredSlot(3) == OK


def test_locks_of_a_dead_process_are_gone(module, cluster):
    with locked_elsewhere(3):
        assert 3 in owners(cluster)

    assert owners(cluster) == {}
    assert module.CA_LockClusteredSlot(3) == OK


def test_finalisation_takes_off_all_locks(module, cluster):
    for slot_id in (1, 4, 8):
        assert module.CA_LockClusteredSlot(slot_id) == OK
    assert module.C_Finalize(None) == OK

    assert owners(cluster) == {}


# ---- the function list ----


def test_header_names_all_functions_of_the_standard():
    assert len(FUNCTIONS) == len(set(FUNCTIONS)) == 68


@pytest.mark.parametrize("name", [*FUNCTIONS, *CLUSTER_FUNCTIONS])
def test_function_is_exported(name):
    assert hasattr(ctypes.CDLL(library_path()), name)


def test_function_list_holds_the_exported_functions_in_order(uninitialised):
    address = ctypes.c_void_p()

    assert uninitialised.C_GetFunctionList(ctypes.byref(address)) == OK
    members = (ctypes.c_void_p * 69).from_address(address.value)
    version = (ctypes.c_ubyte * 2).from_address(address.value)
    exported = [
        ctypes.cast(getattr(uninitialised.library, name), ctypes.c_void_p).value
        for name in FUNCTIONS
    ]

    assert tuple(version) == (2, 40)
    assert members[1:] == exported


def test_function_list_needs_a_place(uninitialised):
    assert uninitialised.C_GetFunctionList(None) == ARGUMENTS_BAD


def test_most_functions_have_no_meaning_here():
    assert len(WITHOUT_MEANING) == 68 - 26


@pytest.mark.parametrize("name", WITHOUT_MEANING)
def test_function_without_a_meaning_is_not_supported(uninitialised, name):
    call = getattr(uninitialised, name)
    nothing = [0] * 8

    assert call(*nothing) == NOT_INITIALIZED
    assert uninitialised.C_Initialize(None) == OK
    assert call(*nothing) == FUNCTION_NOT_SUPPORTED


@pytest.mark.parametrize("name", sorted(set(MEANINGFUL.split()) - {"C_Initialize"}))
def test_function_with_a_meaning_needs_initialisation(uninitialised, name):
    if name == "C_GetFunctionList":
        assert uninitialised.C_GetFunctionList(ctypes.byref(ctypes.c_void_p())) == OK
    else:
        assert getattr(uninitialised, name)(*[0] * 8) == NOT_INITIALIZED


# ---- C_Initialize and C_Finalize ----


def test_second_initialisation_is_refused(module):
    assert module.C_Initialize(None) == ALREADY_INITIALIZED


def test_second_finalisation_is_refused(module):
    assert module.C_Finalize(None) == OK
    assert module.C_Finalize(None) == NOT_INITIALIZED


def test_finalisation_takes_no_argument(module):
    assert module.C_Finalize(ctypes.byref(ctypes.c_ulong())) == ARGUMENTS_BAD
    assert module.C_Initialize(None) == ALREADY_INITIALIZED


@pytest.mark.parametrize(
    ("functions", "flags", "reserved", "rv"),
    [
        (0, 0x0, None, OK),
        (0, 0x2, None, OK),
        (0, 0x3, None, OK),
        (4, 0x2, None, OK),
        (4, 0x0, None, CANT_LOCK),
        (1, 0x2, None, ARGUMENTS_BAD),
        (3, 0x2, None, ARGUMENTS_BAD),
        (0, 0x2, 1, ARGUMENTS_BAD),
    ],
)
def test_initialisation_checks_its_arguments(uninitialised, functions, flags, reserved, rv):
    unused = CALLBACK(lambda mutex: OK)
    arguments = InitializeArguments(flags=flags, reserved=reserved)
    for index in range(functions):
        arguments.mutex_functions[index] = unused

    assert uninitialised.C_Initialize(ctypes.byref(arguments)) == rv
    assert uninitialised.C_GetInfo(None) == (ARGUMENTS_BAD if rv == OK else NOT_INITIALIZED)


@pytest.mark.parametrize("state", ["missing", "directory", "text"])
def test_initialisation_without_a_cluster_is_a_device_error(
    uninitialised, monkeypatch, tmp_path, state
):
    (tmp_path / "directory").mkdir()
    (tmp_path / "text").write_text("this is no cluster\n" * 1000)
    monkeypatch.setenv(STATE_VARIABLE, str(tmp_path / state))

    assert uninitialised.C_Initialize(None) == DEVICE_ERROR


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
    assert module.C_WaitForSlotEvent(0x0, ctypes.byref(slot), None) == FUNCTION_NOT_SUPPORTED
    assert module.C_WaitForSlotEvent(0x1, None, None) == ARGUMENTS_BAD


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


def test_sessions_run_out(module):
    handle = ctypes.c_ulong()
    room = module.token_info(1).max_session_count
    for _ in range(room):
        module.open_session(1)

    assert module.C_OpenSession(1, RW_SESSION, None, None, ctypes.byref(handle)) == SESSION_COUNT
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


# ---- login ----


@pytest.mark.parametrize(("user", "pin", "state"), [(SO, b"1234", 4), (USER, b"user", 3)])
def test_login_and_logout_change_the_state_of_all_sessions(module, token, user, pin, state):
    session, other = module.open_session(token), module.open_session(token)

    assert module.login(session, user, pin) == OK
    assert [module.session_state(each) for each in (session, other)] == [state, state]
    assert module.C_Logout(other) == OK
    assert [module.session_state(each) for each in (session, other)] == [2, 2]
    assert module.C_Logout(session) == USER_NOT_LOGGED_IN


def test_last_session_takes_the_login_with_it(module, token):
    session = module.open_session(token)
    assert module.login(session, USER, b"user") == OK
    assert module.C_CloseSession(session) == OK

    assert module.session_state(module.open_session(token, RO_SESSION)) == 0


@pytest.mark.parametrize(
    ("first", "second", "rv"),
    [
        ((SO, b"1234"), (SO, b"1234"), USER_ALREADY_LOGGED_IN),
        ((USER, b"user"), (USER, b"user"), USER_ALREADY_LOGGED_IN),
        ((SO, b"1234"), (USER, b"user"), USER_ANOTHER_ALREADY_LOGGED_IN),
        ((USER, b"user"), (SO, b"1234"), USER_ANOTHER_ALREADY_LOGGED_IN),
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


def test_user_cannot_log_in_before_there_is_a_pin(module):
    assert module.init_token(1) == OK

    assert module.login(module.open_session(1), USER, b"user") == USER_PIN_NOT_INITIALIZED


@pytest.mark.parametrize("user", [SO, USER])
@pytest.mark.parametrize("pin", [b"", b"wrong", b"123", b"12345", b"usex", b"x" * 200])
def test_wrong_pin_is_refused(module, token, user, pin):
    session = module.open_session(token)

    assert module.login(session, user, pin) == PIN_INCORRECT
    assert module.session_state(session) == 2


@pytest.mark.parametrize(
    ("user", "pin", "low", "last", "locked"),
    [
        (SO, b"1234", 0x100000, 0x200000, 0x400000),
        (USER, b"user", 0x10000, 0x20000, 0x40000),
    ],
)
def test_wrong_tries_are_counted_until_the_pin_is_locked(
    module, token, user, pin, low, last, locked
):
    session = module.open_session(token)

    def wrong_try():
        rv = module.login(session, user, b"wrong")
        return rv, module.token_info(token).flags & (low | last | locked)

    assert [wrong_try() for _ in range(8)] == [(PIN_INCORRECT, low)] * 8
    assert wrong_try() == (PIN_INCORRECT, low | last)
    assert wrong_try() == (PIN_INCORRECT, low | locked)
    assert wrong_try() == (PIN_LOCKED, low | locked)
    assert module.login(session, user, pin) == PIN_LOCKED


def test_right_pin_forgets_the_wrong_tries(module, token):
    session = module.open_session(token)
    assert module.login(session, USER, b"wrong") == PIN_INCORRECT
    assert module.login(session, USER, b"user") == OK

    assert module.token_info(token).flags & 0x10000 == 0


# ---- C_InitToken, C_InitPIN, C_SetPIN ----


def test_init_token_gives_label_and_security_officer_s_pin(module):
    before = module.token_info(1)
    assert module.init_token(1, "paid", b"officer") == OK
    after = module.token_info(1)

    assert before.label == b"keyring1".ljust(32)
    assert after.label == b"paid".ljust(32)
    assert (before.flags & 0x400, after.flags & 0x400) == (0, 0x400)
    assert module.login(module.open_session(1), SO, b"officer") == OK


def test_init_token_of_an_initialised_token_needs_its_pin(module):
    assert module.init_token(1, "first", b"officer") == OK

    assert module.init_token(1, "second", b"another") == PIN_INCORRECT
    assert module.token_info(1).label == b"first".ljust(32)
    assert module.init_token(1, "second", b"officer") == OK
    assert module.token_info(1).label == b"second".ljust(32)


def test_init_token_erases_the_user_s_pin(module, token):
    assert module.token_info(token).flags & 0x8 == 0x8
    assert module.init_token(token, "again") == OK

    assert module.token_info(token).flags & 0x8 == 0
    assert module.login(module.open_session(token), USER, b"user") == USER_PIN_NOT_INITIALIZED


def test_init_token_is_refused_while_there_is_a_session(module):
    session = module.open_session(1)

    assert module.init_token(1, "new") == SESSION_EXISTS
    assert module.token_info(1).label == b"keyring1".ljust(32)
    assert module.C_CloseSession(session) == OK
    assert module.init_token(1, "new") == OK


@pytest.mark.parametrize("pin", [b"", b"123", b"x" * 65])
def test_pin_length_has_its_limits_in_init_token(module, pin):
    assert module.init_token(1, "new", pin) == PIN_LEN_RANGE
    assert module.token_info(1).label == b"keyring1".ljust(32)


@pytest.mark.parametrize("pin", [b"1234", b"x" * 64])
def test_shortest_and_longest_pin_work(module, pin):
    assert module.init_token(1, "new", pin) == OK
    assert module.login(module.open_session(1), SO, pin) == OK


def test_init_token_refuses_bad_arguments(module):
    assert module.init_token(NO_SLOT) == SLOT_ID_INVALID
    assert module.C_InitToken(1, None, 4, b"new".ljust(32)) == ARGUMENTS_BAD
    assert module.C_InitToken(1, b"1234", 4, None) == ARGUMENTS_BAD
    assert module.token_info(1).label == b"keyring1".ljust(32)


def test_init_pin_sets_the_user_s_pin(module):
    assert module.init_token(1) == OK
    session = module.open_session(1)
    assert module.login(session) == OK

    assert module.init_pin(session, b"user") == OK
    assert module.token_info(1).flags & 0x8 == 0x8
    assert module.C_Logout(session) == OK
    assert module.login(session, USER, b"user") == OK


def test_init_pin_needs_the_security_officer(module, token):
    session = module.open_session(token)

    assert module.init_pin(session) == USER_NOT_LOGGED_IN
    assert module.login(session, USER, b"user") == OK
    assert module.init_pin(session) == USER_NOT_LOGGED_IN


def test_init_pin_refuses_bad_arguments(module, token):
    session = module.open_session(token)
    assert module.login(session) == OK

    assert module.init_pin(session, b"123") == PIN_LEN_RANGE
    assert module.init_pin(session, b"x" * 65) == PIN_LEN_RANGE
    assert module.C_InitPIN(session, None, 4) == ARGUMENTS_BAD
    assert module.init_pin(session + 1) == SESSION_HANDLE_INVALID


@pytest.mark.parametrize(
    ("login", "old", "user"),
    [(None, b"user", USER), ((USER, b"user"), b"user", USER), ((SO, b"1234"), b"1234", SO)],
)
def test_set_pin_changes_the_pin_of_whoever_is_logged_in_or_the_user_s(
    module, token, login, old, user
):
    session = module.open_session(token)
    if login is not None:
        assert module.login(session, *login) == OK

    assert module.set_pin(session, old, b"changed") == OK
    assert module.C_CloseSession(session) == OK
    session = module.open_session(token)
    assert module.login(session, user, old) == PIN_INCORRECT
    assert module.login(session, user, b"changed") == OK


def test_set_pin_needs_the_old_pin(module, token):
    session = module.open_session(token)

    assert module.set_pin(session, b"wrong", b"changed") == PIN_INCORRECT
    assert module.login(session, USER, b"user") == OK


def test_set_pin_refuses_bad_arguments(module, token):
    session = module.open_session(token)

    assert (
        module.set_pin(module.open_session(token, RO_SESSION), b"user", b"new1")
        == SESSION_READ_ONLY
    )
    assert module.set_pin(session, b"user", b"new") == PIN_LEN_RANGE
    assert module.set_pin(session, b"user", b"x" * 65) == PIN_LEN_RANGE
    assert module.set_pin(session + UNTOUCHED, b"user", b"new1") == SESSION_HANDLE_INVALID
    assert module.C_SetPIN(session, None, 4, b"new1", 4) == ARGUMENTS_BAD
    assert module.C_SetPIN(session, b"user", 4, None, 4) == ARGUMENTS_BAD


def test_labels_and_pins_are_the_cluster_s_and_logins_the_process_s(module, token):
    session = module.open_session(token)
    assert module.login(session, USER, b"user") == OK
    assert module.C_Finalize(None) == OK
    assert module.C_Initialize(None) == OK

    session = module.open_session(token)
    assert module.session_state(session) == 2
    assert module.login(session, USER, b"user") == OK
    assert module.token_info(token).label == b"token".ljust(32)
