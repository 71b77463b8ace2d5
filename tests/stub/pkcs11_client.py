"""The stand-in's C interface, called by ctypes as any other client would."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from luna_ext.stub import library_path

CLUSTER_FUNCTIONS = {
    "CA_GetSlotId": (0x0, 0x7, 0x30, 0x150, 0x190),
    "CA_GetUnassignedSlot": (0x0, 0x6, 0x7, 0x30, 0x150, 0x190),
    "CA_LockClusteredSlot": (0x0, 0x3, 0x30),
    "CA_UnlockClusteredSlot": (0x0, 0x3, 0x30),
}
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
PIN_EXPIRED = 0xA3
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
LIMITED_USER, LIMITED_USER_OLD = 0x80000001, 0x8000001
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
        ("max_pin_len", ctypes.c_ulong),
        ("min_pin_len", ctypes.c_ulong),
        ("rest", ctypes.c_char * 56),
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

    def init_token(self, slot_id, label="token", pin=b"so-pin-1"):
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

    def login(self, session, user=SO, pin=b"so-pin-1"):
        return self.C_Login(session, user, pin, len(pin))

    def init_pin(self, session, pin=b"user-pin"):
        return self.C_InitPIN(session, pin, len(pin))

    def set_pin(self, session, old, new):
        return self.C_SetPIN(session, old, len(old), new, len(new))


OTHER_APPLICATION = """
import ctypes, sys

module = ctypes.CDLL(sys.argv[1])
assert module.C_Initialize(None) == 0
handle = ctypes.c_ulong()
assert {call} == 0
print("called", flush=True)
sys.stdin.read()
"""


OPEN_SESSION = """module.C_OpenSession(
    ctypes.c_ulong(1), ctypes.c_ulong(4), None, None, ctypes.byref(handle)
)"""


@contextmanager
def called_elsewhere(call: str) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that has made this call, and lives on until the block ends."""
    program = OTHER_APPLICATION.format(call=call)
    with subprocess.Popen(
        [sys.executable, "-c", program, library_path()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout.readline() == b"called\n"
        yield process
        process.stdin.close()
    assert process.returncode in (0, -signal.SIGKILL)


def locked_elsewhere(slot_id):
    return called_elsewhere(f"module.CA_LockClusteredSlot(ctypes.c_ulong({slot_id}))")


def owners(cluster):
    return {token.slot_id: token.owner for token in cluster.tokens() if token.owner is not None}


def call_plainly(module, function):
    """The cluster function with arguments that are in order."""
    if function == "CA_GetSlotId":
        return module.get_slot_id("keyring1", 1)[0]
    if function == "CA_GetUnassignedSlot":
        return module.get_unassigned_slot()[0]
    return getattr(module, function)(1)


def wait_for_call(cluster, function, count=1):
    """Until so many calls of the function are under way, in whatever process."""
    deadline = time.monotonic() + 10
    while sum(call.function == function and call.rv is None for call in cluster.log()) < count:
        assert time.monotonic() < deadline
        os.sched_yield()
