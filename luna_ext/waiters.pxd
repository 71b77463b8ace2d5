from luna_ext.client cimport Lease
from luna_ext.reports cimport Wait

# How a Waiter's wait ended.
cdef enum Outcome:
    WAITING
    TURN        # the waiter makes the device call itself, on its own thread
    GRANTED     # the waiter holds the lock; or, of an unlock, it is done
    FAILED      # Waiter.error says why
    WITHDRAWN   # granted, but given back: by the waiter, or because nobody listened


cdef class Waiter:
    cdef object key              # who waits: a thread's ident, or an asyncio Task
    cdef Lease lease             # the Library through which it waits
    cdef Wait wait               # since when
    cdef bint own_call           # it makes the device call itself and cannot give up in it
    cdef bint poll               # an error that may mean contention is tried again
    cdef object wake             # called once when the outcome is there; False: nobody listens
    cdef Outcome outcome         # see above
    cdef object error            # the exception of FAILED
    cdef Waiter before           # its neighbours in the queue
    cdef Waiter behind


cdef class WaitQueue:
    cdef Waiter head             # who is next
    cdef Waiter tail
    cdef Py_ssize_t length
    cdef set keys                # of all who wait

    cdef int push(self, Waiter waiter, bint first) except -1
    cdef int remove(self, Waiter waiter) except -1


cdef int sit_out(object signal, Wait *wait, object subject, double seconds) except -1
