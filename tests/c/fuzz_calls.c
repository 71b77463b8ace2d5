/*
 * fuzz_calls.c: calls of the PKCS #11 module, and what the model says to them.
 *
 * SPDX-License-Identifier: MIT
 */
#include <stdlib.h>
#include <string.h>

#include "fuzz.h"

/* ---- general ---- */

static CK_RV no_mutex(CK_VOID_PTR mutex)
{
    (void)mutex;
    return CKR_OK;
}

static CK_RV no_new_mutex(CK_VOID_PTR_PTR mutex)
{
    (void)mutex;
    return CKR_OK;
}

static CK_RV normal_arguments(const CK_C_INITIALIZE_ARGS *arguments)
{
    if (arguments == NULL)
        return CKR_OK;
    int given = (arguments->CreateMutex != NULL) + (arguments->LockMutex != NULL);
    if (arguments->pReserved != NULL || given == 1)
        return CKR_ARGUMENTS_BAD;
    return given == 2 && (arguments->flags & CKF_OS_LOCKING_OK) == 0 ? CKR_CANT_LOCK : CKR_OK;
}

static CK_RV normal_initialize(const CK_C_INITIALIZE_ARGS *arguments, struct fuzz_call *call)
{
    CK_RV rv = normal_arguments(arguments);
    if (model_us()->entered) {
        call->gate = model_fault(FUNCTION_C_Initialize);
        return rv == CKR_OK ? CKR_CRYPTOKI_ALREADY_INITIALIZED : rv;
    }
    if (rv != CKR_OK)
        return rv;
    if (memory_system.state_path == NULL)
        return CKR_DEVICE_ERROR;
    call->gate = model_fault(FUNCTION_C_Initialize);
    if (call->gate.enters) {
        *model_us() = (struct model_application){.pid = memory_system.pid, .entered = true};
        model_forget_sessions();
    }
    return CKR_OK;
}

static void initialize_with(CK_C_INITIALIZE_ARGS *arguments)
{
    struct fuzz_call call = call_starts(FUNCTION_C_Initialize);
    CK_RV rv = C_Initialize(arguments);
    call.gate = (struct model_entry){.enters = true};
    CK_RV normal = model.valid ? normal_initialize(arguments, &call) : CKR_OK;
    call_ended(&call, rv, normal);
}

void fuzz_initialize(void)
{
    memory_system.state_path = FUZZ_PATH;
    initialize_with(NULL);
}

static CK_C_INITIALIZE_ARGS *some_initialize_arguments(void)
{
    unsigned int choice = input_below(32);
    if (choice < 16)
        return NULL;
    CK_C_INITIALIZE_ARGS *arguments = exactly(sizeof *arguments);
    memset(arguments, 0, sizeof *arguments);
    arguments->flags = choice % 2 == 0 ? CKF_OS_LOCKING_OK : 0;
    if ((choice & 2) != 0) {
        arguments->CreateMutex = no_new_mutex;
        arguments->DestroyMutex = no_mutex;
    }
    if ((choice & 4) != 0) {
        arguments->LockMutex = no_mutex;
        arguments->UnlockMutex = no_mutex;
    }
    arguments->pReserved = choice % 16 == 8 ? arguments : NULL;
    return arguments;
}

static void call_initialize(void)
{
    memory_system.state_path = input_below(16) == 15 ? NULL : FUZZ_PATH;
    initialize_with(some_initialize_arguments());
}

static void call_finalize(void)
{
    struct fuzz_call call = call_starts(FUNCTION_C_Finalize);
    int something = 0;
    bool reserved = input_below(16) == 15;
    bool started = model_us()->entered;
    CK_RV rv = C_Finalize(reserved ? &something : NULL);
    CK_RV normal = CKR_OK;
    call.gate = (struct model_entry){.enters = true};
    if (!started) {
        normal = CKR_CRYPTOKI_NOT_INITIALIZED;
    } else if (model.valid) {
        call.gate = model_fault(FUNCTION_C_Finalize);
        if (reserved) {
            normal = CKR_ARGUMENTS_BAD;
        } else if (call.gate.enters) {
            model_release_all(US);
            model_us()->entered = false;
            model_forget_sessions();
        }
    }
    call_ended(&call, rv, normal);
}

