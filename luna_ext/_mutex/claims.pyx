# Claims: device calls that come back with any slot's lock. And what all locks of a client share.
#
# A claim and the lock of a slot do not wait for each other, and do not trust what crossing replies
# say. state.pyx has the rules, `make model` searches them.

cdef enum:
    # How often the device is asked again at once when it gives a slot that this process holds.
    MOST_TRIES = 16
    # How many calls are made at a time for callers who can stop waiting; the others queue.
    MOST_SERVERS = 16

# How often a claim looks whether an unlock is answered that it lets pass.
cdef double PASSING_SECONDS = 0.0005
# A queued claim waits no longer than this for claims that are stuck; one more is made beside them.
cdef double STUCK_SECONDS = 0.25


@cython.final
cdef class Locks:

    def __cinit__(self, Client client not None):
        self.client = client
        self.common.kind = UNKNOWN
        self._begin_anew()

    def _begin_anew(self):
        self.requests = set()
        self.queue = deque()
        self.servers = 0
        self.given_up = 0
        self.claims_out = 0
        self.questions = 0
        self.looking_after = False
        self.common.handed_over = 0
        self.common.losses = 0

    cdef int64_t number_of(self, CK_SLOT_ID slot_id) except -1:
        """The number of a slot's one SlotMutex in this process."""
        cdef int64_t number
        luna_guard_lock(&self.table.guard)
        number = find_slot(&self.table, slot_id)
        luna_guard_unlock(&self.table.guard)
        return number if number >= 0 else self._keep(self._new(), slot_id)

    cdef SlotMutex mutex(self, int64_t number):
        return <SlotMutex> kept_at(&self.table, <uint32_t> number)[0]

    cdef SlotMutex _new(self):
        cdef SlotMutex mutex = SlotMutex.__new__(SlotMutex)
        mutex.locks = self
        return mutex

    cdef int64_t _keep(self, SlotMutex mutex, CK_SLOT_ID slot_id) except -1:
        cdef int64_t number
        mutex.slot_id = slot_id
        number = keep_slot(&self.table, mutex)
        if number < 0:
            raise MemoryError()
        return number

    cdef list all(self):
        """All SlotMutexes that there are."""
        cdef uint32_t count = luna_shared_get32(&self.table.count)
        cdef uint32_t number
        return [self.mutex(number) for number in range(count)]

    cdef list unlocks_out(self):
        """The SlotMutexes of which an unlock is due or out, each with the number of the newest one."""
        cdef Record record
        cdef list out = []
        for mutex in self.all():
            record = seen(&(<SlotMutex> mutex).record)
            if record.leaving != 0:
                out.append((mutex, record.unlocks))
        return out

    def holds(self):
        """The slots that this process holds, each with the number of its hold."""
        held = {(<SlotMutex> mutex).slot_id: (<SlotMutex> mutex).holds() for mutex in self.all()}
        return {slot_id: hold for slot_id, hold in held.items() if hold}

    def make_ready(self):
        """Where a call may not begin: in a forked child the first one initialises anew."""
        self.client.make_ready()
        self.publish()

    def publish(self):
        """Begin to tell who holds locks, if the environment asks for it; once in a process."""
        if not self.publishes and os.environ.get("LUNA_EXT_WATCH"):
            from . import holders

            self.publishes = True
            holders.publish(self.client.path, self.holds, start_thread)

    # ---- the same connection ----

    cdef uint64_t generation(self) noexcept nogil:
        """Of C_Initialize, as it is now."""
        return luna_shared_get64(&self.client.generation)

    cdef int look_for_canary(self, CK_SLOT_ID slot_id, bint on_worker) noexcept:
        """Before the first lock call of a generation: open the canary, on the slot that is to be locked. A
        token that no program holds may be claimed, and none can be initialised that has a session.

        `on_worker`: close() does not wait for these calls, and call_came_back() is due.
        """
        cdef CK_RV rv
        luna_shared_add(&self.questions, on_worker)
        rv = open_canary(self.client, slot_id)
        luna_shared_add(&self.questions, -<int> on_worker)
        if rv != CKR_OK:
            self.no_canary = rv
            run_on_worker(tell_of_no_canary, self)
        return 0

    cdef bint is_finalised(self) noexcept:
        """Whether the canary shows that the library was finalised: all holds are lost then."""
        return self.look_at_canary() == GONE

    cdef Life look_at_canary(self) noexcept:
        """What the canary shows; GONE: all holds are lost."""
        return self._heard_of_canary(ask_canary(self.client))

    cdef Life _heard_of_canary(self, Life life) noexcept:
        if life == GONE:
            # Their holders' waiters go on. Not on this thread, which may be in the midst of a release.
            run_on_worker(lose_all_holds, self)
        return life

    cdef bint pass_canary_on(self, SlotMutex mutex) noexcept:
        """Before the canary is closed, if it is on this slot: it watches over what else this process holds,
        so it goes to one of these slots. Whether it shows that the library was finalised.
        """
        cdef SlotMutex other
        if luna_shared_get(&self.client.state) != READY or not canary_is_on(self.client, mutex.slot_id):
            return False
        other = self._held_beside(mutex)
        if other is None:
            return False
        return self._heard_of_canary(move_canary(self.client, mutex.slot_id, other.slot_id)) == GONE

    cdef SlotMutex _held_beside(self, SlotMutex mutex):
        """Another slot that this process holds, or None; rather one where the canary may stay. In the midst
        of a release: it makes no object, so that no garbage collection may begin.
        """
        cdef uint32_t number
        cdef SlotMutex other
        cdef SlotMutex found = None
        for number in range(luna_shared_get32(&self.table.count)):
            other = self.mutex(number)
            if other is not mutex and seen(&other.record).owner != 0:
                found = other
                if not luna_is_marked(&other.record.is_unassigned):
                    break
        return found

    def handed_over(self):
        """How often this process has handed a lock over, at all slots."""
        return luna_count_get(&self.common.handed_over)

    def stats(self):
        """LockStats of all slots."""
        from .info import LockStats

        cdef Record now
        cdef uint64_t handed_over = luna_count_get(&self.common.handed_over)
        cdef uint64_t unlocks = 0, waiting = 0, held = 0
        waits, holds, timeouts = self.client.lock_lengths()
        for mutex in self.all():
            now = seen(&(<SlotMutex> mutex).record)
            unlocks += now.unlocks
            # A thread that makes the lock call itself is not in the queue.
            waiting += <uint64_t> now.waiting + (now.caller != 0)
            held += now.owner != 0
        # Those are not timed that ended in the tick in which they had begun.
        short = max(0, unlocks - handed_over - sum(holds[0]))
        return LockStats(
            wait_histogram=waits[0],
            wait_seconds=waits[1],
            hold_histogram=(short + holds[0][0], *holds[0][1:]),
            hold_seconds=holds[1],
            timeouts=timeouts,
            losses=luna_count_get(&self.common.losses),
            handed_over=handed_over,
            waiting=waiting,
            held=held,
        )

    cdef int lose_all(self) except -1:
        """End the holds of earlier generations: their locks are gone, and their holders get to know it at
        their next call.
        """
        cdef SlotMutex mutex
        cdef Record now
        for each in self.all():
            mutex = <SlotMutex> each
            now = seen(&mutex.record)
            if now.owner != 0 and now.generation != self.generation():
                mutex.end_lost(now.owner, now.share, now.hold, FINALISED)
        return 0

    def reconnect(self, seconds, Share share=None, uint64_t lost=0):
        """Initialise the library anew; all holds are lost, also where C_Initialize fails. `share`: that of
        the Library that asks for it; None: one that is being opened does, which has found the generation
        `lost`.
        """
        try:
            self.client.reconnect(seconds, share, lost)
        finally:
            self.lose_all()

    # ---- the kind of the device ----

    cdef int learn(self, int kind) noexcept:
        """The kind of the device is known now: what was in doubt is no longer. A lock call has just been
        answered, and not yet delivered: it makes no object, so that no garbage collection may begin.
        """
        cdef uint32_t number
        cdef uint64_t generation = self.generation()
        cdef SlotMutex mutex
        luna_shared_set(&self.common.kind, kind)
        luna_shared_set(&self.in_doubt, False)
        for number in range(luna_shared_get32(&self.table.count)):
            mutex = self.mutex(number)
            if seen(&mutex.record).doubt and end_doubt(
                &mutex.record, generation, kind == GIVES_ONCE
            ):
                mutex.held_since = 0
                mutex.unlock_later(generation)
        return 0

    cdef int note_doubt(self) noexcept:
        """A slot is in doubt, for good unless the kind is found out: that is tried anew, whether or not a
        claim is under way.
        """
        luna_shared_set(&self.in_doubt, True)
        luna_shared_set(&self.trials, 0)
        return 0

    cdef bint is_in_doubt(self) noexcept:
        """Whether a slot still is. C_Finalize has ended what was in doubt before. It is asked in the midst
        of a release, and makes no object either.
        """
        cdef uint32_t number
        cdef Record record
        if luna_shared_take(&self.in_doubt):
            for number in range(luna_shared_get32(&self.table.count)):
                record = seen(&self.mutex(number).record)
                if record.doubt and record.doubt_in == self.generation():
                    luna_shared_set(&self.in_doubt, True)
        return luna_shared_get(&self.in_doubt)

    cdef int make_owed_calls(self) noexcept:
        """The client is open: a lock call that was owed when it closed can be made now. It makes no object,
        for no Library is there yet that would end the new share.
        """
        cdef uint32_t number
        cdef SlotMutex mutex
        for number in range(luna_shared_get32(&self.table.count)):
            mutex = self.mutex(number)
            if seen(&mutex.record).owed:
                mutex.pass_turn()
        return 0

    cdef bint are_relied_on(self) noexcept:
        """Whether a thread is at work that makes several calls under a lock, such as an assignment."""
        for mutex in self.all():
            if seen(&(<SlotMutex> mutex).record).working != 0:
                return True
        return False

    cdef double moment_seconds(self) noexcept:
        """Seconds that a lock call has to come back: many times as long as an unlock takes."""
        cdef double average = average_seconds(self.client, CA_UNLOCK_CLUSTERED_SLOT)
        if average == 0:
            return UNMEASURED_MOMENT
        return min(LONGEST_MOMENT, max(SHORTEST_MOMENT, CALLS_OF_A_MOMENT * average))

    # ---- calls that were given up ----

    cdef int calls_given_up(self) except -1:
        """How many calls are at the device that no thread or task waits for: lock calls and claims that
        were given up, and questions: for heartbeats, of workers for the canary, for a label in vain.
        """
        cdef int calls = luna_shared_get(&self.questions)
        cdef Record record
        luna_guard_lock(&self.guard)
        calls += self.given_up
        luna_guard_unlock(&self.guard)
        for mutex in self.all():
            record = seen(&(<SlotMutex> mutex).record)
            calls += record.calling and record.caller == 0 and record.waiting == 0
        return calls

    # ---- claims that workers make ----

    cdef int serve_next(self) noexcept:
        """See to it that a worker makes the next claim of the queue."""
        luna_guard_lock(&self.guard)
        due = self.servers < MOST_SERVERS
        if due:
            self.servers += 1
        luna_guard_unlock(&self.guard)
        if due and not run_on_worker(serve_claims, self):
            luna_guard_lock(&self.guard)
            self.servers -= 1
            luna_guard_unlock(&self.guard)
            return -1
        return 0

    def serve(self):
        """On a worker: make the claims of the queue, until there are none."""
        cdef Request request
        while True:
            luna_guard_lock(&self.guard)
            request = <Request> self.queue.popleft() if self.queue else None
            if request is None:
                self.servers -= 1
            luna_guard_unlock(&self.guard)
            if request is None:
                return
            if request.outcome() == WAITING:
                try:
                    request.make()
                except BaseException as error:
                    request._refuse(error)
                self.requests.discard(request)
                if request.outcome() != WITHDRAWN and not request.wake():
                    request.give_up()
                call_came_back(self)

    def serve_stuck(self):
        """While claims are queued, the servers may be stuck at the device: begin one more at a
        time.
        """
        while True:
            with nogil:
                luna_pause(STUCK_SECONDS)
            luna_guard_lock(&self.guard)
            due = len(self.queue) > 0
            if due:
                self.servers += 1
            else:
                self.looking_after = False
            luna_guard_unlock(&self.guard)
            if not due:
                return
            if not run_on_worker(serve_claims, self):
                luna_guard_lock(&self.guard)
                self.servers -= 1
                luna_guard_unlock(&self.guard)

    def fail_claims(self, Share share):
        """The Library of this Share has closed: its claims that no worker makes yet fail."""
        cdef Request request
        for each in self.requests.copy():
            request = <Request> each
            if request.share is not share or request.outcome() != WAITING:
                continue
            # As in close_share().
            error = closed_to_claims(share)
            if request.step_aside(FAILED, True):
                # Its server, where one comes to it at all, finds that the wait has ended.
                self.requests.discard(request)
                wake_with(request, error)

    def after_fork(self):
        cdef Request request
        luna_guard_forget(&self.guard)
        luna_guard_forget(&self.table.guard)
        for each in self.requests.copy():
            request = <Request> each
            request.seat.outcome = LEFT_BEHIND
            if request.signal != NULL:
                signal_anew(request.signal)
        self._begin_anew()
        self.publishes = False
        for mutex in self.all():
            (<SlotMutex> mutex).after_fork()


