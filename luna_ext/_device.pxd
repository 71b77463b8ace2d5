"""The device layer: a loaded client library and this process's calls into it. It knows nothing of
locks.
"""

from cpython.object cimport PyObject
from libc.stdint cimport uint8_t, uint32_t, uint64_t

include "_device/cryptoki.pxd"


cdef extern from "pythread.h":
    ctypedef void *PyThread_type_lock
    ctypedef int PyLockStatus
    PyThread_type_lock PyThread_allocate_lock() noexcept nogil
    void PyThread_free_lock(PyThread_type_lock lock) noexcept nogil
    int PyThread_acquire_lock(PyThread_type_lock lock, int wait) noexcept nogil
    PyLockStatus PyThread_acquire_lock_timed(
        PyThread_type_lock lock, long long microseconds, int interruptible
    ) noexcept nogil
    void PyThread_release_lock(PyThread_type_lock lock) noexcept nogil
    unsigned long PyThread_get_thread_ident() noexcept nogil
    unsigned long PyThread_start_new_thread(void (*run)(void *) noexcept nogil, void *argument)
    const unsigned long PYTHREAD_INVALID_THREAD_ID
    const PyLockStatus PY_LOCK_FAILURE
    const PyLockStatus PY_LOCK_ACQUIRED
    const PyLockStatus PY_LOCK_INTR
    const int NOWAIT_LOCK
    const int WAIT_LOCK


cdef extern from "Python.h":
    int PyErr_CheckSignals() noexcept


