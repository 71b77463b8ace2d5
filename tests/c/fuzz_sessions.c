/*
 * fuzz_sessions.c: calls of the functions that PINs, sessions and logins have to do with, and what
 * the model says to them.
 *
 * SPDX-License-Identifier: MIT
 */
#include "fuzz.h"

#include <string.h>

/* ---- PINs ---- */

static bool comes_right(struct pin given)
{
    return model.authentication == AUTHENTICATION_PED ? given.value == NULL && given.length == 0
                                                      : given.value != NULL;
}

static bool matches(const struct model_pin *pin, struct pin given)
{
    return given.value == NULL ||
           (given.length > 0 && given.length == pin->length &&
            memcmp(given.value, pin->value, given.length) == 0);
}

static CK_RV normal_try(struct model_token *token, bool officer, struct pin given)
{
    struct model_pin *pin = officer ? &token->so_pin : &token->user_pin;
    if (!pin->set)
        return CKR_PIN_INCORRECT;
    if (pin->failures >= STATE_PIN_TRIES)
        return CKR_PIN_LOCKED;
    if (!matches(pin, given)) {
        if (officer || (pin->length <= 16 && given.length > 6))
            pin->failures++;
        return CKR_PIN_INCORRECT;
    }
    pin->failures = 0;
    return CKR_OK;
}

static bool in_range(struct pin pin)
{
    return pin.value == NULL ||
           (pin.length >= model.shortest_pin && pin.length <= model.longest_pin);
}

static void assign_pin(struct model_pin *pin, struct pin given)
{
    memset(pin, 0, sizeof *pin);
    if (given.value != NULL)
        memcpy(pin->value, given.value, given.length);
    pin->length = given.length;
    pin->set = true;
}

/* The other role has the same PIN, and keeps the rest. */
static void follow(struct model_pin *other, struct pin given)
{
    struct model_pin before = *other;
    if (model.identity == IDENTITY_DUAL)
        return;
    assign_pin(other, given);
    other->failures = before.failures;
    other->by_so = before.by_so;
}

static void assign_so_pin(struct model_token *token, struct pin given)
{
    assign_pin(&token->so_pin, given);
    follow(&token->user_pin, given);
}

static void assign_user_pin(struct model_token *token, struct pin given, bool by_so)
{
    assign_pin(&token->user_pin, given);
    token->user_pin.by_so = by_so;
    follow(&token->so_pin, given);
}

static void erase(struct model_token *token)
{
    unsigned int index = (unsigned int)(token - model.tokens);
    for (unsigned int i = 0; i < MODEL_SESSIONS; i++) {
        if (model.sessions[i].open && model.sessions[i].token == index)
            model.sessions[i].open = false;
    }
    memset(token->in_session, 0, sizeof token->in_session);
    memset(&token->so_pin, 0, sizeof token->so_pin);
    memset(&token->user_pin, 0, sizeof token->user_pin);
    memcpy(token->label, token->original, STATE_LABEL_SIZE);
    token->initialised = false;
    token->login = LOGIN_NONE;
}

static CK_RV erase_if_exhausted(struct model_token *token, CK_RV rv)
{
    if (token->so_pin.failures < STATE_PIN_TRIES)
        return rv;
    erase(token);
    return CKR_PIN_LOCKED;
}

static bool any_in_session(const struct model_token *token)
{
    unsigned int index = (unsigned int)(token - model.tokens);
    return model_sessions_of(index, false) > 0 ||
           (model_alive(OTHER) && token->in_session[OTHER]) ||
           (model_alive(PARENT) && token->in_session[PARENT]);
}

