"""What a device's answer means for a lock, and the errors about locks in one wording."""

from __future__ import annotations

from .errors import (
    CryptokiError,
    DeviceError,
    LibraryClosedError,
    LockLostError,
    LockNotOwnedError,
    LockReentryError,
    LockReleaseError,
    NotInitializedError,
    SlotIdInvalidError,
)

LOCK = "CA_LockClusteredSlot"
UNLOCK = "CA_UnlockClusteredSlot"

CKR_DEVICE_ERROR = 0x30
AGAIN_OR_BUSY = (0x80000041, 0x80001604)
TOKEN_GONE = (0xE0, 0xE1)


def may_pass(rv: int, poll: bool) -> bool:
    """Whether the error means "not now": by its code, or because the caller says so."""
    return rv in AGAIN_OR_BUSY or (poll and rv == CKR_DEVICE_ERROR)


def means_lost(error: CryptokiError) -> bool:
    """Whether the device does not know this application any more, nor its locks."""
    return error.rv not in AGAIN_OR_BUSY and (
        isinstance(error, DeviceError | SlotIdInvalidError | NotInitializedError)
        or error.rv in TOKEN_GONE
    )


def closed(slot_id: int, path: str) -> LibraryClosedError:
    return LibraryClosedError(
        f"the Library for {path!r} is closed; open a new one to lock slot {slot_id}",
        function=LOCK,
        slot_id=slot_id,
    )


def reentry(slot_id: int, what: str) -> LockReentryError:
    return LockReentryError(
        f"slot {slot_id}: {what}; waiting for it would never end", function=LOCK, slot_id=slot_id
    )


def not_owned(slot_id: int, who: str, function: str) -> LockNotOwnedError:
    return LockNotOwnedError(
        f"slot {slot_id} is not held by the caller: {who}. Nothing was done",
        function=function,
        slot_id=slot_id,
    )


def lost(
    slot_id: int, reason: str, *, rv: int | None = None, function: str | None = UNLOCK
) -> LockLostError:
    return LockLostError(
        f"slot {slot_id}: the lock was lost while it was held: {reason}. Somebody else may have "
        "worked on the token meanwhile; check it before you go on",
        rv=rv,
        function=function,
        slot_id=slot_id,
    )


def release_failed(cause: CryptokiError) -> LockReleaseError:
    error = LockReleaseError(
        f"{cause}. The lock may stay set until this process disconnects",
        rv=cause.rv,
        function=cause.function,
        slot_id=cause.slot_id,
    )
    error.__cause__ = cause
    return error
