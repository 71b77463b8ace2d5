# SlotLock: a slot's lock with a timeout, for `with` and `async with`; how a block ends.

# Only this file has the key, so that users cannot make a SlotLock by calling its class.
cdef object _LOCK_KEY = object()


cdef SlotLock new_lock(
    ClusterSlot slot, object timeout, object heartbeat, object on_lost, object target, Token token
):
    cdef SlotLock lock = SlotLock.__new__(SlotLock, _LOCK_KEY)
    lock.mutex = slot.mutex
    lock.share = slot.share
    lock.timeout = lock.told_timeout = -1 if timeout is None else seconds_of(timeout)
    lock.beat = beat_of(heartbeat, on_lost)
    lock.on_lost = on_lost
    lock.target = target
    lock.token = token
    return lock


# Whether threading.Lock takes every real number, as a Fraction, for a timeout.
cdef bint TAKES_REALS = sys.version_info >= (3, 15)


cdef double seconds_of(object timeout, str what="a timeout") except? -1:
    """A timeout, or another time, with threading.Lock's checks."""
    if not isinstance(timeout, float):
        try:
            if TAKES_REALS and not hasattr(timeout, "__index__"):
                timeout = <double> timeout
            else:
                timeout = operator.index(timeout)
        except TypeError:
            raise TypeError(
                f"{what} is a number of seconds, not {type(timeout).__name__}"
            ) from None
    if abs(timeout) > threading.TIMEOUT_MAX:
        raise OverflowError(f"{what[2:]} value is too large")
    if not timeout >= 0:
        raise ValueError(f"{what[2:]} value must be a non-negative number")
    return timeout


cdef double beat_of(object heartbeat, object on_lost) except -1:
    """The `heartbeat` of a lock in seconds; 0: None."""
    if on_lost is not None and not callable(on_lost):
        raise TypeError(f"on_lost is a function, or None, not {type(on_lost).__name__}")
    if heartbeat is None:
        if on_lost is not None:
            raise ValueError("on_lost needs a heartbeat: nothing would look for a loss without one")
        return 0
    seconds = seconds_of(heartbeat, "a heartbeat")
    if seconds == 0:
        raise ValueError("a heartbeat is a number of seconds greater than 0")
    return seconds


cdef int check_open(Share share, CK_SLOT_ID slot_id) except -1:
    if not luna_shared_get(&share.open):
        raise closed_error(slot_id, share.path)
    return 0


# ---- how a block ends ----


cdef inline int end_block(
    SlotMutex mutex, Share share, uint64_t hold, bint surely, object exc_type, object exception
) except -1:
    """Unlock at the end of a `with` block; `exception` is what leaves the block, or None. `hold` is
    the number of the block's hold, `surely` or perhaps; 0: not known.
    """
    cdef Release release
    if mutex.begin_release_here(share, &release):
        return 0
    return conclude_block(mutex, share, hold, surely, exc_type, exception, &release)


cdef int conclude_block(
    SlotMutex mutex, Share share, uint64_t hold, bint surely, object exc_type, object exception,
    Release *release,
) except -1:
    """What follows the release, where that is more than the audit event."""
    cdef Leave due = release.due
    if (due == UNLOCK_DUE or due == HANDED_OVER) and release.rv == CKR_OK:
        return mutex.conclude_release(
            due, release.loss, release.rv, release.number, share, release.began
        )
    try:
        if due == NOT_MINE:
            if mutex.ended_by_fork(release.number):
                return 0
            if exc_type is GeneratorExit and end_foreign_block(mutex, share, hold, surely):
                return 0
        mutex.conclude_release(
            due, release.loss, release.rv, release.number, share, release.began
        )
    except LunaError as error:
        tell_failed_release(error)
        note_or_raise(exception, error)
    return 0


