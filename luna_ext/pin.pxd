from luna_ext.cryptoki cimport CK_ULONG, CK_UTF8CHAR


cdef class Pin:
    cdef CK_UTF8CHAR *bytes      # our own copy, wiped when the Pin goes
    cdef CK_ULONG length         # of the PIN, in bytes
    cdef size_t room             # of the copy, in bytes; all of it is wiped

    cdef int _reserve(self, Py_ssize_t size) except -1
    cdef bint _encode(self, str pin) except -1
