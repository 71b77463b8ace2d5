from luna_ext.cryptoki cimport CK_ULONG, CK_UTF8CHAR


cdef class Pin:
    cdef CK_UTF8CHAR *bytes      # our own copy, wiped when the Pin goes
    cdef CK_ULONG length         # in bytes

    cdef int _copy(self, const char *source, Py_ssize_t size, str name) except -1
