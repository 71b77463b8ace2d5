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


cdef ClusterSlot new_slot(object library, Lease lease, bint poll, CK_SLOT_ID slot_id)
