"""A PIN on its way to the device: a copy in C that nobody can print and that is wiped after use."""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from luna_ext.cryptoki cimport CK_ULONG, CK_UTF8CHAR

cdef extern from *:
    """
    /* Through a volatile pointer, so that the compiler may not drop the stores as dead. */
    static void luna_wipe(void *memory, size_t size) {
        volatile unsigned char *byte = (volatile unsigned char *)memory;
        while (size-- > 0) {
            *byte++ = 0;
        }
    }
    """
    void luna_wipe(void *memory, size_t size) noexcept

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL


@cython.final
cdef class Pin:
    """A wiped-after-use copy of a str (as UTF-8), bytes or bytearray.

    The caller's own object is left alone; a bytearray can be wiped by the caller.
    """

    def __cinit__(self, pin, str name):
        cdef Py_buffer view
        cdef Py_ssize_t size
        cdef const char *text
        if isinstance(pin, str):
            try:
                # No bytes object in between: it could not be wiped.
                text = PyUnicode_AsUTF8AndSize(pin, &size)
            except UnicodeEncodeError:
                # The cause would carry the PIN.
                raise ValueError(f"{name} cannot be written as UTF-8") from None
            self._copy(text, size, name)
        elif isinstance(pin, (bytes, bytearray)):
            PyObject_GetBuffer(pin, &view, PyBUF_SIMPLE)
            try:
                self._copy(<const char *> view.buf, view.len, name)
            finally:
                PyBuffer_Release(&view)
        else:
            raise TypeError(f"{name} is a str, bytes or bytearray, not {type(pin).__name__}")

    cdef int _copy(self, const char *source, Py_ssize_t size, str name) except -1:
        if size == 0:
            raise ValueError(f"{name} is empty")
        self.bytes = <CK_UTF8CHAR *> malloc(<size_t> size)
        if self.bytes == NULL:
            raise MemoryError()
        memcpy(self.bytes, source, <size_t> size)
        self.length = <CK_ULONG> size
        return 0

    def __dealloc__(self):
        if self.bytes != NULL:
            luna_wipe(self.bytes, self.length)
            free(self.bytes)

    def __reduce__(self):
        raise TypeError("a PIN is not pickled")
