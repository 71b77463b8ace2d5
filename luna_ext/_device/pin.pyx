# A PIN on its way to the device: a copy in C, which no Python code can read or print, and which is wiped
# after use.

cdef extern from "secret.h":
    void *luna_take_secret(size_t size) noexcept
    void luna_drop_secret(void *memory, size_t size) noexcept

cdef extern from "Python.h":
    Py_UCS4 PyUnicode_READ_CHAR(object text, Py_ssize_t index) noexcept
    Py_ssize_t PyUnicode_GET_LENGTH(object text) noexcept


@cython.final
cdef class Pin:
    """A copy of a str (as UTF-8), bytes, bytearray or memoryview; or none, for PIN_PAD.

    The caller's own object is left alone; one that can be written to can be wiped by the caller.
    """

    def __cinit__(self, pin, str name):
        cdef Py_buffer view
        cdef bint encoded = True
        if pin is PIN_PAD:
            return
        if isinstance(pin, str):
            encoded = self._encode(pin)
        elif isinstance(pin, (bytes, bytearray, memoryview)):
            try:
                PyObject_GetBuffer(pin, &view, PyBUF_SIMPLE)
            except BufferError:
                raise ValueError(f"{name} is not in one piece in memory; give a copy of it") from None
            try:
                self._reserve(view.len)
                memcpy(self.bytes, view.buf, <size_t> view.len)
                self.length = <CK_ULONG> view.len
            finally:
                PyBuffer_Release(&view)
        else:
            raise TypeError(
                f"{name} is a str, bytes, bytearray, memoryview or PIN_PAD, not {type(pin).__name__}"
            )
        if not encoded:
            raise ValueError(f"{name} contains a lone surrogate and cannot be written as UTF-8")
        if self.length == 0:
            raise ValueError(f"{name} is empty")
        if memchr(self.bytes, 0, self.length) != NULL:
            # A client that takes it for the end of the PIN would set a shorter one.
            raise ValueError(f"{name} contains a NUL")

    cdef bint is_wiped(self) noexcept:
        """Whether this is a forked child, into which it has not come along. No PIN has a NUL."""
        return self.bytes != NULL and self.bytes[0] == 0

    cdef bint is_pad(self) noexcept:
        """Whether it is entered at the token's own pad."""
        return self.bytes == NULL

    cdef int _reserve(self, Py_ssize_t size) except -1:
        self.room = <size_t> size + 1
        self.bytes = <CK_UTF8CHAR *> luna_take_secret(self.room)
        if self.bytes == NULL:
            raise MemoryError()
        return 0

    cdef bint _encode(self, pin) except -1:
        """As UTF-8, character by character.

        Python's encoder would leave the PIN behind in a bytes object, in the str, or in the
        exception that says why it cannot be encoded; none of these can be wiped.
        """
        cdef Py_ssize_t index
        cdef unsigned int char
        cdef CK_ULONG length = 0
        self._reserve(4 * PyUnicode_GET_LENGTH(pin))
        for index in range(PyUnicode_GET_LENGTH(pin)):
            char = <unsigned int> PyUnicode_READ_CHAR(pin, index)
            if 0xD800 <= char <= 0xDFFF:
                return False
            if char < 0x80:
                self.bytes[length] = <CK_UTF8CHAR> char
                length += 1
            elif char < 0x800:
                self.bytes[length] = <CK_UTF8CHAR> (0xC0 | (char >> 6))
                self.bytes[length + 1] = <CK_UTF8CHAR> (0x80 | (char & 0x3F))
                length += 2
            elif char < 0x10000:
                self.bytes[length] = <CK_UTF8CHAR> (0xE0 | (char >> 12))
                self.bytes[length + 1] = <CK_UTF8CHAR> (0x80 | ((char >> 6) & 0x3F))
                self.bytes[length + 2] = <CK_UTF8CHAR> (0x80 | (char & 0x3F))
                length += 3
            else:
                self.bytes[length] = <CK_UTF8CHAR> (0xF0 | (char >> 18))
                self.bytes[length + 1] = <CK_UTF8CHAR> (0x80 | ((char >> 12) & 0x3F))
                self.bytes[length + 2] = <CK_UTF8CHAR> (0x80 | ((char >> 6) & 0x3F))
                self.bytes[length + 3] = <CK_UTF8CHAR> (0x80 | (char & 0x3F))
                length += 4
        self.length = length
        return True

    def __dealloc__(self):
        if self.bytes != NULL:
            luna_drop_secret(self.bytes, self.room)

    def __reduce__(self):
        raise TypeError("a PIN is not pickled")


cdef Pin as_pin(object pin, str name):
    """The Pin that it is already, or a copy of it."""
    if not isinstance(pin, Pin):
        return Pin(pin, name)
    if (<Pin> pin).is_wiped():
        # To try what is left of it would count as a wrong PIN.
        raise ValueError(
            f"{name} was read before a fork, and is kept out of forked children; give it again"
        )
    return pin


cdef bint same_pins(Pin one, Pin other) noexcept:
    """False for those that are entered at a pad: they are not known."""
    return (
        not one.is_pad()
        and not other.is_pad()
        and one.length == other.length
        and memcmp(one.bytes, other.bytes, one.length) == 0
    )
