"""Lock, claim and assign the keyring tokens of a Thales Luna HSM cluster."""

from .claiming import Claim
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
from .info import FunctionStats, LibraryInfo, SlotFlag, SlotInfo, TokenFlag, TokenInfo, Version
from .library import Library
from .lock import SlotLock
from .provision import ProvisionProgress, ProvisionReport, provision
from .slot import ClusterSlot
from .token import Token

__all__ = [
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
