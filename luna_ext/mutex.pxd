from luna_ext.client cimport Client, Lease
from luna_ext.cryptoki cimport CK_RV, CK_SLOT_ID

# How a Waiter's wait ended.
cdef enum Outcome:
    WAITING
    TURN        # the waiter makes the device call itself, on its own thread
    GRANTED     # the waiter holds the lock; or, of an unlock, it is done
    FAILED      # Waiter.error says why


cdef class Waiter:
    cdef object key              # who waits: a thread's ident, or an asyncio Task
    cdef Lease lease             # the Library through which it waits
    cdef bint own_call           # it makes the device call itself and cannot give up in it
    cdef bint poll               # an error that may mean contention is tried again
    cdef object wake             # called once when the outcome is there; False: nobody listens
    cdef Outcome outcome         # see above
    cdef object error            # the exception of FAILED
    cdef Waiter before           # its neighbours in the queue
    cdef Waiter behind


cdef class SlotMutex:
    cdef Client client           # makes the device calls
    cdef readonly CK_SLOT_ID slot_id
    cdef int state               # OWNED, LOCKING and a count of RELEASING; 0: nobody, nothing
    cdef bint calling            # LOCKING, and the device has the call; else it is between tries
    cdef unsigned long owner     # the thread that holds the lock; 0: none, or a task does
    cdef object owner_task       # the asyncio Task that holds the lock, or None
    cdef unsigned long caller    # the thread that makes the outstanding lock call itself, or 0
    cdef Lease lease             # the Library through which the lock is held
    cdef unsigned long long hold  # number of the newest hold: tells "ever since" from "again"
    cdef unsigned long long claims_before   # the newest claim when the newest hold began
    cdef str lost                # why the held lock is not on the device any more, or None
    cdef bint spare_grant        # the device granted a second call of this process while OWNED
    cdef int busy                # calls under way that rely on the lock; close() unlocks after them
    cdef bint evicted            # the Library was closed while `busy`
    cdef bint inherited          # the lock was held in the parent process, at the fork
    cdef Waiter head             # the queue: first come, first served
    cdef Waiter tail
    cdef Py_ssize_t waiting      # its length
    cdef set keys                # the keys in it
    cdef object place_code       # the code that called acquire(), and where in it, for the warning
    cdef int place_lasti

    cdef int acquire(self, Lease lease, bint poll) except -1
    cdef bint acquire_within(self, Lease lease, bint poll, double seconds) except -1
    cdef Waiter ask(self, object key, Lease lease, bint poll, object wake)
    cdef int withdraw(self, Waiter waiter) except -1
    cdef bint adopt(self, Lease lease) except -1
    cdef int release(self, Lease lease) except -1
    cdef int release_task(self, object key, Waiter waiter) except -1
    cdef int check_signals(self) except -1
    cdef bint ended_by_fork(self) except -1
    cdef bint is_mine(self) except -1
    cdef int check_mine(self, str function) except -1
    cdef bytes ensure_held(self)
    cdef int begin_work(self) except -1
    cdef int end_work(self) except -1
    cdef int note_place(self) except -1
    cdef str place(self)

    cdef int _wait_turn(self, unsigned long me, Lease lease, bint poll, bint first) except -1
    cdef int _call_device(self, unsigned long me, Lease lease, bint poll) except -1
    cdef CK_RV _lock_call(self) except? 0xFFFFFFFF
    cdef int _own(self, object key, Lease lease) except -1
    cdef int _check_lease(self, Lease lease) except -1
    cdef int _enqueue(self, Waiter waiter, bint first) except -1
    cdef int _unlink(self, Waiter waiter) except -1
    cdef int _pass_turn(self) except -1
    cdef int _hand_over(self, int bit) except -1
    cdef int _settle(self, Waiter waiter, Outcome outcome, object error) except -1
    cdef int _refuse_reentry(self, object key) except -1
    cdef int _begin_leave(self) except -1
    cdef int _finish_leave(self) except -1
    cdef int _unlock(self) except -1
    cdef int _leave_later(self) except -1


cdef SlotMutex mutex_of(Client client, CK_SLOT_ID slot_id)
