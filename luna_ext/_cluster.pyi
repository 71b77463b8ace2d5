"""What users hold: the library, its slots and tokens, their locks and claims."""

import os
from collections.abc import Awaitable, Callable, Generator, Iterable
from types import GenericAlias, TracebackType
from typing import Any, Generic, Literal, NoReturn, Self, TypeVar, final

from .errors import CryptokiError, LockLostError
from .info import FunctionStats, LibraryInfo, LockStats, SlotInfo, TokenInfo
from .pin_pad import PinPad

_T = TypeVar("_T")
_T_co = TypeVar("_T_co", covariant=True)

@final
class Library:
    """A loaded and initialised Luna client library.

    Parameters
    ----------
    path : str or os.PathLike, optional
        The client library (libCryptoki2). Without it: what the environment variable
        LUNA_EXT_LIBRARY names, else the client's configuration file, else its default path.
    contention : {"block", "poll"}
        What to do when the device answers CKR_DEVICE_ERROR to a lock call. "block" is for devices
        on which the call waits for the present holder: the error is raised. "poll" is for devices
        that answer this error on contention: the call is tried again, at most 50 times a second, and
        a process that has had the lock for 120 ms in a row leaves it to others for 40 ms.
    handover : float
        Seconds, from when the device has granted a lock, in which the end of a block hands it over to the
        next waiter of this process, without a call. After that it is unlocked, so that other hosts get
        their turn. The Library of the block that ends decides. 0: each lock is unlocked.

    Raises
    ------
    LibraryLoadError
        No client library was found, the file is not a PKCS #11 module or not a complete one, or it is
        the stand-in where LUNA_EXT_FORBID_STUB=1 or /etc/luna_ext/forbid-stub forbids it.
    DeviceError, CryptokiError
        What C_Initialize answers.
    TypeError, ValueError
        For the arguments.

    Notes
    -----
    Use it in a ``with`` statement, or call `close()`. Several Library objects may use one client
    library at a time; they share its locks, and the last one that closes finalises it. It loads
    any PKCS #11 module; the cluster functions are resolved one by one, and one that is missing
    raises `UnsupportedFunctionError` when it is needed. The stand-in, opened by its path instead of
    `luna_ext.stub.Cluster.library()`, warns with a `RuntimeWarning` and a WARNING record once per
    process. Another WARNING record, once per process and client library, says so if other users may
    change the library, the client's configuration or a directory above them.
    """
    def __new__(
        cls,
        path: str | os.PathLike[str] | None = None,
        *,
        contention: Literal["block", "poll"] = "block",
        handover: float = 0.0,
    ) -> Self: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...
    def __del__(self) -> None: ...
    def __reduce__(self) -> NoReturn: ...
    def close(self) -> None:
        """Close the library; a second call does nothing.

        New calls raise `LibraryClosedError` at once, and so do threads and tasks that wait for a
        lock. Locks that are still held through this Library are released, with a `ResourceWarning`;
        their holders get a `LockLostError` at their next call.

        C_Finalize is called after the last call has returned, unless another Library of this
        process still uses the client library, or other code has initialised it. If C_Finalize
        fails, a WARNING record says so.
        """
    @property
    def path(self) -> str:
        """The client library's absolute path."""
    @property
    def closed(self) -> bool:
        """Whether close() was called, or the interpreter is exiting."""
    @property
    def info(self) -> LibraryInfo:
        """What the client library says about itself, a LibraryInfo (C_GetInfo).

        Raises
        ------
        LibraryClosedError, CryptokiError
            The Library is closed, or what C_GetInfo answers.
        """
    @property
    def is_stub(self) -> bool:
        """Whether this is the stand-in, not an HSM's client library."""
    @property
    def cluster_functions(self) -> frozenset[str]:
        """The names of the cluster extensions that the client library exports, a frozenset.

        At most CA_GetSlotId, CA_GetUnassignedSlot, CA_LockClusteredSlot, CA_UnlockClusteredSlot.
        """
    def reconnect(self) -> None:
        """Initialise the client library anew (C_Finalize and C_Initialize).

        Also if other code of the process has initialised it. The device drops all locks of this process
        by that, also those that could not be unlocked and those of other Library objects on the same
        client library. Their holders get a `LockLostError` from `ensure_held()` and at the end of their
        block. Threads and tasks that wait for a lock go on waiting. Sessions that other code of this
        process has with the library end as well.

        A new Library does the same by itself if the device does not know this process any more.

        Raises
        ------
        DeviceError
            Calls of this process are still at the device after a second. Nothing was done; if the device
            never answers them, only a restart of the process helps.
        LibraryClosedError, CryptokiError
            The Library is closed, or what C_Initialize answers. The next call tries it again. Or what
            C_Finalize answers: then holders keep their locks, unless they may be gone.
        """
    def slot(self, slot_id: int) -> ClusterSlot:
        """The slot with this ID: always the same object. Does not ask the device.

        Parameters
        ----------
        slot_id : int
            A CK_SLOT_ID: 0 to 2**64 - 1 (on Windows 2**32 - 1).

        Raises
        ------
        TypeError, OverflowError
            The ID is not an integer, or out of range.
        LibraryClosedError
            The Library is closed.
        """
    def slots(self, token_present: bool = True) -> list[ClusterSlot]:
        """The slots that the client knows (C_GetSlotList), a list of ClusterSlot.

        Parameters
        ----------
        token_present : bool
            True: only the slots that have a token. False: all slots.

        Raises
        ------
        LibraryClosedError, DeviceError, CryptokiError
            The Library is closed, or what C_GetSlotList answers.
        """
    def find(self, label: str) -> list[Token]:
        """All tokens with this label, a list of Token; empty when there is none (CA_GetSlotId).

        Parameters
        ----------
        label : str
            1 to 32 bytes of UTF-8.

        Raises
        ------
        TypeError, ValueError
            For the label, before the device is asked.
        UnsupportedFunctionError
            The client library has no CA_GetSlotId.
        LibraryClosedError, DeviceError, CryptokiError
            The Library is closed, or what CA_GetSlotId answers.
        """
    def token(self, label: str) -> Token:
        """The one token with this label (CA_GetSlotId).

        Parameters
        ----------
        label : str
            1 to 32 bytes of UTF-8.

        Raises
        ------
        TokenNotFoundError, AmbiguousLabelError
            There is none, or more than one.
        TypeError, ValueError, UnsupportedFunctionError
            As `find()`.
        LibraryClosedError, DeviceError, CryptokiError
            As `find()`.
        """
    def tokens(
        self,
        workers: int = 16,
        on_error: Callable[[ClusterSlot, CryptokiError], object] | None = None,
    ) -> list[Token]:
        """All tokens with their information, a list of Token in the order of the slot list.

        Parameters
        ----------
        workers : int
            How many device calls (C_GetTokenInfo) may run at a time.
        on_error : callable, optional
            Called as ``on_error(slot, error)`` for each token that cannot be read, in the order of the
            slot list, on the caller's thread; the token is left out. None: the first error is raised, and
            names its slot.

        Raises
        ------
        LibraryClosedError, DeviceError, CryptokiError
            The Library is closed, what C_GetSlotList answers, or, without `on_error`, the first error of
            any token. A slot or token that is gone by then is no error: it is left out.
        TypeError, ValueError
            `workers` is not an integer, or less than 1; `on_error` is no function.
        RuntimeError
            No thread can be had; or a signal handler has forked meanwhile, and this is the child.
        """
    def claim(
        self,
        cluster_id: str,
        *,
        timeout: float = 0,
        heartbeat: float | None = None,
        on_lost: Callable[[LockLostError], object] | None = None,
    ) -> Claim:
        """Claim an unassigned token, for ``with`` or ``async with`` (CA_GetUnassignedSlot).

        The device gives the token with its lock set; the end of the block unlocks it::

            with luna.claim("cluster-1") as token:
                token.assign("payments-02", so_pin=...)

        Nothing happens before the ``with``.

        Parameters
        ----------
        cluster_id : str
            The cluster's ID.
        timeout : float
            Seconds to keep trying while no unassigned token is left. 0: ask once, however long the
            device takes to answer.
        heartbeat : float, optional
            Seconds within which a loss of the lock is noticed, as with `ClusterSlot.lock()`.
        on_lost : callable, optional
            Called with the LockLostError at a loss, as with `ClusterSlot.lock()`.

        Raises
        ------
        NoUnassignedTokenError
            From the ``with``: none is left.
        LockTimeoutError
            From the ``with``: the device did not answer in time. Nothing is locked.
        UnsupportedFunctionError, DeviceError, ArgumentsBadError, CryptokiError
            From the ``with``: what the client library lacks, or the device answers.
        TypeError, ValueError, OverflowError
            For the arguments.
        LibraryClosedError
            The Library is closed.
        """
    def lock_all(
        self, targets: Iterable[ClusterSlot | Token], *, timeout: float | None = None
    ) -> LockAll:
        """Several slots and tokens as one lock, for ``with`` and ``async with``: all or none.

        They are locked one after the other by their slot IDs, the same order for every program, so that no
        two wait for each other, and released in reverse. The label of each token is checked.

        Parameters
        ----------
        targets : iterable of ClusterSlot and Token
            Of this Library; each slot once.
        timeout : float, optional
            Seconds to wait at most, for all together. None: without limit. 0: do not wait for another
            holder.

        Raises
        ------
        LockTimeoutError, LockReentryError, TokenChangedError, DeviceError, CryptokiError
            From the ``with`` statement, as from `ClusterSlot.lock()` and `Token.lock()`; `slot_id` says
            which one failed. None is locked then.
        LockReleaseError, LockLostError
            At the end: the first that failed, the others as notes. All are released that can be.
        TypeError, ValueError, OverflowError
            For the arguments: not a slot or token, of another Library, or a slot that is named twice.
        LibraryClosedError
            The Library is closed.

        Notes
        -----
        Where the clients of two hosts number the slots differently, use a timeout.
        """
    def pkcs11(self) -> Any:
        """python-pkcs11 on this Library's client library: a ``pkcs11.lib``.

        Its `initialize()`, `finalize()`, `reinitialize()` and `unload()` do nothing: the Library sees to
        that. It keeps the Library alive, and works in a forked child and after `reconnect()`; its
        sessions end there. ``pkcs11.lib(path)`` gives an object of the same kind afterwards.

        Raises
        ------
        ImportError
            python-pkcs11 is not installed, or too old (extra ``pkcs11``).
        LibraryClosedError
            The Library is closed; later also from the methods of the object.
        """
    def pykcs11(self) -> Any:
        """PyKCS11 on this Library's client library: a ``PyKCS11.PyKCS11Lib``.

        It finalises nothing when it is collected or unloaded; nor do other PyKCS11Lib objects for the same
        path that are made afterwards. It keeps the Library alive, and works in a forked child and after
        `reconnect()`; its sessions end there.

        Raises
        ------
        ImportError
            PyKCS11 is not installed, or too old (extra ``pykcs11``).
        LibraryClosedError
            The Library is closed; later also from the methods of the object.
        """
    def stats(self) -> dict[str, FunctionStats]:
        """How often this process has called each C function, and for how long.

        Returns
        -------
        dict of str to FunctionStats
            By the name of the C function; only those that were called. Does not ask the device, and
            counts the calls of all Library objects on the same client library. The times of calls that
            take less than 16 microseconds are sampled. Locks that were handed over without a call are
            the `handed_over` of CA_LockClusteredSlot.
        """
    def lock_stats(self) -> LockStats:
        """How long this process has waited for locks and held them, and what became of that.

        Returns
        -------
        LockStats
            Of all slots. Does not ask the device, and counts the locks of all Library objects on the same
            client library. Short waits and holds are not timed.
        """

