/*
 * random.c: the random number functions of PKCS #11, out of the system's generator or the backend's.
 *
 * SPDX-License-Identifier: MIT
 */
#include "sessions.h"

static CK_RV seed_random(CK_SESSION_HANDLE handle, const CK_BYTE *seed)
{
    if (session_find(handle) == NULL)
        return CKR_SESSION_HANDLE_INVALID;
    return seed == NULL ? CKR_ARGUMENTS_BAD : CKR_RANDOM_SEED_NOT_SUPPORTED;
}

CK_RV C_SeedRandom(CK_SESSION_HANDLE hSession, CK_BYTE_PTR pSeed, CK_ULONG ulSeedLen)
{
    RETURN_BACKEND_CALL(C_SeedRandom, hSession, (twin, pSeed, ulSeedLen),
                        SESSION_ANSWER(hSession, seed_random(hSession, pSeed)));
}

static CK_RV generate_random(CK_SESSION_HANDLE handle, CK_BYTE *data, CK_ULONG length)
{
    if (session_find(handle) == NULL)
        return CKR_SESSION_HANDLE_INVALID;
    if (data == NULL)
        return CKR_ARGUMENTS_BAD;
    return platform_random(data, length) ? CKR_OK : CKR_DEVICE_ERROR;
}

CK_RV C_GenerateRandom(CK_SESSION_HANDLE hSession, CK_BYTE_PTR pRandomData, CK_ULONG ulRandomLen)
{
    RETURN_BACKEND_CALL(C_GenerateRandom, hSession, (twin, pRandomData, ulRandomLen),
                        SESSION_ANSWER(hSession, generate_random(hSession, pRandomData, ulRandomLen)));
}
