/*
 * function_list.c: C_GetFunctionList, the way in to all other C_ functions, and CA_GetFunctionList.
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

/* Whatever its caller takes it for, and passes: it looks at nothing. */
static CK_RV unknown(void)
{
    return CKR_FUNCTION_NOT_SUPPORTED;
}

#define FOUR(what) what, what, what, what
static CK_SFNT_CA_FUNCTION_LIST ca_function_list = {
    .version = {1, 0},
    .unknown = {FOUR(FOUR(FOUR(FOUR(FOUR(unknown)))))},
#define FUNCTION_MEMBER(name, parameters) .name = name,
    CLUSTER_FUNCTIONS(FUNCTION_MEMBER)
#undef FUNCTION_MEMBER
};
_Static_assert(CK_SFNT_CA_UNKNOWN == 4 * 4 * 4 * 4 * 4, "each of them has to be a function");

static CK_RV hand_out(CK_FUNCTION_LIST_PTR_PTR list)
{
    if (list == NULL)
        return CKR_ARGUMENTS_BAD;
    *list = &function_list;
    return CKR_OK;
}

static CK_RV hand_out_ca(CK_SFNT_CA_FUNCTION_LIST_PTR_PTR list)
{
    if (list == NULL)
        return CKR_ARGUMENTS_BAD;
    *list = &ca_function_list;
    return CKR_OK;
}

/* Works in any state, initialised, disconnected or not; only a fault stops it. */
#define RETURN_ANYWHERE(function, answer)                             \
    do {                                                              \
        struct call call;                                             \
        if (call_begin(&call, FUNCTION_##function, CALL_NO_SLOT))     \
            call_end(&call, (answer));                                \
        else if (!call.struck)                                        \
            call.rv = (answer);                                       \
        return call.rv;                                               \
    } while (0)

CK_RV C_GetFunctionList(CK_FUNCTION_LIST_PTR_PTR ppFunctionList)
{
    RETURN_ANYWHERE(C_GetFunctionList, hand_out(ppFunctionList));
}

CK_RV CA_GetFunctionList(CK_SFNT_CA_FUNCTION_LIST_PTR_PTR ppSfntFunctionList)
{
    RETURN_ANYWHERE(CA_GetFunctionList, hand_out_ca(ppSfntFunctionList));
}