cdef bint end_foreign_block(SlotMutex mutex, Share share, uint64_t hold, bint surely) except -1:
    """A generator was closed on another thread than the one that ran its block, by that thread or
    by its garbage collection. The lock is given back if it is certainly the block's.
    """
    cdef str holder = mutex.describe_holder()
    cdef Record now = seen(&mutex.record)
    if not surely and mutex.has_evicted(share):
        # It may be the block's lock that was lost or taken off, and another block may hold the slot now. A
        # SlotLock that both have entered through knows the number of the newest hold only.
        return False
    if hold == 0:
        hold = now.hold
    if now.owner == 0 or now.share != share.number or now.hold != hold:
        return False
    log.error(
        "slot %d: a generator was closed in a with block that another thread runs; the lock is "
        "given back (%s)",
        mutex.slot_id,
        holder,
    )
    mutex.take_from_holder(hold, NOT_LOST)
    return True


cdef int note_or_raise(object exception, object error) except -1:
    """If an exception leaves the block, it goes on, with a note about the failed unlock. If none
    does, the unlock's own error is raised.
    """
    if exception is None:
        raise error
    try:
        exception.add_note(f"luna_ext: at the end of the with block: {error}")
    except Exception:
        # The error of the unlock is in the log already.
        pass
    return 0


@cython.final
cdef class Departure:

    def __del__(self):
        """What had the block was collected and never closed, as an async generator is whose event loop has
        ended. While its task is there, `release()` may be called.
        """
        if not self.in_block or is_finalizing():
            return
        hear_of_fork()
        if seen(&self.mutex.record).owner == self.seat.number and self.mutex.task_is_gone():
            self.begin(GeneratorExit, None)

    cdef int begin(self, object exc_type, object exc_value) except -1:
        """Begin the release: before anything that may run Python code, and before it is awaited."""
        cdef SlotMutex mutex = self.mutex
        self.in_block = False
        # In a child that C code has forked, the lock is the parent's.
        hear_of_fork()
        self.generation = mutex.generation()
        # That of its own hold: where that was lost, the task may hold the slot anew.
        self.due = begin_leave_of(
            mutex,
            self.seat.number,
            self.seat.hold,
            self.seat.share,
            self.generation,
            &self.loss,
        )
        if self.heartbeat is not None:
            # The task is not cancelled for a loss any more.
            self.heartbeat.in_block = False
        if self.due == UNLOCK_DUE or self.due == UNLOCK_DUE_LATER:
            if self.due != UNLOCK_DUE or not mutex.unlock_without_gil(
                self, self.generation, hear_unlock
            ):
                # If no thread can be had, this thread has to make the unlock call.
                if not run_on_worker(unlock_for_departure, self):
                    self.finish(True)
        else:
            luna_shared_set(&self.finished, 1)
            if self.due == LOST:
                mutex.pass_turn()
        self.exc_type = exc_type
        self.exc_value = exc_value
        if self.heartbeat is not None:
            self.heartbeat.end()
        if self.due == NOT_MINE:
            if not mutex.ended_by_fork(self.seat.number):
                self._conclude()
            return 0
        if exc_type is GeneratorExit and self.due != LOST and mutex.task_is_gone():
            tell_of_abandoned_block(mutex)
        if self.due == LOST:
            self._conclude()
        audit_unlock(mutex.slot_id)
        return 0

    def _conclude(self):
        """Keep and log the error if the release failed."""
        try:
            self.mutex.judge_release(
                self.due, self.loss, self.rv, self.seat.number, self.share, 0
            )
        except LunaError as error:
            self.error = error
            tell_failed_release(error)

    cdef int finish(self, bint passes_turn) noexcept:
        """Make the unlock call, or hand over; most often on a worker."""
        cdef Leave due = self.due
        self.began = luna_now()
        if self.share.handover != 0:
            self.rv = self.mutex.hand_over(self.generation, self.share, &due)
        else:
            self.rv = self.mutex.take_off(due == UNLOCK_DUE_LATER, self.generation, passes_turn)
        return self.tell(due)

    cdef int tell(self, Leave due) noexcept:
        """The lock is off, or not any more the block's, or that has failed: tell the task."""
        try:
            if due == HANDED_OVER:
                tell_handed_over(self.mutex.slot_id)
            elif self.rv == CKR_OK:
                tell_unlocked(self.began, self.mutex.slot_id, False)
            else:
                self._conclude()
        except BaseException as error:
            self.error = error
        finally:
            luna_shared_set(&self.finished, 1)
            self.wake()
            call_came_back(self.mutex.locks)
        return 0

    def __await__(self):
        # A coroutine that is being closed must not wait any more; the worker unlocks all the same.
        if self.exc_type is GeneratorExit:
            if self.heartbeat is not None and self.heartbeat.cancelled:
                self.heartbeat.uncancel()
            return
        if not luna_shared_get(&self.finished):
            loop = None if self.inbox is None else self.inbox.loop()
            done = (asyncio_loop() if loop is None else loop).create_future()
            self.wait_in_task(done)
            # The worker may have finished before the future was there to be settled.
            if not luna_shared_get(&self.finished):
                try:
                    yield from done
                except BaseException as error:
                    # This exception leaves the block instead of the unlock's error, so it gets a note
                    # with that error.
                    if luna_shared_get(&self.finished) and self.error is not None:
                        note_or_raise(error, self.error)
                    raise
        if self.error is not None:
            hold_back_at_exit()
        error, self.error = self.error, None
        value, self.exc_value = self.exc_value, None
        if self.heartbeat is not None and self.heartbeat.cancelled:
            cancelled = isinstance(value, sys.modules["asyncio"].CancelledError)
            if self.heartbeat.uncancel() and cancelled and error is not None:
                raise error from value
        if error is not None:
            note_or_raise(value, error)


