"""gil_turn.h: what surrounds a device call that many threads make. Only declarations."""

cdef extern from "gil_turn.h":
    void luna_calls_device() noexcept nogil
    void luna_comes_back() noexcept nogil
    void luna_is_back() noexcept nogil
