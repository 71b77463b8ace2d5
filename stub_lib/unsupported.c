/*
 * unsupported.c: every function of PKCS #11 that no other file defines: it answers
 * CKR_FUNCTION_NOT_SUPPORTED, once the library is initialised.
 *
 * SPDX-License-Identifier: MIT
 */
#include "call.h"

/* The functions that are defined elsewhere. The linker watches over this list: a name missing here
   is defined twice, one too many is not defined at all, while the function list refers to it. */
#define ELSEWHERE_C_Initialize ,
#define ELSEWHERE_C_Finalize ,
#define ELSEWHERE_C_GetInfo ,
#define ELSEWHERE_C_GetFunctionList ,
#define ELSEWHERE_C_GetSlotList ,
#define ELSEWHERE_C_GetSlotInfo ,
#define ELSEWHERE_C_GetTokenInfo ,
#define ELSEWHERE_C_GetMechanismList ,
#define ELSEWHERE_C_GetMechanismInfo ,
#define ELSEWHERE_C_InitToken ,
#define ELSEWHERE_C_InitPIN ,
#define ELSEWHERE_C_SetPIN ,
#define ELSEWHERE_C_OpenSession ,
#define ELSEWHERE_C_CloseSession ,
#define ELSEWHERE_C_CloseAllSessions ,
#define ELSEWHERE_C_GetSessionInfo ,
#define ELSEWHERE_C_Login ,
#define ELSEWHERE_C_Logout ,
#define ELSEWHERE_C_FindObjectsInit ,
#define ELSEWHERE_C_FindObjects ,
#define ELSEWHERE_C_FindObjectsFinal ,
#define ELSEWHERE_C_SeedRandom ,
#define ELSEWHERE_C_GenerateRandom ,
#define ELSEWHERE_C_GetFunctionStatus ,
#define ELSEWHERE_C_CancelFunction ,
#define ELSEWHERE_C_WaitForSlotEvent ,

/* CHOOSE picks its third argument. For a name in the list the comma moves SKIP to that place. */
#define SKIP(name, parameters)
#define DEFINE(name, parameters)                           \
    CK_RV name parameters                                  \
    {                                                      \
        RETURN_CALL(name, CALL_NO_SLOT, CKR_FUNCTION_NOT_SUPPORTED); \
    }
#define CHOOSE(...) THIRD(__VA_ARGS__)
#define THIRD(first, second, third, ...) third
#define DEFINE_IF_MISSING(name, parameters) \
    CHOOSE(ELSEWHERE_##name, SKIP, DEFINE, )(name, parameters)

#if defined(__GNUC__)
#pragma GCC diagnostic ignored "-Wunused-parameter"
#endif
CRYPTOKI_FUNCTIONS(DEFINE_IF_MISSING)
