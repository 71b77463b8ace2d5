# The state of one slot's lock in this process, and all its transitions. docs/architecture.md has
# the table.
#
# Each transition is guarded as a whole, and is `noexcept nogil`, so that the compiler refuses
# whatever could raise, run Python code (a signal handler's, a finalizer's) or wait in its midst.
# Nothing else writes a Record.
#
# Which combinations are legal, besides "free", in which all is 0:
#   turn            a lock call is about to be made, or made again after a pause
#   turn + calling  it is out
#   owner           held; `calling` as well where a claim came back with the slot meanwhile
#   owner, working  calls rely on the hold; owner is WORK if it is over, and the last of them unlocks
#   leaving         unlock calls are due or out; then no lock call begins but one on trial, before the
#                   unlock is sent; one may still be out, and a claim may come back with the slot on a
#                   device that gives a lock but once. Before the unlock is sent, the lock may be handed
#                   over: a waiter is the owner then, and the unlock is not due any more


# The owner of a hold that is over while calls rely on it. No thread, task or greenlet has this number.
cdef uint64_t WORK = 0xFFFFFFFFFFFFFFFF
# How soon after an unlock the answer of a lock call comes that has waited for it.
cdef uint64_t PROMPT_NANOSECONDS = 250000000


cdef inline void check(Record *record) noexcept nogil:
    """What holds between any two transitions, where C's assert() is on (CFLAGS=-UNDEBUG)."""
    holds(not record.calling or record.turn)
    holds(record.caller == 0 or record.turn)
    holds(not record.unsent or (record.turn and record.on_trial and not record.calling))
    holds(record.first == NULL or record.waiting != 0)
    holds(record.first != NULL or record.waiting == 0)
    holds(record.leaving < 0x8000 and record.working < 0x8000)
    holds(record.loss == NOT_LOST or record.owner != 0)
    holds(not record.eviction_due or record.owner != 0)


cdef inline bint is_due(Record *record) noexcept nogil:
    """Whether a lock call is wanted: by a waiter, or to take off what an earlier one may have set.
    """
    return record.first != NULL or record.owed


cdef inline bint is_idle(Record *record) noexcept nogil:
    """No holder, no call that is out, due or about to be made."""
    return record.owner == 0 and not record.turn and record.leaving == 0


cdef Record seen(Record *record) noexcept nogil:
    """The state as it is at one moment; its pointers are not to be followed."""
    cdef Record copy
    # But for the guard, for which other threads reach meanwhile, and the marks.
    cdef size_t start = <size_t> (<char *> &record.turn - <char *> record)
    memset(&copy, 0, start)
    luna_guard_lock(&record.guard)
    memcpy(&copy.turn, &record.turn, sizeof(Record) - start)
    luna_guard_unlock(&record.guard)
    return copy


cdef Outcome outcome_of(Record *record, Seat *seat) noexcept nogil:
    """How a wait stands."""
    cdef Outcome outcome
    luna_guard_lock(&record.guard)
    outcome = seat.outcome
    luna_guard_unlock(&record.guard)
    return outcome


# ---- the queue ----


cdef inline void unlink(Record *record, Seat *seat, Outcome outcome) noexcept nogil:
    if record.first == seat:
        record.first = seat.behind
    else:
        seat.before.behind = seat.behind
    if seat.behind != NULL:
        seat.behind.before = seat.before
    elif record.first != NULL:
        # It was the last one.
        record.first.before = seat.before
    seat.before = seat.behind = NULL
    record.waiting -= 1
    seat.outcome = outcome


cdef void line_up(Record *record, Seat *seat, bint before_all) noexcept nogil:
    """Queue a seat, at the end or before all others."""
    luna_guard_lock(&record.guard)
    seat.outcome = WAITING
    if record.first == NULL:
        record.first = seat.before = seat
    else:
        seat.before = record.first.before
        record.first.before = seat
        if before_all:
            seat.behind = record.first
            record.first = seat
        else:
            seat.before.behind = seat
    record.waiting += 1
    check(record)
    luna_guard_unlock(&record.guard)


