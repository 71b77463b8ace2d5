"""A program that calls a client library directly, without luna_ext: for `luna-ext probe`.

    python raw_client.py LIBRARY

Each line that it reads is JSON: a number, a method of RawClient and its arguments. Each call is made on
a thread of its own. When it returns, a line is written: the number, the CK_RV, the seconds that it took,
and the slot that it gave.
"""

from __future__ import annotations

import ctypes
import json
import sys
import threading
import time
from collections.abc import Callable

CKF_OS_LOCKING_OK = 0x2
C_INITIALIZE = 0
C_GET_TOKEN_INFO = 6
"""Places in CK_FUNCTION_LIST."""
LABEL_BYTES = 32

Answer = tuple[int, object]


class _InitializeArguments(ctypes.Structure):
    _fields_ = (
        ("mutexes", ctypes.c_void_p * 4),
        ("flags", ctypes.c_ulong),
        ("reserved", ctypes.c_void_p),
    )


class _FunctionList(ctypes.Structure):
    _fields_ = (("version", ctypes.c_ubyte * 2), ("functions", ctypes.c_void_p * 68))


class _UnassignedSlot(ctypes.Structure):
    _fields_ = (("slot_id", ctypes.c_ulong), ("label", ctypes.c_char * LABEL_BYTES))


class RawClient:
    """The calls, as the client library answers them."""

    def __init__(self, path: str) -> None:
        self._library = ctypes.CDLL(path)
        place = ctypes.POINTER(_FunctionList)()
        self._library.C_GetFunctionList(ctypes.byref(place))
        self._list = place.contents

    def _standard(self, index: int) -> Callable[..., int]:
        kind = ctypes.CFUNCTYPE(ctypes.c_ulong, ctypes.c_ulong, ctypes.c_void_p)
        return kind(self._list.functions[index])

    def initialize(self) -> Answer:
        arguments = _InitializeArguments(flags=CKF_OS_LOCKING_OK)
        kind = ctypes.CFUNCTYPE(ctypes.c_ulong, ctypes.c_void_p)
        return kind(self._list.functions[C_INITIALIZE])(ctypes.addressof(arguments)), None

    def token_info(self, slot_id: int) -> Answer:
        # Larger than a CK_TOKEN_INFO, whose contents do not matter.
        room = ctypes.create_string_buffer(1024)
        return self._standard(C_GET_TOKEN_INFO)(slot_id, ctypes.addressof(room)), None

    def _cluster(self, name: str) -> Callable[..., int]:
        function = self._library[name]
        function.restype = ctypes.c_ulong
        return function

    def lock(self, slot_id: int) -> Answer:
        return self._cluster("CA_LockClusteredSlot")(ctypes.c_ulong(slot_id)), None

    def unlock(self, slot_id: int) -> Answer:
        return self._cluster("CA_UnlockClusteredSlot")(ctypes.c_ulong(slot_id)), None

    def claim(self, cluster_id: str) -> Answer:
        slot = _UnassignedSlot()
        rv = self._cluster("CA_GetUnassignedSlot")(cluster_id.encode(), ctypes.byref(slot))
        return rv, slot.slot_id


def main() -> None:
    client = RawClient(sys.argv[1])
    output = threading.Lock()

    def call(number: int, name: str, arguments: list[object]) -> None:
        begin = time.monotonic()
        rv, given = getattr(client, name)(*arguments)
        took = time.monotonic() - begin
        with output:
            print(json.dumps([number, rv, took, given]), flush=True)

    for line in sys.stdin:
        number, name, *arguments = json.loads(line)
        threading.Thread(target=call, args=(number, name, arguments), daemon=True).start()


if __name__ == "__main__":
    main()
