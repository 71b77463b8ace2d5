"""The lock of one slot in this process: who holds it, who waits, which device call is under way.

The device's owner is the application, so it may not keep this process's threads apart. That is
done here: per slot there is one holder, at most one lock call on its way to the device, and a
queue. The GIL is what protects the state. It changes only in stretches that neither run Python
code nor allocate objects that the garbage collector tracks, for both may let other threads in.
"""

import threading
import time

cimport cython
from libc.stdint cimport uint64_t

from luna_ext.calls cimport lock_slot
from luna_ext.client cimport READY, Client, Lease
from luna_ext.clock cimport luna_now, luna_pause
from luna_ext.cryptoki cimport CK_RV, CK_SLOT_ID, CKR_OK
from luna_ext.functions cimport CA_LOCK_CLUSTERED_SLOT, CA_UNLOCK_CLUSTERED_SLOT, error_of
from luna_ext.hold cimport LOCKING, OWNED
from luna_ext.pending cimport luna_raise_pending
from luna_ext.queued cimport QueuedHold
from luna_ext.reports cimport (
    LONG_WAIT_SECONDS,
    PySys_Audit,
    Wait,
    begin_wait,
    end_wait,
    warn_of_wait,
)
from luna_ext.waiters cimport FAILED, GRANTED, TURN, WAITING, WITHDRAWN, Waiter, sit_out

from .backoff import delays
from .lock_errors import may_pass

cdef extern from "Python.h":
    unsigned long PyThread_get_thread_ident() noexcept nogil
    int PyErr_CheckSignals() noexcept

cdef uint64_t LONG_WAIT_NANOSECONDS = LONG_WAIT_SECONDS * 1000000000ULL

# How long a claim waits for the answer of a lock call for the very slot that it was given.
SETTLE_SECONDS = 2.0

cdef SlotMutex mutex_of(Client client, CK_SLOT_ID slot_id):
    """The one SlotMutex of a slot in this process."""
    mutex = client.mutexes.get(slot_id)
    if mutex is None:
        mutex = client.mutexes.setdefault(slot_id, SlotMutex.__new__(SlotMutex, client, slot_id))
    return <SlotMutex> mutex