cdef Locks locks_of(Client client):
    """All locks of a client."""
    if client.locks is None:
        client.keep_locks(Locks(client))
    return <Locks> client.locks


@cython.final
cdef class Request(Waiter):

    cdef Outcome outcome(self) noexcept:
        """How the wait stands."""
        cdef Outcome outcome
        luna_guard_lock(&self.locks.guard)
        outcome = self.seat.outcome
        luna_guard_unlock(&self.locks.guard)
        return outcome

    cdef int make(self) except -1:
        """Ask for the next unassigned token; `seat.outcome` says what came of it."""
        luna_shared_add(&self.locks.claims_out, 1)
        try:
            self._ask_for_token()
        finally:
            luna_shared_add(&self.locks.claims_out, -1)
        return 0

    cdef int _ask_for_token(self) except -1:
        cdef Client client = self.locks.client
        cdef SlotMutex mutex
        cdef Arrival arrival = HELD
        cdef CK_RV rv = CKR_OK
        cdef uint64_t claim
        cdef uint64_t generation = 0
        for _ in range(MOST_TRIES):
            # Made beforehand: from the answer on, nothing may run the garbage collector.
            mutex = self.locks._new()
            if luna_shared_get(&self.locks.common.kind) == UNKNOWN:
                self._let_unlocks_pass()
            if not luna_shared_get(&self.share.open):
                raise closed_to_claims(self.share)
            if luna_shared_get(&client.state) != READY:
                self.locks.make_ready()
            claim = self._begin()
            if claim == 0:
                return 0
            if not next_unassigned(client, self.cluster_id, &self.info, &rv, &self.asked_in):
                self._end()
                continue
            if rv == CKR_OK and not names_a_slot(&self.info):
                self._end()
                self._refuse(nameless_error())
                return 0
            if rv == CKR_OK:
                self.mutex = self.locks.mutex(self._keep_or_unlock(mutex))
                generation = self.mutex.generation()
                luna_guard_lock(&self.locks.guard)
                arrival = arrive(
                    &self.mutex.record, &self.seat, claim, self.asked_in, generation, &self.locks.common
                )
                luna_guard_unlock(&self.locks.guard)
            self._end()
            if rv != CKR_OK:
                break
            if arrival == CLAIMED:
                return self._hold_begins()
            if arrival == RETURNED:
                # A lock call may be out, whose answer the unlock must not cross either.
                self.mutex.held_since = 0
                self.mutex._tell_late(self.mutex.take_off(True, generation, True))
                return 0
            if (
                arrival == HELD
                and (
                    # Another thread has found that out just now.
                    seen(&self.mutex.record).generation != <uint32_t> self.mutex.generation()
                    or (
                        is_long_hold(self.mutex, luna_coarse_nanoseconds())
                        and self.locks.is_finalised()
                    )
                )
            ):
                # What the holder has is lost, and no unlock follows that would take off this grant.
                self.locks.lose_all()
                arrival = UNPROVEN
            if arrival == UNPROVEN and self.make_sure():
                return self._hold_begins()
            # What this process holds is its holder's, whatever the device says; to unlock it here
            # would take it away from there.
            if self.outcome() != WAITING:
                return 0
            rv = CKR_FUNCTION_FAILED
        self._refuse(error_of(rv, CA_GET_UNASSIGNED_SLOT, None))
        return 0

    cdef int _let_unlocks_pass(self) except -1:
        """Before a claim, while the kind of the device is not known: wait until the unlocks that are out
        are answered, for a moment, and only once for each. A claim that crosses one proves nothing, and
        nothing finds out the kind where that happens at all slots that this process uses. An unlock that
        begins from now on sees the claim: see _make_trial().
        """
        cdef SlotMutex mutex
        cdef Rare *rare
        cdef Deadline patience = deadline_in(LONGEST_MOMENT)
        for each, unlock in self.locks.unlocks_out():
            mutex = <SlotMutex> each
            rare = mutex.rare()
            if rare == NULL or luna_shared_get64(&rare.let_pass) == unlock:
                continue
            while self._waits_for_unlock(mutex, unlock):
                if left_of(patience) == 0:
                    luna_shared_set64(&rare.let_pass, unlock)
                    break
                with nogil:
                    luna_pause(PASSING_SECONDS)
        return 0

    cdef bint _waits_for_unlock(self, SlotMutex mutex, uint64_t unlock) noexcept:
        cdef Record record = seen(&mutex.record)
        return (
            record.leaving != 0
            and record.unlocks == unlock
            and luna_shared_get(&self.locks.common.kind) == UNKNOWN
            and self.outcome() == WAITING
        )

    cdef int _hold_begins(self) noexcept:
        """The claim holds the slot, unless its waiter has given it back by now."""
        cdef SlotMutex mutex = self.mutex
        cdef Record now
        mutex.held_since = luna_coarse_nanoseconds()
        luna_mark(&mutex.record.is_unassigned)
        self.locks.look_for_canary(mutex.slot_id, not self.in_own_call)
        now = seen(&mutex.record)
        if now.owner != 0 and now.hold == self.seat.hold:
            return 0
        # It has ended, perhaps while the canary was still being opened. Where another thread holds the
        # slot by now, that takes the mark when it leaves.
        luna_mark(&mutex.record.is_unassigned)
        if seen(&mutex.record).owner == 0 and luna_take_mark(&mutex.record.is_unassigned):
            self.locks.pass_canary_on(mutex)
            mutex.leave_unassigned()
        return 0

    cdef int64_t _keep_or_unlock(self, SlotMutex mutex) except -1:
        """The number of the slot that the device has given. `mutex` becomes its SlotMutex if this process
        has not used it before.
        """
        cdef CK_RV rv = CKR_OK
        try:
            return self.locks._keep(mutex, self.info.slotID)
        except MemoryError:
            # No table knows the claim's lock: it comes off now, or never.
            unlock_slot(self.locks.client, self.info.slotID, self.asked_in, &rv, NULL)
            self._end()
            raise

    cdef int make_here(self, Wait *wait) except -1:
        """The same on the thread that waits, which the watcher has an eye on meanwhile."""
        self.wait = wait[0]
        self.in_own_call = True
        self.locks.requests.add(self)
        try:
            if not luna_shared_get(&watching):
                watch_calls()
            self.make()
        finally:
            self.locks.requests.discard(self)
            wait.warned = self.wait.warned
        return 0

    cdef uint64_t _begin(self) noexcept:
        """From here until _end() the device has the claim; its number. 0: it was given up before.
        """
        cdef uint64_t claim = 0
        luna_guard_lock(&self.locks.guard)
        if self.seat.outcome == WAITING:
            self.calling = True
            luna_count_add(&self.locks.claims, 1)
            claim = luna_count_get(&self.locks.claims)
        luna_guard_unlock(&self.locks.guard)
        return claim

    cdef int _end(self) noexcept:
        luna_guard_lock(&self.locks.guard)
        self.calling = False
        if self.abandoned:
            self.abandoned = False
            self.locks.given_up -= 1
            # While it was stuck, another server stood in for this one.
            self.locks.servers += 1
        luna_guard_unlock(&self.locks.guard)
        return 0

    cdef int _refuse(self, object error) except -1:
        luna_guard_lock(&self.locks.guard)
        if self.seat.outcome == WAITING:
            self.error = error
            self.seat.outcome = FAILED
        luna_guard_unlock(&self.locks.guard)
        return 0

    cdef bint make_sure(self) except -1:
        """The device's grant proves nothing. A lock call does, in turn and bounded; whether it was
        granted. If not, the slot is in doubt, unless this process has it by now.
        """
        cdef SlotMutex mutex = self.mutex
        cdef Waiter waiter = Waiter.__new__(Waiter)
        cdef object failure = None
        cdef Outcome outcome
        cdef uint64_t hold
        cdef int kind
        # That in which the claim has come back.
        cdef uint64_t generation = mutex.generation()
        cdef uint32_t asked = seen(&mutex.record).calls
        # With a number of its own: a claimer that gives up may lock the slot while this waits.
        waiter.prepare(new_number(), 0, self.share)
        # What a refusal shows is wanted, not patience with it.
        waiter.seat.poll = False
        waiter.wait_in_thread()
        # The grant may be true: then no other waiter of this process could get the lock before.
        Py_INCREF(waiter)
        line_up(&mutex.record, &waiter.seat, True)
        mutex.pass_turn()
        with nogil:
            PyThread_acquire_lock_timed(waiter.signal, <long long> (1e6 * LONGEST_MOMENT), 0)
        outcome = outcome_of(&mutex.record, &waiter.seat)
        if outcome == WAITING:
            # It may be granted just now; then the slot must not be taken for one in doubt.
            outcome = step_out(&mutex.record, &waiter.seat)
            if outcome == WAITING:
                Py_DECREF(waiter)  # the queue's reference
        if outcome == FAILED:
            failure = waiter.failure()
        elif outcome == GRANTED:
            hold = waiter.seat.hold
            try:
                # Another process may have locked, assigned and unlocked it in between.
                same = token_label(self.locks.client, mutex.slot_id) == blank_padded(self.info.label)
            except BaseException:
                mutex.give_back(hold)
                raise
            if same and self._take_over(hold):
                return True
            mutex.give_back(hold)
            return self.outcome() != WAITING
        if luna_shared_get(&self.locks.common.kind) == GIVES_ONCE and self._own_after_all():
            return True
        kind = luna_shared_get(&self.locks.common.kind)
        if begin_doubt(
            &mutex.record,
            self.asked_in,
            generation,
            # Where a lock is given once, the call would wait for it.
            kind == GIVES_ONCE or asked != seen(&mutex.record).calls,
        ):
            kind = luna_shared_get(&self.locks.common.kind)
            if kind == UNKNOWN:
                self.locks.note_doubt()
            else:
                # Another thread may have found it out just now, and not have seen this doubt.
                self.locks.learn(kind)
            # On a device that grants again, what was not granted was not this process's.
            if kind == UNKNOWN or (kind == GIVES_ONCE and self.asked_in != mutex.generation()):
                mutex._tell_of_doubt(failure)
        return False

    cdef bint _own_after_all(self) except -1:
        """The device is known by now to give a lock but once, so the claim's grant was true."""
        cdef Arrival arrival
        cdef uint64_t generation = self.mutex.generation()
        luna_guard_lock(&self.locks.guard)
        arrival = arrive(
            &self.mutex.record, &self.seat, 0, self.asked_in, generation, &self.locks.common
        )
        luna_guard_unlock(&self.locks.guard)
        if arrival == RETURNED:
            self.mutex.held_since = 0
            self.mutex._tell_late(self.mutex.take_off(False, generation, True))
        return arrival == CLAIMED or arrival == RETURNED

    cdef bint _take_over(self, uint64_t hold) noexcept:
        """The claim owns what its lock call was granted; False if it was given up."""
        cdef bint wanted
        luna_guard_lock(&self.locks.guard)
        wanted = self.seat.outcome == WAITING and take_over(&self.mutex.record, hold, &self.seat)
        luna_guard_unlock(&self.locks.guard)
        return wanted

    cdef int queue_up(self) except -1:
        """Have the claim made by a worker."""
        self.locks.requests.add(self)
        self.locks.queue.append(self)
        if luna_shared_get(&ended) or self.locks.serve_next() < 0:
            if exit_has_begun():
                raise closed_to_claims(self.share)
            raise RuntimeError("can't start new thread")
        luna_guard_lock(&self.locks.guard)
        look_after = len(self.locks.queue) > 0 and not self.locks.looking_after
        if look_after:
            self.locks.looking_after = True
        luna_guard_unlock(&self.locks.guard)
        if look_after and not run_on_worker(serve_stuck_claims, self.locks):
            luna_guard_lock(&self.locks.guard)
            self.locks.looking_after = False
            luna_guard_unlock(&self.locks.guard)
        return 0

    def step_aside(self, int outcome, bint only_queued=False):
        """End the wait, unless it has ended, or, with `only_queued`, the claim is at the device; whether
        that was done.
        """
        cdef bint waited
        luna_guard_lock(&self.locks.guard)
        waited = self.seat.outcome == WAITING and not (only_queued and self.calling)
        if waited:
            self.seat.outcome = <Outcome> outcome
            if self.calling:
                self.abandoned = True
                self.locks.given_up += 1
                # The worker in the call is stuck, so another one may take its place.
                self.locks.servers -= 1
        luna_guard_unlock(&self.locks.guard)
        return waited

    cdef int give_up(self) except -1:
        """The waiter gives up. What was granted goes back."""
        self.locks.requests.discard(self)
        if not self.step_aside(WITHDRAWN) and self.seat.outcome == GRANTED:
            self.seat.outcome = WITHDRAWN
            self.mutex.give_back(self.seat.hold)
        return 0


cdef int tell_of_no_canary(object locks) noexcept:
    """On a worker, which runs no signal handlers."""
    log.warning(
        "%s: no session could be opened and asked for (C_OpenSession, C_GetSessionInfo: %s). If other code "
        "of this process finalises the library and initialises it again, that will not be noticed",
        (<Locks> locks).client.path,
        rv_name((<Locks> locks).no_canary),
    )
    return 0


cdef int lose_all_holds(object locks) noexcept:
    (<Locks> locks).lose_all()
    return 0


cdef int serve_claims(object locks) noexcept:
    """On a worker: make the claims of the queue, until there are none."""
    (<Locks> locks).serve()
    return 0


cdef int serve_stuck_claims(object locks) noexcept:
    (<Locks> locks).serve_stuck()
    return 0


def closed_to_claims(Share share not None):
    return LibraryClosedError(
        f"the Library for {share.path!r} is closed; open a new one to claim a token",
        function=CLAIM,
    )
