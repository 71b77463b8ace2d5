# The loaded client library: its functions, C_Initialize, the calls in flight, fork, exit.

# How long one wait lasts on the main thread. A signal that arrives just before a thread falls
# asleep does not wake it; its handler runs after so long at the latest.
cdef double SIGNAL_SECONDS = 0.5
# No single wait is longer, because a C library may not accept longer ones.
cdef double LONGEST_WAIT_SECONDS = 3600.0
# Between two looks at a number that becomes 0 within milliseconds.
cdef double SHORTEST_WAIT_SECONDS = 0.00005
# How often close() looks whether the calls that are still out have been given up meanwhile.
cdef double RECOUNT_SECONDS = 0.05

# The loaded libraries by their handle. dlopen gives one handle per library, by whatever path,
# so that two Library objects on one library share its Client and through it every lock.
cdef dict _clients = {}
# When an exit under way has to be over, and the ident of the thread that runs it.
cdef Deadline exit_deadline
exit_deadline.end = INFINITY
cdef unsigned long exiting_thread = 0
cdef luna_guard share_guard
cdef uint64_t last_share = 0

# Only this file has the key, because `handle` has to be an address that the loader gave.
cdef object _CLIENT_KEY = object()


cdef Client load_client(str path):
    """The Client of the library at an absolute path; loads the library the first time."""
    cdef void *handle
    cdef char[512] reason
    encoded = path if sys.platform == "win32" else os.fsencode(path)
    cdef luna_path_t c_path = luna_path_of(encoded)
    try:
        with nogil:
            handle = luna_open(c_path)
            if handle == NULL:
                luna_open_error(reason, sizeof(reason))
    finally:
        luna_path_free(c_path)
    if handle == NULL:
        raise LibraryLoadError(
            f"{path!r} cannot be loaded as a library of this platform: "
            f"{printable((<bytes> (<const char *> reason)).decode('utf-8', 'replace'))}"
        )
    key = <size_t> handle
    client = _clients.get(key)
    if client is None:
        others = loaded_clients()
        client = _clients.setdefault(key, Client.__new__(Client, path, key, _CLIENT_KEY))
        watch_forks(<Client> client)
        warn_of_copies(path, others)
        warn_of_old_functions(<Client> client)
    return <Client> client


cdef int warn_of_copies(str path, list others) except -1:
    """The same client library in two files is loaded twice, and initialised twice."""
    if not others:
        return 0
    # Imported only here: most processes load one client library.
    import filecmp
    import logging

    for other in others:
        try:
            same = filecmp.cmp(path, (<Client> other).path, shallow=False)
        except OSError:
            # The file of a library that is loaded may be gone by now.
            continue
        if same:
            logging.getLogger("luna_ext").warning(
                "%r is a copy of %r, which this process has loaded: the device may not keep their locks "
                "apart. Use one of them",
                path,
                (<Client> other).path,
            )
    return 0


cdef int warn_of_old_functions(Client client) except -1:
    """Clients of before 10.6 export the lock functions alone."""
    if (
        client.exports(CA_LOCK_CLUSTERED_SLOT)
        and client.exports(CA_UNLOCK_CLUSTERED_SLOT)
        and not client.exports(CA_GET_SLOT_ID)
        and not client.exports(CA_GET_UNASSIGNED_SLOT)
    ):
        import logging

        logging.getLogger("luna_ext").warning(
            "%r exports CA_LockClusteredSlot and CA_UnlockClusteredSlot without CA_GetSlotId and "
            "CA_GetUnassignedSlot, as clients of before 10.6 do: what the two do there is not documented, "
            "and it may be no lock that keeps other processes out. Install Luna client 10.6 or newer, or "
            "find out with `luna-ext probe --slot N`",
            client.path,
        )
    return 0


cdef list loaded_clients():
    """All that this process has loaded."""
    return list(_clients.values())


# Each extension has its own copy of the thread-local variables in native.h. The mutex layer sets its own
# and, through introduce(), this one. Lock calls read the mutex layer's copy; the functions below are for
# code where the cost of one more C call does not matter.


cdef void introduce(uint64_t number, bint is_main) noexcept nogil:
    """The calling thread has got its number."""
    luna_introduce(number, is_main)


cdef void become_worker() noexcept nogil:
    """The calling thread makes calls for other threads."""
    luna_become_worker()


cdef bint on_main_thread() noexcept nogil:
    """Whether Python runs signal handlers on the calling thread; it may have no number yet."""
    return luna_is_main() or (luna_number() == 0 and luna_leads_process())


cdef Deadline deadline_in(double seconds) noexcept nogil:
    """So many seconds from now; -1: never."""
    cdef Deadline deadline
    deadline.end = INFINITY if seconds < 0 else luna_now() + seconds
    return deadline


