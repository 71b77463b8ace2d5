/*
 * loader.h: opens a shared library and finds a symbol in it, on POSIX and on Windows.
 *
 * There is no close: a client library's threads may still run in it, so it is never unloaded.
 */
#ifndef LUNA_EXT_LOADER_H
#define LUNA_EXT_LOADER_H

#ifdef _WIN32

#include <stdio.h>
#include <windows.h>

/* A wide path, which has to be absolute, so that no search path is consulted. */
typedef const wchar_t *luna_path_t;

static void *luna_open(luna_path_t path) {
    return (void *)LoadLibraryExW(path, NULL, LOAD_WITH_ALTERED_SEARCH_PATH);
}

static void *luna_symbol(void *handle, const char *name) {
    return (void *)GetProcAddress((HMODULE)handle, name);
}

/* To be asked on the thread of the failed luna_open, before it does anything else. */
static void luna_open_error(char *text, size_t room) {
    snprintf(text, room, "Windows error %lu", (unsigned long)GetLastError());
}

#else

#include <dlfcn.h>
#include <stdio.h>

typedef const char *luna_path_t;

static void *luna_open(luna_path_t path) {
    return dlopen(path, RTLD_NOW | RTLD_LOCAL);
}

static void *luna_symbol(void *handle, const char *name) {
    return dlsym(handle, name);
}

static void luna_open_error(char *text, size_t room) {
    const char *error = dlerror();
    snprintf(text, room, "%s", error != NULL ? error : "unknown error");
}

#endif

#endif
