"""The lock of one slot in this process: who holds it, who waits, which device call is under way.

The device's owner is the application, so it may not keep this process's threads apart. That is
done here: per slot there is one holder, at most one lock call on its way to the device, and a
queue. The GIL is what protects the state. It changes only in stretches that neither run Python
code nor allocate objects that the garbage collector tracks, for both may let other threads in.
"""

import logging
import threading
import time

cimport cython

from luna_ext.calls cimport lock_slot, token_label, unlock_slot
from luna_ext.client cimport (
    CA_LOCK_CLUSTERED_SLOT,
    CA_UNLOCK_CLUSTERED_SLOT,
    READY,
    Client,
    Lease,
    error_of,
)
from luna_ext.cryptoki cimport (
    CK_RV,
    CK_SLOT_ID,
    CKR_DEVICE_ERROR,
    CKR_OK,
)
from luna_ext.hold cimport LOCKING, OWNED, RELEASING, Hold
from luna_ext.waiters cimport FAILED, GRANTED, TURN, WAITING, WITHDRAWN, Outcome, Waiter, WaitQueue

from . import lock_errors
from .backoff import delays
from .errors import CryptokiError, LibraryClosedError
from .lock_errors import may_pass, means_lost
from .tasks import current_task, running_loop, runs_here

cdef extern from "Python.h":
    """
    /* The exception that PyErr_CheckSignals() has set already, if so, for Cython to catch. */
    static int luna_raise_pending(void) {
        return PyErr_Occurred() != NULL ? -1 : 0;
    }
    #ifdef _WIN32
    #include <windows.h>
    #define luna_pause() Sleep(1)
    #else
    #include <time.h>
    static void luna_pause(void) {
        struct timespec pause = {0, 200000};
        nanosleep(&pause, NULL);
    }
    #endif
    """
    unsigned long PyThread_get_thread_ident() noexcept nogil
    int PyErr_CheckSignals() noexcept
    int luna_raise_pending() except -1
    void luna_pause() noexcept nogil

# How long a claim waits for the answer of a lock call for the very slot that it was given.
SETTLE_SECONDS = 2.0
# How long a release waits itself for a claim that may have been given the same slot, before it
# leaves the unlock to a worker.
CLAIM_SECONDS = 0.05

_log = logging.getLogger("luna_ext")


cdef SlotMutex mutex_of(Client client, CK_SLOT_ID slot_id):
    """The one SlotMutex of a slot in this process."""
    mutex = client.mutexes.get(slot_id)
    if mutex is None:
        mutex = client.mutexes.setdefault(slot_id, SlotMutex.__new__(SlotMutex, client, slot_id))
    return <SlotMutex> mutex


