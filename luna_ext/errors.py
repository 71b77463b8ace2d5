"""The exceptions, and the one table that says of each CK_RV what it means and which class is raised."""

from __future__ import annotations

import enum

# As typing.TYPE_CHECKING; to import typing takes longer than the rest of this module.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = [
    "AmbiguousLabelError",
    "ArgumentsBadError",
    "AssignmentConflictError",
    "BufferTooSmallError",
    "CryptokiError",
    "DeviceError",
    "FunctionFailedError",
    "LibraryClosedError",
    "LibraryLoadError",
    "LockError",
    "LockLostError",
    "LockNotOwnedError",
    "LockReentryError",
    "LockReleaseError",
    "LockTimeoutError",
    "LunaError",
    "NoUnassignedTokenError",
    "NotInitializedError",
    "PinError",
    "SlotIdInvalidError",
    "TokenChangedError",
    "TokenNotFoundError",
    "UnsupportedFunctionError",
    "error_for",
    "rv_name",
]

VENDOR_DEFINED = 0x80000000


class LunaError(Exception):
    """The base of every error that this package raises on behalf of the client or the device.

    Attributes
    ----------
    rv : int or None
        The CK_RV that the device answered; None if the device was not asked.
    function : str or None
        The C function that was called, or would have been called.
    slot_id : int or None
        The slot that it was called for; None if it was called for no slot.
    """

    def __init__(
        self,
        message: str,
        *,
        rv: int | None = None,
        function: str | None = None,
        slot_id: int | None = None,
    ) -> None:
        super().__init__(message)
        self.rv = rv
        self.function = function
        self.slot_id = slot_id

    @property
    def rv_name(self) -> str | None:
        """The name of `rv` in the standard or at the vendor; its number when it has no name."""
        return None if self.rv is None else rv_name(self.rv)

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self.args, self.__dict__)


def _restore(kind: type[LunaError], args: tuple[Any, ...], state: dict[str, Any]) -> LunaError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class CryptokiError(LunaError):
    """A C function answered something other than CKR_OK."""


class ArgumentsBadError(CryptokiError, ValueError):
    """CKR_ARGUMENTS_BAD: the device did not accept an argument."""


class SlotIdInvalidError(CryptokiError, LookupError):
    """CKR_SLOT_ID_INVALID: the device knows no such slot."""


class DeviceError(CryptokiError):
    """CKR_DEVICE_ERROR and similar codes: the device or the connection to it failed, or is busy."""


class BufferTooSmallError(CryptokiError):
    """CKR_BUFFER_TOO_SMALL: a list is larger than the client has reported, however often it is asked."""


class FunctionFailedError(CryptokiError):
    """CKR_FUNCTION_FAILED: the device could not do it; the code does not say why."""


class NotInitializedError(CryptokiError, RuntimeError):
    """CKR_CRYPTOKI_NOT_INITIALIZED: other code of this process has finalised the client library."""


class PinError(CryptokiError):
    """A PIN was wrong, locked, expired or not acceptable. Never carries the PIN."""


class LibraryLoadError(LunaError, OSError):
    """The client library could not be found, loaded or recognised."""


class UnsupportedFunctionError(LunaError, NotImplementedError):
    """The loaded client library lacks the function that is needed."""


class LibraryClosedError(LunaError, RuntimeError):
    """The Library was closed before the call."""


class LockError(LunaError):
    """The base of the errors about locks."""


class LockTimeoutError(LockError, TimeoutError):
    """The lock was not granted in time. Nothing is locked.

    Attributes
    ----------
    timeout : float
        Seconds that the caller has given it.
    """

    timeout: float = 0.0


class LockReentryError(LockError, RuntimeError):
    """The caller holds this lock already, or waits for it; waiting would never end."""


class LockNotOwnedError(LockError, RuntimeError):
    """The caller does not hold the lock that the call needs. Nothing was done."""


class LockLostError(LockError):
    """The lock is gone although it was not released: another process may hold it by now."""


class LockReleaseError(LockError):
    """The device refused to unlock. The lock may be set until this process disconnects."""


