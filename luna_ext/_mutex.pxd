"""The mutex layer: the lock of one slot in this process, over the device layer."""

from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from luna_ext._device cimport (
    CK_RV,
    CK_SLOT_ID,
    CK_TOKEN_INFO,
    CK_UNASSIGNED_SLOT_INFO,
    Client,
    Deadline,
    Life,
    PyThread_type_lock,
    Share,
    SlotCall,
    luna_bell,
    luna_guard,
)

# How a wait ended.
cdef enum Outcome:
    WAITING
    TURN        # the waiter makes the lock call itself, on its own thread
    GRANTED     # the waiter holds the lock
    FAILED      # Waiter.error says why
    WITHDRAWN   # the waiter has given up
    LEFT_BEHIND     # the wait began in the parent process; this is its forked child

# What is known of how the device answers a second lock call of the application that holds the lock.
cdef enum Kind:
    UNKNOWN
    GRANTS_AGAIN    # with CKR_OK
    GIVES_ONCE      # not with CKR_OK: it waits for the unlock, or answers an error

# Why a lock that is held is not on the device any more.
cdef enum Loss:
    NOT_LOST
    DEVICE_GONE     # the device does not know this application any more
    FINALISED       # C_Finalize has dropped it
    LIBRARY_CLOSED  # close() has taken it off
    EXITING         # the interpreter's exit has taken it off
    HOLDER_ENDED    # the holder's thread had ended

# Whether a grant proves nothing, so that it is not known whether the lock is on.
cdef enum Doubt:
    NO_DOUBT
    FROM_LOCK       # that of a lock call; it is told of if it lasts
    FROM_EARLIER    # the same, of a call of an earlier generation: C_Finalize may have undone it
    FROM_CLAIM      # that of a claim, which tells of it itself

# What follows from the answer to a lock call.
cdef enum Verdict:
    REFUSED         # the answer is an error
    IGNORED         # granted, but the grant proves nothing: ask again
    OWNED           # the calling thread, or the first waiter, holds the lock
    UNWANTED        # granted, and no waiter is left: to be unlocked at once

# Which thread makes the next lock call of a slot that has become free.
cdef enum Next:
    NO_TURN
    WAITERS_TURN    # the first waiter is to make the lock call itself
    WORKERS_TURN    # a worker is to make it for the first waiter

# What the end of a hold needs.
cdef enum Leave:
    NOT_MINE
    LOST            # no unlock call: another process may have the lock by now
    UNLOCK_DUE        # the unlock call is due
    UNLOCK_DUE_LATER    # the unlock call is due after a moment for the lock call that is out
    LEFT_TO_WORK        # calls under way rely on the lock: the last one that ends unlocks
    HANDED_OVER     # no unlock call: the next waiter of this process has the lock

# What a claim has come back with.
cdef enum Arrival:
    HELD            # a slot that this process holds already; it stays with its holder
    UNPROVEN        # a grant that an unlock may have undone
    CLAIMED         # the claim's own
    RETURNED        # granted truly, and the claim was given up: to be unlocked at once

# How the answer to a call has been heard that a worker has made without the GIL.
cdef enum Heard:
    NOT_HEARD       # that may take longer than an event loop can wait: the worker is to do it
    HEARD
    TURN_IS_DUE     # the subject is a Waiter, whose mutex's next lock call is due

# What is done with the answer to a call that a worker has made without the GIL. `here`: the bell of the
# event loop that does it; NULL: a worker does. With `slowly` the call's own worker does it, whatever there
# is to do; else nothing is done that may take long or run Python code.
ctypedef Heard (*Hear)(object subject, SlotCall *made, luna_bell *here, bint slowly) noexcept

# Where one thread or task waits: its place in a slot's queue, or in a claim.
cdef struct Seat:
    Seat *before            # its neighbours in the queue
    Seat *behind
    uint64_t number         # of the thread, task or greenlet that waits; never used again
    uint64_t home           # number of the thread that it runs on
    uint64_t share          # number of the Share through which it waits
    uint64_t hold           # GRANTED: number of the hold. In a Departure: of the hold that ends
    Outcome outcome         # see above
    bint own_call           # it makes the lock call itself and cannot give up in it
    bint patient            # it makes the call itself if no worker can be had
    bint poll               # an error that may mean contention is tried again
    void *waiter            # the Waiter that it is part of; while it is queued, a reference
    luna_bell *bell         # of the event loop of a task that waits; NULL: there is none