cdef extern from "native.h":
    double luna_now() noexcept nogil
    void luna_pause(double seconds) noexcept nogil
    uint64_t luna_nanoseconds() noexcept nogil
    uint64_t luna_coarse_nanoseconds() noexcept nogil

    ctypedef char *luna_path_t
    luna_path_t luna_path_of(object path) except NULL
    void luna_path_free(luna_path_t path) noexcept
    void *luna_open(luna_path_t path) noexcept nogil
    void *luna_symbol(void *handle, const char *name) noexcept nogil
    void luna_open_error(char *text, size_t room) noexcept nogil

    int luna_at_fork_in_child(void (*handler)() noexcept nogil) noexcept

    ctypedef struct luna_thread:
        void (*run)(void *argument) noexcept nogil
        void *argument
    bint luna_start_thread(luna_thread *thread) noexcept
    void luna_join_thread(const luna_thread *thread) noexcept nogil
    void luna_leave_thread(const luna_thread *thread) noexcept nogil

    bint LUNA_GIL
    enum:
        LUNA_SHARDS
        LUNA_DURATIONS
        LUNA_ERRORS
    ctypedef struct luna_guard:
        pass
    void luna_guard_lock(luna_guard *guard) noexcept nogil
    void luna_guard_unlock(luna_guard *guard) noexcept nogil
    void luna_guard_forget(luna_guard *guard) noexcept nogil
    # Macros, for any number that threads share.
    int luna_shared_get(int *place) noexcept nogil
    void luna_shared_set(int *place, int value) noexcept nogil
    int luna_shared_add(int *place, int amount) noexcept nogil
    uint64_t luna_shared_get64 "luna_shared_get" (uint64_t *place) noexcept nogil
    void luna_shared_set64 "luna_shared_set" (uint64_t *place, uint64_t value) noexcept nogil
    uint64_t luna_shared_add64 "luna_shared_add" (uint64_t *place, uint64_t amount) noexcept nogil
    uint32_t luna_shared_get32 "luna_shared_get" (uint32_t *place) noexcept nogil
    void luna_shared_set32 "luna_shared_set" (uint32_t *place, uint32_t value) noexcept nogil
    uint8_t luna_shared_get8 "luna_shared_get" (uint8_t *place) noexcept nogil
    void luna_shared_set8 "luna_shared_set" (uint8_t *place, uint8_t value) noexcept nogil
    void *luna_shared_get_pointer "luna_shared_get" (void **place) noexcept nogil
    void luna_shared_set_pointer "luna_shared_set" (void **place, void *value) noexcept nogil
    int luna_shared_take(int *place) noexcept nogil
    # From 0 to 1: whether this thread has done it.
    bint luna_shared_set_once(int *place) noexcept nogil
    void luna_mark(uint8_t *place) noexcept nogil
    bint luna_is_marked(uint8_t *place) noexcept nogil
    void luna_mark_as(uint8_t *place, int value) noexcept nogil
    uint8_t luna_marked_as(uint8_t *place) noexcept nogil
    bint luna_take_mark(uint8_t *place) noexcept nogil
    bint luna_is_first(int *place) noexcept nogil

    int luna_bits(uint64_t number) noexcept nogil

    # Without the GIL too.
    ctypedef struct luna_bell:
        pass
    luna_bell *luna_new_bell() noexcept nogil
    luna_bell *luna_keep_bell(luna_bell *bell) noexcept nogil
    void luna_drop_bell(luna_bell *bell) noexcept nogil
    void luna_ring(luna_bell *bell) noexcept nogil
    void luna_answer_bell(luna_bell *bell) noexcept nogil
    int luna_bell_fd(const luna_bell *bell) noexcept nogil
    ctypedef struct luna_item:
        luna_item *next
    void luna_push(luna_item **list, luna_item *item) noexcept nogil
    luna_item *luna_take_all(luna_item **list) noexcept nogil

    struct luna_lengths:
        uint64_t nanoseconds
        uint64_t *durations
    struct luna_counter:
        luna_lengths lengths
        uint64_t longest
        uint64_t timed
        uint64_t sample
        uint64_t *codes
        uint64_t *errors

    uint64_t luna_count_get(uint64_t *place) noexcept nogil
    void luna_count_add(uint64_t *place, uint64_t amount) noexcept nogil
    void luna_count_length(luna_lengths *lengths, uint64_t nanoseconds) noexcept nogil
    uint64_t LUNA_FAST
    uint64_t LUNA_SURELY_SLOW
    bint luna_is_sample(luna_counter *counter, uint64_t now) noexcept nogil
    void luna_note_sample(luna_counter *counter, uint64_t now, uint64_t nanoseconds) noexcept nogil
    void luna_count_untimed(luna_counter *counter) noexcept nogil
    void luna_add_untimed(luna_counter *counter) noexcept nogil
    void luna_count_answer(luna_counter *counter, uint64_t rv) noexcept nogil

    void luna_calls_device() noexcept nogil
    void luna_comes_back() noexcept nogil
    void luna_is_back() noexcept nogil

    void luna_make_immortal(object living_as_long_as_the_process) noexcept
    PyObject *luna_look_up(object dict, object key) noexcept
    ctypedef struct luna_watch:
        pass
    void luna_begin_watch(luna_watch *watch, object dict, object key) noexcept
    PyObject *luna_watched(luna_watch *watch) noexcept

    uint64_t luna_number() noexcept nogil
    bint luna_is_main() noexcept nogil
    bint luna_is_worker() noexcept nogil
    void *luna_asks_for() noexcept nogil
    void luna_note_asking(void *lock) noexcept nogil
    void luna_become_worker() noexcept nogil
    void luna_introduce(uint64_t number, bint is_main) noexcept nogil
    uint64_t luna_joined_number() noexcept
    void luna_note_joined(bint joined) noexcept
    int luna_shard() noexcept nogil
    bint luna_leads_process() noexcept nogil
    long luna_thread_id() noexcept nogil
    bint luna_thread_exists(long id) noexcept nogil

    int luna_raise_pending() except -1


cdef enum:
    # A longer wait is worth a WARNING.
    LONG_WAIT_SECONDS = 5