@final
class ClusterSlot:
    """A slot of the cluster. `Library.slot()` gives it; there is one object per slot ID.

    It is a context manager, and follows the protocol of `threading.Lock`::

        with slot:
            ...

    The lock is the token's mutex in the cluster (CA_LockClusteredSlot, CA_UnlockClusteredSlot of
    the Luna SDK), and keeps the threads and tasks of this process apart as well. It is advisory:
    the HSM lets any program use a token without it.
    """
    def __new__(cls, key: object = None) -> Self: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...
    def __reduce__(self) -> NoReturn: ...
    @property
    def slot_id(self) -> int:
        """The CK_SLOT_ID."""
    @property
    def library(self) -> Library:
        """The Library that it came from."""
    @property
    def info(self) -> SlotInfo:
        """What the client says about the slot now, a SlotInfo (C_GetSlotInfo).

        Raises
        ------
        LibraryClosedError, SlotIdInvalidError, DeviceError, CryptokiError
            The Library is closed, or what C_GetSlotInfo answers.
        """
    @property
    def token_info(self) -> TokenInfo:
        """What the device says about the slot's token now, a TokenInfo (C_GetTokenInfo).

        Raises
        ------
        LibraryClosedError, SlotIdInvalidError, DeviceError, CryptokiError
            The Library is closed, or what C_GetTokenInfo answers.
        """
    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Lock the slot (CA_LockClusteredSlot); the protocol of `threading.Lock.acquire`.

        Parameters
        ----------
        blocking : bool
            False: do not wait for another holder. The SDK has no try-lock, so the call still takes
            one round trip, and gives up when the device does not answer within 0.25 s.
        timeout : float
            Seconds to wait at most; -1: without limit. 0 is the same as ``blocking=False``.

        Returns
        -------
        bool
            Whether the lock is held now. False only with a timeout or without blocking.

        Raises
        ------
        LockReentryError
            This thread holds the lock already, and would wait for ever; or the caller is a greenlet
            that would have to wait.
        SlotIdInvalidError, DeviceError, CryptokiError
            What CA_LockClusteredSlot answers.
        LibraryClosedError, UnsupportedFunctionError
            The Library is closed, or the client library lacks a lock function.
        TypeError, ValueError, OverflowError
            For the arguments.

        Notes
        -----
        Without a timeout a thread that is not the main one makes the device call itself, which is
        the fastest way. The main thread, and each thread with a timeout, waits while a worker makes
        the call. So signal handlers run at once on the main thread, and what they raise ends the
        wait; nothing is locked then.
        """
    def release(self) -> None:
        """Unlock the slot (CA_UnlockClusteredSlot).

        Raises
        ------
        LockNotOwnedError
            The calling thread does not hold the lock; nothing is unlocked.
        LockLostError
            The lock was gone already; the device is not asked, for another process may hold it.
        LockReleaseError
            The device refused to unlock. The lock may stay set until this process disconnects.
        """
    def locked(self) -> bool:
        """Whether a thread or task of this process holds the lock. Does not ask the device."""
    def ensure_held(self) -> None:
        """Make sure that the caller still holds the lock; asks the device (C_GetTokenInfo).

        Raises
        ------
        LockNotOwnedError
            The calling thread or task does not hold the lock, or relied on that of a holder which has
            released it while the device was asked.
        LockLostError
            The lock is gone: the device does not know this application any more, and has dropped its
            locks; or the Library was closed.
        CryptokiError
            Any other error of C_GetTokenInfo. It does not tell whether the lock is still held.
        """
    @property
    def lost(self) -> LostEvent:
        """Whether the caller's lock was lost, a LostEvent, to look at or to wait for.

        It is that of the caller's hold if its lock was lost, else that of the newest hold of this
        process. A loss is noticed by a `heartbeat`, by `ensure_held()`, `reconnect()` and
        `close()`; the event itself does not ask the device.
        """
    def lock(
        self,
        *,
        timeout: float | None = None,
        heartbeat: float | None = None,
        on_lost: Callable[[LockLostError], object] | None = None,
    ) -> SlotLock[ClusterSlot]:
        """The lock as a context manager with a timeout, for ``with`` and for ``async with``.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait at most. None: without limit; a Ctrl-C or a cancellation still ends
            the wait at once. 0: do not wait for another holder, as `acquire(blocking=False)`.
        heartbeat : float, optional
            Seconds within which a loss of the lock is noticed while the block runs: twice in that
            time the device is asked (C_GetTokenInfo, C_GetSessionInfo), on a thread of luna_ext. Then an
            ERROR record is written, `lost` is set, `locked()` is False, and an ``async with`` block
            is cancelled and ends in LockLostError. None: the device is not asked.
        on_lost : callable, optional
            Called once at a loss, on a thread of luna_ext, with the LockLostError. What it raises is
            logged. It needs a `heartbeat`.

        Raises
        ------
        LockTimeoutError
            From the ``with`` statement, when the time is up. Nothing is locked then.
        LockLostError
            From the end of the ``with`` statement: the lock was lost while the block ran.
        TypeError, ValueError, OverflowError
            For the arguments.
        LockReentryError, LibraryClosedError, DeviceError, CryptokiError
            From the ``with`` statement, as from `acquire()`.
        """

@final
class Token:
    """A keyring token of the cluster, by the label that it had when it was found.

    `Library.token()`, `find()`, `tokens()` and `claim()` give it. As a context manager it locks
    its slot and makes sure that the token there still has this label::

        with luna.token("payments-01") as token:
            ...
    """
    def __new__(cls, key: object = None) -> Self: ...
    def pkcs11(self) -> Any:
        """python-pkcs11's token of this slot, a ``pkcs11.Token``, on the Library's client library.

        Its keys are used while the lock is held::

            with luna.token("payments-01") as token:
                with token.pkcs11().open(user_pin=...) as session: ...

        Raises
        ------
        ImportError
            python-pkcs11 is not installed, or too old (extra ``pkcs11``).
        LibraryClosedError, SlotIdInvalidError
            The Library is closed, or the client knows no such slot any more.
        pkcs11.PKCS11Error
            What C_GetTokenInfo answers.
        """
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...
    def __reduce__(self) -> NoReturn: ...
    @property
    def label(self) -> str:
        """The label without its padding; bytes that are not UTF-8 appear as lone surrogates."""
    @property
    def slot(self) -> ClusterSlot:
        """The slot that it is in."""
    @property
    def info(self) -> TokenInfo:
        """The token's TokenInfo (C_GetTokenInfo), read once; `slot.token_info` reads it anew.

        Raises
        ------
        LibraryClosedError, DeviceError, CryptokiError
            As `ClusterSlot.token_info`, when it is read.
        """
    def lock(
        self,
        *,
        timeout: float | None = None,
        heartbeat: float | None = None,
        on_lost: Callable[[LockLostError], object] | None = None,
    ) -> SlotLock[Token]:
        """As `ClusterSlot.lock()`; the label is checked as soon as the lock is held.

        Parameters
        ----------
        timeout : float, optional
            Seconds at most for both, the lock and the check. None: without limit.
        heartbeat : float, optional
            Seconds within which a loss of the lock is noticed, as with `ClusterSlot.lock()`. The label
            is not checked again.
        on_lost : callable, optional
            Called with the LockLostError at a loss, as with `ClusterSlot.lock()`.

        Raises
        ------
        LockTimeoutError, TokenChangedError
            From the ``with`` statement: the time is up, or the token has another label now. Nothing
            is locked then.
        """
    def ensure_held(self) -> None:
        """As `ClusterSlot.ensure_held()`, and the token must still have this label.

        Raises
        ------
        LockNotOwnedError, LockLostError, CryptokiError
            As `ClusterSlot.ensure_held()`.
        TokenChangedError
            The lock is held, but the token has another label now.
        """
    def assign(
        self,
        label: str,
        *,
        so_pin: str | bytes | bytearray | memoryview | PinPad | Pin,
        user_pin: str | bytes | bytearray | memoryview | PinPad | Pin | None = None,
        unique: bool = True,
        erase: bool = True,
    ) -> Token:
        """Give the claimed token its label: **erases the token** (C_InitToken).

        Only inside the block of the `Library.claim()` that gave this Token. With `user_pin` the
        user's PIN is set as well (C_OpenSession, C_Login, C_InitPIN).

        Parameters
        ----------
        label : str
            1 to 32 bytes of UTF-8.
        so_pin : str, bytes, bytearray, memoryview or PIN_PAD
            **The password that the keyring has already**: it was given where the keyring was made, on the
            appliance. Only a token that is not initialised takes any PIN, and keeps it.
        user_pin : str, bytes, bytearray, memoryview or PIN_PAD, optional
            The PIN that the user is to have. With *single identity*, a cluster's default, the SO (KRSO)
            and the user (KRCO) have the same password, and whatever changes one changes the other:
            a `user_pin` that is not `so_pin` becomes the SO's too. One that is the same is set already,
            and no call is made for it. With *dual identity* each has its own.
        unique : bool
            True: refuse a label that a token has already (CA_GetSlotId). False: do not look.
        erase : bool
            False: keep what is in the token, and only change its label (C_OpenSession, C_Login,
            CA_ChangeLabel), where the client has CA_ChangeLabel.

        Returns
        -------
        Token
            The token under its new label; the claim's block still holds its lock.

        Raises
        ------
        TypeError, ValueError
            For the label or a PIN, before the device is asked; for PIN_PAD where the token has no such pad,
            before it is changed.
        LockNotOwnedError
            The lock is not held, or was released since the claim.
        AssignmentConflictError
            The Token did not come out of `claim()`, or the token has another label by now; or a
            token has the new label already, and its slot is in `slot_ids`; or there is no PIN to log in
            with, which `erase=False` needs. Nothing was erased. Or C_InitToken reported success, but the
            token does not have the new label.
        UnsupportedFunctionError
            The client library has no CA_GetSlotId, which `unique` needs, or no CA_ChangeLabel, which
            `erase=False` needs.
        LockLostError
            The lock is gone, as `ensure_held()` says it.
        PinError, CryptokiError
            What the device answers. A note says what has become of the token. Also, before a PIN is tried,
            where the SO has one try left, or none; and for a `user_pin` of a length that the token does not
            take.

        Notes
        -----
        PINs are copied, and the copies are wiped; no error or log shows them. `PIN_PAD` stands for one that
        is entered at the token's own pad.
        """
    def change_pin(
        self,
        old: str | bytes | bytearray | memoryview | PinPad,
        new: str | bytes | bytearray | memoryview | PinPad,
        *,
        role: Literal["user", "so"] = "user",
    ) -> None:
        """Give the user, or the SO, another PIN (C_SetPIN). The caller holds the lock.

        It is what a token wants where a PIN has to be changed before it is used: CKR_PIN_EXPIRED, and the
        flag USER_PIN_TO_BE_CHANGED.

        Parameters
        ----------
        old, new : str, bytes, bytearray, memoryview or PIN_PAD
            The PIN that is valid now, and the one that is to be. They are copied, and the copies are wiped.
            With *single identity*, a cluster's default, the SO and the user have the same password, and
            both have the new one then.
        role : {"user", "so"}
            Whose: the user's (KRCO), with C_OpenSession, C_GetSessionInfo and C_SetPIN alone; or the SO's
            (KRSO), with C_Login and C_Logout as well.

        Raises
        ------
        TypeError, ValueError
            For an argument, before the device is asked; for PIN_PAD where the token has no such pad.
        LockNotOwnedError, LockLostError, TokenChangedError
            As `ensure_held()`.
        PinError
            The device refuses a PIN; or the SO has one try left, or none, and `old` was not tried.
        UnsupportedFunctionError
            The client library has no C_SetPIN.
        CryptokiError
            Any other answer. CKR_USER_ANOTHER_ALREADY_LOGGED_IN: other code of this process is logged in
            in the other role. That login is left alone, and nothing was changed.
        """
    def _set_user_pin(self, so_pin: Pin, user_pin: Pin) -> bool: ...
    def _ensure_user_pin(self, so_pin: Pin, user_pin: Pin) -> bool: ...

@final
class LostEvent:
    """Whether a lock was lost while it was held. `ClusterSlot.lost` gives it.

    It follows `threading.Event`, but only the library sets it; and it is true when it is set.
    """
    def __new__(cls, key: object = None) -> Self: ...
    def is_set(self) -> bool:
        """Whether the loss has been noticed. Does not ask the device."""
    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the lock is lost.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait at most. None: without limit.

        Returns
        -------
        bool
            Whether the lock was lost.

        Raises
        ------
        LockReentryError
            The caller is a greenlet, and to wait would stop all others of its thread.
        TypeError
            For the timeout.

        Notes
        -----
        The end of the hold is no loss, and does not end the wait.
        """
    def __bool__(self) -> bool: ...
    def __reduce__(self) -> NoReturn: ...

