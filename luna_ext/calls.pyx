"""The device calls, one function each: made without the GIL, answered in Python's terms."""

from libc.stdint cimport uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from luna_ext.client cimport Client, begin_call, begin_cleanup, call_returned, end_call
from luna_ext.cryptoki cimport (
    CK_BBOOL,
    CK_CHAR,
    CK_INFO,
    CK_RV,
    CK_SESSION_HANDLE,
    CK_SLOT_ID,
    CK_SLOT_INFO,
    CK_TOKEN_INFO,
    CK_ULONG,
    CK_UNASSIGNED_SLOT_INFO,
    CK_UNAVAILABLE_INFORMATION,
    CK_UTF8CHAR,
    CK_VERSION,
    CKF_RW_SESSION,
    CKF_SERIAL_SESSION,
    CKR_BUFFER_TOO_SMALL,
    CKR_OK,
    CKU_SO,
)
from luna_ext.functions cimport (
    C_CLOSE_SESSION,
    C_GET_INFO,
    C_GET_SLOT_INFO,
    C_GET_SLOT_LIST,
    C_GET_TOKEN_INFO,
    C_INIT_PIN,
    C_INIT_TOKEN,
    C_LOGIN,
    C_LOGOUT,
    C_OPEN_SESSION,
    CA_GET_SLOT_ID,
    CA_GET_UNASSIGNED_SLOT,
    CA_LOCK_CLUSTERED_SLOT,
    CA_UNLOCK_CLUSTERED_SLOT,
    error_of,
)
from luna_ext.gil_turn cimport luna_calls_device, luna_comes_back, luna_is_back
from luna_ext.pin cimport Pin
from luna_ext.ticks cimport luna_ticks

from .info import LibraryInfo, SlotFlag, SlotInfo, TokenFlag, TokenInfo, Version
from .labels import decode_label, decode_text

cdef enum:
    # So many matches of a label fit without asking for their number first.
    FEW = 16
    # A cluster has at most 3500 keyrings.
    MOST_SLOTS = 1 << 20


cdef CK_RV lock_slot(
    Client client, CK_SLOT_ID slot_id, uint64_t *nanoseconds
) except? 0xFFFFFFFF:
    """CA_LockClusteredSlot; also how long it took, so that nobody else has to ask the clock."""
    cdef uint64_t began
    cdef CK_RV rv
    begin_call(client)
    with nogil:
        luna_calls_device()
        began = luna_ticks(client.tick)
        rv = client.lock_clustered_slot(slot_id)
        nanoseconds[0] = call_returned(client, CA_LOCK_CLUSTERED_SLOT, began, rv)
        luna_comes_back()
    luna_is_back()
    end_call(client)
    return rv


cdef CK_RV unlock_slot(Client client, CK_SLOT_ID slot_id) except? 0xFFFFFFFF:
    cdef uint64_t began
    cdef CK_RV rv
    begin_cleanup(client)
    with nogil:
        luna_calls_device()
        began = luna_ticks(client.tick)
        rv = client.unlock_clustered_slot(slot_id)
        call_returned(client, CA_UNLOCK_CLUSTERED_SLOT, began, rv)
        luna_comes_back()
    luna_is_back()
    end_call(client)
    return rv


cdef object library_info(Client client):
    cdef CK_INFO info
    cdef uint64_t began
    cdef CK_RV rv
    memset(&info, 0, sizeof(info))
    begin_call(client)
    with nogil:
        began = luna_ticks(client.tick)
        rv = client.functions.C_GetInfo(&info)
        call_returned(client, C_GET_INFO, began, rv)
    end_call(client)
    if rv != CKR_OK:
        raise error_of(rv, C_GET_INFO, None)
    return LibraryInfo(
        cryptoki_version=_version(info.cryptokiVersion),
        manufacturer=decode_text(info.manufacturerID[:32]),
        description=decode_text(info.libraryDescription[:32]),
        version=_version(info.libraryVersion),
    )


