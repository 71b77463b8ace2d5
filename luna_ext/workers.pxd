cdef class Workers:
    cdef list idle               # inboxes of the threads that have nothing to do

    cdef int run(self, object job) except -1