# What is known of other processes that want the lock of a slot, where that is found out by polling. In
# microseconds of luna_now(); 0: never.
cdef struct Contention:
    uint64_t met            # when a lock call found the lock with another process, the last time
    uint64_t run_began      # when this process got it first, without another one in between
    uint64_t freed          # when an unlock call was answered, the last time

# What only few slots ever need: part of a Seldom, which is made when that becomes so, and then stays.
cdef struct Rare:
    void *seldom            # the Seldom that it is part of
    PyThread_type_lock call_signal  # released when the lock call goes out or comes back; or NULL
    uint64_t unlocked_time  # luna_coarse_nanoseconds() when the unlock that crossed it was answered
    Contention contention   # of other processes, where the Library polls
    uint64_t alive_at       # luna_coarse_nanoseconds() when the canary was last seen before a handover
    uint32_t watched_call   # number of the lock call that the watcher saw last
    bint watched_told       # whether the watcher has warned of it
    double watched_since    # when the watcher saw it first, in seconds of luna_now()
    uint64_t let_pass       # number of the newest unlock that a claim has waited for in vain
    int doubted             # whether a worker is to tell of a doubt, if it lasts
    int doubts              # how many there were of which a worker was to tell

# The state of one slot's lock in this process. Only the transitions in state.pyx write it, but for the
# marks. A process may have thousands of them, so it is small.
cdef struct Record:
    luna_guard guard        # of all that follows the marks
    uint8_t back            # a mark: the lock call has its answer, heard or not
    uint8_t is_unassigned   # a mark: a claim holds the slot, and has not assigned its token
    uint8_t turn            # one thread may make lock calls, or is about to
    uint8_t calling         # the device has the lock call
    uint8_t crossed         # an unlock became due since the newest lock call began
    uint8_t suspected       # an unlock has crossed the newest lock call after a moment
    uint8_t owed_since      # `owed` was made so by a doubt since the newest lock call began
    uint8_t on_trial        # the lock call was made while the lock was surely on, and its moment lasts
    uint8_t unsent          # a worker is to make it, and has not come to that
    uint8_t doubt           # a Doubt
    uint8_t owed            # a lock call is due even without a waiter: to take off what may be set
    uint8_t inherited       # the lock was held in the parent process, at the fork
    uint8_t eviction_due    # the hold is over, or its Library closed, while such calls are under way
    uint8_t loss            # a Loss: of the present hold
    uint32_t calls          # lock calls so far; counts anew from 0 behind the largest number
    uint16_t leaving        # unlock calls that are due, or out
    uint16_t working        # calls under way that rely on the hold; it is unlocked after them
    uint32_t waiting        # length of the queue
    uint32_t asked_in       # the generation of C_Initialize in which the newest lock call was made
    uint32_t generation     # that in which the newest hold was granted
    uint32_t doubt_in       # that in which `doubt` was
    uint32_t owed_in        # that in which `owed` became so
    uint32_t share          # number of the Share through which the lock is held
    uint64_t caller         # the thread with the turn, if it makes the calls for itself; 0: a worker does
    uint64_t owner          # number of the thread, task or greenlet that holds the lock; 0: none
    uint64_t home           # number of the thread that the owner runs on
    uint64_t hold           # number of the newest hold: shows whether it is still the same hold
    uint64_t unlocks        # unlock calls that were due so far
    uint64_t unlocked_at    # number of the newest claim when the last one was answered
    Seat *first             # the queue; the first is next, and the last is before the first
    Rare *rare              # or NULL

# What the Records of a client share.
cdef struct Common:
    int kind                # a Kind: what is known of the device
    uint64_t handed_over    # unlocks that were due and not made: the next waiter got the lock instead
    uint64_t losses         # holds whose lock the device had dropped

# The pauses between the tries of a call that the device turns down.
cdef struct Backoff:
    double longest          # seconds; the next pause is shorter

# How a release has gone.
cdef struct Release:
    uint64_t number         # of the thread or greenlet that releases
    Leave due               # what the end of the hold needs
    Loss loss               # LOST: why
    CK_RV rv                # what the device has answered; CKR_OK: no call was due
    double began            # when, in seconds of luna_now(), if DEBUG records may be wanted; else 0

# One wait, from the moment that the lock was asked for.
cdef struct Wait:
    double began            # seconds of luna_now(); 0: with the device call, which is timed
    bint debug              # whether DEBUG records were wanted then
    bint warned             # whether its length was warned of, which is done once


