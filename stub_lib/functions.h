/*
 * functions.h: the functions that the module exports, and a number for each.
 *
 * SPDX-License-Identifier: MIT
 */
#ifndef STUB_FUNCTIONS_H
#define STUB_FUNCTIONS_H

/* Protected: exported, but the function list must hold our own functions even in a process that
   has another PKCS #11 module's symbols in its global scope. */
#if defined(__ELF__)
#pragma GCC visibility push(protected)
#elif defined(__GNUC__) && !defined(_WIN32)
#pragma GCC visibility push(default)
#endif
#include "cryptoki_v2.h"
#if defined(__ELF__) || (defined(__GNUC__) && !defined(_WIN32))
#pragma GCC visibility pop
#endif

#define CLUSTER_FUNCTIONS(X)    \
    X(CA_GetSlotId, )           \
    X(CA_GetUnassignedSlot, )   \
    X(CA_LockClusteredSlot, )   \
    X(CA_UnlockClusteredSlot, ) \
    X(CA_ChangeLabel, )         \
    X(CA_GetFunctionList, )

/* The numbers are part of the state file's layout. */
enum function_id {
#define FUNCTION_ID(name, parameters) FUNCTION_##name,
    CRYPTOKI_FUNCTIONS(FUNCTION_ID) CLUSTER_FUNCTIONS(FUNCTION_ID)
#undef FUNCTION_ID
        FUNCTION_COUNT
};

const char *function_name(enum function_id function);
/* FUNCTION_COUNT: there is none of this name. */
enum function_id function_named(const char *name);

#endif
