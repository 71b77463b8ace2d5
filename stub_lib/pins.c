/*
 * pins.c: what needs or sets a PIN: C_InitToken, C_InitPIN, C_SetPIN, C_Login, and C_Logout.
 * Labels, PINs and wrong tries are the cluster's, logins are this application's; the backend follows.
 *
 * SPDX-License-Identifier: MIT
 */
#include <string.h>

#include "sessions.h"

/* ---- PINs ---- */

static bool length_in_range(CK_ULONG length)
{
    return length >= STATE_PIN_MIN && length <= STATE_PIN_MAX;
}

static void set_pin(struct token_pin *pin, const CK_UTF8CHAR *value, CK_ULONG length)
{
    memset(pin, 0, sizeof *pin);
    memcpy(pin->value, value, length);
    pin->length = (uint32_t)length;
}

/* Counts a wrong try, and forgets the wrong ones at a right one. */
static CK_RV try_pin(struct token_pin *pin, const CK_UTF8CHAR *value, CK_ULONG length)
{
    if (pin->length == 0)
        return CKR_PIN_INCORRECT;
    if (pin->failures >= STATE_PIN_TRIES)
        return CKR_PIN_LOCKED;
    if (length != pin->length || length > STATE_PIN_MAX || memcmp(value, pin->value, length) != 0) {
        pin->failures++;
        return CKR_PIN_INCORRECT;
    }
    pin->failures = 0;
    return CKR_OK;
}

/* ---- C_InitToken ---- */

static CK_RV change_token(struct token_record *record, uint32_t keyring, const CK_UTF8CHAR *pin,
                          CK_ULONG length, const CK_UTF8CHAR *label)
{
    CK_RV rv = CKR_OK;
    if (record->initialised != 0)
        rv = try_pin(&record->so_pin, pin, length);
    else if (!length_in_range(length))
        rv = CKR_PIN_INCORRECT; /* CKR_PIN_LEN_RANGE is no answer of C_InitToken */
    if (rv == CKR_OK)
        rv = backend_erase(application_file(), keyring);
    if (rv != CKR_OK)
        return rv;
    if (record->initialised == 0)
        set_pin(&record->so_pin, pin, length);
    memcpy(record->label, label, STATE_LABEL_SIZE);
    memset(&record->user_pin, 0, sizeof record->user_pin);
    record->initialised = 1;
    return CKR_OK;
}

static CK_RV init_token(CK_SLOT_ID slot_id, const CK_UTF8CHAR *pin, CK_ULONG length,
                        const CK_UTF8CHAR *label)
{
    if (pin == NULL || label == NULL)
        return CKR_ARGUMENTS_BAD;
    struct state_file *file = application_file();
    struct state_keyring *keyring = state_keyring(file, slot_id);
    if (keyring == NULL)
        return CKR_SLOT_ID_INVALID;
    if (!state_write_begin(file))
        return CKR_DEVICE_ERROR;
    CK_RV rv = CKR_SESSION_EXISTS;
    uint32_t index = state_keyring_index(file, slot_id);
    if (!registry_any_in_session(file, index)) {
        struct token_record record;
        state_read_token(&keyring->token, &record);
        rv = change_token(&record, index, pin, length, label);
        state_write_token(&keyring->token, &record);
    }
    state_write_end(file);
    return rv;
}

CK_RV C_InitToken(CK_SLOT_ID slotID, CK_UTF8CHAR_PTR pPin, CK_ULONG ulPinLen,
                  CK_UTF8CHAR_PTR pLabel)
{
    RETURN_LOCKED_CALL(C_InitToken, slotID, init_token(slotID, pPin, ulPinLen, pLabel));
}

/* ---- C_InitPIN and C_SetPIN ---- */

static CK_RV init_pin(CK_SESSION_HANDLE handle, const CK_UTF8CHAR *pin, CK_ULONG length)
{
    const struct session *session = session_find(handle);
    if (session == NULL)
        return CKR_SESSION_HANDLE_INVALID;
    if (pin == NULL)
        return CKR_ARGUMENTS_BAD;
    if (session_state(session) != CKS_RW_SO_FUNCTIONS)
        return CKR_USER_NOT_LOGGED_IN;
    if (!length_in_range(length))
        return CKR_PIN_LEN_RANGE;
    struct state_file *file = application_file();
    struct state_keyring *keyring = state_keyring(file, session->slot_id);
    if (!state_write_begin(file))
        return CKR_DEVICE_ERROR;
    struct token_record record;
    state_read_token(&keyring->token, &record);
    set_pin(&record.user_pin, pin, length);
    state_write_token(&keyring->token, &record);
    state_write_end(file);
    return CKR_OK;
}

CK_RV C_InitPIN(CK_SESSION_HANDLE hSession, CK_UTF8CHAR_PTR pPin, CK_ULONG ulPinLen)
{
    RETURN_SESSION_CALL(C_InitPIN, hSession, init_pin(hSession, pPin, ulPinLen));
}

