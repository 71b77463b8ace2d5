/*
 * cryptography.c: every function of PKCS #11 that no other file defines. They need objects, so they are
 * the backend's; without one they answer CKR_FUNCTION_NOT_SUPPORTED, once the library is initialised.
 *
 * SPDX-License-Identifier: MIT
 */
#include "sessions.h"

/* These functions, and what is passed on to the backend in place of their parameters. The linker watches
   over this list: a name too many is defined twice, one that is missing is not defined at all, while the
   function list refers to it. */
#define PASSED_C_GetOperationState (twin, pOperationState, pulOperationStateLen),
#define PASSED_C_SetOperationState \
    (twin, pOperationState, ulOperationStateLen, hEncryptionKey, hAuthenticationKey),
#define PASSED_C_CreateObject (twin, pTemplate, ulCount, phObject),
#define PASSED_C_CopyObject (twin, hObject, pTemplate, ulCount, phNewObject),
#define PASSED_C_DestroyObject (twin, hObject),
#define PASSED_C_GetObjectSize (twin, hObject, pulSize),
#define PASSED_C_GetAttributeValue (twin, hObject, pTemplate, ulCount),
#define PASSED_C_SetAttributeValue (twin, hObject, pTemplate, ulCount),
#define PASSED_C_EncryptInit (twin, pMechanism, hKey),
#define PASSED_C_Encrypt (twin, pData, ulDataLen, pEncryptedData, pulEncryptedDataLen),
#define PASSED_C_EncryptUpdate (twin, pPart, ulPartLen, pEncryptedPart, pulEncryptedPartLen),
#define PASSED_C_EncryptFinal (twin, pLastEncryptedPart, pulLastEncryptedPartLen),
#define PASSED_C_DecryptInit (twin, pMechanism, hKey),
#define PASSED_C_Decrypt (twin, pEncryptedData, ulEncryptedDataLen, pData, pulDataLen),
#define PASSED_C_DecryptUpdate (twin, pEncryptedPart, ulEncryptedPartLen, pPart, pulPartLen),
#define PASSED_C_DecryptFinal (twin, pLastPart, pulLastPartLen),
#define PASSED_C_DigestInit (twin, pMechanism),
#define PASSED_C_Digest (twin, pData, ulDataLen, pDigest, pulDigestLen),
#define PASSED_C_DigestUpdate (twin, pPart, ulPartLen),
#define PASSED_C_DigestKey (twin, hKey),
#define PASSED_C_DigestFinal (twin, pDigest, pulDigestLen),
#define PASSED_C_SignInit (twin, pMechanism, hKey),
#define PASSED_C_Sign (twin, pData, ulDataLen, pSignature, pulSignatureLen),
#define PASSED_C_SignUpdate (twin, pPart, ulPartLen),
#define PASSED_C_SignFinal (twin, pSignature, pulSignatureLen),
#define PASSED_C_SignRecoverInit (twin, pMechanism, hKey),
#define PASSED_C_SignRecover (twin, pData, ulDataLen, pSignature, pulSignatureLen),
#define PASSED_C_VerifyInit (twin, pMechanism, hKey),
#define PASSED_C_Verify (twin, pData, ulDataLen, pSignature, ulSignatureLen),
#define PASSED_C_VerifyUpdate (twin, pPart, ulPartLen),
#define PASSED_C_VerifyFinal (twin, pSignature, ulSignatureLen),
#define PASSED_C_VerifyRecoverInit (twin, pMechanism, hKey),
#define PASSED_C_VerifyRecover (twin, pSignature, ulSignatureLen, pData, pulDataLen),
#define PASSED_C_DigestEncryptUpdate \
    (twin, pPart, ulPartLen, pEncryptedPart, pulEncryptedPartLen),
#define PASSED_C_DecryptDigestUpdate \
    (twin, pEncryptedPart, ulEncryptedPartLen, pPart, pulPartLen),
#define PASSED_C_SignEncryptUpdate (twin, pPart, ulPartLen, pEncryptedPart, pulEncryptedPartLen),
#define PASSED_C_DecryptVerifyUpdate \
    (twin, pEncryptedPart, ulEncryptedPartLen, pPart, pulPartLen),
#define PASSED_C_GenerateKey (twin, pMechanism, pTemplate, ulCount, phKey),
#define PASSED_C_GenerateKeyPair \
    (twin, pMechanism, pPublicKeyTemplate, ulPublicKeyAttributeCount, pPrivateKeyTemplate, \
     ulPrivateKeyAttributeCount, phPublicKey, phPrivateKey),
#define PASSED_C_WrapKey (twin, pMechanism, hWrappingKey, hKey, pWrappedKey, pulWrappedKeyLen),
#define PASSED_C_UnwrapKey \
    (twin, pMechanism, hUnwrappingKey, pWrappedKey, ulWrappedKeyLen, pTemplate, \
     ulAttributeCount, phKey),
#define PASSED_C_DeriveKey (twin, pMechanism, hBaseKey, pTemplate, ulAttributeCount, phKey),

/* CHOOSE picks its third argument. For a name in the list the comma moves DEFINE to that place. */
#define SKIP(name, parameters)
#define DEFINE(name, parameters)                                  \
    CK_RV name parameters                                         \
    {                                                             \
        RETURN_BACKEND_CALL(name, hSession, FIRST(PASSED_##name), \
                            CKR_FUNCTION_NOT_SUPPORTED);          \
    }
#define FIRST(...) FIRST_OF(__VA_ARGS__)
#define FIRST_OF(first, ...) first
#define CHOOSE(...) THIRD(__VA_ARGS__)
#define THIRD(first, second, third, ...) third
#define DEFINE_IF_LISTED(name, parameters) \
    CHOOSE(PASSED_##name, DEFINE, SKIP, )(name, parameters)

CRYPTOKI_FUNCTIONS(DEFINE_IF_LISTED)
