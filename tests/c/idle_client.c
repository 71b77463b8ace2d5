/*
 * idle_client.c: a client library whose functions do nothing, at once: what is left of a lock and unlock is
 * luna_ext's own.
 */
#include "cryptoki_v2.h"

static CK_FUNCTION_LIST functions;

static CK_RV initialize(CK_VOID_PTR arguments) {
    (void)arguments;
    return CKR_OK;
}

static CK_RV finalize(CK_VOID_PTR reserved) {
    (void)reserved;
    return CKR_OK;
}

static CK_RV get_slot_list(CK_BBOOL token_present, CK_SLOT_ID_PTR slots, CK_ULONG_PTR count) {
    (void)token_present;
    if (slots != NULL_PTR && *count != 0) {
        slots[0] = 1;
    }
    *count = 1;
    return CKR_OK;
}

static CK_RV get_token_info(CK_SLOT_ID slot, CK_TOKEN_INFO_PTR info) {
    (void)slot, (void)info;
    return CKR_OK;
}

/* One session is as good as any other. */
static CK_RV open_session(CK_SLOT_ID slot, CK_FLAGS flags, CK_VOID_PTR application, CK_NOTIFY notify,
                          CK_SESSION_HANDLE_PTR session) {
    (void)flags, (void)application, (void)notify;
    *session = 1000 + slot;
    return CKR_OK;
}

static CK_RV close_session(CK_SESSION_HANDLE session) {
    (void)session;
    return CKR_OK;
}

static CK_RV get_session_info(CK_SESSION_HANDLE session, CK_SESSION_INFO_PTR info) {
    info->slotID = session - 1000;
    info->flags = CKF_SERIAL_SESSION | CKF_RW_SESSION;
    return CKR_OK;
}

extern CK_RV C_GetFunctionList(CK_FUNCTION_LIST_PTR_PTR list) {
    functions.C_Initialize = initialize;
    functions.C_Finalize = finalize;
    functions.C_GetSlotList = get_slot_list;
    functions.C_GetTokenInfo = get_token_info;
    functions.C_OpenSession = open_session;
    functions.C_CloseSession = close_session;
    functions.C_GetSessionInfo = get_session_info;
    *list = &functions;
    return CKR_OK;
}

extern CK_RV CA_GetSlotId(CK_UTF8CHAR label[32], CK_SLOT_ID_PTR slots, CK_ULONG_PTR count) {
    (void)label, (void)slots;
    *count = 0;
    return CKR_OK;
}

extern CK_RV CA_GetUnassignedSlot(const CK_CHAR_PTR cluster, CK_UNASSIGNED_SLOT_INFO_PTR slot) {
    (void)cluster, (void)slot;
    return CKR_FUNCTION_FAILED;
}

extern CK_RV CA_LockClusteredSlot(CK_SLOT_ID slot) {
    (void)slot;
    return CKR_OK;
}

extern CK_RV CA_UnlockClusteredSlot(CK_SLOT_ID slot) {
    (void)slot;
    return CKR_OK;
}