cdef double left_of(Deadline deadline) noexcept nogil:
    """Seconds that are left, 0 at least; -1: no limit."""
    if deadline.end == INFINITY:
        return -1
    return max(0.0, deadline.end - luna_now())


cdef int wait_for_none(int *number, Deadline deadline) noexcept:
    """Wait until the number, which other threads change, is 0, or until the deadline."""
    while luna_shared_get(number) > 0 and left_of(deadline) != 0:
        with nogil:
            luna_pause(SHORTEST_WAIT_SECONDS)
    return 0


cdef bint wait_on(PyThread_type_lock signal, double seconds) except -1:
    """Wait until `signal` is released, for so many seconds at most; -1: without limit. Returns whether
    it was released.

    On the main thread signal handlers run meanwhile, and what they raise ends the wait.
    """
    return release_and_wait_on(NULL, signal, seconds)


cdef bint release_and_wait_on(
    PyThread_type_lock first, PyThread_type_lock signal, double seconds
) except -1:
    """The same, and release `first`, unless it is NULL, as soon as the GIL is given up: the thread that
    this wakes has not to wait for the GIL.
    """
    cdef Deadline deadline = deadline_in(seconds)
    cdef double longest = SIGNAL_SECONDS if on_main_thread() else LONGEST_WAIT_SECONDS
    cdef double left = left_of(deadline)
    cdef PyLockStatus status
    while True:
        if left < 0 or left > longest:
            left = longest
        with nogil:
            if first != NULL:
                PyThread_release_lock(first)
                first = NULL
            status = PyThread_acquire_lock_timed(signal, <long long> (left * 1e6), 1)
        if status == PY_LOCK_ACQUIRED:
            return True
        if PyErr_CheckSignals() != 0:
            luna_raise_pending()
        if unheard_fork:
            # A signal handler has forked in C.
            hear_of_fork()
        left = left_of(deadline)
        if left == 0:
            return False


cdef PyThread_type_lock new_signal() except NULL:
    """A lock of the operating system's, held from the beginning."""
    cdef PyThread_type_lock signal = PyThread_allocate_lock()
    if signal == NULL:
        raise MemoryError()
    PyThread_acquire_lock(signal, NOWAIT_LOCK)
    return signal


cdef void gives_way() noexcept nogil:
    """The calling thread is about to wait: no thread that comes back from the device waits for it."""
    luna_calls_device()


# ---- the frame of a device call ----

# Every device call stands between call_begins() or cleanup_begins() and call_ends().


cdef inline bint call_begins(Client client) noexcept nogil:
    """Count a call; False if none may begin."""
    cdef Traffic *traffic = &client.traffic[luna_shard()]
    luna_shared_add(&traffic.in_flight, 1)
    # In this order: close() first changes the state, and then reads the counts.
    if luna_shared_get(&client.state) == READY:
        return True
    call_ends(client)
    return False


cdef inline bint cleanup_begins(Client client) noexcept nogil:
    """A call that undoes an earlier one (unlock, logout) is due even when the library is closing.
    """
    cdef Traffic *traffic = &client.traffic[luna_shard()]
    luna_shared_add(&traffic.in_flight, 1)
    if luna_shared_get(&client.initialised):
        return True
    call_ends(client)
    return False


cdef inline void call_ends(Client client) noexcept nogil:
    call_ends_in(client, &client.traffic[luna_shard()])


cdef inline void call_ends_in(Client client, Traffic *traffic) noexcept nogil:
    """A call ends where it was counted when it began, perhaps by another thread."""
    luna_shared_add(&traffic.in_flight, -1)
    if luna_shared_get(&client.awaited) and luna_shared_take(&client.awaited):
        # Locked first: no thread may have waited since it was released, and Python 3.15 aborts when a
        # lock is released that is not locked. Under the guard, so that no other call releases it in
        # between.
        luna_guard_lock(&client.guard)
        PyThread_acquire_lock(client.idle, NOWAIT_LOCK)
        PyThread_release_lock(client.idle)
        luna_guard_unlock(&client.guard)


cdef inline luna_counter *counter_of(Client client, int function) noexcept nogil:
    return &client.traffic[luna_shard()].counters[function]


cdef inline void count_call(
    Client client, int function, uint64_t nanoseconds, CK_RV rv
) noexcept nogil:
    """Of a call that was timed."""
    cdef luna_counter *counter = counter_of(client, function)
    luna_note_sample(counter, 0, nanoseconds)
    luna_count_length(&counter.lengths, nanoseconds)
    luna_count_answer(counter, rv)


@cython.final
cdef class Share:

    def __cinit__(self, Client client not None, str path not None):
        global last_share
        self.client = client
        self.path = path
        self.open = True
        luna_guard_lock(&share_guard)
        last_share += 1
        self.number = last_share
        luna_guard_unlock(&share_guard)