class NoUnassignedTokenError(FunctionFailedError, LookupError):
    """No unassigned token was left in the cluster."""


class TokenNotFoundError(LunaError, LookupError):
    """No token has the label."""


class AmbiguousLabelError(LunaError, LookupError):
    """More than one token has the label.

    Attributes
    ----------
    slot_ids : tuple of int
        The slots of all tokens with the label.
    """

    slot_ids: tuple[int, ...] = ()


class TokenChangedError(LunaError):
    """The slot's token no longer has the label that the Token was made for."""


class AssignmentConflictError(LunaError):
    """The token may not be given a label, or not any more; or two tokens were given the same label.

    Attributes
    ----------
    slot_ids : tuple of int
        The slots of all tokens with the label, where it is there more than once.
    """

    slot_ids: tuple[int, ...] = ()


class Meaning(enum.Enum):
    """What the device's answer means for the caller."""

    BUSY = "nothing was done; the same call may succeed later"
    LOST = "the device does not know this application any more, nor its locks"
    GONE = "the client knows no such slot, or no token in it; its lock went with it"
    PIN = "a PIN was refused"
    NONE_LEFT = "there is no unassigned token, in answer to a claim"


class _Code:
    __slots__ = ("advice", "exception", "meaning", "name", "says")

    def __init__(
        self,
        name: str,
        exception: type[CryptokiError] = CryptokiError,
        says: str = "",
        advice: str = "",
        meaning: Meaning | None = None,
    ) -> None:
        self.name = name
        self.exception = exception
        self.says = says
        """What is the matter, in an error's message."""
        self.advice = advice
        """What to do, behind it. Without it: see `explanations`."""
        self.meaning = meaning

    def text(self) -> str:
        return "; ".join(part for part in (self.says, self.advice) if part)


_CONNECTION = "check the network and the HSM's health (vtl verify), then open a new Library"
_BUSY = "the device is busy"
_AGAIN = "try again"
_WRONG_TRIES = "too many wrong tries"
# The PIN may be that of the keyring's security officer, who cannot unlock it then.
LOCKED_OUT = (
    "a keyring is unlocked by the crypto officer of the cluster's partition (lunash keyring unlock)"
)
"""The advice where wrong PINs have locked a role out, or are about to."""
_AUDITOR = "too many wrong tries to log in as auditor"
_NO_PED = "the PED is not there to log in with"
_PED = "see to the PED, or to its connection, on the client's host"
_COUNTS = "each further try counts towards a lock-out"
_KEYRINGS = "Library.tokens() lists the tokens that there are"
OPEN_AFTER_FORK = (
    "let the parent open no Library before it forks, but each process one after the fork"
)
"""The advice for a client library that does not notice forks, in an error and of `luna-ext doctor`."""