static CK_RV normal_init_token(CK_SLOT_ID slot, struct pin pin, const CK_UTF8CHAR *label)
{
    struct model_token *token = model_token(slot);
    if (!comes_right(pin) || label == NULL)
        return CKR_ARGUMENTS_BAD;
    if (token == NULL)
        return CKR_SLOT_ID_INVALID;
    if (any_in_session(token))
        return CKR_SESSION_EXISTS;
    if (token->initialised) {
        CK_RV rv = erase_if_exhausted(token, normal_try(token, true, pin));
        if (rv != CKR_OK)
            return rv;
    } else if (!in_range(pin)) {
        return CKR_PIN_INCORRECT;
    }
    memset(&token->user_pin, 0, sizeof token->user_pin);
    if (!token->initialised)
        assign_so_pin(token, pin);
    else if (model.identity == IDENTITY_SINGLE)
        token->user_pin = token->so_pin;
    memcpy(token->label, label, STATE_LABEL_SIZE);
    token->initialised = true;
    return CKR_OK;
}

void call_init_token(void)
{
    struct fuzz_call call = call_starts(FUNCTION_C_InitToken);
    CK_SLOT_ID slot = some_slot();
    struct pin pin = some_pin();
    CK_UTF8CHAR *label = some_label();
    CK_RV rv = C_InitToken(slot, pin.value, pin.length, label);
    bool enters = model.valid && call.gate.enters;
    call_ended(&call, rv, enters ? normal_init_token(slot, pin, label) : CKR_OK);
}

static CK_RV normal_init_pin(const struct model_session *session, struct pin pin)
{
    if (session == NULL)
        return CKR_SESSION_HANDLE_INVALID;
    if (!comes_right(pin))
        return CKR_ARGUMENTS_BAD;
    struct model_token *token = &model.tokens[session->token];
    if (token->login != LOGIN_SO)
        return CKR_USER_NOT_LOGGED_IN;
    if (!in_range(pin))
        return CKR_PIN_LEN_RANGE;
    assign_user_pin(token, pin, true);
    return CKR_OK;
}

void call_init_pin(void)
{
    struct fuzz_call call = call_starts(FUNCTION_C_InitPIN);
    CK_SESSION_HANDLE handle = some_session();
    struct pin pin = some_pin();
    CK_RV rv = C_InitPIN(handle, pin.value, pin.length);
    bool enters = model.valid && call.gate.enters;
    call_ended(&call, rv, enters ? normal_init_pin(model_session(handle), pin) : CKR_OK);
}

static CK_RV normal_set_pin(const struct model_session *session, struct pin old, struct pin new)
{
    if (session == NULL)
        return CKR_SESSION_HANDLE_INVALID;
    if (!comes_right(old) || !comes_right(new))
        return CKR_ARGUMENTS_BAD;
    if (!session->read_write)
        return CKR_SESSION_READ_ONLY;
    if (!in_range(new))
        return CKR_PIN_LEN_RANGE;
    struct model_token *token = &model.tokens[session->token];
    bool officer = token->login == LOGIN_SO;
    CK_RV rv = normal_try(token, officer, old);
    if (rv == CKR_OK && officer)
        assign_so_pin(token, new);
    else if (rv == CKR_OK)
        assign_user_pin(token, new, false);
    return erase_if_exhausted(token, rv);
}

void call_set_pin(void)
{
    struct fuzz_call call = call_starts(FUNCTION_C_SetPIN);
    CK_SESSION_HANDLE handle = some_session();
    struct pin old = some_pin();
    struct pin new = some_pin();
    CK_RV rv = C_SetPIN(handle, old.value, old.length, new.value, new.length);
    bool enters = model.valid && call.gate.enters;
    call_ended(&call, rv, enters ? normal_set_pin(model_session(handle), old, new) : CKR_OK);
}