cdef Departure new_departure(SlotMutex mutex, uint64_t number, Share share):
    """Made before the block is entered, so that its end allocates nothing."""
    cdef Departure departure = Departure.__new__(Departure)
    departure.mutex = mutex
    departure.prepare(number, 0, share)
    return departure


cdef int unlock_for_departure(object departure) noexcept:
    # The record of the unlock is written after it, and a log handler may take its time.
    cdef bint passes_turn = debug_may_be_on()
    (<Departure> departure).finish(passes_turn)
    return not passes_turn


cdef Heard hear_unlock(object departure, SlotCall *made, luna_bell *here, bint slowly) noexcept:
    """The unlock call that a worker has made without the GIL is answered."""
    cdef Departure self = <Departure> departure
    cdef SlotMutex mutex = self.mutex
    cdef Heard heard
    if slowly:
        end_slot_call(made)
        self.began = luna_now() - 1e-9 * made.call.nanoseconds
        self.rv = mutex.after_unlock(
            made.call.rv, made.call.ended, self.generation, True, False
        )
        self.tell(UNLOCK_DUE)
        return HEARD
    if (
        (here != NULL and here != self.seat.bell)
        or luna_shared_get(&self.share.client.state) != READY
        or debug_may_be_on()
    ):
        return NOT_HEARD
    heard = mutex.after_plain_unlock(made)
    luna_shared_set(&self.finished, 1)
    self.wake()
    return heard


cdef int tell_of_abandoned_block(SlotMutex mutex) except -1:
    what = (
        f"slot {mutex.slot_id} was still locked, {mutex.place()}, when the task that held it was "
        "collected: its event loop has ended without it"
    )
    log.error("%s; it is unlocked now", what)
    warnings.warn(what, ResourceWarning, stacklevel=1)
    return 0


# ---- what a worker does while a thread or task waits ----


