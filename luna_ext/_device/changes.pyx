# The calls that change a token, with the sessions and logins that they need.


cdef struct InitTokenArguments:
    uint64_t generation     # of C_Initialize, in which the lock was granted
    CK_SLOT_ID slot_id
    CK_UTF8CHAR *pin
    CK_ULONG length
    CK_UTF8CHAR *label


cdef CK_RV make_init_token(Client client, void *arguments) noexcept nogil:
    cdef InitTokenArguments *token = <InitTokenArguments *> arguments
    if luna_shared_get64(&client.generation) != token.generation:
        return CKR_SESSION_HANDLE_INVALID
    return client.functions.C_InitToken(token.slot_id, token.pin, token.length, token.label)


cdef int init_token(
    Client client, CK_SLOT_ID slot_id, uint64_t generation, Pin so_pin, bytes label
) except -1:
    """C_InitToken: erases the token and gives it the label; not after the generation in which the lock was
    granted.
    """
    cdef InitTokenArguments arguments
    arguments.generation = generation
    arguments.slot_id = slot_id
    arguments.pin = so_pin.bytes
    arguments.length = so_pin.length
    arguments.label = label
    return require(client, C_INIT_TOKEN, make_init_token, &arguments, slot_id)


cdef struct RoleArguments:
    uint64_t generation     # of C_Initialize, in which the lock was granted, and the session opened
    CK_SESSION_HANDLE session
    CK_SLOT_ID slot_id
    CK_USER_TYPE role
    CK_UTF8CHAR *text       # a PIN, or a label
    CK_ULONG length
    CK_UTF8CHAR *new_pin
    CK_ULONG new_length
    CK_SESSION_INFO info


cdef inline bint is_stale(Client client, RoleArguments *role) noexcept nogil:
    """Whether the library was initialised anew: the lock is gone, and the handle may be that of another
    session by now.
    """
    return luna_shared_get64(&client.generation) != role.generation


cdef CK_RV make_open_role(Client client, void *arguments) noexcept nogil:
    cdef RoleArguments *role = <RoleArguments *> arguments
    if is_stale(client, role):
        return CKR_SESSION_HANDLE_INVALID
    return client.functions.C_OpenSession(role.slot_id, SESSION_FLAGS, NULL, NULL, &role.session)


cdef CK_RV make_login(Client client, void *arguments) noexcept nogil:
    cdef RoleArguments *role = <RoleArguments *> arguments
    if is_stale(client, role):
        return CKR_SESSION_HANDLE_INVALID
    return client.functions.C_Login(role.session, role.role, role.text, role.length)


cdef CK_RV make_logout(Client client, void *arguments) noexcept nogil:
    cdef RoleArguments *role = <RoleArguments *> arguments
    return CKR_OK if is_stale(client, role) else client.functions.C_Logout(role.session)


cdef CK_RV make_close_role(Client client, void *arguments) noexcept nogil:
    cdef RoleArguments *role = <RoleArguments *> arguments
    return CKR_OK if is_stale(client, role) else client.functions.C_CloseSession(role.session)


cdef CK_RV make_get_role(Client client, void *arguments) noexcept nogil:
    cdef RoleArguments *role = <RoleArguments *> arguments
    if is_stale(client, role):
        return CKR_SESSION_HANDLE_INVALID
    return client.functions.C_GetSessionInfo(role.session, &role.info)


cdef CK_RV make_init_pin(Client client, void *arguments) noexcept nogil:
    cdef RoleArguments *role = <RoleArguments *> arguments
    if is_stale(client, role):
        return CKR_SESSION_HANDLE_INVALID
    return client.functions.C_InitPIN(role.session, role.text, role.length)


cdef CK_RV make_set_pin(Client client, void *arguments) noexcept nogil:
    cdef RoleArguments *role = <RoleArguments *> arguments
    if is_stale(client, role):
        return CKR_SESSION_HANDLE_INVALID
    return client.functions.C_SetPIN(
        role.session, role.text, role.length, role.new_pin, role.new_length
    )


cdef CK_RV make_change_label(Client client, void *arguments) noexcept nogil:
    cdef RoleArguments *role = <RoleArguments *> arguments
    if is_stale(client, role):
        return CKR_SESSION_HANDLE_INVALID
    return client.change_label(role.session, role.slot_id, role.text, role.length)


# Where the SO's PIN has to be changed, and the device refuses the login that C_SetPIN needs.
cdef str NOT_LET_IN = (
    "the device does not let the SO in to change this PIN. With single identity it is the user's as well: "
    "token.change_pin(old, new), without role, changes both"
)


