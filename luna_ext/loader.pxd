"""loader.h: opening a shared library. Only declarations."""

cdef extern from "loader.h":
    ctypedef char *luna_path_t
    void *luna_open(luna_path_t path) noexcept nogil
    void *luna_symbol(void *handle, const char *name) noexcept nogil
    void luna_open_error(char *text, size_t room) noexcept nogil