static CK_RV normal_login(const struct model_session *session, CK_USER_TYPE user_type,
                          struct pin pin)
{
    if (session == NULL)
        return CKR_SESSION_HANDLE_INVALID;
    if (!comes_right(pin))
        return CKR_ARGUMENTS_BAD;
    struct model_token *token = &model.tokens[session->token];
    if (user_type == CKU_LIMITED_USER || user_type == CKU_LIMITED_USER_OLD)
        return token->login == LOGIN_NONE ? CKR_USER_PIN_NOT_INITIALIZED
                                          : CKR_USER_ANOTHER_ALREADY_LOGGED_IN;
    if (user_type > CKU_USER)
        return user_type == CKU_CONTEXT_SPECIFIC ? CKR_OPERATION_NOT_INITIALIZED
                                                 : CKR_USER_TYPE_INVALID;
    enum login login = user_type == CKU_SO ? LOGIN_SO : LOGIN_USER;
    if (token->login != LOGIN_NONE)
        return token->login == login ? CKR_USER_ALREADY_LOGGED_IN
                                     : CKR_USER_ANOTHER_ALREADY_LOGGED_IN;
    if (login == LOGIN_SO &&
        model_sessions_of(session->token, false) > model_sessions_of(session->token, true))
        return CKR_SESSION_READ_ONLY_EXISTS;
    if (login == LOGIN_USER && !token->user_pin.set)
        return CKR_USER_PIN_NOT_INITIALIZED;
    CK_RV rv = normal_try(token, login == LOGIN_SO, pin);
    if (rv == CKR_OK && login == LOGIN_USER && token->user_pin.by_so &&
        model.pin_change == PIN_CHANGE_FORCED)
        return CKR_PIN_EXPIRED;
    if (rv == CKR_OK)
        token->login = login;
    return erase_if_exhausted(token, rv);
}

void call_login(void)
{
    struct fuzz_call call = call_starts(FUNCTION_C_Login);
    CK_SESSION_HANDLE handle = some_session();
    static const CK_USER_TYPE user_types[] = {CKU_SO, CKU_USER, CKU_SO, CKU_USER,
                                              CKU_CONTEXT_SPECIFIC, 3, CKU_LIMITED_USER,
                                              CKU_LIMITED_USER_OLD};
    CK_USER_TYPE user_type = user_types[input_below(8)];
    struct pin pin = some_pin();
    CK_RV rv = C_Login(handle, user_type, pin.value, pin.length);
    bool enters = model.valid && call.gate.enters;
    call_ended(&call, rv, enters ? normal_login(model_session(handle), user_type, pin) : CKR_OK);
}

static CK_RV normal_change_label(const struct model_session *session, CK_SLOT_ID slot,
                                 const CK_UTF8CHAR *label, CK_ULONG length)
{
    if (model.change_label == CHANGE_LABEL_OFF)
        return CKR_FUNCTION_NOT_SUPPORTED;
    if (session == NULL)
        return CKR_SESSION_HANDLE_INVALID;
    if (label == NULL || length < 1 || length > STATE_LABEL_SIZE)
        return CKR_ARGUMENTS_BAD;
    struct model_token *token = &model.tokens[session->token];
    if (slot != model.first_slot + session->token)
        return CKR_SLOT_ID_INVALID;
    if (token->login != LOGIN_SO)
        return CKR_USER_NOT_LOGGED_IN;
    memset(token->label, ' ', STATE_LABEL_SIZE);
    memcpy(token->label, label, length);
    return CKR_OK;
}

void call_change_label(void)
{
    struct fuzz_call call = call_starts(FUNCTION_CA_ChangeLabel);
    CK_SESSION_HANDLE handle = some_session();
    CK_SLOT_ID slot = some_slot();
    CK_UTF8CHAR *label = some_label();
    CK_ULONG length = input_below(4) == 0 ? input_below(64) : STATE_LABEL_SIZE;
    CK_RV rv = CA_ChangeLabel(handle, slot, label, length);
    bool enters = model.valid && call.gate.enters;
    call_ended(&call, rv,
               enters ? normal_change_label(model_session(handle), slot, label, length) : CKR_OK);
}

