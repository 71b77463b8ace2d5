"""An exception that C code has set, for Cython to raise. Only declarations."""

cdef extern from *:
    """
    static inline int luna_raise_pending(void) {
        return PyErr_Occurred() != NULL ? -1 : 0;
    }
    """
    # To be called after a C function that has set an exception and is declared noexcept, because
    # on the fast path it is not let through everywhere.
    int luna_raise_pending() except -1