cdef Outcome step_out(Record *record, Seat *seat) noexcept nogil:
    """The waiter gives up; how its wait stands. WAITING: it has been taken out of the queue."""
    cdef Outcome outcome
    luna_guard_lock(&record.guard)
    outcome = seat.outcome
    if outcome == WAITING:
        unlink(record, seat, WITHDRAWN)
    elif outcome == TURN:
        record.turn = False
        record.caller = 0
        seat.outcome = WITHDRAWN
    elif outcome == GRANTED:
        seat.outcome = WITHDRAWN
    check(record)
    luna_guard_unlock(&record.guard)
    return outcome


cdef Seat *take_first(Record *record, Outcome outcome, bint not_own_calls) noexcept nogil:
    """Take the first waiter out of the queue, or none: `not_own_calls` leaves one that calls
    itself.
    """
    cdef Seat *seat
    luna_guard_lock(&record.guard)
    seat = record.first
    if seat != NULL and not_own_calls and seat.own_call:
        seat = NULL
    if seat != NULL:
        unlink(record, seat, outcome)
    luna_guard_unlock(&record.guard)
    return seat


cdef Seat *take_any_of(Record *record, uint64_t share) noexcept nogil:
    """Take a waiter of this Share out of the queue: its Library has closed."""
    cdef Seat *seat
    luna_guard_lock(&record.guard)
    seat = record.first
    while seat != NULL and seat.share != share:
        seat = seat.behind
    if seat != NULL:
        unlink(record, seat, FAILED)
    check(record)
    luna_guard_unlock(&record.guard)
    return seat


cdef bint may_try_again(Record *record, bint busy, bint contended) noexcept nogil:
    """Whether a lock call that was turned down is to be made again for the first waiter, if any."""
    cdef bint again
    luna_guard_lock(&record.guard)
    again = record.first == NULL or busy or (contended and record.first.poll)
    luna_guard_unlock(&record.guard)
    return again


cdef bint waits_here(Record *record, uint64_t number, uint64_t home) noexcept nogil:
    """Whether this thread or task waits already; or, with a `home`, a task or greenlet of that
    thread.
    """
    cdef Seat *seat
    cdef bint found = False
    luna_guard_lock(&record.guard)
    seat = record.first
    while seat != NULL and not found:
        found = seat.number == number or (home != 0 and seat.home == home)
        seat = seat.behind
    luna_guard_unlock(&record.guard)
    return found


# ---- the turn, and the lock call ----


cdef inline bint take_turn_at_once(Record *record, uint64_t number) noexcept nogil:
    """The calling thread is to make the lock call, if the slot is free and no waiter was first."""
    cdef bint taken
    luna_guard_lock(&record.guard)
    taken = record.first == NULL and is_idle(record)
    if taken:
        record.turn = True
        record.caller = number
    check(record)
    luna_guard_unlock(&record.guard)
    return taken


cdef inline Next next_turn(Record *record, Seat **seat) noexcept nogil:
    """If the slot is free, the first waiter's turn has come; with TURN it is out of the queue."""
    cdef Next due = NO_TURN
    luna_guard_lock(&record.guard)
    seat[0] = record.first
    if is_due(record) and is_idle(record):
        record.turn = True
        if record.first != NULL and record.first.own_call:
            record.caller = record.first.number
            unlink(record, record.first, TURN)
            due = WAITERS_TURN
        else:
            due = WORKERS_TURN
    check(record)
    luna_guard_unlock(&record.guard)
    return due


cdef Seat *turn_to_patient(Record *record) noexcept nogil:
    """The turn goes to the first waiter itself, if that is a thread that waits without a limit."""
    cdef Seat *seat
    luna_guard_lock(&record.guard)
    seat = record.first
    if seat != NULL and seat.patient:
        record.caller = seat.number
        unlink(record, seat, TURN)
    else:
        seat = NULL
    check(record)
    luna_guard_unlock(&record.guard)
    return seat


