/*
 * cluster.c: the cluster half of the module: the four CA_ functions.
 *
 * SPDX-License-Identifier: MIT
 */
#include <string.h>

#include "call.h"
#include "keyring_lock.h"

static CK_RV get_slot_id(const CK_UTF8CHAR *label, CK_SLOT_ID_PTR slot_ids, CK_ULONG_PTR count)
{
    if (label == NULL || count == NULL)
        return CKR_ARGUMENTS_BAD;
    struct state_file *file = application_file();
    CK_ULONG room = slot_ids == NULL ? 0 : *count;
    CK_ULONG found = 0;
    for (uint32_t i = 0; i < file->keyring_count; i++) {
        uint8_t other[STATE_LABEL_SIZE];
        state_read_label(&file->state->keyrings[i].token, other);
        if (memcmp(label, other, STATE_LABEL_SIZE) != 0)
            continue;
        if (found < room)
            slot_ids[found] = (CK_SLOT_ID)(file->first_slot + i);
        found++;
    }
    *count = found;
    return slot_ids != NULL && found > room ? CKR_BUFFER_TOO_SMALL : CKR_OK;
}

CK_RV CA_GetSlotId(CK_UTF8CHAR label[32], CK_SLOT_ID_PTR pSlotId, CK_ULONG_PTR pulCount)
{
    RETURN_CALL(CA_GetSlotId, CALL_NO_SLOT, get_slot_id(label, pSlotId, pulCount));
}

static bool unassigned(struct state_keyring *keyring, uint8_t label[STATE_LABEL_SIZE])
{
    state_read_label(&keyring->token, label);
    return memcmp(label, keyring->original_label, STATE_LABEL_SIZE) == 0;
}

/* The device's list has no order, so a client that counts on one should fail here too. */
static uint32_t somewhere(uint32_t keyrings)
{
    static _Atomic uint32_t calls;
    uint64_t seed = application.generation + UINT64_C(7919) * registry_index(application.file.self);
    seed = (seed << 20) + atomic_fetch_add(&calls, 1U);
    seed *= UINT64_C(0x9E3779B97F4A7C15);
    return (uint32_t)((seed >> 32) % keyrings);
}

static CK_RV get_unassigned_slot(struct call *call, const CK_CHAR *cluster_id,
                                 CK_UNASSIGNED_SLOT_INFO_PTR info)
{
    if (cluster_id == NULL || info == NULL)
        return CKR_ARGUMENTS_BAD;
    struct state_file *file = application_file();
    const char *own_id = file->state->header.cluster_id;
    if (strncmp((const char *)cluster_id, own_id, STATE_CLUSTER_ID_SIZE + 1U) != 0)
        return CKR_ARGUMENTS_BAD;
    uint32_t start = somewhere(file->keyring_count);
    for (uint32_t i = 0; i < file->keyring_count; i++) {
        uint32_t index = (start + i) % file->keyring_count;
        struct state_keyring *keyring = &file->state->keyrings[index];
        uint8_t label[STATE_LABEL_SIZE];
        if (!unassigned(keyring, label) || !keyring_claim(file, keyring))
            continue;
        /* The application that had the lock a moment ago may have assigned the token. */
        bool still = unassigned(keyring, label);
        if (still && !application_disconnected()) {
            call->slot_id = file->first_slot + index;
            if (!call->reply_lost) {
                info->slotID = (CK_SLOT_ID)call->slot_id;
                memcpy(info->label, label, STATE_LABEL_SIZE);
            }
            return CKR_OK;
        }
        keyring_unclaim(file, keyring);
        if (still)
            return CKR_DEVICE_ERROR;
    }
    return CKR_FUNCTION_FAILED;
}

CK_RV CA_GetUnassignedSlot(const CK_CHAR_PTR clusterID,
                           CK_UNASSIGNED_SLOT_INFO_PTR pUnassignedSlot)
{
    RETURN_CALL(CA_GetUnassignedSlot, CALL_NO_SLOT,
                get_unassigned_slot(&call, clusterID, pUnassignedSlot));
}

static inline CK_RV lock_slot(CK_SLOT_ID slot_id)
{
    struct state_file *file = application_file();
    struct state_keyring *keyring = state_keyring(file, slot_id);
    if (keyring == NULL)
        return CKR_SLOT_ID_INVALID;
    if (!keyring_lock(file, keyring, application_interrupted))
        return CKR_DEVICE_ERROR;
    if (application_disconnected()) {
        /* The disconnection has taken all locks off, but this one was set after that. */
        keyring_release(keyring, file->self);
        return CKR_DEVICE_ERROR;
    }
    return CKR_OK;
}

CK_RV CA_LockClusteredSlot(CK_SLOT_ID slotID)
{
    RETURN_CALL(CA_LockClusteredSlot, slotID, lock_slot(slotID));
}

static inline CK_RV unlock_slot(CK_SLOT_ID slot_id)
{
    struct state_file *file = application_file();
    struct state_keyring *keyring = state_keyring(file, slot_id);
    if (keyring == NULL)
        return CKR_SLOT_ID_INVALID;
    return keyring_unlock(file, keyring) ? CKR_OK : CKR_DEVICE_ERROR;
}

CK_RV CA_UnlockClusteredSlot(CK_SLOT_ID slotID)
{
    RETURN_CALL(CA_UnlockClusteredSlot, slotID, unlock_slot(slotID));
}
