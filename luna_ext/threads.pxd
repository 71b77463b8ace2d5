cdef int end_threads(double deadline) except -1