@final
class SlotLock(Generic[_T_co]):
    """What `lock(timeout=...)` of a slot or token gives: locks for a ``with`` or ``async with``.

    One object may be used many times, and by several threads and tasks.
    """
    def __new__(cls, key: object = None) -> Self: ...
    def __enter__(self) -> _T_co: ...
    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...
    async def __aenter__(self) -> _T_co: ...
    def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> Departure: ...
    @classmethod
    def __class_getitem__(cls, item: Any, /) -> GenericAlias: ...
    def __reduce__(self) -> NoReturn: ...

@final
class Claim:
    """What `Library.claim()` gives: its ``with`` or ``async with`` holds an unassigned token."""
    def __new__(cls, key: object = None) -> Self: ...
    def __enter__(self) -> Token: ...
    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...
    async def __aenter__(self) -> Token: ...
    def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> Departure: ...
    def __reduce__(self) -> NoReturn: ...

@final
class Departure:
    """The end of an ``async with`` block: what ``__aexit__`` gives to be awaited."""
    def __await__(self) -> Generator[Any, Any]: ...

class Pin:
    """A copy of a PIN that no Python code can read; `provision()` passes it on."""

def copied_pins(
    so_pin: str | bytes | bytearray | memoryview | PinPad,
    user_pin: str | bytes | bytearray | memoryview | PinPad | None,
) -> tuple[Pin, Pin | None]:
    """Copies of both that no Python code can read. Raises as `Token.assign()` does for these PINs."""