@cython.final
cdef class SlotMutex(QueuedHold):
    """See the module."""

    cdef int acquire(self, Lease lease, bint poll) except -1:
        """Lock, however long it takes, with the device call on the caller's own thread."""
        cdef unsigned long me = PyThread_get_thread_ident()
        cdef Wait wait
        if self.client.lock_clustered_slot == NULL or self.client.unlock_clustered_slot == NULL:
            self._need_functions(lease)
        if PySys_Audit("luna_ext.lock", "K", <unsigned long long> self.slot_id) != 0:
            luna_raise_pending()
        begin_wait(&wait, True)
        if self.state != 0 or self.queue.length != 0:
            return self._wait_turn(me, lease, poll, &wait, False)
        self.state = LOCKING
        self.caller = me
        return self._call_device(me, lease, poll, &wait)

    cdef bint acquire_within(self, Lease lease, bint poll, double seconds) except -1:
        """Lock with the device call on a worker, so that the caller can give up; -1: never.

        Whether the lock was granted in time.
        """
        signal = threading.Lock()
        signal.acquire()
        cdef Waiter waiter = self.ask(PyThread_get_thread_ident(), lease, poll, signal.release)
        try:
            sit_out(signal, &waiter.wait, self.slot_id, seconds)
        except BaseException:
            self.withdraw(waiter)
            raise
        if waiter.outcome == WAITING:
            self.withdraw(waiter)
            return False
        if waiter.outcome == FAILED:
            raise waiter.error
        self.confirm(waiter.key, lease, &waiter.wait)
        return True

    cdef Waiter ask(self, object key, Lease lease, bint poll, object wake):
        """Queue up for a lock that a worker gets. Whoever asks has to withdraw() or release."""
        cdef Waiter waiter = Waiter.__new__(Waiter)
        self._need_functions(lease)
        if PySys_Audit("luna_ext.lock", "K", <unsigned long long> self.slot_id) != 0:
            luna_raise_pending()
        self._refuse_reentry(key)
        begin_wait(&waiter.wait, False)
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

    cdef bint adopt(self, Waiter waiter) except -1:
        """Give the waiter the lock that CA_GetUnassignedSlot has set; False if it is somebody's.

        It is nobody's if the waiter has given up meanwhile, and has to be unlocked.

        If a lock call for this very slot is on its way, its answer is awaited for a moment: a
        device that grants a process its own lock again would answer at once, and then the slot is
        the caller's of that. No signal handler runs meanwhile.
        """
        cdef double until
        if self.calling:
            until = luna_now() + SETTLE_SECONDS
            while self.calling and luna_now() < until:
                with nogil:
                    luna_pause(0.0002)
        if self.state & OWNED:
            return False
        if waiter.outcome == WAITING:
            waiter.outcome = GRANTED
            self.own(waiter.key, waiter.lease)
        else:
            self.own_by_thread(0, None)
        return True

    def _need_functions(self, Lease lease):
        # Without the unlock function a lock would never come off: refuse both together.
        self.client.need(CA_LOCK_CLUSTERED_SLOT, lease.path)
        self.client.need(CA_UNLOCK_CLUSTERED_SLOT, lease.path)

    cdef int _wait_turn(
        self, unsigned long me, Lease lease, bint poll, Wait *wait, bint first
    ) except -1:
        self._refuse_reentry(me)
        if wait.began == 0:
            wait.began = luna_now()
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
            sit_out(signal, wait, self.slot_id, -1)
        except BaseException:
            self.withdraw(waiter)
            raise
        if waiter.outcome == FAILED:
            raise waiter.error
        if waiter.outcome == TURN:
            return self._call_device(me, lease, poll, wait)
        return self.confirm(me, lease, wait)

    cdef int _call_device(self, unsigned long me, Lease lease, bint poll, Wait *wait) except -1:
        """Make the lock call on this thread; LOCKING is set and `caller` is this thread."""
        cdef CK_RV rv = CKR_OK
        cdef uint64_t nanoseconds = 0
        if self.state != LOCKING:
            # A claim came back with this slot before this thread took its turn. It holds the lock,
            # or its unlock is on the way, which must not meet our call at the device.
            self.caller = 0
            self.state &= ~LOCKING
            return self._wait_turn(me, lease, poll, wait, True)
        if self.client.state == READY and lease.open:
            # The call cannot raise then. This is the fast path, on which a `try` is felt.
            self.calling = True
            rv = lock_slot(self.client, self.slot_id, &nanoseconds)
            self.calling = False
            if nanoseconds > LONG_WAIT_NANOSECONDS or rv != CKR_OK or self.state & OWNED:
                wait.began = wait.began or luna_now() - 1e-9 * nanoseconds
            if rv != CKR_OK:
                rv = self._insist(lease, poll, wait, rv, True)
        else:
            wait.began = wait.began or luna_now()
            rv = self._insist(lease, poll, wait, rv, False)
        self.caller = 0
        self.state &= ~LOCKING
        if self.state & OWNED or rv != CKR_OK:
            # A claim came back with this slot first. If the device has granted this call as well,
            # that grant is handed over when the claim ends.
            if rv == CKR_OK:
                self._keep_spare_grant()
            return self._wait_turn(me, lease, poll, wait, True)
        self.own_by_thread(me, lease)
        if wait.debug or (wait.began != 0 and luna_now() - wait.began > LONG_WAIT_SECONDS):
            return self.confirm(me, lease, wait)
        # A signal that came during the call is seen here, where nothing can be left locked: after
        # the return of acquire() the caller has no chance to release.
        if PyErr_CheckSignals() != 0 or not lease.open:
            self._take_back(me, lease)
        return 0

    cdef CK_RV _insist(
        self, Lease lease, bint poll, Wait *wait, CK_RV rv, bint asked
    ) except? 0xFFFFFFFF:
        """Make the lock call again and again, while the answer means "not now".

        `asked`: it was made once, and `rv` is the answer. Gives CKR_OK, or an error if a claim has
        come back with this slot meanwhile; raises any other.
        """
        try:
            self._check_lease(lease)
            pauses = delays()
            if not asked:
                rv = self._lock_call()
            # No Python code once the answer is CKR_OK: a signal handler that raised in it would
            # leave the lock on the device, and nobody who knows of it.
            while rv != CKR_OK:
                if not may_pass(rv, poll):
                    raise error_of(rv, CA_LOCK_CLUSTERED_SLOT, self.slot_id)
                time.sleep(next(pauses))
                self._check_lease(lease)
                if luna_now() - wait.began > LONG_WAIT_SECONDS:
                    warn_of_wait(wait, self.slot_id)
                if self.state != LOCKING:
                    break
                rv = self._lock_call()
        except BaseException:
            self.caller = 0
            self.state &= ~LOCKING
            self._pass_turn()
            raise
        return rv

    cdef int confirm(self, object key, Lease lease, Wait *wait) except -1:
        """What was granted is not taken if a signal handler raises, or the library has closed."""
        try:
            end_wait(wait, self.slot_id)
        except BaseException:
            if self._is_owned_by(key):
                self._leave_later()
            raise
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
