cdef class Claims:
    cdef dict threads                   # of the claims under way: serial number -> thread
    cdef unsigned long long newest      # the last serial number given out
    cdef unsigned long long oldest      # the smallest one under way; 0: none is
    cdef Py_ssize_t abandoned           # of those under way, how many nobody waits for any more
    cdef object requests                # a deque: claims that workers are to make
    cdef Py_ssize_t servers             # workers that make them

    cdef unsigned long long begin(self) except 0
    cdef int end(self, unsigned long long claim) except -1
    cdef bint others(self, unsigned long long newest) except -1
