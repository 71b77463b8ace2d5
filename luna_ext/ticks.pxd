"""ticks.h: a clock for the length of device calls. Only declarations."""

from libc.stdint cimport uint64_t

cdef extern from "ticks.h":
    double luna_measure_tick() noexcept nogil
    uint64_t luna_ticks(double tick) noexcept nogil
    uint64_t luna_since(uint64_t began, double tick) noexcept nogil