static void call_get_info(void)
{
    struct fuzz_call call = call_starts(FUNCTION_C_GetInfo);
    CK_INFO *info = some_memory(sizeof *info);
    CK_RV rv = C_GetInfo(info);
    call_ended(&call, rv, info == NULL ? CKR_ARGUMENTS_BAD : CKR_OK);
}

static void call_get_function_list(void)
{
    struct fuzz_call call = call_starts(FUNCTION_C_GetFunctionList);
    CK_FUNCTION_LIST_PTR *list = some_memory(sizeof *list);
    CK_RV rv = C_GetFunctionList(list);
    if (rv == CKR_OK && !call.armed && (*list)->C_GetFunctionList != C_GetFunctionList)
        disagree("the function list", 0, 1);
    call_ended(&call, rv, list == NULL ? CKR_ARGUMENTS_BAD : CKR_OK);
}

static void call_ca_get_function_list(void)
{
    struct fuzz_call call = call_starts(FUNCTION_CA_GetFunctionList);
    CK_SFNT_CA_FUNCTION_LIST_PTR *list = some_memory(sizeof *list);
    CK_RV rv = CA_GetFunctionList(list);
    if (rv == CKR_OK && !call.armed && (*list)->CA_GetFunctionList != CA_GetFunctionList)
        disagree("the vendor's function list", 0, 1);
    call_ended(&call, rv, list == NULL ? CKR_ARGUMENTS_BAD : CKR_OK);
}

static void call_unsupported(void)
{
    CK_SESSION_HANDLE session = some_session();
    unsigned int choice = input_below(3);
    struct fuzz_call call = call_starts(choice == 0   ? FUNCTION_C_Encrypt
                                        : choice == 1 ? FUNCTION_C_GenerateKey
                                                      : FUNCTION_C_DigestInit);
    CK_RV rv = choice == 0   ? C_Encrypt(session, NULL, 1, NULL, NULL)
               : choice == 1 ? C_GenerateKey(session, NULL, NULL, 1, NULL)
                             : C_DigestInit(session, NULL);
    call_ended(&call, rv, CKR_FUNCTION_NOT_SUPPORTED);
}

static void call_legacy(void)
{
    bool status = input_below(2) == 0;
    struct fuzz_call call =
        call_starts(status ? FUNCTION_C_GetFunctionStatus : FUNCTION_C_CancelFunction);
    CK_RV rv = status ? C_GetFunctionStatus(some_session()) : C_CancelFunction(some_session());
    call_ended(&call, rv, CKR_FUNCTION_NOT_PARALLEL);
}

/* ---- slots and tokens ---- */

static void call_get_slot_list(void)
{
    struct fuzz_call call = call_starts(FUNCTION_C_GetSlotList);
    struct room room = some_room();
    CK_RV rv = C_GetSlotList((CK_BBOOL)input_below(2), room.words, room.count);
    CK_RV normal = CKR_OK;
    if (room.count == NULL)
        normal = CKR_ARGUMENTS_BAD;
    else if (room.words != NULL && room.given < model.tokens_count)
        normal = CKR_BUFFER_TOO_SMALL;
    if (model.valid && room.count != NULL) {
        CK_ULONG count = call.gate.enters ? model.tokens_count : room.given;
        if (*room.count != count)
            disagree("C_GetSlotList's count", *room.count, count);
    }
    call_ended(&call, rv, normal);
}

static void call_get_slot_info(void)
{
    struct fuzz_call call = call_starts(FUNCTION_C_GetSlotInfo);
    CK_SLOT_ID slot = some_slot();
    CK_SLOT_INFO *info = some_memory(sizeof *info);
    CK_RV rv = C_GetSlotInfo(slot, info);
    CK_RV normal = model_token(slot) == NULL ? CKR_SLOT_ID_INVALID : CKR_OK;
    call_ended(&call, rv, info == NULL ? CKR_ARGUMENTS_BAD : normal);
}

