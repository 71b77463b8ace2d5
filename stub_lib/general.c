/*
 * general.c: the general purpose functions of PKCS #11, and its two legacy ones.
 *
 * SPDX-License-Identifier: MIT
 */
#include <string.h>

#include "call.h"
#include "sessions.h"
#include "text.h"

static CK_RV check_arguments(const CK_C_INITIALIZE_ARGS *arguments)
{
    if (arguments == NULL)
        return CKR_OK;
    int given = (arguments->CreateMutex != NULL) + (arguments->DestroyMutex != NULL) +
                (arguments->LockMutex != NULL) + (arguments->UnlockMutex != NULL);
    if (arguments->pReserved != NULL || (given != 0 && given != 4))
        return CKR_ARGUMENTS_BAD;
    /* Only the system's own mutexes are used; the caller has to allow them. */
    if (given == 4 && (arguments->flags & CKF_OS_LOCKING_OK) == 0)
        return CKR_CANT_LOCK;
    return CKR_OK;
}

CK_RV C_Initialize(CK_VOID_PTR pInitArgs)
{
    return application_start(check_arguments(pInitArgs), sessions_forget);
}

CK_RV C_Finalize(CK_VOID_PTR pReserved)
{
    return application_stop(pReserved == NULL ? CKR_OK : CKR_ARGUMENTS_BAD);
}

static CK_RV get_info(CK_INFO_PTR info)
{
    if (info == NULL)
        return CKR_ARGUMENTS_BAD;
    memset(info, 0, sizeof *info);
    info->cryptokiVersion = (CK_VERSION){CRYPTOKI_VERSION_MAJOR, CRYPTOKI_VERSION_MINOR};
    text_pad(info->manufacturerID, sizeof info->manufacturerID, TEXT_MANUFACTURER);
    text_pad(info->libraryDescription, sizeof info->libraryDescription,
             "Cluster of keyrings in a file");
    info->libraryVersion = (CK_VERSION){1, 0};
    return CKR_OK;
}

CK_RV C_GetInfo(CK_INFO_PTR pInfo)
{
    RETURN_CALL(C_GetInfo, CALL_NO_SLOT, get_info(pInfo));
}

CK_RV C_GetFunctionStatus(CK_SESSION_HANDLE hSession)
{
    (void)hSession;
    RETURN_CALL(C_GetFunctionStatus, CALL_NO_SLOT, CKR_FUNCTION_NOT_PARALLEL);
}

CK_RV C_CancelFunction(CK_SESSION_HANDLE hSession)
{
    (void)hSession;
    RETURN_CALL(C_CancelFunction, CALL_NO_SLOT, CKR_FUNCTION_NOT_PARALLEL);
}
