# LockAll: several slots and tokens, in one order for everybody, all or none.

# Only this file has the key, so that users cannot make a LockAll by calling its class.
cdef object _ALL_KEY = object()


cdef LockAll new_lock_all(Library library, object targets, object timeout):
    cdef LockAll lock_all = LockAll.__new__(LockAll, _ALL_KEY)
    cdef ClusterSlot slot
    by_slot = {}
    lock_all.targets = tuple(targets)
    for target in lock_all.targets:
        if not isinstance(target, ClusterSlot | Token):
            raise TypeError(
                f"lock_all() locks slots and tokens of a Library, not {type(target).__name__}"
            )
        slot = <ClusterSlot> (target.slot if isinstance(target, Token) else target)
        if slot.library is not library:
            raise ValueError(f"slot {slot.slot_id} belongs to another Library; lock it through that one")
        if slot.slot_id in by_slot:
            raise ValueError(f"slot {slot.slot_id} is named twice, and could not be locked twice")
        by_slot[slot.slot_id] = target
    lock_all.in_order = tuple([by_slot[slot_id] for slot_id in sorted(by_slot)])
    lock_all.timeout = -1 if timeout is None else seconds_of(timeout)
    lock_all.held = {}
    return lock_all


@cython.final
cdef class LockAll:
    """What `Library.lock_all()` gives: its ``with`` or ``async with`` holds all of the locks, or none.

    One object may be used many times, and by several threads and tasks.
    """

    def __cinit__(self, key=None):
        if key is not _ALL_KEY:
            raise TypeError("a LockAll comes from Library.lock_all()")

    def __enter__(self):
        cdef Deadline deadline = deadline_in(self.timeout)
        cdef list locks = self._new_locks()
        cdef Py_ssize_t count
        cdef uint64_t began_in
        # Objects, made before any is locked.
        number = caller_number()
        block = [locks]
        while True:
            began_in = forks
            count = 0
            try:
                for lock in locks:
                    self._set_timeout(<SlotLock> lock, deadline)
                    (<SlotLock> lock).__enter__()
                    count += 1
                if forks == began_in:
                    self._keep(number, block)
                    return self.targets
            except BaseException as error:
                failure = first_of(error, release_all(locks, count, type(error), error))
                if failure is not error:
                    raise failure
                raise
            # A signal handler has forked meanwhile, and this is the child: some are the parent's.
            failure = release_all(locks, count, None, None)
            if failure is not None:
                raise failure

    def __exit__(self, exc_type, exc_value, traceback):
        cdef list locks = self._entered(caller_number())
        failure = release_all(locks, len(locks), exc_type, exc_value)
        self._end(locks, failure)
        if failure is not None:
            raise failure

    async def __aenter__(self):
        cdef Deadline deadline = deadline_in(self.timeout)
        cdef list locks = self._new_locks()
        cdef Py_ssize_t count = 0
        _, task = running_task()
        number = task_number(task)
        block = [locks]
        try:
            for lock in locks:
                self._set_timeout(<SlotLock> lock, deadline)
                await lock.__aenter__()
                count += 1
            self._keep(number, block)
            return self.targets
        except BaseException as error:
            # The releases are begun at once. An error of theirs is a note of this one.
            departures = []
            failure = first_of(error, leave_all(locks, count, type(error), error, departures))
            for departure in departures:
                await departure
            if failure is not error:
                raise failure
            raise

    def __aexit__(self, exc_type, exc_value, traceback):
        # No coroutine: a signal handler could run between its call and its first line.
        # The task is looked for only where there is a choice: that is Python code, which lets signal
        # handlers in.
        cdef list locks = self._entered(present_task_number() if len(self.held) > 1 else 0)
        cdef list departures = []
        failure = leave_all(locks, len(locks), exc_type, exc_value, departures)
        return self._departed(locks, departures, failure)

    async def _departed(self, locks, departures, failure):
        try:
            for departure in departures:
                try:
                    await departure
                except LunaError as error:
                    failure = first_of(failure, error)
        except BaseException as error:
            # The task may be cancelled while it waits.
            self._end(locks, failure)
            failure = first_of(failure, error)
            if failure is not error:
                raise failure
            raise
        self._end(locks, failure)
        if failure is not None:
            raise failure

    cdef list _new_locks(self):
        """One SlotLock for each target, made before any is locked."""
        cdef list locks = []
        cdef ClusterSlot slot
        cdef Token token
        cdef SlotLock lock
        for target in self.in_order:
            token = <Token> target if isinstance(target, Token) else None
            slot = token.slot if token is not None else <ClusterSlot> target
            lock = new_lock(slot, None, None, None, target, token)
            lock.told_timeout = self.timeout
            locks.append(lock)
        return locks

    cdef int _set_timeout(self, SlotLock lock, Deadline deadline) except -1:
        lock.timeout = 0 if self.timeout == 0 else left_of(deadline)
        if lock.timeout == 0 and self.timeout != 0:
            raise lock._timed_out()
        return 0

    cdef int _keep(self, object number, list block) except -1:
        """The block begins. That of lost locks of the same thread or task may run around it."""
        cdef list blocks = self.held.setdefault(number, block)
        if blocks is not block:
            blocks.extend(block)
        return 0

    cdef list _entered(self, uint64_t number):
        """The locks of the block that this thread or task runs, the innermost. The block of lost locks runs
        on, beside that of the next holder.
        """
        cdef list blocks = self.held.get(number)
        if blocks is None:
            # A generator's block may be closed by another thread.
            others = list(self.held.values())
            if len(others) != 1:
                raise LockNotOwnedError(
                    "these locks are not held by the caller; there is nothing to release",
                    function=UNLOCK,
                )
            blocks = others[0]
        return blocks[-1]

    cdef int _end(self, list locks, object failure) except -1:
        # Not if another thread has called this, whose block it is not.
        if not isinstance(failure, LockNotOwnedError):
            for number, blocks in list(self.held.items()):
                ended = [index for index, block in enumerate(blocks) if block is locks]
                if ended:
                    del blocks[ended[0]]
                    if not blocks:
                        self.held.pop(number, None)
        return 0

    def __reduce__(self):
        raise TypeError("a LockAll belongs to its process")


cdef object release_all(list locks, Py_ssize_t count, object exc_type, object exc_value):
    """Release the first `count` of these, in reverse. Returns the error if an unlock failed and no other
    exception leaves the block.
    """
    failure = None
    while count > 0:
        count -= 1
        try:
            (<SlotLock> locks[count]).__exit__(exc_type, exc_value, None)
        except BaseException as error:
            failure = first_of(failure, error)
    return failure


cdef object first_of(object failure, object error):
    """The first of two errors, of which either may be None, with the other one as a note; but one that is
    to end the program, such as KeyboardInterrupt, goes before.
    """
    if failure is None:
        return error
    if error is None:
        return failure
    if isinstance(failure, Exception) and not isinstance(error, Exception):
        failure, error = error, failure
    failure.add_note(f"luna_ext: {error}")
    return failure


cdef object leave_all(
    list locks, Py_ssize_t count, object exc_type, object exc_value, list departures
):
    """Begin the release of the first `count` of these, in reverse. `departures` gets what is to be awaited
    for each. Returns the error if an audit hook, or a log or signal handler, raised: the others are begun
    anyway.
    """
    failure = None
    while count > 0:
        count -= 1
        try:
            departures.append((<SlotLock> locks[count]).__aexit__(exc_type, exc_value, None))
        except BaseException as error:
            failure = first_of(failure, error)
    return failure