static CK_FLAGS flags_of(const struct model_pin *pin, CK_FLAGS low, CK_FLAGS last, CK_FLAGS locked)
{
    return (pin->failures > 0 ? low : 0) | (pin->failures == STATE_PIN_TRIES - 1U ? last : 0) |
           (pin->failures >= STATE_PIN_TRIES ? locked : 0);
}

static void check_token_info(const CK_TOKEN_INFO *info, CK_SLOT_ID slot)
{
    const struct model_token *token = model_token(slot);
    unsigned int index = (unsigned int)(slot - model.first_slot);
    CK_FLAGS flags = CKF_RNG | CKF_LOGIN_REQUIRED |
                     (token->initialised ? CKF_TOKEN_INITIALIZED : 0) |
                     (token->user_pin.set ? CKF_USER_PIN_INITIALIZED : 0) |
                     (token->user_pin.by_so && model.pin_change == PIN_CHANGE_FORCED
                          ? CKF_USER_PIN_TO_BE_CHANGED
                          : 0) |
                     (model.authentication == AUTHENTICATION_PED
                          ? CKF_PROTECTED_AUTHENTICATION_PATH
                          : 0) |
                     flags_of(&token->so_pin, CKF_SO_PIN_COUNT_LOW, CKF_SO_PIN_FINAL_TRY,
                              CKF_SO_PIN_LOCKED) |
                     flags_of(&token->user_pin, CKF_USER_PIN_COUNT_LOW, CKF_USER_PIN_FINAL_TRY,
                              CKF_USER_PIN_LOCKED);
    if (info->flags != flags)
        disagree("the token's flags", info->flags, flags);
    if (info->ulMinPinLen != model.shortest_pin || info->ulMaxPinLen != model.longest_pin)
        disagree("the lengths of PINs", info->ulMinPinLen, model.shortest_pin);
    if (memcmp(info->label, token->label, STATE_LABEL_SIZE) != 0)
        disagree("the token's label", info->label[0], token->label[0]);
    if (info->ulSessionCount != model_sessions_of(index, false) ||
        info->ulRwSessionCount != model_sessions_of(index, true))
        disagree("the token's sessions", info->ulSessionCount, model_sessions_of(index, false));
}

static void call_get_token_info(void)
{
    struct fuzz_call call = call_starts(FUNCTION_C_GetTokenInfo);
    CK_SLOT_ID slot = some_slot();
    CK_TOKEN_INFO *info = some_memory(sizeof *info);
    CK_RV rv = C_GetTokenInfo(slot, info);
    CK_RV normal = model_token(slot) == NULL ? CKR_SLOT_ID_INVALID : CKR_OK;
    if (info == NULL)
        normal = CKR_ARGUMENTS_BAD;
    if (model.valid && call.gate.enters && normal == CKR_OK)
        check_token_info(info, slot);
    call_ended(&call, rv, normal);
}

static void call_mechanisms(void)
{
    CK_SLOT_ID slot = some_slot();
    bool known = model_token(slot) != NULL;
    if (input_below(2) == 0) {
        struct fuzz_call call = call_starts(FUNCTION_C_GetMechanismList);
        struct room room = some_room();
        CK_RV rv = C_GetMechanismList(slot, room.words, room.count);
        if (rv == CKR_OK && !call.armed && *room.count != 0)
            disagree("C_GetMechanismList's count", *room.count, 0);
        CK_RV normal = known ? CKR_OK : CKR_SLOT_ID_INVALID;
        call_ended(&call, rv, room.count == NULL ? CKR_ARGUMENTS_BAD : normal);
    } else {
        struct fuzz_call call = call_starts(FUNCTION_C_GetMechanismInfo);
        CK_MECHANISM_INFO *info = some_memory(sizeof *info);
        CK_RV rv = C_GetMechanismInfo(slot, input_byte(), info);
        CK_RV normal = known ? CKR_MECHANISM_INVALID : CKR_SLOT_ID_INVALID;
        call_ended(&call, rv, info == NULL ? CKR_ARGUMENTS_BAD : normal);
    }
}