cdef bint keep_turn(Record *record) noexcept nogil:
    """The calling thread is to unlock, and no lock call shall follow before it gives the turn back. False
    if no waiter is there, or the turn is taken.
    """
    cdef bint kept
    luna_guard_lock(&record.guard)
    kept = record.first != NULL and not record.turn
    if kept:
        record.turn = True
    check(record)
    luna_guard_unlock(&record.guard)
    return kept


cdef void give_turn_back(Record *record) noexcept nogil:
    luna_guard_lock(&record.guard)
    record.turn = False
    record.caller = 0
    check(record)
    luna_guard_unlock(&record.guard)


cdef inline void go_out(Record *record, uint64_t generation) noexcept nogil:
    """A lock call goes out."""
    record.calling = True
    record.crossed = False
    record.suspected = False
    record.owed_since = False
    record.calls += 1
    record.asked_in = <uint32_t> generation
    luna_shared_set8(&record.back, 0)


cdef inline bint begin_call(
    Record *record, uint64_t generation, bint for_waiters
) noexcept nogil:
    """The thread whose turn it is calls the device now; False if it has lost its turn: to a claim
    that came back with the slot, to an unlock that is due, or for want of waiters.
    """
    cdef bint may
    luna_guard_lock(&record.guard)
    # C_Finalize has taken off what an earlier generation may have set.
    record.owed = record.owed and record.owed_in == <uint32_t> generation
    may = (
        # Not any more in a child that was forked by what ran in a pause between two tries.
        record.turn
        and record.owner == 0
        and record.leaving == 0
        and (is_due(record) or not for_waiters)
    )
    if may:
        go_out(record, generation)
    else:
        record.turn = False
        record.caller = 0
    check(record)
    luna_guard_unlock(&record.guard)
    return may


cdef inline void own(
    Record *record, uint64_t number, uint64_t home, uint64_t share, uint64_t generation
) noexcept nogil:
    record.owner = number
    record.home = home
    record.share = <uint32_t> share
    record.generation = <uint32_t> generation
    record.hold += 1
    record.doubt = NO_DOUBT
    record.owed = False
    record.inherited = False


cdef inline void come_back(Record *record) noexcept nogil:
    """The lock call that was out has come back."""
    record.calling = False
    record.on_trial = False
    if record.rare != NULL:
        release_call_signal(record.rare)


cdef inline void release_call_signal(Rare *rare) noexcept nogil:
    if rare.call_signal != NULL:
        PyThread_release_lock(rare.call_signal)
        rare.call_signal = NULL


cdef void break_off_call(Record *record) noexcept nogil:
    """The lock call was not made after all."""
    luna_guard_lock(&record.guard)
    come_back(record)
    check(record)
    luna_guard_unlock(&record.guard)


cdef inline bint came_promptly(Record *record, uint64_t answered) noexcept nogil:
    """Whether the lock call that an unlock has crossed was answered as soon as the unlock had had
    its effect: then it has waited for that, and its grant is true. One that just hung comes at any
    time. `answered` is luna_coarse_nanoseconds() when its answer was there, heard or not.
    """
    return record.suspected and (
        record.leaving != 0 or answered < record.rare.unlocked_time + PROMPT_NANOSECONDS
    )


