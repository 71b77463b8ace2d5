from luna_ext.client cimport Lease
from luna_ext.cryptoki cimport CK_RV
from luna_ext.releasing cimport ReleasableHold
from luna_ext.waiters cimport Outcome, Waiter, WaitQueue


cdef class QueuedHold(ReleasableHold):
    cdef bint calling            # LOCKING, and the device has the call; else it is between tries
    cdef unsigned long caller    # the thread that makes the outstanding lock call itself, or 0
    cdef WaitQueue queue         # who waits

    cdef CK_RV _lock_call(self) except? 0xFFFFFFFF
    cdef int _enqueue(self, Waiter waiter, bint first) except -1
    cdef int _hand_over(self, int bit) except -1
    cdef int _settle(self, Waiter waiter, Outcome outcome, object error) except -1
    cdef int _refuse_reentry(self, object key) except -1
    cdef bint _tasks_here(self) except -1
    cdef int _check_lease(self, Lease lease) except -1
