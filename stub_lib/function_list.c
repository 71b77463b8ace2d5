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

static CK_RV hand_out(CK_FUNCTION_LIST_PTR_PTR list)
{
    if (list == NULL)
        return CKR_ARGUMENTS_BAD;
    *list = &function_list;
    return CKR_OK;
}

/* Works in any state, initialised, disconnected or not; only a fault stops it. */
CK_RV C_GetFunctionList(CK_FUNCTION_LIST_PTR_PTR ppFunctionList)
{
    struct call call;
    if (call_begin(&call, FUNCTION_C_GetFunctionList, CALL_NO_SLOT))
        call_end(&call, hand_out(ppFunctionList));
    else if (!call.struck)
        call.rv = hand_out(ppFunctionList);
    return call.rv;
}
