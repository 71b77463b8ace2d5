"""ClusterSlot: a slot of the cluster and its lock, for `with`, `async with` and by hand."""

import logging
import sys
import threading
from functools import partial
from types import GenericAlias

cimport cython
from luna_ext cimport calls
from luna_ext.client cimport Lease
from luna_ext.cryptoki cimport CK_SLOT_ID
from luna_ext.mutex cimport FAILED, WAITING, SlotMutex, Waiter, mutex_of
from luna_ext.workers cimport Workers

from .errors import LibraryClosedError, LockTimeoutError, LunaError
from .mutex import current_task

cdef extern from "Python.h":
    unsigned long PyThread_get_thread_ident() noexcept nogil

# How long a caller who will not wait for another holder waits for the device's answer. There is
# no try-lock in the SDK: only the answer tells that the lock was free.
ANSWER_SECONDS = 0.25

_log = logging.getLogger("luna_ext")


# Known only here: slots and locks come from a Library, never from their classes.
_KEY = object()


cdef ClusterSlot new_slot(object library, Lease lease, bint poll, CK_SLOT_ID slot_id):
    cdef ClusterSlot slot = ClusterSlot.__new__(ClusterSlot, _KEY)
    slot.library = library
    slot.client = lease.client
    slot.mutex = mutex_of(lease.client, slot_id)
    slot.lease = lease
    slot.poll = poll
    return slot


cdef SlotLock new_lock(ClusterSlot slot, object timeout, object target, object check):
    cdef SlotLock lock = SlotLock.__new__(SlotLock, _KEY)
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


cdef int end_block(ClusterSlot slot, object exception) except -1:
    """Unlock at the end of a `with` block, which `exception` may be leaving."""
    cdef SlotMutex mutex = slot.mutex
    try:
        if not mutex.inherited or not mutex.ended_by_fork():
            if slot.closed:
                slot.check_evicted("CA_UnlockClusteredSlot")
            mutex.release(slot.lease)
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
        if self.closed:
            self.check_evicted("CA_UnlockClusteredSlot")
        self.mutex.release(self.lease)

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
        self.check_held()

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
        end_block(self, exc_value)

    def _is_owned(self):
        # threading.Condition asks this of its lock; it would try a device call otherwise.
        return self.mutex.is_mine()

    def _close(self):
        """The library closes. Where the lock was taken if it was held through it, else None."""
        self.closed = True
        ended = self.mutex.close_lease(self.lease)
        if ended is None:
            return None
        self.evicted, place = ended
        return place

    def __repr__(self):
        state = "locked" if self.mutex.held() else "unlocked"
        if self.mutex.waiting:
            state += f", {self.mutex.waiting} waiting"
        return f"<luna_ext.ClusterSlot {self.mutex.slot_id} of {self.lease.path!r}, {state}>"

    def __reduce__(self):
        raise TypeError(
            "a ClusterSlot belongs to its process; send slot_id and use Library.slot() there"
        )

    cdef int check_open(self) except -1:
        if self.closed:
            raise LibraryClosedError(
                f"the Library for {self.lease.path!r} is closed; open a new one to use slot "
                f"{self.mutex.slot_id}",
                slot_id=self.mutex.slot_id,
            )
        return 0

    cdef int check_evicted(self, str function) except -1:
        """Tell the holder whose lock the library's close() has released."""
        if self.evicted is not None and self.evicted in (
            PyThread_get_thread_ident(),
            current_task(),
        ):
            raise self.mutex.lost_error("its Library was closed", None, function)
        return 0

    cdef bytes check_held(self):
        """Raise unless the caller holds the lock; the 32 bytes of the token's label."""
        if self.closed:
            self.check_evicted("C_GetTokenInfo")
        return self.mutex.ensure_held()


@cython.final
cdef class SlotLock:
    """What `lock(timeout=...)` of a slot or token gives: locks for a ``with`` or ``async with``.

    It may be used again and again, and by several threads and tasks.
    """

    __class_getitem__ = classmethod(GenericAlias)

    def __cinit__(self, key=None):
        if key is not _KEY:
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
                end_block(slot, error)
                raise
        return self.target

    def __exit__(self, exc_type, exc_value, traceback):
        end_block(self.slot, exc_value)

    async def __aenter__(self):
        cdef ClusterSlot slot = self.slot
        cdef Waiter waiter
        slot.check_open()
        asyncio = sys.modules["asyncio"]
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("`async with` on a lock works inside an asyncio task")
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
        self.task = task
        if self.check is not None:
            try:
                await on_worker(loop, slot.client.workers, self.check)
            except BaseException as error:
                await self.__aexit__(type(error), error, None)
                raise
        return self.target

    async def __aexit__(self, exc_type, exc_value, traceback):
        cdef SlotMutex mutex = self.slot.mutex
        cdef Waiter waiter
        # Not the current task: a coroutine may be closed by another one, or by none.
        task, self.task = self.task, None
        if mutex.inherited and mutex.ended_by_fork():
            return
        waiter = Waiter.__new__(Waiter)
        waiter.wake = nobody
        done = None
        # A coroutine that is being closed must not wait any more; the unlock goes on without it.
        if exc_type is not GeneratorExit:
            loop = running_loop()
            if loop is not None:
                done = loop.create_future()
                waiter.wake = partial(tell, loop, done)
        try:
            if self.slot.closed:
                self.slot.check_evicted("CA_UnlockClusteredSlot")
            mutex.release_task(task, waiter)
        except LunaError as error:
            report_failed_end(exc_value, error)
            return
        if done is None:
            return
        try:
            await done
        except BaseException as error:
            # Nobody but the log, or this exception, will hear of a failure.
            waiter.wake = nobody
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


def nobody():
    """The wake of a waiter that does not wait."""
    return False


def running_loop():
    try:
        return sys.modules["asyncio"].get_running_loop()
    except RuntimeError:
        return None


async def on_worker(loop, Workers workers, function):
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