cdef list slot_ids(Client client, bint token_present):
    """C_GetSlotList; asks again when slots came between the count and the list."""
    cdef CK_BBOOL present = token_present
    cdef CK_ULONG count = 0, room
    cdef CK_SLOT_ID *slots = NULL
    cdef uint64_t began
    cdef CK_RV rv
    begin_call(client)
    with nogil:
        began = luna_ticks(client.tick)
        rv = client.functions.C_GetSlotList(present, NULL, &count)
        call_returned(client, C_GET_SLOT_LIST, began, rv)
    end_call(client)
    while rv == CKR_OK or rv == CKR_BUFFER_TOO_SMALL:
        room = believable(count, C_GET_SLOT_LIST, rv)
        slots = <CK_SLOT_ID *> malloc((room + 1) * sizeof(CK_SLOT_ID))
        if slots == NULL:
            raise MemoryError()
        try:
            begin_call(client)
            with nogil:
                began = luna_ticks(client.tick)
                rv = client.functions.C_GetSlotList(present, slots, &count)
                call_returned(client, C_GET_SLOT_LIST, began, rv)
            end_call(client)
            if rv == CKR_OK:
                return [slots[index] for index in range(min(count, room))]
            # A client that says "too small" without a larger count must not keep us here.
            if rv == CKR_BUFFER_TOO_SMALL and count <= room:
                count = 2 * room + 1
        finally:
            free(slots)
    raise error_of(rv, C_GET_SLOT_LIST, None)


cdef object slot_info(Client client, CK_SLOT_ID slot_id):
    cdef CK_SLOT_INFO info
    cdef uint64_t began
    cdef CK_RV rv
    memset(&info, 0, sizeof(info))
    begin_call(client)
    with nogil:
        began = luna_ticks(client.tick)
        rv = client.functions.C_GetSlotInfo(slot_id, &info)
        call_returned(client, C_GET_SLOT_INFO, began, rv)
    end_call(client)
    if rv != CKR_OK:
        raise error_of(rv, C_GET_SLOT_INFO, slot_id)
    return SlotInfo(
        description=decode_text(info.slotDescription[:64]),
        manufacturer=decode_text(info.manufacturerID[:32]),
        flags=SlotFlag(info.flags),
        hardware_version=_version(info.hardwareVersion),
        firmware_version=_version(info.firmwareVersion),
    )


cdef int _get_token_info(Client client, CK_SLOT_ID slot_id, CK_TOKEN_INFO *info) except -1:
    cdef uint64_t began
    cdef CK_RV rv
    memset(info, 0, sizeof(CK_TOKEN_INFO))
    begin_call(client)
    with nogil:
        began = luna_ticks(client.tick)
        rv = client.functions.C_GetTokenInfo(slot_id, info)
        call_returned(client, C_GET_TOKEN_INFO, began, rv)
    end_call(client)
    if rv != CKR_OK:
        raise error_of(rv, C_GET_TOKEN_INFO, slot_id)
    return 0


