# Holds that are looked after: the device is asked again and again whether they still have their lock. And
# how a holder gets to know of a loss.
#
# One thread, the keeper, looks after the holds of the whole process. It makes no device call itself, for a
# call may never return: a worker asks, for one hold after the other, and while it is stuck in a call
# another one asks for the other holds.

# The keeper ends when there is nothing to look after, and has no look before it then.
cdef double NEVER = 1e300

cdef luna_guard keeper_guard
# Weak references to the Heartbeats of blocks that run. A block that can never end keeps none alive.
cdef set heartbeats = set()
cdef int keeper_runs = 0
cdef bint keeper_stops = False
# Released to wake the keeper before its next look, which is due at `next_look`.
cdef PyThread_type_lock keeper_wake = new_signal()
cdef double next_look = NEVER
# Workers that ask, those that are stuck included.
cdef int askers = 0


# Only this file has the key, so that users cannot make an event by calling its class.
cdef object _EVENT_KEY = object()


cdef LostEvent new_event(uint64_t hold):
    cdef LostEvent event = LostEvent.__new__(LostEvent, _EVENT_KEY)
    event.hold = hold
    event.signal = new_signal()
    return event


@cython.final
cdef class LostEvent:
    """Whether a lock was lost while it was held. `ClusterSlot.lost` gives it.

    It follows `threading.Event`, but only the library sets it; and it is true when it is set.
    """

    def __cinit__(self, key=None):
        if key is not _EVENT_KEY:
            raise TypeError("a LostEvent comes from ClusterSlot.lost")

    def __dealloc__(self):
        if self.signal != NULL:
            PyThread_free_lock(self.signal)

    cdef int set(self) noexcept:
        if luna_shared_set_once(&self.lost):
            PyThread_release_lock(self.signal)
        return 0

    def is_set(self):
        """Whether the loss has been noticed. Does not ask the device."""
        hear_of_fork()
        return luna_shared_get(&self.lost) != 0

    def __bool__(self):
        return self.is_set()

    def wait(self, timeout=None):
        """Wait until the lock is lost.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait at most. None: without limit.

        Returns
        -------
        bool
            Whether the lock was lost.

        Raises
        ------
        LockReentryError
            The caller is a greenlet, and to wait would stop all others of its thread.
        TypeError
            For the timeout.

        Notes
        -----
        The end of the hold is no loss, and does not end the wait.
        """
        cdef double seconds = -1 if timeout is None else max(0.0, timeout)
        cdef double patience = patience_here(seconds)
        if not self.is_set():
            if not wait_on(self.signal, patience):
                if patience != seconds:
                    raise LockReentryError(
                        "the lock is not lost yet, and to wait for that would stop all greenlets of this "
                        f"thread; {GREENLET_ADVICE}"
                    )
                return False
            # For the next one that waits.
            PyThread_release_lock(self.signal)
        return True

    def __repr__(self):
        return f"<luna_ext.LostEvent, {'' if self.is_set() else 'not '}set>"

    def __reduce__(self):
        raise TypeError("a LostEvent belongs to its process")