void call_logout(void)
{
    struct fuzz_call call = call_starts(FUNCTION_C_Logout);
    CK_SESSION_HANDLE handle = some_session();
    CK_RV rv = C_Logout(handle);
    CK_RV normal = CKR_SESSION_HANDLE_INVALID;
    const struct model_session *session = model_session(handle);
    if (session != NULL) {
        enum login *login = &model.tokens[session->token].login;
        normal = *login == LOGIN_NONE ? CKR_USER_NOT_LOGGED_IN : CKR_OK;
        if (call.gate.enters)
            *login = LOGIN_NONE;
    }
    call_ended(&call, rv, normal);
}

/* ---- sessions ---- */

static struct model_session *free_session(void)
{
    for (unsigned int i = 0; i < MODEL_SESSIONS; i++) {
        if (!model.sessions[i].open)
            return &model.sessions[i];
    }
    return NULL;
}

static CK_RV normal_open(CK_SLOT_ID slot, CK_FLAGS flags, const CK_SESSION_HANDLE *handle,
                         const struct fuzz_call *call)
{
    const struct model_token *token = model_token(slot);
    bool read_write = (flags & CKF_RW_SESSION) != 0;
    if (handle == NULL)
        return CKR_ARGUMENTS_BAD;
    if (token == NULL)
        return CKR_SLOT_ID_INVALID;
    if ((flags & CKF_SERIAL_SESSION) == 0)
        return CKR_SESSION_PARALLEL_NOT_SUPPORTED;
    if (!read_write && token->login == LOGIN_SO)
        return CKR_SESSION_READ_WRITE_SO_EXISTS;
    if (!call->gate.enters)
        return CKR_OK;
    *free_session() = (struct model_session){
        .open = true,
        .handle = call->gate.lost ? CK_INVALID_HANDLE : *handle,
        .token = (unsigned int)(slot - model.first_slot),
        .read_write = read_write,
    };
    return CKR_OK;
}

void call_open_session(void)
{
    if (free_session() == NULL)
        return;
    struct fuzz_call call = call_starts(FUNCTION_C_OpenSession);
    CK_SLOT_ID slot = some_slot();
    CK_FLAGS flags = input_below(8) < 6 ? CKF_SERIAL_SESSION | CKF_RW_SESSION : input_below(8);
    CK_SESSION_HANDLE *handle = some_memory(sizeof *handle);
    CK_RV rv = C_OpenSession(slot, flags, NULL, NULL, handle);
    CK_RV normal = CKR_OK;
    if (model.valid)
        normal = normal_open(slot, flags, handle, &call);
    else if (rv == CKR_OK && handle != NULL)
        *free_session() = (struct model_session){.open = true, .handle = *handle};
    call_ended(&call, rv, normal);
}

static void close_one(struct model_session *session)
{
    session->open = false;
    if (model_sessions_of(session->token, false) == 0)
        model.tokens[session->token].login = LOGIN_NONE;
}

void call_close_session(void)
{
    struct fuzz_call call = call_starts(FUNCTION_C_CloseSession);
    CK_SESSION_HANDLE handle = some_session();
    CK_RV rv = C_CloseSession(handle);
    struct model_session *session = model_session(handle);
    if (session != NULL && (call.gate.enters || !model.valid))
        close_one(session);
    call_ended(&call, rv, session == NULL ? CKR_SESSION_HANDLE_INVALID : CKR_OK);
}

void call_close_all_sessions(void)
{
    struct fuzz_call call = call_starts(FUNCTION_C_CloseAllSessions);
    CK_SLOT_ID slot = some_slot();
    CK_RV rv = C_CloseAllSessions(slot);
    const struct model_token *token = model_token(slot);
    for (unsigned int i = 0; i < MODEL_SESSIONS && token != NULL && call.gate.enters; i++) {
        struct model_session *session = &model.sessions[i];
        if (session->open && session->token == (unsigned int)(token - model.tokens))
            close_one(session);
    }
    call_ended(&call, rv, token == NULL ? CKR_SLOT_ID_INVALID : CKR_OK);
}

