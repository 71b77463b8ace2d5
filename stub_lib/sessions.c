/*
 * sessions.c: the session management functions of PKCS #11, but for login, and the sessions.
 *
 * SPDX-License-Identifier: MIT
 */
#include "sessions.h"

#include <stddef.h>
#include <string.h>

/* All words, so packed or not it is the same. The structs of the other functions are checked where
   the extension uses them. */
_Static_assert(offsetof(CK_SESSION_INFO, slotID) == 0, "CK_SESSION_INFO");
_Static_assert(offsetof(CK_SESSION_INFO, state) == sizeof(CK_ULONG), "CK_SESSION_INFO");
_Static_assert(offsetof(CK_SESSION_INFO, flags) == 2 * sizeof(CK_ULONG), "CK_SESSION_INFO");
_Static_assert(offsetof(CK_SESSION_INFO, ulDeviceError) == 3 * sizeof(CK_ULONG), "CK_SESSION_INFO");
_Static_assert(sizeof(CK_SESSION_INFO) == 4 * sizeof(CK_ULONG), "CK_SESSION_INFO");

static platform_mutex sessions_mutex = PLATFORM_MUTEX_INITIALIZER;
static struct session sessions[SESSION_PLACES];
static uint32_t places;     /* so many of them have ever been used */
static uint32_t first_free; /* before this one none is free */
static struct token_use tokens[STATE_MAX_KEYRINGS];
static uint64_t restarts; /* of this application, that the sessions know of */
static CK_ULONG opened; /* makes a closed session's handle differ from its successor's */

void sessions_forget(void)
{
    platform_mutex_reset(&sessions_mutex);
    memset(sessions, 0, places * sizeof sessions[0]);
    places = 0;
    first_free = 0;
    memset(tokens, 0, sizeof tokens);
    restarts = atomic_load(&application.entry->restarts);
}

static void close_session(struct session *session);

void sessions_lock(void)
{
    platform_mutex_lock(&sessions_mutex);
    uint64_t now = atomic_load(&application.entry->restarts);
    if (now == restarts)
        return;
    restarts = now;
    for (uint32_t i = 0; i < places; i++) {
        if (sessions[i].handle != CK_INVALID_HANDLE)
            close_session(&sessions[i]);
    }
}

void sessions_unlock(void)
{
    platform_mutex_unlock(&sessions_mutex);
}

struct session *session_find(CK_SESSION_HANDLE handle)
{
    struct session *session = &sessions[handle % SESSION_PLACES];
    if (handle == CK_INVALID_HANDLE || session->handle != handle)
        return NULL;
    (void)session_token(session->slot_id); /* which may close it */
    return session->handle == handle ? session : NULL;
}

uint64_t session_slot(CK_SESSION_HANDLE handle)
{
    const struct session *session = session_find(handle);
    return session == NULL ? CALL_NO_SLOT : session->slot_id;
}

bool session_twin(CK_SESSION_HANDLE handle, CK_SESSION_HANDLE_PTR twin, struct call *call)
{
    sessions_lock();
    const struct session *session = session_find(handle);
    if (session != NULL) {
        *twin = session->twin;
        call->slot_id = session->slot_id;
    }
    sessions_unlock();
    return session != NULL;
}

static void close_all_of(CK_SLOT_ID slot_id)
{
    for (uint32_t i = 0; i < places; i++) {
        if (sessions[i].handle != CK_INVALID_HANDLE && sessions[i].slot_id == slot_id)
            close_session(&sessions[i]);
    }
}

struct token_use *session_token(CK_SLOT_ID slot_id)
{
    struct state_file *file = application_file();
    struct token_use *token = &tokens[state_keyring_index(file, slot_id)];
    uint64_t now = atomic_load(&state_keyring(file, slot_id)->erasures);
    if (token->erasures != now) {
        token->erasures = now;
        close_all_of(slot_id);
    }
    return token;
}

void sessions_end(CK_SLOT_ID slot_id)
{
    struct state_file *file = application_file();
    atomic_fetch_add(&state_keyring(file, slot_id)->erasures, 1U);
    registry_end_sessions(file, state_keyring_index(file, slot_id));
    (void)session_token(slot_id);
}

CK_STATE session_state(const struct session *session)
{
    switch (session_token(session->slot_id)->login) {
    case LOGIN_SO:
        return CKS_RW_SO_FUNCTIONS;
    case LOGIN_USER:
        return session->read_write ? CKS_RW_USER_FUNCTIONS : CKS_RO_USER_FUNCTIONS;
    default:
        return session->read_write ? CKS_RW_PUBLIC_SESSION : CKS_RO_PUBLIC_SESSION;
    }
}

/* The first session with a token is noted in the cluster's file, because C_InitToken of another
   application fails while there is one; the writer's lock keeps the two apart. */
static bool tell_first_session(CK_SLOT_ID slot_id)
{
    struct state_file *file = application_file();
    if (!state_write_begin(file))
        return false;
    registry_set_in_session(file, state_keyring_index(file, slot_id), true);
    state_write_end(file);
    return true;
}