@cython.final
cdef class Heartbeat:

    cdef int wait_in_task(self, object task, object loop) except -1:
        """The hold's block is run by this task, and is cancelled when the lock is lost."""
        self.task = weakref.ref(task)
        self.loop = weakref.ref(loop)
        self.cancelling = task.cancelling()
        return 0

    cdef int begin(self, uint64_t hold, uint64_t owner) except -1:
        """The caller holds the lock now; it has to end the hold if this raises."""
        self.hold = hold
        self.owner = owner
        self.in_block = True
        self.due = luna_now() + self.interval
        self.reference = weakref.ref(self, heartbeats.discard)
        heartbeats.add(self.reference)
        if not wake_keeper(self.due):
            self.end()
            raise RuntimeError("can't start new thread")
        evictions = self.mutex.evictions()
        if self.is_over() and evictions is not None:
            # If it was lost since the grant, that was noted, and there was no heartbeat to tell of it.
            loss = evictions.get((owner, self.share.number))
            if loss is not None:
                tell_of_loss(self.mutex, hold, loss)
        return 0

    cdef int end(self) except -1:
        """The block has ended."""
        self.in_block = False
        heartbeats.discard(self.reference)
        return 0

    cdef bint is_over(self) noexcept:
        return self.mutex.is_over(self.hold)

    cdef bint take(self, double now) noexcept:
        """Whether the calling worker is to ask for this hold now."""
        cdef bint taken
        luna_guard_lock(&keeper_guard)
        taken = self.asked_since == 0 and self.due <= now
        if taken:
            self.asked_since = now
        luna_guard_unlock(&keeper_guard)
        return taken

    cdef double look(self, double now, double *asked_last) except -1:
        """When to look at this hold again; at once if it has to be asked for. `asked_last` becomes the time
        of the newest question that is out.
        """
        cdef double since, due
        cdef bint silent
        luna_guard_lock(&keeper_guard)
        since = self.asked_since
        due = self.due
        silent = since != 0 and not self.told_of_silence and now - since >= self.interval
        if silent:
            self.told_of_silence = True
        luna_guard_unlock(&keeper_guard)
        if silent:
            log.warning(
                "slot %d: the device does not answer whether its lock is still held, for %.3f s by now",
                self.mutex.slot_id,
                now - since,
            )
        if since == 0:
            return due
        asked_last[0] = max(asked_last[0], since)
        return NEVER if self.told_of_silence else since + self.interval

    cdef int warn_if_late(self, double now) except -1:
        """There is no thread to put a question: warn, if this hold should have been asked for by now."""
        cdef double since
        cdef bint late
        luna_guard_lock(&keeper_guard)
        since = self.due
        late = self.asked_since == 0 and not self.told_of_silence and now - since >= self.interval
        if late:
            self.told_of_silence = True
        luna_guard_unlock(&keeper_guard)
        if late:
            log.warning(
                "slot %d: whether its lock is still held cannot be asked, for %.3f s by now: no thread is "
                "free for it",
                self.mutex.slot_id,
                now - since,
            )
        return 0

    cdef int ask(self, set asked) except -1:
        """On a worker: is the lock still held? `asked` has the clients whose canary this worker has asked
        for in this round.
        """
        cdef SlotMutex mutex = self.mutex
        cdef CK_TOKEN_INFO info
        cdef object problem = None
        cdef bint finalised = seen(&mutex.record).generation != mutex.generation()
        cdef bint news
        # close() does not wait for a question.
        luna_shared_add(&mutex.locks.questions, 1)
        try:
            if not finalised and mutex.locks.client not in asked:
                asked.add(mutex.locks.client)
                finalised = mutex.locks.is_finalised()
            if finalised:
                mutex.locks.lose_all()
            elif not self.is_over():
                mutex._read_while_held(self.hold, &info)
        except LockLostError:
            # That is told, unless the block has ended meanwhile.
            pass
        except LibraryClosedError:
            # It takes the lock off itself.
            pass
        except CryptokiError as error:
            problem = error
        finally:
            luna_shared_add(&mutex.locks.questions, -1)
            self._is_answered()
            call_came_back(mutex.locks)
        # Noted first: another answer may come while this thread waits for the log.
        news = problem is not None and not self.told_of_problem and not self.is_over()
        self.told_of_problem = problem is not None
        if news:
            log.warning(
                "slot %d: whether its lock is still held could not be found out: %s",
                mutex.slot_id,
                problem,
            )
        return 0

    cdef int _is_answered(self) noexcept:
        cdef double due = luna_now() + self.interval
        luna_guard_lock(&keeper_guard)
        self.asked_since = 0
        self.told_of_silence = False
        self.due = due
        luna_guard_unlock(&keeper_guard)
        if not self.is_over():
            wake_keeper(due)
        return 0

    cdef int tell(self, Loss loss) except -1:
        """The lock is lost: end the hold, if that has not been done, so that waiters go on. Tell the block,
        the log and the application's function.
        """
        if not self.is_over():
            self.mutex.end_lost(self.owner, self.share.number, self.hold, loss)
        cdef object error = lost_error(self.mutex.slot_id, LOSSES[<int> loss], function=TOKEN_INFO)
        try:
            if self.loop is not None:
                tell_loop(self.loop, partial(cancel_block, self.reference))
        finally:
            self._tell_others(error)
        return 0

    cdef int _tell_others(self, object error) except -1:
        """The log, and the application's function."""
        try:
            log.error("%s", error)
        finally:
            # Also if a filter raises.
            if self.on_lost is not None:
                try:
                    self.on_lost(error)
                except BaseException:
                    log.exception("slot %d: on_lost has raised", self.mutex.slot_id)
        return 0

    cdef bint uncancel(self) except -1:
        """At the end of the block: whether its cancellation was this Heartbeat's alone."""
        task = self.task()
        return task is None or task.uncancel() <= self.cancelling


cdef Heartbeat new_heartbeat(SlotMutex mutex, Share share, double seconds, object on_lost):
    """Made before the lock is asked for. Begin it when it is held."""
    cdef Heartbeat heartbeat = Heartbeat.__new__(Heartbeat)
    heartbeat.mutex = mutex
    heartbeat.share = share
    # A loss just after a question is told in time as well, if the device answers within the other half.
    heartbeat.interval = seconds / 2
    heartbeat.on_lost = on_lost
    return heartbeat


def cancel_block(reference):
    """In the event loop: cancel the task, in its block, as asyncio.timeout() does."""
    cdef Heartbeat heartbeat = reference()
    if heartbeat is None or not heartbeat.in_block:
        return
    task = heartbeat.task()
    if task is not None and task.cancel():
        heartbeat.cancelled = True


# ---- the keeper ----


cdef bint wake_keeper(double due) noexcept:
    """See to it that the keeper looks at `due` at the latest; False: no thread can be had."""
    cdef bint start, wake
    luna_guard_lock(&keeper_guard)
    start = luna_shared_set_once(&keeper_runs)
    wake = not start and due < next_look
    luna_guard_unlock(&keeper_guard)
    if wake:
        signal_anew(keeper_wake)
    elif start and not run_on_worker(keep, None):
        luna_shared_set(&keeper_runs, 0)
        return False
    return True


