# The lock of one slot, for the threads and tasks of this process: the ways in, the ways out, and what a
# holder may ask while it holds.
#
# The device's owner is the application, so it may not keep this process's threads apart. That is
# done here: per slot there is one holder, at most one lock call on its way to the device, and a
# queue.

# After a hold of this length, give or take a tick of the coarse clock, the canary is asked before the
# unlock: one round trip more, some 25th of the hold at most where that takes a millisecond.
cdef uint64_t LONG_HOLD_NANOSECONDS = 25000000
# How long an unlock call is repeated while the device answers that it is busy.
cdef double BUSY_SECONDS = 2.0
# The limits of a "moment", in seconds: so long an unlock waits, once for a client, for a lock call that
# crosses it, for a device that grants its application again answers at once. That is also the time
# that a claim's own lock call has.
cdef double SHORTEST_MOMENT = 0.5
cdef double LONGEST_MOMENT = 2.0
# The moment while no unlock has been timed.
cdef double UNMEASURED_MOMENT = 1.0
# The moment in unlock calls of average length.
cdef double CALLS_OF_A_MOMENT = 50
# How long the lock of a thread that has ended is left alone: a generator that the thread kept may be
# closed then, and release it.
cdef double ENDED_SECONDS = 0.25
cdef uint64_t LONG_WAIT_NANOSECONDS = LONG_WAIT_SECONDS * 1000000000ULL

# How often a lock call is made only to find out the device's kind, anew when a slot comes to be in
# doubt. An error does not show the kind.
cdef int MOST_TRIALS = 3
# So many holds that were taken off are kept for a slot, for their holders to be told of: a thread that has
# ended, and one that drops its closed Library, never ask.
cdef int MOST_EVICTIONS = 64

# How often this process has come out of a fork as the child.
cdef uint64_t forks = 0


@cython.final
@cython.no_gc
cdef class Place:
    pass


cdef Place note_place(SlotMutex mutex, TaskMark mark):
    """The task and the line that ask for a lock, for the messages about a lock that stays set. Noted
    before the lock is asked for, because nothing may be allocated after the grant. A claim does not know
    the SlotMutex yet.
    """
    cdef Place place = Place.__new__(Place)
    cdef PyFrameObject *frame = PyEval_GetFrame()
    if mutex is not None:
        mutex.seldom()
    place.task = None if mark is None else mark.task
    if frame != NULL:
        place.code = <object> PyFrame_GetCode(frame)
        Py_DECREF(place.code)  # PyFrame_GetCode gave a reference of its own
        place.lasti = PyFrame_GetLasti(frame)
    return place


@cython.final
@cython.no_gc
cdef class Seldom:
    pass


# It is made where no garbage collection may begin.
@cython.final
@cython.no_gc
cdef class LateUnlock:
    pass