# The C functions that are called; indices into NAMES and into a Client's counters.
cdef enum Function:
    C_INITIALIZE
    C_FINALIZE
    C_GET_INFO
    C_GET_SLOT_LIST
    C_GET_SLOT_INFO
    C_GET_TOKEN_INFO
    C_INIT_TOKEN
    C_INIT_PIN
    C_SET_PIN
    C_OPEN_SESSION
    C_CLOSE_SESSION
    C_GET_SESSION_INFO
    C_LOGIN
    C_LOGOUT
    CA_CHANGE_LABEL
    CA_GET_SLOT_ID
    CA_GET_UNASSIGNED_SLOT
    CA_LOCK_CLUSTERED_SLOT
    CA_UNLOCK_CLUSTERED_SLOT
    FUNCTION_COUNT


cdef enum State:
    CLOSED          # no Library is open
    READY           # the only state in which a call may begin
    CLOSING         # the last Library was closed, calls may still be in flight
    DUE             # C_Initialize is: in a forked child, or after one that failed
    FORKED          # a child, and nothing was done for that yet: C code has forked
    RECONNECTING    # calls wait until the library is initialised anew


# What the threads of one shard count of their calls. Without the GIL threads are spread over several
# shards, so that they seldom write to the same cache line.
cdef struct Traffic:
    int in_flight                            # device calls that have not come back
    luna_counter counters[<int> FUNCTION_COUNT]   # by function
    luna_lengths waits                       # of threads and tasks for locks, but for the shortest
    luna_lengths holds                       # of locks, but for the shortest
    uint64_t timeouts                        # waits whose time was up


# A device call.
cdef struct Call:
    Traffic *traffic        # where it is counted: as in flight,
    luna_counter *counter   # and by its function
    bint timed              # whether its length is measured
    uint64_t began          # luna_coarse_nanoseconds()
    uint64_t ended          # the same, when its answer was there
    uint64_t nanoseconds    # how long it took; 0: it was fast, and not timed
    CK_RV rv                # the answer


# A lock or unlock call that a thread without the GIL makes.
cdef struct SlotCall:
    Call call
    void *client            # the Client, which lives as long as the process
    void *make              # the Making: lock or unlock
    CK_SLOT_ID slot_id      # its argument
    uint8_t *back           # a mark: the answer is there; or NULL


# A session of our own that shows whether the library was finalised, and with it each lock dropped.
cdef struct Canary:
    CK_SESSION_HANDLE session
    CK_SLOT_ID slot_id      # on which it is open
    uint64_t generation     # of C_Initialize, in which it was opened; 0: there is none
    uint64_t sought_in      # the generation in which one was asked for


# What is known of the canary.
cdef enum Life:
    NO_CANARY       # there is none, or the device does not say
    ALIVE
    GONE


cdef class Share:
    """One Library's part in a Client."""
    cdef readonly Client client   # the client library that the Library uses
    cdef readonly str path        # absolute; the path by which this Library found it
    cdef uint64_t number          # never used again, so that it can be kept without the Share
    cdef int open                 # whether its Library is still open
    cdef bint poll                # contention="poll": an error that may mean contention is tried again
    cdef double handover          # seconds from a grant in which a lock may be handed over; 0: never is


