# Library: loads a client library, and makes the objects for its slots and tokens.

# Not looked up in `sys` at each call: at the interpreter's end `sys` may be gone.
cdef object is_finalizing = sys.is_finalizing

LARGEST_SLOT_ID = <CK_SLOT_ID> -1

cdef int application_was_looked_at = 0


cdef tell_of_other_users(path):
    """Before the library is loaded: a WARNING record if they may change it."""
    from .ownership import tell_once

    tell_once(path)


@cython.final
cdef class Ends:
    """What threads of this process tell the thread that waits until they have come to their ends."""

    def __cinit__(self):
        self.queue = SimpleQueue()
        self.made_in = forks

    __class_getitem__ = classmethod(GenericAlias)

    def put(self, end):
        """Tell it that there is this end."""
        self.queue.put(end)

    def next(self):
        """The next end; signals are heard while it waits. RuntimeError: in a child, none comes any more."""
        # A wait does not hear of a signal that comes just before it, or that another thread gets.
        while not self.left_behind:
            try:
                return self.queue.get(timeout=SIGNAL_SECONDS)
            except Empty:
                if PyErr_CheckSignals() != 0:
                    luna_raise_pending()
        raise RuntimeError(
            "a signal handler has forked meanwhile, and this is the child: what was begun goes on in the "
            "parent, not here; call it again"
        )

    @property
    def left_behind(self):
        """Whether this is a child that was forked meanwhile: the threads exist in the parent only."""
        hear_of_fork()
        return self.made_in != forks