# It has the lock of a slot as long as the process lasts, so the garbage collector need not look at it.
@cython.final
@cython.no_gc
cdef class SlotMutex:

    cdef uint64_t generation(self) noexcept nogil:
        """Of C_Initialize, as it is now."""
        return luna_shared_get64(&self.locks.client.generation)

    # ---- what it seldom needs ----

    cdef Rare *known_rare(self) noexcept nogil:
        """The rare part of the Record, or NULL."""
        return <Rare *> luna_shared_get_pointer(<void **> &self.record.rare)

    cdef Rare *rare(self) noexcept:
        """The same, and it is made if there is none. NULL: there is no memory."""
        cdef Rare *rare = self.known_rare()
        if rare == NULL:
            try:
                self.seldom()
            except MemoryError:
                return NULL
            rare = self.known_rare()
        return rare

    cdef Seldom known_seldom(self):
        """What it seldom needs; None: it has not needed any of that yet."""
        cdef Rare *rare = self.known_rare()
        return None if rare == NULL else <Seldom> rare.seldom

    cdef Seldom seldom(self):
        """The same, and it is made if there is none."""
        cdef Seldom made
        if self.known_rare() == NULL:
            made = Seldom.__new__(Seldom)
            made.rare.seldom = <void *> made
            get_rare(&self.record, &made.rare)
            if self.known_rare() == &made.rare:
                # The Record's own reference, for ever.
                Py_INCREF(made)
        return <Seldom> self.known_rare().seldom

    cdef dict evictions(self):
        cdef Seldom seldom = self.known_seldom()
        return None if seldom is None else seldom.evictions

    # ---- the ways in ----

    cdef int acquire(self, Share share) except -1:
        """Lock, however long it takes.

        The main thread leaves the device call to a worker, so that signal handlers run while it
        lasts; any other thread makes it itself, which is the fastest way.
        """
        cdef uint64_t me = luna_joined_number()
        if me == 0 or greenlets_may_run():
            me = thread_number()
            if luna_is_main() or in_greenlet_hub():
                self.acquire_within(share, -1, NULL)
                return 0
            me = caller_number()
            join_lineage(me)
        if self.locks.client.lock_clustered_slot == NULL or self.locks.client.unlock_clustered_slot == NULL:
            self._need_functions(share)
        audit_lock(self.slot_id)
        if not debug_may_be_on() and take_turn_at_once(&self.record, me):
            return self._own_call(me, share, NULL)
        return self._acquire_with_records(me, share)

    cdef int _acquire_with_records(self, uint64_t number, Share share) except -1:
        """The rest of acquire(), where the slot may not be free, or DEBUG records may be wanted."""
        cdef Wait wait = new_wait()
        if debug_may_be_on():
            begin_wait(&wait)
        if take_turn_at_once(&self.record, number):
            return self._own_call(number, share, &wait)
        return self._wait_for_turn(number, share, &wait, False)

    cdef bint acquire_within(self, Share share, double seconds, uint64_t *hold) except -1:
        """Lock with the device call on a worker, so that the caller can give up after so many seconds; -1:
        never; 0: it does not wait for another holder. Returns whether the lock was granted in time. `hold`,
        unless it is NULL, becomes the number of the hold, which may have ended by then.
        """
        cdef Waiter waiter
        cdef bint in_hub = in_greenlet_hub()
        cdef Deadline deadline = answer_by(seconds)
        cdef Deadline patience
        cdef uint64_t began_in
        cdef Outcome outcome
        cdef PyThread_type_lock wake
        self._need_functions(share)
        join_lineage(caller_number())
        audit_lock(self.slot_id)
        if seconds == 0 and not self.is_free():
            return False
        while True:
            began_in = forks
            waiter = Waiter.__new__(Waiter)
            waiter.prepare(caller_number(), thread_number(), share)
            waiter.wait_in_thread()
            waiter.seat.patient = seconds < 0 and not in_hub
            begin_wait(&waiter.wait)
            self.refuse_reentry(waiter.seat.number, waiter.seat.home, True)
            patience = deadline_in(patience_here(left_of(deadline)))
            warn = partial(warn_of_lock, waiter, self)
            wake = NULL
            self.ask(waiter, &wake)
            # Nothing comes in between that may raise: the worker is still to be woken.
            try:
                sit_out(waiter, &waiter.wait, patience, warn, wake)
            except BaseException:
                self.withdraw(waiter)
                raise
            outcome = outcome_of(&self.record, &waiter.seat)
            if outcome == FAILED:
                raise waiter.failure()
            if outcome == WAITING:
                self.withdraw(waiter)
                if in_hub and seconds != 0 and left_of(deadline) != 0:
                    raise self.greenlet_error(LOCK)
                return False
            if outcome == GRANTED:
                self.confirm(waiter)
            if forks == began_in:
                if outcome == TURN:
                    # No thread can be had. The caller waits without a limit, so it may make the call.
                    self._own_call(waiter.seat.number, share, &waiter.wait)
                    waiter.seat.hold = seen(&self.record).hold
                if hold != NULL:
                    hold[0] = waiter.seat.hold
                return True
            # A signal handler has forked meanwhile, and this is the child: it holds nothing.

    cdef int ask(self, Waiter waiter, PyThread_type_lock *wake) except -1:
        """Queue up for a lock that a worker gets. In the end the caller has to withdraw() or release.
        `wake` is that of leave_to_worker().
        """
        if not luna_shared_get(&waiter.share.open):
            raise closed_error(self.slot_id, waiter.share.path)
        waiter.mutex = self
        # The queue's own reference.
        Py_INCREF(waiter)
        line_up(&self.record, &waiter.seat, False)
        self.pass_turn_by(wake)
        if luna_shared_get(&ended) and outcome_of(&self.record, &waiter.seat) == WAITING:
            # What it waits for may never come: a worker's call, or the end of another thread's hold.
            self.withdraw(waiter)
            raise closed_error(self.slot_id, waiter.share.path)
        return 0

    cdef int withdraw(self, Waiter waiter) except -1:
        """The waiter gives up. A grant that it has been given already goes back."""
        cdef Outcome outcome = step_out(&self.record, &waiter.seat)
        if outcome == WAITING:
            Py_DECREF(waiter)  # the queue's reference
        elif outcome == TURN:
            self.pass_turn()
        elif outcome == GRANTED:
            self.give_back(waiter.seat.hold)
        return 0

    cdef int confirm(self, Waiter waiter) except -1:
        """Write the records of a grant. Give the lock back and raise if a signal handler or log handler
        raises, or if the Library was closed meanwhile.
        """
        self._count_wait(&waiter.wait)
        return self._confirm(waiter)

    cdef int _count_wait(self, Wait *wait) noexcept:
        count_wait(self.locks.client, <uint64_t> (1e9 * (luna_now() - wait.began)))
        return 0

    cdef int _confirm(self, Waiter waiter) except -1:
        try:
            end_wait(&waiter.wait, self.slot_id)
            # A signal that came meanwhile is handled here, where the lock can be given back. If its
            # handler raised after the return of acquire(), the caller could not release.
            if PyErr_CheckSignals() != 0:
                luna_raise_pending()
        except BaseException:
            self.withdraw(waiter)
            raise
        if not luna_shared_get(&waiter.share.open):
            if step_out(&self.record, &waiter.seat) == GRANTED:
                self.take_from_holder(waiter.seat.hold, NOT_LOST)
            raise closed_error(self.slot_id, waiter.share.path)
        return 0

    cdef int confirm_claim(self, Waiter request, Wait *wait) except -1:
        """The same for the slot that a claim has come back with."""
        request.wait = wait[0]
        self._confirm(request)
        wait[0] = request.wait
        return 0

    def _need_functions(self, Share share):
        # Without the unlock function a lock could never be released, so none is taken.
        self.locks.client.need(CA_LOCK_CLUSTERED_SLOT, share.path)
        self.locks.client.need(CA_UNLOCK_CLUSTERED_SLOT, share.path)

    cdef int _wait_for_turn(
        self, uint64_t number, Share share, Wait *wait, bint before_all
    ) except -1:
        """Queue up to make the lock call on this thread."""
        cdef Outcome outcome
        cdef Waiter waiter = Waiter.__new__(Waiter)
        if not before_all:
            self.refuse_reentry(number, thread_number(), True)
        if wait.began == 0:
            wait.began = luna_now()
        waiter.prepare(number, thread_number(), share)
        waiter.mutex = self
        waiter.wait_in_thread()
        waiter.wait = wait[0]
        waiter.seat.own_call = True
        if not luna_shared_get(&share.open):
            raise closed_error(self.slot_id, share.path)
        Py_INCREF(waiter)
        line_up(&self.record, &waiter.seat, before_all)
        self.pass_turn()
        try:
            sit_out(waiter, &waiter.wait, deadline_in(-1), partial(warn_of_lock, waiter, self), NULL)
        except BaseException:
            self.withdraw(waiter)
            raise
        wait[0] = waiter.wait
        outcome = outcome_of(&self.record, &waiter.seat)
        if outcome == FAILED:
            raise waiter.failure()
        if outcome == TURN:
            return self._own_call(number, share, wait)
        return self.confirm(waiter)

    cdef int _own_call(self, uint64_t number, Share share, Wait *wait) except -1:
        """Make the lock call on this thread, whose turn it is. Without a `wait`, it begins only now."""
        cdef Wait own
        cdef CK_RV rv = CKR_OK
        cdef uint64_t nanoseconds = 0
        cdef uint64_t now
        cdef uint64_t generation
        cdef Verdict verdict
        cdef Backoff backoff
        cdef int kind
        # The mutex keeps its client, whose references all threads would count in one cache line.
        cdef PyObject *client = <PyObject *> self.locks.client
        backoff.longest = 0
        if wait == NULL:
            own = new_wait()
            wait = &own
        if not luna_shared_get(&watching):
            watch_calls()
        if is_contended(self.known_rare()):
            self._leave_to_others()
        while True:
            if not luna_shared_get(&share.open) or luna_shared_get(&self.locks.client.state) != READY:
                self._make_ready(share)
            if luna_shared_get64(&self.locks.client.canary.sought_in) != self.generation():
                self.locks.look_for_canary(self.slot_id, False)
            generation = self.generation()
            if not begin_call(&self.record, generation, False):
                return self._wait_for_turn(number, share, wait, True)
            now = 0
            if not lock_slot(
                <Client> client, self.slot_id, generation, &rv, &nanoseconds, &self.record.back, &now
            ):
                break_off_call(&self.record)
                continue
            kind = luna_shared_get(&self.locks.common.kind)
            verdict = hear(
                &self.record, rv == CKR_OK, rv != CKR_OK and says_busy(rv),
                now, self.generation(), &self.locks.common,
                number, number, share.number, NULL
            )
            if kind != luna_shared_get(&self.locks.common.kind):
                self.locks.learn(luna_shared_get(&self.locks.common.kind))
            if verdict == OWNED:
                self.held_since = now
                note_grant(self.known_rare())
                break
            if verdict == IGNORED:
                self._note_doubt()
            if wait.began == 0:
                wait.began = luna_now() - 1e-9 * nanoseconds
            if verdict == REFUSED:
                self._pause(rv, share, wait, &backoff)
        if wait.began != 0 or nanoseconds >= LUNA_FAST or not luna_shared_get(&share.open):
            self._conclude_own_call(number, share, wait, nanoseconds)
        return 0

    def _make_ready(self, Share share):
        try:
            if not luna_shared_get(&share.open):
                raise closed_error(self.slot_id, share.path)
            self.locks.make_ready()
        except BaseException:
            give_turn_back(&self.record)
            self.pass_turn()
            raise

    cdef int _pause(self, CK_RV rv, Share share, Wait *wait, Backoff *backoff) except -1:
        """Before the lock call is tried again; or raise what the device has answered."""
        cdef double pause
        try:
            if not may_pass(rv, share.poll):
                raise error_of(rv, CA_LOCK_CLUSTERED_SLOT, self.slot_id)
            if says_busy(rv):
                pause = next_pause(backoff)
            else:
                note_contention(self.rare())
                pause = poll_pause(luna_now() - wait.began)
            with nogil:
                luna_pause(pause)
            if luna_now() - wait.began > LONG_WAIT_SECONDS:
                warn_of_wait(wait, self.slot_id, None)
        except BaseException:
            give_turn_back(&self.record)
            self.pass_turn()
            raise
        return 0

    cdef int _leave_to_others(self) noexcept:
        """Before a lock call, whose turn the caller has."""
        cdef double pause = turn_of_others(self.known_rare())
        if pause > 0:
            with nogil:
                luna_pause(pause)
        return 0

    cdef int _conclude_own_call(
        self, uint64_t number, Share share, Wait *wait, uint64_t nanoseconds
    ) except -1:
        cdef uint64_t hold
        if wait.began == 0:
            # The call is all that it has waited for, and its length is known.
            if nanoseconds <= LONG_WAIT_NANOSECONDS and luna_shared_get(&share.open):
                count_wait(self.locks.client, nanoseconds)
                return 0
            wait.began = luna_now() - 1e-9 * nanoseconds
        hold = seen(&self.record).hold
        self._count_wait(wait)
        wait.warned = wait.warned or self._was_told_of_call()
        try:
            end_wait(wait, self.slot_id)
        except BaseException:
            self.give_back(hold)
            raise
        if not luna_shared_get(&share.open):
            self.take_from_holder(hold, NOT_LOST)
            raise closed_error(self.slot_id, share.path)
        return 0

    cdef bint _is_long(self, uint32_t call, double now) noexcept:
        """For the watcher: whether this lock call has become long, which it hears once."""
        cdef bint tell = False
        cdef Rare *rare = self.rare()
        if rare == NULL:
            return False
        luna_guard_lock(&self.record.guard)
        if rare.watched_call != call:
            rare.watched_call = call
            rare.watched_since = now
            rare.watched_told = False
        elif not rare.watched_told:
            tell = now - rare.watched_since > LONG_WAIT_SECONDS - WATCH_SECONDS / 2
            rare.watched_told = tell
        luna_guard_unlock(&self.record.guard)
        return tell

    cdef bint _was_told_of_call(self) noexcept:
        """Whether the watcher has warned of the newest lock call."""
        cdef bint told = False
        cdef Rare *rare = self.known_rare()
        luna_guard_lock(&self.record.guard)
        if rare != NULL:
            told = rare.watched_told and rare.watched_call == self.record.calls
        luna_guard_unlock(&self.record.guard)
        return told

    cdef int refuse_reentry(self, uint64_t number, uint64_t home, bint may_wait) except -1:
        """Raise if a wait of this caller would never end. Without `may_wait`, it waits for no slot's lock.
        """
        cdef uint64_t thread = thread_number()
        cdef bint is_thread = number == thread
        cdef Record now = seen(&self.record)
        if is_idle(&now) and now.first == NULL:
            return 0
        if now.owner == number:
            what = "this thread holds the lock already" if is_thread else (
                "this task, or greenlet, holds the lock already"
            )
        elif now.owner == thread:
            what = (
                "this thread holds the lock already, by a plain `with`; where tasks share a lock, "
                "all need `async with`"
            )
        elif (now.turn and now.caller == number) or (
            may_wait and waits_here(&self.record, number, 0)
        ):
            what = "the caller waits for this lock already"
        elif luna_asks_for() == <void *> self:
            what = (
                "this thread of luna_ext is asking for the lock, and what runs in its midst, such as a "
                "finalizer, would keep it from that"
            )
        elif is_thread and runs_loop() and (
            (now.owner != 0 and now.home == thread)
            or waits_here(&self.record, number, thread)
        ):
            what = (
                "tasks of this thread's event loop hold the lock or wait for it, and could not go "
                "on while the loop is blocked; use `async with slot.lock()`"
            )
        elif now.owner != 0 and now.home == thread and in_greenlet_hub():
            raise self.greenlet_error(LOCK)
        else:
            return 0
        raise reentry_error(self.slot_id, what)

    def greenlet_error(self, function):
        what = "the lock is not free" if function == LOCK else f"{function} takes long"
        return greenlet_error(f"slot {self.slot_id}: {what}", function, self.slot_id)

    cdef bint is_free(self) noexcept:
        """Whether no thread or task of this process holds the lock, waits for it or is asking."""
        cdef Record now = seen(&self.record)
        return is_idle(&now) and now.first == NULL

    # ---- the lock call for waiters, on a worker ----

    cdef int pass_turn(self) noexcept:
        """If the slot is free, have the lock call made for the first waiter."""
        return self.pass_turn_by(NULL)

    cdef int pass_turn_by(self, PyThread_type_lock *wake) noexcept:
        """The same, by a worker that the caller may have to wake: see leave_to_worker()."""
        cdef Seat *seat = NULL
        cdef Next due
        while True:
            due = next_turn(&self.record, &seat)
            if due == WORKERS_TURN:
                if self._lock_without_gil() or leave_to_worker(lock_for_waiters, self, wake):
                    return 0
                # No thread can be had. A thread that waits without a limit makes the call itself.
                seat = turn_to_patient(&self.record)
                if seat == NULL:
                    if self._fail_without_thread():
                        continue
                    # What is owed stays so until a thread can be had.
                    return 0
            elif due == NO_TURN:
                return 0
            self._wake(seat)
            return 0

    cdef int _wake(self, Seat *seat) noexcept:
        wake_unlinked(seat, None)
        return 0

    cdef bint _fail_without_thread(self) noexcept:
        """Give the turn up, and fail the first waiter; False if there is none."""
        cdef Seat *seat = take_first(&self.record, FAILED, True)
        give_turn_back(&self.record)
        if seat != NULL:
            # The exit starts no more threads, and has closed the library.
            wake_unlinked(
                seat,
                closed_error(self.slot_id, self.locks.client.path) if exit_has_begun()
                else RuntimeError("can't start new thread"),
            )
        return seat != NULL

    cdef bint _lock_without_gil(self) noexcept:
        """Have a worker make the lock call, without the GIL, if a task waits first, and nothing is to be
        done before. The caller has the turn, and still has it if not.
        """
        cdef SlotCall made
        cdef uint64_t generation = self.generation()
        cdef bint left = False
        cdef luna_bell *bell
        if (
            luna_shared_get(&self.locks.client.state) != READY
            or luna_shared_get64(&self.locks.client.canary.sought_in) != generation
            or is_contended(self.known_rare())
        ):
            return False
        bell = bell_of_first(&self.record)
        if bell == NULL:
            return False
        if begin_slot_call(
            self.locks.client, CA_LOCK_CLUSTERED_SLOT, self.slot_id, generation, &self.record.back, &made
        ):
            if begin_call(&self.record, generation, True):
                left = leave_call_to_worker(&made, hear_lock, self, bell)
                if not left:
                    break_off_call(&self.record)
            if not left:
                drop_slot_call(&made)
        luna_drop_bell(bell)
        return left

    cdef int _granted(self, Seat *seat, uint64_t now) except -1:
        """A worker was granted the lock for this waiter, which is out of the queue: wake it."""
        cdef uint64_t hold = seat.hold
        self.held_since = now
        note_grant(self.known_rare())
        if not wake_unlinked(seat, None):
            # The loop of the task is closed, or the task is gone.
            self.give_back(hold)
        return 0

    cdef int _lock_for_waiters(self, bint trial, SlotCall *made) except -1:
        """On a worker, whose turn it is: get the lock for the waiter that is first when it is granted.
        `trial`: the first call is on trial, and the Record says already that it is out. `made`: the first
        call has its answer already; or NULL.
        """
        luna_note_asking(<void *> self)
        try:
            return self._ask_for_waiters(trial, made)
        finally:
            luna_note_asking(NULL)

    cdef int _ask_for_waiters(self, bint trial, SlotCall *made) except -1:
        """The same. What runs on the worker meanwhile, such as a finalizer, is refused this lock."""
        cdef Seat *seat = NULL
        cdef CK_RV rv = CKR_OK
        cdef uint64_t nanoseconds
        cdef uint64_t now
        cdef Verdict verdict
        cdef Backoff backoff
        cdef double pause
        cdef double refused_since = 0
        cdef uint64_t generation
        cdef int kind
        backoff.longest = 0
        if is_contended(self.known_rare()) and not trial and made == NULL:
            self._leave_to_others()
        while True:
            if made != NULL:
                rv = made.call.rv
                now = made.call.ended
                made = NULL
            else:
                if luna_shared_get(&self.locks.client.state) != READY and not trial:
                    try:
                        self.locks.make_ready()
                    except BaseException as error:
                        self._fail_first(error, False)
                        return 0
                if luna_shared_get64(&self.locks.client.canary.sought_in) != self.generation():
                    self.locks.look_for_canary(self.slot_id, True)
                generation = seen(&self.record).asked_in if trial else self.generation()
                if not trial and not begin_call(&self.record, generation, True):
                    break
                now = 0
                if not lock_slot(
                    self.locks.client, self.slot_id, generation, &rv, &nanoseconds, &self.record.back, &now
                ):
                    break_off_call(&self.record)
                    trial = False
                    continue
            kind = luna_shared_get(&self.locks.common.kind)
            seat = NULL
            generation = self.generation()
            verdict = hear(
                &self.record, rv == CKR_OK, rv != CKR_OK and says_busy(rv),
                now, generation, &self.locks.common,
                0, 0, 0, &seat
            )
            if kind != luna_shared_get(&self.locks.common.kind):
                self.locks.learn(luna_shared_get(&self.locks.common.kind))
            if verdict == OWNED:
                return self._granted(seat, now)
            if verdict == UNWANTED:
                luna_note_asking(NULL)
                self.held_since = 0
                self._tell_late(self.take_off(False, generation, True))
                return 0
            if verdict == IGNORED:
                self._note_doubt()
            if trial:
                # No waiter has asked for it, and none is told what it was refused for.
                trial = False
                continue
            if verdict == REFUSED:
                if not may_try_again(&self.record, says_busy(rv), rv == CKR_DEVICE_ERROR):
                    self._fail_first(error_of(rv, CA_LOCK_CLUSTERED_SLOT, self.slot_id), True)
                    return 0
                if says_busy(rv):
                    pause = next_pause(&backoff)
                else:
                    note_contention(self.rare())
                    if refused_since == 0:
                        refused_since = luna_now()
                    pause = poll_pause(luna_now() - refused_since)
                with nogil:
                    luna_pause(pause)
        self.pass_turn()
        return 0

    cdef int _fail_first(self, object error, bint may_call) except -1:
        """The turn has failed: give it up, and fail the first waiter with this error. A waiter that
        makes its own lock call stays in the queue, and gets its own error. Unless calls may be made, what
        is owed stays so: the worker would come here again at once.
        """
        cdef Seat *seat = take_first(&self.record, FAILED, True)
        give_turn_back(&self.record)
        try:
            if seat != NULL:
                wake_unlinked(seat, error)
        finally:
            if may_call or seen(&self.record).waiting != 0:
                self.pass_turn()
        return 0

    # ---- the ways out ----

    cdef CK_RV begin_release(
        self, uint64_t number, Share share, Leave *due, Loss *loss
    ) noexcept:
        """End the hold, and make the unlock call or hand over, before anything that can raise. Returns the
        device's answer; CKR_OK if no call was due.
        """
        cdef uint64_t generation = self.generation()
        loss[0] = NOT_LOST
        due[0] = begin_leave(
            &self.record, number, 0, share.number, generation, &self.locks.common, loss
        )
        if due[0] == UNLOCK_DUE or due[0] == UNLOCK_DUE_LATER:
            if share.handover != 0:
                return self.hand_over(generation, share, due)
            return self.take_off(due[0] == UNLOCK_DUE_LATER, generation, True)
        if due[0] == LOST:
            self.pass_turn()
        return CKR_OK

    cdef bint begin_release_here(self, Share share, Release *release) except -1:
        """The same for the calling thread or greenlet. Returns whether that was all, and the audit event
        was raised; else conclude_release() is due.
        """
        cdef Leave due
        cdef uint64_t me = thread_number()
        if greenlets_may_run():
            me = greenlet_number(me)
        release.number = me
        # Before anything that may run Python code, and with it signal handlers.
        release.began = luna_now() if debug_may_be_on() else 0
        release.rv = self.begin_release(me, share, &release.due, &release.loss)
        due = release.due
        if (due == UNLOCK_DUE or due == HANDED_OVER) and release.rv == CKR_OK and release.began == 0:
            audit_unlock(self.slot_id)
            return True
        return False

    cdef int release(self, uint64_t number, Share share) except -1:
        """Unlock; only the thread, task or greenlet that holds the lock may, and through the same
        Library.
        """
        cdef Leave due = NOT_MINE
        cdef Loss loss = NOT_LOST
        cdef double began = luna_now() if debug_may_be_on() else 0
        cdef CK_RV rv
        rv = self.begin_release(number, share, &due, &loss)
        return self.conclude_release(due, loss, rv, number, share, began)

    cdef int conclude_release(
        self, Leave due, Loss loss, CK_RV rv, uint64_t number, Share share, double began
    ) except -1:
        """After a release: raise the audit event, write the record, raise the error if it failed."""
        try:
            if due != NOT_MINE:
                audit_unlock(self.slot_id)
        finally:
            # Also if a hook raises: a lock that may still be set has to be reported.
            self.judge_release(due, loss, rv, number, share, began)
        return 0

    cdef int judge_release(
        self, Leave due, Loss loss, CK_RV rv, uint64_t number, Share share, double began
    ) except -1:
        """Write the DEBUG record of a release; raise the error if it failed."""
        if due == NOT_MINE:
            try:
                self.raise_evicted(number, share, UNLOCK)
            finally:
                # The end of that hold is told once; the same thread may lock again.
                evictions = self.evictions()
                if luna_shared_get(&share.open) and evictions is not None:
                    evictions.pop((number, share.number), None)
            self.check_mine(UNLOCK)
            raise not_owned_error(
                self.slot_id,
                "it was locked by `async with`, or through another Library, and is released there",
                UNLOCK,
            )
        if due == LOST:
            hold_back_at_exit()
            raise lost_error(self.slot_id, LOSSES[<int> loss])
        if due == HANDED_OVER:
            return tell_handed_over(self.slot_id)
        if rv == CKR_OK:
            if began != 0 and due != LEFT_TO_WORK:
                tell_unlocked(began, self.slot_id, False)
            return 0
        if rv == CKR_SESSION_HANDLE_INVALID:
            note_late_loss(&self.locks.common)
            hold_back_at_exit()
            raise lost_error(self.slot_id, LOSSES[<int> FINALISED])
        if rv == CKR_CRYPTOKI_NOT_INITIALIZED and not luna_shared_get(&self.locks.client.initialised):
            hold_back_at_exit()
            raise lost_error(self.slot_id, "its library was closed")
        raise self._unlock_error(rv)

    cdef CK_RV take_off(self, bint after_a_moment, uint64_t generation, bint passes_turn) noexcept:
        """Make the unlock call that is due, and pass the turn. Returns the device's answer.

        Without `passes_turn`, the caller is a worker that takes the turn itself, by lock_for_next(), when
        it has told the holder; unless there is more to do first.
        """
        cdef CK_RV rv = CKR_OK
        cdef PyObject *client = <PyObject *> self.locks.client
        cdef uint64_t now = luna_coarse_nanoseconds()
        cdef bint was_long = is_long_hold(self, now)
        cdef bint asks = was_long
        cdef bint gone = False
        cdef bint unassigned
        # Most holds end in the tick in which they have begun, and are counted by their unlocks alone.
        if now != self.held_since and self.held_since != 0:
            count_hold(self.locks.client, now - self.held_since)
        if luna_shared_get(&self.locks.common.kind) == UNKNOWN and (
            after_a_moment
            or luna_shared_get(&self.locks.claims_out) != 0
            or luna_shared_get(&self.locks.in_doubt)
        ):
            # Asked before a lock call is made on trial, too: where the lock is lost, that call would be
            # granted, and no unlock would follow that takes it off.
            gone = was_long and self.generation() == generation and self.locks.is_finalised()
            asks = False
            if self.generation() == generation and (after_a_moment or self._make_trial()):
                self._wait_a_moment()
                asks = was_long
                now = 0
        if was_long:
            now = 0
        # Taken before the next claim may hold the slot, which marks it for itself.
        unassigned = luna_is_marked(&self.record.is_unassigned) and luna_take_mark(
            &self.record.is_unassigned
        )
        if gone or (
            (asks or unassigned)
            and self.generation() == generation
            and (
                (asks and self.locks.is_finalised())
                or (unassigned and self.locks.pass_canary_on(self))
            )
        ):
            # By other code, and another process may have the lock by now.
            rv = CKR_SESSION_HANDLE_INVALID
        else:
            # Not made if it was finalised meanwhile, and the lock dropped with it. Other threads may have
            # found it out while this one asked.
            unlock_slot(<Client> client, self.slot_id, generation, &rv, &now)
        return self.after_unlock(rv, now, generation, passes_turn, unassigned)

    cdef CK_RV after_unlock(
        self, CK_RV rv, uint64_t now, uint64_t generation, bint passes_turn, bint unassigned
    ) noexcept:
        """The unlock call that was due was answered `now`, in luna_coarse_nanoseconds(), or cannot be made.
        `unassigned`: of a claim that has not assigned its token. Returns the device's last answer.
        """
        cdef Deadline deadline
        cdef Backoff backoff
        cdef double pause
        if rv != CKR_OK and says_busy(rv):
            deadline = deadline_in(BUSY_SECONDS)
            backoff.longest = 0
            pause = next_pause(&backoff)
            # No signal handler runs meanwhile.
            while says_busy(rv) and pause < left_of(deadline):
                with nogil:
                    luna_pause(pause)
                pause = next_pause(&backoff)
                now = 0
                # Finalised meanwhile, and the lock dropped with it; another process may have it.
                if (
                    self.generation() != generation
                    or self.locks.is_finalised()
                    or not unlock_slot(self.locks.client, self.slot_id, generation, &rv, &now)
                ):
                    rv = CKR_OK
        note_unlock(self.known_rare())
        if end_leave(&self.record, luna_count_get(&self.locks.claims), now) and (
            passes_turn or unassigned or rv != CKR_OK
        ):
            self.pass_turn()
        if unassigned:
            self.leave_unassigned()
        return rv

    cdef bint unlock_without_gil(self, Waiter departure, uint64_t generation, Hear hear) noexcept:
        """Have a worker make the unlock call that is due, without the GIL, unless more is to be done than
        that. The event loop of the task that leaves hears the answer. False: take_off() is still due.
        """
        cdef SlotCall made
        cdef uint64_t now = luna_coarse_nanoseconds()
        cdef uint64_t held_since = self.held_since
        if (
            departure.seat.bell == NULL
            or departure.share.handover != 0
            or debug_may_be_on()
            or luna_shared_get(&self.locks.client.state) != READY
            or is_long_hold(self, now)
            or luna_is_marked(&self.record.is_unassigned)
            or (
                luna_shared_get(&self.locks.common.kind) == UNKNOWN
                and (luna_shared_get(&self.locks.claims_out) != 0 or luna_shared_get(&self.locks.in_doubt))
            )
            or not begin_slot_call(
                self.locks.client, CA_UNLOCK_CLUSTERED_SLOT, self.slot_id, generation, NULL, &made
            )
        ):
            return False
        if not leave_call_to_worker(&made, hear, departure, departure.seat.bell):
            drop_slot_call(&made)
            return False
        if now != held_since and held_since != 0:
            count_hold(self.locks.client, now - held_since)
        return True

    cdef Heard after_plain_unlock(self, SlotCall *made) noexcept:
        """The unlock call that was made without the GIL has been answered CKR_OK."""
        cdef bint due
        end_slot_call(made)
        plain_call_came_back(self.locks)
        note_unlock(self.known_rare())
        due = end_leave(&self.record, luna_count_get(&self.locks.claims), made.call.ended)
        return TURN_IS_DUE if due else HEARD

    cdef CK_RV hand_over(self, uint64_t generation, Share share, Leave *due) noexcept:
        """In place of the unlock call that is due, give the lock to the next waiter: within the Library's
        `handover` seconds after the device has granted it, and only if it is certainly on. `due` is
        HANDED_OVER then; else take_off() is called.
        """
        cdef CK_RV rv
        cdef Life life = ALIVE
        cdef Rare *rare
        cdef bint in_time
        cdef bint kept
        if is_long_hold(self, luna_coarse_nanoseconds()):
            life = self.locks.look_at_canary()
            rare = self.rare()
            if life == ALIVE and rare != NULL:
                rare.alive_at = luna_coarse_nanoseconds()
        # The coarse clock is behind, so the time is up early rather than late.
        in_time = luna_nanoseconds() < self.held_since + 1e9 * share.handover
        if life == ALIVE and in_time and self._hand_to_first():
            due[0] = HANDED_OVER
            return CKR_OK
        kept = not in_time and keep_turn(&self.record)
        rv = self.take_off(due[0] == UNLOCK_DUE_LATER, generation, True)
        if kept:
            # Where the device keeps no queue, another host would seldom get in between.
            with nogil:
                luna_pause(min(OTHERS_SECONDS, OTHERS_SHARE * share.handover))
            give_turn_back(&self.record)
            self.pass_turn()
        # Then no unlock call was made, for this is another generation.
        return CKR_SESSION_HANDLE_INVALID if life == GONE else rv

    cdef bint _hand_to_first(self) noexcept:
        """Give the lock to the first waiter, if there is one, and wake it."""
        cdef Seat *seat = NULL
        cdef PyObject *waiter
        if not hand_over(
            &self.record,
            &self.locks.client.generation,
            &self.locks.client.state,
            &self.locks.common,
            &seat,
        ):
            return False
        waiter = <PyObject *> seat.waiter
        # A task is woken by Python code, in which signal handlers would run on the main thread.
        if (
            (<Waiter> waiter).signal != NULL
            or not luna_is_main()
            or not run_on_worker(deliver, <Waiter> waiter)
        ):
            deliver(<Waiter> waiter)
        return True

    cdef int leave_unassigned(self) noexcept:
        """A claim has given the slot back: another program may claim its token, and assign it, which it
        cannot while the canary is there.
        """
        if close_canary(self.locks.client, self.slot_id):
            want_canary(self.locks.client)
        return 0

    cdef bint _make_trial(self) noexcept:
        """Before an unlock that would cross a claim, while the kind of the device is not known: find the
        kind out by another lock call, now that the lock is surely on. Otherwise the claim might come
        back with this slot, and nothing would show whether its grant is true. The same while another
        slot is in doubt. Returns whether a lock call was sent.
        """
        if luna_shared_get(&self.locks.trials) >= MOST_TRIALS:
            return False
        if luna_shared_get(&self.locks.claims_out) == 0 and not self.locks.is_in_doubt():
            return False
        if not begin_trial(&self.record):
            return False
        luna_shared_add(&self.locks.trials, 1)
        if run_on_worker(make_trial, self):
            return True
        end_moment(&self.record)
        give_turn_back(&self.record)
        return False

    cdef int _wait_a_moment(self) noexcept:
        """Before a claim's lock comes off, while the kind of the device is not known: a lock call
        that is out for the same slot has a moment to come back. A device that grants its
        application again answers at once; one that gives a lock but once answers as soon as the
        lock is off.
        """
        cdef PyThread_type_lock signal = PyThread_allocate_lock()
        cdef double seconds = self.locks.moment_seconds()
        if signal == NULL or self.rare() == NULL:
            if signal != NULL:
                PyThread_free_lock(signal)
            end_moment(&self.record)
            return 0
        PyThread_acquire_lock(signal, NOWAIT_LOCK)
        if await_call(&self.record, signal):
            with nogil:
                PyThread_acquire_lock_timed(signal, <long long> (1e6 * seconds), 0)
            # If that was for a call on trial to be sent, its moment begins now. It may have been sent just
            # after the wait, while this thread got the GIL.
            PyThread_acquire_lock(signal, NOWAIT_LOCK)
            if await_call(&self.record, signal):
                with nogil:
                    PyThread_acquire_lock_timed(signal, <long long> (1e6 * seconds), 0)
            end_moment(&self.record)
        PyThread_free_lock(signal)
        return 0

    cdef int _note_doubt(self) noexcept:
        """A lock call's grant has proved nothing. Most often the next call settles that at once."""
        cdef Rare *rare
        cdef int kind = luna_shared_get(&self.locks.common.kind)
        if kind != GRANTS_AGAIN and seen(&self.record).doubt:
            if kind == UNKNOWN:
                self.locks.note_doubt()
            rare = self.rare()
            if rare != NULL:
                luna_shared_add(&rare.doubts, 1)
                if not luna_shared_get(&rare.doubted):
                    luna_shared_set(&rare.doubted, run_on_worker(tell_of_doubt, self))
        return 0

    cdef int _tell_of_doubt(self, object why) except -1:
        if exit_has_begun():
            # C_Finalize drops what may be set.
            return 0
        log.error(
            "slot %d: it was granted while this process unlocked it, or while its library was finalised, "
            "and whether this process holds its lock could not be made sure (%s). It is left alone; the "
            "lock may stay set until this process disconnects",
            self.slot_id,
            why or f"no answer within {LONGEST_MOMENT:g} s",
        )
        return 0

    def _unlock_error(self, CK_RV rv):
        """Why an unlock failed: is the connection gone, and the lock with it?"""
        cause = error_of(rv, CA_UNLOCK_CLUSTERED_SLOT, self.slot_id)
        if self.locks.is_finalised():
            note_late_loss(&self.locks.common)
            lost = lost_error(self.slot_id, LOSSES[<int> FINALISED], rv=rv)
            lost.__cause__ = cause
            return lost
        try:
            token_label(self.locks.client, self.slot_id)
        except CryptokiError as error:
            if means_lost(error):
                note_late_loss(&self.locks.common)
                why = f"the unlock failed ({cause.rv_name}), the next call too ({error.rv_name})"
                lost = lost_error(self.slot_id, why, rv=rv)
                lost.__cause__ = cause
                return lost
        except LibraryClosedError:
            pass
        return release_error(cause)

    cdef int give_back(self, uint64_t hold) noexcept:
        """End a hold that its owner cannot end, on a worker."""
        cdef Loss loss = NOT_LOST
        cdef uint64_t generation = self.generation()
        cdef Leave due = begin_leave(
            &self.record, 0, hold, 0, generation, &self.locks.common, &loss
        )
        if due == UNLOCK_DUE or due == UNLOCK_DUE_LATER:
            self.unlock_later(generation)
        elif due == LOST:
            self.pass_turn()
        return 0

    cdef int unlock_later(self, uint64_t generation) noexcept:
        """Have a worker make the unlock call that is due for a hold of this generation. By the time that it
        comes to it, a claim may hold the slot, in another one.
        """
        cdef LateUnlock unlock = None
        try:
            unlock = LateUnlock.__new__(LateUnlock)
            unlock.mutex = self
            unlock.generation = generation
        except MemoryError:
            pass
        # If no thread can be had, as at the interpreter's end, this thread has to unlock.
        if unlock is None or not run_on_worker(unlock_late, unlock):
            self._unlock_late(generation)
        return 0

    cdef int _unlock_late(self, uint64_t generation) except -1:
        return self._tell_late(self.take_off(seen(&self.record).calling, generation, True))

    cdef int _tell_late(self, CK_RV rv) except -1:
        """After an unlock that no thread or task waits for."""
        if rv == CKR_OK:
            tell_unlocked(0, self.slot_id, True)
        elif (
            rv != CKR_SESSION_HANDLE_INVALID
            and luna_shared_get(&self.locks.client.initialised)
            and not exit_has_begun()
        ):
            # A client library that has been finalised has dropped its locks.
            log.error("the unlock of a lock without a holder failed: %s", self._unlock_error(rv))
        return call_came_back(self.locks)

    # ---- while it is held ----

    cdef bint is_mine(self) except -1:
        """Whether the calling thread, task or greenlet holds the lock."""
        # First: in a child that has not heard of its fork, this ends what the parent holds.
        cdef uint64_t number = caller_number()
        cdef uint64_t owner = seen(&self.record).owner
        if owner == 0:
            return False
        if owner == number:
            return True
        task = current_task()
        if task is None:
            return False
        mark = known_mark(task)
        return mark is not None and owner == (<TaskMark> mark).number

    cdef bint is_relied_on(self) except -1:
        """Whether the calling code may rely on the lock: it holds it, or the holder has started it."""
        cdef uint64_t owner
        if self.is_mine():
            return True
        owner = seen(&self.record).owner
        return owner != 0 and is_of_lineage(owner)

    cdef int check_mine(self, str function) except -1:
        cdef Record now
        if self.is_relied_on():
            return 0
        now = seen(&self.record)
        if now.inherited:
            holder = "the parent process held it at the fork, this process does not"
        elif now.owner != 0:
            holder = "another thread or task of this process holds it"
        else:
            holder = "it is not locked by this process"
        raise not_owned_error(self.slot_id, holder, function)

    cdef int raise_evicted(self, uint64_t number, Share share, str function) except -1:
        """Raise for a holder whose lock was taken off while it held it."""
        cdef dict evictions = self.evictions()
        if evictions is not None and (number, share.number) in evictions:
            hold_back_at_exit()
            raise lost_error(
                self.slot_id, LOSSES[evictions[number, share.number]], function=function
            )
        return 0

    cdef int check_not_evicted(self, Share share, str function) except -1:
        """Raise if the caller's lock was taken off: by close(), or because its thread had ended."""
        cdef Lineage lineage
        if self.evictions() is None or (luna_shared_get(&share.open) and self.is_relied_on()):
            return 0
        lineage = present_lineage()
        while lineage is not None:
            self.raise_evicted(lineage.number, share, function)
            lineage = lineage.parent
        self.raise_evicted(caller_number(), share, function)
        task = current_task()
        if task is not None:
            self.raise_evicted(task_number(task), share, function)
        return 0

    cdef int ensure_held(self, Share share, CK_TOKEN_INFO *info) except -1:
        """Ask the device for what it says of the token; a device that is gone has dropped the lock."""
        cdef uint64_t hold
        cdef Record now
        self.check_not_evicted(share, TOKEN_INFO)
        self.check_mine(TOKEN_INFO)
        now = seen(&self.record)
        hold = now.hold
        if now.loss == NOT_LOST and now.generation != self.generation():
            self.note_loss(hold, FINALISED)
        if seen(&self.record).loss == NOT_LOST:
            self._read_while_held(hold, info)
            # While the device was asked, the library may have been initialised anew as well.
            if self.locks.is_finalised() or now.generation != self.generation():
                self.locks.lose_all()
                hold_back_at_exit()
                raise lost_error(self.slot_id, LOSSES[<int> FINALISED])
        now = seen(&self.record)
        if now.hold != hold or not self.is_relied_on():
            self.check_not_evicted(share, TOKEN_INFO)
            raise not_owned_error(
                self.slot_id,
                "the thread or task that held it has released it while this call asked the device; its "
                "block has to outlast what it starts",
                TOKEN_INFO,
            )
        if now.loss != NOT_LOST:
            hold_back_at_exit()
            raise lost_error(self.slot_id, LOSSES[<int> now.loss])
        return 0

    cdef int _read_while_held(self, uint64_t hold, CK_TOKEN_INFO *info) except -1:
        """C_GetTokenInfo; raises LockLostError if the device does not know this application any more.
        One passing error is no loss: the question is put once more.
        """
        try:
            return read_token_info(self.locks.client, self.slot_id, info)
        except CryptokiError as error:
            if not means_lost(error):
                raise
        try:
            return read_token_info(self.locks.client, self.slot_id, info)
        except CryptokiError as error:
            if not means_lost(error) or ask_canary(self.locks.client) == ALIVE:
                raise
            self.note_loss(hold, DEVICE_GONE)
            raise lost_error(
                self.slot_id,
                f"{LOSSES[<int> DEVICE_GONE]} ({error.rv_name})",
                rv=error.rv,
                function=error.function,
            ) from error

    cdef int begin_work(self) noexcept:
        """Device calls begin that rely on the lock: until end_work(), close() must not take it off."""
        work_begins(&self.record)
        return 0

    cdef int end_work(self) except -1:
        cdef Record now
        if work_ends(&self.record):
            now = seen(&self.record)
            self.take_from_holder(now.hold, NOT_LOST if now.owner == WORK else LIBRARY_CLOSED)
        return 0

    cdef int keep_place(self, Place place, uint64_t hold) noexcept:
        """Keep the Place that was noted before the lock was asked for, unless this hold of the caller's has
        ended. 0: the caller holds the lock now.
        """
        cdef Place earlier = None
        cdef Seldom seldom
        # For a lock that was asked for by its slot, it is there. It is nothing that the collector tracks.
        if self.rare() == NULL:
            return 0
        seldom = self.known_seldom()
        luna_guard_lock(&self.record.guard)
        if hold == 0 or hold == self.record.hold:
            place.hold = self.record.hold
            # A reference until the guard is left: no object may be freed under it.
            earlier = seldom.noted
            seldom.noted = place
        luna_guard_unlock(&self.record.guard)
        earlier = None
        return 0

    cdef Place present_place(self):
        """Where the present hold was taken, if that was noted; else None."""
        cdef Place place
        cdef Seldom seldom = self.known_seldom()
        if seldom is None:
            return None
        luna_guard_lock(&self.record.guard)
        place = seldom.noted
        luna_guard_unlock(&self.record.guard)
        return None if place is None or place.hold != seen(&self.record).hold else place

    cdef str place(self):
        cdef Place noted = self.present_place()
        if noted is None or noted.code is None:
            return "in a with statement"
        line = PyCode_Addr2Line(<PyCodeObject *> noted.code, noted.lasti)
        return f"at {noted.code.co_filename}:{line}"

    cdef str describe_holder(self):
        """Which task or thread of this process holds the lock, and where it was locked; None if none
        does.
        """
        cdef uint64_t owner = seen(&self.record).owner
        cdef str where = f"locked {self.place()}"
        if owner == 0:
            return None
        if owner == WORK:
            return (
                "calls that its last holder has started, such as assign(), are still at work on its token, "
                f"{where}"
            )
        if self.present_place() is None:
            frame = frames_of_threads().get(thread_idents.get(owner))
            if frame is not None:
                where += f", now at {frame.f_code.co_filename}:{frame.f_lineno}"
        return f"{self.name_holder(owner)} of this process holds it, {where}"

    cdef str name_holder(self, uint64_t owner):
        """The task, thread or greenlet that has this number and holds the lock."""
        cdef Place noted = self.present_place()
        task = noted.task() if noted is not None and noted.task is not None else None
        if task is not None:
            return f"the task {task.get_name()!r}"
        if owner == WORK:
            return "calls that its last holder has started"
        ident = thread_idents.get(owner)
        thread = threading._active.get(ident)
        if thread is not None:
            return f"the thread {thread.name!r}"
        if ident is not None:
            return f"the thread {ident}"
        # A task that has not run since its lock was granted has not kept its place yet.
        return "a greenlet" if greenlets_may_run() else "a task"

    cdef bint task_is_gone(self) except -1:
        """Whether the task that took the lock has been collected."""
        cdef Seldom seldom = self.known_seldom()
        cdef Place noted = None if seldom is None else seldom.noted
        return noted is not None and noted.task is not None and noted.task() is None

    cdef bint is_over(self, uint64_t hold) noexcept:
        """Whether the block of this hold has ended. Calls may still rely on its lock."""
        cdef Record now = seen(&self.record)
        return now.owner == 0 or now.owner == WORK or now.hold != hold

    def holds(self):
        """The number of the present hold; 0 if there is none."""
        hear_of_fork()
        cdef Record now = seen(&self.record)
        return now.hold if now.owner != 0 else 0

    # ---- losing it ----

    cdef bint has_evicted(self, Share share) except -1:
        """Whether a lock that was held through this Share was ever taken off while it was held."""
        cdef dict evictions = self.evictions()
        if evictions is None:
            return False
        return any([number == share.number for _, number in list(evictions)])

    cdef int end_lost(self, uint64_t owner, uint64_t share, uint64_t hold, Loss loss) except -1:
        """End a hold whose lock is gone, so that waiters go on. Its holder gets to know it at its next
        call, and by its heartbeat.
        """
        if owner != WORK:
            self.note_eviction(owner, share, loss)
        return self.take_from_holder(hold, loss)

    cdef LostEvent lost_event(self, uint64_t hold):
        """The event of this hold; it is kept for the newest one that was asked for."""
        cdef LostEvent made = new_event(hold)
        cdef LostEvent earlier
        cdef Seldom seldom = self.seldom()
        luna_guard_lock(&self.record.guard)
        # A reference until the guard is left: no object may be freed under it.
        earlier = seldom.lost
        if earlier is not None and earlier.hold == hold:
            made = earlier
        elif earlier is None or earlier.hold < hold:
            seldom.lost = made
        luna_guard_unlock(&self.record.guard)
        return made

    cdef int note_loss(self, uint64_t hold, Loss loss) except -1:
        """This hold's lock is found to be gone. The hold stays until its block ends, or its heartbeat
        ends it.
        """
        if lose(&self.record, hold, loss, &self.locks.common):
            self.lost_event(hold).set()
            tell_of_loss(self, hold, loss)
        return 0

    cdef LostEvent lost_event_of_caller(self, Share share):
        """The event of the caller's hold if its lock was lost, else of the newest hold."""
        cdef LostEvent event
        cdef Record now
        try:
            self.check_not_evicted(share, UNLOCK)
        except LockLostError:
            event = new_event(0)
            event.set()
            return event
        now = seen(&self.record)
        event = self.lost_event(now.hold)
        if now.inherited or (now.owner != 0 and now.loss != NOT_LOST):
            event.set()
        return event

    cdef int note_eviction(self, uint64_t owner, uint64_t share, Loss loss) except -1:
        cdef Seldom seldom = self.seldom()
        cdef dict made = {}
        luna_guard_lock(&self.record.guard)
        if seldom.evictions is None:
            seldom.evictions = made
        luna_guard_unlock(&self.record.guard)
        seldom.evictions[owner, share] = <int> loss
        if len(seldom.evictions) > MOST_EVICTIONS:
            seldom.evictions.pop(list(seldom.evictions)[0], None)
        return 0

    cdef object close_share(self, Share share):
        """The Library of this Share has closed: its waiters fail, its hold ends.

        Returns where the lock was taken if it was held, else None.
        """
        cdef Seat *seat
        cdef uint64_t owner = 0
        cdef uint64_t hold = 0
        while seen(&self.record).waiting != 0:
            # Made in Python, where a signal handler may raise, or fork, while the waiter is in the queue.
            error = closed_error(self.slot_id, share.path)
            seat = take_any_of(&self.record, share.number)
            if seat == NULL:
                break
            wake_unlinked(seat, error)
        if not evict(&self.record, share.number, &owner, &hold):
            return None
        place = self.place()
        if hold != 0:
            self.end_lost(owner, share.number, hold, LIBRARY_CLOSED)
        else:
            # The lock comes off when the calls have ended that rely on it.
            self.note_eviction(owner, share.number, LIBRARY_CLOSED)
        return place

    cdef int take_from_holder(self, uint64_t hold, Loss told) except -1:
        """End this hold and unlock, on the calling thread: its holder may never release the lock. `told`
        is the loss that the holder is told of.
        """
        cdef Loss loss = NOT_LOST
        cdef uint64_t generation = self.generation()
        # Found before the hold ends: another thread may hold the slot at once then, and ask for its own.
        cdef LostEvent event = None if told == NOT_LOST else self.lost_event(hold)
        cdef Leave due = begin_leave(&self.record, 0, hold, 0, generation, &self.locks.common, &loss)
        if due != NOT_MINE and told != NOT_LOST:
            # Before the unlock call, which may take long.
            event.set()
            tell_of_loss(self, hold, told)
        if due == UNLOCK_DUE or due == UNLOCK_DUE_LATER:
            self._tell_late(self.take_off(due == UNLOCK_DUE_LATER, generation, True))
        elif due == LOST:
            self.pass_turn()
        return 0

    def take_from_ended_thread(self, number):
        """Take off the lock that an ended thread held, with an ERROR record and a warning."""
        cdef Record now = seen(&self.record)
        if now.owner != number:
            return
        place = self.place()
        self.end_lost(number, now.share, now.hold, HOLDER_ENDED)
        what = (
            f"slot {self.slot_id} was still locked, {place}, when the thread that held it had ended"
        )
        log.error(
            "%s; it is unlocked %s",
            what,
            "when the calls that rely on it are back" if seen(&self.record).owner == WORK else "now",
        )
        warnings.warn(what, ResourceWarning, stacklevel=1)

    def after_fork(self):
        """In the child nothing is held: the application that holds the lock is the parent."""
        cdef Seat *seat
        cdef Waiter waiter
        cdef Seldom seldom
        cdef LostEvent lost
        luna_guard_forget(&self.record.guard)
        while True:
            seat = take_first(&self.record, LEFT_BEHIND, False)
            if seat == NULL:
                break
            # The forking thread may be one of them, in a signal handler.
            waiter = <Waiter> seat.waiter
            Py_DECREF(waiter)
            if waiter.signal != NULL:
                signal_anew(waiter.signal)
        noted = self.present_place()
        kept_by_task = noted is not None and (<Place> noted).task is not None
        seldom = self.known_seldom()
        lost = None if seldom is None else seldom.lost
        if lost is not None and self.record.owner != 0 and lost.hold == self.record.hold:
            lost.set()
        forget(&self.record, luna_number(), kept_by_task)

    cdef bint ended_by_fork(self, uint64_t number) except -1:
        """At the end of a with block: whether it began in the parent process, so nothing is due."""
        if not self.record.inherited or not end_inherited(&self.record, number):
            return False
        log.warning(
            "slot %d: a with block that began before the fork ends in the child (PID %d); the "
            "parent holds the lock, nothing is unlocked",
            self.slot_id,
            os.getpid(),
        )
        return True