@cython.final
cdef class SlotMutex(Hold):
    """See the module."""

    def __cinit__(self, Client client not None, slot_id):
        self.queue = WaitQueue.__new__(WaitQueue)

    # ---- acquiring ----

    cdef int acquire(self, Lease lease, bint poll) except -1:
        """Lock, however long it takes, with the device call on the caller's own thread."""
        cdef unsigned long me = PyThread_get_thread_ident()
        if self.client.lock_clustered_slot == NULL or self.client.unlock_clustered_slot == NULL:
            self._need_functions(lease)
        if self.state != 0 or self.queue.length != 0:
            return self._wait_turn(me, lease, poll, False)
        self.state = LOCKING
        self.caller = me
        return self._call_device(me, lease, poll)

    cdef bint acquire_within(self, Lease lease, bint poll, double seconds) except -1:
        """Lock with the device call on a worker, so that the caller can give up; -1: never.

        Whether the lock was granted in time.
        """
        signal = threading.Lock()
        signal.acquire()
        cdef Waiter waiter = self.ask(PyThread_get_thread_ident(), lease, poll, signal.release)
        try:
            signal.acquire(timeout=seconds)
        except BaseException:
            self.withdraw(waiter)
            raise
        if waiter.outcome == WAITING:
            self.withdraw(waiter)
            return False
        if waiter.outcome == FAILED:
            raise waiter.error
        self.confirm(waiter.key, lease)
        return True

    cdef Waiter ask(self, object key, Lease lease, bint poll, object wake):
        """Queue up for a lock that a worker gets. Whoever asks has to withdraw() or release."""
        self._need_functions(lease)
        self._refuse_reentry(key)
        cdef Waiter waiter = Waiter.__new__(Waiter)
        waiter.key = key
        waiter.lease = lease
        waiter.poll = poll
        waiter.wake = wake
        self._enqueue(waiter, False)
        return waiter

    cdef int withdraw(self, Waiter waiter) except -1:
        """The waiter gives up. A grant that it has been given already goes back."""
        if waiter.outcome == WAITING:
            self.queue.remove(waiter)
        elif waiter.outcome == TURN:
            self.caller = 0
            self.state &= ~LOCKING
            self._pass_turn()
        elif waiter.outcome == GRANTED:
            waiter.outcome = WITHDRAWN
            # Unless close() has been faster.
            if self._is_owned_by(waiter.key):
                self._leave_later()
        return 0

    cdef bint adopt(self, Lease lease) except -1:
        """Own the lock that CA_GetUnassignedSlot has set; False when it is somebody's already.

        If a lock call for this very slot is on its way, its answer is awaited for a moment: a
        device that grants a process its own lock again would answer at once, and then the slot is
        the caller's of that. No signal handler runs meanwhile.
        """
        cdef double until
        if self.calling:
            until = time.monotonic() + SETTLE_SECONDS
            while self.calling and time.monotonic() < until:
                with nogil:
                    luna_pause()
        if self.state & OWNED:
            return False
        self.own_by_thread(PyThread_get_thread_ident(), lease)
        return True

    def _need_functions(self, Lease lease):
        # Without the unlock function a lock would never come off: refuse both together.
        self.client.need(CA_LOCK_CLUSTERED_SLOT, lease.path)
        self.client.need(CA_UNLOCK_CLUSTERED_SLOT, lease.path)

    cdef int _wait_turn(self, unsigned long me, Lease lease, bint poll, bint first) except -1:
        self._refuse_reentry(me)
        signal = threading.Lock()
        signal.acquire()
        cdef Waiter waiter = Waiter.__new__(Waiter)
        waiter.key = me
        waiter.lease = lease
        waiter.own_call = True
        waiter.poll = poll
        waiter.wake = signal.release
        self._enqueue(waiter, first)
        try:
            signal.acquire()
        except BaseException:
            self.withdraw(waiter)
            raise
        if waiter.outcome == FAILED:
            raise waiter.error
        if waiter.outcome == TURN:
            return self._call_device(me, lease, poll)
        return self.confirm(me, lease)

    cdef int _call_device(self, unsigned long me, Lease lease, bint poll) except -1:
        """Make the lock call on this thread; LOCKING is set and `caller` is this thread."""
        cdef CK_RV rv = CKR_OK
        if self.state != LOCKING:
            # A claim came back with this slot before this thread took its turn. It holds the lock,
            # or its unlock is on the way, which must not meet our call at the device.
            self.caller = 0
            self.state &= ~LOCKING
            return self._wait_turn(me, lease, poll, True)
        if self.client.state == READY and lease.open:
            # The call cannot raise then. This is the fast path, on which a `try` is felt.
            self.calling = True
            rv = lock_slot(self.client, self.slot_id)
            self.calling = False
            if rv != CKR_OK:
                rv = self._insist(lease, poll, rv, True)
        else:
            rv = self._insist(lease, poll, rv, False)
        self.caller = 0
        self.state &= ~LOCKING
        if self.state & OWNED or rv != CKR_OK:
            # A claim came back with this slot first. If the device has granted this call as well,
            # that grant is handed over when the claim ends.
            if rv == CKR_OK:
                self._keep_spare_grant()
            return self._wait_turn(me, lease, poll, True)
        self.own_by_thread(me, lease)
        # A signal that came during the call is seen here, where nothing can be left locked: after
        # the return of acquire() the caller has no chance to release.
        if PyErr_CheckSignals() != 0 or not lease.open:
            self._take_back(me, lease)
        return 0

    cdef CK_RV _insist(self, Lease lease, bint poll, CK_RV rv, bint asked) except? 0xFFFFFFFF:
        """Make the lock call again and again, while the answer means "not now".

        `asked`: it was made once, and `rv` is the answer. Gives CKR_OK, or an error if a claim has
        come back with this slot meanwhile; raises any other.
        """
        try:
            self._check_lease(lease)
            if not asked:
                rv = self._lock_call()
            for delay in delays():
                if rv == CKR_OK:
                    break
                if not may_pass(rv, poll):
                    raise error_of(rv, CA_LOCK_CLUSTERED_SLOT, self.slot_id)
                time.sleep(delay)
                if self.state != LOCKING:
                    break
                rv = self._lock_call()
        except BaseException:
            self.caller = 0
            self.state &= ~LOCKING
            self._pass_turn()
            raise
        return rv

    cdef CK_RV _lock_call(self) except? 0xFFFFFFFF:
        cdef CK_RV rv
        self.calling = True
        try:
            rv = lock_slot(self.client, self.slot_id)
        finally:
            self.calling = False
        return rv

    cdef int confirm(self, object key, Lease lease) except -1:
        """What was granted is not taken if a signal handler raises, or the library has closed."""
        if PyErr_CheckSignals() != 0 or not lease.open:
            self._take_back(key, lease)
        return 0

    cdef int _take_back(self, object key, Lease lease) except -1:
        """Unlock what `key` holds, unless close() has; raise why."""
        try:
            luna_raise_pending()
        except BaseException:
            if self._is_owned_by(key):
                self._leave_later()
            raise
        if not lease.open and self._is_owned_by(key):
            self._begin_leave()
            self._finish_leave_quietly(True)
        return self._check_lease(lease)

    cdef bint _is_owned_by(self, object key) except -1:
        if not self.state & OWNED:
            return False
        return self.owner == key if isinstance(key, int) else self.owner_task is key

    cdef int _check_lease(self, Lease lease) except -1:
        if not lease.open:
            raise lock_errors.closed(self.slot_id, lease.path)
        return 0

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

    cdef int _keep_spare_grant(self) except -1:
        self.spare_grant = True
        self.spare_session = self.client.session
        return 0

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

    # ---- releasing ----

    cdef int release(self, Lease lease) except -1:
        """Unlock; only the thread that holds the lock may, and through the same Library."""
        if (
            not self.state & OWNED
            or self.owner != PyThread_get_thread_ident()
            or self.lease is not lease
        ):
            self.check_mine("CA_UnlockClusteredSlot")
            raise lock_errors.not_owned(
                self.slot_id,
                "it was locked by `async with`, or through another Library, and is released there",
                "CA_UnlockClusteredSlot",
            )
        self._begin_leave()
        return self._finish_leave(True)

    cdef int release_task(self, object key, Waiter waiter) except -1:
        """Unlock on a worker on behalf of a task; the waiter is settled when that is done."""
        if key is None or not self.state & OWNED or self.owner_task is not key:
            raise lock_errors.not_owned(
                self.slot_id, "this `async with` does not hold it", "CA_UnlockClusteredSlot"
            )
        self._begin_leave()

        def leave():
            try:
                self._finish_leave(False)
            except BaseException as error:
                waiter.error = error
                waiter.outcome = FAILED
            else:
                waiter.outcome = GRANTED
            if waiter.wake() is False and waiter.error is not None:
                _log.error("slot %d: %s", self.slot_id, waiter.error)
            self.client.call_came_back()

        self._on_worker(leave)
        return 0

    cdef int _begin_leave(self) except -1:
        """Nobody's lock any more, but still on: nobody else may own it yet."""
        self.owner = 0
        self.owner_task = None
        self.place_code = None
        return 0

    cdef int _finish_leave(self, bint may_wait_on_worker) except -1:
        """After _begin_leave(): hand the device's lock over, or take it off."""
        cdef str lost
        # A claim that was under way before this hold began may have been given this very slot, and
        # the device may have granted us its lock a second time. Until the claim has seen that the
        # slot is taken, an unlock would take its lock away. Most often it comes back in a moment.
        if self.client.claims.oldest != 0 and self.client.claims.others(self.claims_before):
            until = time.monotonic() + CLAIM_SECONDS
            while self.client.claims.others(self.claims_before):
                if may_wait_on_worker and time.monotonic() > until:
                    self._on_worker(self._finish_leave_quietly)
                    return 0
                with nogil:
                    luna_pause()
        lost = self.lost
        self.lost = None
        if self.spare_session != self.client.session:
            self.spare_grant = False
        if self.session != self.client.session and not self.spare_grant:
            # The client was finalised since, which dropped the lock; by now it may be another's.
            lost = lost or "its library was closed"
        if lost is not None:
            self.spare_grant = False
            self.state &= ~OWNED
            self._pass_turn()
            raise lock_errors.lost(self.slot_id, lost)
        if self.spare_grant:
            self.spare_grant = False
            if self.queue.head is not None:
                return self._hand_over(OWNED)
        self.state = (self.state & ~OWNED) + RELEASING
        return self._unlock()

    cdef int _unlock(self) except -1:
        """Make the unlock call; RELEASING has been counted."""
        cdef CK_RV rv = CKR_OK
        # Looked at before, for the call cannot raise then; the next line but one must be reached.
        cdef bint answers = self.client.answers
        if answers:
            rv = unlock_slot(self.client, self.slot_id)
        self.state -= RELEASING
        if self.queue.head is not None:
            self._pass_turn()
        if not answers:
            raise lock_errors.lost(self.slot_id, "its library was closed")
        if rv != CKR_OK:
            raise self._unlock_error(rv)
        return 0

    def _unlock_error(self, CK_RV rv):
        """Why an unlock failed: is the connection gone, and the lock with it?"""
        cause = error_of(rv, CA_UNLOCK_CLUSTERED_SLOT, self.slot_id)
        try:
            token_label(self.client, self.slot_id)
        except CryptokiError as error:
            if means_lost(error):
                why = f"the unlock failed ({cause.rv_name}), the next call too ({error.rv_name})"
                lost = lock_errors.lost(self.slot_id, why, rv=rv)
                lost.__cause__ = cause
                return lost
        except LibraryClosedError:
            pass
        return lock_errors.release_failed(cause)

    cdef int _leave_later(self) except -1:
        """Give back, on a worker, a grant that its owner cannot take."""
        self._begin_leave()
        self._on_worker(self._finish_leave_quietly)
        return 0

    def _finish_leave_quietly(self, bint may_wait_on_worker=False):
        try:
            self._finish_leave(may_wait_on_worker)
        except BaseException as error:
            # A client library that has been finalised has dropped its locks.
            if self.client.answers and self.session == self.client.session:
                _log.error("a lock that nobody could release any more: %s", error)
        self.client.call_came_back()

    def _on_worker(self, job):
        try:
            self.client.workers.run(job)
        except (RuntimeError, MemoryError):
            # No thread can be had (the interpreter is going down); later is never.
            job()

    # ---- while it is held ----

    cdef int begin_work(self) except -1:
        """Calls begin that rely on the lock: close() must not take it off in their midst."""
        self.busy += 1
        return 0

    cdef int end_work(self) except -1:
        # 0 already if a signal handler has forked in their midst, and this is the child.
        if self.busy > 0:
            self.busy -= 1
        if self.evicted and self.busy == 0:
            self.evicted = False
            self._begin_leave()
            self._finish_leave_quietly(True)
        return 0

    # ---- losing it ----

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
