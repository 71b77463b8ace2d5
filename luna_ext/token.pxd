from luna_ext.client cimport Lease
from luna_ext.slot cimport ClusterSlot


cdef class Token:
    cdef object __weakref__
    cdef readonly ClusterSlot slot             # where the token is
    cdef bytes raw_label                       # the label's 32 bytes, as the device keeps them
    cdef object known_info                     # the TokenInfo read last, or None
    cdef unsigned long long claimed            # the number of the hold that claim() began, or 0

    cdef int check_label(self, bytes now) except -1


cdef class Claim:
    cdef object library                        # makes the slot's object
    cdef Lease lease                           # the library's
    cdef bytes cluster_id                      # NUL-terminated by Python
    cdef double timeout                        # seconds to wait for a token to become free
    cdef Token token                           # what is claimed, while the block runs; or None
    cdef bint entered                          # the block runs, or is about to


cdef Token new_token(ClusterSlot slot, bytes raw_label, object known_info)
cdef Claim new_claim(object library, Lease lease, object cluster_id, object timeout)
