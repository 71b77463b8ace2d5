/*
 * slots.c: the slot and token management functions of PKCS #11, but for those that set PINs.
 *
 * SPDX-License-Identifier: MIT
 */
#include <stdio.h>
#include <string.h>

#include "call.h"
#include "sessions.h"
#include "text.h"

#define EVENT_POLL_US 20000U

/* ---- slots ---- */

static CK_RV get_slot_list(CK_SLOT_ID_PTR slot_ids, CK_ULONG_PTR count)
{
    if (count == NULL)
        return CKR_ARGUMENTS_BAD;
    struct state_file *file = application_file();
    CK_ULONG room = *count;
    *count = file->keyring_count;
    if (slot_ids == NULL)
        return CKR_OK;
    if (room < file->keyring_count)
        return CKR_BUFFER_TOO_SMALL;
    for (uint32_t i = 0; i < file->keyring_count; i++)
        slot_ids[i] = (CK_SLOT_ID)(file->first_slot + i);
    return CKR_OK;
}

CK_RV C_GetSlotList(CK_BBOOL tokenPresent, CK_SLOT_ID_PTR pSlotList, CK_ULONG_PTR pulCount)
{
    (void)tokenPresent; /* in every slot there is one */
    RETURN_CALL(C_GetSlotList, CALL_NO_SLOT, get_slot_list(pSlotList, pulCount));
}

static CK_RV get_slot_info(CK_SLOT_ID slot_id, CK_SLOT_INFO_PTR info)
{
    if (info == NULL)
        return CKR_ARGUMENTS_BAD;
    struct state_file *file = application_file();
    if (state_keyring(file, slot_id) == NULL)
        return CKR_SLOT_ID_INVALID;
    char description[65];
    (void)snprintf(description, sizeof description, "luna_ext stand-in, keyring %llu",
                   state_keyring_index(file, slot_id) + 1ULL);
    memset(info, 0, sizeof *info);
    text_pad(info->slotDescription, sizeof info->slotDescription, description);
    text_pad(info->manufacturerID, sizeof info->manufacturerID, TEXT_MANUFACTURER);
    info->flags = CKF_TOKEN_PRESENT;
    info->hardwareVersion = (CK_VERSION){1, 0};
    info->firmwareVersion = (CK_VERSION){1, 0};
    return CKR_OK;
}

CK_RV C_GetSlotInfo(CK_SLOT_ID slotID, CK_SLOT_INFO_PTR pInfo)
{
    RETURN_CALL(C_GetSlotInfo, slotID, get_slot_info(slotID, pInfo));
}

/* Tokens never come or go, so only C_Finalize or a lost connection ends the waiting. */
static CK_RV wait_for_slot_event(CK_FLAGS flags, const CK_SLOT_ID *slot, const void *reserved)
{
    if (slot == NULL || reserved != NULL)
        return CKR_ARGUMENTS_BAD;
    if ((flags & CKF_DONT_BLOCK) != 0)
        return CKR_NO_EVENT;
    while (!application_interrupted())
        platform_sleep(EVENT_POLL_US);
    return application_started() ? CKR_DEVICE_ERROR : CKR_CRYPTOKI_NOT_INITIALIZED;
}

CK_RV C_WaitForSlotEvent(CK_FLAGS flags, CK_SLOT_ID_PTR pSlot, CK_VOID_PTR pReserved)
{
    RETURN_CALL(C_WaitForSlotEvent, CALL_NO_SLOT, wait_for_slot_event(flags, pSlot, pReserved));
}

/* ---- tokens ---- */

static CK_FLAGS pin_flags(const struct token_pin *pin, CK_FLAGS low, CK_FLAGS last, CK_FLAGS locked)
{
    CK_FLAGS flags = pin->failures > 0 ? low : 0;
    if (pin->failures == STATE_PIN_TRIES - 1U)
        flags |= last;
    if (pin->failures >= STATE_PIN_TRIES)
        flags |= locked;
    return flags;
}

static CK_FLAGS token_flags(struct state_switches *switches, const struct token_record *record)
{
    CK_FLAGS flags = CKF_RNG | CKF_LOGIN_REQUIRED;
    if (atomic_load(&switches->authentication) == AUTHENTICATION_PED)
        flags |= CKF_PROTECTED_AUTHENTICATION_PATH;
    if (record->user_pin.by_so != 0 && atomic_load(&switches->pin_change) == PIN_CHANGE_FORCED)
        flags |= CKF_USER_PIN_TO_BE_CHANGED;
    if (record->initialised != 0)
        flags |= CKF_TOKEN_INITIALIZED;
    if (record->user_pin.set != 0)
        flags |= CKF_USER_PIN_INITIALIZED;
    flags |= pin_flags(&record->so_pin, CKF_SO_PIN_COUNT_LOW, CKF_SO_PIN_FINAL_TRY,
                       CKF_SO_PIN_LOCKED);
    flags |= pin_flags(&record->user_pin, CKF_USER_PIN_COUNT_LOW, CKF_USER_PIN_FINAL_TRY,
                       CKF_USER_PIN_LOCKED);
    return flags;
}

