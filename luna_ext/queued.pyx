"""Who waits for a slot's lock in this process, and who of them gets it.

The state changes by the rules that mutex.pyx gives.
"""

import time

from libc.stdint cimport uint64_t

from luna_ext.calls cimport lock_slot
from luna_ext.client cimport Client, Lease
from luna_ext.cryptoki cimport CK_RV, CKR_DEVICE_ERROR, CKR_OK
from luna_ext.functions cimport CA_LOCK_CLUSTERED_SLOT, error_of
from luna_ext.hold cimport LOCKING, OWNED
from luna_ext.releasing cimport ReleasableHold
from luna_ext.waiters cimport (
    FAILED,
    GRANTED,
    TURN,
    WAITING,
    WITHDRAWN,
    Outcome,
    Waiter,
    WaitQueue,
)

from . import lock_errors
from .backoff import delays
from .lock_errors import may_pass
from .tasks import current_task, running_loop, runs_here

cdef extern from "Python.h":
    unsigned long PyThread_get_thread_ident() noexcept nogil


cdef class QueuedHold(ReleasableHold):
    """A Hold that others wait for: one lock call at a time is made for them."""

    def __cinit__(self, Client client not None, slot_id):
        self.queue = WaitQueue.__new__(WaitQueue)

    # ---- the lock call ----

    cdef CK_RV _lock_call(self) except? 0xFFFFFFFF:
        cdef CK_RV rv
        cdef uint64_t nanoseconds
        self.calling = True
        try:
            rv = lock_slot(self.client, self.slot_id, &nanoseconds)
        finally:
            self.calling = False
        return rv

    def lock_on_worker(self):
        """Make the lock call for whoever waits first when it comes back."""
        cdef Waiter first
        cdef CK_RV rv = CKR_DEVICE_ERROR
        try:
            for delay in delays():
                # Not while a claim has the slot, nor while its unlock is on the way.
                if self.state != LOCKING:
                    break
                rv = self._lock_call()
                first = self.queue.head
                if rv == CKR_OK or first is None:
                    break
                if not may_pass(rv, first.poll):
                    raise error_of(rv, CA_LOCK_CLUSTERED_SLOT, self.slot_id)
                time.sleep(delay)
                if self.queue.head is None:
                    break
        except BaseException as error:
            self.state &= ~LOCKING
            first = self.queue.head
            if first is not None and not first.own_call:
                self._settle(first, FAILED, error)
        else:
            if rv != CKR_OK:
                self.state &= ~LOCKING
            elif self.state & OWNED:
                self._keep_spare_grant()
                self.state &= ~LOCKING
            else:
                self._hand_over(LOCKING)
        self._pass_turn()
        self.client.call_came_back()

    # ---- the queue ----

    cdef int _enqueue(self, Waiter waiter, bint first) except -1:
        self.queue.push(waiter, first)
        return self._pass_turn()

    cdef int _pass_turn(self) except -1:
        """If nobody holds the lock and no call is out, see to it that the first waiter gets it."""
        cdef Waiter first = self.queue.head
        if self.state != 0 or first is None:
            return 0
        self.state = LOCKING
        if first.own_call:
            self.caller = first.key
            self._settle(first, TURN, None)
            return 0
        try:
            self.client.workers.run(self.lock_on_worker)
        except (RuntimeError, MemoryError) as error:
            # No thread can be had. Whoever waits next may be able to make the call itself.
            self.state &= ~LOCKING
            if first.outcome == WAITING:
                self._settle(first, FAILED, error)
            self._pass_turn()
        return 0

    cdef int _hand_over(self, int bit) except -1:
        """The device's lock is on; `bit` of the state stands for it. The first waiter owns it now,
        or it comes off.
        """
        cdef Waiter first
        while self.queue.head is not None:
            first = self.queue.head
            self.state &= ~bit
            bit = OWNED
            self.own(first.key, first.lease)
            # While it was being told, it may have gone and given the lock back itself.
            if self._settle(first, GRANTED, None) or first.outcome != GRANTED:
                return 0
            first.outcome = WITHDRAWN
            self._begin_leave()
        self.state &= ~bit
        self.own_by_thread(0, None)
        self._finish_leave_quietly(True)
        return 0

    cdef bint _hand_over_spare_grant(self) except -1:
        """The device has granted the lock twice, and the first one has no use for it any more."""
        if self.queue.head is None:
            return False
        self._hand_over(OWNED)
        return True

    cdef int _settle(self, Waiter waiter, Outcome outcome, object error) except -1:
        """End a wait. 0 when nobody listens any more."""
        self.queue.remove(waiter)
        waiter.outcome = outcome
        waiter.error = error
        try:
            return waiter.wake() is not False
        except BaseException:
            # A signal handler raised while an event loop was told. The waiter must hear of it.
            waiter.wake()
            raise

    cdef int _refuse_reentry(self, object key) except -1:
        cdef unsigned long me = PyThread_get_thread_ident()
        cdef bint thread = isinstance(key, int)
        if self.state & OWNED and self.owner == me:
            what = "this thread holds the lock already"
            if not thread:
                what += ", by a plain `with`; where tasks share a lock, all need `async with`"
        elif key in self.queue.keys or (thread and self.state & LOCKING and self.caller == me):
            what = "the caller waits for this lock already"
        elif self.owner_task is not None and self.owner_task is current_task():
            what = "this task holds the lock already"
        elif thread and running_loop() is not None and self._tasks_here():
            what = (
                "tasks of this thread's event loop hold the lock or wait for it, and could not go "
                "on while the loop is blocked; use `async with slot.lock()`"
            )
        else:
            return 0
        raise lock_errors.reentry(self.slot_id, what)

    cdef bint _tasks_here(self) except -1:
        """Whether a task of the event loop that this thread runs holds the lock or waits for it."""
        if self.owner_task is not None and runs_here(self.owner_task):
            return True
        return any(not isinstance(key, int) and runs_here(key) for key in tuple(self.queue.keys))

    # ---- losing it ----

    cdef int _check_lease(self, Lease lease) except -1:
        if not lease.open:
            raise lock_errors.closed(self.slot_id, lease.path)
        return 0

    def close_lease(self, Lease lease):
        """The Library of this lease has closed: its waiters fail, its hold ends.

        If it was held: the holder's key, and where the lock was taken. Else None.
        """
        cdef Waiter waiter = self.queue.head
        cdef unsigned long owner
        while waiter is not None:
            if waiter.lease is lease:
                self._settle(
                    waiter, FAILED, lock_errors.closed(self.slot_id, lease.path)
                )
                # Telling it may have let others in: look at the queue from its beginning.
                waiter = self.queue.head
            else:
                waiter = waiter.behind
        # Without an owner somebody is giving it back already.
        if not self.state & OWNED or self.lease is not lease or (
            self.owner == 0 and self.owner_task is None
        ):
            return None
        place = self.place()
        owner = self.owner
        holder = self.owner_task if owner == 0 else owner
        # The holder may never come back to release, so it must not keep others out.
        self._begin_leave()
        if self.lost is not None:
            self.lost = None
            self.state &= ~OWNED
            self._pass_turn()
        elif self.busy:
            self.evicted = True
        else:
            self._finish_leave_quietly(True)
        return holder, place

    def is_free(self):
        """Whether nobody in this process holds the lock, waits for it or is asking for it."""
        return self.state == 0 and self.queue.length == 0

    def refuse_reentry(self, task=None):
        """Raise if the caller holds the lock or waits for it already."""
        self._refuse_reentry(PyThread_get_thread_ident() if task is None else task)

    def is_abandoned(self):
        """Whether a lock call is in flight for which nobody waits."""
        return self.calling and self.caller == 0 and self.queue.length == 0

    def after_fork(self):
        """In the child nothing is held: the application that holds the lock is the parent."""
        self.forget()
        self.calling = False
        self.caller = 0
        self.spare_grant = False
        self.busy = 0
        self.evicted = False
        self.queue = WaitQueue.__new__(WaitQueue)
