/*
 * pins.c: what needs or sets a PIN: C_InitToken, C_InitPIN, C_SetPIN, C_Login, and C_Logout.
 * Labels, PINs and wrong tries are the cluster's, logins are this application's; the backend follows.
 *
 * SPDX-License-Identifier: MIT
 */
#include <string.h>

#include "sessions.h"

/* ---- PINs ---- */

/* As the caller gives it. Without a value, the operator of a PED has presented a key. */
struct given_pin {
    const CK_UTF8CHAR *value;
    CK_ULONG length;
};

/* A user's password of more bytes never locks, and tries of so few bytes are no tries. */
#define LOCKING_PASSWORD_MAX 16U
#define UNCOUNTED_TRY_MAX 6U

static struct state_switches *switches(void)
{
    return &application_file()->state->switches;
}

/* Whether PINs come the way that they have to: through the call, or at the PED. */
static bool comes_right(struct given_pin given)
{
    if (atomic_load(&switches()->authentication) == AUTHENTICATION_PED)
        return given.value == NULL && given.length == 0;
    return given.value != NULL;
}

static bool length_in_range(struct given_pin given)
{
    uint32_t least;
    uint32_t most;
    state_pin_lengths(application_file()->state, &least, &most);
    return given.value == NULL || (given.length >= least && given.length <= most);
}

static bool matches(const struct token_pin *pin, struct given_pin given)
{
    return given.value == NULL ||
           (given.length > 0 && given.length == pin->length && given.length <= STATE_PIN_MAX &&
            memcmp(given.value, pin->value, given.length) == 0);
}

static bool counts(const struct token_pin *pin, struct given_pin given, bool officer)
{
    return officer ||
           (pin->length <= LOCKING_PASSWORD_MAX && given.length > UNCOUNTED_TRY_MAX);
}

/* Counts a wrong try, and forgets the wrong ones at a right one. */
static CK_RV try_pin(struct token_record *record, bool officer, struct given_pin given)
{
    struct token_pin *pin = officer ? &record->so_pin : &record->user_pin;
    if (pin->set == 0)
        return CKR_PIN_INCORRECT;
    if (pin->failures >= STATE_PIN_TRIES)
        return CKR_PIN_LOCKED;
    if (matches(pin, given)) {
        pin->failures = 0;
        return CKR_OK;
    }
    if (counts(pin, given, officer))
        pin->failures++;
    return CKR_PIN_INCORRECT;
}

/* The other role keeps its count of wrong tries, and whether it has to change its PIN. */
static void follow(struct token_pin *other, struct given_pin given)
{
    const struct token_pin before = *other;
    if (atomic_load(&switches()->identity) == IDENTITY_DUAL)
        return;
    state_set_pin(other, given.value, given.length);
    other->failures = before.failures;
    other->by_so = before.by_so;
}

static void set_so_pin(struct token_record *record, struct given_pin given)
{
    state_set_pin(&record->so_pin, given.value, given.length);
    follow(&record->user_pin, given);
}

static void set_user_pin(struct token_record *record, struct given_pin given, bool by_so)
{
    state_set_pin(&record->user_pin, given.value, given.length);
    record->user_pin.by_so = by_so;
    follow(&record->so_pin, given);
}

/* Too many wrong tries of the security officer erase the keyring: its objects and PINs are gone, its
   sessions too, and it has its first label again. */
static CK_RV erase_if_exhausted(struct token_record *record, CK_SLOT_ID slot_id, CK_RV rv)
{
    if (record->so_pin.failures < STATE_PIN_TRIES)
        return rv;
    struct state_file *file = application_file();
    sessions_end(slot_id);
    CK_RV erased = backend_erase(file, state_keyring_index(file, slot_id));
    memset(record, 0, sizeof *record);
    memcpy(record->label, state_keyring(file, slot_id)->original_label, STATE_LABEL_SIZE);
    return erased == CKR_OK ? CKR_PIN_LOCKED : erased;
}

/* ---- C_InitToken ---- */