_CODES: dict[int, _Code] = {
    0x000: _Code("CKR_OK"),
    0x001: _Code("CKR_CANCEL"),
    0x002: _Code("CKR_HOST_MEMORY", says="the client library is out of memory"),
    0x003: _Code(
        "CKR_SLOT_ID_INVALID",
        SlotIdInvalidError,
        "the client knows no such slot",
        "Library.slots() lists the ones that it knows",
        meaning=Meaning.GONE,
    ),
    0x005: _Code("CKR_GENERAL_ERROR", advice="see the client library's own log"),
    0x006: _Code("CKR_FUNCTION_FAILED", FunctionFailedError, meaning=Meaning.NONE_LEFT),
    0x007: _Code("CKR_ARGUMENTS_BAD", ArgumentsBadError, "the device did not accept an argument"),
    0x008: _Code("CKR_NO_EVENT"),
    0x009: _Code("CKR_NEED_TO_CREATE_THREADS"),
    0x00A: _Code("CKR_CANT_LOCK"),
    0x010: _Code("CKR_ATTRIBUTE_READ_ONLY"),
    0x011: _Code("CKR_ATTRIBUTE_SENSITIVE"),
    0x012: _Code("CKR_ATTRIBUTE_TYPE_INVALID"),
    0x013: _Code("CKR_ATTRIBUTE_VALUE_INVALID"),
    0x01B: _Code("CKR_ACTION_PROHIBITED"),
    0x020: _Code("CKR_DATA_INVALID"),
    0x021: _Code("CKR_DATA_LEN_RANGE"),
    0x030: _Code(
        "CKR_DEVICE_ERROR",
        DeviceError,
        "the device or the connection to it failed",
        _CONNECTION,
        meaning=Meaning.LOST,
    ),
    0x031: _Code(
        "CKR_DEVICE_MEMORY", DeviceError, "the device is out of memory", meaning=Meaning.LOST
    ),
    0x032: _Code("CKR_DEVICE_REMOVED", DeviceError, advice=_CONNECTION, meaning=Meaning.LOST),
    0x040: _Code("CKR_ENCRYPTED_DATA_INVALID"),
    0x041: _Code("CKR_ENCRYPTED_DATA_LEN_RANGE"),
    0x050: _Code("CKR_FUNCTION_CANCELED"),
    0x051: _Code("CKR_FUNCTION_NOT_PARALLEL"),
    0x052: _Code("CKR_FUNCTION_PARALLEL"),
    0x054: _Code("CKR_FUNCTION_NOT_SUPPORTED", says="this client or device does not offer it"),
    0x060: _Code("CKR_KEY_HANDLE_INVALID"),
    0x062: _Code("CKR_KEY_SIZE_RANGE"),
    0x063: _Code("CKR_KEY_TYPE_INCONSISTENT"),
    0x064: _Code("CKR_KEY_NOT_NEEDED"),
    0x065: _Code("CKR_KEY_CHANGED"),
    0x066: _Code("CKR_KEY_NEEDED"),
    0x067: _Code("CKR_KEY_INDIGESTIBLE"),
    0x068: _Code("CKR_KEY_FUNCTION_NOT_PERMITTED"),
    0x069: _Code("CKR_KEY_NOT_WRAPPABLE"),
    0x06A: _Code("CKR_KEY_UNEXTRACTABLE"),
    0x070: _Code("CKR_MECHANISM_INVALID"),
    0x071: _Code("CKR_MECHANISM_PARAM_INVALID"),
    0x082: _Code("CKR_OBJECT_HANDLE_INVALID"),
    0x090: _Code("CKR_OPERATION_ACTIVE"),
    0x091: _Code("CKR_OPERATION_NOT_INITIALIZED"),
    0x0A0: _Code(
        "CKR_PIN_INCORRECT",
        PinError,
        "the PIN is wrong",
        _COUNTS,
        meaning=Meaning.PIN,
    ),
    0x0A1: _Code(
        "CKR_PIN_INVALID",
        PinError,
        "the PIN has a character that the device refuses",
        meaning=Meaning.PIN,
    ),
    0x0A2: _Code(
        "CKR_PIN_LEN_RANGE",
        PinError,
        "the PIN is too short or too long",
        "token_info.min_pin_length and .max_pin_length say",
        meaning=Meaning.PIN,
    ),
    0x0A3: _Code(
        "CKR_PIN_EXPIRED",
        PinError,
        "the PIN has to be changed first",
        'token.change_pin(old, new) does that, and with role="so" the same for the SO\'s',
        meaning=Meaning.PIN,
    ),
    0x0A4: _Code(
        "CKR_PIN_LOCKED",
        PinError,
        _WRONG_TRIES,
        LOCKED_OUT,
        meaning=Meaning.PIN,
    ),
    0x0B0: _Code("CKR_SESSION_CLOSED"),
    0x0B1: _Code(
        "CKR_SESSION_COUNT",
        says="the token allows no further session",
        advice="close some",
    ),
    0x0B2: _Code("CKR_SESSION_EXCLUSIVE_EXISTS"),
    0x0B3: _Code("CKR_SESSION_HANDLE_INVALID"),
    0x0B4: _Code("CKR_SESSION_PARALLEL_NOT_SUPPORTED"),
    0x0B5: _Code("CKR_SESSION_READ_ONLY"),
    0x0B6: _Code(
        "CKR_SESSION_EXISTS",
        says="a program has a session on the token",
        advice="close this process's and those of other programs, also a Library that has locked this very "
        "slot",
    ),
    0x0B7: _Code(
        "CKR_SESSION_READ_ONLY_EXISTS",
        advice="close this process's read-only sessions on the token first",
    ),
    0x0B8: _Code("CKR_SESSION_READ_WRITE_SO_EXISTS"),
    0x0C0: _Code("CKR_SIGNATURE_INVALID"),
    0x0C1: _Code("CKR_SIGNATURE_LEN_RANGE"),
    0x0D0: _Code("CKR_TEMPLATE_INCOMPLETE"),
    0x0D1: _Code("CKR_TEMPLATE_INCONSISTENT"),
    0x0E0: _Code(
        "CKR_TOKEN_NOT_PRESENT", says="the slot has no token any more", meaning=Meaning.GONE
    ),
    0x0E1: _Code("CKR_TOKEN_NOT_RECOGNIZED", meaning=Meaning.GONE),
    0x0E2: _Code("CKR_TOKEN_WRITE_PROTECTED"),
    0x0F0: _Code("CKR_UNWRAPPING_KEY_HANDLE_INVALID"),
    0x0F1: _Code("CKR_UNWRAPPING_KEY_SIZE_RANGE"),
    0x0F2: _Code("CKR_UNWRAPPING_KEY_TYPE_INCONSISTENT"),
    0x100: _Code("CKR_USER_ALREADY_LOGGED_IN"),
    0x101: _Code("CKR_USER_NOT_LOGGED_IN"),
    0x102: _Code("CKR_USER_PIN_NOT_INITIALIZED"),
    0x103: _Code("CKR_USER_TYPE_INVALID"),
    0x104: _Code(
        "CKR_USER_ANOTHER_ALREADY_LOGGED_IN",
        says="another user of this process is logged in to the token",
        advice="log out first",
    ),
    0x105: _Code("CKR_USER_TOO_MANY_TYPES"),
    0x110: _Code("CKR_WRAPPED_KEY_INVALID"),
    0x112: _Code("CKR_WRAPPED_KEY_LEN_RANGE"),
    0x113: _Code("CKR_WRAPPING_KEY_HANDLE_INVALID"),
    0x114: _Code("CKR_WRAPPING_KEY_SIZE_RANGE"),
    0x115: _Code("CKR_WRAPPING_KEY_TYPE_INCONSISTENT"),
    0x120: _Code("CKR_RANDOM_SEED_NOT_SUPPORTED"),
    0x121: _Code("CKR_RANDOM_NO_RNG"),
    0x130: _Code("CKR_DOMAIN_PARAMS_INVALID"),
    0x140: _Code("CKR_CURVE_NOT_SUPPORTED"),
    0x141: _Code("CKR_INSERTION_CALLBACK_NOT_SUPPORTED"),
    0x150: _Code("CKR_BUFFER_TOO_SMALL", BufferTooSmallError),
    0x160: _Code("CKR_SAVED_STATE_INVALID"),
    0x170: _Code("CKR_INFORMATION_SENSITIVE"),
    0x180: _Code("CKR_STATE_UNSAVEABLE"),
    0x190: _Code(
        "CKR_CRYPTOKI_NOT_INITIALIZED",
        NotInitializedError,
        "something else in this process finalised the client library",
        "open a new Library",
        meaning=Meaning.LOST,
    ),
    0x191: _Code("CKR_CRYPTOKI_ALREADY_INITIALIZED"),
    0x1A0: _Code("CKR_MUTEX_BAD"),
    0x1A1: _Code("CKR_MUTEX_NOT_LOCKED"),
    0x1B0: _Code("CKR_NEW_PIN_MODE"),
    0x1B1: _Code("CKR_NEXT_OTP"),
    0x1B5: _Code("CKR_EXCEEDED_MAX_ITERATIONS"),
    0x1B6: _Code("CKR_FIPS_SELF_TEST_FAILED", DeviceError, meaning=Meaning.LOST),
    0x1B7: _Code("CKR_LIBRARY_LOAD_FAILED"),
    0x1B8: _Code(
        "CKR_PIN_TOO_WEAK",
        PinError,
        "the device's policy wants a stronger PIN",
        meaning=Meaning.PIN,
    ),
    0x1B9: _Code("CKR_PUBLIC_KEY_INVALID"),
    0x200: _Code("CKR_FUNCTION_REJECTED"),
    0x201: _Code("CKR_TOKEN_RESOURCE_EXCEEDED"),
    0x202: _Code("CKR_OPERATION_CANCEL_FAILED"),
    # Vendor codes: VENDOR_DEFINED + n. vendor_codes.py has the names of the others.
    VENDOR_DEFINED + 0x04: _Code(
        "CKR_RC_ERROR", DeviceError, advice=_CONNECTION, meaning=Meaning.LOST
    ),
    VENDOR_DEFINED + 0x07: _Code(
        "CKR_USER_LOCKED_OUT",
        PinError,
        _WRONG_TRIES,
        LOCKED_OUT,
        meaning=Meaning.PIN,
    ),
    VENDOR_DEFINED + 0x1A: _Code(
        "CKR_USER_NOT_AUTHORIZED",
        says="the role lacks the right",
        advice="give the PIN of one that has it",
    ),
    VENDOR_DEFINED + 0x1C: _Code(
        "CKR_SO_LOGIN_FAILURE_THRESHOLD",
        PinError,
        _WRONG_TRIES + " to log in as security officer; ten of them erase a partition",
        LOCKED_OUT,
        meaning=Meaning.PIN,
    ),
    VENDOR_DEFINED + 0x1F: _Code(
        "CKR_UNABLE_TO_CONNECT", DeviceError, advice=_CONNECTION, meaning=Meaning.LOST
    ),
    VENDOR_DEFINED + 0x20: _Code(
        "CKR_PARTITION_DISABLED",
        DeviceError,
        advice="the HSM's administrator enables it again; then open a new Library",
        meaning=Meaning.LOST,
    ),
    VENDOR_DEFINED + 0x24: _Code(
        "CKR_TIMEOUT", DeviceError, advice=_CONNECTION, meaning=Meaning.LOST
    ),
    VENDOR_DEFINED + 0x2B: _Code(
        "CKR_DEVICE_TIMEOUT", DeviceError, advice=_CONNECTION, meaning=Meaning.LOST
    ),
    VENDOR_DEFINED + 0x2D: _Code(
        "CKR_PED_CLIENT_NOT_RUNNING", PinError, _NO_PED, _PED, meaning=Meaning.PIN
    ),
    VENDOR_DEFINED + 0x2E: _Code("CKR_PED_UNPLUGGED", PinError, _NO_PED, _PED, meaning=Meaning.PIN),
    VENDOR_DEFINED + 0x30: _Code(
        "CKR_OPERATION_NOT_ALLOWED", says="the HSM's policy or the token's state forbids it"
    ),
    VENDOR_DEFINED + 0x3B: _Code(
        "CKR_AUDIT_LOGIN_TIMEOUT_IN_PROGRESS",
        PinError,
        _AUDITOR,
        "wait until the time is over",
        meaning=Meaning.PIN,
    ),
    VENDOR_DEFINED + 0x3C: _Code(
        "CKR_AUDIT_LOGIN_FAILURE_THRESHOLD",
        PinError,
        _AUDITOR,
        "the HSM's administrator knows what follows",
        meaning=Meaning.PIN,
    ),
    VENDOR_DEFINED + 0x41: _Code("CKR_AGAIN", DeviceError, _BUSY, _AGAIN, meaning=Meaning.BUSY),
    VENDOR_DEFINED + 0x43: _Code("CKR_SLOT_NOT_EMPTY"),
    VENDOR_DEFINED + 0x67: _Code(
        "CKR_CHALLENGE_INCORRECT",
        PinError,
        "the challenge password is wrong",
        _COUNTS,
        meaning=Meaning.PIN,
    ),
    VENDOR_DEFINED + 0x6F: _Code("CKR_OBJECT_ALREADY_EXISTS"),
    VENDOR_DEFINED + 0x9D: _Code(
        "CKR_PED_UNSUPPORTED", PinError, _NO_PED, _PED, meaning=Meaning.PIN
    ),
    VENDOR_DEFINED + 0x9E: _Code("CKR_PED_ERROR", PinError, _NO_PED, _PED, meaning=Meaning.PIN),
    VENDOR_DEFINED + 0x305: _Code(
        "CKR_OBJECT_NOT_KEYRING", says="the slot is no keyring of a cluster", advice=_KEYRINGS
    ),
    VENDOR_DEFINED + 0x306: _Code(
        "CKR_KEYRING_NOT_FOUND",
        says="the slot is no keyring that the cluster has",
        advice=_KEYRINGS,
    ),
    VENDOR_DEFINED + 0x307: _Code(
        "CKR_KEYRING_NOT_AUTHORIZED", advice="log in to the keyring first"
    ),
    VENDOR_DEFINED + 0x1604: _Code("CKR_BUSY", DeviceError, _BUSY, _AGAIN, meaning=Meaning.BUSY),
}


