/*
 * platform_windows_modules.c: there is no backend on Windows, so what is left of this part of platform.h
 * is the answer to the first question.
 *
 * SPDX-License-Identifier: MIT
 */
#include "platform.h"

#include <errno.h>

platform_function platform_load(const char *path, const char *function, const char **reason)
{
    (void)path;
    (void)function;
    *reason = "the stand-in works on another module only on POSIX systems, not on Windows";
    return NULL;
}

char *platform_absolute(const char *path)
{
    (void)path;
    return NULL;
}

int platform_make_directory(const char *path)
{
    (void)path;
    return ENOSYS;
}

int platform_write(const char *path, const char *text)
{
    (void)path;
    (void)text;
    return ENOSYS;
}

void platform_set_environment(const char *name, const char *value)
{
    (void)name;
    (void)value;
}
