from luna_ext.cryptoki cimport CK_RV, CA_UnlockClusteredSlot_t

ctypedef CK_RV (*C_Finalize_t)(void *pReserved) noexcept nogil

cdef bint unlock_until(CA_UnlockClusteredSlot_t unlock, list slot_ids, double deadline) except -1
cdef bint finalize_until(C_Finalize_t finalize, double deadline) except -1