@cython.final
cdef class Library:
    """Library(path=None, *, contention="block", handover=0.0)\n--\n
    A loaded and initialised Luna client library.

    Parameters
    ----------
    path : str or os.PathLike, optional
        The client library (libCryptoki2). Without it: what the environment variable
        LUNA_EXT_LIBRARY names, else the client's configuration file, else its default path.
    contention : {"block", "poll"}
        What to do when the device answers CKR_DEVICE_ERROR to a lock call. "block" is for devices
        on which the call waits for the present holder: the error is raised. "poll" is for devices
        that answer this error on contention: the call is tried again, at most 50 times a second, and
        a process that has had the lock for 120 ms in a row leaves it to others for 40 ms.
    handover : float
        Seconds, from when the device has granted a lock, in which the end of a block hands it over to the
        next waiter of this process, without a call. After that it is unlocked, so that other hosts get
        their turn. The Library of the block that ends decides. 0: each lock is unlocked.

    Raises
    ------
    LibraryLoadError
        No client library was found, the file is not a PKCS #11 module or not a complete one, or it is
        the stand-in where LUNA_EXT_FORBID_STUB=1 or /etc/luna_ext/forbid-stub forbids it.
    DeviceError, CryptokiError
        What C_Initialize answers.
    TypeError, ValueError
        For the arguments.

    Notes
    -----
    Use it in a ``with`` statement, or call `close()`. Several Library objects may use one client
    library at a time; they share its locks, and the last one that closes finalises it. It loads
    any PKCS #11 module; the cluster functions are resolved one by one, and one that is missing
    raises `UnsupportedFunctionError` when it is needed. The stand-in, opened by its path instead of
    `luna_ext.stub.Cluster.library()`, warns with a `RuntimeWarning` and a WARNING record once per
    process. Another WARNING record, once per process and client library, says so if other users may
    change the library, the client's configuration or a directory above them.
    """

    def __cinit__(self, path=None, *, contention="block", handover=0.0):
        cdef double handover_seconds
        if contention not in ("block", "poll"):
            raise ValueError(f'contention is "block" or "poll", not {contention!r}')
        handover_seconds = handover_of(handover)
        self.path = find_library(path).path
        tell_of_other_users(self.path)
        self.client = load_client(self.path)
        self.locks = locks_of(self.client)
        if self.client.is_stub:
            self._check_stand_in(path)
        elif luna_shared_set_once(&application_was_looked_at):
            # The stand-in has no such configuration.
            from .applications import tell_once

            tell_once()
        self.slots_by_number = []
        self.share = open_client(self.locks, self.path)
        self.share.poll = contention == "poll"
        self.share.handover = handover_seconds
        self.opened = True
        if wraps_stand_in(self.client):
            self._check_stand_in(path)
        if "PyKCS11" in sys.modules:
            from .neighbours import keep_pykcs11

            keep_pykcs11(self.path)

    def _check_stand_in(self, path):
        """Refuse the stand-in where it is forbidden; warn unless the caller means it."""
        # Imported only here: a program that works with an HSM needs nothing of luna_ext.stub.
        from .stub.guard import ExpectedStandIn, check_stand_in

        expected = isinstance(path, ExpectedStandIn)
        try:
            check_stand_in(self.path, warn=not (expected or self.client.stub_warned))
        except BaseException:
            if self.opened:
                self.close()
            raise
        self.client.stub_warned |= not expected

    def __enter__(self):
        self._check_open()
        return self

    def __exit__(self, exc_type, exc_value, traceback):
        self.close()

    def close(self):
        """Close the library; a second call does nothing.

        New calls raise `LibraryClosedError` at once, and so do threads and tasks that wait for a
        lock. Locks that are still held through this Library are released, with a `ResourceWarning`;
        their holders get a `LockLostError` at their next call.

        C_Finalize is called after the last call has returned, unless another Library of this
        process still uses the client library, or other code has initialised it. If C_Finalize
        fails, a WARNING record says so.
        """
        if not self.opened or not self._close(True):
            self._wait_for_close()
            finish_closing(self.locks)

    def _wait_for_close(self):
        """Wait until another thread's close() has released what was held."""
        cdef PyThread_type_lock closing
        cdef double left = left_of_exit()
        cdef bint waits
        pid = os.getpid()
        with cython.critical_section(self):
            # Not for a close() that the present signal handler has interrupted, nor for one that another
            # thread of the parent process was in at the fork: neither would ever end.
            waits = self.closer != PyThread_get_thread_ident() and self.closing_pid == pid
            closing = self.closing
        # In a child that a signal handler forks meanwhile, it would not end either.
        while waits and left != 0 and os.getpid() == pid:
            if wait_on(closing, SIGNAL_SECONDS if left < 0 else min(left, SIGNAL_SECONDS)):
                PyThread_release_lock(closing)
                waits = False
            left = left_of_exit()

    def _close(self, bint wait):
        """Whether this is the first thread that does."""
        cdef PyThread_type_lock closing
        cdef bint is_first
        hear_of_fork()
        closing = new_signal()
        closing_pid = os.getpid()
        with cython.critical_section(self):
            is_first = self.opened
            if is_first:
                self.closing = closing
                self.closer = PyThread_get_thread_ident()
                self.closing_pid = closing_pid
                self.opened = False
        if not is_first:
            PyThread_free_lock(closing)
            return False
        try:
            self._release_all(wait)
        finally:
            PyThread_release_lock(closing)
        return True

    def _release_all(self, bint wait):
        cdef ClusterSlot slot
        luna_shared_set(&self.share.open, False)
        failure = None
        places = []
        try:
            for each in list(self.slots_by_number):
                if each is None:
                    continue
                slot = <ClusterSlot> each
                try:
                    place = slot.mutex.close_share(self.share)
                except BaseException as error:
                    # A signal handler raised inside it; close_share() can be repeated.
                    failure = error
                    place = slot.mutex.close_share(self.share)
                places.append((slot, place))
            try:
                self.locks.fail_claims(self.share)
            except BaseException as error:
                # Likewise.
                failure = error
                self.locks.fail_claims(self.share)
        finally:
            # Else no later call would end the share.
            close_client(self.locks, self.share, wait)
        if failure is not None:
            raise failure
        # Last: a warning, or a log handler, may raise, and then nothing may stay locked.
        for each, place in places:
            if place is not None:
                what = (
                    f"slot {each.slot_id} was still locked, {place}, when its Library was "
                    "closed; it is unlocked now"
                )
                log.error("%s", what)
                warnings.warn(what, ResourceWarning, stacklevel=1, source=each)

    def __dealloc__(self):
        if self.closing != NULL:
            PyThread_free_lock(self.closing)

    def __del__(self):
        # At the interpreter's end the handler of atexit has released all locks, and modules are gone.
        if not self.opened or is_finalizing():
            return
        try:
            self._close(False)
        finally:
            warnings.warn(
                f"unclosed Library for {self.path!r}; use a with statement, or close() it",
                ResourceWarning,
                source=self,
            )

    @property
    def closed(self):
        """Whether close() was called, or the interpreter is exiting."""
        return not (self.opened and self.client.is_open())

    @property
    def info(self):
        """What the client library says about itself, a LibraryInfo (C_GetInfo).

        Raises
        ------
        LibraryClosedError, CryptokiError
            The Library is closed, or what C_GetInfo answers.
        """
        self._check_open()
        return library_info(self.client)

    @property
    def is_stub(self):
        """Whether this is the stand-in, not an HSM's client library."""
        return self.client.is_stub

    @property
    def cluster_functions(self):
        """The names of the cluster extensions that the client library exports, a frozenset.

        At most CA_GetSlotId, CA_GetUnassignedSlot, CA_LockClusteredSlot, CA_UnlockClusteredSlot.
        """
        return self.client.cluster_functions()

    def reconnect(self):
        """Initialise the client library anew (C_Finalize and C_Initialize).

        Also if other code of the process has initialised it. The device drops all locks of this process
        by that, also those that could not be unlocked and those of other Library objects on the same
        client library. Their holders get a `LockLostError` from `ensure_held()` and at the end of their
        block. Threads and tasks that wait for a lock go on waiting. Sessions that other code of this
        process has with the library end as well.

        A new Library does the same by itself if the device does not know this process any more.

        Raises
        ------
        DeviceError
            Calls of this process are still at the device after a second. Nothing was done; if the device
            never answers them, only a restart of the process helps.
        LibraryClosedError, CryptokiError
            The Library is closed, or what C_Initialize answers. The next call tries it again. Or what
            C_Finalize answers: then holders keep their locks, unless they may be gone.
        """
        self._check_open()
        self.locks.reconnect(DRAIN_SECONDS, self.share)

    def slot(self, slot_id):
        """The slot with this ID: always the same object. Does not ask the device.

        Parameters
        ----------
        slot_id : int
            A CK_SLOT_ID: 0 to 2**64 - 1 (on Windows 2**32 - 1).

        Raises
        ------
        TypeError, OverflowError
            The ID is not an integer, or out of range.
        LibraryClosedError
            The Library is closed.
        """
        self._check_open()
        cdef CK_SLOT_ID wanted
        cdef int64_t number
        given = slot_id if type(slot_id) is int else operator.index(slot_id)
        try:
            wanted = given
        except OverflowError:
            raise OverflowError(
                f"{given} is no slot ID: a CK_SLOT_ID is 0 to {LARGEST_SLOT_ID}"
            ) from None
        number = self.locks.number_of(wanted)
        if number < len(self.slots_by_number):
            slot = self.slots_by_number[number]
            if slot is not None:
                return slot
        return self._keep_slot(number, new_slot(self, self.locks.mutex(number)))

    cdef ClusterSlot _keep_slot(self, int64_t number, ClusterSlot slot):
        """The one ClusterSlot of this number; `slot`, if there is none yet."""
        luna_guard_lock(&self.guard)
        try:
            while len(self.slots_by_number) <= number:
                self.slots_by_number.append(None)
            if self.slots_by_number[number] is None:
                self.slots_by_number[number] = slot
            return <ClusterSlot> self.slots_by_number[number]
        finally:
            luna_guard_unlock(&self.guard)

    def slots(self, token_present=True):
        """The slots that the client knows (C_GetSlotList), a list of ClusterSlot.

        Parameters
        ----------
        token_present : bool
            True: only the slots that have a token. False: all slots.

        Raises
        ------
        LibraryClosedError, DeviceError, CryptokiError
            The Library is closed, or what C_GetSlotList answers.
        """
        self._check_open()
        return [self.slot(slot_id) for slot_id in slot_ids(self.client, bool(token_present))]

    def find(self, label):
        """All tokens with this label, a list of Token; empty when there is none (CA_GetSlotId).

        Parameters
        ----------
        label : str
            1 to 32 bytes of UTF-8.

        Raises
        ------
        TypeError, ValueError
            For the label, before the device is asked.
        UnsupportedFunctionError
            The client library has no CA_GetSlotId.
        LibraryClosedError, DeviceError, CryptokiError
            The Library is closed, or what CA_GetSlotId answers.
        """
        raw_label = encode_label(label)
        self._check_open()
        self.client.need(CA_GET_SLOT_ID, self.path)
        return [
            new_token(self.slot(slot_id), raw_label)
            for slot_id in slots_with_label(self.client, raw_label)
        ]

    def token(self, label):
        """The one token with this label (CA_GetSlotId).

        Parameters
        ----------
        label : str
            1 to 32 bytes of UTF-8.

        Raises
        ------
        TokenNotFoundError, AmbiguousLabelError
            There is none, or more than one.
        TypeError, ValueError, UnsupportedFunctionError
            As `find()`.
        LibraryClosedError, DeviceError, CryptokiError
            As `find()`.
        """
        tokens = self.find(label)
        if not tokens:
            raise TokenNotFoundError(
                f"no token has the label {label!r}; Library.tokens() lists all",
                function="CA_GetSlotId",
            )
        if len(tokens) > 1:
            slot_ids = tuple(token.slot.slot_id for token in tokens)
            error = AmbiguousLabelError(
                f"{len(tokens)} tokens have the label {label!r}, in the slots "
                f"{', '.join(map(str, slot_ids))}; choose one with Library.find() or slot()",
                function="CA_GetSlotId",
            )
            error.slot_ids = slot_ids
            raise error
        return tokens[0]

    def tokens(self, workers=16, on_error=None):
        """All tokens with their information, a list of Token in the order of the slot list.

        Parameters
        ----------
        workers : int
            How many device calls (C_GetTokenInfo) may run at a time.
        on_error : callable, optional
            Called as ``on_error(slot, error)`` for each token that cannot be read, in the order of the
            slot list, on the caller's thread; the token is left out. None: the first error is raised, and
            names its slot.

        Raises
        ------
        LibraryClosedError, DeviceError, CryptokiError
            The Library is closed, what C_GetSlotList answers, or, without `on_error`, the first error of
            any token. A slot or token that is gone by then is no error: it is left out.
        TypeError, ValueError
            `workers` is not an integer, or less than 1; `on_error` is no function.
        RuntimeError
            No thread can be had; or a signal handler has forked meanwhile, and this is the child.
        """
        if operator.index(workers) < 1:
            raise ValueError(f"workers is at least 1, not {workers}")
        if on_error is not None and not callable(on_error):
            raise TypeError(f"on_error is a function, or None, not {type(on_error).__name__}")
        slots = self.slots()
        found = [None] * len(slots)
        errors = [None] * len(slots)
        left = deque(range(len(slots)))
        ends = Ends()
        cdef Errand reader

        def read():
            error = None
            try:
                while True:
                    try:
                        index = left.popleft()
                    except IndexError:
                        break
                    try:
                        found[index] = read_token(slots[index])
                    except CryptokiError as bad:
                        if on_error is None:
                            raise
                        errors[index] = bad
            except BaseException as failure:
                error = failure
                # The other threads would read on until the caller's thread has its turn.
                left.clear()
            ends.put(error)

        # Imported by the threads themselves, it would make them wait for each other: under gevent's patches
        # for ever, now and then.
        from . import info  # noqa: F401

        readers = []
        try:
            # Not concurrent.futures, which joins its threads at the interpreter's exit.
            for _ in range(min(workers, len(slots))):
                reader = new_errand(read, self.locks)
                call_on_worker(reader.run)
                readers.append(reader)
            for _ in readers:
                error = ends.next()
                if error is not None:
                    hold_back_at_exit()
                    raise error
        finally:
            # After an interrupt, too, the threads that still read get no further slot.
            left.clear()
            for reader in readers:
                (<Errand> reader).give_up()
        for slot, bad in zip(slots, errors):
            if bad is not None:
                on_error(slot, bad)
        return [token for token in found if token is not None]

    def claim(self, cluster_id, *, timeout=0, heartbeat=None, on_lost=None):
        """Claim an unassigned token, for ``with`` or ``async with`` (CA_GetUnassignedSlot).

        The device gives the token with its lock set; the end of the block unlocks it::

            with luna.claim("cluster-1") as token:
                token.assign("payments-02", so_pin=...)

        Nothing happens before the ``with``.

        Parameters
        ----------
        cluster_id : str
            The cluster's ID.
        timeout : float
            Seconds to keep trying while no unassigned token is left. 0: ask once, however long the
            device takes to answer.
        heartbeat : float, optional
            Seconds within which a loss of the lock is noticed, as with `ClusterSlot.lock()`.
        on_lost : callable, optional
            Called with the LockLostError at a loss, as with `ClusterSlot.lock()`.

        Raises
        ------
        NoUnassignedTokenError
            From the ``with``: none is left.
        LockTimeoutError
            From the ``with``: the device did not answer in time. Nothing is locked.
        UnsupportedFunctionError, DeviceError, ArgumentsBadError, CryptokiError
            From the ``with``: what the client library lacks, or the device answers.
        TypeError, ValueError, OverflowError
            For the arguments.
        LibraryClosedError
            The Library is closed.
        """
        self._check_open()
        return new_claim(self, cluster_id, timeout, heartbeat, on_lost)

    def lock_all(self, targets, *, timeout=None):
        """Several slots and tokens as one lock, for ``with`` and ``async with``: all or none.

        They are locked one after the other by their slot IDs, the same order for every program, so that no
        two wait for each other, and released in reverse. The label of each token is checked.

        Parameters
        ----------
        targets : iterable of ClusterSlot and Token
            Of this Library; each slot once.
        timeout : float, optional
            Seconds to wait at most, for all together. None: without limit. 0: do not wait for another
            holder.

        Raises
        ------
        LockTimeoutError, LockReentryError, TokenChangedError, DeviceError, CryptokiError
            From the ``with`` statement, as from `ClusterSlot.lock()` and `Token.lock()`; `slot_id` says
            which one failed. None is locked then.
        LockReleaseError, LockLostError
            At the end: the first that failed, the others as notes. All are released that can be.
        TypeError, ValueError, OverflowError
            For the arguments: not a slot or token, of another Library, or a slot that is named twice.
        LibraryClosedError
            The Library is closed.

        Notes
        -----
        Where the clients of two hosts number the slots differently, use a timeout.
        """
        self._check_open()
        return new_lock_all(self, targets, timeout)

    def pkcs11(self):
        """python-pkcs11 on this Library's client library: a ``pkcs11.lib``.

        Its `initialize()`, `finalize()`, `reinitialize()` and `unload()` do nothing: the Library sees to
        that. It keeps the Library alive, and works in a forked child and after `reconnect()`; its
        sessions end there. ``pkcs11.lib(path)`` gives an object of the same kind afterwards.

        Raises
        ------
        ImportError
            python-pkcs11 is not installed, or too old (extra ``pkcs11``).
        LibraryClosedError
            The Library is closed; later also from the methods of the object.
        """
        from .neighbours import pkcs11_of

        return pkcs11_of(self, self._make_ready)

    def pykcs11(self):
        """PyKCS11 on this Library's client library: a ``PyKCS11.PyKCS11Lib``.

        It finalises nothing when it is collected or unloaded; nor do other PyKCS11Lib objects for the same
        path that are made afterwards. It keeps the Library alive, and works in a forked child and after
        `reconnect()`; its sessions end there.

        Raises
        ------
        ImportError
            PyKCS11 is not installed, or too old (extra ``pykcs11``).
        LibraryClosedError
            The Library is closed; later also from the methods of the object.
        """
        from .neighbours import pykcs11_of

        return pykcs11_of(self, self._make_ready)

    def _make_ready(self):
        """Before other code calls the client library: in a forked child it is initialised anew."""
        self._check_open()
        if luna_shared_get(&self.client.state) != READY:
            self.locks.make_ready()

    def stats(self):
        """How often this process has called each C function, and for how long.

        Returns
        -------
        dict of str to FunctionStats
            By the name of the C function; only those that were called. Does not ask the device, and
            counts the calls of all Library objects on the same client library. The times of calls that
            take less than 16 microseconds are sampled. Locks that were handed over without a call are
            the `handed_over` of CA_LockClusteredSlot.
        """
        stats = self.client.stats()
        handed_over = self.locks.handed_over()
        if handed_over:
            from dataclasses import replace

            from .info import FunctionStats

            stats[LOCK] = replace(stats.get(LOCK, FunctionStats()), handed_over=handed_over)
        return stats

    def lock_stats(self):
        """How long this process has waited for locks and held them, and what became of that.

        Returns
        -------
        LockStats
            Of all slots. Does not ask the device, and counts the locks of all Library objects on the same
            client library. Short waits and holds are not timed.
        """
        return self.locks.stats()

    def __repr__(self):
        return f"<luna_ext.Library {self.path!r}, {'closed' if self.closed else 'open'}>"

    def __reduce__(self):
        raise TypeError("a Library belongs to its process; open one there with the same path")

    def _check_open(self):
        if not self.opened:
            raise LibraryClosedError(f"the Library for {self.path!r} is closed; open a new one")