static void check_session_info(const CK_SESSION_INFO *info, const struct model_session *session)
{
    enum login login = model.tokens[session->token].login;
    CK_STATE state = login == LOGIN_SO     ? CKS_RW_SO_FUNCTIONS
                     : login == LOGIN_USER ? CKS_RO_USER_FUNCTIONS
                                           : CKS_RO_PUBLIC_SESSION;
    if (login != LOGIN_SO && session->read_write)
        state += CKS_RW_PUBLIC_SESSION - CKS_RO_PUBLIC_SESSION;
    if (info->slotID != model.first_slot + session->token || info->state != state)
        disagree("the session's state", info->state, state);
}

void call_get_session_info(void)
{
    struct fuzz_call call = call_starts(FUNCTION_C_GetSessionInfo);
    CK_SESSION_HANDLE handle = some_session();
    CK_SESSION_INFO *info = some_memory(sizeof *info);
    CK_RV rv = C_GetSessionInfo(handle, info);
    const struct model_session *session = model_session(handle);
    CK_RV normal = info == NULL ? CKR_ARGUMENTS_BAD : CKR_OK;
    if (session == NULL)
        normal = CKR_SESSION_HANDLE_INVALID;
    if (model.valid && call.gate.enters && normal == CKR_OK)
        check_session_info(info, session);
    call_ended(&call, rv, normal);
}

void call_find(void)
{
    CK_SESSION_HANDLE handle = some_session();
    struct model_session *session = model_session(handle);
    unsigned int choice = input_below(3);
    CK_RV normal = CKR_OK;
    if (session == NULL)
        normal = CKR_SESSION_HANDLE_INVALID;
    else if (choice == 0 && session->searching)
        normal = CKR_OPERATION_ACTIVE;
    else if (choice != 0 && !session->searching)
        normal = CKR_OPERATION_NOT_INITIALIZED;
    if (choice == 0) {
        struct fuzz_call call = call_starts(FUNCTION_C_FindObjectsInit);
        CK_ATTRIBUTE *attributes = some_memory(sizeof *attributes);
        CK_RV rv = C_FindObjectsInit(handle, attributes, 1);
        if (session != NULL && attributes == NULL)
            normal = CKR_ARGUMENTS_BAD;
        if (call.gate.enters && normal == CKR_OK)
            session->searching = true;
        call_ended(&call, rv, normal);
    } else if (choice == 1) {
        struct fuzz_call call = call_starts(FUNCTION_C_FindObjects);
        struct room room = some_room();
        CK_RV rv = C_FindObjects(handle, room.words, room.given, room.count);
        if (session != NULL && (room.words == NULL || room.count == NULL))
            normal = CKR_ARGUMENTS_BAD;
        call_ended(&call, rv, normal);
    } else {
        struct fuzz_call call = call_starts(FUNCTION_C_FindObjectsFinal);
        CK_RV rv = C_FindObjectsFinal(handle);
        if (call.gate.enters && normal == CKR_OK)
            session->searching = false;
        call_ended(&call, rv, normal);
    }
}

void call_random(void)
{
    CK_SESSION_HANDLE handle = some_session();
    size_t size = input_below(64);
    CK_BYTE *bytes = some_memory(size);
    bool seeds = input_below(2) == 0;
    struct fuzz_call call =
        call_starts(seeds ? FUNCTION_C_SeedRandom : FUNCTION_C_GenerateRandom);
    CK_RV rv = seeds ? C_SeedRandom(handle, bytes, size) : C_GenerateRandom(handle, bytes, size);
    CK_RV normal = seeds ? CKR_RANDOM_SEED_NOT_SUPPORTED : CKR_OK;
    if (model_session(handle) == NULL)
        normal = CKR_SESSION_HANDLE_INVALID;
    else if (bytes == NULL)
        normal = CKR_ARGUMENTS_BAD;
    call_ended(&call, rv, normal);
}