cdef class TaskMark:
    """What is known of an asyncio task."""
    cdef uint64_t number             # never used again
    # Weak. A reference that calls, as this does, is dead when the coroutine of the task is closed; since
    # CPython 3.15, one that does not call outlasts that in a garbage collection.
    cdef object task
    cdef int waits                   # how many waits for a slot's lock it has begun and not ended


cdef class Inbox:
    """What has come in for the tasks of an event loop, which is told once for all that it has not seen."""
    cdef object __weakref__
    cdef object loop                 # weak: the event loop
    cdef object came_in              # a deque: weak references to futures that are to be settled
    cdef luna_bell *bell             # tells the loop to look; NULL: call_soon_threadsafe() does
    cdef int told                    # whether the loop is going to look, where there is no bell
    cdef int hearing                 # whether the loop is about to look, and hears answers before
    cdef uint64_t made_in            # `forks` when it was made
    cdef dict waits                  # Waiter -> None, in order: to be warned of when they become long
    cdef bint watches                # whether the loop is going to look for long ones

    cdef int watch(self, Waiter waiter) except -1
    cdef bint put(self, object future) except -1


cdef class Waiter:
    """One thread or task that waits."""
    cdef Seat seat                   # its place in the queue
    cdef Share share                 # the Share of the Library through which it waits
    cdef SlotMutex mutex             # whose lock it waits for, holds or leaves; None: not known yet
    cdef Wait wait                   # since when it waits
    cdef PyThread_type_lock signal   # wakes the thread; NULL: a task waits
    cdef Inbox inbox                 # of the task's event loop
    cdef object future               # weak: what the task awaits
    cdef luna_guard guard            # of these two
    cdef object error                # the exception of FAILED

    cdef int prepare(self, uint64_t number, uint64_t home, Share share) except -1
    cdef int wait_in_thread(self) except -1
    cdef int wait_in_task(self, object future) except -1
    cdef int be_told_with(self, Waiter other) noexcept
    cdef bint wake(self) except -1
    cdef object failure(self)


cdef class Place:
    """Where a lock was taken. Never changed once it is noted."""
    cdef object task                 # weak: the task that took it, or None
    cdef object code                 # the code object that took it, or None
    cdef int lasti                   # index of the instruction in it
    cdef uint64_t hold               # the hold that began there


cdef class Lineage:
    """Which thread, task or greenlet a context belongs to, and which ones started it. Never changed."""
    cdef uint64_t number             # of the thread, task or greenlet that has asked for a lock
    cdef int length                  # of the chain to the oldest
    cdef Lineage parent              # what the context had before: of what has started it; or None


cdef class LostEvent:
    """Whether the lock of one hold was lost."""
    cdef uint64_t hold               # number of the hold
    cdef int lost                    # whether it was
    cdef PyThread_type_lock signal   # released as soon as it is

    cdef int set(self) noexcept


cdef class Heartbeat:
    """One hold that is looked after, from begin() to end(). Its block keeps it."""
    cdef object __weakref__
    cdef object reference            # weak: this Heartbeat, as it stands among all
    cdef SlotMutex mutex             # whose lock is held
    cdef Share share                 # the Share of the Library through which it is held
    cdef uint64_t hold               # number of the hold
    cdef uint64_t owner              # of the thread, task or greenlet that holds it
    cdef double interval             # seconds from an answer to the next question
    cdef double due                  # when the next question is due, in seconds of luna_now()
    cdef double asked_since          # when the question was put that is out; 0: none is
    cdef bint told_of_silence        # whether a WARNING has told that it stays out
    cdef bint told_of_problem        # whether a WARNING has told of the last answer, an error
    cdef int told                    # whether the block is being told of the loss
    cdef Loss loss                   # what it is told
    cdef object on_lost              # the application's function, called with the error; or None
    cdef object loop                 # weak: the event loop of the block's task; None: a thread runs it
    cdef object task                 # weak: the task
    cdef int cancelling              # how many cancellations of the task were under way when it began
    cdef bint in_block               # whether the block runs
    cdef bint cancelled              # whether the task was cancelled for the loss

    cdef int wait_in_task(self, object task, object loop) except -1
    cdef int begin(self, uint64_t hold, uint64_t owner) except -1
    cdef int end(self) except -1
    cdef bint is_over(self) noexcept
    cdef bint take(self, double now) noexcept
    cdef double look(self, double now, double *asked_last) except -1
    cdef int warn_if_late(self, double now) except -1
    cdef int ask(self, set asked) except -1
    cdef int _is_answered(self) noexcept
    cdef int tell(self, Loss loss) except -1
    cdef int _tell_others(self, object error) except -1
    cdef bint uncancel(self) except -1