static CK_RV change_token(struct token_record *record, uint32_t keyring, struct given_pin pin,
                          const CK_UTF8CHAR *label)
{
    CK_RV rv = CKR_OK;
    if (record->initialised != 0)
        rv = try_pin(record, true, pin);
    else if (!length_in_range(pin))
        rv = CKR_PIN_INCORRECT; /* CKR_PIN_LEN_RANGE is no answer of C_InitToken */
    if (rv == CKR_OK)
        rv = backend_erase(application_file(), keyring);
    if (rv != CKR_OK)
        return rv;
    memset(&record->user_pin, 0, sizeof record->user_pin);
    if (record->initialised == 0)
        set_so_pin(record, pin);
    else if (atomic_load(&switches()->identity) == IDENTITY_SINGLE)
        record->user_pin = record->so_pin;
    memcpy(record->label, label, STATE_LABEL_SIZE);
    record->initialised = 1;
    return CKR_OK;
}

static CK_RV init_token(CK_SLOT_ID slot_id, struct given_pin pin, const CK_UTF8CHAR *label)
{
    if (!comes_right(pin) || label == NULL)
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
        rv = change_token(&record, index, pin, label);
        rv = erase_if_exhausted(&record, slot_id, rv);
        state_write_token(&keyring->token, &record);
    }
    state_write_end(file);
    return rv;
}

CK_RV C_InitToken(CK_SLOT_ID slotID, CK_UTF8CHAR_PTR pPin, CK_ULONG ulPinLen,
                  CK_UTF8CHAR_PTR pLabel)
{
    RETURN_LOCKED_CALL(C_InitToken, slotID,
                       init_token(slotID, (struct given_pin){pPin, ulPinLen}, pLabel));
}

/* ---- C_InitPIN and C_SetPIN ---- */

static CK_RV init_pin(CK_SESSION_HANDLE handle, struct given_pin pin)
{
    const struct session *session = session_find(handle);
    if (session == NULL)
        return CKR_SESSION_HANDLE_INVALID;
    if (!comes_right(pin))
        return CKR_ARGUMENTS_BAD;
    if (session_state(session) != CKS_RW_SO_FUNCTIONS)
        return CKR_USER_NOT_LOGGED_IN;
    if (!length_in_range(pin))
        return CKR_PIN_LEN_RANGE;
    struct state_file *file = application_file();
    struct state_keyring *keyring = state_keyring(file, session->slot_id);
    if (!state_write_begin(file))
        return CKR_DEVICE_ERROR;
    struct token_record record;
    state_read_token(&keyring->token, &record);
    set_user_pin(&record, pin, true);
    state_write_token(&keyring->token, &record);
    state_write_end(file);
    return CKR_OK;
}

CK_RV C_InitPIN(CK_SESSION_HANDLE hSession, CK_UTF8CHAR_PTR pPin, CK_ULONG ulPinLen)
{
    RETURN_SESSION_CALL(C_InitPIN, hSession,
                        init_pin(hSession, (struct given_pin){pPin, ulPinLen}));
}

static CK_RV change_pin(CK_SESSION_HANDLE handle, struct given_pin old_pin, struct given_pin new_pin)
{
    const struct session *session = session_find(handle);
    if (session == NULL)
        return CKR_SESSION_HANDLE_INVALID;
    if (!comes_right(old_pin) || !comes_right(new_pin))
        return CKR_ARGUMENTS_BAD;
    if (!session->read_write)
        return CKR_SESSION_READ_ONLY;
    if (!length_in_range(new_pin))
        return CKR_PIN_LEN_RANGE;
    struct state_file *file = application_file();
    CK_SLOT_ID slot_id = session->slot_id;
    struct state_keyring *keyring = state_keyring(file, slot_id);
    if (!state_write_begin(file))
        return CKR_DEVICE_ERROR;
    struct token_record record;
    state_read_token(&keyring->token, &record);
    /* Without a login it is the user's PIN that is changed. */
    bool officer = session_state(session) == CKS_RW_SO_FUNCTIONS;
    CK_RV rv = try_pin(&record, officer, old_pin);
    if (rv == CKR_OK && officer)
        set_so_pin(&record, new_pin);
    else if (rv == CKR_OK)
        set_user_pin(&record, new_pin, false);
    rv = erase_if_exhausted(&record, slot_id, rv);
    state_write_token(&keyring->token, &record);
    state_write_end(file);
    return rv;
}