cdef class Client:
    cdef readonly str path                        # absolute, as it was first loaded
    cdef readonly bint is_stub                    # whether it is the stand-in
    cdef bint stub_warned                         # whether the warning about the stand-in was given
    cdef bint stub_sought                         # whether the manufacturer was asked for who made it
    cdef void *handle                             # from dlopen; never closed
    cdef CK_FUNCTION_LIST *functions              # the C_ functions; published once, never changed
    cdef CA_GetSlotId_t get_slot_id               # NULL: not exported; so the four below
    cdef CA_GetUnassignedSlot_t get_unassigned_slot
    cdef CA_LockClusteredSlot_t lock_clustered_slot
    cdef CA_UnlockClusteredSlot_t unlock_clustered_slot
    cdef CA_ChangeLabel_t change_label
    cdef int state                                # a State
    cdef bint initialised_here                    # whether our C_Initialize took effect, in this process
    cdef bint inherited                           # in a child: whether it was initialised at the fork
    cdef bint left_initialised                    # closed, and not finalised: other code goes on with it
    cdef int initialised                          # initialised and, for all we know, not finalised
    cdef uint64_t generation                      # number of the newest C_Initialize
    cdef int suspect                              # an answer has meant that the device knows us no more
    cdef Canary canary                            # our own session in this generation
    # Of `shares`, and of what is written of the canary and the generation. Threads that lock read
    # `sought_in` and `generation` without it.
    cdef luna_guard guard
    cdef set shares                               # of the Libraries that have not closed
    cdef PyThread_type_lock transition            # held while one thread initialises or finalises
    cdef PyThread_type_lock idle                  # wakes the threads that wait for the last call
    cdef int awaited                              # whether a thread waits for `idle`
    cdef Traffic *traffic                         # LUNA_SHARDS of them
    cdef readonly object locks                    # what the layer above keeps for this client

    cdef int make_ready(self) except -1
    cdef int refuse(self) except -1
    cdef int need(self, int function, str path) except -1
    cdef bint exports(self, int function) noexcept
    cdef int lacks(self, int function) noexcept
    cdef int in_flight(self) noexcept nogil
    cdef bint wait_for_calls(self, double seconds, int left) except -1
    cdef CK_RV finalize(self) except? 0xFFFFFFFF
    cdef int refuse_new_calls(self) noexcept
    cdef bint take_finalising(self) noexcept
    cdef int note_finalised(self) noexcept
    cdef Share join(self, str path)
    cdef int reconnect(self, double seconds, Share share, uint64_t lost) except -1
    cdef int part(self, Share share) except -1
    cdef bint _may_change(self) except -1
    cdef int _begin_change(self) except -1
    cdef CK_RV _initialise(self) noexcept
    cdef int _note_failure(self, CK_RV rv) noexcept
    cdef bint _is_parents(self) noexcept
    cdef int _raise_initialising(self, CK_RV rv) except -1
    cdef int _drain(self, Deadline deadline) noexcept
    cdef CK_RV _call_finalize(self) noexcept
    cdef bint _canary_lives(self) noexcept
    cdef int _drop_canary(self) noexcept
    cdef int _end_change(self) noexcept
    cdef int wait_for_change(self) except -1


cdef class Pin:
    cdef CK_UTF8CHAR *bytes      # our own copy, wiped when the Pin goes; NULL: it is entered at the pad
    cdef CK_ULONG length         # of the PIN, in bytes
    cdef size_t room             # of the copy, in bytes; all of it is wiped

    cdef bint is_wiped(self) noexcept
    cdef bint is_pad(self) noexcept
    cdef int _reserve(self, Py_ssize_t size) except -1
    cdef bint _encode(self, pin) except -1


# Until when something may last.
cdef struct Deadline:
    double end              # seconds of luna_now(); infinite: without limit

cdef Deadline deadline_in(double seconds) noexcept nogil
cdef double left_of(Deadline deadline) noexcept nogil
cdef int wait_for_none(int *number, Deadline deadline) noexcept

cdef int do_in_child(object hook) except -1
cdef int hear_of_fork() except -1
cdef Client load_client(str path)
cdef list loaded_clients()
cdef void become_worker() noexcept nogil
cdef void introduce(uint64_t number, bint is_main) noexcept nogil
cdef bint on_main_thread() noexcept nogil
# How long a wait of the main thread lasts until it looks for signals.
cdef double SIGNAL_SECONDS
cdef bint wait_on(PyThread_type_lock signal, double seconds) except -1
cdef bint release_and_wait_on(
    PyThread_type_lock first, PyThread_type_lock signal, double seconds
) except -1
cdef PyThread_type_lock new_signal() except NULL
cdef void gives_way() noexcept nogil
cdef int begin_exit(Deadline deadline) noexcept
cdef bint exit_has_begun() noexcept
cdef double left_of_exit() noexcept nogil
cdef int hold_back_at_exit() except -1