cdef Leave begin_leave_of(
    SlotMutex mutex, uint64_t number, uint64_t hold, uint64_t share, uint64_t generation, Loss *loss
) noexcept:
    """End a hold; the caller sees to the unlock call that is due."""
    return begin_leave(
        &mutex.record, number, hold, share, generation, &mutex.locks.common, loss
    )


cdef dict frames_of_threads():
    """Where each thread is; without a garbage collection, whose finalizers might give up the GIL while
    CPython has its list of threads locked: a thread that ends then would wait for it, with the GIL.
    """
    cdef int collected = PyGC_Disable()
    try:
        return sys._current_frames()
    finally:
        if collected:
            PyGC_Enable()


def warn_of_lock(Waiter waiter not None, SlotMutex mutex not None):
    """The waiter's wait for the mutex's lock has become long."""
    warn_of_wait(&waiter.wait, mutex.slot_id, mutex.describe_holder())


cdef inline bint is_long_hold(SlotMutex mutex, uint64_t now) noexcept:
    """Whether the canary is to be asked before the unlock: nothing has shown for long that the lock is on.
    Where locks are handed over, an earlier holder's end may have asked.
    """
    cdef Rare *rare
    if now <= mutex.held_since + LONG_HOLD_NANOSECONDS:
        return False
    rare = mutex.known_rare()
    return rare == NULL or now > rare.alive_at + LONG_HOLD_NANOSECONDS