@cython.final
cdef class Client:
    """One loaded PKCS #11 library and this process's calls into it.

    There is one Client per library and process, shared by every Library object on it. It is
    never unloaded, for the vendor's threads may run in it; it is only finalised.
    """

    def __cinit__(self, str path, size_t handle, key):
        cdef CK_C_GetFunctionList_t get_function_list
        cdef CK_RV rv
        if key is not _CLIENT_KEY:
            raise TypeError("a Client comes from load_client()")
        self.path = path
        self.handle = <void *> handle
        get_function_list = <CK_C_GetFunctionList_t> luna_symbol(
            self.handle, b"C_GetFunctionList"
        )
        if get_function_list == NULL:
            raise LibraryLoadError(
                f"{path!r} is a library, but no PKCS #11 module: "
                "it does not export C_GetFunctionList"
            )
        with nogil:
            rv = get_function_list(&self.functions)
        if rv != CKR_OK or self.functions == NULL:
            raise LibraryLoadError(
                f"{path!r} gives no function list: C_GetFunctionList: {rv_name(rv)}",
                rv=rv,
                function="C_GetFunctionList",
            )
        # Without these nothing can be done, or looked after. Others are looked for when they are needed.
        for function in (C_INITIALIZE, C_FINALIZE, C_GET_SLOT_LIST, C_GET_TOKEN_INFO):
            if not self.exports(function):
                raise LibraryLoadError(
                    f"{path!r} gives a function list without {name_of(function)}; take a client library "
                    "that is complete",
                    function=name_of(function),
                )
        self.get_slot_id = <CA_GetSlotId_t> luna_symbol(self.handle, b"CA_GetSlotId")
        self.get_unassigned_slot = <CA_GetUnassignedSlot_t> luna_symbol(
            self.handle, b"CA_GetUnassignedSlot"
        )
        self.lock_clustered_slot = <CA_LockClusteredSlot_t> luna_symbol(
            self.handle, b"CA_LockClusteredSlot"
        )
        self.unlock_clustered_slot = <CA_UnlockClusteredSlot_t> luna_symbol(
            self.handle, b"CA_UnlockClusteredSlot"
        )
        self.change_label = <CA_ChangeLabel_t> luna_symbol(self.handle, b"CA_ChangeLabel")
        self.is_stub = luna_symbol(self.handle, b"luna_stub_create") != NULL
        self.state = CLOSED
        self.shares = set()
        self.traffic = <Traffic *> calloc(LUNA_SHARDS, sizeof(Traffic))
        if self.traffic == NULL:
            raise MemoryError()
        self._make_signals()

    def _make_signals(self):
        self.transition = PyThread_allocate_lock()
        if self.transition == NULL:
            raise MemoryError()
        self.idle = new_signal()
        self.awaited = 0

    def keep_locks(self, locks):
        """Keep an object of the layer above, unless one is kept already; returns the one that is kept."""
        luna_guard_lock(&self.guard)
        if self.locks is None:
            self.locks = locks
        luna_guard_unlock(&self.guard)
        return self.locks

    cdef bint exports(self, int function) noexcept:
        """Whether the library has the function: in its function list, or under its name."""
        cdef CK_FUNCTION_LIST *list = self.functions
        if function == C_INITIALIZE:
            return list.C_Initialize != NULL
        if function == C_FINALIZE:
            return list.C_Finalize != NULL
        if function == C_GET_INFO:
            return list.C_GetInfo != NULL
        if function == C_GET_SLOT_LIST:
            return list.C_GetSlotList != NULL
        if function == C_GET_SLOT_INFO:
            return list.C_GetSlotInfo != NULL
        if function == C_GET_TOKEN_INFO:
            return list.C_GetTokenInfo != NULL
        if function == C_INIT_TOKEN:
            return list.C_InitToken != NULL
        if function == C_INIT_PIN:
            return list.C_InitPIN != NULL
        if function == C_SET_PIN:
            return list.C_SetPIN != NULL
        if function == C_OPEN_SESSION:
            return list.C_OpenSession != NULL
        if function == C_CLOSE_SESSION:
            return list.C_CloseSession != NULL
        if function == C_GET_SESSION_INFO:
            return list.C_GetSessionInfo != NULL
        if function == C_LOGIN:
            return list.C_Login != NULL
        if function == C_LOGOUT:
            return list.C_Logout != NULL
        if function == CA_GET_SLOT_ID:
            return self.get_slot_id != NULL
        if function == CA_GET_UNASSIGNED_SLOT:
            return self.get_unassigned_slot != NULL
        if function == CA_LOCK_CLUSTERED_SLOT:
            return self.lock_clustered_slot != NULL
        if function == CA_UNLOCK_CLUSTERED_SLOT:
            return self.unlock_clustered_slot != NULL
        if function == CA_CHANGE_LABEL:
            return self.change_label != NULL
        return True

    cdef int lacks(self, int function) noexcept:
        """The function that is missing for this one to be called: itself, or one that undoes or completes
        what it does, for that is not begun then. -1: none.
        """
        while self.exports(function):
            if function == C_INIT_TOKEN:
                function = C_INIT_PIN
            elif function == C_INIT_PIN or function == C_SET_PIN or function == CA_CHANGE_LABEL:
                function = C_LOGIN
            elif function == C_LOGIN:
                function = C_LOGOUT
            elif function == C_LOGOUT:
                function = C_OPEN_SESSION
            elif function == C_OPEN_SESSION:
                function = C_CLOSE_SESSION
            else:
                return -1
        return function

    cdef int need(self, int function, str path) except -1:
        """Refuse, before anything was done, what the loaded client cannot do."""
        cdef int missing = self.lacks(function)
        if missing < 0:
            return 0
        name = name_of(missing)
        if missing == CA_CHANGE_LABEL:
            why = (
                f"{path!r} does not export {name}: some Luna clients have it; assign with erase=True "
                "without it"
            )
        elif missing >= CA_GET_SLOT_ID:
            why = (
                f"{path!r} does not export {name}: Luna client 10.6 and newer have it, other PKCS #11 "
                "libraries do not"
            )
        else:
            why = (
                f"{path!r} has no {name} in its function list, and so {name_of(function)} is not called. "
                "Nothing was done; take a client library that is complete"
            )
        raise UnsupportedFunctionError(why, function=name)

    def cluster_functions(self):
        """The names of the cluster extensions that the library exports."""
        functions = range(CA_GET_SLOT_ID, FUNCTION_COUNT)
        return frozenset(name_of(function) for function in functions if self.exports(function))

    # ---- C_Initialize and C_Finalize ----

    cdef Share join(self, str path):
        """Initialise the library unless that was done; returns a Share for a new Library."""
        cdef CK_RV rv
        cdef int state
        share = Share(self, path)
        self._begin_change()
        # While a call that was given up is out, which may be for ever, the client is CLOSING: it was
        # not finalised, so it can be used as it is.
        state = luna_shared_get(&self.state)
        rv = self._initialise() if state == CLOSED or state == DUE else CKR_OK
        if rv == CKR_OK:
            luna_guard_lock(&self.guard)
            self.shares.add(share)
            luna_shared_set(&self.state, READY)
            luna_guard_unlock(&self.guard)
        self._end_change()
        if rv != CKR_OK:
            self._raise_initialising(rv)
        return share

    cdef int part(self, Share share) except -1:
        """End a share. With the last one no call may begin any more; finalize() is what is left."""
        luna_shared_set(&share.open, False)
        luna_guard_lock(&self.guard)
        self.shares.discard(share)
        if not self.shares and luna_shared_get(&self.state) == READY:
            luna_shared_set(&self.state, CLOSING)
        elif not self.shares and luna_shared_get(&self.state) == DUE:
            luna_shared_set(&self.state, CLOSED)
        luna_guard_unlock(&self.guard)
        return 0

    def is_open(self):
        """Whether calls are possible, after a fork perhaps by initialising anew."""
        cdef int state = luna_shared_get(&self.state)
        return state != CLOSED and state != CLOSING

    cdef int make_ready(self) except -1:
        """When a call may not begin: where C_Initialize is due, the first call makes it; while the library
        is being reconnected it waits; any other is refused.
        """
        cdef CK_RV rv = CKR_OK
        cdef int state
        hear_of_fork()
        state = luna_shared_get(&self.state)
        # Without the GIL, another reconnect() may have begun by then.
        while state == DUE or state == RECONNECTING:
            self._begin_change()
            if luna_shared_get(&self.state) == DUE:
                luna_shared_set(&self.state, RECONNECTING)
                rv = self._initialise()
                self._note_failure(rv)
            self._end_change()
            if rv != CKR_OK:
                self._raise_initialising(rv)
            state = luna_shared_get(&self.state)
        if state != READY:
            self.refuse()
        return 0

    cdef int refuse(self) except -1:
        hold_back_at_exit()
        raise LibraryClosedError(f"the library {self.path!r} is closed; open a new one to go on")

    cdef bint _may_change(self) except -1:
        """One thread at a time initialises or finalises. No Python code runs until it has. False: the exit
        is over, and the thread that does it may never run again.
        """
        cdef PyThread_type_lock transition = NULL
        # In a child that a signal handler has forked meanwhile it is another one.
        while transition != self.transition:
            transition = self.transition
            if not wait_on(transition, left_of_exit()):
                return False
        return True

    cdef int _begin_change(self) except -1:
        if not self._may_change():
            self.refuse()
        return 0

    cdef int _end_change(self) noexcept:
        luna_guard_lock(&self.guard)
        if luna_shared_get(&self.state) == READY and not self.shares:
            # The last Library was closed meanwhile.
            luna_shared_set(&self.state, CLOSING)
        luna_guard_unlock(&self.guard)
        PyThread_release_lock(self.transition)
        return 0

    cdef int wait_for_change(self) except -1:
        """Wait while another thread initialises or finalises."""
        if self._may_change():
            self._end_change()
        return 0

    cdef CK_RV _initialise(self) noexcept:
        """Call C_Initialize, between _begin_change() and _end_change(). Returns its error; CKR_OK also
        if other code of this process has initialised the library.
        """
        cdef CK_C_INITIALIZE_ARGS arguments
        cdef CK_RV rv
        cdef uint64_t began, lasted
        cdef Watch *watch
        memset(&arguments, 0, sizeof(arguments))
        arguments.flags = CKF_OS_LOCKING_OK
        watch = begin_watch(<void *> self)
        with nogil:
            began = luna_nanoseconds()
            rv = self.functions.C_Initialize(&arguments)
            lasted = luna_nanoseconds() - began
            end_watch(watch)
        count_call(self, C_INITIALIZE, lasted, rv)
        # If other code in this process did it, finalising is left to that code.
        if rv != CKR_OK and (rv != CKR_CRYPTOKI_ALREADY_INITIALIZED or self._is_parents()):
            return rv
        self.inherited = False
        self.left_initialised = False
        luna_guard_lock(&self.guard)
        self.initialised_here = rv == CKR_OK
        luna_shared_add64(&self.generation, 1)
        luna_guard_unlock(&self.guard)
        luna_shared_set(&self.suspect, 0)
        luna_shared_set(&self.initialised, 1)
        luna_shared_set(&self.state, READY)
        return CKR_OK

    cdef int _note_failure(self, CK_RV rv) noexcept:
        """After _initialise(): if it has failed, the next call tries it again."""
        if rv != CKR_OK:
            luna_guard_lock(&self.guard)
            luna_shared_set(&self.state, DUE if self.shares else CLOSED)
            luna_guard_unlock(&self.guard)
        return 0

    cdef bint _is_parents(self) noexcept:
        """In a forked child, where C_Initialize says that it was called before: whether that was in the
        parent, so that the client library has not noticed the fork. Then it would act as the parent.
        """
        # Without the session nothing shows that other code of this process has called it.
        return self.inherited and (
            self.canary.generation != self.generation or self._canary_lives()
        )

    cdef bint _canary_lives(self) noexcept:
        """Whether the session that was kept in this generation is there, while no other call is out."""
        cdef CK_SESSION_INFO info
        cdef CK_RV rv
        if self.canary.generation == 0 or self.canary.generation != self.generation:
            return False
        with nogil:
            rv = self.functions.C_GetSessionInfo(self.canary.session, &info)
        return rv == CKR_OK

    cdef int _raise_initialising(self, CK_RV rv) except -1:
        """Raise what C_Initialize has answered."""
        if rv == CKR_CRYPTOKI_ALREADY_INITIALIZED:
            raise CryptokiError(
                f"C_Initialize in a forked child: {rv_name(rv)} (0x{rv:X}): the library {self.path!r} has "
                "not noticed the fork, and would act as the parent process, whose locks it could take "
                f"off. That cannot be mended in this process: {OPEN_AFTER_FORK}",
                rv=rv,
                function="C_Initialize",
            )
        error = error_of(rv, C_INITIALIZE, None)
        if self.is_stub and rv == CKR_DEVICE_ERROR:
            # There is no network to check.
            raise type(error)(
                f"C_Initialize: {rv_name(rv)} (0x{rv:X}): the stand-in cannot use its cluster, which the "
                f"environment variable LUNA_STUB_STATE names ({os.environ.get('LUNA_STUB_STATE')!r}): "
                "`luna-ext stub create --state FILE` makes one. LUNA_STUB_TRACE=1 in the environment lets "
                "it say on stderr what is wrong",
                rv=rv,
                function="C_Initialize",
            )
        raise error

    cdef int reconnect(self, double seconds, Share share, uint64_t lost) except -1:
        """Call C_Finalize, even if other code has initialised the library, and C_Initialize. All locks are
        dropped by that; if C_Finalize fails, and the session that was kept is still there, nothing is done.
        The calls that are out have so many seconds to come back. `share`: that of the Library that asks for
        it; None: one that is being opened does, if the generation is still the one that it has found lost.
        """
        cdef Deadline deadline = deadline_in(seconds)
        cdef CK_RV finalized = CKR_OK
        cdef CK_RV rv = CKR_OK
        cdef int before, out
        cdef bint was_ours = False
        cdef bint kept = False
        cdef bint anew = False
        hear_of_fork()
        self._begin_change()
        out = 0
        luna_guard_lock(&self.guard)
        before = luna_shared_get(&self.state)
        if share is not None and not luna_shared_get(&share.open):
            # Closed while another thread was at it. One that begins here, close() sees and waits for.
            before = CLOSED
        if share is None and luna_shared_get64(&self.generation) != lost:
            # Another thread that has found it lost was at it.
            before = CLOSED
        if before != CLOSED:
            luna_shared_set(&self.state, RECONNECTING)
        luna_guard_unlock(&self.guard)
        if before == READY or before == CLOSING:
            out = self._drain(deadline)
            if out == 0:
                luna_shared_set(&self.initialised, 0)
                # An unlock may have begun just before.
                out = self._drain(deadline)
            if out != 0:
                luna_shared_set(&self.initialised, 1)
                luna_shared_set(&self.state, before)
            else:
                was_ours = self.initialised_here
                self.initialised_here = False
                finalized = self._call_finalize()
                kept = finalized != CKR_OK and self._canary_lives()
                if kept:
                    self.initialised_here = was_ours
                    luna_shared_set(&self.initialised, 1)
                    luna_shared_set(&self.state, before)
                else:
                    # From here on nothing is held, even if C_Initialize fails.
                    luna_guard_lock(&self.guard)
                    luna_shared_add64(&self.generation, 1)
                    luna_guard_unlock(&self.guard)
        if out == 0 and before != CLOSED and not kept:
            rv = self._initialise()
            anew = self.initialised_here
            if rv == CKR_OK and finalized != CKR_OK and finalized != CKR_CRYPTOKI_NOT_INITIALIZED:
                # Unless it was finalised all the same, to do so is left to close().
                self.initialised_here = anew or was_ours
            self._note_failure(rv)
        self._end_change()
        if before == CLOSED and share is not None:
            self.refuse()
        if out != 0:
            raise DeviceError(
                f"the library {self.path!r} cannot be initialised anew: {out} of this process's calls "
                "are still at the device, and C_Finalize must not be called beside them. Try again "
                "when they have come back; if the device never answers them, only a restart of this "
                "process helps",
                function="C_Finalize",
            )
        if rv != CKR_OK:
            self._raise_initialising(rv)
        if finalized != CKR_OK and not anew:
            raise error_of(finalized, C_FINALIZE, None)
        return 0

    cdef int _drain(self, Deadline deadline) noexcept:
        """Wait until no call is out; how many still are at the deadline. No signal handler runs meanwhile.
        """
        cdef double left = left_of(deadline)
        while self.in_flight() > 0 and left != 0:
            luna_shared_set(&self.awaited, 1)
            if self.in_flight() > 0:
                left = min(left, RECOUNT_SECONDS)
                with nogil:
                    PyThread_acquire_lock_timed(self.idle, <long long> (left * 1e6), 0)
            left = left_of(deadline)
        return self.in_flight()

    cdef int _drop_canary(self) noexcept:
        with nogil:
            self.functions.C_CloseSession(self.canary.session)
        self.canary.generation = 0
        luna_shared_set64(&self.canary.sought_in, 0)
        return 0

    cdef CK_RV _call_finalize(self) noexcept:
        cdef CK_RV rv
        cdef uint64_t began, lasted
        with nogil:
            began = luna_nanoseconds()
            rv = self.functions.C_Finalize(NULL)
            lasted = luna_nanoseconds() - began
        count_call(self, C_FINALIZE, lasted, rv)
        return rv

    cdef CK_RV finalize(self) except? 0xFFFFFFFF:
        """Finalise if there is no Share and no call is out. Returns C_Finalize's answer; CKR_OK if it was
        not called.
        """
        cdef CK_RV rv = CKR_OK
        if luna_shared_get(&self.state) != CLOSING or self.shares or self.in_flight() != 0:
            return CKR_OK
        if not self._may_change():
            return CKR_OK
        if luna_shared_get(&self.state) == CLOSING and not self.shares and self.in_flight() == 0:
            if not self.initialised_here:
                # Other code goes on with the library, and without our session.
                self.left_initialised = True
                if self.canary.generation != 0 and self.canary.generation == self.generation:
                    self._drop_canary()
                luna_shared_set(&self.state, CLOSED)
            elif self.take_finalising():
                rv = self._call_finalize()
                self.left_initialised = rv != CKR_OK
                luna_shared_set(&self.state, CLOSED)
        self._end_change()
        return rv

    # ---- the interpreter's exit finalises from a thread of its own, and may not wait for it ----

    cdef int refuse_new_calls(self) noexcept:
        luna_shared_set(&self.state, CLOSING)
        return 0

    cdef bint take_finalising(self) noexcept:
        """The caller is to call C_Finalize, unless a call is out or that is not this process's to do."""
        if self.in_flight() != 0 or not self.initialised_here:
            return False
        luna_shared_set(&self.initialised, 0)
        if self.in_flight() != 0:
            # Without the GIL, an unlock may have begun just before. What waits for it tries this again.
            luna_shared_set(&self.initialised, 1)
            return False
        self.initialised_here = False
        return True

    cdef int note_finalised(self) noexcept:
        luna_shared_set(&self.state, CLOSED)
        return 0

    # ---- the calls in flight ----

    cdef int in_flight(self) noexcept nogil:
        """Device calls that have not come back."""
        cdef int calls = 0
        cdef int shard
        for shard in range(LUNA_SHARDS):
            calls += luna_shared_get(&self.traffic[shard].in_flight)
        return calls

    cdef bint wait_for_calls(self, double seconds, int left) except -1:
        """Wait a moment until not more than `left` calls are in flight; whether that is so."""
        luna_shared_set(&self.awaited, 1)
        if self.in_flight() > left:
            # Not only woken by the last call: calls may be given up, and several threads may wait.
            wait_on(self.idle, RECOUNT_SECONDS if seconds < 0 else min(seconds, RECOUNT_SECONDS))
        return self.in_flight() <= left

    def stats(self):
        """FunctionStats of each C function that this process has called, by its name."""
        return stats_of(self.traffic)

    def lock_lengths(self):
        """Of waits and of holds, the histogram and the seconds of all together; and the number of timeouts.
        """
        cdef Traffic *traffic = self.traffic
        return (
            lengths_of(traffic, &traffic.waits),
            lengths_of(traffic, &traffic.holds),
            total(traffic, place_of(traffic, &traffic.timeouts)),
        )

    # ---- fork ----

    def after_fork(self):
        """In the child: nothing is held, nothing in flight; the first call initialises anew."""
        # If another thread of the parent was inside close() at the fork, no thread finishes that here.
        cdef int state = luna_shared_get(&self.state)
        cdef PyThread_type_lock transition
        luna_guard_forget(&self.guard)
        self.shares = {share for share in self.shares if (<Share> share).open}
        if self.is_open() and self.shares:
            self.state = DUE
        elif luna_shared_get(&self.state) != DUE or not self.shares:
            self.state = CLOSED
        # A library that this process has finalised by a C_Finalize of its own is none that it inherits.
        self.inherited = self.inherited or self.generation != 0 and (
            state != CLOSED or self.left_initialised
        )
        self.initialised_here = False
        self.initialised = 0
        memset(self.traffic, 0, LUNA_SHARDS * sizeof(Traffic))
        # The parent's threads may have held these locks at the fork; here they would stay locked.
        transition = self.transition
        self._make_signals()
        # For the forking thread, which may wait for it.
        PyThread_acquire_lock(transition, NOWAIT_LOCK)
        PyThread_release_lock(transition)