cdef inline Verdict hear(
    Record *record, bint granted, bint busy, uint64_t answered, uint64_t generation, Common *common,
    uint64_t number, uint64_t home, uint64_t share, Seat **seat
) noexcept nogil:
    """The lock call's answer is there. It was made by the thread `number` for itself; or, if that
    is 0, by a worker for the first waiter, which is `seat` then and out of the queue.
    """
    cdef Verdict verdict
    cdef bint on_trial
    luna_guard_lock(&record.guard)
    on_trial = record.on_trial
    come_back(record)
    if (
        granted
        and record.crossed
        and record.owner == 0
        and luna_shared_get(&common.kind) == UNKNOWN
        and came_promptly(record, answered)
    ):
        luna_shared_set(&common.kind, GIVES_ONCE)
    if not granted:
        # "Busy" is no answer, and a call that was out already when the debt was made may have been
        # turned down before. Any other error says that nothing is set.
        record.owed = record.owed and (busy or record.owed_since)
        verdict = REFUSED
    elif record.owner != 0 or on_trial:
        # A claim came back with the slot meanwhile, or its unlock is still to come, and yet the device
        # has granted it.
        luna_shared_set(&common.kind, GRANTS_AGAIN)
        verdict = IGNORED
    elif record.asked_in != <uint32_t> generation:
        # C_Finalize has undone it, unless that came before the call. Then the lock is set, and has to come
        # off even if no waiter asks again.
        if luna_shared_get(&common.kind) != GIVES_ONCE:
            record.owed = True
            record.owed_in = <uint32_t> generation
        if luna_shared_get(&common.kind) != GRANTS_AGAIN:
            record.doubt = FROM_EARLIER
            record.doubt_in = record.asked_in
        verdict = IGNORED
    elif record.crossed and luna_shared_get(&common.kind) != GIVES_ONCE:
        # The unlock of a claim that was granted the same lock may have undone it. If not, the lock
        # is set, and has to come off even if the waiter gives up before it asks again.
        record.owed = True
        record.owed_in = <uint32_t> generation
        if luna_shared_get(&common.kind) == UNKNOWN:
            record.doubt = FROM_LOCK
            record.doubt_in = <uint32_t> generation
        verdict = IGNORED
    elif number != 0:
        own(record, number, home, share, generation)
        verdict = OWNED
    elif record.first != NULL:
        seat[0] = record.first
        own(record, record.first.number, record.first.home, record.first.share, generation)
        record.first.hold = record.hold
        unlink(record, record.first, GRANTED)
        verdict = OWNED
    else:
        begin_unlock(record, generation)
        verdict = UNWANTED
    if verdict == OWNED or verdict == UNWANTED:
        record.turn = False
        record.caller = 0
    check(record)
    luna_guard_unlock(&record.guard)
    return verdict


cdef inline bint hear_plainly(
    Record *record, uint64_t generation, luna_bell *here, Seat **seat
) noexcept nogil:
    """hear(), for CKR_OK that a worker was answered, where the first waiter holds the lock then and nothing
    else follows. It is a task of the event loop with this bell; NULL: of any. Else nothing is done.
    """
    cdef bint plain
    luna_guard_lock(&record.guard)
    plain = (
        record.first != NULL
        and record.first.bell != NULL
        and (here == NULL or record.first.bell == here)
        and record.owner == 0
        and not record.on_trial
        and not record.crossed
        and record.asked_in == <uint32_t> generation
    )
    if plain:
        come_back(record)
        seat[0] = record.first
        own(record, record.first.number, record.first.home, record.first.share, generation)
        record.first.hold = record.hold
        unlink(record, record.first, GRANTED)
        record.turn = False
        record.caller = 0
    check(record)
    luna_guard_unlock(&record.guard)
    return plain


cdef luna_bell *bell_of_first(Record *record) noexcept nogil:
    """That of the event loop of the task that waits first, to be dropped; NULL: no such task does."""
    cdef luna_bell *bell = NULL
    luna_guard_lock(&record.guard)
    if record.first != NULL and record.first.bell != NULL:
        bell = luna_keep_bell(record.first.bell)
    luna_guard_unlock(&record.guard)
    return bell


# ---- the way out ----


cdef inline void begin_unlock(Record *record, uint64_t generation) noexcept nogil:
    """An unlock call is due for what no thread or task holds."""
    record.generation = <uint32_t> generation
    record.leaving += 1
    record.unlocks += 1
    record.crossed = True
    record.doubt = NO_DOUBT
    record.owed = False


