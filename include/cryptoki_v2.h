/*
 * cryptoki_v2.h: the C declarations that luna_ext compiles against.
 *
 * Written from the PKCS #11 v2.40 standard (OASIS) and from the published description of the
 * Luna cluster extensions. It has the name of the Luna SDK's own header, so that the
 * include path alone decides which of the two is used (LUNA_SDK_INCLUDE, see setup.py).
 * luna_ext/_device/layout.h holds both to the same layout.
 *
 * SPDX-License-Identifier: MIT
 */
#ifndef CRYPTOKI_V2_H
#define CRYPTOKI_V2_H

#ifdef __cplusplus
extern "C" {
#endif

/* PKCS #11 packs its structs to 1 byte on Windows and nowhere else. */
#ifdef _WIN32
#pragma pack(push, cryptoki, 1)
#endif

#define CK_PTR *
#ifndef NULL_PTR
#define NULL_PTR 0
#endif

#define CRYPTOKI_VERSION_MAJOR 2
#define CRYPTOKI_VERSION_MINOR 40

/* ---- basic types ---- */

typedef unsigned char CK_BYTE;
typedef CK_BYTE CK_CHAR;
typedef CK_BYTE CK_UTF8CHAR;
typedef CK_BYTE CK_BBOOL;
typedef unsigned long CK_ULONG; /* 4 bytes on Windows, the pointer's size elsewhere */
typedef long CK_LONG;
typedef CK_ULONG CK_FLAGS;
typedef CK_ULONG CK_RV;
typedef CK_ULONG CK_SLOT_ID;
typedef CK_ULONG CK_SESSION_HANDLE;
typedef CK_ULONG CK_OBJECT_HANDLE;
typedef CK_ULONG CK_USER_TYPE;
typedef CK_ULONG CK_STATE;
typedef CK_ULONG CK_NOTIFICATION;
typedef CK_ULONG CK_MECHANISM_TYPE;
typedef CK_ULONG CK_ATTRIBUTE_TYPE;

typedef CK_BYTE CK_PTR CK_BYTE_PTR;
typedef CK_CHAR CK_PTR CK_CHAR_PTR;
typedef CK_UTF8CHAR CK_PTR CK_UTF8CHAR_PTR;
typedef CK_ULONG CK_PTR CK_ULONG_PTR;
typedef void CK_PTR CK_VOID_PTR;
typedef CK_VOID_PTR CK_PTR CK_VOID_PTR_PTR;
typedef CK_SLOT_ID CK_PTR CK_SLOT_ID_PTR;
typedef CK_SESSION_HANDLE CK_PTR CK_SESSION_HANDLE_PTR;
typedef CK_OBJECT_HANDLE CK_PTR CK_OBJECT_HANDLE_PTR;
typedef CK_MECHANISM_TYPE CK_PTR CK_MECHANISM_TYPE_PTR;

#define CK_TRUE 1
#define CK_FALSE 0
#define CK_UNAVAILABLE_INFORMATION (~0UL)
#define CK_EFFECTIVELY_INFINITE 0UL
#define CK_INVALID_HANDLE 0UL

/* ---- structs ---- */

typedef struct CK_VERSION {
    CK_BYTE major;
    CK_BYTE minor;
} CK_VERSION;

typedef struct CK_INFO {
    CK_VERSION cryptokiVersion;
    CK_UTF8CHAR manufacturerID[32]; /* blank padded, as every text field below */
    CK_FLAGS flags;
    CK_UTF8CHAR libraryDescription[32];
    CK_VERSION libraryVersion;
} CK_INFO;

typedef struct CK_SLOT_INFO {
    CK_UTF8CHAR slotDescription[64];
    CK_UTF8CHAR manufacturerID[32];
    CK_FLAGS flags;
    CK_VERSION hardwareVersion;
    CK_VERSION firmwareVersion;
} CK_SLOT_INFO;

typedef struct CK_TOKEN_INFO {
    CK_UTF8CHAR label[32];
    CK_UTF8CHAR manufacturerID[32];
    CK_UTF8CHAR model[16];
    CK_CHAR serialNumber[16];
    CK_FLAGS flags;
    CK_ULONG ulMaxSessionCount;
    CK_ULONG ulSessionCount;
    CK_ULONG ulMaxRwSessionCount;
    CK_ULONG ulRwSessionCount;
    CK_ULONG ulMaxPinLen;
    CK_ULONG ulMinPinLen;
    CK_ULONG ulTotalPublicMemory;
    CK_ULONG ulFreePublicMemory;
    CK_ULONG ulTotalPrivateMemory;
    CK_ULONG ulFreePrivateMemory;
    CK_VERSION hardwareVersion;
    CK_VERSION firmwareVersion;
    CK_CHAR utcTime[16];
} CK_TOKEN_INFO;

typedef struct CK_SESSION_INFO {
    CK_SLOT_ID slotID;
    CK_STATE state;
    CK_FLAGS flags;
    CK_ULONG ulDeviceError;
} CK_SESSION_INFO;

typedef struct CK_MECHANISM {
    CK_MECHANISM_TYPE mechanism;
    CK_VOID_PTR pParameter;
    CK_ULONG ulParameterLen;
} CK_MECHANISM;

typedef struct CK_MECHANISM_INFO {
    CK_ULONG ulMinKeySize;
    CK_ULONG ulMaxKeySize;
    CK_FLAGS flags;
} CK_MECHANISM_INFO;

typedef struct CK_ATTRIBUTE {
    CK_ATTRIBUTE_TYPE type;
    CK_VOID_PTR pValue;
    CK_ULONG ulValueLen;
} CK_ATTRIBUTE;

typedef CK_RV (*CK_CREATEMUTEX)(CK_VOID_PTR_PTR ppMutex);
typedef CK_RV (*CK_DESTROYMUTEX)(CK_VOID_PTR pMutex);
typedef CK_RV (*CK_LOCKMUTEX)(CK_VOID_PTR pMutex);
typedef CK_RV (*CK_UNLOCKMUTEX)(CK_VOID_PTR pMutex);
typedef CK_RV (*CK_NOTIFY)(CK_SESSION_HANDLE hSession, CK_NOTIFICATION event,
                           CK_VOID_PTR pApplication);

typedef struct CK_C_INITIALIZE_ARGS {
    CK_CREATEMUTEX CreateMutex;
    CK_DESTROYMUTEX DestroyMutex;
    CK_LOCKMUTEX LockMutex;
    CK_UNLOCKMUTEX UnlockMutex;
    CK_FLAGS flags;
    CK_VOID_PTR pReserved;
} CK_C_INITIALIZE_ARGS;

/* What CA_GetUnassignedSlot fills in: a slot whose lock it has already set. */
typedef struct CK_UNASSIGNED_SLOT_INFO {
    CK_SLOT_ID slotID;
    CK_UTF8CHAR label[32];
} CK_UNASSIGNED_SLOT_INFO;

typedef CK_INFO CK_PTR CK_INFO_PTR;
typedef CK_SLOT_INFO CK_PTR CK_SLOT_INFO_PTR;
typedef CK_TOKEN_INFO CK_PTR CK_TOKEN_INFO_PTR;
typedef CK_SESSION_INFO CK_PTR CK_SESSION_INFO_PTR;
typedef CK_MECHANISM CK_PTR CK_MECHANISM_PTR;
typedef CK_MECHANISM_INFO CK_PTR CK_MECHANISM_INFO_PTR;
typedef CK_ATTRIBUTE CK_PTR CK_ATTRIBUTE_PTR;
typedef CK_C_INITIALIZE_ARGS CK_PTR CK_C_INITIALIZE_ARGS_PTR;
typedef CK_UNASSIGNED_SLOT_INFO CK_PTR CK_UNASSIGNED_SLOT_INFO_PTR;

/* ---- flags and enumerations ---- */

/* CK_C_INITIALIZE_ARGS.flags */
#define CKF_LIBRARY_CANT_CREATE_OS_THREADS 0x00000001UL
#define CKF_OS_LOCKING_OK 0x00000002UL

/* CK_SLOT_INFO.flags */
#define CKF_TOKEN_PRESENT 0x00000001UL
#define CKF_REMOVABLE_DEVICE 0x00000002UL
#define CKF_HW_SLOT 0x00000004UL

/* CK_TOKEN_INFO.flags */
#define CKF_RNG 0x00000001UL
#define CKF_WRITE_PROTECTED 0x00000002UL
#define CKF_LOGIN_REQUIRED 0x00000004UL
#define CKF_USER_PIN_INITIALIZED 0x00000008UL
#define CKF_RESTORE_KEY_NOT_NEEDED 0x00000020UL
#define CKF_CLOCK_ON_TOKEN 0x00000040UL
#define CKF_PROTECTED_AUTHENTICATION_PATH 0x00000100UL
#define CKF_DUAL_CRYPTO_OPERATIONS 0x00000200UL
#define CKF_TOKEN_INITIALIZED 0x00000400UL
#define CKF_SECONDARY_AUTHENTICATION 0x00000800UL
#define CKF_USER_PIN_COUNT_LOW 0x00010000UL
#define CKF_USER_PIN_FINAL_TRY 0x00020000UL
#define CKF_USER_PIN_LOCKED 0x00040000UL
#define CKF_USER_PIN_TO_BE_CHANGED 0x00080000UL
#define CKF_SO_PIN_COUNT_LOW 0x00100000UL
#define CKF_SO_PIN_FINAL_TRY 0x00200000UL
#define CKF_SO_PIN_LOCKED 0x00400000UL
#define CKF_SO_PIN_TO_BE_CHANGED 0x00800000UL
#define CKF_ERROR_STATE 0x01000000UL

/* CK_SESSION_INFO.flags, C_OpenSession */
#define CKF_RW_SESSION 0x00000002UL
#define CKF_SERIAL_SESSION 0x00000004UL

/* C_WaitForSlotEvent */
#define CKF_DONT_BLOCK 0x00000001UL

/* CK_USER_TYPE */
#define CKU_SO 0UL
#define CKU_USER 1UL
#define CKU_CONTEXT_SPECIFIC 2UL
#define CKU_LIMITED_USER 0x80000001UL     /* the vendor's */
#define CKU_LIMITED_USER_OLD 0x08000001UL /* the same in older clients */

/* CK_STATE */
#define CKS_RO_PUBLIC_SESSION 0UL
#define CKS_RO_USER_FUNCTIONS 1UL
#define CKS_RW_PUBLIC_SESSION 2UL
#define CKS_RW_USER_FUNCTIONS 3UL
#define CKS_RW_SO_FUNCTIONS 4UL

/* ---- return codes ---- */

#define CKR_OK                                ((CK_RV)0x00000000UL)
#define CKR_CANCEL                            ((CK_RV)0x00000001UL)
#define CKR_HOST_MEMORY                       ((CK_RV)0x00000002UL)
#define CKR_SLOT_ID_INVALID                   ((CK_RV)0x00000003UL)
#define CKR_GENERAL_ERROR                     ((CK_RV)0x00000005UL)
#define CKR_FUNCTION_FAILED                   ((CK_RV)0x00000006UL)
#define CKR_ARGUMENTS_BAD                     ((CK_RV)0x00000007UL)
#define CKR_NO_EVENT                          ((CK_RV)0x00000008UL)
#define CKR_NEED_TO_CREATE_THREADS            ((CK_RV)0x00000009UL)
#define CKR_CANT_LOCK                         ((CK_RV)0x0000000AUL)
#define CKR_ATTRIBUTE_READ_ONLY               ((CK_RV)0x00000010UL)
#define CKR_ATTRIBUTE_SENSITIVE               ((CK_RV)0x00000011UL)
#define CKR_ATTRIBUTE_TYPE_INVALID            ((CK_RV)0x00000012UL)
#define CKR_ATTRIBUTE_VALUE_INVALID           ((CK_RV)0x00000013UL)
#define CKR_ACTION_PROHIBITED                 ((CK_RV)0x0000001BUL)
#define CKR_DATA_INVALID                      ((CK_RV)0x00000020UL)
#define CKR_DATA_LEN_RANGE                    ((CK_RV)0x00000021UL)
#define CKR_DEVICE_ERROR                      ((CK_RV)0x00000030UL)
#define CKR_DEVICE_MEMORY                     ((CK_RV)0x00000031UL)
#define CKR_DEVICE_REMOVED                    ((CK_RV)0x00000032UL)
#define CKR_ENCRYPTED_DATA_INVALID            ((CK_RV)0x00000040UL)
#define CKR_ENCRYPTED_DATA_LEN_RANGE          ((CK_RV)0x00000041UL)
#define CKR_FUNCTION_CANCELED                 ((CK_RV)0x00000050UL)
#define CKR_FUNCTION_NOT_PARALLEL             ((CK_RV)0x00000051UL)
#define CKR_FUNCTION_NOT_SUPPORTED            ((CK_RV)0x00000054UL)
#define CKR_KEY_HANDLE_INVALID                ((CK_RV)0x00000060UL)
#define CKR_KEY_SIZE_RANGE                    ((CK_RV)0x00000062UL)
#define CKR_KEY_TYPE_INCONSISTENT             ((CK_RV)0x00000063UL)
#define CKR_KEY_NOT_NEEDED                    ((CK_RV)0x00000064UL)
#define CKR_KEY_CHANGED                       ((CK_RV)0x00000065UL)
#define CKR_KEY_NEEDED                        ((CK_RV)0x00000066UL)
#define CKR_KEY_INDIGESTIBLE                  ((CK_RV)0x00000067UL)
#define CKR_KEY_FUNCTION_NOT_PERMITTED        ((CK_RV)0x00000068UL)
#define CKR_KEY_NOT_WRAPPABLE                 ((CK_RV)0x00000069UL)
#define CKR_KEY_UNEXTRACTABLE                 ((CK_RV)0x0000006AUL)
#define CKR_MECHANISM_INVALID                 ((CK_RV)0x00000070UL)
#define CKR_MECHANISM_PARAM_INVALID           ((CK_RV)0x00000071UL)
#define CKR_OBJECT_HANDLE_INVALID             ((CK_RV)0x00000082UL)
#define CKR_OPERATION_ACTIVE                  ((CK_RV)0x00000090UL)
#define CKR_OPERATION_NOT_INITIALIZED         ((CK_RV)0x00000091UL)
#define CKR_PIN_INCORRECT                     ((CK_RV)0x000000A0UL)
#define CKR_PIN_INVALID                       ((CK_RV)0x000000A1UL)
#define CKR_PIN_LEN_RANGE                     ((CK_RV)0x000000A2UL)
#define CKR_PIN_EXPIRED                       ((CK_RV)0x000000A3UL)
#define CKR_PIN_LOCKED                        ((CK_RV)0x000000A4UL)
#define CKR_SESSION_CLOSED                    ((CK_RV)0x000000B0UL)
#define CKR_SESSION_COUNT                     ((CK_RV)0x000000B1UL)
#define CKR_SESSION_HANDLE_INVALID            ((CK_RV)0x000000B3UL)
#define CKR_SESSION_PARALLEL_NOT_SUPPORTED    ((CK_RV)0x000000B4UL)
#define CKR_SESSION_READ_ONLY                 ((CK_RV)0x000000B5UL)
#define CKR_SESSION_EXISTS                    ((CK_RV)0x000000B6UL)
#define CKR_SESSION_READ_ONLY_EXISTS          ((CK_RV)0x000000B7UL)
#define CKR_SESSION_READ_WRITE_SO_EXISTS      ((CK_RV)0x000000B8UL)
#define CKR_SIGNATURE_INVALID                 ((CK_RV)0x000000C0UL)
#define CKR_SIGNATURE_LEN_RANGE               ((CK_RV)0x000000C1UL)
#define CKR_TEMPLATE_INCOMPLETE               ((CK_RV)0x000000D0UL)
#define CKR_TEMPLATE_INCONSISTENT             ((CK_RV)0x000000D1UL)
#define CKR_TOKEN_NOT_PRESENT                 ((CK_RV)0x000000E0UL)
#define CKR_TOKEN_NOT_RECOGNIZED              ((CK_RV)0x000000E1UL)
#define CKR_TOKEN_WRITE_PROTECTED             ((CK_RV)0x000000E2UL)
#define CKR_UNWRAPPING_KEY_HANDLE_INVALID     ((CK_RV)0x000000F0UL)
#define CKR_UNWRAPPING_KEY_SIZE_RANGE         ((CK_RV)0x000000F1UL)
#define CKR_UNWRAPPING_KEY_TYPE_INCONSISTENT  ((CK_RV)0x000000F2UL)
#define CKR_USER_ALREADY_LOGGED_IN            ((CK_RV)0x00000100UL)
#define CKR_USER_NOT_LOGGED_IN                ((CK_RV)0x00000101UL)
#define CKR_USER_PIN_NOT_INITIALIZED          ((CK_RV)0x00000102UL)
#define CKR_USER_TYPE_INVALID                 ((CK_RV)0x00000103UL)
#define CKR_USER_ANOTHER_ALREADY_LOGGED_IN    ((CK_RV)0x00000104UL)
#define CKR_USER_TOO_MANY_TYPES               ((CK_RV)0x00000105UL)
#define CKR_WRAPPED_KEY_INVALID               ((CK_RV)0x00000110UL)
#define CKR_WRAPPED_KEY_LEN_RANGE             ((CK_RV)0x00000112UL)
#define CKR_WRAPPING_KEY_HANDLE_INVALID       ((CK_RV)0x00000113UL)
#define CKR_WRAPPING_KEY_SIZE_RANGE           ((CK_RV)0x00000114UL)
#define CKR_WRAPPING_KEY_TYPE_INCONSISTENT    ((CK_RV)0x00000115UL)
#define CKR_RANDOM_SEED_NOT_SUPPORTED         ((CK_RV)0x00000120UL)
#define CKR_RANDOM_NO_RNG                     ((CK_RV)0x00000121UL)
#define CKR_DOMAIN_PARAMS_INVALID             ((CK_RV)0x00000130UL)
#define CKR_CURVE_NOT_SUPPORTED               ((CK_RV)0x00000140UL)
#define CKR_BUFFER_TOO_SMALL                  ((CK_RV)0x00000150UL)
#define CKR_SAVED_STATE_INVALID               ((CK_RV)0x00000160UL)
#define CKR_INFORMATION_SENSITIVE             ((CK_RV)0x00000170UL)
#define CKR_STATE_UNSAVEABLE                  ((CK_RV)0x00000180UL)
#define CKR_CRYPTOKI_NOT_INITIALIZED          ((CK_RV)0x00000190UL)
#define CKR_CRYPTOKI_ALREADY_INITIALIZED      ((CK_RV)0x00000191UL)
#define CKR_MUTEX_BAD                         ((CK_RV)0x000001A0UL)
#define CKR_MUTEX_NOT_LOCKED                  ((CK_RV)0x000001A1UL)
#define CKR_NEW_PIN_MODE                      ((CK_RV)0x000001B0UL)
#define CKR_NEXT_OTP                          ((CK_RV)0x000001B1UL)
#define CKR_EXCEEDED_MAX_ITERATIONS           ((CK_RV)0x000001B5UL)
#define CKR_FIPS_SELF_TEST_FAILED             ((CK_RV)0x000001B6UL)
#define CKR_LIBRARY_LOAD_FAILED               ((CK_RV)0x000001B7UL)
#define CKR_PIN_TOO_WEAK                      ((CK_RV)0x000001B8UL)
#define CKR_PUBLIC_KEY_INVALID                ((CK_RV)0x000001B9UL)
#define CKR_FUNCTION_REJECTED                 ((CK_RV)0x00000200UL)
#define CKR_VENDOR_DEFINED                    ((CK_RV)0x80000000UL)

/* ---- functions ---- */

typedef struct CK_FUNCTION_LIST CK_FUNCTION_LIST;
typedef CK_FUNCTION_LIST CK_PTR CK_FUNCTION_LIST_PTR;
typedef CK_FUNCTION_LIST_PTR CK_PTR CK_FUNCTION_LIST_PTR_PTR;

/* Every function of v2.40, in the order of CK_FUNCTION_LIST: X(name, (parameters)). */
/* clang-format off */
#define CRYPTOKI_FUNCTIONS(X)                                                                  \
    X(C_Initialize, (CK_VOID_PTR pInitArgs))                                                   \
    X(C_Finalize, (CK_VOID_PTR pReserved))                                                     \
    X(C_GetInfo, (CK_INFO_PTR pInfo))                                                          \
    X(C_GetFunctionList, (CK_FUNCTION_LIST_PTR_PTR ppFunctionList))                            \
    X(C_GetSlotList, (CK_BBOOL tokenPresent, CK_SLOT_ID_PTR pSlotList, CK_ULONG_PTR pulCount)) \
    X(C_GetSlotInfo, (CK_SLOT_ID slotID, CK_SLOT_INFO_PTR pInfo))                              \
    X(C_GetTokenInfo, (CK_SLOT_ID slotID, CK_TOKEN_INFO_PTR pInfo))                            \
    X(C_GetMechanismList, (CK_SLOT_ID slotID, CK_MECHANISM_TYPE_PTR pMechanismList,            \
      CK_ULONG_PTR pulCount))                                                                  \
    X(C_GetMechanismInfo, (CK_SLOT_ID slotID, CK_MECHANISM_TYPE type, CK_MECHANISM_INFO_PTR    \
      pInfo))                                                                                  \
    X(C_InitToken, (CK_SLOT_ID slotID, CK_UTF8CHAR_PTR pPin, CK_ULONG ulPinLen,                \
      CK_UTF8CHAR_PTR pLabel))                                                                 \
    X(C_InitPIN, (CK_SESSION_HANDLE hSession, CK_UTF8CHAR_PTR pPin, CK_ULONG ulPinLen))        \
    X(C_SetPIN, (CK_SESSION_HANDLE hSession, CK_UTF8CHAR_PTR pOldPin, CK_ULONG ulOldLen,       \
      CK_UTF8CHAR_PTR pNewPin, CK_ULONG ulNewLen))                                             \
    X(C_OpenSession, (CK_SLOT_ID slotID, CK_FLAGS flags, CK_VOID_PTR pApplication, CK_NOTIFY   \
      Notify, CK_SESSION_HANDLE_PTR phSession))                                                \
    X(C_CloseSession, (CK_SESSION_HANDLE hSession))                                            \
    X(C_CloseAllSessions, (CK_SLOT_ID slotID))                                                 \
    X(C_GetSessionInfo, (CK_SESSION_HANDLE hSession, CK_SESSION_INFO_PTR pInfo))               \
    X(C_GetOperationState, (CK_SESSION_HANDLE hSession, CK_BYTE_PTR pOperationState,           \
      CK_ULONG_PTR pulOperationStateLen))                                                      \
    X(C_SetOperationState, (CK_SESSION_HANDLE hSession, CK_BYTE_PTR pOperationState,           \
      CK_ULONG ulOperationStateLen, CK_OBJECT_HANDLE hEncryptionKey, CK_OBJECT_HANDLE          \
      hAuthenticationKey))                                                                     \
    X(C_Login, (CK_SESSION_HANDLE hSession, CK_USER_TYPE userType, CK_UTF8CHAR_PTR pPin,       \
      CK_ULONG ulPinLen))                                                                      \
    X(C_Logout, (CK_SESSION_HANDLE hSession))                                                  \
    X(C_CreateObject, (CK_SESSION_HANDLE hSession, CK_ATTRIBUTE_PTR pTemplate, CK_ULONG        \
      ulCount, CK_OBJECT_HANDLE_PTR phObject))                                                 \
    X(C_CopyObject, (CK_SESSION_HANDLE hSession, CK_OBJECT_HANDLE hObject, CK_ATTRIBUTE_PTR    \
      pTemplate, CK_ULONG ulCount, CK_OBJECT_HANDLE_PTR phNewObject))                          \
    X(C_DestroyObject, (CK_SESSION_HANDLE hSession, CK_OBJECT_HANDLE hObject))                 \
    X(C_GetObjectSize, (CK_SESSION_HANDLE hSession, CK_OBJECT_HANDLE hObject, CK_ULONG_PTR     \
      pulSize))                                                                                \
    X(C_GetAttributeValue, (CK_SESSION_HANDLE hSession, CK_OBJECT_HANDLE hObject,              \
      CK_ATTRIBUTE_PTR pTemplate, CK_ULONG ulCount))                                           \
    X(C_SetAttributeValue, (CK_SESSION_HANDLE hSession, CK_OBJECT_HANDLE hObject,              \
      CK_ATTRIBUTE_PTR pTemplate, CK_ULONG ulCount))                                           \
    X(C_FindObjectsInit, (CK_SESSION_HANDLE hSession, CK_ATTRIBUTE_PTR pTemplate, CK_ULONG     \
      ulCount))                                                                                \
    X(C_FindObjects, (CK_SESSION_HANDLE hSession, CK_OBJECT_HANDLE_PTR phObject, CK_ULONG      \
      ulMaxObjectCount, CK_ULONG_PTR pulObjectCount))                                          \
    X(C_FindObjectsFinal, (CK_SESSION_HANDLE hSession))                                        \
    X(C_EncryptInit, (CK_SESSION_HANDLE hSession, CK_MECHANISM_PTR pMechanism,                 \
      CK_OBJECT_HANDLE hKey))                                                                  \
    X(C_Encrypt, (CK_SESSION_HANDLE hSession, CK_BYTE_PTR pData, CK_ULONG ulDataLen,           \
      CK_BYTE_PTR pEncryptedData, CK_ULONG_PTR pulEncryptedDataLen))                           \
    X(C_EncryptUpdate, (CK_SESSION_HANDLE hSession, CK_BYTE_PTR pPart, CK_ULONG ulPartLen,     \
      CK_BYTE_PTR pEncryptedPart, CK_ULONG_PTR pulEncryptedPartLen))                           \
    X(C_EncryptFinal, (CK_SESSION_HANDLE hSession, CK_BYTE_PTR pLastEncryptedPart,             \
      CK_ULONG_PTR pulLastEncryptedPartLen))                                                   \
    X(C_DecryptInit, (CK_SESSION_HANDLE hSession, CK_MECHANISM_PTR pMechanism,                 \
      CK_OBJECT_HANDLE hKey))                                                                  \
    X(C_Decrypt, (CK_SESSION_HANDLE hSession, CK_BYTE_PTR pEncryptedData, CK_ULONG             \
      ulEncryptedDataLen, CK_BYTE_PTR pData, CK_ULONG_PTR pulDataLen))                         \
    X(C_DecryptUpdate, (CK_SESSION_HANDLE hSession, CK_BYTE_PTR pEncryptedPart, CK_ULONG       \
      ulEncryptedPartLen, CK_BYTE_PTR pPart, CK_ULONG_PTR pulPartLen))                         \
    X(C_DecryptFinal, (CK_SESSION_HANDLE hSession, CK_BYTE_PTR pLastPart, CK_ULONG_PTR         \
      pulLastPartLen))                                                                         \
    X(C_DigestInit, (CK_SESSION_HANDLE hSession, CK_MECHANISM_PTR pMechanism))                 \
    X(C_Digest, (CK_SESSION_HANDLE hSession, CK_BYTE_PTR pData, CK_ULONG ulDataLen,            \
      CK_BYTE_PTR pDigest, CK_ULONG_PTR pulDigestLen))                                         \
    X(C_DigestUpdate, (CK_SESSION_HANDLE hSession, CK_BYTE_PTR pPart, CK_ULONG ulPartLen))     \
    X(C_DigestKey, (CK_SESSION_HANDLE hSession, CK_OBJECT_HANDLE hKey))                        \
    X(C_DigestFinal, (CK_SESSION_HANDLE hSession, CK_BYTE_PTR pDigest, CK_ULONG_PTR            \
      pulDigestLen))                                                                           \
    X(C_SignInit, (CK_SESSION_HANDLE hSession, CK_MECHANISM_PTR pMechanism, CK_OBJECT_HANDLE   \
      hKey))                                                                                   \
    X(C_Sign, (CK_SESSION_HANDLE hSession, CK_BYTE_PTR pData, CK_ULONG ulDataLen,              \
      CK_BYTE_PTR pSignature, CK_ULONG_PTR pulSignatureLen))                                   \
    X(C_SignUpdate, (CK_SESSION_HANDLE hSession, CK_BYTE_PTR pPart, CK_ULONG ulPartLen))       \
    X(C_SignFinal, (CK_SESSION_HANDLE hSession, CK_BYTE_PTR pSignature, CK_ULONG_PTR           \
      pulSignatureLen))                                                                        \
    X(C_SignRecoverInit, (CK_SESSION_HANDLE hSession, CK_MECHANISM_PTR pMechanism,             \
      CK_OBJECT_HANDLE hKey))                                                                  \
    X(C_SignRecover, (CK_SESSION_HANDLE hSession, CK_BYTE_PTR pData, CK_ULONG ulDataLen,       \
      CK_BYTE_PTR pSignature, CK_ULONG_PTR pulSignatureLen))                                   \
    X(C_VerifyInit, (CK_SESSION_HANDLE hSession, CK_MECHANISM_PTR pMechanism,                  \
      CK_OBJECT_HANDLE hKey))                                                                  \
    X(C_Verify, (CK_SESSION_HANDLE hSession, CK_BYTE_PTR pData, CK_ULONG ulDataLen,            \
      CK_BYTE_PTR pSignature, CK_ULONG ulSignatureLen))                                        \
    X(C_VerifyUpdate, (CK_SESSION_HANDLE hSession, CK_BYTE_PTR pPart, CK_ULONG ulPartLen))     \
    X(C_VerifyFinal, (CK_SESSION_HANDLE hSession, CK_BYTE_PTR pSignature, CK_ULONG             \
      ulSignatureLen))                                                                         \
    X(C_VerifyRecoverInit, (CK_SESSION_HANDLE hSession, CK_MECHANISM_PTR pMechanism,           \
      CK_OBJECT_HANDLE hKey))                                                                  \
    X(C_VerifyRecover, (CK_SESSION_HANDLE hSession, CK_BYTE_PTR pSignature, CK_ULONG           \
      ulSignatureLen, CK_BYTE_PTR pData, CK_ULONG_PTR pulDataLen))                             \
    X(C_DigestEncryptUpdate, (CK_SESSION_HANDLE hSession, CK_BYTE_PTR pPart, CK_ULONG          \
      ulPartLen, CK_BYTE_PTR pEncryptedPart, CK_ULONG_PTR pulEncryptedPartLen))                \
    X(C_DecryptDigestUpdate, (CK_SESSION_HANDLE hSession, CK_BYTE_PTR pEncryptedPart,          \
      CK_ULONG ulEncryptedPartLen, CK_BYTE_PTR pPart, CK_ULONG_PTR pulPartLen))                \
    X(C_SignEncryptUpdate, (CK_SESSION_HANDLE hSession, CK_BYTE_PTR pPart, CK_ULONG            \
      ulPartLen, CK_BYTE_PTR pEncryptedPart, CK_ULONG_PTR pulEncryptedPartLen))                \
    X(C_DecryptVerifyUpdate, (CK_SESSION_HANDLE hSession, CK_BYTE_PTR pEncryptedPart,          \
      CK_ULONG ulEncryptedPartLen, CK_BYTE_PTR pPart, CK_ULONG_PTR pulPartLen))                \
    X(C_GenerateKey, (CK_SESSION_HANDLE hSession, CK_MECHANISM_PTR pMechanism,                 \
      CK_ATTRIBUTE_PTR pTemplate, CK_ULONG ulCount, CK_OBJECT_HANDLE_PTR phKey))               \
    X(C_GenerateKeyPair, (CK_SESSION_HANDLE hSession, CK_MECHANISM_PTR pMechanism,             \
      CK_ATTRIBUTE_PTR pPublicKeyTemplate, CK_ULONG ulPublicKeyAttributeCount,                 \
      CK_ATTRIBUTE_PTR pPrivateKeyTemplate, CK_ULONG ulPrivateKeyAttributeCount,               \
      CK_OBJECT_HANDLE_PTR phPublicKey, CK_OBJECT_HANDLE_PTR phPrivateKey))                    \
    X(C_WrapKey, (CK_SESSION_HANDLE hSession, CK_MECHANISM_PTR pMechanism, CK_OBJECT_HANDLE    \
      hWrappingKey, CK_OBJECT_HANDLE hKey, CK_BYTE_PTR pWrappedKey, CK_ULONG_PTR               \
      pulWrappedKeyLen))                                                                       \
    X(C_UnwrapKey, (CK_SESSION_HANDLE hSession, CK_MECHANISM_PTR pMechanism,                   \
      CK_OBJECT_HANDLE hUnwrappingKey, CK_BYTE_PTR pWrappedKey, CK_ULONG ulWrappedKeyLen,      \
      CK_ATTRIBUTE_PTR pTemplate, CK_ULONG ulAttributeCount, CK_OBJECT_HANDLE_PTR phKey))      \
    X(C_DeriveKey, (CK_SESSION_HANDLE hSession, CK_MECHANISM_PTR pMechanism,                   \
      CK_OBJECT_HANDLE hBaseKey, CK_ATTRIBUTE_PTR pTemplate, CK_ULONG ulAttributeCount,        \
      CK_OBJECT_HANDLE_PTR phKey))                                                             \
    X(C_SeedRandom, (CK_SESSION_HANDLE hSession, CK_BYTE_PTR pSeed, CK_ULONG ulSeedLen))       \
    X(C_GenerateRandom, (CK_SESSION_HANDLE hSession, CK_BYTE_PTR pRandomData, CK_ULONG         \
      ulRandomLen))                                                                            \
    X(C_GetFunctionStatus, (CK_SESSION_HANDLE hSession))                                       \
    X(C_CancelFunction, (CK_SESSION_HANDLE hSession))                                          \
    X(C_WaitForSlotEvent, (CK_FLAGS flags, CK_SLOT_ID_PTR pSlot, CK_VOID_PTR pReserved))
/* clang-format on */

#define CRYPTOKI_DECLARE(name, parameters) \
    extern CK_RV name parameters;          \
    typedef CK_RV(*CK_##name) parameters;
CRYPTOKI_FUNCTIONS(CRYPTOKI_DECLARE)
#undef CRYPTOKI_DECLARE

struct CK_FUNCTION_LIST {
    CK_VERSION version;
#define CRYPTOKI_MEMBER(name, parameters) CK_##name name;
    CRYPTOKI_FUNCTIONS(CRYPTOKI_MEMBER)
#undef CRYPTOKI_MEMBER
};

/* ---- the Luna cluster extensions: exported by name, not part of CK_FUNCTION_LIST ---- */

/* Slots of the tokens with this label: 32 bytes, blank padded, not NUL-terminated. */
extern CK_RV CA_GetSlotId(CK_UTF8CHAR label[32], CK_SLOT_ID_PTR pSlotId, CK_ULONG_PTR pulCount);
/* The next unassigned token; it comes back with its lock set. */
extern CK_RV CA_GetUnassignedSlot(const CK_CHAR_PTR clusterID,
                                  CK_UNASSIGNED_SLOT_INFO_PTR pUnassignedSlot);
extern CK_RV CA_LockClusteredSlot(CK_SLOT_ID slotID);
extern CK_RV CA_UnlockClusteredSlot(CK_SLOT_ID slotID);

/* ---- what some clients export besides ---- */

/* Gives the token of this slot, with which the session is, another label: 1 to 32 bytes, not
   NUL-terminated. It erases nothing, unlike C_InitToken. The security officer has to be logged in. */
extern CK_RV CA_ChangeLabel(CK_SESSION_HANDLE hSession, CK_SLOT_ID slotID, CK_CHAR_PTR pLabel,
                            CK_ULONG ulLabelLen);

/* All of these in one table, as CK_FUNCTION_LIST has the others. The vendor's struct of this name has
   many more members, in an order that is known from its own header alone. So a table of one kind is of
   no use to a program that was compiled for the other: this one has nothing where the other has its
   members but functions that answer CKR_FUNCTION_NOT_SUPPORTED, and its own members behind them. A
   program for both kinds looks the functions up by their names instead. */
#define CK_SFNT_CA_UNKNOWN 1024
typedef struct CK_SFNT_CA_FUNCTION_LIST CK_SFNT_CA_FUNCTION_LIST;
typedef CK_SFNT_CA_FUNCTION_LIST CK_PTR CK_SFNT_CA_FUNCTION_LIST_PTR;
typedef CK_SFNT_CA_FUNCTION_LIST_PTR CK_PTR CK_SFNT_CA_FUNCTION_LIST_PTR_PTR;
extern CK_RV CA_GetFunctionList(CK_SFNT_CA_FUNCTION_LIST_PTR_PTR ppSfntFunctionList);

struct CK_SFNT_CA_FUNCTION_LIST {
    CK_VERSION version;
    CK_RV(CK_PTR unknown[CK_SFNT_CA_UNKNOWN])(void);
    CK_RV(CK_PTR CA_GetFunctionList)(CK_SFNT_CA_FUNCTION_LIST_PTR_PTR ppSfntFunctionList);
    CK_RV(CK_PTR CA_GetSlotId)(CK_UTF8CHAR label[32], CK_SLOT_ID_PTR pSlotId, CK_ULONG_PTR pulCount);
    CK_RV(CK_PTR CA_GetUnassignedSlot)(const CK_CHAR_PTR clusterID,
                                       CK_UNASSIGNED_SLOT_INFO_PTR pUnassignedSlot);
    CK_RV(CK_PTR CA_LockClusteredSlot)(CK_SLOT_ID slotID);
    CK_RV(CK_PTR CA_UnlockClusteredSlot)(CK_SLOT_ID slotID);
    CK_RV(CK_PTR CA_ChangeLabel)(CK_SESSION_HANDLE hSession, CK_SLOT_ID slotID, CK_CHAR_PTR pLabel,
                                 CK_ULONG ulLabelLen);
};

#ifdef _WIN32
#pragma pack(pop, cryptoki)
#endif

#ifdef __cplusplus
}
#endif

#endif /* CRYPTOKI_V2_H */
