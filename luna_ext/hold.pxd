from luna_ext.client cimport Client, Lease
from luna_ext.cryptoki cimport CK_SLOT_ID

# Hold.state. A claim may own a slot whose earlier lock or unlock call is still on its way, so these
# are independent of each other.
cdef enum:
    OWNED = 1       # somebody in this process holds the lock, or is about to unlock it
    LOCKING = 2     # a lock call is outstanding, or about to be made
    RELEASING = 4   # one for each outstanding unlock call; the bits above count them


cdef class Hold:
    cdef Client client           # makes the device calls
    cdef readonly CK_SLOT_ID slot_id
    cdef int state               # see above; 0: nobody, nothing
    cdef unsigned long owner     # the thread that holds the lock; 0: none, or a task does
    cdef object owner_task       # the asyncio Task that holds the lock, or None
    cdef Lease lease             # the Library through which the lock is held
    cdef unsigned long long hold  # number of the newest hold: tells "ever since" from "again"
    cdef unsigned long long session         # the client's, when the newest hold began
    cdef unsigned long long claims_before   # the newest claim when the newest hold began
    cdef str lost                # why the held lock is not on the device any more, or None
    cdef bint inherited          # the lock was held in the parent process, at the fork
    cdef object place_code       # the code that called acquire(), and where in it, for the warning
    cdef int place_lasti

    cdef int own(self, object key, Lease lease) except -1
    cdef int own_by_thread(self, unsigned long ident, Lease lease) except -1
    cdef bint is_mine(self) except -1
    cdef int check_mine(self, str function) except -1
    cdef bytes ensure_held(self)
    cdef int note_place(self) except -1
    cdef str place(self)
    cdef int forget(self) except -1
    cdef bint ended_by_fork(self) except -1