static void call_wait_for_slot_event(void)
{
    struct fuzz_call call = call_starts(FUNCTION_C_WaitForSlotEvent);
    CK_SLOT_ID *slot = some_memory(sizeof *slot);
    bool reserved = input_below(8) == 7;
    CK_FLAGS flags = input_below(4) == 0 ? 0 : CKF_DONT_BLOCK;
    memory_system.may_block = flags == 0;
    CK_RV rv = C_WaitForSlotEvent(flags, slot, reserved ? &reserved : NULL);
    memory_system.may_block = false;
    /* Only that we were disconnected ends the waiting. */
    CK_RV normal = flags == 0 ? CKR_DEVICE_ERROR : CKR_NO_EVENT;
    call_ended(&call, rv, slot == NULL || reserved ? CKR_ARGUMENTS_BAD : normal);
}

/* ---- the cluster ---- */

static CK_RV normal_get_slot_id(const CK_UTF8CHAR *label, struct room room,
                                const struct fuzz_call *call)
{
    CK_ULONG found = 0;
    if (label == NULL || room.count == NULL)
        return CKR_ARGUMENTS_BAD;
    for (unsigned int i = 0; i < model.tokens_count; i++) {
        if (memcmp(label, model.tokens[i].label, STATE_LABEL_SIZE) != 0)
            continue;
        if (call->gate.enters && room.words != NULL && found < room.given &&
            room.words[found] != model.first_slot + i)
            disagree("CA_GetSlotId's slot", room.words[found], model.first_slot + i);
        found++;
    }
    CK_ULONG count = call->gate.enters ? found : room.given;
    if (*room.count != count)
        disagree("CA_GetSlotId's count", *room.count, count);
    return room.words != NULL && found > room.given ? CKR_BUFFER_TOO_SMALL : CKR_OK;
}

static void call_get_slot_id(void)
{
    struct fuzz_call call = call_starts(FUNCTION_CA_GetSlotId);
    CK_UTF8CHAR *label = some_label();
    struct room room = some_room();
    CK_RV rv = CA_GetSlotId(label, room.words, room.count);
    CK_RV normal = model.valid ? normal_get_slot_id(label, room, &call) : CKR_OK;
    call_ended(&call, rv, normal);
}

static CK_CHAR *some_cluster_id(void)
{
    static const char *const other[] = {
        "", "cluster", "another",
        "0123456789012345678901234567890123456789012345678901234567890123456789"};
    unsigned int choice = input_below(16);
    if (choice == 15)
        return NULL;
    const char *text = choice < 11 ? model.cluster_id : other[choice - 11U];
    size_t size = strlen(text) + 1U;
    return memcpy(exactly(size), text, size);
}

static bool can_be_claimed(const struct model_token *token)
{
    return model_can_claim(token, US) &&
           memcmp(token->label, token->original, STATE_LABEL_SIZE) == 0;
}

/* If the reply was lost, the file says which slot it was. */
static struct model_token *claimed_token(const CK_UNASSIGNED_SLOT_INFO *info, bool lost)
{
    if (!lost)
        return model_token(info->slotID);
    struct state *state = fuzz_state();
    for (unsigned int i = 0; i < model.tokens_count; i++) {
        struct model_token *token = &model.tokens[i];
        uint64_t owner = atomic_load(&state->keyrings[i].owner);
        bool ours = owner != 0 && registry_application(owner) == application_file()->self;
        bool again = token->owner != NOBODY && (owner & REGISTRY_GRANTS) != 0 && token->grants == 0;
        if (again || (ours && token->owner == NOBODY))
            return token;
    }
    return NULL;
}

static CK_RV normal_get_unassigned(const CK_CHAR *cluster_id, const CK_UNASSIGNED_SLOT_INFO *info,
                                   const struct fuzz_call *call)
{
    bool any = false;
    if (cluster_id == NULL || info == NULL ||
        strcmp((const char *)cluster_id, model.cluster_id) != 0)
        return CKR_ARGUMENTS_BAD;
    for (unsigned int i = 0; i < model.tokens_count; i++)
        any = any || can_be_claimed(&model.tokens[i]);
    if (!any)
        return CKR_FUNCTION_FAILED;
    if (!call->gate.enters)
        return CKR_OK;
    struct model_token *token = claimed_token(info, call->gate.lost);
    if (token == NULL || !can_be_claimed(token))
        disagree("CA_GetUnassignedSlot's slot", info->slotID, model.first_slot);
    if (!call->gate.lost && memcmp(info->label, token->label, STATE_LABEL_SIZE) != 0)
        disagree("CA_GetUnassignedSlot's label", info->label[0], token->label[0]);
    model_grant(token, US);
    return CKR_OK;
}