# ---- a C_Initialize that takes long ----

# A thread that Python does not know sees to it that a WARNING comes while the call lasts. It is joined,
# unless it has to warn: so no thread is left when the call is back, and the warning delays nothing.

cdef struct Watch:
    luna_thread thread
    void *client                # a Client; they live as long as the process
    PyThread_type_lock over     # released when the call is back
    int decided                 # marked by the one that comes first: the end of the call, or of the time
    int left                    # marked by each of the two that is done with this; the second frees it
    long thread_id              # the operating system's ID of the thread

# How long a thread may take that has ended, until it is gone.
cdef double VANISHING_SECONDS = 0.01

# Held from the last look whether the interpreter exits until the thread that is to warn has the GIL.
cdef PyThread_type_lock exit_gate = PyThread_allocate_lock()
cdef uint8_t exit_has_passed = 0


cdef Watch *begin_watch(void *client) noexcept:
    """NULL: there is no memory, or no thread, and so no warning."""
    cdef Watch *watch = <Watch *> calloc(1, sizeof(Watch))
    if watch == NULL:
        return NULL
    watch.client = client
    watch.thread.run = watch_initialising
    watch.thread.argument = watch
    watch.over = PyThread_allocate_lock()
    if watch.over != NULL:
        PyThread_acquire_lock(watch.over, NOWAIT_LOCK)
        if luna_start_thread(&watch.thread):
            return watch
    free_watch(watch)
    return NULL


