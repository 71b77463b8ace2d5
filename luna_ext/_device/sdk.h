/*
 * sdk.h: includes cryptoki_v2.h, ours or the SDK's, and makes up for what an old one lacks.
 */
#ifndef LUNA_EXT_SDK_H
#define LUNA_EXT_SDK_H

/* The SDK's headers do not find out for themselves which platform this is. */
#ifdef _WIN32
#ifndef OS_WIN32
#define OS_WIN32
#endif
#else
#ifndef OS_UNIX
#define OS_UNIX
#endif
#if defined(__linux__) && !defined(OS_LINUX)
#define OS_LINUX
#endif
#endif

#include "cryptoki_v2.h"

/* What came with Luna client 10.6. setup.py finds out which of it is not there. That an older client has no
 * such functions is noticed at run time, when each is looked up by its name. */
#ifdef SDK_LACKS_CK_UNASSIGNED_SLOT_INFO
#ifdef _WIN32
#pragma pack(push, 1)
#endif
typedef struct CK_UNASSIGNED_SLOT_INFO {
    CK_SLOT_ID slotID;
    CK_UTF8CHAR label[32];
} CK_UNASSIGNED_SLOT_INFO;
#ifdef _WIN32
#pragma pack(pop)
#endif
#endif
#ifdef SDK_LACKS_CA_GetSlotId
extern CK_RV CA_GetSlotId(CK_UTF8CHAR label[32], CK_SLOT_ID *pSlotId, CK_ULONG *pulCount);
#endif
#ifdef SDK_LACKS_CA_GetUnassignedSlot
extern CK_RV CA_GetUnassignedSlot(CK_CHAR *const clusterID,
                                  CK_UNASSIGNED_SLOT_INFO *pUnassignedSlot);
#endif

#endif
