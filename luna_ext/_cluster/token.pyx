# Token: a keyring token by its label; how a claimed one is assigned.

# Only this file has the key, so that users cannot make a token by calling its class.
cdef object _TOKEN_KEY = object()
# Where a token's user has a PIN that may not be the one that provision() was given.
cdef str NOT_THE_USERS = (
    "If the token is in use, with a PIN that its user has chosen, leave its label out; if not, "
    "token.change_pin() changes the PIN that it has"
)


cdef Token new_token(ClusterSlot slot, bytes raw_label):
    cdef Token token = Token.__new__(Token, _TOKEN_KEY)
    token.slot = slot
    token.raw_label = raw_label
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
            if self.raw_info is None:
                self.known_info = self.slot.token_info
            else:
                self.known_info = token_info_of(<CK_TOKEN_INFO *> <const char *> self.raw_info)
        return self.known_info

    cdef int keep_info(self, CK_TOKEN_INFO *info) except -1:
        """Keep what was read. Most often no TokenInfo of it is asked for, and to make one takes time."""
        self.raw_info = (<const char *> info)[:sizeof(CK_TOKEN_INFO)]
        self.known_info = None
        return 0

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
        cdef CK_TOKEN_INFO info
        self._check_held(&info)

    cdef int _check_held(self, CK_TOKEN_INFO *info) except -1:
        self.slot.mutex.ensure_held(self.slot.share, info)
        return self.check_label(blank_padded(info.label))

    def assign(self, label, *, so_pin, user_pin=None, unique=True, erase=True):
        """Give the claimed token its label: **erases the token** (C_InitToken).

        Only inside the block of the `Library.claim()` that gave this Token. With `user_pin` the
        user's PIN is set as well (C_OpenSession, C_Login, C_InitPIN).

        Parameters
        ----------
        label : str
            1 to 32 bytes of UTF-8.
        so_pin : str, bytes, bytearray, memoryview or PIN_PAD
            **The password that the keyring has already**: it was given where the keyring was made, on the
            appliance. Only a token that is not initialised takes any PIN, and keeps it.
        user_pin : str, bytes, bytearray, memoryview or PIN_PAD, optional
            The PIN that the user is to have. With *single identity*, a cluster's default, the SO (KRSO)
            and the user (KRCO) have the same password, and whatever changes one changes the other:
            a `user_pin` that is not `so_pin` becomes the SO's too. One that is the same is set already,
            and no call is made for it. With *dual identity* each has its own.
        unique : bool
            True: refuse a label that a token has already (CA_GetSlotId). False: do not look.
        erase : bool
            False: keep what is in the token, and only change its label (C_OpenSession, C_Login,
            CA_ChangeLabel), where the client has CA_ChangeLabel.

        Returns
        -------
        Token
            The token under its new label; the claim's block still holds its lock.

        Raises
        ------
        TypeError, ValueError
            For the label or a PIN, before the device is asked; for PIN_PAD where the token has no such pad,
            before it is changed.
        LockNotOwnedError
            The lock is not held, or was released since the claim.
        AssignmentConflictError
            The Token did not come out of `claim()`, or the token has another label by now; or a
            token has the new label already, and its slot is in `slot_ids`; or there is no PIN to log in
            with, which `erase=False` needs. Nothing was erased. Or C_InitToken reported success, but the
            token does not have the new label.
        UnsupportedFunctionError
            The client library has no CA_GetSlotId, which `unique` needs, or no CA_ChangeLabel, which
            `erase=False` needs.
        LockLostError
            The lock is gone, as `ensure_held()` says it.
        PinError, CryptokiError
            What the device answers. A note says what has become of the token. Also, before a PIN is tried,
            where the SO has one try left, or none; and for a `user_pin` of a length that the token does not
            take.

        Notes
        -----
        PINs are copied, and the copies are wiped; no error or log shows them. `PIN_PAD` stands for one that
        is entered at the token's own pad.
        """
        cdef SlotMutex mutex = self.slot.mutex
        cdef bytes raw_label = encode_label(label, errors="strict")
        cdef Pin so = as_pin(so_pin, "so_pin")
        cdef Pin user = None if user_pin is None else as_pin(user_pin, "user_pin")
        cdef CK_TOKEN_INFO info
        cdef uint64_t generation
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
        if not erase:
            mutex.locks.client.need(CA_CHANGE_LABEL, self.slot.share.path)
        assigned = new_token(self.slot, raw_label)
        mutex.begin_work()
        generation = self._held_in()
        try:
            mutex.ensure_held(self.slot.share, &info)
            # What it was before it is changed.
            self.keep_info(&info)
            if blank_padded(info.label) != self.raw_label:
                raise self._conflict(
                    f"it is {self.info.label!r} by now, so it is assigned already. Claim another one"
                    if self.label
                    else f"the client has not told its label with the claim, so it is not known whether "
                    f"{self.info.label!r} is the original one. It is no client to rely on"
                )
            self._refuse_pins(&info, so, user)
            self._refuse_length(&info, user, "C_InitPIN")
            if not erase and not info.flags & CKF_TOKEN_INITIALIZED:
                raise self._conflict(
                    "it is not initialised, so there is no PIN to log in with. Assign with erase=True"
                )
            if unique:
                self._refuse_taken(raw_label)
            if erase:
                assigned.user_pin_stayed = self._init(generation, raw_label, so, user)
            else:
                self._relabel(generation, raw_label, so, user)
        finally:
            mutex.end_work()
        return assigned

    cdef int _refuse_pins(self, CK_TOKEN_INFO *info, Pin so, Pin user) except -1:
        """Raise for PINs that must not be tried on this token. `so`: None, if the SO's is not."""
        self._refuse_pads(info, so, user)
        if so is not None and info.flags & (CKF_SO_PIN_LOCKED | CKF_SO_PIN_FINAL_TRY):
            left = "is locked out" if info.flags & CKF_SO_PIN_LOCKED else "has one try left"
            raise PinError(
                f"slot {self.slot.slot_id}: the token's SO {left}, so the PIN was not tried: the tenth "
                f"wrong one may erase the token; {LOCKED_OUT}",
                function="C_Login",
                slot_id=self.slot.slot_id,
            )
        return 0

    cdef int _refuse_length(self, CK_TOKEN_INFO *info, Pin new, str function) except -1:
        """Raise for a new PIN that the token would not take: before it is erased for it."""
        cdef CK_ULONG least = info.ulMinPinLen
        cdef CK_ULONG most = info.ulMaxPinLen
        # A client may tell nothing of use.
        if least == CK_UNAVAILABLE_INFORMATION:
            least = 0
        if new is None or new.is_pad() or most == 0 or most < least:
            return 0
        if not least <= new.length <= most:
            raise PinError(
                f"slot {self.slot.slot_id}: the new PIN has {new.length} bytes, and the token takes "
                f"{least} to {most}. Nothing was changed; choose another one",
                function=function,
                slot_id=self.slot.slot_id,
            )
        return 0

    cdef int _refuse_pads(self, CK_TOKEN_INFO *info, Pin one, Pin other) except -1:
        """Raise for PIN_PAD where the token has no pad."""
        if not info.flags & CKF_PROTECTED_AUTHENTICATION_PATH:
            for pin in (one, other):
                if pin is not None and (<Pin> pin).is_pad():
                    raise ValueError(
                        f"slot {self.slot.slot_id}: PIN_PAD is for tokens with a protected authentication "
                        "path, such as a PED, and this one has none; give its PIN"
                    )
        return 0

    def _refuse_taken(self, bytes raw_label):
        """Raise if a token has the label already."""
        cdef Client client = self.slot.mutex.locks.client
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

    cdef bint _init(self, uint64_t generation, bytes raw_label, Pin so, Pin user) except -1:
        """The device calls of assign(); from the first one on, errors say how far it came. Returns whether
        the user still has a PIN afterwards, which is the SO's then.
        """
        cdef CK_TOKEN_INFO info
        cdef bint stayed
        try:
            self._init_token(generation, raw_label, so)
        except CryptokiError as error:
            self._note_label(error)
            raise
        self._check_new_label(raw_label, "C_InitToken", "has erased", &info)
        stayed = info.flags & CKF_USER_PIN_INITIALIZED != 0
        if user is None or (stayed and same_pins(so, user)):
            return stayed
        try:
            as_security_officer(
                self.slot.mutex.locks.client, self.slot.mutex.slot_id, generation, so, None, user
            )
        except LunaError as error:
            error.add_note(
                f"luna_ext: the token in slot {self.slot.slot_id} is assigned under its new label "
                f"{decode_label(raw_label)!r}, but user_pin is not set; provision() with this label "
                "and the right PINs sets it"
            )
            raise
        return stayed

    cdef int _relabel(self, uint64_t generation, bytes raw_label, Pin so, Pin user) except -1:
        """The device calls of assign(erase=False)."""
        cdef CK_TOKEN_INFO info
        try:
            as_security_officer(
                self.slot.mutex.locks.client, self.slot.mutex.slot_id, generation, so, raw_label, user
            )
        except CryptokiError as error:
            self._note_label(error)
            raise
        luna_shared_set8(&self.slot.mutex.record.is_unassigned, False)
        return self._check_new_label(raw_label, "CA_ChangeLabel", "was called for", &info)

    cdef int _check_new_label(
        self, bytes raw_label, str function, str done, CK_TOKEN_INFO *info
    ) except -1:
        """Read back whether the token has taken the label."""
        try:
            read_token_info(self.slot.mutex.locks.client, self.slot.mutex.slot_id, info)
        except LunaError as error:
            error.add_note(
                f"luna_ext: {function} {done} the token in slot {self.slot.slot_id}; whether it took "
                f"the label {decode_label(raw_label)!r} could not be read back"
            )
            raise
        now = blank_padded(info.label)
        if now != raw_label:
            raise self._conflict(
                f"{function} reported success, but the label is {decode_label(now)!r}, "
                f"not {decode_label(raw_label)!r}"
            )
        return 0

    cdef uint64_t _held_in(self) noexcept:
        """The generation of C_Initialize in which the lock was granted that the work relies on. Asked for
        where the work begins: after a loss, another thread may have taken the lock anew.
        """
        return seen(&self.slot.mutex.record).generation

    cdef int _init_token(self, uint64_t generation, bytes raw_label, Pin so) except -1:
        cdef Client client = self.slot.mutex.locks.client
        cdef Deadline deadline = deadline_in(SESSIONS_SECONDS)
        cdef Backoff backoff
        cdef double pause
        backoff.longest = 0
        cdef bint had_canary
        # No token with a session can be initialised, and this process's own is the canary.
        self.slot.mutex.locks.pass_canary_on(self.slot.mutex)
        had_canary = close_canary(client, self.slot.slot_id)
        try:
            while True:
                try:
                    init_token(client, self.slot.slot_id, generation, so, raw_label)
                    break
                except CryptokiError as error:
                    pause = next_pause(&backoff)
                    # Nothing was done. Another process closes its canary when it has given a claim back.
                    if error.rv != CKR_SESSION_EXISTS or pause >= left_of(deadline):
                        raise
                time.sleep(pause)
                # A thread that was about to lock the slot, before the claim gave it, may have opened it.
                had_canary = close_canary(client, self.slot.slot_id) or had_canary
        finally:
            if had_canary:
                want_canary(client)
        luna_shared_set8(&self.slot.mutex.record.is_unassigned, False)
        if had_canary:
            self.slot.mutex.locks.look_for_canary(self.slot.slot_id, False)
        return 0

    def change_pin(self, old, new, *, role="user"):
        """Give the user, or the SO, another PIN (C_SetPIN). The caller holds the lock.

        It is what a token wants where a PIN has to be changed before it is used: CKR_PIN_EXPIRED, and the
        flag USER_PIN_TO_BE_CHANGED.

        Parameters
        ----------
        old, new : str, bytes, bytearray, memoryview or PIN_PAD
            The PIN that is valid now, and the one that is to be. They are copied, and the copies are wiped.
            With *single identity*, a cluster's default, the SO and the user have the same password, and
            both have the new one then.
        role : {"user", "so"}
            Whose: the user's (KRCO), with C_OpenSession, C_GetSessionInfo and C_SetPIN alone; or the SO's
            (KRSO), with C_Login and C_Logout as well.

        Raises
        ------
        TypeError, ValueError
            For an argument, before the device is asked; for PIN_PAD where the token has no such pad.
        LockNotOwnedError, LockLostError, TokenChangedError
            As `ensure_held()`.
        PinError
            The device refuses a PIN; or the SO has one try left, or none, and `old` was not tried.
        UnsupportedFunctionError
            The client library has no C_SetPIN.
        CryptokiError
            Any other answer. CKR_USER_ANOTHER_ALREADY_LOGGED_IN: other code of this process is logged in
            in the other role. That login is left alone, and nothing was changed.
        """
        cdef SlotMutex mutex = self.slot.mutex
        cdef Pin old_pin = as_pin(old, "old")
        cdef Pin new_pin = as_pin(new, "new")
        cdef CK_TOKEN_INFO info
        cdef uint64_t generation
        if role not in ("user", "so"):
            raise ValueError(f"role is 'user' or 'so', not {role!r}")
        if old_pin.is_pad() != new_pin.is_pad():
            raise ValueError("old and new are both PIN_PAD, or neither is")
        cdef bint is_so = role == "so"
        sys.audit("luna_ext.change_pin", mutex.slot_id, role)
        mutex.locks.client.need(C_SET_PIN, self.slot.share.path)
        mutex.begin_work()
        generation = self._held_in()
        try:
            self._check_held(&info)
            self._refuse_pins(&info, old_pin if is_so else None, new_pin)
            self._refuse_length(&info, new_pin, "C_SetPIN")
            role_number = CKU_SO if is_so else CKU_USER
            set_pin(mutex.locks.client, mutex.slot_id, generation, role_number, old_pin, new_pin)
        finally:
            mutex.end_work()

    def _set_user_pin(self, so_pin, user_pin):
        """The last part of assign(), for a token whose assignment was interrupted before it.

        C_OpenSession, C_Login, C_InitPIN. The caller holds the lock, and has made sure that the
        token lacks its user PIN. Returns whether the device has looked at `so_pin`.
        """
        cdef SlotMutex mutex = self.slot.mutex
        cdef Pin so = as_pin(so_pin, "so_pin")
        cdef Pin user = as_pin(user_pin, "user_pin")
        cdef CK_TOKEN_INFO info
        cdef uint64_t generation
        mutex.begin_work()
        generation = self._held_in()
        try:
            self._check_held(&info)
            self._refuse_pins(&info, so, user)
            return as_security_officer(
                mutex.locks.client, mutex.slot_id, generation, so, None, user
            )
        finally:
            mutex.end_work()

    def _ensure_user_pin(self, so_pin, user_pin):
        """Give the user this PIN if it is still the SO's: on a token with single identity, whose
        assignment was interrupted before C_InitPIN. Returns whether it was.

        C_OpenSession, C_Login as user, and C_SetPIN if that is refused. The SO's tries are left alone, and
        the user's last one. The caller holds the lock.
        """
        cdef SlotMutex mutex = self.slot.mutex
        cdef Pin so = as_pin(so_pin, "so_pin")
        cdef Pin user = as_pin(user_pin, "user_pin")
        cdef CK_TOKEN_INFO info
        cdef uint64_t generation
        mutex.begin_work()
        generation = self._held_in()
        try:
            self._check_held(&info)
            self._refuse_pads(&info, so, user)
            try:
                return ensure_user_pin(mutex.locks.client, mutex.slot_id, generation, so, user)
            except PinError as error:
                error.add_note(f"luna_ext: {NOT_THE_USERS}")
                raise
        finally:
            mutex.end_work()

    def pkcs11(self):
        """python-pkcs11's token of this slot, a ``pkcs11.Token``, on the Library's client library.

        Its keys are used while the lock is held::

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
                if (
                    not run_within(self._check, slot.mutex.locks, patience)
                    and forks == began_in
                ):
                    raise slot.mutex.greenlet_error(TOKEN_INFO)
            except BaseException as error:
                end_block(slot.mutex, slot.share, 0, False, None, error)
                raise
            if forks == began_in:
                return self
            # A signal handler has forked meanwhile, and this is the child: it holds nothing.

    def __exit__(self, exc_type, exc_value, traceback):
        end_block(self.slot.mutex, self.slot.share, 0, False, exc_type, exc_value)

    def __repr__(self):
        return f"<luna_ext.Token {self.label!r} in slot {self.slot.mutex.slot_id}>"

    def __reduce__(self):
        raise TypeError(
            "a Token belongs to its process; send its label and use Library.token() there"
        )

    def _check(self):
        self.check_label(token_label(self.slot.mutex.locks.client, self.slot.mutex.slot_id))

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
            now = decode_label(token_label(self.slot.mutex.locks.client, self.slot.mutex.slot_id))
        except LunaError:
            error.add_note("luna_ext: the token's label could not be read back; look at it")
        else:
            error.add_note(f"luna_ext: the token's label is {now!r} now")


def copied_pins(so_pin, user_pin):
    """Copies of both that no Python code can read. Raises as `Token.assign()` does for these PINs."""
    return Pin(so_pin, "so_pin"), None if user_pin is None else Pin(user_pin, "user_pin")


def same_pin(Pin one not None, Pin other):
    """Whether the two are known to be the same."""
    return other is not None and same_pins(one, other)


def is_pad(Pin pin):
    """Whether it is PIN_PAD's."""
    return pin is not None and pin.is_pad()


def was_initialised(Token token not None):
    """Whether the token was, when it was last read, or is now."""
    if token.raw_info is None:
        return bool(token.info.flags & CKF_TOKEN_INITIALIZED)
    return bool((<CK_TOKEN_INFO *> <const char *> token.raw_info).flags & CKF_TOKEN_INITIALIZED)


def has_single_identity(Token assigned not None):
    """Whether the token that assign() gave has one PIN for both roles.

    C_InitToken does not take the user's away then.
    """
    return assigned.user_pin_stayed