def rv_name(rv: int) -> str:
    """The name of a CK_RV; its number, vendor bit and all, when it has no name."""
    code = _CODES.get(rv)
    if code is not None:
        return code.name
    return _vendor_names().get(rv, f"0x{rv:08X}")


def _vendor_names() -> dict[int, str]:
    # Not imported before it is needed, which is seldom.
    from .vendor_codes import VENDOR_NAMES

    return VENDOR_NAMES


def named_codes() -> list[int]:
    """All CK_RVs that have a name, in the order of their numbers."""
    return sorted({*_CODES, *_vendor_names()})


def what_is_said_of(rv: int) -> tuple[type[CryptokiError], str, str]:
    """Of a CK_RV: the class that is raised, what its message says, and what it advises; or ""."""
    code = _CODES.get(rv) or _Code("")
    return code.exception, code.says, code.advice


def codes_that_mean(meaning: Meaning) -> list[int]:
    """All CK_RVs of this meaning."""
    return [rv for rv, code in _CODES.items() if code.meaning is meaning]


def meaning_of(rv: int) -> Meaning | None:
    """What the answer means for the caller; None: no more than its name says."""
    code = _CODES.get(rv)
    return None if code is None else code.meaning


def rv_named(text: str) -> int:
    """The CK_RV of this name, or number: "CKR_DEVICE_ERROR", "device_error", "0x30", "48".

    Raises
    ------
    ValueError
        It is neither.
    """
    name = "CKR_" + text.upper().removeprefix("CKR_")
    for rv in named_codes():
        if rv_name(rv) == name:
            return rv
    try:
        return int(text, 0)
    except ValueError:
        raise ValueError(
            f"{text!r} is no return code: a CK_RV is a name of PKCS #11 or of the vendor, such as "
            "CKR_DEVICE_ERROR, or a number, such as 0x30"
        ) from None


def error_for(rv: int, function: str, slot_id: int | None = None) -> CryptokiError:
    """Make the exception for what a C function answered.

    Parameters
    ----------
    rv : int
        The CK_RV, as PKCS #11 v2.40 section 5.1 or the vendor defines it.
    function : str
        The C function that answered.
    slot_id : int, optional
        The slot that it was called for.
    """
    code = _CODES.get(rv) or _Code(_vendor_names().get(rv, ""))
    where = function if slot_id is None else f"{function} on slot {slot_id}"
    what = f"{code.name} (0x{rv:X})" if code.name else f"unknown return code 0x{rv:08X}"
    message = f"{where}: {what}" + (f": {code.text()}" if code.text() else "")
    return code.exception(message, rv=rv, function=function, slot_id=slot_id)
