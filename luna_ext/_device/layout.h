/*
 * layout.h: holds whichever cryptoki_v2.h is included, ours or the SDK's, to one binary layout.
 *
 * A client library reads and writes these structs through pointers, so a header that packs them
 * in another way would corrupt memory at run time; it fails to compile instead.
 */
#ifndef LUNA_EXT_LAYOUT_H
#define LUNA_EXT_LAYOUT_H

#include <stddef.h>

#include "sdk.h"

#if defined(__cplusplus) || defined(_MSC_VER)
#define LAYOUT_HOLDS(condition) static_assert(condition, "cryptoki_v2.h: " #condition)
#else
#define LAYOUT_HOLDS(condition) _Static_assert(condition, "cryptoki_v2.h: " #condition)
#endif

/* Windows packs to 1 byte and has a CK_ULONG of 4 bytes. Elsewhere CK_ULONG has the size of a
 * pointer and the alignment is natural. */
#ifdef _WIN32
#define LAYOUT_WORD 4
#define LAYOUT_PACKED_OR(packed, natural) (packed)
#else
#define LAYOUT_WORD sizeof(void *)
#define LAYOUT_PACKED_OR(packed, natural) (natural)
#endif
#define LAYOUT_POINTER sizeof(void *)
/* The next multiple of a word, where alignment is natural. */
#define LAYOUT_ALIGNED(size) \
    LAYOUT_PACKED_OR((size), ((size) + LAYOUT_WORD - 1) / LAYOUT_WORD * LAYOUT_WORD)

LAYOUT_HOLDS(sizeof(CK_ULONG) == LAYOUT_WORD);
LAYOUT_HOLDS(sizeof(CK_RV) == LAYOUT_WORD);
LAYOUT_HOLDS(sizeof(CK_SLOT_ID) == LAYOUT_WORD);
LAYOUT_HOLDS(sizeof(CK_SESSION_HANDLE) == LAYOUT_WORD);
LAYOUT_HOLDS(sizeof(CK_BBOOL) == 1);
LAYOUT_HOLDS(sizeof(CK_UTF8CHAR) == 1);

LAYOUT_HOLDS(sizeof(CK_VERSION) == 2);
LAYOUT_HOLDS(offsetof(CK_VERSION, minor) == 1);

LAYOUT_HOLDS(offsetof(CK_INFO, cryptokiVersion) == 0);
LAYOUT_HOLDS(offsetof(CK_INFO, manufacturerID) == 2);
LAYOUT_HOLDS(offsetof(CK_INFO, flags) == LAYOUT_ALIGNED(34));
LAYOUT_HOLDS(offsetof(CK_INFO, libraryDescription) == LAYOUT_ALIGNED(34) + LAYOUT_WORD);
LAYOUT_HOLDS(offsetof(CK_INFO, libraryVersion) == LAYOUT_ALIGNED(34) + LAYOUT_WORD + 32);
LAYOUT_HOLDS(sizeof(CK_INFO) == LAYOUT_ALIGNED(LAYOUT_ALIGNED(34) + LAYOUT_WORD + 34));

LAYOUT_HOLDS(offsetof(CK_SLOT_INFO, slotDescription) == 0);
LAYOUT_HOLDS(offsetof(CK_SLOT_INFO, manufacturerID) == 64);
LAYOUT_HOLDS(offsetof(CK_SLOT_INFO, flags) == 96);
LAYOUT_HOLDS(offsetof(CK_SLOT_INFO, hardwareVersion) == 96 + LAYOUT_WORD);
LAYOUT_HOLDS(offsetof(CK_SLOT_INFO, firmwareVersion) == 98 + LAYOUT_WORD);
LAYOUT_HOLDS(sizeof(CK_SLOT_INFO) == LAYOUT_ALIGNED(100 + LAYOUT_WORD));