@cython.final
cdef class RoleSession:
    """A session on a token, and a login in it. A login belongs to the whole process: that of other code is
    used, and left as it is.
    """
    cdef Client client
    cdef CK_SLOT_ID slot_id
    cdef RoleArguments arguments    # of the next call; the session, once it is open
    cdef bint is_open
    cdef bint logged_in             # by us: the login has to be ended
    cdef CK_RV refusal              # of C_Login, by a code that says nothing of logins; else CKR_OK

    def __cinit__(self, Client client, CK_SLOT_ID slot_id, uint64_t generation):
        self.client = client
        self.slot_id = slot_id
        self.arguments.slot_id = slot_id
        self.arguments.generation = generation

    cdef int open(self) except -1:
        self.require(C_OPEN_SESSION, make_open_role)
        self.is_open = True
        return 0

    cdef int require(self, int function, Making make) except -1:
        return require(self.client, function, make, &self.arguments, self.slot_id)

    cdef int use_pin(self, Pin pin) noexcept:
        self.arguments.text = pin.bytes
        self.arguments.length = pin.length
        return 0

    cdef CK_RV log_in(self, CK_USER_TYPE role, Pin pin) except? 0xFFFFFFFF:
        """C_Login, and what it answers."""
        cdef CK_RV rv
        self.arguments.role = role
        self.use_pin(pin)
        rv = answer_of(self.client, C_LOGIN, make_login, &self.arguments)
        # A device may let a role in whose PIN has to be changed.
        self.logged_in = rv == CKR_OK or (rv == CKR_PIN_EXPIRED and self.is_in_role())
        self.refusal = CKR_OK if self.logged_in or changes_no_login(rv) else rv
        return rv

    cdef int require_login(self, CK_USER_TYPE role, Pin pin) except -1:
        """Log in, unless other code of this process has done so in the same role."""
        cdef CK_RV rv = self.log_in(role, pin)
        if rv != CKR_OK and rv != CKR_USER_ALREADY_LOGGED_IN:
            raise error_of(rv, C_LOGIN, self.slot_id)
        return 0

    cdef int require_login_to_change(self, CK_USER_TYPE role, Pin old) except -1:
        """The same, to change the role's PIN, which may have to be changed."""
        try:
            self.require_login(role, old)
        except PinError as error:
            if error.rv == CKR_PIN_EXPIRED:
                if self.logged_in:
                    return 0
                error.add_note(f"luna_ext: {NOT_LET_IN}")
            raise
        return 0

    cdef int init_pin(self, Pin user_pin) except -1:
        self.use_pin(user_pin)
        return self.require(C_INIT_PIN, make_init_pin)

    cdef int set_pin(self, Pin old, Pin new) except -1:
        """C_SetPIN: of the role that is logged in; of the user if none is."""
        self.use_pin(old)
        self.arguments.new_pin = new.bytes
        self.arguments.new_length = new.length
        return self.require(C_SET_PIN, make_set_pin)

    cdef int change_label(self, bytes label) except -1:
        cdef CK_RV rv
        bare = label.rstrip(b" ")
        self.arguments.text = bare
        self.arguments.length = <CK_ULONG> len(bare)
        rv = answer_of(self.client, CA_CHANGE_LABEL, make_change_label, &self.arguments)
        if rv == CKR_FUNCTION_NOT_SUPPORTED:
            raise UnsupportedFunctionError(
                f"slot {self.slot_id}: the device does not offer CA_ChangeLabel. Assign with erase=True, "
                "which needs none",
                rv=rv,
                function=name_of(CA_CHANGE_LABEL),
                slot_id=self.slot_id,
            )
        if rv != CKR_OK:
            raise error_of(rv, CA_CHANGE_LABEL, self.slot_id)
        return 0

    cdef CK_ULONG state(self) except? 0xFFFFFFFF:
        """Which role is logged in, as C_GetSessionInfo says it (CKS_...)."""
        self.require(C_GET_SESSION_INFO, make_get_role)
        return self.arguments.info.state

    cdef bint is_in_role(self) noexcept:
        """Whether a role is logged in, as far as the client says it; also when no new call may begin."""
        cdef CK_RV rv = CKR_OK
        cdef uint64_t nanoseconds
        return (
            self.client.exports(C_GET_SESSION_INFO)
            and make_call(
                self.client, C_GET_SESSION_INFO, make_get_role, &self.arguments, True, &rv, &nanoseconds,
                NULL, NULL
            )
            and rv == CKR_OK
            and self.arguments.info.state in (CKS_RW_SO_FUNCTIONS, CKS_RW_USER_FUNCTIONS)
        )

    cdef int close(self, error) except -1:
        """Log out and close the session. What fails is an ERROR record, and a note of the error that
        ended the work; None: it was done.
        """
        cdef CK_RV logged_out = CKR_OK
        cdef CK_RV closed = CKR_OK
        cdef bint unexpected = False
        cdef uint64_t generation = self.arguments.generation
        # All before a word of it: the log handlers are Python.
        if self.refusal != CKR_OK:
            unexpected = self.is_in_role()
        if self.logged_in:
            undo(self.client, generation, C_LOGOUT, make_logout, &self.arguments, &logged_out)
        if self.is_open:
            undo(self.client, generation, C_CLOSE_SESSION, make_close_role, &self.arguments, &closed)
        if unexpected:
            # Not ended: other code may have logged in meanwhile.
            self.tell_left(
                C_LOGIN, self.refusal, "a role is logged in all the same, and may stay so", error
            )
        # Both end with C_Finalize, too.
        if (
            logged_out != CKR_OK
            and logged_out != CKR_USER_NOT_LOGGED_IN
            and logged_out != CKR_CRYPTOKI_NOT_INITIALIZED
        ):
            self.tell_left(C_LOGOUT, logged_out, "the role may stay logged in", error)
        if closed != CKR_OK and closed != CKR_CRYPTOKI_NOT_INITIALIZED:
            self.tell_left(C_CLOSE_SESSION, closed, "the session may stay open", error)
        return 0

    cdef int tell_left(self, int function, CK_RV rv, str what, error) except -1:
        import logging

        told = (
            f"slot {self.slot_id}: {name_of(function)} answered {rv_name(rv)}: {what} for the whole "
            "process. Library.reconnect() ends it, and drops all locks of the process"
        )
        logging.getLogger("luna_ext").error("%s", told)
        if error is not None:
            error.add_note(f"luna_ext: {told}")
        return 0


