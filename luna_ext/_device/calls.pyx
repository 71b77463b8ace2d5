# The device calls, one function for each: made without the GIL; the answers become Python objects.

cdef enum:
    # CA_GetSlotId is called with room for so many matches; only if there are more, it is called again.
    FEW = 16
    # A cluster has at most 3500 keyrings.
    MOST_SLOTS = 1 << 20
    # How often a list is asked for that does not fit into the room that the client wants for it.
    MOST_READINGS = 8

# Lists are filled with this byte before a call. No client gives a slot the ID that it makes.
cdef int UNWRITTEN = 0xA5
cdef CK_SLOT_ID NO_SLOT
memset(&NO_SLOT, UNWRITTEN, sizeof(NO_SLOT))

# ---- the frame of every device call ----

# What makes a C function's call out of its arguments.
ctypedef CK_RV (*Making)(Client client, void *arguments) noexcept nogil


cdef inline bint make_call(
    Client client, int function, Making make, void *arguments, bint cleanup, CK_RV *rv,
    uint64_t *nanoseconds, uint8_t *back, uint64_t *clock
) noexcept:
    """Make a device call without the GIL; whether it was made. Cannot raise. `nanoseconds`: how long it
    took; 0: it was fast, and not timed. `back`, if there is one, is marked when the answer is there, which
    the thread may hear of much later, when it has the GIL. `clock`, if there is one, has
    luna_coarse_nanoseconds() as the call begins, or 0, and afterwards as it has ended: so a caller needs no
    look at the clock of its own.
    """
    cdef Call call
    if not enter_call(client, function, cleanup, &call):
        return False
    complete_call(client, make, arguments, rv, nanoseconds, back, clock, &call)
    return True


cdef inline void complete_call(
    Client client, Making make, void *arguments, CK_RV *rv, uint64_t *nanoseconds, uint8_t *back,
    uint64_t *clock, Call *call
) noexcept:
    """The rest of make_call(), for a call that has begun."""
    call.began = clock[0] if clock != NULL and clock[0] != 0 else luna_coarse_nanoseconds()
    call.timed = luna_is_sample(call.counter, call.began)
    with nogil:
        luna_calls_device()
        call_device(client, make, arguments, back, call)
        luna_comes_back()
    luna_is_back()
    rv[0] = call.rv
    leave_call(client, call)
    nanoseconds[0] = call.nanoseconds
    if clock != NULL:
        clock[0] = call.ended


cdef inline bint enter_call(Client client, int function, bint cleanup, Call *call) noexcept nogil:
    """Whether a call may begin; then leave_call() is due."""
    if not (cleanup_begins(client) if cleanup else call_begins(client)):
        return False
    call.traffic = &client.traffic[luna_shard()]
    call.counter = &call.traffic.counters[function]
    return True


cdef inline bint enter_call_in(
    Client client, uint64_t generation, int function, bint cleanup, Call *call
) noexcept nogil:
    """The same for a call of this generation of C_Initialize, of which the last 32 bits count."""
    if not enter_call(client, function, cleanup, call):
        return False
    # In this order: once the call is counted, no reconnect() comes in between.
    if <uint32_t> luna_shared_get64(&client.generation) == <uint32_t> generation:
        return True
    call_ends_in(client, call.traffic)
    return False


cdef inline void call_device(
    Client client, Making make, void *arguments, uint8_t *back, Call *call
) noexcept nogil:
    """Without the GIL."""
    cdef uint64_t began = luna_nanoseconds() if call.timed else 0
    call.rv = make(client, arguments)
    if back != NULL:
        luna_mark(back)
    if call.timed:
        call.nanoseconds = luna_nanoseconds() - began
    call.ended = luna_coarse_nanoseconds()


cdef inline void leave_call(Client client, Call *call) noexcept nogil:
    """With the GIL again: count the call and its answer."""
    if not call.timed and call.ended - call.began > LUNA_SURELY_SLOW:
        # Of fast calls, one that was not.
        call.timed = True
        call.nanoseconds = call.ended - call.began
    if call.timed:
        luna_note_sample(call.counter, call.began, call.nanoseconds)
        luna_count_length(&call.counter.lengths, call.nanoseconds)
    else:
        call.nanoseconds = 0
        luna_count_untimed(call.counter)
    luna_count_answer(call.counter, call.rv)
    if call.rv != CKR_OK and says_lost(call.rv):
        luna_shared_set(&client.suspect, 1)
    call_ends_in(client, call.traffic)


