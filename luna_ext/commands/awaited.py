"""The next of some signals that are blocked, within a time."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterable
from typing import NamedTuple

_LONGS_OF_A_SET, _INTS_OF_AN_INFO = (
    128 // ctypes.sizeof(ctypes.c_ulong),
    128 // ctypes.sizeof(ctypes.c_int),
)


class Awaited(NamedTuple):
    """What is used of a siginfo_t."""

    number: int
    code: int


def next_signal(numbers: Iterable[int], seconds: float) -> Awaited | None:
    """As signal.sigtimedwait(), which may also return earlier.

    That one returns a signal that has never come, of whatever number, when the process was stopped and
    went on after the end of the time, as with Ctrl-Z and fg.
    """
    libc = ctypes.CDLL(None)
    wanted = (ctypes.c_ulong * _LONGS_OF_A_SET)()
    for number in numbers:
        libc.sigaddset(wanted, number)
    time = (ctypes.c_long * 2)(*divmod(math.ceil(seconds * 1e9), 10**9))
    info = (ctypes.c_int * _INTS_OF_AN_INFO)()
    number = libc.sigtimedwait(wanted, info, time)
    # si_signo, si_errno, si_code
    return Awaited(number, info[2]) if number > 0 else None
