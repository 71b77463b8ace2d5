from luna_ext.client cimport Client, Lease
from luna_ext.cryptoki cimport CK_RV, CK_SLOT_ID
from luna_ext.hold cimport Hold
from luna_ext.waiters cimport Outcome, Waiter, WaitQueue


cdef class SlotMutex(Hold):
    cdef bint calling            # LOCKING, and the device has the call; else it is between tries
    cdef unsigned long caller    # the thread that makes the outstanding lock call itself, or 0
    cdef bint spare_grant        # the device granted a second call of this process while OWNED
    cdef unsigned long long spare_session   # the client's session in which it did
    cdef int busy                # calls under way that rely on the lock; close() unlocks after them
    cdef bint evicted            # the Library was closed while `busy`
    cdef WaitQueue queue         # who waits

    cdef int acquire(self, Lease lease, bint poll) except -1
    cdef bint acquire_within(self, Lease lease, bint poll, double seconds) except -1
    cdef Waiter ask(self, object key, Lease lease, bint poll, object wake)
    cdef int withdraw(self, Waiter waiter) except -1
    cdef bint adopt(self, Lease lease) except -1
    cdef int release(self, Lease lease) except -1
    cdef int release_task(self, object key, Waiter waiter) except -1
    cdef int confirm(self, object key, Lease lease) except -1
    cdef int _take_back(self, object key, Lease lease) except -1
    cdef bint _is_owned_by(self, object key) except -1
    cdef int begin_work(self) except -1
    cdef int end_work(self) except -1

    cdef int _wait_turn(self, unsigned long me, Lease lease, bint poll, bint first) except -1
    cdef int _call_device(self, unsigned long me, Lease lease, bint poll) except -1
    cdef CK_RV _insist(self, Lease lease, bint poll, CK_RV rv, bint asked) except? 0xFFFFFFFF
    cdef CK_RV _lock_call(self) except? 0xFFFFFFFF
    cdef int _check_lease(self, Lease lease) except -1
    cdef int _keep_spare_grant(self) except -1
    cdef int _enqueue(self, Waiter waiter, bint first) except -1
    cdef int _pass_turn(self) except -1
    cdef int _hand_over(self, int bit) except -1
    cdef int _settle(self, Waiter waiter, Outcome outcome, object error) except -1
    cdef int _refuse_reentry(self, object key) except -1
    cdef int _begin_leave(self) except -1
    cdef bint _tasks_here(self) except -1
    cdef int _finish_leave(self, bint may_wait_on_worker) except -1
    cdef int _unlock(self) except -1
    cdef int _leave_later(self) except -1


cdef SlotMutex mutex_of(Client client, CK_SLOT_ID slot_id)