static CK_RV change_pin(CK_SESSION_HANDLE handle, const CK_UTF8CHAR *old_pin, CK_ULONG old_length,
                        const CK_UTF8CHAR *new_pin, CK_ULONG new_length)
{
    const struct session *session = session_find(handle);
    if (session == NULL)
        return CKR_SESSION_HANDLE_INVALID;
    if (old_pin == NULL || new_pin == NULL)
        return CKR_ARGUMENTS_BAD;
    if (!session->read_write)
        return CKR_SESSION_READ_ONLY;
    if (!length_in_range(new_length))
        return CKR_PIN_LEN_RANGE;
    struct state_file *file = application_file();
    struct state_keyring *keyring = state_keyring(file, session->slot_id);
    if (!state_write_begin(file))
        return CKR_DEVICE_ERROR;
    struct token_record record;
    state_read_token(&keyring->token, &record);
    /* Without a login it is the user's PIN that is changed. */
    bool officer = session_state(session) == CKS_RW_SO_FUNCTIONS;
    struct token_pin *pin = officer ? &record.so_pin : &record.user_pin;
    CK_RV rv = try_pin(pin, old_pin, old_length);
    if (rv == CKR_OK)
        set_pin(pin, new_pin, new_length);
    state_write_token(&keyring->token, &record);
    state_write_end(file);
    return rv;
}

CK_RV C_SetPIN(CK_SESSION_HANDLE hSession, CK_UTF8CHAR_PTR pOldPin, CK_ULONG ulOldLen,
               CK_UTF8CHAR_PTR pNewPin, CK_ULONG ulNewLen)
{
    RETURN_SESSION_CALL(C_SetPIN, hSession, change_pin(hSession, pOldPin, ulOldLen, pNewPin, ulNewLen));
}

/* ---- C_Login and C_Logout ---- */

static CK_RV check_login(const struct token_use *token, enum login login)
{
    if (token->login == login)
        return CKR_USER_ALREADY_LOGGED_IN;
    if (token->login != LOGIN_NONE)
        return CKR_USER_ANOTHER_ALREADY_LOGGED_IN;
    /* The security officer has no read-only sessions. */
    if (login == LOGIN_SO && token->sessions > token->rw_sessions)
        return CKR_SESSION_READ_ONLY_EXISTS;
    return CKR_OK;
}

static CK_RV login_to(const struct session *session, CK_USER_TYPE user_type, enum login login,
                      const CK_UTF8CHAR *pin, CK_ULONG length)
{
    struct state_file *file = application_file();
    struct state_keyring *keyring = state_keyring(file, session->slot_id);
    if (!state_write_begin(file))
        return CKR_DEVICE_ERROR;
    struct token_record record;
    state_read_token(&keyring->token, &record);
    struct token_pin *wanted = login == LOGIN_SO ? &record.so_pin : &record.user_pin;
    CK_RV rv = CKR_USER_PIN_NOT_INITIALIZED;
    if (login == LOGIN_SO || wanted->length > 0) {
        uint32_t failures = wanted->failures;
        rv = try_pin(wanted, pin, length);
        if (wanted->failures != failures)
            state_write_token(&keyring->token, &record);
    }
    if (rv == CKR_OK)
        rv = backend_login(session->twin, user_type);
    state_write_end(file);
    if (rv == CKR_OK)
        session_token(session->slot_id)->login = login;
    return rv;
}

static CK_RV log_in(CK_SESSION_HANDLE handle, CK_USER_TYPE user_type, const CK_UTF8CHAR *pin,
                    CK_ULONG length)
{
    const struct session *session = session_find(handle);
    if (session == NULL)
        return CKR_SESSION_HANDLE_INVALID;
    if (pin == NULL)
        return CKR_ARGUMENTS_BAD;
    const struct token_use *token = session_token(session->slot_id);
    if (user_type == CKU_CONTEXT_SPECIFIC) {
        /* For a key that wants the PIN at each use, which only a backend has. */
        bool possible = backend_used() && token->login != LOGIN_NONE;
        return possible ? login_to(session, user_type, token->login, pin, length)
                        : CKR_OPERATION_NOT_INITIALIZED;
    }
    if (user_type != CKU_SO && user_type != CKU_USER)
        return CKR_USER_TYPE_INVALID;
    enum login login = user_type == CKU_SO ? LOGIN_SO : LOGIN_USER;
    CK_RV rv = check_login(token, login);
    return rv == CKR_OK ? login_to(session, user_type, login, pin, length) : rv;
}

CK_RV C_Login(CK_SESSION_HANDLE hSession, CK_USER_TYPE userType, CK_UTF8CHAR_PTR pPin,
              CK_ULONG ulPinLen)
{
    RETURN_SESSION_CALL(C_Login, hSession, log_in(hSession, userType, pPin, ulPinLen));
}

static CK_RV log_out(CK_SESSION_HANDLE handle)
{
    const struct session *session = session_find(handle);
    if (session == NULL)
        return CKR_SESSION_HANDLE_INVALID;
    struct token_use *token = session_token(session->slot_id);
    if (token->login == LOGIN_NONE)
        return CKR_USER_NOT_LOGGED_IN;
    token->login = LOGIN_NONE;
    backend_logout(session->twin);
    return CKR_OK;
}

CK_RV C_Logout(CK_SESSION_HANDLE hSession)
{
    RETURN_SESSION_CALL(C_Logout, hSession, log_out(hSession));
}
