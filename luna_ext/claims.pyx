"""The claims that are under way: device calls that may give this process any slot's lock.

Who locks a slot meanwhile may be granted the claim's lock a second time, and has to leave it on
until the claim knows what it got: SlotMutex waits for that before it unlocks.
"""

from collections import deque

cimport cython

cdef extern from "Python.h":
    unsigned long PyThread_get_thread_ident() noexcept nogil


@cython.final
cdef class Claims:
    """Of one client, by serial numbers, which tell what was under way before what."""

    def __cinit__(self):
        self.threads = {}
        self.requests = deque()

    cdef unsigned long long begin(self) except 0:
        """From here until end() the device may give this process a lock; the serial number."""
        cdef unsigned long long claim = self.newest + 1
        self.newest = claim
        self.threads[claim] = PyThread_get_thread_ident()
        self.oldest = min(self.threads)
        return claim

    cdef int end(self, unsigned long long claim) except -1:
        # Not there any more in a forked child.
        self.threads.pop(claim, None)
        self.oldest = min(self.threads) if self.threads else 0
        return 0

    cdef bint others(self, unsigned long long newest) except -1:
        """Whether another thread's claim, as old as `newest` or older, is under way."""
        if self.oldest == 0 or self.oldest > newest:
            return False
        me = PyThread_get_thread_ident()
        return any(
            claim <= newest and thread != me for claim, thread in tuple(self.threads.items())
        )
