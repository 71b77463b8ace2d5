"""ClusterSlot: a slot of the cluster and its lock, as `with`, as `async with`, as threading.Lock."""

import asyncio
import logging
import threading
from functools import partial
from types import GenericAlias

cimport cython
from luna_ext cimport calls
from luna_ext.client cimport Client
from luna_ext.cryptoki cimport CK_SLOT_ID
from luna_ext.mutex cimport FAILED, GRANTED, WAITING, SlotMutex, Waiter, mutex_of

from .errors import LibraryClosedError, LockTimeoutError, LunaError

# How long a caller who will not wait for another holder waits for the device's answer. There is
# no try-lock in the SDK: only the answer tells that the lock was free.
ANSWER_SECONDS = 0.25

_log = logging.getLogger("luna_ext")


cdef ClusterSlot new_slot(object library, Client client, unsigned long lease, bint poll,
                          CK_SLOT_ID slot_id):
    cdef ClusterSlot slot = ClusterSlot.__new__(ClusterSlot)
    slot.library = library
    slot.client = client
    slot.mutex = mutex_of(client, slot_id)
    slot.lease = lease
    slot.poll = poll
    return slot


cdef SlotLock new_lock(ClusterSlot slot, object timeout, object target, object check):
    cdef SlotLock lock = SlotLock.__new__(SlotLock)
    lock.slot = slot
    lock.timeout = -1 if timeout is None else seconds_of(timeout)
    lock.target = target
    lock.check = check
    return lock


cdef double seconds_of(object timeout) except? -1:
    """A timeout with threading.Lock's checks."""
    if not isinstance(timeout, (int, float)):
        raise TypeError(f"a timeout is a number of seconds, not {type(timeout).__name__}")
    if not timeout >= 0:
        raise ValueError("timeout value must be a non-negative number")
    if timeout > threading.TIMEOUT_MAX:
        raise OverflowError("timeout value is too large")
    return timeout


cdef int end_block(SlotMutex mutex, object exception) except -1:
    """Unlock at the end of a `with` block, which `exception` may be leaving."""
    try:
        if not mutex.inherited or not mutex.ended_by_fork():
            mutex.release()
    except LunaError as error:
        report_failed_end(exception, error)
    return 0


cdef int report_failed_end(object exception, object error) except -1:
    """The body's exception goes on, with a note; without one, the unlock's own is raised."""
    if exception is None:
        raise error
    exception.add_note(f"luna_ext: at the end of the with block: {error}")
    _log.error("while an exception left a with block: %s", error)
    return 0


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

    def __init__(self):
        raise TypeError("a ClusterSlot comes from Library.slot(), it cannot be made")

    @property
    def slot_id(self):
        """The CK_SLOT_ID."""
        return self.mutex.slot_id

    @property
    def info(self):
        """What the client says about the slot now: a SlotInfo (C_GetSlotInfo)."""
        self.check_open()
        return calls.slot_info(self.client, self.mutex.slot_id)

    @property
    def token_info(self):
        """What the device says about the slot's token now: a TokenInfo (C_GetTokenInfo)."""
        self.check_open()
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
        self.check_open()
        if timeout == -1 and blocking:
            self.mutex.acquire(self.lease, self.poll)
        else:
            if not blocking:
                if timeout != -1:
                    raise ValueError("can't specify a timeout for a non-blocking call")
                seconds = 0
            else:
                seconds = seconds_of(timeout)
            if seconds == 0:
                if self.mutex.state != 0 or self.mutex.waiting != 0:
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
        self.mutex.release()

    def locked(self):
        """Whether a thread or task of this process holds the lock. Does not ask the device."""
        return self.mutex.held()

    def ensure_held(self):
        """Make sure that the caller still holds the lock; asks the device for a sign of life.

        Raises
        ------
        LockNotOwnedError
            The calling thread or task does not hold it.
        LockLostError
            The device does not answer: a device that lost this application drops its locks.
        """
        self.mutex.ensure_held()

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
        return new_lock(self, timeout, self, None)

    def __enter__(self):
        if self.closed:
            self.check_open()
        self.mutex.acquire(self.lease, self.poll)
        return self

    def __exit__(self, exc_type, exc_value, traceback):
        end_block(self.mutex, exc_value)

    def _is_owned(self):
        # threading.Condition asks this of its lock; it would try a device call otherwise.
        return self.mutex.is_mine()

    def _close(self):
        """The library closes. Where the lock was taken if it was held through it, else None."""
        self.closed = True
        return self.mutex.close_lease(self.lease, self.client.path)

    def __repr__(self):
        state = "locked" if self.mutex.held() else "unlocked"
        return f"<luna_ext.ClusterSlot {self.mutex.slot_id} of {self.client.path!r}, {state}>"

    def __reduce__(self):
        raise TypeError(
            "a ClusterSlot belongs to its process; send slot_id and use Library.slot() there"
        )

    cdef int check_open(self) except -1:
        if self.closed:
            raise LibraryClosedError(
                f"the Library for {self.client.path!r} is closed; open a new one to use slot "
                f"{self.mutex.slot_id}",
                slot_id=self.mutex.slot_id,
            )
        return 0


