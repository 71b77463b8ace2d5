from luna_ext.client cimport Client
from luna_ext.cryptoki cimport CK_RV, CK_SLOT_ID

# How a Waiter's wait ended.
cdef enum Outcome:
    WAITING
    TURN        # the waiter makes the device call itself, on its own thread
    GRANTED     # the waiter holds the lock
    FAILED      # Waiter.error says why


cdef class Waiter:
    cdef object key              # who waits: a thread's ident, or an asyncio Task
    cdef unsigned long lease     # the Library through which it waits
    cdef bint own_call           # it makes the device call itself and cannot give up in it
    cdef bint poll               # an error that may mean contention is tried again
    cdef object wake             # called once when the outcome is there; False: nobody listens
    cdef Outcome outcome         # see above
    cdef object error            # the exception of FAILED


cdef class SlotMutex:
    cdef Client client           # makes the device calls
    cdef readonly CK_SLOT_ID slot_id
    cdef int state               # OWNED, LOCKING and a count of RELEASING; 0: nobody, nothing
    cdef unsigned long owner     # the thread that holds the lock; 0: none, or a task does
    cdef object owner_task       # the asyncio Task that holds the lock, or None
    cdef unsigned long caller    # the thread that makes the outstanding lock call itself, or 0
    cdef unsigned long lease     # the Library through which the lock is held
    cdef unsigned long long hold # number of the newest hold: tells "ever since" from "again"
    cdef str lost                # why the held lock is not on the device any more, or None
    cdef bint spare_grant        # the device granted a second call of this process while OWNED
    cdef bint inherited          # this thread or task held it in the parent process, at the fork
    cdef object waiters          # OrderedDict of key -> Waiter, first come first served
    cdef Py_ssize_t waiting      # its length
    cdef object place_code       # the code that called acquire(), and where in it, for the warning
    cdef int place_lasti

    cdef int acquire(self, unsigned long lease, bint poll) except -1
    cdef bint acquire_within(self, unsigned long lease, bint poll, double seconds) except -1
    cdef Waiter ask(self, object key, unsigned long lease, bint poll, object wake)
    cdef int withdraw(self, Waiter waiter) except -1
    cdef bint adopt(self, unsigned long lease) except -1
    cdef int release(self) except -1
    cdef int release_for(self, object key, Waiter waiter) except -1
    cdef bint ended_by_fork(self) except -1
    cdef bint is_mine(self) except -1
    cdef int check_mine(self, str function) except -1
    cdef bytes ensure_held(self)
    cdef int check_signals(self) except -1
    cdef int note_place(self) except -1
    cdef str place(self)

    cdef int _wait_turn(self, unsigned long me, unsigned long lease, bint poll, bint first) except -1
    cdef int _call_device(self, unsigned long me, unsigned long lease, bint poll) except -1
    cdef int _insist(self, CK_RV rv, bint poll) except -1
    cdef int _interrupted(self) except -1
    cdef int _own(self, object key, unsigned long lease) except -1
    cdef Waiter _first(self)
    cdef int _enqueue(self, Waiter waiter, bint first) except -1
    cdef int _dequeue(self, Waiter waiter) except -1
    cdef int _pass_turn(self) except -1
    cdef int _hand_over(self) except -1
    cdef int _settle(self, Waiter waiter, Outcome outcome, object error) except -1
    cdef int _refuse_reentry(self, object key) except -1
    cdef bint _leave(self) except -1
    cdef int _unlock(self) except -1
    cdef int _unlock_later(self) except -1


cdef SlotMutex mutex_of(Client client, CK_SLOT_ID slot_id)
