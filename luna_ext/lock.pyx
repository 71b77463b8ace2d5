"""SlotLock: a slot's lock with a timeout, for `with` and `async with`; how a block ends."""

import operator
import threading
from functools import partial
from types import GenericAlias

cimport cython

from luna_ext.client cimport Lease
from luna_ext.cryptoki cimport CK_SLOT_ID
from luna_ext.mutex cimport SlotMutex
from luna_ext.reports cimport LONG_WAIT_SECONDS, tell_failed_release, warn_of_wait
from luna_ext.waiters cimport FAILED, WAITING, Waiter
from luna_ext.workers cimport Workers

from . import lock_errors
from .errors import LockTimeoutError, LunaError
from .tasks import current_task, running_loop, running_task, settled_within, tell

cdef extern from "Python.h":
    unsigned long PyThread_get_thread_ident() noexcept nogil

# How long a caller who will not wait for another holder waits for the device's answer. There is
# no try-lock in the SDK: only the answer tells that the lock was free.
ANSWER_SECONDS = 0.25

# Known only here: a SlotLock comes from a slot or token, never from its class.
cdef object _KEY = object()


cdef SlotLock new_lock(SlotMutex mutex, Lease lease, bint poll, object timeout, object target,
                       object check):
    cdef SlotLock lock = SlotLock.__new__(SlotLock, _KEY)
    lock.mutex = mutex
    lock.lease = lease
    lock.poll = poll
    lock.timeout = -1 if timeout is None else seconds_of(timeout)
    lock.target = target
    lock.check = check
    return lock


cdef double seconds_of(object timeout) except? -1:
    """A timeout with threading.Lock's checks."""
    if not isinstance(timeout, float):
        try:
            timeout = operator.index(timeout)
        except TypeError:
            raise TypeError(
                f"a timeout is a number of seconds, not {type(timeout).__name__}"
            ) from None
    if abs(timeout) > threading.TIMEOUT_MAX:
        raise OverflowError("timeout value is too large")
    if not timeout >= 0:
        raise ValueError("timeout value must be a non-negative number")
    return timeout


cdef int check_open(Lease lease, CK_SLOT_ID slot_id) except -1:
    if not lease.open:
        raise lock_errors.closed(slot_id, lease.path)
    return 0


cdef int check_evicted(SlotMutex mutex, Lease lease, str function) except -1:
    """Tell the holder whose lock the library's close() has released."""
    holder = lease.evicted.get(mutex.slot_id)
    if holder is not None and holder in (PyThread_get_thread_ident(), current_task()):
        raise lock_errors.lost(mutex.slot_id, "its Library was closed", function=function)
    return 0


cdef bytes check_held(SlotMutex mutex, Lease lease):
    """Raise unless the caller holds the lock; the 32 bytes of the token's label."""
    if not lease.open:
        check_evicted(mutex, lease, "C_GetTokenInfo")
    return mutex.ensure_held()


cdef int end_block(SlotMutex mutex, Lease lease, object exception) except -1:
    """Unlock at the end of a `with` block, which `exception` may be leaving."""
    try:
        if not lease.open:
            check_evicted(mutex, lease, "CA_UnlockClusteredSlot")
        if not mutex.inherited or not mutex.ended_by_fork():
            mutex.release(lease)
    except LunaError as error:
        tell_failed_release(error)
        note_or_raise(exception, error)
    return 0


cdef int note_or_raise(object exception, object error) except -1:
    """The body's exception goes on, with a note; without one, the unlock's own is raised."""
    if exception is None:
        raise error
    exception.add_note(f"luna_ext: at the end of the with block: {error}")
    return 0


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
        check_open(self.lease, self.mutex.slot_id)
        if self.timeout == 0 and not self.mutex.is_free():
            self.mutex.refuse_reentry()
            raise self.timed_out()
        if not self.mutex.acquire_within(self.lease, self.poll, self.timeout or ANSWER_SECONDS):
            raise self.timed_out()
        if self.check is not None:
            try:
                self.check()
            except BaseException as error:
                end_block(self.mutex, self.lease, error)
                raise
        return self.target

    def __exit__(self, exc_type, exc_value, traceback):
        end_block(self.mutex, self.lease, exc_value)

    async def __aenter__(self):
        cdef Waiter waiter
        check_open(self.lease, self.mutex.slot_id)
        loop, task = running_task()
        if self.timeout == 0 and not self.mutex.is_free():
            self.mutex.refuse_reentry(task)
            raise self.timed_out()
        answered = loop.create_future()
        waiter = self.mutex.ask(task, self.lease, self.poll, partial(tell, loop, answered))
        try:
            await settled_within(
                answered,
                self.timeout or ANSWER_SECONDS,
                LONG_WAIT_SECONDS,
                partial(warn, waiter, self.mutex.slot_id),
            )
        except BaseException:
            self.mutex.withdraw(waiter)
            raise
        if waiter.outcome == WAITING:
            self.mutex.withdraw(waiter)
            raise self.timed_out()
        if waiter.outcome == FAILED:
            raise waiter.error
        self.mutex.confirm(task, self.lease, &waiter.wait)
        self.task = task
        if self.check is not None:
            try:
                await on_worker(loop, self.lease.client.workers, self.check)
            except BaseException as error:
                await self.__aexit__(type(error), error, None)
                raise
        return self.target

    async def __aexit__(self, exc_type, exc_value, traceback):
        # Not the current task: a coroutine may be closed by another one, or by none.
        task, self.task = self.task, None
        await end_task_block(self.mutex, self.lease, task, exc_type, exc_value)

    def timed_out(self):
        slot_id = self.mutex.slot_id
        waited = "at once" if self.timeout == 0 else f"within {self.timeout:g} s"
        return LockTimeoutError(
            f"slot {slot_id} could not be locked {waited}: another thread, process or host holds "
            "it. Nothing is locked; try again, or wait longer",
            function="CA_LockClusteredSlot",
            slot_id=slot_id,
        )

    def __reduce__(self):
        raise TypeError("a SlotLock belongs to its process")


async def end_task_block(SlotMutex mutex, Lease lease, task, exc_type, exc_value):
    """Unlock at the end of the task's `async with` block."""
    cdef Waiter waiter
    if mutex.inherited and mutex.owner_task is not task and mutex.ended_by_fork():
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
        if not lease.open:
            check_evicted(mutex, lease, "CA_UnlockClusteredSlot")
        mutex.release_task(task, waiter)
    except LunaError as error:
        note_or_raise(exc_value, error)
        return
    if done is None:
        return
    try:
        await done
    except BaseException as error:
        # Nobody but the log, and this exception's notes, will hear of a failure.
        waiter.wake = nobody
        if waiter.outcome == FAILED:
            note_or_raise(error, waiter.error)
        raise
    if waiter.outcome == FAILED:
        note_or_raise(exc_value, waiter.error)


def warn(Waiter waiter not None, slot_id):
    warn_of_wait(&waiter.wait, slot_id)


def nobody():
    """The wake of a waiter that does not wait."""
    return False


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