cdef class Seldom:
    """What only few locks ever need. Made when that becomes so, and kept."""
    cdef Rare rare                   # the part of the Record
    cdef dict evictions              # (owner, Share) -> why its lock was taken off; the newest, or None
    cdef Place noted                 # where the newest noted hold was taken, or None
    cdef LostEvent lost              # of the newest hold whose event was asked for; or None


cdef class LateUnlock:
    """An unlock call that is due, and that a worker is to make."""
    cdef SlotMutex mutex             # of the slot
    cdef uint64_t generation         # of C_Initialize, in which the hold was granted


cdef class SlotMutex:
    """The lock of one slot in this process."""
    cdef Record record
    # luna_coarse_nanoseconds() when the device granted the lock; 0: not known, or no holder has got it
    cdef uint64_t held_since
    cdef Locks locks                 # of the client, for all its slots
    cdef readonly CK_SLOT_ID slot_id

    cdef Rare *known_rare(self) noexcept nogil
    cdef Rare *rare(self) noexcept
    cdef Seldom known_seldom(self)
    cdef Seldom seldom(self)
    cdef dict evictions(self)

    cdef uint64_t generation(self) noexcept nogil
    cdef int acquire(self, Share share) except -1
    cdef bint acquire_within(self, Share share, double seconds, uint64_t *hold) except -1
    cdef int refuse_reentry(self, uint64_t number, uint64_t home, bint may_wait) except -1
    cdef bint is_free(self) noexcept
    cdef int ask(self, Waiter waiter, PyThread_type_lock *wake) except -1
    cdef int withdraw(self, Waiter waiter) except -1
    cdef int confirm(self, Waiter waiter) except -1
    cdef int _count_wait(self, Wait *wait) noexcept
    cdef int _confirm(self, Waiter waiter) except -1
    cdef int confirm_claim(self, Waiter request, Wait *wait) except -1

    cdef int release(self, uint64_t number, Share share) except -1
    cdef CK_RV begin_release(self, uint64_t number, Share share, Leave *due, Loss *loss) noexcept
    cdef bint begin_release_here(self, Share share, Release *release) except -1
    cdef int judge_release(
        self, Leave due, Loss loss, CK_RV rv, uint64_t number, Share share, double began
    ) except -1
    cdef int conclude_release(
        self, Leave due, Loss loss, CK_RV rv, uint64_t number, Share share, double began
    ) except -1
    cdef int leave_unassigned(self) noexcept
    cdef CK_RV take_off(self, bint after_a_moment, uint64_t generation, bint passes_turn) noexcept
    cdef CK_RV after_unlock(
        self, CK_RV rv, uint64_t now, uint64_t generation, bint passes_turn, bint unassigned
    ) noexcept
    cdef bint unlock_without_gil(self, Waiter departure, uint64_t generation, Hear hear) noexcept
    cdef Heard after_plain_unlock(self, SlotCall *made) noexcept
    cdef CK_RV hand_over(self, uint64_t generation, Share share, Leave *due) noexcept
    cdef int give_back(self, uint64_t hold) noexcept
    cdef int pass_turn(self) noexcept
    cdef int pass_turn_by(self, PyThread_type_lock *wake) noexcept

    cdef bint is_mine(self) except -1
    cdef bint is_relied_on(self) except -1
    cdef int check_mine(self, str function) except -1
    cdef int check_not_evicted(self, Share share, str function) except -1
    cdef bint task_is_gone(self) except -1
    cdef bint is_over(self, uint64_t hold) noexcept
    cdef int ensure_held(self, Share share, CK_TOKEN_INFO *info) except -1
    cdef int _read_while_held(self, uint64_t hold, CK_TOKEN_INFO *info) except -1
    cdef int begin_work(self) noexcept
    cdef int end_work(self) except -1
    cdef int keep_place(self, Place place, uint64_t hold) noexcept
    cdef Place present_place(self)
    cdef str place(self)
    cdef str describe_holder(self)
    cdef str name_holder(self, uint64_t owner)
    cdef bint ended_by_fork(self, uint64_t number) except -1
    cdef int raise_evicted(self, uint64_t number, Share share, str function) except -1
    cdef bint has_evicted(self, Share share) except -1
    cdef int note_eviction(self, uint64_t owner, uint64_t share, Loss loss) except -1
    cdef int end_lost(self, uint64_t owner, uint64_t share, uint64_t hold, Loss loss) except -1
    cdef LostEvent lost_event(self, uint64_t hold)
    cdef LostEvent lost_event_of_caller(self, Share share)
    cdef int note_loss(self, uint64_t hold, Loss loss) except -1
    cdef int take_from_holder(self, uint64_t hold, Loss told) except -1
    cdef object close_share(self, Share share)

    cdef bint _is_long(self, uint32_t call, double now) noexcept
    cdef bint _was_told_of_call(self) noexcept
    cdef int _acquire_with_records(self, uint64_t number, Share share) except -1
    cdef int _own_call(self, uint64_t number, Share share, Wait *wait) except -1
    cdef int _wait_for_turn(
        self, uint64_t number, Share share, Wait *wait, bint before_all
    ) except -1
    cdef int _fail_first(self, object error, bint may_call) except -1
    cdef int _pause(self, CK_RV rv, Share share, Wait *wait, Backoff *backoff) except -1
    cdef int _leave_to_others(self) noexcept
    cdef int _conclude_own_call(
        self, uint64_t number, Share share, Wait *wait, uint64_t nanoseconds
    ) except -1
    cdef int _wake(self, Seat *seat) noexcept
    cdef bint _fail_without_thread(self) noexcept
    cdef int _wait_a_moment(self) noexcept
    cdef int _lock_for_waiters(self, bint trial, SlotCall *made) except -1
    cdef int _ask_for_waiters(self, bint trial, SlotCall *made) except -1
    cdef bint _lock_without_gil(self) noexcept
    cdef int _granted(self, Seat *seat, uint64_t now) except -1
    cdef bint _hand_to_first(self) noexcept
    cdef bint _make_trial(self) noexcept
    cdef int unlock_later(self, uint64_t generation) noexcept
    cdef int _unlock_late(self, uint64_t generation) except -1
    cdef int _tell_late(self, CK_RV rv) except -1
    cdef int _note_doubt(self) noexcept
    cdef int _tell_of_doubt(self, object why) except -1