cdef CK_RV answer_of(
    Client client, int function, Making make, void *arguments
) except? 0xFFFFFFFF:
    """Make a call and return the device's answer; raises if the library is closed, or lacks the function.
    """
    cdef CK_RV rv = CKR_OK
    cdef uint64_t nanoseconds
    client.need(function, client.path)
    while not make_call(client, function, make, arguments, False, &rv, &nanoseconds, NULL, NULL):
        client.make_ready()
    return rv


cdef int require(
    Client client, int function, Making make, void *arguments, object slot_id
) except -1:
    """Make a call that has to answer CKR_OK."""
    cdef CK_RV rv = answer_of(client, function, make, arguments)
    if rv != CKR_OK:
        raise error_of(rv, function, slot_id)
    return 0


cdef bint undo(
    Client client, uint64_t generation, int function, Making make, void *arguments, CK_RV *rv
) noexcept:
    """Make a call that undoes what was done in this generation; whether it was made."""
    cdef uint64_t nanoseconds
    while not make_call(client, function, make, arguments, True, rv, &nanoseconds, NULL, NULL):
        if not is_held_back(client, generation):
            return False
    return True


cdef bint is_held_back(Client client, uint64_t generation) noexcept:
    """After a call that was not to begin, and is to undo what was done in this generation: whether it is to
    be tried again. It waits while another thread calls C_Finalize: if that fails, there is still something
    to undo.
    """
    if (
        <uint32_t> luna_shared_get64(&client.generation) != <uint32_t> generation
        or luna_shared_get(&client.state) != RECONNECTING
        or left_of_exit() == 0
    ):
        return False
    with nogil:
        luna_pause(0.001)
    return True


# ---- lock, unlock, claim ----


cdef inline CK_RV make_lock(Client client, void *arguments) noexcept nogil:
    return client.lock_clustered_slot((<CK_SLOT_ID *> arguments)[0])


cdef inline CK_RV make_unlock(Client client, void *arguments) noexcept nogil:
    return client.unlock_clustered_slot((<CK_SLOT_ID *> arguments)[0])


cdef bint lock_slot(
    Client client, CK_SLOT_ID slot_id, uint64_t generation, CK_RV *rv, uint64_t *nanoseconds,
    uint8_t *back, uint64_t *clock
) noexcept:
    """CA_LockClusteredSlot; also how long it took, so that no caller has to ask the clock."""
    cdef Call call
    if not enter_call_in(client, generation, CA_LOCK_CLUSTERED_SLOT, False, &call):
        return False
    complete_call(client, make_lock, &slot_id, rv, nanoseconds, back, clock, &call)
    return True


cdef bint unlock_slot(
    Client client, CK_SLOT_ID slot_id, uint64_t generation, CK_RV *rv, uint64_t *clock
) noexcept:
    """CA_UnlockClusteredSlot, for what was granted in this generation. If that ends while the call is due,
    it is not made, and `rv` is CKR_SESSION_HANDLE_INVALID.
    """
    cdef Call call
    cdef uint64_t nanoseconds
    while not enter_call_in(client, generation, CA_UNLOCK_CLUSTERED_SLOT, True, &call):
        if <uint32_t> luna_shared_get64(&client.generation) != <uint32_t> generation:
            return False
        # By the time that the holder is told, the library may be initialised anew.
        rv[0] = CKR_SESSION_HANDLE_INVALID
        if not is_held_back(client, generation):
            return False
    complete_call(client, make_unlock, &slot_id, rv, &nanoseconds, NULL, clock, &call)
    return True


# The same by a thread that has the GIL neither before the call nor after it: another one, with the GIL,
# begins the call and ends it.


cdef bint begin_slot_call(
    Client client, int function, CK_SLOT_ID slot_id, uint64_t generation, uint8_t *back, SlotCall *made
) noexcept nogil:
    """Begin a lock or unlock call; whether it may be made. Then make_slot_call() and end_slot_call() are
    due, or drop_slot_call().
    """
    cdef bint is_lock = function == CA_LOCK_CLUSTERED_SLOT
    if not enter_call_in(client, generation, function, not is_lock, &made.call):
        return False
    made.client = <void *> client
    made.make = <void *> (make_lock if is_lock else make_unlock)
    made.slot_id = slot_id
    made.back = back
    return True


cdef void make_slot_call(SlotCall *made) noexcept nogil:
    made.call.began = luna_coarse_nanoseconds()
    # To ask whether it is the one in many that is timed, the GIL would be needed.
    made.call.timed = True
    call_device(<Client> made.client, <Making> made.make, &made.slot_id, made.back, &made.call)