@cython.final
cdef class SlotLock:
    """What `lock(timeout=...)` of a slot or token gives: locks for a ``with`` or ``async with``.

    It may be used again and again, and by several threads and tasks.
    """

    __class_getitem__ = classmethod(GenericAlias)

    def __init__(self):
        raise TypeError("a SlotLock comes from ClusterSlot.lock() or Token.lock()")

    def __enter__(self):
        cdef ClusterSlot slot = self.slot
        slot.check_open()
        if not slot.mutex.acquire_within(slot.lease, slot.poll, self.timeout or ANSWER_SECONDS):
            raise self.timed_out()
        if self.check is not None:
            try:
                self.check()
            except BaseException as error:
                end_block(slot.mutex, error)
                raise
        return self.target

    def __exit__(self, exc_type, exc_value, traceback):
        end_block(self.slot.mutex, exc_value)

    async def __aenter__(self):
        cdef ClusterSlot slot = self.slot
        cdef Waiter waiter
        slot.check_open()
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        answered = loop.create_future()
        waiter = slot.mutex.ask(task, slot.lease, slot.poll, partial(tell, loop, answered))
        timer = None
        try:
            if self.timeout != -1:
                timer = loop.call_later(self.timeout or ANSWER_SECONDS, settle, answered)
            await answered
        except BaseException:
            slot.mutex.withdraw(waiter)
            raise
        finally:
            if timer is not None:
                timer.cancel()
        if waiter.outcome == WAITING:
            slot.mutex.withdraw(waiter)
            raise self.timed_out()
        if waiter.outcome == FAILED:
            raise waiter.error
        if self.check is not None:
            try:
                await on_worker(loop, slot.client.workers, self.check)
            except BaseException as error:
                await self.__aexit__(type(error), error, None)
                raise
        return self.target

    async def __aexit__(self, exc_type, exc_value, traceback):
        cdef SlotMutex mutex = self.slot.mutex
        cdef Waiter waiter = Waiter.__new__(Waiter)
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        waiter.wake = partial(tell, loop, done)
        try:
            if mutex.ended_by_fork():
                return
            mutex.release_for(asyncio.current_task(), waiter)
        except LunaError as error:
            report_failed_end(exc_value, error)
            return
        try:
            await done
        except BaseException as error:
            # The unlock goes on without us; nobody but the log will hear of its failure.
            waiter.wake = bool
            if waiter.outcome == FAILED:
                report_failed_end(error, waiter.error)
            raise
        if waiter.outcome == FAILED:
            report_failed_end(exc_value, waiter.error)

    def timed_out(self):
        slot_id = self.slot.mutex.slot_id
        waited = "at once" if self.timeout == 0 else f"within {self.timeout:g} s"
        return LockTimeoutError(
            f"slot {slot_id} could not be locked {waited}: another thread, process or host holds "
            "it. Nothing is locked; try again, or wait longer",
            function="CA_LockClusteredSlot",
            slot_id=slot_id,
        )

    def __reduce__(self):
        raise TypeError("a SlotLock belongs to its process")


def settle(future):
    if not future.done():
        future.set_result(None)


def tell(loop, future):
    """Settle the future from another thread; False when its loop is closed."""
    try:
        loop.call_soon_threadsafe(settle, future)
    except RuntimeError:
        return False


async def on_worker(loop, workers, function):
    """Run a function that makes device calls on a worker; raise what it raises."""
    done = loop.create_future()
    errors = []

    def job():
        try:
            function()
        except BaseException as error:
            errors.append(error)
        tell(loop, done)

    workers.run(job)
    await done
    if errors:
        raise errors[0]
