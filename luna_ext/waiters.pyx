"""Who waits for a slot's lock, in order.

A linked list through the Waiters themselves: taking the first one off allocates nothing, so that no
garbage collection, and with it no other thread, can come in between.
"""

cimport cython

from luna_ext.clock cimport luna_now
from luna_ext.reports cimport LONG_WAIT_SECONDS, Wait, warn_of_wait


cdef class Waiter:
    """One thread or task that waits."""


@cython.final
cdef class WaitQueue:
    """First come, first served; but one who has been served by mistake may come first."""

    def __cinit__(self):
        self.keys = set()

    cdef int push(self, Waiter waiter, bint first) except -1:
        """Line up, at the end or before everybody else."""
        self.keys.add(waiter.key)
        if self.head is None:
            self.head = self.tail = waiter
        elif first:
            waiter.behind = self.head
            self.head.before = waiter
            self.head = waiter
        else:
            waiter.before = self.tail
            self.tail.behind = waiter
            self.tail = waiter
        self.length += 1
        return 0

    cdef int remove(self, Waiter waiter) except -1:
        """Take a waiter, which has to be in the queue, out of it."""
        if waiter.before is None:
            self.head = waiter.behind
        else:
            waiter.before.behind = waiter.behind
        if waiter.behind is None:
            self.tail = waiter.before
        else:
            waiter.behind.before = waiter.before
        waiter.before = waiter.behind = None
        self.length -= 1
        self.keys.discard(waiter.key)
        return 0


cdef int sit_out(object signal, Wait *wait, object subject, double seconds) except -1:
    """Wait in Python until the lock `signal` is released, or for so long; -1: without limit.

    The application is told when that becomes long.
    """
    cdef double end = luna_now() + seconds
    cdef double patience
    # One that is to end just when it would become long is told by its end.
    if seconds < 0 or end - wait.began > LONG_WAIT_SECONDS + 0.1:
        patience = max(0.0, wait.began + LONG_WAIT_SECONDS - luna_now())
        if signal.acquire(timeout=patience):
            return 0
        warn_of_wait(wait, subject)
        if seconds > 0:
            seconds = max(0.0, end - luna_now())
    signal.acquire(timeout=seconds)
    return 0
