/*
 * objects.c: the object search of PKCS #11. Without a backend it finds nothing.
 *
 * SPDX-License-Identifier: MIT
 */
#include "sessions.h"

static CK_RV find_init(CK_SESSION_HANDLE handle, const CK_ATTRIBUTE *attributes, CK_ULONG count)
{
    struct session *session = session_find(handle);
    if (session == NULL)
        return CKR_SESSION_HANDLE_INVALID;
    if (attributes == NULL && count > 0)
        return CKR_ARGUMENTS_BAD;
    if (session->searching)
        return CKR_OPERATION_ACTIVE;
    session->searching = true;
    return CKR_OK;
}

CK_RV C_FindObjectsInit(CK_SESSION_HANDLE hSession, CK_ATTRIBUTE_PTR pTemplate, CK_ULONG ulCount)
{
    RETURN_BACKEND_CALL(C_FindObjectsInit, hSession, (twin, pTemplate, ulCount),
                        SESSION_ANSWER(hSession, find_init(hSession, pTemplate, ulCount)));
}

static CK_RV find(CK_SESSION_HANDLE handle, const CK_OBJECT_HANDLE *objects, CK_ULONG_PTR count)
{
    const struct session *session = session_find(handle);
    if (session == NULL)
        return CKR_SESSION_HANDLE_INVALID;
    if (objects == NULL || count == NULL)
        return CKR_ARGUMENTS_BAD;
    if (!session->searching)
        return CKR_OPERATION_NOT_INITIALIZED;
    *count = 0;
    return CKR_OK;
}

CK_RV C_FindObjects(CK_SESSION_HANDLE hSession, CK_OBJECT_HANDLE_PTR phObject,
                    CK_ULONG ulMaxObjectCount, CK_ULONG_PTR pulObjectCount)
{
    RETURN_BACKEND_CALL(C_FindObjects, hSession, (twin, phObject, ulMaxObjectCount, pulObjectCount),
                        SESSION_ANSWER(hSession, find(hSession, phObject, pulObjectCount)));
}

static CK_RV find_final(CK_SESSION_HANDLE handle)
{
    struct session *session = session_find(handle);
    if (session == NULL)
        return CKR_SESSION_HANDLE_INVALID;
    if (!session->searching)
        return CKR_OPERATION_NOT_INITIALIZED;
    session->searching = false;
    return CKR_OK;
}

CK_RV C_FindObjectsFinal(CK_SESSION_HANDLE hSession)
{
    RETURN_BACKEND_CALL(C_FindObjectsFinal, hSession, (twin),
                        SESSION_ANSWER(hSession, find_final(hSession)));
}