cdef int deliver(object waiter) noexcept:
    """Wake the waiter that a lock was handed over to; it is out of the queue."""
    cdef Waiter self = <Waiter> waiter
    cdef SlotMutex mutex = self.mutex
    cdef uint64_t hold = self.seat.hold
    if not wake_unlinked(&self.seat, None):
        # The loop of the task is closed, or the task is gone.
        mutex.give_back(hold)
    return 0


cdef int lock_for_waiters(object mutex) noexcept:
    (<SlotMutex> mutex)._lock_for_waiters(False, NULL)
    call_came_back((<SlotMutex> mutex).locks)
    return 0


cdef Heard hear_lock(object mutex, SlotCall *made, luna_bell *here, bint slowly) noexcept:
    """The lock call that a worker has made without the GIL is answered."""
    cdef SlotMutex self = <SlotMutex> mutex
    cdef Seat *seat = NULL
    if slowly:
        end_slot_call(made)
        self._lock_for_waiters(False, made)
        call_came_back(self.locks)
        return HEARD
    if luna_shared_get(&self.locks.client.state) != READY or not hear_plainly(
        &self.record, self.generation(), here, &seat
    ):
        return NOT_HEARD
    end_slot_call(made)
    self._granted(seat, made.call.ended)
    plain_call_came_back(self.locks)
    return HEARD