static bool is_untouched(const void *memory, size_t size)
{
    const uint8_t *bytes = memory;
    for (size_t i = 0; i < size; i++) {
        if (bytes[i] != UNTOUCHED)
            return false;
    }
    return true;
}

static void call_get_unassigned_slot(void)
{
    struct fuzz_call call = call_starts(FUNCTION_CA_GetUnassignedSlot);
    CK_CHAR *cluster_id = some_cluster_id();
    CK_UNASSIGNED_SLOT_INFO *info = some_memory(sizeof *info);
    CK_RV rv = CA_GetUnassignedSlot(cluster_id, info);
    bool told = rv == CKR_OK || (!model.valid && call.armed) ||
                (model.valid && call.gate.enters && !call.gate.lost);
    if (info != NULL && !told && !is_untouched(info, sizeof *info))
        disagree("CA_GetUnassignedSlot says what it must not", info->slotID, 0);
    CK_RV normal = model.valid ? normal_get_unassigned(cluster_id, info, &call) : CKR_OK;
    call_ended(&call, rv, normal);
}

/* After the call, for others may have acted while it waited. */
static CK_RV normal_lock(struct model_token *token)
{
    if (token == NULL)
        return CKR_SLOT_ID_INVALID;
    if (model_us()->disconnected)
        return CKR_DEVICE_ERROR;
    if (token->owner != NOBODY &&
        (!model_is_own(token, US) || model.relock != RELOCK_GRANTED))
        return CKR_DEVICE_ERROR;
    model_grant(token, US);
    return CKR_OK;
}

static void call_lock(void)
{
    struct fuzz_call call = call_starts(FUNCTION_CA_LockClusteredSlot);
    CK_SLOT_ID slot = some_slot();
    CK_RV rv = CA_LockClusteredSlot(slot);
    bool enters = model.valid && call.gate.enters;
    call_ended(&call, rv, enters ? normal_lock(model_token(slot)) : CKR_OK);
}

static CK_RV normal_unlock(struct model_token *token)
{
    if (token == NULL)
        return CKR_SLOT_ID_INVALID;
    if (model.unlock_owner == UNLOCK_OWNER_CHECKED && !model_is_own(token, US))
        return CKR_DEVICE_ERROR;
    if (model.grants == GRANTS_COUNTED && token->owner != NOBODY && token->grants > 0)
        token->grants--;
    else
        token->owner = NOBODY;
    return CKR_OK;
}

static void call_unlock(void)
{
    struct fuzz_call call = call_starts(FUNCTION_CA_UnlockClusteredSlot);
    CK_SLOT_ID slot = some_slot();
    CK_RV rv = CA_UnlockClusteredSlot(slot);
    bool enters = model.valid && call.gate.enters;
    call_ended(&call, rv, enters ? normal_unlock(model_token(slot)) : CKR_OK);
}

/* ---- one of them ---- */

void fuzz_pkcs11_call(void)
{
    static void (*const calls[])(void) = {
        call_initialize,        call_finalize,       call_get_info,
        call_get_function_list, call_unsupported,    call_legacy,
        call_get_slot_list,     call_get_slot_info,  call_get_token_info,
        call_mechanisms,        call_init_token,     call_init_token,
        call_init_pin,          call_set_pin,        call_login,
        call_login,             call_logout,         call_open_session,
        call_open_session,      call_close_session,  call_close_all_sessions,
        call_get_session_info,  call_find,           call_random,
        call_get_slot_id,       call_lock,           call_lock,
        call_unlock,            call_unlock,         call_get_unassigned_slot,
        call_wait_for_slot_event, call_change_label, call_ca_get_function_list,
    };
    calls[input_below(sizeof calls / sizeof calls[0])]();
}