static void tell_last_session(CK_SLOT_ID slot_id)
{
    struct state_file *file = application_file();
    registry_set_in_session(file, state_keyring_index(file, slot_id), false);
}

/* SESSION_PLACES: all are taken. */
static uint32_t find_place(void)
{
    uint32_t place = first_free;
    while (place < places && sessions[place].handle != CK_INVALID_HANDLE)
        place++;
    return place;
}

static CK_RV open_session(CK_SLOT_ID slot_id, CK_FLAGS flags, CK_SESSION_HANDLE_PTR handle,
                          bool reply_lost)
{
    if (handle == NULL)
        return CKR_ARGUMENTS_BAD;
    if (state_keyring(application_file(), slot_id) == NULL)
        return CKR_SLOT_ID_INVALID;
    if ((flags & CKF_SERIAL_SESSION) == 0)
        return CKR_SESSION_PARALLEL_NOT_SUPPORTED;
    bool read_write = (flags & CKF_RW_SESSION) != 0;
    struct token_use *token = session_token(slot_id);
    if (!read_write && token->login == LOGIN_SO)
        return CKR_SESSION_READ_WRITE_SO_EXISTS;
    uint32_t place = token->sessions < SESSIONS_MAX ? find_place() : SESSION_PLACES;
    if (place == SESSION_PLACES)
        return CKR_SESSION_COUNT;
    if (token->sessions == 0 && !tell_first_session(slot_id))
        return CKR_DEVICE_ERROR;
    CK_SESSION_HANDLE twin = CK_INVALID_HANDLE;
    CK_RV rv = backend_open_session(state_keyring_index(application_file(), slot_id), flags, &twin);
    if (rv != CKR_OK) {
        if (token->sessions == 0)
            tell_last_session(slot_id);
        return rv;
    }
    CK_SESSION_HANDLE next = ++opened * SESSION_PLACES + place;
    if (next == CK_INVALID_HANDLE)
        next = ++opened * SESSION_PLACES + place;
    sessions[place] = (struct session){.handle = next, .twin = twin, .slot_id = slot_id,
                                       .read_write = read_write};
    first_free = place + 1U;
    if (places < first_free)
        places = first_free;
    token->sessions++;
    if (read_write)
        token->rw_sessions++;
    if (!reply_lost)
        *handle = next;
    return CKR_OK;
}

CK_RV C_OpenSession(CK_SLOT_ID slotID, CK_FLAGS flags, CK_VOID_PTR pApplication, CK_NOTIFY Notify,
                    CK_SESSION_HANDLE_PTR phSession)
{
    (void)pApplication; /* there is nothing to notify of */
    (void)Notify;
    RETURN_LOCKED_CALL(C_OpenSession, slotID,
                       open_session(slotID, flags, phSession, call.reply_lost));
}

/* The last session of a token takes the login with it. */
static void close_session(struct session *session)
{
    struct token_use *token = session_token(session->slot_id);
    backend_close_session(session->twin);
    token->sessions--;
    if (session->read_write)
        token->rw_sessions--;
    if (token->sessions == 0) {
        token->login = LOGIN_NONE;
        tell_last_session(session->slot_id);
    }
    session->handle = CK_INVALID_HANDLE;
    uint32_t place = (uint32_t)(session - sessions);
    if (place < first_free)
        first_free = place;
}

static CK_RV close_one(CK_SESSION_HANDLE handle)
{
    struct session *session = session_find(handle);
    if (session == NULL)
        return CKR_SESSION_HANDLE_INVALID;
    close_session(session);
    return CKR_OK;
}

CK_RV C_CloseSession(CK_SESSION_HANDLE hSession)
{
    RETURN_SESSION_CALL(C_CloseSession, hSession, close_one(hSession));
}

static CK_RV close_all(CK_SLOT_ID slot_id)
{
    if (state_keyring(application_file(), slot_id) == NULL)
        return CKR_SLOT_ID_INVALID;
    close_all_of(slot_id);
    return CKR_OK;
}

CK_RV C_CloseAllSessions(CK_SLOT_ID slotID)
{
    RETURN_LOCKED_CALL(C_CloseAllSessions, slotID, close_all(slotID));
}

static CK_RV get_session_info(CK_SESSION_HANDLE handle, CK_SESSION_INFO_PTR info)
{
    const struct session *session = session_find(handle);
    if (session == NULL)
        return CKR_SESSION_HANDLE_INVALID;
    if (info == NULL)
        return CKR_ARGUMENTS_BAD;
    memset(info, 0, sizeof *info);
    info->slotID = session->slot_id;
    info->state = session_state(session);
    info->flags = CKF_SERIAL_SESSION | (session->read_write ? CKF_RW_SESSION : 0);
    return CKR_OK;
}

CK_RV C_GetSessionInfo(CK_SESSION_HANDLE hSession, CK_SESSION_INFO_PTR pInfo)
{
    RETURN_SESSION_CALL(C_GetSessionInfo, hSession, get_session_info(hSession, pInfo));
}
