from luna_ext.claims cimport Claims
from luna_ext.client cimport Lease
from luna_ext.mutex cimport SlotMutex
from luna_ext.reports cimport Wait
from luna_ext.token cimport Token
from luna_ext.waiters cimport Waiter


# One call of CA_GetUnassignedSlot that somebody waits for.
cdef class Request(Waiter):
    cdef bytes cluster_id              # NUL-terminated by Python
    cdef Claims claims                 # the client's, where it is counted
    cdef bint calling                  # the device has the call
    cdef bint abandoned                # and nobody waits for it; counted in `claims`
    cdef SlotMutex mutex               # of the slot that was granted
    cdef bytes raw_label               # its token's
    cdef unsigned long long hold       # the number of the hold that began

    cdef int call_device(self) except -1
    cdef int queue_up(self) except -1
    cdef int withdraw(self) except -1


cdef class Claim:
    cdef object library                # makes the slot's object
    cdef Lease lease                   # the library's
    cdef bytes cluster_id              # NUL-terminated by Python
    cdef double timeout                # seconds to wait for a token to become free
    cdef Token token                   # what is claimed, while the block runs; or None
    cdef object task                   # the Task whose `async with` runs, or None
    cdef bint entered                  # the block runs, or is about to
    cdef Wait wait                     # since the block was entered
    cdef object refusal                # the device's last answer since then: none left, or busy

    cdef int _begin(self) except -1
    cdef Token _end(self)
    cdef Request _request(self, object key)
    cdef int _ask_and_wait(self, Request request) except -1
    cdef double _seconds_left(self) except? -1
    cdef Token _token_of(self, Request request)


cdef Claim new_claim(object library, Lease lease, object cluster_id, object timeout)
