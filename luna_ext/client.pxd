from libc.stdint cimport uint64_t

from luna_ext.claims cimport Claims
from luna_ext.counters cimport luna_count, luna_counter
from luna_ext.cryptoki cimport (
    CK_FUNCTION_LIST,
    CK_RV,
    CA_GetSlotId_t,
    CA_GetUnassignedSlot_t,
    CA_LockClusteredSlot_t,
    CA_UnlockClusteredSlot_t,
)
from luna_ext.functions cimport FUNCTION_COUNT
from luna_ext.ticks cimport luna_since
from luna_ext.workers cimport Workers

cdef enum State:
    CLOSED       # no Library is open
    READY        # the only state in which a call may begin
    CLOSING      # the last Library was closed, calls may still be in flight
    FORKED       # a child that has not called C_Initialize yet


cdef class Lease:
    cdef readonly Client client   # what is used
    cdef readonly str path        # under which name the user knows it, absolute
    cdef bint open                # until its Library is closed
    cdef dict evicted             # slot ID -> the thread or task whose lock the close() released


cdef class Client:
    cdef readonly str path                        # absolute, as it was first loaded
    cdef readonly bint is_stub                    # it is the stand-in, not an HSM's client
    cdef bint stub_warned                         # of being it; once per process is enough
    cdef void *handle                             # from dlopen; never closed
    cdef CK_FUNCTION_LIST *functions              # the C_ functions; published once, never changed
    cdef CA_GetSlotId_t get_slot_id               # NULL: not exported; so the three below
    cdef CA_GetUnassignedSlot_t get_unassigned_slot
    cdef CA_LockClusteredSlot_t lock_clustered_slot
    cdef CA_UnlockClusteredSlot_t unlock_clustered_slot
    cdef State state
    cdef bint initialised_here                    # our C_Initialize took effect, in this process
    cdef bint answers                             # initialised and, for all we know, not finalised
    cdef unsigned long long session               # number of the newest C_Initialize
    cdef set leases                               # of the Libraries that have not closed
    cdef unsigned long exits                      # the thread that ends the interpreter, or 0
    cdef Py_ssize_t in_flight                     # device calls that have not come back
    cdef object transition                        # held while one thread initialises or finalises
    cdef object drained                           # a lock that the last call back releases, or None
    cdef readonly dict mutexes                    # slot ID -> its SlotMutex, one per process
    cdef bint publishes                           # a thread tells who holds locks
    cdef Workers workers                          # threads for calls that somebody may give up on
    cdef Claims claims                            # the calls of CA_GetUnassignedSlot under way
    cdef double tick                              # of luna_ticks(), in nanoseconds
    # Of this process's calls, by function.
    cdef luna_counter counters[<int> FUNCTION_COUNT]

    cdef int make_ready(self) except -1
    cdef int refuse(self) except -1
    cdef int hold_back_at_exit(self) except -1
    cdef int need(self, int function, str path) except -1
    cdef bint has(self, int function) noexcept
    cdef bint drain(self, double seconds, bint abandoned) except -1
    cdef Py_ssize_t abandoned(self) except -1


cdef Client load_client(str path)


# Every device call stands between begin_call() or begin_cleanup() and end_call(). The GIL is held
# at both ends and released between them, so the plain counter is exact.
cdef inline int begin_call(Client client) except -1:
    if client.state != READY:
        client.make_ready()
    client.in_flight += 1
    return 0


# A call that undoes an earlier one (unlock, logout) is due even when the library is closing.
cdef inline int begin_cleanup(Client client) except -1:
    if not client.answers:
        client.refuse()
    client.in_flight += 1
    return 0


# Between these, without the GIL, right after the call: how many nanoseconds it took.
cdef inline uint64_t call_returned(
    Client client, int function, uint64_t began, CK_RV rv
) noexcept nogil:
    cdef uint64_t lasted = luna_since(began, client.tick)
    luna_count(&client.counters[function], lasted, rv)
    return lasted


cdef inline int end_call(Client client) except -1:
    client.in_flight -= 1
    if client.drained is not None and client.in_flight == 0:
        # Once: before the thread that waits has run, the count may come down to 0 again.
        drained, client.drained = client.drained, None
        drained.release()
    return 0