cdef inline Leave leave(Record *record, uint64_t generation, Common *common) noexcept nogil:
    cdef Leave due
    if record.loss != NOT_LOST or record.generation != <uint32_t> generation:
        if record.loss == NOT_LOST:
            record.loss = FINALISED
            luna_count_add(&common.losses, 1)
        # No unlock follows that would take it.
        luna_shared_set8(&record.is_unassigned, False)
        due = LOST
    else:
        record.leaving += 1
        record.unlocks += 1
        record.crossed = True
        due = UNLOCK_DUE
        if record.calling and luna_shared_get(&common.kind) == UNKNOWN:
            due = UNLOCK_DUE_LATER
    record.owner = 0
    return due


cdef inline Leave begin_leave(
    Record *record, uint64_t number, uint64_t hold, uint64_t share, uint64_t generation,
    Common *common, Loss *loss
) noexcept nogil:
    """End a hold: this owner's through this Share, and with a `hold` none but that one; a `number` of 0:
    that hold, of any owner. From here on no thread holds the slot, and none gets it before the unlock
    is answered. While calls rely on the lock, such as an assign() that the holder's task has started in
    a thread, it is theirs until they have ended.
    """
    cdef Leave due = NOT_MINE
    luna_guard_lock(&record.guard)
    if record.owner != 0 and (
        record.hold == hold if number == 0
        else record.owner == number
        and record.share == <uint32_t> share
        and (hold == 0 or record.hold == hold)
    ):
        if (
            record.working != 0
            and record.loss == NOT_LOST
            and record.generation == <uint32_t> generation
        ):
            # Such a call may erase the token: no other program may have it before the call is back.
            record.owner = WORK
            record.eviction_due = True
            due = LEFT_TO_WORK
            check(record)
            luna_guard_unlock(&record.guard)
            return due
        due = leave(record, generation, common)
        loss[0] = <Loss> record.loss
        record.loss = NOT_LOST
        record.eviction_due = False
    check(record)
    luna_guard_unlock(&record.guard)
    return due


cdef bint hand_over(
    Record *record, uint64_t *generation, int *state, Common *common, Seat **seat
) noexcept nogil:
    """The unlock that is due, and not sent, is not made: the first waiter, which is `seat` then and out
    of the queue, holds the lock that the device still has. False if there is no waiter, or if anything
    else goes on at this slot or with its client, whose generation and State are given.
    """
    cdef bint done
    luna_guard_lock(&record.guard)
    done = (
        record.first != NULL
        # No other unlock is out, and no claim has come back with the slot since.
        and record.leaving == 1
        and record.owner == 0
        # A thread that makes a lock call, which a claim has crossed, was there before the waiters.
        and not record.turn
        # What changes these two, such as a loss or the exit, looks for holders afterwards.
        and record.generation == <uint32_t> luna_shared_get64(generation)
        and luna_shared_get(state) == READY
    )
    if done:
        seat[0] = record.first
        record.leaving = 0
        own(
            record, record.first.number, record.first.home, record.first.share, record.generation
        )
        record.first.hold = record.hold
        unlink(record, record.first, GRANTED)
        luna_count_add(&common.handed_over, 1)
    check(record)
    luna_guard_unlock(&record.guard)
    return done


cdef bint begin_trial(Record *record) noexcept nogil:
    """A worker is to make a lock call of a slot whose unlock is due and not yet sent, so surely while
    this process has its lock: only to find out whether the device grants it again. False if one is
    out already.
    """
    cdef bint begun
    luna_guard_lock(&record.guard)
    begun = not record.turn and record.owner == 0 and record.leaving == 1
    if begun:
        record.turn = True
        record.on_trial = True
        record.unsent = True
    check(record)
    luna_guard_unlock(&record.guard)
    return begun


cdef bint send_trial(Record *record, uint64_t generation) noexcept nogil:
    """The worker has come to it. False if the moment is over: the unlock has been sent by now, and a
    call that is sent as late as that could be answered as if it had waited for the unlock.
    """
    cdef bint may
    luna_guard_lock(&record.guard)
    may = record.unsent and record.owner == 0
    if may:
        record.unsent = False
        go_out(record, generation)
        # The unlock is still to come, and crosses it.
        record.crossed = True
        if record.rare != NULL:
            release_call_signal(record.rare)
    else:
        record.unsent = False
        record.on_trial = False
        record.turn = False
    check(record)
    luna_guard_unlock(&record.guard)
    return may


