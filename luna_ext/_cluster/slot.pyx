# ClusterSlot: a slot of the cluster, and its lock as users see it.

# Only this file has the key, so that users cannot make a slot by calling its class.
cdef object _SLOT_KEY = object()


cdef ClusterSlot new_slot(Library library, SlotMutex mutex):
    cdef ClusterSlot slot = ClusterSlot.__new__(ClusterSlot, _SLOT_KEY)
    slot.library = library
    slot.mutex = mutex
    slot.share = library.share
    return slot


@cython.final
cdef class ClusterSlot:
    """A slot of the cluster. `Library.slot()` gives it; there is one object per slot ID.

    It is a context manager, and follows the protocol of `threading.Lock`::

        with slot:
            ...

    The lock is the token's mutex in the cluster (CA_LockClusteredSlot, CA_UnlockClusteredSlot of
    the Luna SDK), and keeps the threads and tasks of this process apart as well. It is advisory:
    the HSM lets any program use a token without it.
    """

    def __cinit__(self, key=None):
        if key is not _SLOT_KEY:
            raise TypeError("a ClusterSlot comes from Library.slot(), it cannot be made")

    @property
    def slot_id(self):
        """The CK_SLOT_ID."""
        return self.mutex.slot_id

    @property
    def info(self):
        """What the client says about the slot now, a SlotInfo (C_GetSlotInfo).

        Raises
        ------
        LibraryClosedError, SlotIdInvalidError, DeviceError, CryptokiError
            The Library is closed, or what C_GetSlotInfo answers.
        """
        check_open(self.share, self.mutex.slot_id)
        return slot_info(self.mutex.locks.client, self.mutex.slot_id)

    @property
    def token_info(self):
        """What the device says about the slot's token now, a TokenInfo (C_GetTokenInfo).

        Raises
        ------
        LibraryClosedError, SlotIdInvalidError, DeviceError, CryptokiError
            The Library is closed, or what C_GetTokenInfo answers.
        """
        cdef CK_TOKEN_INFO info
        check_open(self.share, self.mutex.slot_id)
        read_token_info(self.mutex.locks.client, self.mutex.slot_id, &info)
        return token_info_of(&info)

    def acquire(self, blocking=True, timeout=-1):
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
        cdef double seconds
        cdef uint64_t hold = 0
        check_open(self.share, self.mutex.slot_id)
        place = note_place(self.mutex, None)
        if blocking and timeout == -1:
            self.mutex.acquire(self.share)
        else:
            seconds = 0 if timeout == -1 else seconds_of(timeout)
            if not blocking and timeout != -1:
                raise ValueError("can't specify a timeout for a non-blocking call")
            if not self.mutex.acquire_within(self.share, seconds, &hold):
                if blocking:
                    count_timeout(self.share.client)
                return False
        self.mutex.keep_place(place, hold)
        return True

    def release(self):
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
        try:
            self.mutex.release(caller_number(), self.share)
        except LunaError as error:
            tell_failed_release(error)
            raise

    def locked(self):
        """Whether a thread or task of this process holds the lock. Does not ask the device."""
        return self.mutex.holds() != 0

    def ensure_held(self):
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
        cdef CK_TOKEN_INFO info
        self.mutex.ensure_held(self.share, &info)

    @property
    def lost(self):
        """Whether the caller's lock was lost, a LostEvent, to look at or to wait for.

        It is that of the caller's hold if its lock was lost, else that of the newest hold of this
        process. A loss is noticed by a `heartbeat`, by `ensure_held()`, `reconnect()` and
        `close()`; the event itself does not ask the device.
        """
        return self.mutex.lost_event_of_caller(self.share)

    def lock(self, *, timeout=None, heartbeat=None, on_lost=None):
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
        return new_lock(self, timeout, heartbeat, on_lost, self, None)

    def __enter__(self):
        # The slot keeps its Share. A reference more would be counted in a cache line that all threads of
        # the Library share.
        cdef PyObject *share = <PyObject *> self.share
        if not luna_shared_get(&self.share.open):
            check_open(self.share, self.mutex.slot_id)
        self.mutex.acquire(<Share> share)
        return self

    def __exit__(self, exc_type, exc_value, traceback):
        cdef PyObject *mutex = <PyObject *> self.mutex
        cdef PyObject *share = <PyObject *> self.share
        end_block(<SlotMutex> mutex, <Share> share, 0, False, exc_type, exc_value)

    def _is_owned(self):
        # For threading.Condition, which would call acquire() to find this out.
        return self.mutex.is_mine()

    def __repr__(self):
        cdef Record now = seen(&self.mutex.record)
        state = "unlocked" if now.owner == 0 else f"locked by {self.mutex.name_holder(now.owner)}"
        if now.waiting:
            state += f", {now.waiting} waiting"
        return f"<luna_ext.ClusterSlot {self.mutex.slot_id} of {self.share.path!r}, {state}>"

    def __reduce__(self):
        raise TypeError(
            "a ClusterSlot belongs to its process; send slot_id and use Library.slot() there"
        )
