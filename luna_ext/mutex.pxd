from luna_ext.client cimport Client, Lease
from luna_ext.cryptoki cimport CK_RV, CK_SLOT_ID
from luna_ext.queued cimport QueuedHold
from luna_ext.reports cimport Wait
from luna_ext.waiters cimport Waiter


cdef class SlotMutex(QueuedHold):
    cdef int acquire(self, Lease lease, bint poll) except -1
    cdef bint acquire_within(self, Lease lease, bint poll, double seconds) except -1
    cdef Waiter ask(self, object key, Lease lease, bint poll, object wake)
    cdef int withdraw(self, Waiter waiter) except -1
    cdef bint adopt(self, Waiter waiter) except -1
    cdef int confirm(self, object key, Lease lease, Wait *wait) except -1
    cdef int _take_back(self, object key, Lease lease) except -1

    cdef int _wait_turn(
        self, unsigned long me, Lease lease, bint poll, Wait *wait, bint first
    ) except -1
    cdef int _call_device(self, unsigned long me, Lease lease, bint poll, Wait *wait) except -1
    cdef CK_RV _insist(
        self, Lease lease, bint poll, Wait *wait, CK_RV rv, bint asked
    ) except? 0xFFFFFFFF


cdef SlotMutex mutex_of(Client client, CK_SLOT_ID slot_id)
