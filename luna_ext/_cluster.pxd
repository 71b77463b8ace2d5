"""The cluster layer: what users hold, over the mutex layer."""

from libc.stdint cimport int64_t, uint64_t

from luna_ext._device cimport (
    CK_RV,
    CK_SLOT_ID,
    CK_TOKEN_INFO,
    Client,
    Deadline,
    Pin,
    PyThread_type_lock,
    Share,
    luna_guard,
)
from luna_ext._mutex cimport Heartbeat, Leave, Locks, Loss, Request, SlotMutex, Wait, Waiter


cdef class Ends:
    cdef object queue                # a SimpleQueue: the ends that were not taken yet
    cdef uint64_t made_in            # `forks` when it was made


cdef class Library:
    cdef object __weakref__
    cdef Client client               # shared with every other Library on this file
    cdef Locks locks                 # the client's
    cdef Share share                 # this Library's part in the client
    cdef readonly str path           # absolute
    cdef bint opened                 # between a successful open and close()
    cdef PyThread_type_lock closing  # locked while the first close() takes the locks off; or NULL
    cdef unsigned long closer        # ident of the thread that called the first close()
    cdef long closing_pid            # ID of the process that called it
    cdef luna_guard guard            # of the next
    cdef list slots_by_number        # number of a SlotMutex -> its one ClusterSlot, or None

    cdef ClusterSlot _keep_slot(self, int64_t number, ClusterSlot slot)


cdef class ClusterSlot:
    cdef object __weakref__
    cdef readonly Library library     # the Library that made it; kept alive
    cdef SlotMutex mutex              # the lock, shared by all of this process for this slot
    cdef Share share                  # the Library's, under which it locks


cdef class Token:
    cdef object __weakref__
    cdef readonly ClusterSlot slot             # where the token is
    cdef bytes raw_label                       # the label, blank padded to 32 bytes
    cdef bytes raw_info                        # the CK_TOKEN_INFO that was read; or None
    cdef object known_info                     # the TokenInfo of it, once it was asked for; or None
    cdef uint64_t claimed                      # the number of the hold that claim() began, or 0
    # Whether its user had a PIN, the SO's, when C_InitToken had made it what it is.
    cdef bint user_pin_stayed

    cdef int check_label(self, bytes now) except -1
    cdef int _check_held(self, CK_TOKEN_INFO *info) except -1
    cdef int _refuse_pins(self, CK_TOKEN_INFO *info, Pin so, Pin user) except -1
    cdef int _refuse_length(self, CK_TOKEN_INFO *info, Pin new, str function) except -1
    cdef int _refuse_pads(self, CK_TOKEN_INFO *info, Pin one, Pin other) except -1
    cdef bint _init(self, uint64_t generation, bytes raw_label, Pin so, Pin user) except -1
    cdef int _relabel(self, uint64_t generation, bytes raw_label, Pin so, Pin user) except -1
    cdef int _check_new_label(
        self, bytes raw_label, str function, str done, CK_TOKEN_INFO *info
    ) except -1
    cdef uint64_t _held_in(self) noexcept
    cdef int keep_info(self, CK_TOKEN_INFO *info) except -1
    cdef int _init_token(self, uint64_t generation, bytes raw_label, Pin so) except -1


cdef class SlotLock:
    cdef SlotMutex mutex              # what is locked
    cdef Share share                  # the Library's, under which it locks
    cdef double timeout               # seconds; -1: none
    cdef double told_timeout          # the one that errors tell: of all locks, where these are several
    cdef object target                # what `with ... as` gives: the ClusterSlot or Token
    cdef Token token                  # its label is checked once the lock is held; or None
    cdef uint64_t hold                # number of the newest hold of a `with` block, or 0
    cdef int blocks                   # how many `with` blocks run
    cdef Departure departure          # the end of the newest `async with` block that runs, or None

    cdef double beat                  # seconds within which a loss is noticed; 0: none is looked for
    cdef object on_lost               # the application's function, called at a loss; or None
    cdef Heartbeat heartbeat          # of the `with` block that runs, or None

    cdef Heartbeat _new_heartbeat(self)
    cdef int _keep_heartbeat(self, Heartbeat heartbeat) except -1
    cdef int _drop_heartbeat(self) except -1
    cdef Departure _departure_of(self, uint64_t number)
    cdef int _check_label(self, Deadline deadline) except -1


cdef class LockAll:
    cdef tuple targets                # as the caller has named them: ClusterSlots and Tokens
    cdef tuple in_order               # the same by their slot IDs, the order in which they are locked
    cdef double timeout               # seconds, for all together; -1: none
    cdef dict held                    # number of a thread or task -> the SlotLocks of each of its blocks

    cdef list _new_locks(self)
    cdef int _set_timeout(self, SlotLock lock, Deadline deadline) except -1
    cdef int _keep(self, object number, list block) except -1
    cdef list _entered(self, uint64_t number)
    cdef int _end(self, list locks, object failure) except -1


cdef class Departure(Waiter):
    """The end of an ``async with`` block: what ``__aexit__`` gives to be awaited."""
    cdef Departure earlier            # that of a block of the same SlotLock whose lock was lost; or None
    cdef object exc_type              # class of the exception that leaves the block; or None
    cdef object exc_value             # that exception; or None
    cdef Leave due                    # what the release needs
    cdef Loss loss                    # of the hold that ends
    cdef uint64_t generation          # of C_Initialize, as the end began
    cdef CK_RV rv                     # what the device has answered
    cdef double began                 # when the unlock call began, in seconds of luna_now()
    cdef int finished                 # whether the release has been made
    cdef bint in_block                # whether the block runs: it was entered, and its end has not begun
    cdef Heartbeat heartbeat          # of the hold, or None

    cdef int begin(self, object exc_type, object exc_value) except -1
    cdef int finish(self, bint passes_turn) noexcept
    cdef int tell(self, Leave due) noexcept


cdef class Errand(Waiter):
    """A function that a worker runs while a thread or task waits, perhaps with a time limit."""
    cdef object function              # the function, called without arguments
    cdef Locks locks                  # of the client library whose device it asks
    cdef uint64_t made_in             # number of forks until then
    cdef int finished                 # whether it has returned, or raised `error`
    cdef bint given_up                # whether it is counted in `locks`: no thread or task waits for it

    cdef int give_up(self) noexcept


cdef class Claim:
    cdef Library library               # makes the slot's object
    cdef Share share                   # the Library's
    cdef bytes cluster_id              # NUL-terminated by Python
    cdef double timeout                # seconds to wait for a token to become free
    cdef Deadline deadline             # of that wait; never, with a timeout of 0
    cdef Deadline tries_until          # until when a device that is busy is asked again
    cdef Token token                   # what is claimed, while the block runs; or None
    cdef Departure departure           # the end of the `async with` block that runs, or None
    cdef int entered                   # whether the block runs, or is being entered
    cdef double beat                   # seconds within which a loss is noticed; 0: none is looked for
    cdef object on_lost                # the application's function, called at a loss; or None
    cdef Heartbeat heartbeat           # of the `with` block that runs, or None
    cdef Wait wait                     # the wait for a token, from the call of __enter__ on
    cdef object refusal                # error of the last try: none left, or busy; None: no try yet

    cdef int _begin(self) except -1
    cdef Token _running(self)
    cdef int _end(self) noexcept
    cdef Request _request(self, uint64_t number)
    cdef int _ask_and_wait(self, Request request) except -1
    cdef bint _has_time(self) except -1
    cdef Token _token_of(self, Request request)
    cdef Heartbeat _begin_heartbeat(self, Request request, object task, object loop)
