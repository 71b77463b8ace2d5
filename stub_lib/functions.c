/*
 * functions.c: the names of the functions that the module exports.
 *
 * SPDX-License-Identifier: MIT
 */
#include "functions.h"

#include <string.h>

static const char *const names[FUNCTION_COUNT] = {
#define FUNCTION_NAME(function, parameters) [FUNCTION_##function] = #function,
    CRYPTOKI_FUNCTIONS(FUNCTION_NAME) CLUSTER_FUNCTIONS(FUNCTION_NAME)
#undef FUNCTION_NAME
};

const char *function_name(enum function_id function)
{
    return names[function];
}

enum function_id function_named(const char *name)
{
    unsigned int i = 0;
    while (i < FUNCTION_COUNT && strcmp(names[i], name) != 0)
        i++;
    return (enum function_id)i;
}