cdef int lock_for_next(object mutex) noexcept:
    """On a worker: pass_turn(), but if a worker is to make the lock call, this one does."""
    cdef Seat *seat = NULL
    cdef Next due = next_turn(&(<SlotMutex> mutex).record, &seat)
    if due == WORKERS_TURN:
        lock_for_waiters(mutex)
    elif due == WAITERS_TURN:
        (<SlotMutex> mutex)._wake(seat)
    return 0


cdef int make_trial(object mutex) noexcept:
    cdef SlotMutex self = <SlotMutex> mutex
    if send_trial(&self.record, self.generation()):
        self._lock_for_waiters(True, NULL)
    else:
        self.pass_turn()
    call_came_back(self.locks)
    return 0


cdef int tell_of_doubt(object mutex) noexcept:
    cdef SlotMutex self = <SlotMutex> mutex
    cdef Rare *rare = self.known_rare()
    cdef Record now
    cdef int doubts = -1
    # Another doubt, which came when the first one had ended, may be as short.
    while doubts != luna_shared_get(&rare.doubts):
        doubts = luna_shared_get(&rare.doubts)
        with nogil:
            luna_pause(LONGEST_MOMENT)
    luna_shared_set(&rare.doubted, False)
    now = seen(&self.record)
    # C_Finalize has ended one of an earlier generation.
    if (now.doubt == FROM_LOCK and now.doubt_in == <uint32_t> self.generation()) or (
        now.doubt == FROM_EARLIER and now.asked_in == <uint32_t> self.generation()
    ):
        self._tell_of_doubt(None)
    return 0