@cython.final
cdef class Errand:

    def run(self):
        try:
            self.function()
        except BaseException as error:
            self.error = error
        luna_guard_lock(&self.locks.guard)
        luna_shared_set(&self.finished, 1)
        luna_shared_add(&self.locks.questions, -<int> self.given_up)
        luna_guard_unlock(&self.locks.guard)
        self.wake()
        if self.given_up:
            call_came_back(self.locks)

    cdef int give_up(self) noexcept:
        """The wait for it ends, and that of close(), which may come before the device answers."""
        luna_guard_lock(&self.locks.guard)
        # In a forked child there is no worker that would count it down.
        if not luna_shared_get(&self.finished) and self.made_in == forks:
            self.given_up = True
            luna_shared_add(&self.locks.questions, 1)
        luna_guard_unlock(&self.locks.guard)
        return 0


# The Errands that threads wait for, to be ended in a forked child.
cdef set errands = set()


cdef Errand new_errand(object function, Locks locks):
    cdef Errand errand = Errand.__new__(Errand)
    errand.function = function
    errand.locks = locks
    errand.made_in = forks
    return errand


cdef bint run_within(object function, Locks locks, Deadline deadline) except -1:
    """Run a function that makes device calls, and wait for it until the deadline at most; whether it
    has returned in time.

    On the main thread signal handlers run meanwhile. If one of them forks, False is returned in the
    child at once: the worker that runs the function exists in the parent only.
    """
    cdef Errand errand
    cdef double left = left_of(deadline)
    if left < 0 and not on_main_thread():
        function()
        return True
    errand = new_errand(function, locks)
    errand.wait_in_thread()
    if not try_on_worker(errand.run):
        function()
        return True
    errands.add(errand)
    try:
        wait_on(errand.signal, left)
    finally:
        errands.discard(errand)
        errand.give_up()
    if luna_shared_get(&errand.finished) and errand.error is not None:
        raise errand.failure()
    return luna_shared_get(&errand.finished)


def _after_fork_in_child():
    for errand in errands:
        signal_anew((<Errand> errand).signal)


do_in_child(_after_fork_in_child)


def try_on_worker(function):
    try:
        call_on_worker(function)
    except RuntimeError:
        return False
    return True


# ---- asyncio ----


def asyncio_loop():
    return sys.modules["asyncio"].get_running_loop()


cdef uint64_t present_task_number() except? 0:
    """The number of the asyncio task that this thread is running; 0: it runs none."""
    task = current_task()
    return 0 if task is None else task_number(task)


def running_task():
    """The event loop that this thread is running, and its task."""
    task = current_task()
    if task is None:
        raise RuntimeError("`async with` on a lock works inside an asyncio task")
    return task.get_loop(), task


async def settled_within(future, seconds, patience, warn):
    """Wait until the future is settled, for so long at most; -1: without limit.

    If that takes longer than `patience` seconds, `warn` is called.
    """
    loop = future.get_loop()
    reference = weakref.ref(future)
    timers = []
    if seconds != -1:
        timers.append(loop.call_later(seconds, settle, reference))
    if seconds == -1 or seconds > patience:
        timers.append(loop.call_later(patience, warn))
    try:
        await future
    finally:
        for timer in timers:
            timer.cancel()


def no_warning():
    """For a wait that is part of another one, which warns of its length itself."""


