"""Lock, claim and assign the keyring tokens of a Thales Luna HSM cluster."""

# isort: off
from . import safe_path  # noqa: F401

# isort: on
from importlib import import_module

try:
    # Imported by name for PyInstaller and the like, which do not see what compiled modules import.
    # A name, for where there is no such module its directory counts as an empty one.
    from . import _device, _mutex, discovery, errors, labels  # noqa: F401
    from ._cluster import Library as _Library  # noqa: F401
except ImportError:
    from .not_compiled import reason

    # Python would speak of circular imports, for there are directories of the modules' names.
    if not reason():
        raise
    raise ImportError(reason(), name=__name__) from None

# Not within the try: what reads this file for the reference does not look into it.
from ._cluster import Claim, ClusterSlot, Library, LockAll, LostEvent, SlotLock, Token
from .errors import (
    AmbiguousLabelError,
    ArgumentsBadError,
    AssignmentConflictError,
    BufferTooSmallError,
    CryptokiError,
    DeviceError,
    FunctionFailedError,
    LibraryClosedError,
    LibraryLoadError,
    LockError,
    LockLostError,
    LockNotOwnedError,
    LockReentryError,
    LockReleaseError,
    LockTimeoutError,
    LunaError,
    NotInitializedError,
    NoUnassignedTokenError,
    PinError,
    SlotIdInvalidError,
    TokenChangedError,
    TokenNotFoundError,
    UnsupportedFunctionError,
)
from .pin_pad import PIN_PAD, PinPad

# As typing.TYPE_CHECKING; to import typing takes longer than to import the three extensions.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from .info import (
        FunctionStats,
        LibraryInfo,
        LockStats,
        SlotFlag,
        SlotInfo,
        TokenFlag,
        TokenInfo,
        Version,
    )
    from .provisioning import ProvisionProgress, ProvisionReport, provision

__all__ = [
    "PIN_PAD",
    "AmbiguousLabelError",
    "ArgumentsBadError",
    "AssignmentConflictError",
    "BufferTooSmallError",
    "Claim",
    "ClusterSlot",
    "CryptokiError",
    "DeviceError",
    "FunctionFailedError",
    "FunctionStats",
    "Library",
    "LibraryClosedError",
    "LibraryInfo",
    "LibraryLoadError",
    "LockAll",
    "LockError",
    "LockLostError",
    "LockNotOwnedError",
    "LockReentryError",
    "LockReleaseError",
    "LockStats",
    "LockTimeoutError",
    "LostEvent",
    "LunaError",
    "NoUnassignedTokenError",
    "NotInitializedError",
    "PinError",
    "PinPad",
    "ProvisionProgress",
    "ProvisionReport",
    "SlotFlag",
    "SlotIdInvalidError",
    "SlotInfo",
    "SlotLock",
    "Token",
    "TokenChangedError",
    "TokenFlag",
    "TokenInfo",
    "TokenNotFoundError",
    "UnsupportedFunctionError",
    "Version",
    "provision",
]

__version__ = "0.1.0"

# Imported when they are first asked for: with dataclasses and enumerations they take longer than
# all the rest, and a program that only locks needs none of them.
_LATER = {
    "FunctionStats": "info",
    "LibraryInfo": "info",
    "LockStats": "info",
    "ProvisionProgress": "provisioning",
    "ProvisionReport": "provisioning",
    "SlotFlag": "info",
    "SlotInfo": "info",
    "TokenFlag": "info",
    "TokenInfo": "info",
    "Version": "info",
    "provision": "provisioning",
}

# Hidden from type checkers, which would accept every name of the module because of __getattr__.
if not TYPE_CHECKING:

    def __getattr__(name):
        if name not in _LATER:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f".{_LATER[name]}", __name__), name)
        return value

    def __dir__():
        return sorted({*globals(), *_LATER})
