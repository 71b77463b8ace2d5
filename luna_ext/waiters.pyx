"""Who waits for a slot's lock, in order.

A linked list through the Waiters themselves: taking the first one off allocates nothing, so that no
garbage collection, and with it no other thread, can come in between.
"""

cimport cython


@cython.final
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