cdef int unlock_late(object unlock) noexcept:
    (<LateUnlock> unlock).mutex._unlock_late((<LateUnlock> unlock).generation)
    return 0


# ---- long waits for calls that threads make themselves ----

# Whether the watcher runs.
cdef int watching = 0
# Released to end the watcher.
cdef PyThread_type_lock watch_stop = new_signal()
cdef double WATCH_SECONDS = 1.0
# The watcher ends after so many looks at which no call was out.
cdef int QUIET_LOOKS = 3


cdef int watch_calls() noexcept:
    """Start the watcher: a thread that is in a device call cannot warn of its own long wait."""
    luna_shared_set(&watching, 1)
    if not run_on_worker(look_at_calls, None):
        luna_shared_set(&watching, 0)
    return 0


cdef int look_at_calls(object nothing) noexcept:
    """The watcher: once a second it looks which calls are out, and since when."""
    cdef int quiet = 0
    cdef bint stopped = False
    while quiet < QUIET_LOOKS and not stopped:
        with nogil:
            stopped = PyThread_acquire_lock_timed(
                watch_stop, <long long> (1e6 * WATCH_SECONDS), 0
            ) == PY_LOCK_ACQUIRED
        quiet = 0 if look_once(luna_now()) else quiet + 1
    luna_shared_set(&watching, 0)
    return 0


