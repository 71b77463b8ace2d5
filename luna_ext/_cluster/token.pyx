# Token: a keyring token by its label; how a claimed one is assigned.

# Only this file has the key, so that users cannot make a token by calling its class.
cdef object _TOKEN_KEY = object()


cdef Token new_token(ClusterSlot slot, bytes raw_label, object known_info):
    cdef Token token = Token.__new__(Token, _TOKEN_KEY)
    token.slot = slot
    token.raw_label = raw_label
    token.known_info = known_info
    return token


@cython.final
cdef class Token:
    """A keyring token of the cluster, by the label that it had when it was found.

    `Library.token()`, `find()`, `tokens()` and `claim()` give it. As a context manager it locks
    its slot and makes sure that the token there still has this label::

        with luna.token("payments-01") as token:
            ...
    """

    def __cinit__(self, key=None):
        if key is not _TOKEN_KEY:
            raise TypeError("a Token comes from Library.token(), find(), tokens() or claim()")

    @property
    def label(self):
        """The label without its padding; bytes that are not UTF-8 appear as lone surrogates."""
        return decode_label(self.raw_label)

    @property
    def info(self):
        """The token's TokenInfo (C_GetTokenInfo), read once; `slot.token_info` reads it anew.

        Raises
        ------
        LibraryClosedError, DeviceError, CryptokiError
            As `ClusterSlot.token_info`, when it is read.
        """
        if self.known_info is None:
            self.known_info = self.slot.token_info
        return self.known_info

    def lock(self, *, timeout=None, heartbeat=None, on_lost=None):
        """As `ClusterSlot.lock()`; the label is checked as soon as the lock is held.

        Parameters
        ----------
        timeout : float, optional
            Seconds at most for both, the lock and the check. None: without limit.
        heartbeat : float, optional
            Seconds within which a loss of the lock is noticed, as with `ClusterSlot.lock()`. The label
            is not checked again.
        on_lost : callable, optional
            Called with the LockLostError at a loss, as with `ClusterSlot.lock()`.

        Raises
        ------
        LockTimeoutError, TokenChangedError
            From the ``with`` statement: the time is up, or the token has another label now. Nothing
            is locked then.
        """
        return new_lock(self.slot, timeout, heartbeat, on_lost, self, self)

    def ensure_held(self):
        """As `ClusterSlot.ensure_held()`, and the token must still have this label.

        Raises
        ------
        LockNotOwnedError, LockLostError, CryptokiError
            As `ClusterSlot.ensure_held()`.
        TokenChangedError
            The lock is held, but the token has another label now.
        """
        self.check_label(self.slot.mutex.ensure_held(self.slot.share))

    def assign(self, label, *, so_pin, user_pin=None, unique=True):
        """Give the claimed token its label: **erases the token** (C_InitToken).

        Only inside the block of the `Library.claim()` that gave this Token. With `user_pin` the
        user's PIN is set as well (C_OpenSession, C_Login, C_InitPIN).

        Parameters
        ----------
        label : str
            1 to 32 bytes of UTF-8.
        so_pin, user_pin : str, bytes or bytearray
            PINs. They are copied, and the copies are wiped; no error or log shows them.
        unique : bool
            True: refuse a label that a token has already (CA_GetSlotId). False: do not look.

        Returns
        -------
        Token
            The token under its new label; the claim's block still holds its lock.

        Raises
        ------
        TypeError, ValueError
            For the label or a PIN, before the device is asked.
        LockNotOwnedError
            The lock is not held, or was released since the claim.
        AssignmentConflictError
            The Token did not come out of `claim()`, or the token has another label by now; or a
            token has the new label already, and its slot is in `slot_ids`. Nothing was erased. Or
            C_InitToken reported success, but the token does not have the new label.
        UnsupportedFunctionError
            The client library has no CA_GetSlotId, which `unique` needs.
        LockLostError
            The lock is gone, as `ensure_held()` says it.
        PinError, CryptokiError
            What the device answers. A note says what has become of the token.
        """
        cdef SlotMutex mutex = self.slot.mutex
        cdef bytes raw_label = encode_label(label, errors="strict")
        cdef Pin so = Pin(so_pin, "so_pin")
        cdef Pin user = None if user_pin is None else Pin(user_pin, "user_pin")
        cdef bytes now
        sys.audit("luna_ext.assign", mutex.slot_id, label)
        mutex.check_not_evicted(self.slot.share, "C_InitToken")
        mutex.check_mine("C_InitToken")
        if self.claimed == 0:
            raise self._conflict(
                "this Token did not come out of claim(), so it may be in use; assigning would "
                "erase it. Use Library.claim()"
            )
        if seen(&mutex.record).hold != self.claimed:
            raise LockNotOwnedError(
                f"slot {mutex.slot_id}: the lock was released since claim() and taken again; "
                "another process may have used the token in between. Claim again",
                function="C_InitToken",
                slot_id=mutex.slot_id,
            )
        if raw_label == self.raw_label:
            raise ValueError(
                f"{self.label!r} is the token's original label; the token would stay unassigned"
            )
        mutex.begin_work()
        try:
            now = mutex.ensure_held(self.slot.share)
            if now != self.raw_label:
                raise self._conflict(
                    f"it is {decode_label(now)!r} by now: another program assigned it. "
                    "Claim another one"
                )
            if unique:
                self._refuse_taken(raw_label)
            self._init(raw_label, so, user)
        finally:
            mutex.end_work()
        return new_token(self.slot, raw_label, None)

    def _refuse_taken(self, bytes raw_label):
        """Raise if a token has the label already."""
        cdef Client client = self.slot.mutex.client
        client.need(CA_GET_SLOT_ID, self.slot.share.path)
        taken = slots_with_label(client, raw_label)
        if taken:
            error = self._conflict(
                f"the label {decode_label(raw_label)!r} is there already, in "
                f"{'slot' if len(taken) == 1 else 'the slots'} {', '.join(map(str, taken))}. Choose "
                "another one, or assign with unique=False"
            )
            error.slot_ids = tuple(taken)
            raise error

    def _init(self, bytes raw_label, Pin so, Pin user):
        """The device calls of assign(); from the first one on, errors say how far it came."""
        cdef Client client = self.slot.mutex.client
        slot_id = self.slot.slot_id
        try:
            self._init_token(raw_label, so)
        except CryptokiError as error:
            self._note_label(error)
            raise
        try:
            now = token_label(client, slot_id)
        except LunaError as error:
            error.add_note(
                f"luna_ext: C_InitToken has erased the token in slot {slot_id}; whether it took "
                f"the label {decode_label(raw_label)!r} could not be read back"
            )
            raise
        if now != raw_label:
            raise self._conflict(
                f"C_InitToken reported success, but the label is {decode_label(now)!r}, "
                f"not {decode_label(raw_label)!r}"
            )
        if user is None:
            return
        try:
            init_user_pin(client, slot_id, so, user)
        except LunaError as error:
            error.add_note(
                f"luna_ext: the token in slot {slot_id} is assigned under its new label "
                f"{decode_label(raw_label)!r}, but its user PIN is not set; provision() with this label "
                "and the right PINs sets it"
            )
            raise

    cdef int _init_token(self, bytes raw_label, Pin so) except -1:
        cdef Client client = self.slot.mutex.client
        cdef Deadline deadline = deadline_in(SESSIONS_SECONDS)
        cdef Backoff backoff
        cdef double pause
        backoff.longest = 0
        # No token with a session can be initialised, and this process's own is the canary.
        cdef bint had_canary = close_canary(client, self.slot.slot_id)
        try:
            while True:
                try:
                    init_token(client, self.slot.slot_id, so, raw_label)
                    break
                except CryptokiError as error:
                    pause = next_pause(&backoff)
                    # Nothing was done. Another process closes its canary when it has given a claim back.
                    if error.rv != CKR_SESSION_EXISTS or pause >= left_of(deadline):
                        raise
                time.sleep(pause)
        finally:
            if had_canary:
                want_canary(client)
        luna_shared_set(&self.slot.mutex.is_unassigned, False)
        if had_canary:
            self.slot.mutex.locks.look_for_canary(self.slot.slot_id)
        return 0

    def _set_user_pin(self, so_pin, user_pin):
        """The last part of assign(), for a token whose assignment was interrupted before it.

        C_OpenSession, C_Login, C_InitPIN. The caller holds the lock, and has made sure that the
        token lacks its user PIN.
        """
        cdef SlotMutex mutex = self.slot.mutex
        cdef Pin so = Pin(so_pin, "so_pin")
        cdef Pin user = Pin(user_pin, "user_pin")
        mutex.begin_work()
        try:
            self.ensure_held()
            init_user_pin(self.slot.mutex.client, mutex.slot_id, so, user)
        finally:
            mutex.end_work()

    def pkcs11(self):
        """python-pkcs11's token of this slot, a ``pkcs11.Token``, on the Library's client library::

            with luna.token("payments-01") as token:
                with token.pkcs11().open(user_pin=...) as session: ...

        Raises
        ------
        ImportError
            python-pkcs11 is not installed, or too old (extra ``pkcs11``).
        LibraryClosedError, SlotIdInvalidError
            The Library is closed, or the client knows no such slot any more.
        pkcs11.PKCS11Error
            What C_GetTokenInfo answers.
        """
        from .neighbours import pkcs11_token

        try:
            return pkcs11_token(
                self.slot.library, self.slot.slot_id, self.slot.library._make_ready
            )
        except KeyError:
            raise SlotIdInvalidError(
                f"slot {self.slot.slot_id}: the client knows no such slot any more; look for the label "
                "again",
                function="C_GetSlotList",
                slot_id=self.slot.slot_id,
            ) from None

    def __enter__(self):
        cdef ClusterSlot slot = self.slot
        cdef Deadline patience
        cdef uint64_t began_in
        check_open(slot.share, slot.mutex.slot_id)
        while True:
            slot.mutex.acquire(slot.share)
            began_in = forks
            patience = deadline_in(patience_here(-1))
            try:
                if not run_within(self._check, patience) and forks == began_in:
                    raise slot.mutex.greenlet_error(TOKEN_INFO)
            except BaseException as error:
                end_block(slot.mutex, slot.share, 0, None, error)
                raise
            if forks == began_in:
                return self
            # A signal handler has forked meanwhile, and this is the child: it holds nothing.

    def __exit__(self, exc_type, exc_value, traceback):
        end_block(self.slot.mutex, self.slot.share, 0, exc_type, exc_value)

    def __repr__(self):
        return f"<luna_ext.Token {self.label!r} in slot {self.slot.mutex.slot_id}>"

    def __reduce__(self):
        raise TypeError(
            "a Token belongs to its process; send its label and use Library.token() there"
        )

    def _check(self):
        self.check_label(token_label(self.slot.mutex.client, self.slot.mutex.slot_id))

    cdef int check_label(self, bytes now) except -1:
        if now != self.raw_label:
            raise TokenChangedError(
                f"the token in slot {self.slot.mutex.slot_id} is {decode_label(now)!r} now, "
                f"not {self.label!r}. Look for the label again",
                function="C_GetTokenInfo",
                slot_id=self.slot.mutex.slot_id,
            )
        return 0

    def _conflict(self, str why):
        return AssignmentConflictError(
            f"token {self.label!r} in slot {self.slot.mutex.slot_id} was not assigned: {why}",
            function="C_InitToken",
            slot_id=self.slot.mutex.slot_id,
        )

    def _note_label(self, error):
        """A failed call may have taken effect all the same: say what the label is now."""
        try:
            now = decode_label(token_label(self.slot.mutex.client, self.slot.mutex.slot_id))
        except LunaError:
            error.add_note("luna_ext: the token's label could not be read back; look at it")
        else:
            error.add_note(f"luna_ext: the token's label is {now!r} now")


def check_pins(so_pin, user_pin):
    """Raise the TypeError or ValueError that `Token.assign()` raises for these PINs."""
    Pin(so_pin, "so_pin")
    if user_pin is not None:
        Pin(user_pin, "user_pin")
