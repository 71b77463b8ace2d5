"""ClusterSlot: a slot of the cluster, and its lock in the hands of users."""

cimport cython

from luna_ext cimport calls
from luna_ext.client cimport Lease
from luna_ext.cryptoki cimport CK_SLOT_ID
from luna_ext.lock cimport check_evicted, check_held, check_open, end_block, new_lock, seconds_of
from luna_ext.mutex cimport mutex_of
from luna_ext.reports cimport tell_failed_release

from .errors import LunaError
from .lock import ANSWER_SECONDS

# Known only here: a slot comes from a Library, never from its class.
cdef object _KEY = object()


cdef ClusterSlot new_slot(object library, Lease lease, bint poll, CK_SLOT_ID slot_id):
    cdef ClusterSlot slot = ClusterSlot.__new__(ClusterSlot, _KEY)
    slot.library = library
    slot.client = lease.client
    slot.mutex = mutex_of(lease.client, slot_id)
    slot.lease = lease
    slot.poll = poll
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
        if key is not _KEY:
            raise TypeError("a ClusterSlot comes from Library.slot(), it cannot be made")

    @property
    def slot_id(self):
        """The CK_SLOT_ID."""
        return self.mutex.slot_id

    @property
    def info(self):
        """What the client says about the slot now: a SlotInfo (C_GetSlotInfo)."""
        check_open(self.lease, self.mutex.slot_id)
        return calls.slot_info(self.client, self.mutex.slot_id)

    @property
    def token_info(self):
        """What the device says about the slot's token now: a TokenInfo (C_GetTokenInfo)."""
        check_open(self.lease, self.mutex.slot_id)
        return calls.labelled_token_info(self.client, self.mutex.slot_id)[1]

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
        Without a timeout the device call is made on the calling thread, which is the fastest way;
        a signal that arrives inside it is seen when it returns. With one, the calling thread
        waits in Python and sees a signal at once.
        """
        cdef double seconds
        check_open(self.lease, self.mutex.slot_id)
        if blocking and timeout == -1:
            self.mutex.acquire(self.lease, self.poll)
        else:
            seconds = 0 if timeout == -1 else seconds_of(timeout)
            if not blocking and timeout != -1:
                raise ValueError("can't specify a timeout for a non-blocking call")
            if seconds == 0:
                if not self.mutex.is_free():
                    return False
                seconds = ANSWER_SECONDS
            if not self.mutex.acquire_within(self.lease, self.poll, seconds):
                return False
        self.mutex.note_place()
        return True

    def release(self):
        """Unlock the slot (CA_UnlockClusteredSlot).

        Raises
        ------
        LockNotOwnedError
            The calling thread does not hold the lock; nothing is unlocked.
        LockLostError
            The lock was gone already; the device is not asked, for somebody else may hold it.
        LockReleaseError
            The device refused. The lock may stay set until this process disconnects.
        """
        try:
            if not self.lease.open:
                check_evicted(self.mutex, self.lease, "CA_UnlockClusteredSlot")
            self.mutex.release(self.lease)
        except LunaError as error:
            tell_failed_release(error)
            raise

    def locked(self):
        """Whether a thread or task of this process holds the lock. Does not ask the device."""
        return self.mutex.held() != 0

    def ensure_held(self):
        """Make sure that the caller still holds the lock; asks the device for a sign of life.

        Raises
        ------
        LockNotOwnedError
            The calling thread or task does not hold it.
        LockLostError
            The device does not answer: a device that lost this application drops its locks.
        """
        check_held(self.mutex, self.lease)

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
        return new_lock(self.mutex, self.lease, self.poll, timeout, self, None)

    def __enter__(self):
        if not self.lease.open:
            check_open(self.lease, self.mutex.slot_id)
        self.mutex.acquire(self.lease, self.poll)
        return self

    def __exit__(self, exc_type, exc_value, traceback):
        end_block(self.mutex, self.lease, exc_value)

    def _is_owned(self):
        # threading.Condition asks this of its lock; it would try a device call otherwise.
        return self.mutex.is_mine()

    def _close(self):
        """The library closes. Where the lock was taken if it was held through it, else None."""
        ended = self.mutex.close_lease(self.lease)
        if ended is None:
            return None
        self.lease.evicted[self.mutex.slot_id], place = ended
        return place

    def __repr__(self):
        state = "locked" if self.mutex.held() else "unlocked"
        if self.mutex.queue.length:
            state += f", {self.mutex.queue.length} waiting"
        return f"<luna_ext.ClusterSlot {self.mutex.slot_id} of {self.lease.path!r}, {state}>"

    def __reduce__(self):
        raise TypeError(
            "a ClusterSlot belongs to its process; send slot_id and use Library.slot() there"
        )