cdef int keep(object nothing) noexcept:
    """The keeper."""
    global next_look
    cdef double now, due
    cdef bint ended = False
    while not ended:
        # A hold that begins during the look wakes the keeper for another one.
        luna_guard_lock(&keeper_guard)
        next_look = NEVER
        luna_guard_unlock(&keeper_guard)
        now = luna_now()
        due = look_at_heartbeats(now)
        luna_guard_lock(&keeper_guard)
        ended = keeper_stops or len(heartbeats) == 0
        if ended:
            luna_shared_set(&keeper_runs, 0)
        elif due < NEVER:
            next_look = due
        luna_guard_unlock(&keeper_guard)
        if not ended:
            # Never longer than that: holds may have ended meanwhile.
            with nogil:
                PyThread_acquire_lock_timed(
                    keeper_wake, <long long> (1e6 * min(LONG_WAIT_SECONDS, max(0.0, due - now))), 0
                )
    return 0


cdef double look_at_heartbeats(double now) noexcept:
    """Have those asked for that are due. Returns when the next look is due."""
    cdef Heartbeat heartbeat
    cdef double earliest = NEVER
    cdef double asked_last = 0
    cdef bint none_asks = False
    for reference in heartbeats.copy():
        heartbeat = reference()
        # One that is over stays until its block has ended, or is told of the loss.
        if heartbeat is None or heartbeat.is_over():
            continue
        earliest = min(earliest, heartbeat.look(now, &asked_last))
    if earliest > now:
        return earliest
    if luna_shared_get(&askers) == 0 or (
        now - asked_last > STUCK_SECONDS and luna_shared_get(&askers) < MOST_SERVERS
    ):
        luna_shared_add(&askers, 1)
        if not run_on_worker(ask_for_due, None):
            luna_shared_add(&askers, -1)
            none_asks = True
    elif now - asked_last > STUCK_SECONDS:
        none_asks = True
    if none_asks:
        for reference in heartbeats.copy():
            heartbeat = reference()
            if heartbeat is not None and not heartbeat.is_over():
                heartbeat.warn_if_late(now)
    return now + STUCK_SECONDS


cdef int ask_for_due(object nothing) noexcept:
    """On a worker: ask for all holds that are due, one after the other."""
    cdef Heartbeat heartbeat
    cdef set asked = set()
    cdef bint found = True
    while found:
        found = False
        # Where the holds are many, this thread may never come to its end.
        asked.clear()
        for reference in heartbeats.copy():
            heartbeat = reference()
            if heartbeat is not None and heartbeat.take(luna_now()):
                found = True
                ask_for(heartbeat, asked)
    luna_shared_add(&askers, -1)
    return 0


cdef int ask_for(Heartbeat heartbeat, set asked) noexcept:
    heartbeat.ask(asked)
    return 0


cdef int stop_keeper() noexcept:
    """Before a fork."""
    global keeper_stops
    if luna_shared_get(&keeper_runs):
        luna_guard_lock(&keeper_guard)
        keeper_stops = True
        luna_guard_unlock(&keeper_guard)
        signal_anew(keeper_wake)
        wait_for_none(&keeper_runs, deadline_in(DISMISSAL_SECONDS))
        luna_guard_lock(&keeper_guard)
        keeper_stops = False
        luna_guard_unlock(&keeper_guard)
    return 0


cdef int resume_keeper() noexcept:
    """In the parent process, after a fork."""
    if len(heartbeats) != 0 and not wake_keeper(0):
        log.warning(
            "no thread can be had after the fork: no lock is asked for by its heartbeat, until another "
            "block with one begins"
        )
    return 0


cdef int forget_heartbeats() except -1:
    """In a forked child: the holds are the parent's."""
    global keeper_runs, keeper_wake, next_look, askers
    luna_guard_forget(&keeper_guard)
    keeper_runs = 0
    next_look = NEVER
    askers = 0
    keeper_wake = new_signal()
    heartbeats.clear()
    return 0


# ---- a loss ----


cdef int tell_of_loss(SlotMutex mutex, uint64_t hold, Loss loss) noexcept:
    """This hold's lock is lost: have its heartbeat tell of it, if it has one. The calling thread does not
    wait for the log and the application's function.
    """
    cdef Heartbeat heartbeat
    for reference in heartbeats.copy():
        heartbeat = reference()
        if (
            heartbeat is not None
            and heartbeat.mutex is mutex
            and heartbeat.hold == hold
            and luna_shared_set_once(&heartbeat.told)
        ):
            heartbeat.loss = loss
            heartbeats.discard(reference)
            if not run_on_worker(tell_holder, heartbeat):
                tell_holder(heartbeat)
    return 0


cdef int tell_holder(object heartbeat) noexcept:
    (<Heartbeat> heartbeat).tell((<Heartbeat> heartbeat).loss)
    return 0
