"""What the client and the device say about themselves, as plain immutable records."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = [
    "FunctionStats",
    "LibraryInfo",
    "LockStats",
    "SlotFlag",
    "SlotInfo",
    "TokenFlag",
    "TokenInfo",
    "Version",
]


class Version(NamedTuple):
    """A CK_VERSION. str() gives it as "major.minor", the minor number with two digits."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor:02d}"


class SlotFlag(enum.IntFlag):
    """CK_SLOT_INFO.flags (PKCS #11 v2.40, section 3.2)."""

    TOKEN_PRESENT = 0x1
    REMOVABLE_DEVICE = 0x2
    HW_SLOT = 0x4


class TokenFlag(enum.IntFlag):
    """CK_TOKEN_INFO.flags (PKCS #11 v2.40, section 3.2)."""

    RNG = 0x1
    WRITE_PROTECTED = 0x2
    LOGIN_REQUIRED = 0x4
    USER_PIN_INITIALIZED = 0x8
    RESTORE_KEY_NOT_NEEDED = 0x20
    CLOCK_ON_TOKEN = 0x40
    PROTECTED_AUTHENTICATION_PATH = 0x100
    DUAL_CRYPTO_OPERATIONS = 0x200
    TOKEN_INITIALIZED = 0x400
    SECONDARY_AUTHENTICATION = 0x800
    USER_PIN_COUNT_LOW = 0x10000
    USER_PIN_FINAL_TRY = 0x20000
    USER_PIN_LOCKED = 0x40000
    USER_PIN_TO_BE_CHANGED = 0x80000
    SO_PIN_COUNT_LOW = 0x100000
    SO_PIN_FINAL_TRY = 0x200000
    SO_PIN_LOCKED = 0x400000
    SO_PIN_TO_BE_CHANGED = 0x800000
    ERROR_STATE = 0x1000000


CLUSTER_FUNCTIONS = (
    "CA_GetSlotId",
    "CA_GetUnassignedSlot",
    "CA_LockClusteredSlot",
    "CA_UnlockClusteredSlot",
)
"""The names of the SDK's cluster extensions."""


@dataclass(frozen=True, slots=True)
class LibraryInfo:
    """CK_INFO, from C_GetInfo."""

    cryptoki_version: Version
    manufacturer: str
    description: str
    version: Version


@dataclass(frozen=True, slots=True)
class SlotInfo:
    """CK_SLOT_INFO, from C_GetSlotInfo."""

    description: str
    manufacturer: str
    flags: SlotFlag
    hardware_version: Version
    firmware_version: Version


@dataclass(frozen=True, slots=True)
class TokenInfo:
    """CK_TOKEN_INFO, from C_GetTokenInfo.

    Memory sizes and PIN lengths are in bytes; a session limit of 0 means "no limit"; None means that
    the device does not give the value.
    """

    label: str
    manufacturer: str
    model: str
    serial_number: str
    flags: TokenFlag
    max_session_count: int | None
    session_count: int | None
    max_rw_session_count: int | None
    rw_session_count: int | None
    max_pin_length: int
    min_pin_length: int
    total_public_memory: int | None
    free_public_memory: int | None
    total_private_memory: int | None
    free_private_memory: int | None
    hardware_version: Version
    firmware_version: Version
    utc_time: str


@dataclass(frozen=True, slots=True)
class FunctionStats:
    """Numbers, durations and errors of this process's calls of one C function. They only grow.

    Attributes
    ----------
    calls : int
        How many calls have returned.
    errors : dict of str to int
        How many calls answered each error, by the name of its code, "CKR_DEVICE_ERROR", or by its
        number if it has no name. "other" counts those beyond the first 31 different ones.
    total_seconds, max_seconds : float
        Seconds that all calls took together, and the longest one that was timed.
    histogram : tuple of int
        ``histogram[n]`` calls took less than 2**n nanoseconds, and not less than half of that. The
        last number counts all longer ones as well. Empty if no call has returned.
    handed_over : int
        Of CA_LockClusteredSlot: how many holds began without a call, for the holder before had handed
        its lock over (`Library`'s `handover`). Else 0.
    timed : int
        How many of the calls were timed.

    Notes
    -----
    Numbers are exact, times are sampled where calls are fast. A call that takes 16 microseconds or more has
    the next one timed, so with an HSM behind a network `timed` is the same as `calls`. Of faster ones, one
    in some 4 milliseconds is timed, and those that follow it until then count as having taken as long,
    unless one takes more than 20 milliseconds.
    """

    calls: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    total_seconds: float = 0.0
    max_seconds: float = 0.0
    histogram: tuple[int, ...] = ()
    handed_over: int = 0
    timed: int = 0


@dataclass(frozen=True, slots=True)
class LockStats:
    """Numbers and lengths of this process's waits for locks, and of its holds, at all slots.

    Attributes
    ----------
    wait_histogram : tuple of int
        ``wait_histogram[n]`` locks were had after less than 2**n nanoseconds, and not less than half of
        that, from the moment that a thread or task of this process asked for them. The last number counts
        all longer waits as well.
    wait_seconds : float
        Of all these waits together.
    hold_histogram : tuple of int
        The same of how long this process had a lock: from the device's grant to the unlock call. Where a
        lock was handed over, that is one hold.
    hold_seconds : float
        Of all these holds together.
    timeouts : int
        How often the time was up: for each LockTimeoutError, and each ``acquire(timeout=...)`` that
        returned False.
    losses : int
        How many holds the device has dropped while they lasted, as far as that was found out:
        the connection was lost, or the library was initialised anew, also by `reconnect()`.
    handed_over : int
        How often a lock went to the next thread or task without a call (`Library`'s `handover`).
    waiting : int
        How many threads and tasks wait for a lock now.
    held : int
        How many slots this process has locked now.

    Notes
    -----
    A lock that is had in less than 16 microseconds is no wait, and in none of the numbers; with an HSM
    behind a network each lock call takes longer. Holds are told by a clock of the system that goes in
    ticks, of 10 milliseconds at most: one that ends in the tick in which it began is in
    ``hold_histogram[0]``, and adds nothing to `hold_seconds`; one in which the tick has changed adds the
    whole tick, so that the sum is right on the average. A lock that came too late for its waiter, and was
    unlocked at once, is a short hold. A wait for a claim is in none of the numbers but `timeouts`; its
    hold counts.
    """

    wait_histogram: tuple[int, ...] = ()
    wait_seconds: float = 0.0
    hold_histogram: tuple[int, ...] = ()
    hold_seconds: float = 0.0
    timeouts: int = 0
    losses: int = 0
    handed_over: int = 0
    waiting: int = 0
    held: int = 0
