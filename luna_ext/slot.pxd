from luna_ext.client cimport Client, Lease
from luna_ext.cryptoki cimport CK_SLOT_ID
from luna_ext.mutex cimport SlotMutex


cdef class ClusterSlot:
    cdef object __weakref__
    cdef readonly object library      # the Library that made it; keeps it alive
    cdef Client client                # the library's client
    cdef SlotMutex mutex              # the lock, shared by all of this process for this slot
    cdef Lease lease                  # the library's, under which it locks
    cdef bint poll                    # contention="poll"
    cdef bint closed                  # the library was closed
    cdef object evicted               # the thread or task that held the lock then, or None

    cdef int check_open(self) except -1
    cdef int check_evicted(self, str function) except -1
    cdef bytes check_held(self)


cdef class SlotLock:
    cdef ClusterSlot slot             # what is locked
    cdef object task                  # the Task that holds the lock through this, or None
    cdef double timeout               # seconds; -1: none
    cdef object target                # what `with ... as` gives
    cdef object check                 # called once the lock is held; if it raises, unlock. Or None


cdef ClusterSlot new_slot(object library, Lease lease, bint poll, CK_SLOT_ID slot_id)
cdef SlotLock new_lock(ClusterSlot slot, object timeout, object target, object check)
cdef int end_block(ClusterSlot slot, object exception) except -1
cdef double seconds_of(object timeout) except? -1