cdef double handover_of(object handover) except -1:
    """The `handover` of a Library in seconds."""
    if isinstance(handover, bool) or not isinstance(handover, (int, float)):
        raise TypeError(f"handover is a number of seconds, not {type(handover).__name__}")
    # An int may be larger than any float.
    if not 0 <= handover <= sys.float_info.max:
        raise ValueError(f"handover is a number of seconds, 0 or more, not {handover!r}")
    return handover


def read_token(ClusterSlot slot not None):
    """The slot's Token with its information; None when slot or token vanished."""
    cdef CK_TOKEN_INFO info
    cdef Token token
    check_open(slot.share, slot.mutex.slot_id)
    try:
        read_token_info(slot.mutex.locks.client, slot.mutex.slot_id, &info)
    except CryptokiError as error:
        if meaning_of(error.rv) is Meaning.GONE:
            return None
        raise
    token = new_token(slot, blank_padded(info.label))
    token.keep_info(&info)
    return token


cdef Share open_client(Locks locks, str path):
    """A new Library's share, on a client that is initialised."""
    cdef Client client = locks.client
    cdef uint64_t generation
    hear_of_fork()
    # First: if a signal handler raised after join(), no Library would ever end the share.
    locks.publish()
    if luna_shared_get(&client.suspect) and client.is_open():
        generation = locks.generation()
        if is_lost(client):
            locks.reconnect(DRAIN_SECONDS, None, generation)
        else:
            locks.lose_all()
    if luna_shared_get(&client.state) == CLOSING:
        finish_closing(locks)
        # Calls that were given up are waited for as well, so that none of them, when it comes back,
        # meets the new Library.
        wait_for_given_up(locks, REOPEN_SECONDS)
        generation = locks.generation()
        if luna_shared_get(&client.suspect) and is_lost(client):
            locks.reconnect(0, None, generation)
    share = client.join(path)
    locks.make_owed_calls()
    return share


cdef int wait_for_given_up(Locks locks, double seconds) except -1:
    cdef Deadline deadline = deadline_in(seconds)
    while luna_shared_get(&locks.client.state) == CLOSING and left_of(deadline) > 0:
        locks.client.wait_for_calls(left_of(deadline), 0)
        call_came_back(locks)
    return 0