cdef bint await_call(Record *record, PyThread_type_lock signal) noexcept nogil:
    """Have `signal` released when the lock call that is out comes back, or one that a worker is to
    make goes out; False if there is none. The Record has its rare part.
    """
    cdef bint out
    luna_guard_lock(&record.guard)
    out = (record.calling or record.unsent) and record.rare.call_signal == NULL
    if out:
        record.rare.call_signal = signal
    luna_guard_unlock(&record.guard)
    return out


cdef void end_moment(Record *record) noexcept nogil:
    """The moment is over. If the lock call is still out, it may wait for the unlock that is sent
    now: not if its answer is there and its thread has only not come to hear it. Without its rare part, a
    Record does not show when the unlock is answered, and so nothing.
    """
    luna_guard_lock(&record.guard)
    if record.rare != NULL:
        record.rare.call_signal = NULL
    record.unsent = False
    if not record.calling:
        record.on_trial = False
    elif not luna_is_marked(&record.back):
        record.on_trial = False
        record.suspected = record.rare != NULL
    check(record)
    luna_guard_unlock(&record.guard)


cdef inline bint end_leave(Record *record, uint64_t claims, uint64_t answered) noexcept nogil:
    """An unlock call is answered, and that was there at `answered`, in luna_coarse_nanoseconds(). Whether
    a turn may be due: a waiter that comes later sees to its own.
    """
    cdef bint due
    luna_guard_lock(&record.guard)
    record.leaving -= 1
    record.unlocked_at = claims
    if record.suspected:
        record.rare.unlocked_time = answered
    due = is_due(record)
    check(record)
    luna_guard_unlock(&record.guard)
    return due


# ---- claims ----


cdef Arrival arrive(
    Record *record, Seat *seat, uint64_t claim, uint64_t asked_in, uint64_t generation, Common *common
) noexcept nogil:
    """The claim number `claim`, which began in the generation `asked_in`, has come back with this slot."""
    cdef Arrival arrival
    luna_guard_lock(&record.guard)
    if record.owner != 0:
        arrival = HELD
    elif asked_in != generation or (
        luna_shared_get(&common.kind) != GIVES_ONCE
        and (record.leaving != 0 or record.unlocked_at >= claim)
    ):
        # The grant may be that of a lock which C_Finalize, or an unlock, has taken off since.
        arrival = UNPROVEN
    elif seat.outcome == WAITING:
        own(record, seat.number, seat.home, seat.share, generation)
        seat.hold = record.hold
        seat.outcome = GRANTED
        arrival = CLAIMED
    else:
        begin_unlock(record, generation)
        arrival = RETURNED
    check(record)
    luna_guard_unlock(&record.guard)
    return arrival


cdef bint take_over(Record *record, uint64_t hold, Seat *seat) noexcept nogil:
    """The hold that a claim's own lock call was granted is the claim's from now on; False if it has
    ended meanwhile.
    """
    cdef bint held
    luna_guard_lock(&record.guard)
    held = record.owner != 0 and record.hold == hold
    if held:
        record.owner = seat.number
        record.home = seat.home
        seat.hold = hold
        seat.outcome = GRANTED
    check(record)
    luna_guard_unlock(&record.guard)
    return held


cdef bint begin_doubt(
    Record *record, uint64_t asked_in, uint64_t generation, bint asked
) noexcept nogil:
    """Whether a claim holds the slot that was sent in the generation `asked_in`, and has come back in
    `generation`, is not known, unless a thread of this process does by now. If no lock call was made that
    could tell, one is owed.
    """
    cdef bint doubt
    luna_guard_lock(&record.guard)
    doubt = record.owner == 0
    if doubt:
        record.doubt = FROM_CLAIM
        record.doubt_in = <uint32_t> asked_in
        if not asked:
            record.owed = True
            record.owed_since = True
            record.owed_in = <uint32_t> generation
    luna_guard_unlock(&record.guard)
    return doubt


