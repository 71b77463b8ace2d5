# ClusterSlot: a slot of the cluster, and its lock in the hands of users.

# Known only here: a slot comes from a Library, never from its class.
cdef object _SLOT_KEY = object()


cdef ClusterSlot new_slot(Library library, CK_SLOT_ID slot_id):
    cdef ClusterSlot slot = ClusterSlot.__new__(ClusterSlot, _SLOT_KEY)
    slot.library = library
    slot.mutex = library.locks.mutex(slot_id)
    slot.share = library.share
    slot.poll = library.poll
    return slot


@cython.final
cdef class ClusterSlot:
    """A slot of the cluster. `Library.slot()` gives it; there is one object per slot ID.

    It is a context manager, and follows the protocol of `threading.Lock`::

        with slot:
            ...

    The lock is the token's mutex in the cluster (CA_LockClusteredSlot, CA_UnlockClusteredSlot of
    the Luna SDK), and keeps the threads and tasks of this process apart as well. It is advisory:
    the HSM keeps nobody from using a token without it.
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
        """What the client says about the slot now: a SlotInfo (C_GetSlotInfo)."""
        check_open(self.share, self.mutex.slot_id)
        return slot_info(self.mutex.client, self.mutex.slot_id)

    @property
    def token_info(self):
        """What the device says about the slot's token now: a TokenInfo (C_GetTokenInfo)."""
        check_open(self.share, self.mutex.slot_id)
        return labelled_token_info(self.mutex.client, self.mutex.slot_id)[1]

    def acquire(self, blocking=True, timeout=-1):
        """Lock the slot; the protocol of `threading.Lock.acquire`.

        Parameters
        ----------
        blocking : bool
            False: do not wait for another holder. The device has no try-lock, so the call still
            takes one round trip, and gives up when the device does not answer in 0.25 s.
        timeout : float
            Seconds to wait at most; -1: without limit. 0 is the same as ``blocking=False``.

        Returns
        -------
        bool
            Whether the lock is held now. False only with a timeout or without blocking.

        Raises
        ------
        LockReentryError
            This thread holds the lock already, and would wait for ever.
        SlotIdInvalidError, DeviceError
            What CA_LockClusteredSlot answers.
        LibraryClosedError, UnsupportedFunctionError
            Before the device is asked.

        Notes
        -----
        Without a timeout a thread that is not the main one makes the device call itself, which is
        the fastest way. The main thread, and any with a timeout, waits while a worker makes it;
        so signal handlers run at once, and what they raise ends the wait. Nothing is locked then.
        """
        cdef double seconds
        check_open(self.share, self.mutex.slot_id)
        place = note_place(None)
        if blocking and timeout == -1:
            self.mutex.acquire(self.share, self.poll)
        else:
            seconds = 0 if timeout == -1 else seconds_of(timeout)
            if not blocking and timeout != -1:
                raise ValueError("can't specify a timeout for a non-blocking call")
            if not self.mutex.acquire_within(self.share, self.poll, seconds):
                return False
        self.mutex.keep_place(place)
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
            The device refused. The lock may stay set until this process disconnects.
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
        """Make sure that the caller still holds the lock; asks the device for a sign of life.

        Raises
        ------
        LockNotOwnedError
            The calling thread or task does not hold it.
        LockLostError
            The device does not answer: a device that lost this application drops its locks.
        """
        self.mutex.ensure_held(self.share)

    def lock(self, *, timeout=None):
        """The lock as a context manager with a timeout, for ``with`` and for ``async with``.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait at most. None: without limit; a Ctrl-C or a cancellation still ends
            the wait at once.

        Raises
        ------
        LockTimeoutError
            From the ``with`` statement, when the time is up. Nothing is locked then.
        """
        return new_lock(self.mutex, self.share, self.poll, timeout, self, None)

    def __enter__(self):
        if not self.share.open:
            check_open(self.share, self.mutex.slot_id)
        self.mutex.acquire(self.share, self.poll)
        return self

    def __exit__(self, exc_type, exc_value, traceback):
        end_block(self.mutex, self.share, 0, exc_type, exc_value)

    def _is_owned(self):
        # threading.Condition asks this of its lock; it would try a device call otherwise.
        return self.mutex.is_mine()

    def __repr__(self):
        cdef Record now = seen(&self.mutex.record)
        state = "unlocked" if now.owner == 0 else "locked"
        if now.waiting:
            state += f", {now.waiting} waiting"
        return f"<luna_ext.ClusterSlot {self.mutex.slot_id} of {self.share.path!r}, {state}>"

    def __reduce__(self):
        raise TypeError(
            "a ClusterSlot belongs to its process; send slot_id and use Library.slot() there"
        )