cdef void end_slot_call(SlotCall *made) noexcept nogil:
    leave_call(<Client> made.client, &made.call)


cdef void drop_slot_call(SlotCall *made) noexcept nogil:
    """It was not made after all."""
    call_ends_in(<Client> made.client, made.call.traffic)


cdef struct ClaimArguments:
    const CK_CHAR *cluster_id
    CK_UNASSIGNED_SLOT_INFO *info
    uint64_t made_in


cdef CK_RV make_claim(Client client, void *arguments) noexcept nogil:
    cdef ClaimArguments *claim = <ClaimArguments *> arguments
    # Once the call is counted, no reconnect() comes in between.
    claim.made_in = luna_shared_get64(&client.generation)
    return client.get_unassigned_slot(claim.cluster_id, claim.info)


cdef bint next_unassigned(
    Client client, const CK_CHAR *cluster_id, CK_UNASSIGNED_SLOT_INFO *info, CK_RV *rv, uint64_t *made_in
) noexcept:
    """CA_GetUnassignedSlot: fills in the slot ID, whose lock is set now, and its label. `made_in`: the
    generation in which the call went out.
    """
    cdef uint64_t nanoseconds
    cdef ClaimArguments arguments
    arguments.cluster_id = cluster_id
    arguments.info = info
    memset(info, 0, sizeof(CK_UNASSIGNED_SLOT_INFO))
    info.slotID = NO_SLOT
    arguments.made_in = 0
    if not make_call(
        client, CA_GET_UNASSIGNED_SLOT, make_claim, &arguments, False, rv, &nanoseconds, NULL, NULL
    ):
        return False
    made_in[0] = arguments.made_in
    return True


cdef bint names_a_slot(CK_UNASSIGNED_SLOT_INFO *info) noexcept nogil:
    """After CKR_OK: whether the client has written which slot it gives."""
    return info.slotID != NO_SLOT


# ---- the canary ----

cdef enum:
    # A module whose first session has a number as small as this may count anew from 1 when it is
    # initialised again. Then the canary is a later session, which another user has not at once.
    COUNTED_HANDLES = 64
    LEAST_SESSIONS = 4
    MOST_SESSIONS = 12
    # How many slots are asked whether the device still knows this application.
    SLOTS_TO_ASK = 3
    # How often the canary is asked for before an error is believed that need not speak of it.
    QUESTIONS = 2


cdef struct SessionArguments:
    uint64_t generation     # in which the session was opened: later its handle may be another session's
    CK_SLOT_ID slot_id
    CK_SESSION_HANDLE session
    CK_SESSION_INFO info


# As read-only session it would keep the security officer from logging in.
cdef CK_FLAGS SESSION_FLAGS = CKF_SERIAL_SESSION | CKF_RW_SESSION


cdef CK_RV make_open_session(Client client, void *arguments) noexcept nogil:
    cdef SessionArguments *open = <SessionArguments *> arguments
    return client.functions.C_OpenSession(open.slot_id, SESSION_FLAGS, NULL, NULL, &open.session)


cdef CK_RV make_close_session(Client client, void *arguments) noexcept nogil:
    cdef SessionArguments *about = <SessionArguments *> arguments
    if luna_shared_get64(&client.generation) != about.generation:
        return CKR_OK
    return client.functions.C_CloseSession(about.session)


cdef CK_RV make_get_session_info(Client client, void *arguments) noexcept nogil:
    cdef SessionArguments *about = <SessionArguments *> arguments
    return client.functions.C_GetSessionInfo(about.session, &about.info)


cdef CK_RV open_canary(Client client, CK_SLOT_ID slot_id) noexcept:
    """Open the canary on this slot, unless one was asked for in this generation. Returns why there is
    none; CKR_OK also where that is not known yet, or another thread opens it.
    """
    cdef Canary opened
    cdef CK_RV rv
    cdef bint due
    luna_guard_lock(&client.guard)
    opened.generation = luna_shared_get64(&client.generation)
    due = luna_shared_get64(&client.canary.sought_in) != opened.generation
    luna_shared_set64(&client.canary.sought_in, opened.generation)
    luna_guard_unlock(&client.guard)
    if not due:
        return CKR_OK
    rv = open_session_to_watch(client, slot_id, &opened)
    luna_guard_lock(&client.guard)
    if rv == CKR_OK and luna_shared_get64(&client.generation) == opened.generation:
        set_canary(client, &opened)
    elif says_nothing_of_sessions(rv):
        # The next lock call, perhaps of another slot, tries it again.
        luna_shared_set64(&client.canary.sought_in, 0)
        rv = CKR_OK
    luna_guard_unlock(&client.guard)
    return rv


