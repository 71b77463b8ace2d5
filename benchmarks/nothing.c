/*
 * nothing.c: a client library whose lock and unlock do nothing and answer CKR_OK: what is left of the time
 * of a pair is that of its caller. All else is the stand-in's, but for the manufacturer's name.
 * NOTHING_STAND_IN in the environment names the stand-in's shared library.
 *
 * SPDX-License-Identifier: MIT
 */
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#include "cryptoki_v2.h"

static CK_FUNCTION_LIST_PTR list;

CK_RV CA_LockClusteredSlot(CK_SLOT_ID slotID)
{
    (void)slotID;
    return CKR_OK;
}

CK_RV CA_UnlockClusteredSlot(CK_SLOT_ID slotID)
{
    (void)slotID;
    return CKR_OK;
}

/* These two are not called; without them luna_ext would warn of an old client. */

CK_RV CA_GetSlotId(CK_UTF8CHAR label[32], CK_SLOT_ID_PTR pSlotId, CK_ULONG_PTR pulCount)
{
    (void)label, (void)pSlotId, (void)pulCount;
    return CKR_DEVICE_ERROR;
}

CK_RV CA_GetUnassignedSlot(const CK_CHAR_PTR clusterID, CK_UNASSIGNED_SLOT_INFO_PTR pUnassignedSlot)
{
    (void)clusterID, (void)pUnassignedSlot;
    return CKR_DEVICE_ERROR;
}

static CK_RV get_info(CK_INFO_PTR pInfo)
{
    CK_RV rv = list->C_GetInfo(pInfo);
    if (rv == CKR_OK)
        memcpy(pInfo->manufacturerID, "Does nothing                    ", sizeof pInfo->manufacturerID);
    return rv;
}

CK_RV C_GetFunctionList(CK_FUNCTION_LIST_PTR_PTR ppFunctionList)
{
    static CK_FUNCTION_LIST functions;
    CK_RV (*function)(CK_FUNCTION_LIST_PTR_PTR);
    const char *path = getenv("NOTHING_STAND_IN");
    void *library = path == NULL ? NULL : dlopen(path, RTLD_NOW | RTLD_LOCAL);
    *(void **)&function = library == NULL ? NULL : dlsym(library, "C_GetFunctionList");
    CK_RV rv = function == NULL ? CKR_GENERAL_ERROR : function(&list);
    if (rv != CKR_OK)
        return rv;
    functions = *list;
    functions.C_GetInfo = get_info;
    *ppFunctionList = &functions;
    return CKR_OK;
}