cdef void free_watch(Watch *watch) noexcept nogil:
    if watch.over != NULL:
        PyThread_free_lock(watch.over)
    free(watch)


cdef void end_watch(Watch *watch) noexcept nogil:
    cdef luna_thread thread
    cdef Deadline deadline = deadline_in(VANISHING_SECONDS)
    if watch == NULL:
        return
    thread = watch.thread
    if luna_is_first(&watch.decided):
        PyThread_release_lock(watch.over)
        luna_join_thread(&thread)
        # A thread that was joined may be there for a few microseconds more, and Python warns of a fork
        # then.
        while luna_thread_exists(watch.thread_id) and left_of(deadline) != 0:
            luna_pause(SHORTEST_WAIT_SECONDS)
        free_watch(watch)
        return
    luna_leave_thread(&thread)
    if not luna_is_first(&watch.left):
        free_watch(watch)


cdef void watch_initialising(void *argument) noexcept nogil:
    cdef Watch *watch = <Watch *> argument
    watch.thread_id = luna_thread_id()
    if (
        PyThread_acquire_lock_timed(watch.over, LONG_WAIT_SECONDS * 1000000LL, 0) == PY_LOCK_ACQUIRED
        or not luna_is_first(&watch.decided)
    ):
        return
    PyThread_acquire_lock(exit_gate, WAIT_LOCK)
    if luna_is_marked(&exit_has_passed):
        # There may be no interpreter any more.
        PyThread_release_lock(exit_gate)
    else:
        warn_of_initialising(watch.client)
    if not luna_is_first(&watch.left):
        free_watch(watch)


