from luna_ext.client cimport Lease
from luna_ext.cryptoki cimport CK_RV
from luna_ext.hold cimport Hold
from luna_ext.waiters cimport Waiter


cdef class ReleasableHold(Hold):
    cdef bint spare_grant        # the device granted a second call of this process while OWNED
    cdef unsigned long long spare_session   # the client's session in which it did
    cdef int busy                # calls under way that rely on the lock; close() unlocks after them
    cdef bint evicted            # the Library was closed while `busy`

    # To be defined by who knows the queue.
    cdef int _pass_turn(self) except -1
    cdef bint _hand_over_spare_grant(self) except -1

    cdef int release(self, Lease lease) except -1
    cdef int _release(self, Lease lease) except -1
    cdef int _release_despite_objection(self, Lease lease) except -1
    cdef int release_task(self, object key, Waiter waiter) except -1
    cdef int _release_task(self, object key, Waiter waiter) except -1
    cdef int begin_work(self) except -1
    cdef int end_work(self) except -1

    cdef int _keep_spare_grant(self) except -1
    cdef bint _is_owned_by(self, object key) except -1
    cdef int _begin_leave(self) except -1
    cdef int _finish_leave(self, bint may_wait_on_worker) except -1
    cdef int _leave_later(self) except -1
    cdef int _unlock(self) except -1
    cdef CK_RV _unlock_again(self, CK_RV rv) except? 0xFFFFFFFF
