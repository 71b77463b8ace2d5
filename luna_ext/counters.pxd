"""counters.h: what is counted of a C function's calls, without the GIL. Only declarations."""

from libc.stdint cimport uint64_t

cdef extern from "counters.h":
    enum:
        LUNA_DURATIONS
        LUNA_ERRORS

    struct luna_counter:
        uint64_t nanoseconds
        uint64_t longest
        uint64_t *durations
        uint64_t *codes
        uint64_t *errors

    uint64_t luna_load(uint64_t *place) noexcept nogil
    void luna_count(luna_counter *counter, uint64_t nanoseconds, uint64_t rv) noexcept nogil
