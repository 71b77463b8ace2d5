/*
 * old_client.c: stands for a client library that lacks some of the cluster extensions, whose
 * C_GetFunctionList does not do its job, or which cannot be used in a forked child. All that it does
 * have is the stand-in's, but for the manufacturer's name.
 *
 *   -DSTAND_IN="path"         the stand-in's shared library
 *   -DWITH_CA_GetSlotId etc.  exports this function
 *   -DWITHOUT=C_Login etc.    has no such function in its list
 *   -DNAMELESS_CLAIMS         CA_GetUnassignedSlot answers CKR_OK, and not which slot it is
 *   -DUNLABELLED_CLAIMS       it answers which slot it is, and not its label
 *   -DTOKEN_FLAGS=n           adds these to the flags of each token
 *   -DSESSIONS=n              says that n sessions are free on each token
 *   -DLUNA_CLIENT=10,7        says that it is Thales' client, of this version
 *   -DFIRMWARE=7,8,4          CA_GetFirmwareVersion answers this
 *   -DFUNCTION_LIST_RV=n      what C_GetFunctionList answers without giving a list
 *   -DGROWING_FROM=n          the first CA_GetSlotId speaks of n matches, and each later one of
 *                             one more, until there are n + 3
 *   -DIN_CHILD=what           what C_Initialize does in a child of the process that it was called in:
 *                             NOTICES_NOTHING; or, before it answers as that does, HANGS, so that only
 *                             SIGKILL ends it, CRASHES, or KILLS its parent
 *   -DTROUBLE=what            HANGS, CRASHES, ABORTS, EXITS or LEAVES_A_CHILD as it exits, instead of
 *   -DTROUBLE_AT=C_GetInfo    this function of its list; without it, when it is loaded
 *
 * SPDX-License-Identifier: MIT
 */
#define _POSIX_C_SOURCE 200809L
#include <dlfcn.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cryptoki_v2.h"

static void *stand_in(const char *name)
{
    void *library = dlopen(STAND_IN, RTLD_NOW | RTLD_LOCAL);
    void *function = library == NULL ? NULL : dlsym(library, name);
    if (function == NULL)
        abort();
    return function;
}

#ifdef TROUBLE

enum { HANGS, CRASHES, ABORTS, EXITS, LEAVES_A_CHILD };

#ifndef TROUBLE_AT
__attribute__((constructor))
#endif
static CK_RV make_trouble(void)
{
    while (TROUBLE == HANGS || (TROUBLE == LEAVES_A_CHILD && fork() == 0))
        (void)pause();
    if (TROUBLE == CRASHES)
        (void)raise(SIGBUS);
    if (TROUBLE == ABORTS)
        abort();
    exit(3);
}

#endif

#ifdef FUNCTION_LIST_RV

CK_RV C_GetFunctionList(CK_FUNCTION_LIST_PTR_PTR ppFunctionList)
{
    (void)stand_in;
    *ppFunctionList = NULL;
    return FUNCTION_LIST_RV;
}

#else

static CK_FUNCTION_LIST_PTR real;
static CK_FUNCTION_LIST functions;

static CK_RV get_info(CK_INFO_PTR pInfo)
{
    CK_RV rv = real->C_GetInfo(pInfo);
    if (rv != CKR_OK)
        return rv;
#ifdef LUNA_CLIENT
    memcpy(pInfo->manufacturerID, "SafeNet                         ", sizeof pInfo->manufacturerID);
    memcpy(pInfo->libraryDescription, "Chrystoki                       ",
           sizeof pInfo->libraryDescription);
    pInfo->libraryVersion = (CK_VERSION){LUNA_CLIENT};
#else
    memcpy(pInfo->manufacturerID, "Another client's maker          ", sizeof pInfo->manufacturerID);
#endif
    return rv;
}

#ifdef IN_CHILD

enum { NOTICES_NOTHING, HANGS, CRASHES, KILLS };

static pid_t initialised_in;

static CK_RV initialise(CK_VOID_PTR pInitArgs)
{
    CK_RV rv;
    sigset_t all;
    if (initialised_in == 0) {
        rv = real->C_Initialize(pInitArgs);
        if (rv == CKR_OK)
            initialised_in = getpid();
        return rv;
    }
    if (initialised_in != getpid()) {
        if (IN_CHILD == CRASHES)
            (void)raise(SIGSEGV);
        if (IN_CHILD == KILLS)
            (void)kill(getppid(), SIGKILL);
        (void)sigfillset(&all);
        (void)sigprocmask(SIG_BLOCK, &all, NULL);
        while (IN_CHILD == HANGS)
            (void)pause();
    }
    return CKR_CRYPTOKI_ALREADY_INITIALIZED;
}

static CK_RV finalise(CK_VOID_PTR pReserved)
{
    initialised_in = 0;
    return real->C_Finalize(pReserved);
}

#elif defined TOKEN_FLAGS || defined SESSIONS

