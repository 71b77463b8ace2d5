/*
 * platform_posix_modules.c: the part of platform.h that is about another module.
 *
 * SPDX-License-Identifier: MIT
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "platform.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

platform_function platform_load(const char *path, const char *function, const char **reason)
{
    platform_function found = NULL;
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    void *symbol = library == NULL ? NULL : dlsym(library, function);
    if (symbol == NULL)
        *reason = dlerror();
    else
        memcpy(&found, &symbol, sizeof found); /* ISO C has no cast for that */
    return found;
}

char *platform_absolute(const char *path)
{
    return realpath(path, NULL);
}

int platform_make_directory(const char *path)
{
    return mkdir(path, S_IRWXU) == 0 || errno == EEXIST ? 0 : errno;
}

int platform_write(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, S_IRUSR | S_IWUSR);
    if (fd < 0)
        return errno;
    size_t left = strlen(text);
    int error = 0;
    while (left > 0 && error == 0) {
        ssize_t written = write(fd, text, left);
        if (written >= 0) {
            text += written;
            left -= (size_t)written;
        } else if (errno != EINTR) {
            error = errno;
        }
    }
    (void)close(fd);
    return error;
}

void platform_set_environment(const char *name, const char *value)
{
    if (value == NULL)
        (void)unsetenv(name);
    else
        (void)setenv(name, value, 1);
}