CK_RV C_SetPIN(CK_SESSION_HANDLE hSession, CK_UTF8CHAR_PTR pOldPin, CK_ULONG ulOldLen,
               CK_UTF8CHAR_PTR pNewPin, CK_ULONG ulNewLen)
{
    RETURN_SESSION_CALL(C_SetPIN, hSession,
                        change_pin(hSession, (struct given_pin){pOldPin, ulOldLen},
                                   (struct given_pin){pNewPin, ulNewLen}));
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

/* The PIN itself is right. */
static bool expired(const struct token_record *record, enum login login)
{
    return login == LOGIN_USER && record->user_pin.by_so != 0 &&
           atomic_load(&switches()->pin_change) == PIN_CHANGE_FORCED;
}

static CK_RV check_pin(struct token_record *record, CK_SLOT_ID slot_id, enum login login,
                       struct given_pin pin)
{
    bool officer = login == LOGIN_SO;
    if (!officer && record->user_pin.set == 0)
        return CKR_USER_PIN_NOT_INITIALIZED;
    CK_RV rv = try_pin(record, officer, pin);
    if (rv == CKR_OK && expired(record, login))
        rv = CKR_PIN_EXPIRED;
    return erase_if_exhausted(record, slot_id, rv);
}

static CK_RV login_to(const struct session *session, CK_USER_TYPE user_type, enum login login,
                      struct given_pin pin)
{
    struct state_file *file = application_file();
    CK_SLOT_ID slot_id = session->slot_id;
    CK_SESSION_HANDLE twin = session->twin;
    struct state_keyring *keyring = state_keyring(file, slot_id);
    if (!state_write_begin(file))
        return CKR_DEVICE_ERROR;
    struct token_record record;
    state_read_token(&keyring->token, &record);
    const struct token_record before = record;
    CK_RV rv = check_pin(&record, slot_id, login, pin);
    if (memcmp(&record, &before, sizeof record) != 0)
        state_write_token(&keyring->token, &record);
    if (rv == CKR_OK)
        rv = backend_login(twin, user_type);
    state_write_end(file);
    if (rv == CKR_OK)
        session_token(slot_id)->login = login;
    return rv;
}

static CK_RV log_in(CK_SESSION_HANDLE handle, CK_USER_TYPE user_type, struct given_pin pin)
{
    const struct session *session = session_find(handle);
    if (session == NULL)
        return CKR_SESSION_HANDLE_INVALID;
    if (!comes_right(pin))
        return CKR_ARGUMENTS_BAD;
    const struct token_use *token = session_token(session->slot_id);
    if (user_type == CKU_CONTEXT_SPECIFIC) {
        /* For a key that wants the PIN at each use, which only a backend has. */
        bool possible = backend_used() && token->login != LOGIN_NONE;
        return possible ? login_to(session, user_type, token->login, pin)
                        : CKR_OPERATION_NOT_INITIALIZED;
    }
    if (user_type == CKU_LIMITED_USER || user_type == CKU_LIMITED_USER_OLD)
        return token->login == LOGIN_NONE ? CKR_USER_PIN_NOT_INITIALIZED
                                          : CKR_USER_ANOTHER_ALREADY_LOGGED_IN;
    if (user_type != CKU_SO && user_type != CKU_USER)
        return CKR_USER_TYPE_INVALID;
    enum login login = user_type == CKU_SO ? LOGIN_SO : LOGIN_USER;
    CK_RV rv = check_login(token, login);
    return rv == CKR_OK ? login_to(session, user_type, login, pin) : rv;
}

CK_RV C_Login(CK_SESSION_HANDLE hSession, CK_USER_TYPE userType, CK_UTF8CHAR_PTR pPin,
              CK_ULONG ulPinLen)
{
    RETURN_SESSION_CALL(C_Login, hSession, log_in(hSession, userType, (struct given_pin){pPin, ulPinLen}));
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