cdef void warn_of_initialising(void *client) noexcept with gil:
    PyThread_release_lock(exit_gate)
    # Imported only here: layer 1 has little to log.
    import logging

    logging.getLogger("luna_ext").warning(
        "%r: C_Initialize has not answered for %d s, and is waited for; check the network, the HSM's "
        "health (vtl verify) and the client's configuration",
        (<Client> client).path,
        LONG_WAIT_SECONDS,
    )


# ---- the interpreter's exit ----


cdef int begin_exit(Deadline deadline) noexcept:
    """The calling thread runs the interpreter's exit, which ends at the deadline at the latest."""
    global exit_deadline, exiting_thread
    exit_deadline = deadline
    exiting_thread = PyThread_get_thread_ident()
    luna_mark(&exit_has_passed)
    with nogil:
        while not PyThread_acquire_lock(exit_gate, NOWAIT_LOCK):
            if left_of(deadline) == 0:
                break
            luna_pause(SHORTEST_WAIT_SECONDS)
        else:
            PyThread_release_lock(exit_gate)
    return 0


cdef bint exit_has_begun() noexcept:
    return exit_deadline.end != INFINITY


cdef double left_of_exit() noexcept nogil:
    """Seconds for which the exit, which has begun, may still wait for other threads; 0: it is over, and
    they may never run again. -1: it has not begun.
    """
    return left_of(exit_deadline)


