# Claim: what `Library.claim()` gives. Its block holds an unassigned token.

# Only this file has the key, so that users cannot make a claim by calling its class.
cdef object _CLAIM_KEY = object()


cdef Claim new_claim(
    Library library, object cluster_id, object timeout, object heartbeat, object on_lost
):
    if not isinstance(cluster_id, str):
        raise TypeError(f"a cluster ID is a str, not {type(cluster_id).__name__}")
    if not cluster_id or "\0" in cluster_id:
        raise ValueError(f"{cluster_id!r} is no cluster ID: it is empty or contains NUL")
    cdef Claim claim = Claim.__new__(Claim, _CLAIM_KEY)
    claim.library = library
    claim.share = library.share
    claim.cluster_id = cluster_id.encode("utf-8")
    claim.timeout = seconds_of(timeout)
    claim.beat = beat_of(heartbeat, on_lost)
    claim.on_lost = on_lost
    return claim


@cython.final
cdef class Claim:
    """What `Library.claim()` gives: its ``with`` or ``async with`` holds an unassigned token."""

    def __cinit__(self, key=None):
        if key is not _CLAIM_KEY:
            raise TypeError("a Claim comes from Library.claim()")

    def __enter__(self):
        cdef Request request
        cdef Backoff backoff
        cdef uint64_t began_in
        backoff.longest = 0
        self._begin()
        try:
            while True:
                began_in = forks
                request = self._request(caller_number())
                if self.timeout == 0 and not on_main_thread() and not in_greenlet_hub():
                    # This thread runs no signal handlers and has no time limit, so it may make the call
                    # itself, which is the fastest way.
                    request.make_here(&self.wait)
                else:
                    self._ask_and_wait(request)
                if forks == began_in:
                    self.token = self._token_of(request)
                if forks != began_in:
                    # A signal handler has forked meanwhile, and this is the child: it holds nothing.
                    self.token = None
                elif self.token is not None:
                    self.heartbeat = self._begin_heartbeat(request, None, None)
                    return self.token
                else:
                    time.sleep(self._pause(next_pause(&backoff), True))
                if luna_now() - self.wait.began > LONG_WAIT_SECONDS:
                    self._warn()
        finally:
            luna_shared_set(&self.entered, self.token is not None)

    def __exit__(self, exc_type, exc_value, traceback):
        cdef Token token = self._running()
        try:
            end_block(token.slot.mutex, token.slot.share, token.claimed, True, exc_type, exc_value)
        finally:
            # If another thread has called this, the block goes on.
            if token.slot.mutex.is_over(token.claimed):
                if self.heartbeat is not None:
                    self.heartbeat.end()
                    self.heartbeat = None
                self._end()

    async def __aenter__(self):
        cdef Request request
        cdef Departure departure
        cdef Backoff backoff
        backoff.longest = 0
        loop, task = running_task()
        self._begin()
        try:
            while True:
                answered = loop.create_future()
                request = self._request(task_number(task))
                request.wait_in_task(answered)
                departure = new_departure(None, request.seat.number, self.share)
                place = note_place(None, mark_of_task(task))
                try:
                    request.queue_up()
                    await self._settled(answered, left_of(self.deadline))
                except BaseException:
                    request.give_up()
                    raise
                self.token = self._token_of(request)
                if self.token is not None:
                    self.token.slot.mutex.keep_place(place, self.token.claimed)
                    departure.mutex = self.token.slot.mutex
                    departure.seat.hold = self.token.claimed
                    departure.heartbeat = self._begin_heartbeat(request, task, loop)
                    departure.in_block = True
                    self.departure = departure
                    return self.token
                await self._settled(loop.create_future(), self._pause(next_pause(&backoff), False))
        finally:
            luna_shared_set(&self.entered, self.token is not None)

    def __aexit__(self, exc_type, exc_value, traceback):
        # No coroutine: a signal handler could run between its call and its first line.
        cdef Departure departure = self.departure
        self.departure = None
        if departure is None:
            self._running()
            departure = new_departure(self.token.slot.mutex, 0, self.share)
        else:
            self._end()
        departure.begin(exc_type, exc_value)
        return departure

    def __reduce__(self):
        raise TypeError("a Claim belongs to its process")

    cdef int _begin(self) except -1:
        # Without the unlock function the claimed token would stay locked.
        self.share.client.need(CA_GET_UNASSIGNED_SLOT, self.share.path)
        self.share.client.need(CA_UNLOCK_CLUSTERED_SLOT, self.share.path)
        sys.audit("luna_ext.claim", self.cluster_id.decode())
        # Of several threads that enter at the same moment only one does.
        if not luna_shared_set_once(&self.entered):
            raise LockReentryError(
                "this claim's block is running already; call claim() once more for another token",
                function="CA_GetUnassignedSlot",
            )
        try:
            begin_wait(&self.wait)
        except BaseException:
            luna_shared_set(&self.entered, False)
            raise
        # With a timeout of 0 the device is asked once, and its answer is waited for.
        self.deadline = deadline_in(self.timeout or -1)
        self.tries_until = answer_by(self.timeout)
        self.refusal = None
        return 0

    cdef Token _running(self):
        """The token of the block that runs."""
        if self.token is None:
            raise LockNotOwnedError(
                "this claim's block was not entered; there is nothing to release",
                function="CA_UnlockClusteredSlot",
            )
        return self.token

    cdef int _end(self) noexcept:
        self.token = None
        luna_shared_set(&self.entered, False)
        return 0

    cdef Request _request(self, uint64_t number):
        cdef Request request = Request.__new__(Request)
        join_lineage(number)
        request.prepare(number, thread_number(), self.share)
        request.cluster_id = self.cluster_id
        request.locks = self.library.locks
        return request

    cdef int _ask_and_wait(self, Request request) except -1:
        request.wait_in_thread()
        try:
            request.queue_up()
            sit_out(
                request,
                &self.wait,
                deadline_in(patience_here(left_of(self.deadline))),
                self._warn,
                NULL,
            )
            if request.outcome() == WAITING and self._has_time() and in_greenlet_hub():
                raise greenlet_error(
                    f"cluster {self.cluster_id.decode()!r}: the device has not answered yet",
                    CLAIM,
                    None,
                )
        except BaseException:
            request.give_up()
            raise
        return 0

    cdef bint _has_time(self) except -1:
        return left_of(self.deadline) != 0

    async def _settled(self, future, seconds):
        patience = max(0.0, self.wait.began + LONG_WAIT_SECONDS - luna_now())
        await settled_within(future, seconds, patience, self._warn)

    def _warn(self):
        warn_of_wait(&self.wait, self.cluster_id, None)

    cdef Token _token_of(self, Request request):
        """The Token that the request was given; None if the device may be asked again."""
        cdef Token token
        cdef Outcome outcome = request.outcome()
        if outcome != GRANTED and outcome != FAILED:
            request.give_up()
            raise self._out_of_time()
        if outcome == FAILED:
            if not may_change(request.error):
                raise self._explained(request.failure())
            self.refusal = request.error
            return None
        request.mutex.confirm_claim(request, &self.wait)
        try:
            token = new_token(
                self.library.slot(request.mutex.slot_id), blank_padded(request.info.label)
            )
        except BaseException:
            # The Library was closed. If close() has taken this lock off already, this does nothing.
            request.give_up()
            raise
        token.claimed = request.seat.hold
        return token

    def _explained(self, error):
        if isinstance(error, ArgumentsBadError):
            error.add_note(
                f"luna_ext: is {self.cluster_id.decode()!r} the cluster's ID? The cluster's administrator "
                "has it"
            )
        return error

    cdef Heartbeat _begin_heartbeat(self, Request request, object task, object loop):
        cdef Heartbeat heartbeat
        if self.beat == 0:
            return None
        try:
            heartbeat = new_heartbeat(request.mutex, self.share, self.beat, self.on_lost)
            if task is not None:
                heartbeat.wait_in_task(task, loop)
            heartbeat.begin(self.token.claimed, request.seat.number)
        except BaseException:
            self.token = None
            request.give_up()
            raise
        return heartbeat

    def _pause(self, double delay, bint in_thread):
        """Seconds until it is worth asking again; raises when the time is up."""
        cdef double left = left_of(self.tries_until)
        cdef double waited = luna_now() - self.wait.began
        if self.timeout == 0 and meaning_of(self.refusal.rv) is Meaning.NONE_LEFT:
            left = 0
        elif in_thread:
            left = patience_here(waited + left) - waited
        if left <= 0:
            raise self._out_of_time()
        # The last pause must leave the device time to answer.
        return min(delay, left / 2)

    def _out_of_time(self):
        cluster_id = self.cluster_id.decode()
        if self.refusal is None:
            count_timeout(self.share.client)
            error = LockTimeoutError(
                f"the device has not given a token of cluster {cluster_id!r} within "
                f"{self.timeout:g} s, nor said that there is none. Nothing is locked; try again, "
                "or wait longer",
                function="CA_GetUnassignedSlot",
            )
            error.timeout = self.timeout
            return error
        if meaning_of(self.refusal.rv) is not Meaning.NONE_LEFT:
            return self.refusal
        return NoUnassignedTokenError(
            f"cluster {cluster_id!r} has no unassigned token"
            + self._none_came(),
            rv=CKR_FUNCTION_FAILED,
            function="CA_GetUnassignedSlot",
        )

    def _none_came(self):
        if self.timeout and self._has_time():
            return f" now, and to wait would stop all greenlets of this thread; {GREENLET_ADVICE}"
        waited = f", and none became free within {self.timeout:g} s" if self.timeout else ""
        return (
            f"{waited}; make more keyrings in it, or wait until a program lets one go that it has "
            "claimed"
        )


def may_change(error):
    """Whether the device's answer to a claim may be another one soon: none left, or busy."""
    return isinstance(error, CryptokiError) and meaning_of(error.rv) in (
        Meaning.NONE_LEFT,
        Meaning.BUSY,
    )