# These say whether the call was made (if not, the client is not ready, or does not answer any
# more), and cannot raise: their callers have to act on the answer at once.
cdef bint lock_slot(
    Client client, CK_SLOT_ID slot_id, uint64_t generation, CK_RV *rv, uint64_t *nanoseconds,
    uint8_t *back, uint64_t *clock
) noexcept
cdef bint unlock_slot(
    Client client, CK_SLOT_ID slot_id, uint64_t generation, CK_RV *rv, uint64_t *clock
) noexcept
cdef bint begin_slot_call(
    Client client, int function, CK_SLOT_ID slot_id, uint64_t generation, uint8_t *back, SlotCall *made
) noexcept nogil
cdef void make_slot_call(SlotCall *made) noexcept nogil
cdef void end_slot_call(SlotCall *made) noexcept nogil
cdef void drop_slot_call(SlotCall *made) noexcept nogil
cdef bint next_unassigned(
    Client client, const CK_CHAR *cluster_id, CK_UNASSIGNED_SLOT_INFO *info, CK_RV *rv, uint64_t *made_in
) noexcept
cdef bint names_a_slot(CK_UNASSIGNED_SLOT_INFO *info) noexcept nogil
# Of the canary. These cannot raise either.
cdef CK_RV open_canary(Client client, CK_SLOT_ID slot_id) noexcept
cdef Life ask_canary(Client client) noexcept
cdef bint shows_loss(CK_FUNCTION_LIST *functions, Canary *canary) noexcept nogil
cdef bint canary_is_on(Client client, CK_SLOT_ID slot_id) noexcept nogil
cdef Life move_canary(Client client, CK_SLOT_ID slot_id, CK_SLOT_ID other) noexcept
cdef bint close_canary(Client client, CK_SLOT_ID slot_id) noexcept
cdef void want_canary(Client client) noexcept nogil
cdef bint is_lost(Client client) noexcept
# All others raise.
cdef object library_info(Client client)
cdef bint wraps_stand_in(Client client) except -1
cdef list slot_ids(Client client, bint token_present)
cdef object slot_info(Client client, CK_SLOT_ID slot_id)
cdef int read_token_info(Client client, CK_SLOT_ID slot_id, CK_TOKEN_INFO *info) except -1
cdef object token_info_of(CK_TOKEN_INFO *info)
cdef bytes blank_padded(CK_UTF8CHAR *label)
cdef bytes token_label(Client client, CK_SLOT_ID slot_id)
cdef list slots_with_label(Client client, bytes label)
cdef int init_token(
    Client client, CK_SLOT_ID slot_id, uint64_t generation, Pin so_pin, bytes label
) except -1
cdef bint as_security_officer(
    Client client, CK_SLOT_ID slot_id, uint64_t generation, Pin so_pin, bytes label, Pin user_pin
) except -1
cdef int set_pin(
    Client client, CK_SLOT_ID slot_id, uint64_t generation, CK_USER_TYPE role, Pin old, Pin new
) except -1
cdef bint ensure_user_pin(
    Client client, CK_SLOT_ID slot_id, uint64_t generation, Pin so_pin, Pin user_pin
) except -1
cdef Pin as_pin(object pin, str name)
cdef bint same_pins(Pin one, Pin other) noexcept

cdef str name_of(int function)
cdef void count_wait(Client client, uint64_t nanoseconds) noexcept nogil
cdef void count_hold(Client client, uint64_t nanoseconds) noexcept nogil
cdef void count_timeout(Client client) noexcept nogil
cdef double average_seconds(Client client, int function) noexcept
cdef object error_of(CK_RV rv, int function, object slot_id)
# What the table in errors.py says of a code.
cdef bint says_busy(CK_RV rv) noexcept nogil
cdef bint says_lost(CK_RV rv) noexcept nogil