cdef int stop_watching() noexcept:
    """End the watcher, before a fork. The next lock call starts it again."""
    if luna_shared_get(&watching):
        signal_anew(watch_stop)
        wait_for_none(&watching, deadline_in(DISMISSAL_SECONDS))
    return 0


cdef int signal_anew(PyThread_type_lock signal) noexcept:
    """Release the signal, also if it is released already and that was not noticed yet. Python as of 3.15
    aborts when a lock is released that is not locked.
    """
    PyThread_acquire_lock(signal, NOWAIT_LOCK)
    PyThread_release_lock(signal)
    return 0


cdef bint look_once(double now) noexcept:
    """Warn of each long call that a thread makes itself. Returns whether any such call is out."""
    cdef SlotMutex mutex
    cdef Request request
    cdef Record record
    cdef bint out = False
    for client in loaded_clients():
        if (<Client> client).locks is None:
            continue
        for each in (<Locks> (<Client> client).locks).requests.copy():
            request = <Request> each
            if not request.in_own_call:
                continue
            out = True
            if now - request.wait.began > LONG_WAIT_SECONDS - WATCH_SECONDS / 2:
                warn_of_wait(&request.wait, request.cluster_id, None)
        for each in (<Locks> (<Client> client).locks).all():
            mutex = <SlotMutex> each
            record = seen(&mutex.record)
            if not record.calling or record.caller == 0:
                continue
            out = True
            if mutex._is_long(record.calls, now):
                tell_of_wait(mutex.slot_id, LONG_WAIT_SECONDS, None)
    return out