cdef int hold_back_at_exit() except -1:
    """Called before a thread gets the error that the exit has ended its lock or call: the thread waits
    here until the exit is over, so that it does not print the error to stderr. A worker does not: the
    thread that gets the error from it does, unless that is the one that runs the exit.

    It waits no longer than the exit may last, because a handler of atexit may wait for this thread.
    """
    cdef PyThread_type_lock never
    if not exit_has_begun() or luna_is_worker() or exiting_thread == PyThread_get_thread_ident():
        return 0
    never = new_signal()
    try:
        wait_on(never, left_of(exit_deadline))
    finally:
        PyThread_free_lock(never)
    return 0


# ---- forks ----

cdef enum:
    MOST_CLIENTS = 64

# Of the clients, for the handler that runs in a child before any Python code does.
cdef int *states[MOST_CLIENTS]
cdef int *marks_of_initialised[MOST_CLIENTS]
cdef int watched_clients = 0
# Whether this is a child that its hooks were not called in.
cdef int unheard_fork = 0
# What has to be done in a child, in the order in which it has to be done.
cdef list child_hooks = []


cdef int watch_forks(Client client) noexcept:
    global watched_clients
    if watched_clients < MOST_CLIENTS:
        states[watched_clients] = &client.state
        marks_of_initialised[watched_clients] = &client.initialised
        watched_clients += 1
    return 0


cdef void note_fork() noexcept nogil:
    """In a child, also of a fork that Python does not hear of: no call may begin before the hooks."""
    global unheard_fork
    cdef int index
    unheard_fork = 1
    for index in range(watched_clients):
        marks_of_initialised[index][0] = 0
        if states[index][0] == READY or states[index][0] == RECONNECTING:
            states[index][0] = FORKED


cdef int do_in_child(object hook) except -1:
    """Have the hook called in each forked child, after those that were registered before."""
    child_hooks.append(hook)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=hook)
    return 0


cdef int hear_of_fork() except -1:
    """If this is a child, and Python has not called the hooks: call them."""
    if unheard_fork:
        for hook in child_hooks:
            hook()
    return 0


def _after_fork_in_child():
    global unheard_fork, exit_gate, exit_has_passed
    unheard_fork = 0
    exit_deadline.end = INFINITY
    # A thread of the parent's may have held them.
    luna_guard_forget(&share_guard)
    exit_gate = PyThread_allocate_lock()
    exit_has_passed = 0
    for client in loaded_clients():
        (<Client> client).after_fork()


do_in_child(_after_fork_in_child)
luna_at_fork_in_child(note_fork)