cdef inline void set_canary(Client client, Canary *opened) noexcept nogil:
    client.canary.session = opened.session
    client.canary.slot_id = opened.slot_id
    client.canary.generation = opened.generation


cdef CK_RV open_session_to_watch(Client client, CK_SLOT_ID slot_id, Canary *opened) noexcept:
    """Open a session on this slot that tells of itself, for a canary."""
    cdef SessionArguments arguments
    cdef CK_SESSION_HANDLE[MOST_SESSIONS] sessions
    cdef uint64_t nanoseconds
    cdef int count = 0
    cdef int wanted, index
    cdef CK_RV rv = CKR_OK
    cdef bint made = True
    if client.lacks(C_OPEN_SESSION) >= 0 or client.lacks(C_GET_SESSION_INFO) >= 0:
        return CKR_FUNCTION_NOT_SUPPORTED
    wanted = LEAST_SESSIONS + <int> (luna_nanoseconds() // 64 % (MOST_SESSIONS - LEAST_SESSIONS + 1))
    arguments.slot_id = slot_id
    while count < wanted:
        arguments.session = 0
        made = make_call(
            client, C_OPEN_SESSION, make_open_session, &arguments, False, &rv, &nanoseconds, NULL, NULL
        )
        if not made or rv != CKR_OK:
            break
        sessions[count] = arguments.session
        count += 1
        if arguments.session > COUNTED_HANDLES:
            break
    if count > 0:
        # A client that cannot tell of its session now would be taken for one that has lost it.
        opened.session = sessions[count - 1]
        opened.slot_id = slot_id
        made = tells_of_session(client, opened.session, slot_id, &rv)
        if made and rv == CKR_OK:
            count -= 1
    for index in range(count):
        close_session(client, sessions[index], opened.generation)
    return rv if made else CKR_CRYPTOKI_NOT_INITIALIZED


cdef int close_session(Client client, CK_SESSION_HANDLE session, uint64_t generation) noexcept:
    cdef SessionArguments arguments
    cdef CK_RV rv = CKR_OK
    arguments.generation = generation
    arguments.session = session
    undo(client, generation, C_CLOSE_SESSION, make_close_session, &arguments, &rv)
    return 0


cdef bint tells_of_session(
    Client client, CK_SESSION_HANDLE session, CK_SLOT_ID slot_id, CK_RV *rv
) noexcept:
    """Ask for a session of ours (C_GetSessionInfo). False: no call may be made. CKR_FUNCTION_FAILED: what
    the client tells is not true of it.
    """
    cdef SessionArguments arguments
    cdef uint64_t nanoseconds
    memset(&arguments, 0, sizeof(arguments))
    arguments.session = session
    if not make_call(
        client, C_GET_SESSION_INFO, make_get_session_info, &arguments, True, rv, &nanoseconds, NULL, NULL
    ):
        return False
    rv[0] = compared(rv[0], &arguments.info, slot_id)
    return True


cdef inline CK_RV compared(CK_RV rv, CK_SESSION_INFO *info, CK_SLOT_ID slot_id) noexcept nogil:
    """The answer to C_GetSessionInfo; CKR_FUNCTION_FAILED: what it tells is not true of our session."""
    if rv == CKR_OK and (info.slotID != slot_id or info.flags != SESSION_FLAGS):
        return CKR_FUNCTION_FAILED
    return rv


cdef Life life_by(CK_RV rv) noexcept nogil:
    """What this answer to C_GetSessionInfo shows of the session."""
    if rv == CKR_OK:
        return ALIVE
    # A device that does not answer at all says nothing of the session.
    if says_busy(rv) or (says_lost(rv) and rv != CKR_CRYPTOKI_NOT_INITIALIZED):
        return NO_CANARY
    return GONE


cdef bint speaks_of_session(CK_RV rv) noexcept nogil:
    """Whether it surely means that there is no such session. Any other error may be a passing one."""
    return rv == CKR_SESSION_HANDLE_INVALID or rv == CKR_CRYPTOKI_NOT_INITIALIZED


cdef bint says_nothing_of_sessions(CK_RV rv) noexcept nogil:
    """Whether the answer says more of the slot, or of the moment, than of sessions."""
    return is_no_token(rv) or says_busy(rv) or says_lost(rv)


cdef bint is_no_token(CK_RV rv) noexcept nogil:
    """Whether the client knows no such slot, or no token in it."""
    return (
        rv == CKR_SLOT_ID_INVALID or rv == CKR_TOKEN_NOT_PRESENT or rv == CKR_TOKEN_NOT_RECOGNIZED
    )


cdef Life ask_canary(Client client) noexcept:
    """Whether the library has been finalised since the canary was opened (C_GetSessionInfo). If so, a new
    generation begins here, in which nothing is held.
    """
    cdef Canary canary
    cdef uint64_t nanoseconds
    cdef InfoArguments about
    cdef CK_TOKEN_INFO info
    cdef CK_RV rv = CKR_OK
    cdef Life life
    luna_guard_lock(&client.guard)
    canary = client.canary
    luna_guard_unlock(&client.guard)
    if canary.generation == 0 or canary.generation != luna_shared_get64(&client.generation):
        return NO_CANARY
    for _ in range(QUESTIONS):
        if not tells_of_session(client, canary.session, canary.slot_id, &rv):
            return NO_CANARY
        life = life_by(rv)
        if life != GONE:
            return life
        if speaks_of_session(rv):
            break
    about.slot_id = canary.slot_id
    about.info = &info
    if make_call(
        client, C_GET_TOKEN_INFO, make_get_token_info, &about, True, &rv, &nanoseconds, NULL, NULL
    ) and is_no_token(rv):
        # It went with its token. The next lock call opens another.
        luna_guard_lock(&client.guard)
        if client.canary.session == canary.session:
            client.canary.generation = 0
            luna_shared_set64(&client.canary.sought_in, 0)
        luna_guard_unlock(&client.guard)
        return NO_CANARY
    life = NO_CANARY
    luna_guard_lock(&client.guard)
    if luna_shared_get64(&client.generation) != canary.generation:
        # Another thread has found that out meanwhile.
        life = GONE
    # Unless it was closed by close_canary() meanwhile.
    elif client.canary.generation == canary.generation and client.canary.session == canary.session:
        life = GONE
        client.canary.generation = 0
        luna_shared_add64(&client.generation, 1)
        # Another user of the process has initialised the library, and finalises it.
        client.initialised_here = False
    luna_guard_unlock(&client.guard)
    return life


cdef bint shows_loss(CK_FUNCTION_LIST *functions, Canary *canary) noexcept nogil:
    """The same at the interpreter's exit, for a thread that Python does not know: nothing is counted, and
    no generation begins. Whether the library has been finalised.
    """
    cdef CK_SESSION_INFO info
    cdef CK_TOKEN_INFO token
    cdef CK_RV rv
    for _ in range(QUESTIONS):
        memset(&info, 0, sizeof(info))
        rv = compared(functions.C_GetSessionInfo(canary.session, &info), &info, canary.slot_id)
        if life_by(rv) != GONE:
            return False
        if speaks_of_session(rv):
            break
    return not is_no_token(functions.C_GetTokenInfo(canary.slot_id, &token))


cdef bint canary_is_on(Client client, CK_SLOT_ID slot_id) noexcept nogil:
    """Whether the canary is there, and on this slot."""
    cdef bint here
    luna_guard_lock(&client.guard)
    here = is_canary_on(client, slot_id)
    luna_guard_unlock(&client.guard)
    return here


cdef inline bint is_canary_on(Client client, CK_SLOT_ID slot_id) noexcept nogil:
    return (
        # The handle of an earlier generation's may be that of another program's session by now.
        client.canary.generation != 0
        and client.canary.generation == luna_shared_get64(&client.generation)
        and client.canary.slot_id == slot_id
    )


cdef Life move_canary(Client client, CK_SLOT_ID slot_id, CK_SLOT_ID other) noexcept:
    """Have the canary on the other slot if it is on this one. What it shows: the one that was there until
    now is asked when the new one is open, so that no moment goes by unwatched.
    """
    cdef Canary opened, left
    cdef Life life
    cdef bint moved
    luna_guard_lock(&client.guard)
    left = client.canary
    moved = is_canary_on(client, slot_id)
    luna_guard_unlock(&client.guard)
    opened.generation = left.generation
    if not moved or open_session_to_watch(client, other, &opened) != CKR_OK:
        return NO_CANARY
    life = ask_canary(client)
    luna_guard_lock(&client.guard)
    moved = (
        life == ALIVE
        and is_canary_on(client, slot_id)
        and client.canary.session == left.session
    )
    if moved:
        set_canary(client, &opened)
    luna_guard_unlock(&client.guard)
    close_session(client, left.session if moved else opened.session, left.generation)
    return life


cdef bint close_canary(Client client, CK_SLOT_ID slot_id) noexcept:
    """Close the canary if it is on this slot: no token with a session can be initialised. Whether it was;
    then none is opened before want_canary().
    """
    cdef Canary left
    cdef bint here
    luna_guard_lock(&client.guard)
    here = is_canary_on(client, slot_id)
    left = client.canary
    if here:
        client.canary.generation = 0
    luna_guard_unlock(&client.guard)
    if here:
        close_session(client, left.session, left.generation)
    return here


cdef void want_canary(Client client) noexcept nogil:
    """The next lock call opens one."""
    luna_guard_lock(&client.guard)
    luna_shared_set64(&client.canary.sought_in, 0)
    luna_guard_unlock(&client.guard)


cdef bint is_lost(Client client) noexcept:
    """Ask a device that may have forgotten this application: does it answer as if it had? Also when no new
    call may begin.
    """
    cdef CK_SLOT_ID[SLOTS_TO_ASK] slots
    cdef CK_TOKEN_INFO info
    cdef InfoArguments about
    cdef uint64_t nanoseconds
    cdef CK_RV rv = CKR_OK
    cdef int count, index
    luna_shared_set(&client.suspect, 0)
    count = some_slots(client, slots, &rv)
    if says_lost(rv) and rv != CKR_CRYPTOKI_NOT_INITIALIZED:
        # One passing error is no loss: to initialise anew would drop all locks.
        count = some_slots(client, slots, &rv)
    if says_lost(rv):
        return True
    # If it is gone, other code has initialised the library anew, and it works.
    if ask_canary(client) != NO_CANARY:
        return False
    # One slot alone may be out of order, and the connection is not.
    about.info = &info
    for index in range(count):
        about.slot_id = slots[index]
        if not make_call(
            client, C_GET_TOKEN_INFO, make_get_token_info, &about, True, &rv, &nanoseconds, NULL, NULL
        ) or not says_lost(rv):
            return False
    return count > 0


cdef int some_slots(Client client, CK_SLOT_ID *slots, CK_RV *rv) noexcept:
    """Slots with a token, from all over the list; how many."""
    cdef ListArguments arguments
    cdef uint64_t nanoseconds
    cdef CK_ULONG room, wanted, count, index
    arguments.token_present = CK_TRUE
    arguments.slots = NULL
    arguments.count = 0
    if not make_call(
        client, C_GET_SLOT_LIST, make_get_slot_list, &arguments, True, rv, &nanoseconds, NULL, NULL
    ) or rv[0] != CKR_OK or arguments.count == 0 or arguments.count > MOST_SLOTS:
        return 0
    room = arguments.count
    arguments.slots = <CK_SLOT_ID *> malloc(room * sizeof(CK_SLOT_ID))
    if arguments.slots == NULL:
        return 0
    memset(arguments.slots, UNWRITTEN, room * sizeof(CK_SLOT_ID))
    count = 0
    if make_call(
        client, C_GET_SLOT_LIST, make_get_slot_list, &arguments, True, rv, &nanoseconds, NULL, NULL
    ) and rv[0] == CKR_OK:
        room = min(arguments.count, room)
        wanted = min(room, <CK_ULONG> SLOTS_TO_ASK)
        for index in range(wanted):
            slots[count] = arguments.slots[0 if wanted == 1 else index * (room - 1) // (wanted - 1)]
            if slots[count] != NO_SLOT:
                count += 1
    free(arguments.slots)
    return <int> count


# ---- information from the client and the device ----


cdef CK_RV make_get_info(Client client, void *arguments) noexcept nogil:
    return client.functions.C_GetInfo(<CK_INFO *> arguments)


# What stub_lib/text.h calls the stand-in's manufacturer.
cdef bytes STUB_MANUFACTURER = b"luna_ext stand-in, not an HSM"

# luna_ext.info is imported where it is used: its import takes longer than all imports that a lock needs.


cdef object library_info(Client client):
    from .info import LibraryInfo

    cdef CK_INFO info
    memset(&info, 0, sizeof(info))
    require(client, C_GET_INFO, make_get_info, &info, None)
    return LibraryInfo(
        cryptoki_version=_version(info.cryptokiVersion),
        manufacturer=decode_text(info.manufacturerID[:32]),
        description=decode_text(info.libraryDescription[:32]),
        version=_version(info.libraryVersion),
    )


cdef bint wraps_stand_in(Client client) except -1:
    """Whether the stand-in is behind this library, by the manufacturer's name (C_GetInfo): a wrapper, such
    as pkcs11-spy, exports none of the stand-in's own functions. Asked once; sets `is_stub`.
    """
    cdef CK_INFO info
    cdef CK_RV rv = CKR_OK
    cdef uint64_t nanoseconds
    if client.stub_sought or client.is_stub or not client.exports(C_GET_INFO):
        return False
    memset(&info, 0, sizeof(info))
    if not make_call(
        client, C_GET_INFO, make_get_info, &info, False, &rv, &nanoseconds, NULL, NULL
    ) or rv != CKR_OK:
        return False
    client.stub_sought = True
    client.is_stub = info.manufacturerID[:32].startswith(STUB_MANUFACTURER)
    return client.is_stub


cdef struct ListArguments:
    CK_BBOOL token_present
    CK_UTF8CHAR *label
    CK_SLOT_ID *slots
    CK_ULONG count


cdef CK_RV make_get_slot_list(Client client, void *arguments) noexcept nogil:
    cdef ListArguments *list = <ListArguments *> arguments
    return client.functions.C_GetSlotList(list.token_present, list.slots, &list.count)


cdef list slot_ids(Client client, bint token_present):
    """C_GetSlotList: a call for their number, and one for them."""
    cdef ListArguments arguments
    arguments.token_present = token_present
    return list_of(
        client,
        C_GET_SLOT_LIST,
        make_get_slot_list,
        &arguments,
        number_of(client, C_GET_SLOT_LIST, make_get_slot_list, &arguments),
    )


cdef CK_RV make_get_slot_id(Client client, void *arguments) noexcept nogil:
    cdef ListArguments *list = <ListArguments *> arguments
    return client.get_slot_id(list.label, list.slots, &list.count)


cdef list slots_with_label(Client client, bytes label):
    """CA_GetSlotId: one call for few matches."""
    cdef ListArguments arguments
    arguments.label = label
    return list_of(client, CA_GET_SLOT_ID, make_get_slot_id, &arguments, FEW)


cdef list list_of(
    Client client, int function, Making make, ListArguments *arguments, CK_ULONG room
):
    """The slot IDs of a list, for which there is so much room at first; again, with more room, when there
    are more.
    """
    cdef CK_ULONG wanted = room
    cdef CK_RV rv
    grows = True
    for _ in range(MOST_READINGS):
        room = wanted
        # One more, so that an empty list has an address as well.
        arguments.slots = new_list(room + 1)
        try:
            arguments.count = room
            rv = answer_of(client, function, make, arguments)
            if rv == CKR_OK:
                return listed(arguments, room, function)
        finally:
            free(arguments.slots)
        if rv != CKR_BUFFER_TOO_SMALL:
            raise error_of(rv, function, None)
        wanted = believable(arguments.count, function, rv)
        if wanted <= room:
            wanted = number_of(client, function, make, arguments)
        if wanted <= room:
            grows = False
            wanted = 2 * room + 1
    name = NAMES[function]
    raise BufferTooSmallError(
        f"{name}: the list of slots kept growing: {MOST_READINGS} times there were more than the client "
        f"had reported, {wanted} at last. Try again; a client that goes on so is none to rely on"
        if grows
        else f"{name}: {rv_name(rv)} (0x{rv:X}), though there was room for {room} slots, which is more "
        "than the client has reported. It is no client to rely on",
        rv=rv,
        function=name,
    )


cdef CK_ULONG number_of(
    Client client, int function, Making make, ListArguments *arguments
) except? 0xFFFFFFFF:
    """How many slots a list has, by a call that asks for nothing else."""
    cdef CK_RV rv
    arguments.slots = NULL
    arguments.count = 0
    rv = answer_of(client, function, make, arguments)
    if rv != CKR_OK and rv != CKR_BUFFER_TOO_SMALL:
        raise error_of(rv, function, None)
    return believable(arguments.count, function, rv)


cdef CK_SLOT_ID *new_list(CK_ULONG room) except NULL:
    """Room for slot IDs, each of which is no slot's until the client has written it."""
    cdef CK_SLOT_ID *slots = <CK_SLOT_ID *> malloc(room * sizeof(CK_SLOT_ID))
    if slots == NULL:
        raise MemoryError()
    memset(slots, UNWRITTEN, room * sizeof(CK_SLOT_ID))
    return slots


cdef list listed(ListArguments *arguments, CK_ULONG room, int function):
    """The slot IDs in the client's order, each once. Raises if the client has not written all of the
    slot IDs that it reports.
    """
    cdef CK_ULONG count = min(arguments.count, room)
    slots = [arguments.slots[index] for index in range(count)]
    if arguments.count > room or NO_SLOT in slots:
        raise CryptokiError(
            f"{NAMES[function]}: CKR_OK, but the client has not written the {arguments.count} slot "
            f"IDs that it reports; there was room for {room}. It is no client to rely on",
            rv=CKR_OK,
            function=NAMES[function],
        )
    return list(dict.fromkeys(slots))


cdef CK_ULONG believable(CK_ULONG count, int function, CK_RV rv) except? 0xFFFFFFFF:
    """The number of slots, checked before memory is reserved for them: a client may report any
    number.
    """
    if count > MOST_SLOTS:
        raise (BufferTooSmallError if rv == CKR_BUFFER_TOO_SMALL else CryptokiError)(
            f"{NAMES[function]}: {rv_name(rv)}, and the client reports {count} slots, more than "
            f"{MOST_SLOTS}. It is no client to rely on",
            rv=rv,
            function=NAMES[function],
        )
    return count


cdef struct InfoArguments:
    CK_SLOT_ID slot_id
    void *info


cdef CK_RV make_get_slot_info(Client client, void *arguments) noexcept nogil:
    cdef InfoArguments *about = <InfoArguments *> arguments
    return client.functions.C_GetSlotInfo(about.slot_id, <CK_SLOT_INFO *> about.info)


cdef object slot_info(Client client, CK_SLOT_ID slot_id):
    from .info import SlotFlag, SlotInfo

    cdef CK_SLOT_INFO info
    cdef InfoArguments arguments = InfoArguments(slot_id, &info)
    memset(&info, 0, sizeof(info))
    require(client, C_GET_SLOT_INFO, make_get_slot_info, &arguments, slot_id)
    return SlotInfo(
        description=decode_text(info.slotDescription[:64]),
        manufacturer=decode_text(info.manufacturerID[:32]),
        flags=SlotFlag(info.flags),
        hardware_version=_version(info.hardwareVersion),
        firmware_version=_version(info.firmwareVersion),
    )


cdef CK_RV make_get_token_info(Client client, void *arguments) noexcept nogil:
    cdef InfoArguments *about = <InfoArguments *> arguments
    return client.functions.C_GetTokenInfo(about.slot_id, <CK_TOKEN_INFO *> about.info)


cdef int read_token_info(Client client, CK_SLOT_ID slot_id, CK_TOKEN_INFO *info) except -1:
    cdef InfoArguments arguments = InfoArguments(slot_id, info)
    memset(info, 0, sizeof(CK_TOKEN_INFO))
    return require(client, C_GET_TOKEN_INFO, make_get_token_info, &arguments, slot_id)


# luna_ext.info, once it is imported.
cdef object info_module = None


cdef object records():
    """luna_ext.info. To import it anew each time would take as long as all else that a record takes."""
    global info_module
    if info_module is None:
        from . import info as module

        info_module = module
    return info_module


cdef object token_info_of(CK_TOKEN_INFO *info):
    of = records()
    return of.TokenInfo(
        label=decode_label(info.label[:32]),
        manufacturer=decode_text(info.manufacturerID[:32]),
        model=decode_text(info.model[:16]),
        serial_number=decode_text(info.serialNumber[:16]),
        flags=of.TokenFlag(info.flags),
        max_session_count=_told(info.ulMaxSessionCount),
        session_count=_told(info.ulSessionCount),
        max_rw_session_count=_told(info.ulMaxRwSessionCount),
        rw_session_count=_told(info.ulRwSessionCount),
        max_pin_length=info.ulMaxPinLen,
        min_pin_length=info.ulMinPinLen,
        total_public_memory=_told(info.ulTotalPublicMemory),
        free_public_memory=_told(info.ulFreePublicMemory),
        total_private_memory=_told(info.ulTotalPrivateMemory),
        free_private_memory=_told(info.ulFreePrivateMemory),
        hardware_version=_version(info.hardwareVersion),
        firmware_version=_version(info.firmwareVersion),
        utc_time=decode_text(info.utcTime[:16]),
    )


cdef bytes token_label(Client client, CK_SLOT_ID slot_id):
    """The token's label as the device has it now, blank padded."""
    cdef CK_TOKEN_INFO info
    read_token_info(client, slot_id, &info)
    return blank_padded(info.label)


cdef bytes blank_padded(CK_UTF8CHAR *label):
    """A label's 32 bytes in the one form in which labels are compared: a device, or the tool that wrote it,
    may have ended or padded it with NUL.
    """
    return label[:32].split(b"\0", 1)[0].ljust(32)


cdef object _version(CK_VERSION version):
    return records().Version(version.major, version.minor)


cdef object _told(CK_ULONG value):
    return None if value == CK_UNAVAILABLE_INFORMATION else value
