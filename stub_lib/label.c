/*
 * label.c: CA_ChangeLabel, which only some clients have: another label for a token that keeps the rest.
 *
 * SPDX-License-Identifier: MIT
 */
#include <string.h>

#include "sessions.h"

static CK_RV change_label(CK_SESSION_HANDLE handle, CK_SLOT_ID slot_id, const CK_CHAR *label,
                          CK_ULONG length)
{
    struct state_file *file = application_file();
    if (atomic_load(&file->state->switches.change_label) == CHANGE_LABEL_OFF)
        return CKR_FUNCTION_NOT_SUPPORTED;
    const struct session *session = session_find(handle);
    if (session == NULL)
        return CKR_SESSION_HANDLE_INVALID;
    if (label == NULL || length < 1 || length > STATE_LABEL_SIZE)
        return CKR_ARGUMENTS_BAD;
    if (session->slot_id != slot_id)
        return CKR_SLOT_ID_INVALID;
    if (session_state(session) != CKS_RW_SO_FUNCTIONS)
        return CKR_USER_NOT_LOGGED_IN;
    if (!state_write_begin(file))
        return CKR_DEVICE_ERROR;
    struct state_keyring *keyring = state_keyring(file, slot_id);
    struct token_record record;
    state_read_token(&keyring->token, &record);
    memset(record.label, ' ', STATE_LABEL_SIZE);
    memcpy(record.label, label, length);
    state_write_token(&keyring->token, &record);
    state_write_end(file);
    return CKR_OK;
}

CK_RV CA_ChangeLabel(CK_SESSION_HANDLE hSession, CK_SLOT_ID slotID, CK_CHAR_PTR pLabel,
                     CK_ULONG ulLabelLen)
{
    RETURN_SESSION_CALL(CA_ChangeLabel, hSession,
                        change_label(hSession, slotID, pLabel, ulLabelLen));
}