@final
class Ends(Generic[_T]):
    """What threads of this process tell the thread that waits until they have come to their ends."""

    def put(self, end: _T) -> None:
        """Tell it that there is this end."""
    def next(self) -> _T:
        """The next end; signals are heard while it waits. RuntimeError: in a child, none comes any more."""
    @property
    def left_behind(self) -> bool:
        """Whether this is a child that was forked meanwhile: the threads exist in the parent only."""

def start_thread(function: Callable[[], object]) -> None:
    """Call `function()` on a thread of its own, which is never joined."""

def same_pin(one: Pin, other: Pin | None) -> bool:
    """Whether the two are known to be the same."""

def is_pad(pin: Pin | None) -> bool:
    """Whether it is PIN_PAD's."""

def was_initialised(token: Token) -> bool:
    """Whether the token was, when it was last read, or is now."""

def has_single_identity(assigned: Token) -> bool:
    """Whether the token that assign() gave has one PIN for both roles.

    C_InitToken does not take the user's away then.
    """

@final
class LockAll:
    """What `Library.lock_all()` gives: its ``with`` or ``async with`` holds all of the locks, or none.

    One object may be used many times, and by several threads and tasks.
    """
    def __enter__(self) -> tuple[ClusterSlot | Token, ...]: ...
    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...
    async def __aenter__(self) -> tuple[ClusterSlot | Token, ...]: ...
    def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> Awaitable[None]: ...
    def __reduce__(self) -> NoReturn: ...