static CK_RV get_token_info(CK_SLOT_ID slot_id, CK_TOKEN_INFO_PTR info)
{
    if (info == NULL)
        return CKR_ARGUMENTS_BAD;
    struct state_file *file = application_file();
    struct state_keyring *keyring = state_keyring(file, slot_id);
    if (keyring == NULL)
        return CKR_SLOT_ID_INVALID;
    struct token_record record;
    state_read_token(&keyring->token, &record);
    struct token_use use = *session_token(slot_id);
    uint32_t shortest;
    uint32_t longest;
    state_pin_lengths(file->state, &shortest, &longest);
    memset(info, 0, sizeof *info);
    memcpy(info->label, record.label, sizeof info->label);
    text_pad(info->manufacturerID, sizeof info->manufacturerID, TEXT_MANUFACTURER);
    text_pad(info->model, sizeof info->model, "Cluster keyring");
    memcpy(info->serialNumber, keyring->serial, sizeof info->serialNumber);
    info->flags = token_flags(&file->state->switches, &record);
    info->ulMaxSessionCount = SESSIONS_MAX;
    info->ulSessionCount = use.sessions;
    info->ulMaxRwSessionCount = SESSIONS_MAX;
    info->ulRwSessionCount = use.rw_sessions;
    info->ulMaxPinLen = longest;
    info->ulMinPinLen = shortest;
    info->ulTotalPublicMemory = CK_UNAVAILABLE_INFORMATION;
    info->ulFreePublicMemory = CK_UNAVAILABLE_INFORMATION;
    info->ulTotalPrivateMemory = CK_UNAVAILABLE_INFORMATION;
    info->ulFreePrivateMemory = CK_UNAVAILABLE_INFORMATION;
    info->hardwareVersion = (CK_VERSION){1, 0};
    info->firmwareVersion = (CK_VERSION){1, 0};
    memset(info->utcTime, '0', sizeof info->utcTime); /* there is no clock */
    return CKR_OK;
}

CK_RV C_GetTokenInfo(CK_SLOT_ID slotID, CK_TOKEN_INFO_PTR pInfo)
{
    RETURN_LOCKED_CALL(C_GetTokenInfo, slotID, get_token_info(slotID, pInfo));
}

/* ---- mechanisms: the backend's, or none ---- */

static CK_RV get_mechanism_list(CK_SLOT_ID slot_id, CK_MECHANISM_TYPE_PTR mechanisms,
                                CK_ULONG_PTR count)
{
    if (count == NULL)
        return CKR_ARGUMENTS_BAD;
    struct state_file *file = application_file();
    if (state_keyring(file, slot_id) == NULL)
        return CKR_SLOT_ID_INVALID;
    if (!backend_used()) {
        *count = 0;
        return CKR_OK;
    }
    CK_SLOT_ID twin = backend_slot(state_keyring_index(file, slot_id));
    backend_enter();
    CK_RV rv = backend->C_GetMechanismList(twin, mechanisms, count);
    backend_leave();
    return rv;
}

CK_RV C_GetMechanismList(CK_SLOT_ID slotID, CK_MECHANISM_TYPE_PTR pMechanismList,
                         CK_ULONG_PTR pulCount)
{
    RETURN_CALL(C_GetMechanismList, slotID, get_mechanism_list(slotID, pMechanismList, pulCount));
}

static CK_RV get_mechanism_info(CK_SLOT_ID slot_id, CK_MECHANISM_TYPE type,
                                CK_MECHANISM_INFO_PTR info)
{
    if (info == NULL)
        return CKR_ARGUMENTS_BAD;
    struct state_file *file = application_file();
    if (state_keyring(file, slot_id) == NULL)
        return CKR_SLOT_ID_INVALID;
    if (!backend_used())
        return CKR_MECHANISM_INVALID;
    CK_SLOT_ID twin = backend_slot(state_keyring_index(file, slot_id));
    backend_enter();
    CK_RV rv = backend->C_GetMechanismInfo(twin, type, info);
    backend_leave();
    return rv;
}

CK_RV C_GetMechanismInfo(CK_SLOT_ID slotID, CK_MECHANISM_TYPE type, CK_MECHANISM_INFO_PTR pInfo)
{
    RETURN_CALL(C_GetMechanismInfo, slotID, get_mechanism_info(slotID, type, pInfo));
}