cdef bint end_doubt(Record *record, uint64_t generation, bint held) noexcept nogil:
    """The kind of the device is known now. If the claim's grant was true, an unlock is due."""
    cdef bint due
    luna_guard_lock(&record.guard)
    due = record.doubt and held and record.owner == 0 and record.doubt_in == <uint32_t> generation
    record.doubt = NO_DOUBT
    if due:
        begin_unlock(record, generation)
    check(record)
    luna_guard_unlock(&record.guard)
    return due


# ---- while it is held ----


cdef bint lose(Record *record, uint64_t hold, Loss loss, Common *common) noexcept nogil:
    """That hold's lock is not on the device any more; False if it has ended, or was lost before."""
    cdef bint lost
    luna_guard_lock(&record.guard)
    lost = record.owner != 0 and record.hold == hold and record.loss == NOT_LOST
    if lost:
        record.loss = loss
        if loss == DEVICE_GONE or loss == FINALISED:
            luna_count_add(&common.losses, 1)
    check(record)
    luna_guard_unlock(&record.guard)
    return lost


cdef void note_late_loss(Common *common) noexcept nogil:
    """The answer to an unlock call has shown that the lock was gone."""
    luna_count_add(&common.losses, 1)


cdef void work_begins(Record *record) noexcept nogil:
    luna_guard_lock(&record.guard)
    record.working += 1
    luna_guard_unlock(&record.guard)


cdef bint work_ends(Record *record) noexcept nogil:
    """Whether the Library was closed meanwhile, and the lock has to come off now."""
    cdef bint due = False
    luna_guard_lock(&record.guard)
    # 0 already if a signal handler has forked in its midst, and this is the child.
    if record.working > 0:
        record.working -= 1
        due = record.eviction_due and record.working == 0
    check(record)
    luna_guard_unlock(&record.guard)
    return due


cdef bint evict(Record *record, uint64_t share, uint64_t *owner, uint64_t *hold) noexcept nogil:
    """The Library of this Share has closed: whether it held the slot, by whom, and which hold.

    While calls rely on the lock, it stays on until they have ended; `hold` is 0 then.
    """
    cdef bint found
    luna_guard_lock(&record.guard)
    found = record.owner != 0 and record.share == <uint32_t> share and not record.eviction_due
    if found:
        owner[0] = record.owner
        hold[0] = record.hold
        if record.working != 0 and record.loss == NOT_LOST:
            record.eviction_due = True
            hold[0] = 0
    check(record)
    luna_guard_unlock(&record.guard)
    return found


cdef void forget(Record *record, uint64_t number, bint kept_by_task) noexcept nogil:
    """In a forked child, whose only thread is `number`: the lock is the parent's. The waiters are
    taken out of the queue before.
    """
    cdef bint inherited = record.inherited or (
        record.owner != 0 and (record.owner == number or kept_by_task)
    )
    cdef uint64_t hold = record.hold
    cdef Rare *rare = record.rare
    memset(record, 0, sizeof(Record))
    # Numbers of holds are not used again, for a Token may keep one.
    record.hold = hold
    record.rare = rare
    if rare != NULL:
        rare.call_signal = NULL
    record.inherited = inherited


cdef void get_rare(Record *record, Rare *rare) noexcept nogil:
    """The Record gets its rare part, unless another thread has given it one."""
    luna_guard_lock(&record.guard)
    if record.rare == NULL:
        luna_shared_set_pointer(<void **> &record.rare, rare)
    luna_guard_unlock(&record.guard)


cdef bint end_inherited(Record *record, uint64_t number) noexcept nogil:
    """Whether a block that began in the parent process ends here, in the child. Once."""
    cdef bint ends
    luna_guard_lock(&record.guard)
    ends = record.inherited and record.owner != number
    if ends:
        record.inherited = False
    luna_guard_unlock(&record.guard)
    return ends