LAYOUT_HOLDS(offsetof(CK_TOKEN_INFO, label) == 0);
LAYOUT_HOLDS(offsetof(CK_TOKEN_INFO, manufacturerID) == 32);
LAYOUT_HOLDS(offsetof(CK_TOKEN_INFO, model) == 64);
LAYOUT_HOLDS(offsetof(CK_TOKEN_INFO, serialNumber) == 80);
LAYOUT_HOLDS(offsetof(CK_TOKEN_INFO, flags) == 96);
LAYOUT_HOLDS(offsetof(CK_TOKEN_INFO, ulMaxSessionCount) == 96 + LAYOUT_WORD);
LAYOUT_HOLDS(offsetof(CK_TOKEN_INFO, ulSessionCount) == 96 + 2 * LAYOUT_WORD);
LAYOUT_HOLDS(offsetof(CK_TOKEN_INFO, ulMaxRwSessionCount) == 96 + 3 * LAYOUT_WORD);
LAYOUT_HOLDS(offsetof(CK_TOKEN_INFO, ulRwSessionCount) == 96 + 4 * LAYOUT_WORD);
LAYOUT_HOLDS(offsetof(CK_TOKEN_INFO, ulMaxPinLen) == 96 + 5 * LAYOUT_WORD);
LAYOUT_HOLDS(offsetof(CK_TOKEN_INFO, ulMinPinLen) == 96 + 6 * LAYOUT_WORD);
LAYOUT_HOLDS(offsetof(CK_TOKEN_INFO, ulTotalPublicMemory) == 96 + 7 * LAYOUT_WORD);
LAYOUT_HOLDS(offsetof(CK_TOKEN_INFO, ulFreePublicMemory) == 96 + 8 * LAYOUT_WORD);
LAYOUT_HOLDS(offsetof(CK_TOKEN_INFO, ulTotalPrivateMemory) == 96 + 9 * LAYOUT_WORD);
LAYOUT_HOLDS(offsetof(CK_TOKEN_INFO, ulFreePrivateMemory) == 96 + 10 * LAYOUT_WORD);
LAYOUT_HOLDS(offsetof(CK_TOKEN_INFO, hardwareVersion) == 96 + 11 * LAYOUT_WORD);
LAYOUT_HOLDS(offsetof(CK_TOKEN_INFO, firmwareVersion) == 98 + 11 * LAYOUT_WORD);
LAYOUT_HOLDS(offsetof(CK_TOKEN_INFO, utcTime) == 100 + 11 * LAYOUT_WORD);
LAYOUT_HOLDS(sizeof(CK_TOKEN_INFO) == LAYOUT_ALIGNED(116 + 11 * LAYOUT_WORD));

LAYOUT_HOLDS(offsetof(CK_SESSION_INFO, slotID) == 0);
LAYOUT_HOLDS(offsetof(CK_SESSION_INFO, state) == LAYOUT_WORD);
LAYOUT_HOLDS(offsetof(CK_SESSION_INFO, flags) == 2 * LAYOUT_WORD);
LAYOUT_HOLDS(offsetof(CK_SESSION_INFO, ulDeviceError) == 3 * LAYOUT_WORD);
LAYOUT_HOLDS(sizeof(CK_SESSION_INFO) == 4 * LAYOUT_WORD);

LAYOUT_HOLDS(offsetof(CK_C_INITIALIZE_ARGS, CreateMutex) == 0);
LAYOUT_HOLDS(offsetof(CK_C_INITIALIZE_ARGS, DestroyMutex) == LAYOUT_POINTER);
LAYOUT_HOLDS(offsetof(CK_C_INITIALIZE_ARGS, LockMutex) == 2 * LAYOUT_POINTER);
LAYOUT_HOLDS(offsetof(CK_C_INITIALIZE_ARGS, UnlockMutex) == 3 * LAYOUT_POINTER);
LAYOUT_HOLDS(offsetof(CK_C_INITIALIZE_ARGS, flags) == 4 * LAYOUT_POINTER);
LAYOUT_HOLDS(offsetof(CK_C_INITIALIZE_ARGS, pReserved) == 4 * LAYOUT_POINTER + LAYOUT_WORD);
LAYOUT_HOLDS(sizeof(CK_C_INITIALIZE_ARGS) == 5 * LAYOUT_POINTER + LAYOUT_WORD);

LAYOUT_HOLDS(offsetof(CK_UNASSIGNED_SLOT_INFO, slotID) == 0);
LAYOUT_HOLDS(offsetof(CK_UNASSIGNED_SLOT_INFO, label) == LAYOUT_WORD);
LAYOUT_HOLDS(sizeof(CK_UNASSIGNED_SLOT_INFO) == LAYOUT_WORD + 32);

/* The version, then 68 function pointers in the standard's order. */
#define LAYOUT_FUNCTION(name, index)                        \
    LAYOUT_HOLDS(offsetof(CK_FUNCTION_LIST, name) ==        \
                 LAYOUT_PACKED_OR(2, LAYOUT_POINTER) + (index) * LAYOUT_POINTER)
LAYOUT_HOLDS(offsetof(CK_FUNCTION_LIST, version) == 0);
LAYOUT_FUNCTION(C_Initialize, 0);
LAYOUT_FUNCTION(C_Finalize, 1);
LAYOUT_FUNCTION(C_GetInfo, 2);
LAYOUT_FUNCTION(C_GetFunctionList, 3);
LAYOUT_FUNCTION(C_GetSlotList, 4);
LAYOUT_FUNCTION(C_GetSlotInfo, 5);
LAYOUT_FUNCTION(C_GetTokenInfo, 6);
LAYOUT_FUNCTION(C_InitToken, 9);
LAYOUT_FUNCTION(C_InitPIN, 10);
LAYOUT_FUNCTION(C_SetPIN, 11);
LAYOUT_FUNCTION(C_OpenSession, 12);
LAYOUT_FUNCTION(C_CloseSession, 13);
LAYOUT_FUNCTION(C_GetSessionInfo, 15);
LAYOUT_FUNCTION(C_Login, 18);
LAYOUT_FUNCTION(C_Logout, 19);
LAYOUT_FUNCTION(C_WaitForSlotEvent, 67);
LAYOUT_HOLDS(sizeof(CK_FUNCTION_LIST) == LAYOUT_PACKED_OR(2, LAYOUT_POINTER) + 68 * LAYOUT_POINTER);

#endif
