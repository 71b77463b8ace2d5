/*
 * function_list.c: C_GetFunctionList, the way in to all other C_ functions.
 *
 * SPDX-License-Identifier: MIT
 */
#include "call.h"

/* Not const: the standard hands out a pointer to a changeable list. */
static CK_FUNCTION_LIST function_list = {
    {CRYPTOKI_VERSION_MAJOR, CRYPTOKI_VERSION_MINOR},
#define FUNCTION_MEMBER(name, parameters) name,
    CRYPTOKI_FUNCTIONS(FUNCTION_MEMBER)
#undef FUNCTION_MEMBER
};

/* Works in any state, initialised, disconnected or not; only a fault stops it. */
static bool struck(CK_RV *rv)
{
    if (!application_enter())
        return false;
    struct state *state = application_file()->state;
    bool strikes = fault_armed(state, FUNCTION_C_GetFunctionList) &&
                   fault_strikes(state, FUNCTION_C_GetFunctionList, application_interrupted, rv);
    application_leave();
    return strikes;
}

CK_RV C_GetFunctionList(CK_FUNCTION_LIST_PTR_PTR ppFunctionList)
{
    CK_RV rv = CKR_OK;
    if (struck(&rv))
        return rv;
    if (ppFunctionList == NULL)
        return CKR_ARGUMENTS_BAD;
    *ppFunctionList = &function_list;
    return CKR_OK;
}