cdef tuple labelled_token_info(Client client, CK_SLOT_ID slot_id):
    """C_GetTokenInfo: the 32 bytes of the label, which a str may not show all of; a TokenInfo."""
    cdef CK_TOKEN_INFO info
    _get_token_info(client, slot_id, &info)
    return info.label[:32], TokenInfo(
        label=decode_label(info.label[:32]),
        manufacturer=decode_text(info.manufacturerID[:32]),
        model=decode_text(info.model[:16]),
        serial_number=decode_text(info.serialNumber[:16]),
        flags=TokenFlag(info.flags),
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
    """The 32 bytes of the token's label, as the device has them now."""
    cdef CK_TOKEN_INFO info
    _get_token_info(client, slot_id, &info)
    return info.label[:32]


cdef list slots_with_label(Client client, bytes label):
    """CA_GetSlotId: one call for few matches; again, with more room, when there are more."""
    cdef CK_SLOT_ID[FEW] few
    cdef CK_SLOT_ID *slots = few
    cdef CK_ULONG room = FEW, count
    cdef CK_UTF8CHAR *c_label = label
    cdef uint64_t began
    cdef CK_RV rv
    try:
        while True:
            count = room
            begin_call(client)
            with nogil:
                began = luna_ticks(client.tick)
                rv = client.get_slot_id(c_label, slots, &count)
                call_returned(client, CA_GET_SLOT_ID, began, rv)
            end_call(client)
            if rv == CKR_OK:
                return [slots[index] for index in range(min(count, room))]
            if rv != CKR_BUFFER_TOO_SMALL or count <= room:
                raise error_of(rv, CA_GET_SLOT_ID, None)
            room = believable(count, CA_GET_SLOT_ID, rv)
            if slots != few:
                free(slots)
            slots = <CK_SLOT_ID *> malloc(room * sizeof(CK_SLOT_ID))
            if slots == NULL:
                raise MemoryError()
    finally:
        if slots != few:
            free(slots)


cdef CK_RV next_unassigned(
    Client client, bytes cluster_id, CK_UNASSIGNED_SLOT_INFO *info
) except? 0xFFFFFFFF:
    """CA_GetUnassignedSlot: fills in the slot ID, whose lock is set now, and its label."""
    cdef CK_CHAR *c_cluster_id = cluster_id
    cdef uint64_t began
    cdef CK_RV rv
    memset(info, 0, sizeof(CK_UNASSIGNED_SLOT_INFO))
    begin_call(client)
    with nogil:
        began = luna_ticks(client.tick)
        rv = client.get_unassigned_slot(c_cluster_id, info)
        call_returned(client, CA_GET_UNASSIGNED_SLOT, began, rv)
    end_call(client)
    return rv


cdef int init_token(Client client, CK_SLOT_ID slot_id, Pin so_pin, bytes label) except -1:
    """C_InitToken: erases the token and gives it the label."""
    cdef CK_UTF8CHAR *c_label = label
    cdef uint64_t began
    cdef CK_RV rv
    begin_call(client)
    with nogil:
        began = luna_ticks(client.tick)
        rv = client.functions.C_InitToken(slot_id, so_pin.bytes, so_pin.length, c_label)
        call_returned(client, C_INIT_TOKEN, began, rv)
    end_call(client)
    if rv != CKR_OK:
        raise error_of(rv, C_INIT_TOKEN, slot_id)
    return 0


cdef int init_user_pin(Client client, CK_SLOT_ID slot_id, Pin so_pin, Pin user_pin) except -1:
    """C_OpenSession, C_Login as SO, C_InitPIN; logged out and closed whatever happens."""
    cdef CK_SESSION_HANDLE session
    cdef uint64_t began
    cdef CK_RV rv
    begin_call(client)
    with nogil:
        began = luna_ticks(client.tick)
        rv = client.functions.C_OpenSession(
            slot_id, CKF_SERIAL_SESSION | CKF_RW_SESSION, NULL, NULL, &session
        )
        call_returned(client, C_OPEN_SESSION, began, rv)
    end_call(client)
    if rv != CKR_OK:
        raise error_of(rv, C_OPEN_SESSION, slot_id)
    try:
        begin_call(client)
        with nogil:
            began = luna_ticks(client.tick)
            rv = client.functions.C_Login(session, CKU_SO, so_pin.bytes, so_pin.length)
            call_returned(client, C_LOGIN, began, rv)
        end_call(client)
        if rv != CKR_OK:
            raise error_of(rv, C_LOGIN, slot_id)
        try:
            begin_call(client)
            with nogil:
                began = luna_ticks(client.tick)
                rv = client.functions.C_InitPIN(session, user_pin.bytes, user_pin.length)
                call_returned(client, C_INIT_PIN, began, rv)
            end_call(client)
            if rv != CKR_OK:
                raise error_of(rv, C_INIT_PIN, slot_id)
        finally:
            begin_cleanup(client)
            with nogil:
                began = luna_ticks(client.tick)
                rv = client.functions.C_Logout(session)
                call_returned(client, C_LOGOUT, began, rv)
            end_call(client)
    finally:
        begin_cleanup(client)
        with nogil:
            began = luna_ticks(client.tick)
            rv = client.functions.C_CloseSession(session)
            call_returned(client, C_CLOSE_SESSION, began, rv)
        end_call(client)
    return 0


cdef CK_ULONG believable(CK_ULONG count, int function, CK_RV rv) except? 0xFFFFFFFF:
    """A number of slots, unless the client must be lying: memory is reserved for it."""
    if count > MOST_SLOTS:
        error = error_of(rv, function, None)
        error.add_note(f"luna_ext: it reported {count} slots, more than {MOST_SLOTS}")
        raise error
    return count


cdef object _version(CK_VERSION version):
    return Version(version.major, version.minor)


cdef object _told(CK_ULONG value):
    return None if value == CK_UNAVAILABLE_INFORMATION else value
