from luna_ext.slot cimport ClusterSlot


cdef class Token:
    cdef object __weakref__
    cdef readonly ClusterSlot slot             # where the token is
    cdef bytes raw_label                       # the label's 32 bytes, as the device keeps them
    cdef object known_info                     # the TokenInfo read last, or None
    cdef unsigned long long claimed            # the number of the hold that claim() began, or 0

    cdef int check_label(self, bytes now) except -1


cdef Token new_token(ClusterSlot slot, bytes raw_label, object known_info)