cdef bint changes_no_login(CK_RV rv) noexcept nogil:
    """Whether this answer to C_Login shows that it was heard, and that no role is logged in by it."""
    return (
        rv == CKR_PIN_INCORRECT
        or rv == CKR_PIN_EXPIRED
        or rv == CKR_USER_ALREADY_LOGGED_IN
        or rv == CKR_USER_ANOTHER_ALREADY_LOGGED_IN
    )


cdef bint as_security_officer(
    Client client, CK_SLOT_ID slot_id, uint64_t generation, Pin so_pin, bytes label, Pin user_pin
) except -1:
    """C_OpenSession, C_Login as SO, CA_ChangeLabel if there is a label, C_InitPIN if there is a user's PIN;
    logged out and closed whatever happens. Returns whether the device has looked at `so_pin`.
    """
    if user_pin is not None:
        client.need(C_INIT_PIN, client.path)
    session = RoleSession(client, slot_id, generation)
    try:
        session.open()
        session.require_login(CKU_SO, so_pin)
        if label is not None:
            session.change_label(label)
        if user_pin is not None:
            session.init_pin(user_pin)
    except BaseException as error:
        checked = session.logged_in
        session.close(error)
        raise
    checked = session.logged_in
    session.close(None)
    return checked


cdef int set_pin(
    Client client, CK_SLOT_ID slot_id, uint64_t generation, CK_USER_TYPE role, Pin old, Pin new
) except -1:
    """C_SetPIN, for the SO after C_Login. Refused where the other role is logged in, whose PIN it would
    change.
    """
    cdef CK_ULONG state
    session = RoleSession(client, slot_id, generation)
    try:
        session.open()
        state = session.state()
        if state == (CKS_RW_SO_FUNCTIONS if role == CKU_USER else CKS_RW_USER_FUNCTIONS):
            raise error_of(CKR_USER_ANOTHER_ALREADY_LOGGED_IN, C_SET_PIN, slot_id)
        if role == CKU_SO:
            session.require_login_to_change(CKU_SO, old)
        session.set_pin(old, new)
    except BaseException as error:
        session.close(error)
        raise
    session.close(None)
    return 0


cdef bint ensure_user_pin(
    Client client, CK_SLOT_ID slot_id, uint64_t generation, Pin so_pin, Pin user_pin
) except -1:
    """Give the user this PIN if it is still the SO's (C_Login, C_SetPIN); whether it was. Where a role is
    logged in it cannot be known, and is left as it is.
    """
    cdef CK_RV rv
    cdef bint was_officers = False
    session = RoleSession(client, slot_id, generation)
    try:
        spare_last_try(client, slot_id)
        session.open()
        rv = session.log_in(CKU_USER, user_pin)
        if rv == CKR_PIN_INCORRECT:
            spare_last_try(client, slot_id)
            session.set_pin(so_pin, user_pin)
            was_officers = True
        # One that the user has to change first is right as well.
        elif rv != CKR_OK and not changes_no_login(rv):
            raise error_of(rv, C_LOGIN, slot_id)
    except BaseException as error:
        session.close(error)
        raise
    session.close(None)
    return was_officers


cdef int spare_last_try(Client client, CK_SLOT_ID slot_id) except -1:
    """Raise where one more wrong try would lock the token's user out, or has."""
    cdef CK_TOKEN_INFO info
    read_token_info(client, slot_id, &info)
    if info.flags & (CKF_USER_PIN_FINAL_TRY | CKF_USER_PIN_LOCKED):
        left = "is locked out" if info.flags & CKF_USER_PIN_LOCKED else "has one try left"
        raise PinError(
            f"slot {slot_id}: the token's user {left}, so the PIN was not tried; {LOCKED_OUT}",
            function=name_of(C_LOGIN),
            slot_id=slot_id,
        )
    return 0