@cython.final
cdef class SlotLock:
    """What `lock(timeout=...)` of a slot or token gives: locks for a ``with`` or ``async with``.

    One object may be used many times, and by several threads and tasks.
    """

    __class_getitem__ = classmethod(GenericAlias)

    def __cinit__(self, key=None):
        if key is not _LOCK_KEY:
            raise TypeError("a SlotLock comes from ClusterSlot.lock() or Token.lock()")

    def __enter__(self):
        cdef Deadline deadline = answer_by(self.timeout)
        cdef double seconds = self.timeout
        cdef uint64_t began_in, hold
        cdef Heartbeat heartbeat
        check_open(self.share, self.mutex.slot_id)
        if self.timeout == 0:
            self.mutex.refuse_reentry(caller_number(), thread_number(), True)
        while True:
            place = note_place(self.mutex, None)
            heartbeat = self._new_heartbeat()
            # It may have ended by then: a log handler was told of it.
            if not self.mutex.acquire_within(self.share, seconds, &hold):
                raise self._timed_out()
            began_in = forks
            # Another thread may enter through the same SlotLock if this hold is lost.
            # In this order: see __exit__().
            luna_shared_add(&self.blocks, 1)
            self.hold = hold
            self.mutex.keep_place(place, hold)
            if self.token is None and heartbeat is None:
                return self.target
            try:
                if self.token is not None:
                    self._check_label(deadline)
                if heartbeat is not None and forks == began_in:
                    heartbeat.begin(hold, caller_number())
                    self._keep_heartbeat(heartbeat)
            except BaseException as error:
                luna_shared_add(&self.blocks, -1)
                end_block(self.mutex, self.share, hold, True, None, error)
                raise
            if forks == began_in:
                return self.target
            # A signal handler has forked meanwhile, and this is the child: it holds nothing.
            luna_shared_add(&self.blocks, -1)
            if self.timeout > 0:
                seconds = left_of(deadline)

    def __exit__(self, exc_type, exc_value, traceback):
        # Where no other block runs that has entered through this object, it is this one's.
        cdef uint64_t hold = self.hold
        cdef bint alone = luna_shared_add(&self.blocks, -1) == 0
        if self.heartbeat is None:
            end_block(self.mutex, self.share, hold, alone, exc_type, exc_value)
            return
        try:
            end_block(self.mutex, self.share, hold, alone, exc_type, exc_value)
        finally:
            self._drop_heartbeat()

    cdef Heartbeat _new_heartbeat(self):
        if self.beat == 0:
            return None
        return new_heartbeat(self.mutex, self.share, self.beat, self.on_lost)

    cdef int _keep_heartbeat(self, Heartbeat heartbeat) except -1:
        with cython.critical_section(self):
            self.heartbeat = heartbeat
        return 0

    cdef int _drop_heartbeat(self) except -1:
        """Unless it is that of the next holder, whose block is of the same SlotLock."""
        cdef Heartbeat heartbeat
        with cython.critical_section(self):
            heartbeat = self.heartbeat
            if heartbeat is None or not heartbeat.is_over():
                return 0
            self.heartbeat = None
        return heartbeat.end()

    async def __aenter__(self):
        cdef Waiter waiter
        cdef Departure departure
        cdef Deadline deadline = answer_by(self.timeout)
        check_open(self.share, self.mutex.slot_id)
        loop, task = running_task()
        cdef TaskMark mark = mark_of_task(task)
        cdef uint64_t number = mark.number
        self.mutex._need_functions(self.share)
        join_lineage(number)
        audit_lock(self.mutex.slot_id)
        waiter = Waiter.__new__(Waiter)
        waiter.prepare(number, thread_number(), self.share)
        begin_wait(&waiter.wait)
        self.mutex.refuse_reentry(number, waiter.seat.home, mark.waits != 0)
        if self.timeout == 0 and not self.mutex.is_free():
            raise self._timed_out()
        departure = new_departure(self.mutex, waiter.seat.number, self.share)
        departure.heartbeat = self._new_heartbeat()
        place = note_place(self.mutex, mark)
        answered = loop.create_future()
        waiter.wait_in_task(answered)
        departure.be_told_with(waiter)
        cdef double left = left_of(deadline)
        timer = None
        self.mutex.ask(waiter, NULL)
        luna_shared_add(&mark.waits, 1)
        try:
            try:
                if left >= 0:
                    timer = loop.call_later(left, settle, waiter.future)
                # A wait whose limit is as short ends with an error instead.
                if left < 0 or left > LONG_WAIT_SECONDS:
                    waiter.inbox.watch(waiter)
                await answered
            finally:
                luna_shared_add(&mark.waits, -1)
                waiter.inbox.waits.pop(waiter, None)
                if timer is not None:
                    # Python code, in which a signal handler may raise when the lock is granted already.
                    timer.cancel()
        except BaseException:
            self.mutex.withdraw(waiter)
            raise
        outcome = outcome_of(&self.mutex.record, &waiter.seat)
        if outcome == FAILED:
            raise waiter.failure()
        if outcome != GRANTED:
            self.mutex.withdraw(waiter)
            raise self._timed_out()
        self.mutex.confirm(waiter)
        self.mutex.keep_place(place, waiter.seat.hold)
        departure.seat.hold = waiter.seat.hold
        with cython.critical_section(self):
            departure.earlier = self.departure
            departure.in_block = True
            self.departure = departure
        if self.token is not None or departure.heartbeat is not None:
            try:
                if self.token is not None:
                    await self._check_label_in_task(loop, task, left_of(deadline))
                # From here on the task awaits nothing before its block.
                if departure.heartbeat is not None:
                    departure.heartbeat.wait_in_task(task, loop)
                    departure.heartbeat.begin(waiter.seat.hold, waiter.seat.number)
            except BaseException as error:
                await self.__aexit__(type(error), error, None)
                raise
        return self.target

    def __aexit__(self, exc_type, exc_value, traceback):
        # No coroutine: a signal handler could run between its call and its first line.
        cdef Departure departure
        cdef bint is_alone
        # Another thread may enter just now through the same SlotLock, if this block's lock was lost.
        with cython.critical_section(self):
            departure = self.departure
            is_alone = departure is None or departure.earlier is None
            if is_alone:
                self.departure = None
        if not is_alone:
            departure = self._departure_of(present_task_number())
        if departure is None:
            departure = new_departure(self.mutex, 0, self.share)
        departure.begin(exc_type, exc_value)
        return departure

    cdef Departure _departure_of(self, uint64_t number):
        """The end of this task's block: the block of a lost lock runs on beside that of the next holder.
        """
        cdef Departure departure, newer = None
        with cython.critical_section(self):
            departure = self.departure
            while departure is not None and departure.seat.number != number:
                newer = departure
                departure = departure.earlier
            if departure is not None:
                if newer is None:
                    self.departure = departure.earlier
                else:
                    newer.earlier = departure.earlier
                departure.earlier = None
        return departure

    cdef int _check_label(self, Deadline deadline) except -1:
        cdef uint64_t began_in = forks
        cdef double seconds = patience_here(left_of(deadline))
        if (
            not run_within(self.token._check, self.mutex.locks, deadline_in(seconds))
            and forks == began_in
        ):
            if left_of(deadline) != 0:
                raise self.mutex.greenlet_error(TOKEN_INFO)
            raise self._check_timed_out()
        return 0

    async def _check_label_in_task(self, loop, task, seconds):
        cdef Errand errand = new_errand(self.token._check, self.mutex.locks)
        done = loop.create_future()
        errand.wait_in_task(done)
        call_on_worker(errand.run)
        try:
            await settled_within(done, seconds, LONG_WAIT_SECONDS, no_warning)
        finally:
            errand.give_up()
        if not luna_shared_get(&errand.finished):
            raise self._check_timed_out()
        if errand.error is not None:
            raise errand.failure()

    def _timed_out(self):
        holder = self.mutex.describe_holder()
        return self._timeout_error(
            f"{holder or 'another process or host holds it, or the device does not answer'}. Nothing is "
            "locked; try again, or wait longer",
            LOCK,
        )

    def _check_timed_out(self):
        return self._timeout_error(
            "it was granted, but the device has not told the token's label in time. It is unlocked; try "
            "again, or wait longer",
            TOKEN_INFO,
        )

    def _timeout_error(self, reason, function):
        slot_id = self.mutex.slot_id
        count_timeout(self.share.client)
        waited = "at once" if self.told_timeout == 0 else f"within {self.told_timeout:g} s"
        error = LockTimeoutError(
            f"slot {slot_id} could not be locked {waited}: {reason}", function=function, slot_id=slot_id
        )
        error.timeout = self.told_timeout
        return error

    def __reduce__(self):
        raise TypeError("a SlotLock belongs to its process")
