from luna_ext.client cimport Lease
from luna_ext.cryptoki cimport CK_SLOT_ID
from luna_ext.mutex cimport SlotMutex


cdef class SlotLock:
    cdef SlotMutex mutex              # what is locked
    cdef Lease lease                  # the library's, under which it locks
    cdef bint poll                    # contention="poll"
    cdef object task                  # the Task that holds the lock through this, or None
    cdef double timeout               # seconds; -1: none
    cdef object target                # what `with ... as` gives
    cdef object check                 # called once the lock is held; if it raises, unlock. Or None


cdef SlotLock new_lock(SlotMutex mutex, Lease lease, bint poll, object timeout, object target,
                       object check)
cdef double seconds_of(object timeout) except? -1
cdef int check_open(Lease lease, CK_SLOT_ID slot_id) except -1
cdef int check_evicted(SlotMutex mutex, Lease lease, str function) except -1
cdef bytes check_held(SlotMutex mutex, Lease lease)
cdef int end_block(SlotMutex mutex, Lease lease, object exception) except -1