cdef class Request(Waiter):
    """One wait for a claim."""
    cdef bytes cluster_id              # NUL-terminated by Python
    cdef Locks locks                   # of the client
    cdef CK_UNASSIGNED_SLOT_INFO info  # the slot ID and label that the device has given
    cdef bint calling                  # whether the claim is at the device
    cdef uint64_t asked_in             # the generation of C_Initialize in which it was sent there
    cdef bint abandoned                # whether its caller gave it up; then it is counted in `locks`
    cdef bint in_own_call              # whether the thread that waits makes the call itself

    cdef Outcome outcome(self) noexcept
    cdef uint64_t _begin(self) noexcept
    cdef int _end(self) noexcept
    cdef int _refuse(self, object error) except -1
    cdef int64_t _keep_or_unlock(self, SlotMutex mutex) except -1
    cdef bint _take_over(self, uint64_t hold) noexcept
    cdef bint _own_after_all(self) except -1
    cdef int make(self) except -1
    cdef int _ask_for_token(self) except -1
    cdef int _let_unlocks_pass(self) except -1
    cdef bint _waits_for_unlock(self, SlotMutex mutex, uint64_t unlock) noexcept
    cdef int make_here(self, Wait *wait) except -1
    cdef bint make_sure(self) except -1
    cdef int _hold_begins(self) noexcept
    cdef int queue_up(self) except -1
    cdef int give_up(self) except -1


cdef enum:
    FIRST_BLOCK = 64
    MOST_BLOCKS = 26
    MOST_KEPT = 1 << 30

# The SlotMutexes of a client, one per slot and process. Each has a number, in the order in which they came.
cdef struct Table:
    luna_guard guard
    uint32_t count                      # how many there are
    uint32_t room                       # of `places`: a power of 2; 0: there are none yet
    uint32_t *places                    # by what is made of a slot's ID: its number, plus 1; 0: free
    void **blocks[<int> MOST_BLOCKS]    # the SlotMutexes by their numbers, with a reference to each