static CK_RV get_token_info(CK_SLOT_ID slotID, CK_TOKEN_INFO_PTR pInfo)
{
    CK_RV rv = real->C_GetTokenInfo(slotID, pInfo);
    if (rv != CKR_OK)
        return rv;
#ifdef TOKEN_FLAGS
    pInfo->flags |= TOKEN_FLAGS;
#endif
#ifdef SESSIONS
    pInfo->ulMaxSessionCount = 5 + SESSIONS;
    pInfo->ulSessionCount = 5;
#endif
    return rv;
}

#endif

CK_RV C_GetFunctionList(CK_FUNCTION_LIST_PTR_PTR ppFunctionList)
{
    CK_RV rv, (*function)(CK_FUNCTION_LIST_PTR_PTR);
    *(void **)&function = stand_in("C_GetFunctionList");
    rv = function(&real);
    if (rv != CKR_OK)
        return rv;
    functions = *real;
    functions.C_GetInfo = get_info;
#if defined IN_CHILD
    functions.C_Initialize = initialise;
    functions.C_Finalize = finalise;
#elif defined TROUBLE_AT
    {
        CK_RV (*makes_trouble)(void) = make_trouble;
        memcpy(&functions.TROUBLE_AT, &makes_trouble, sizeof makes_trouble);
    }
#elif defined WITHOUT
    functions.WITHOUT = NULL;
#elif defined TOKEN_FLAGS || defined SESSIONS
    functions.C_GetTokenInfo = get_token_info;
#endif
    *ppFunctionList = &functions;
    return CKR_OK;
}

#endif

#ifdef FIRMWARE
CK_RV CA_GetFirmwareVersion(CK_SLOT_ID slotID, CK_ULONG_PTR major, CK_ULONG_PTR minor,
                            CK_ULONG_PTR subminor);
CK_RV CA_GetFirmwareVersion(CK_SLOT_ID slotID, CK_ULONG_PTR major, CK_ULONG_PTR minor,
                            CK_ULONG_PTR subminor)
{
    static const CK_ULONG version[] = {FIRMWARE};
    (void)slotID;
    *major = version[0];
    *minor = version[1];
    *subminor = version[2];
    return CKR_OK;
}
#endif

#ifdef GROWING_FROM
CK_RV CA_GetSlotId(CK_UTF8CHAR label[32], CK_SLOT_ID_PTR pSlotId, CK_ULONG_PTR pulCount)
{
    static CK_ULONG matches = GROWING_FROM;
    CK_ULONG now = matches, room = *pulCount, i;
    (void)label;
    if (matches < GROWING_FROM + 3)
        matches++;
    *pulCount = now;
    if (room < now)
        return CKR_BUFFER_TOO_SMALL;
    for (i = 0; i < now; i++)
        pSlotId[i] = i + 1;
    return CKR_OK;
}
#endif

#ifdef WITH_CA_GetSlotId
CK_RV CA_GetSlotId(CK_UTF8CHAR label[32], CK_SLOT_ID_PTR pSlotId, CK_ULONG_PTR pulCount)
{
    CK_RV (*function)(CK_UTF8CHAR *, CK_SLOT_ID_PTR, CK_ULONG_PTR);
    *(void **)&function = stand_in("CA_GetSlotId");
    return function(label, pSlotId, pulCount);
}
#endif

#ifdef WITH_CA_GetUnassignedSlot
CK_RV CA_GetUnassignedSlot(const CK_CHAR_PTR clusterID,
                           CK_UNASSIGNED_SLOT_INFO_PTR pUnassignedSlot)
{
    CK_RV (*function)(const CK_CHAR_PTR, CK_UNASSIGNED_SLOT_INFO_PTR);
    *(void **)&function = stand_in("CA_GetUnassignedSlot");
#ifdef NAMELESS_CLAIMS
    CK_UNASSIGNED_SLOT_INFO unassigned;
    (void)pUnassignedSlot;
    return function(clusterID, &unassigned);
#elif defined(UNLABELLED_CLAIMS)
    CK_RV rv = function(clusterID, pUnassignedSlot);
    memset(pUnassignedSlot->label, 0, sizeof pUnassignedSlot->label);
    return rv;
#else
    return function(clusterID, pUnassignedSlot);
#endif
}
#endif

#ifdef WITH_CA_LockClusteredSlot
CK_RV CA_LockClusteredSlot(CK_SLOT_ID slotID)
{
    CK_RV (*function)(CK_SLOT_ID);
    *(void **)&function = stand_in("CA_LockClusteredSlot");
    return function(slotID);
}
#endif

#ifdef WITH_CA_UnlockClusteredSlot
CK_RV CA_UnlockClusteredSlot(CK_SLOT_ID slotID)
{
    CK_RV (*function)(CK_SLOT_ID);
    *(void **)&function = stand_in("CA_UnlockClusteredSlot");
    return function(slotID);
}
#endif
