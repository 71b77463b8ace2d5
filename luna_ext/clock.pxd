"""clock.h: a clock and a pause without the GIL. Only declarations."""

cdef extern from "clock.h":
    double luna_now() noexcept nogil
    void luna_pause(double seconds) noexcept nogil