cdef class Locks:
    """All that a client's locks share."""
    cdef Client client                  # the client library that these locks belong to
    cdef Table table                    # of the SlotMutexes
    cdef Common common                  # what their Records share
    cdef uint64_t claims                # number of the newest claim
    cdef luna_guard guard               # of the claims below
    cdef set requests                   # the Requests that wait, or are being made
    cdef object queue                   # a deque: those that no worker makes yet
    cdef int servers                    # workers that make claims, without those that are stuck
    cdef int claims_out                 # claims that are being made
    cdef int questions                  # at the device, for which close() does not wait: no caller does
    cdef int trials                     # lock calls that were made to find out the device's kind
    cdef int in_doubt                   # whether a slot was in doubt when that was last looked at
    cdef int given_up                   # claims at the device that no thread or task waits for
    cdef bint looking_after             # whether a worker looks for servers that are stuck
    cdef CK_RV no_canary                # why there is no canary, until that is told; or CKR_OK
    cdef bint publishes                 # whether a thread writes the files for `luna-ext watch`

    cdef uint64_t generation(self) noexcept nogil
    cdef int64_t number_of(self, CK_SLOT_ID slot_id) except -1
    cdef SlotMutex mutex(self, int64_t number)
    cdef SlotMutex _new(self)
    cdef int64_t _keep(self, SlotMutex mutex, CK_SLOT_ID slot_id) except -1
    cdef list all(self)
    cdef list unlocks_out(self)
    cdef int serve_next(self) noexcept
    cdef int look_for_canary(self, CK_SLOT_ID slot_id, bint on_worker) noexcept
    cdef bint is_finalised(self) noexcept
    cdef Life look_at_canary(self) noexcept
    cdef Life _heard_of_canary(self, Life life) noexcept
    cdef bint pass_canary_on(self, SlotMutex mutex) noexcept
    cdef SlotMutex _held_beside(self, SlotMutex mutex)
    cdef int lose_all(self) except -1
    cdef int learn(self, int kind) noexcept
    cdef int note_doubt(self) noexcept
    cdef bint is_in_doubt(self) noexcept
    cdef int make_owed_calls(self) noexcept
    cdef bint are_relied_on(self) noexcept
    cdef double moment_seconds(self) noexcept
    cdef int calls_given_up(self) except -1


# What a worker does. Not 0: the subject is a Waiter, and the next lock call of its mutex is the worker's.
ctypedef int (*Work)(object subject) noexcept

cdef uint64_t forks
cdef int signal_anew(PyThread_type_lock signal) noexcept
cdef Heartbeat new_heartbeat(SlotMutex mutex, Share share, double seconds, object on_lost)
cdef Place note_place(SlotMutex mutex, TaskMark mark)
cdef Leave begin_leave_of(
    SlotMutex mutex, uint64_t number, uint64_t hold, uint64_t share, uint64_t generation, Loss *loss
) noexcept
cdef bint run_on_worker(Work work, object subject) noexcept
cdef int call_on_worker(object function) except -1

cdef Locks locks_of(Client client)
cdef uint64_t caller_number() except 0
cdef TaskMark mark_of_task(object task)
cdef uint64_t task_number(object task) except 0
cdef int join_lineage(uint64_t number) except -1
cdef uint64_t thread_number() except 0
cdef bint in_greenlet_hub() except -1
cdef double patience_here(double seconds) except? -2

cdef Record seen(Record *record) noexcept nogil
cdef Outcome outcome_of(Record *record, Seat *seat) noexcept nogil
cdef Deadline answer_by(double timeout) noexcept nogil
cdef double next_pause(Backoff *backoff) noexcept nogil
cdef double poll_pause(double waited) noexcept nogil

cdef int sit_out(
    Waiter waiter, Wait *wait, Deadline deadline, object warn, PyThread_type_lock wake
) except -1
cdef int begin_wait(Wait *wait) except -1
cdef int end_wait(Wait *wait, CK_SLOT_ID slot_id) except -1
cdef int warn_of_wait(Wait *wait, object subject, object holder) except -1
cdef int tell_unlocked(double began, CK_SLOT_ID slot_id, bint unwanted) except -1
cdef int tell_handed_over(CK_SLOT_ID slot_id) except -1
cdef int tell_failed_release(object error) except -1
cdef bint debug_is_on() except -1
cdef bint debug_may_be_on() noexcept
cdef int audit_lock(CK_SLOT_ID slot_id) except -1
cdef int audit_unlock(CK_SLOT_ID slot_id) except -1
cdef int close_client(Locks locks, Share share, bint wait) except -1
cdef int finish_closing(Locks locks) except -1
cdef int call_came_back(Locks locks) except -1
