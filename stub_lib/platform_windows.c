/*
 * platform_windows.c: platform.h on Windows 8 and later, but for the files.
 *
 * SPDX-License-Identifier: MIT
 */
#ifndef _WIN32_WINNT
#define _WIN32_WINNT 0x0602 /* the precise wall clock, the token of the thread */
#endif
#define WIN32_LEAN_AND_MEAN
#define _CRT_RAND_S /* rand_s() */
#include "platform.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <windows.h>

#include "platform_windows.h"

/* ---- mutexes of this process ---- */

_Static_assert(sizeof(SRWLOCK) == sizeof(platform_mutex), "a platform_mutex is an SRWLOCK");

void platform_mutex_lock(platform_mutex *mutex)
{
    AcquireSRWLockExclusive((SRWLOCK *)mutex);
}

void platform_mutex_unlock(platform_mutex *mutex)
{
    ReleaseSRWLockExclusive((SRWLOCK *)mutex);
}

void platform_mutex_reset(platform_mutex *mutex)
{
    *mutex = (platform_mutex)PLATFORM_MUTEX_INITIALIZER;
}

/* Nothing forks here. */
void platform_on_fork(void (*before)(void), void (*parent)(void), void (*child)(void))
{
    (void)before;
    (void)parent;
    (void)child;
}

/* ---- waiting ---- */

void platform_sleep(uint64_t microseconds)
{
    uint64_t milliseconds = microseconds / 1000U + (microseconds % 1000U != 0 ? 1U : 0U);
    Sleep(milliseconds < INFINITE ? (DWORD)milliseconds : INFINITE - 1U);
}

/* WaitOnAddress() knows only the threads of its own process. */
void platform_wait(_Atomic uint32_t *word, uint32_t expected, uint32_t milliseconds)
{
    if (atomic_load(word) == expected)
        platform_sleep(milliseconds > 0 ? 1000U : 0U);
}

void platform_wake_one(_Atomic uint32_t *word)
{
    (void)word;
}

/* In two parts, for the product would overflow within minutes. */
uint64_t platform_monotonic(void)
{
    LARGE_INTEGER frequency;
    LARGE_INTEGER counter;
    (void)QueryPerformanceFrequency(&frequency);
    (void)QueryPerformanceCounter(&counter);
    uint64_t per_second = (uint64_t)frequency.QuadPart;
    uint64_t now = (uint64_t)counter.QuadPart;
    return now / per_second * 1000000000U + now % per_second * 1000000000U / per_second;
}

/* The system counts 100 ns since 1601. */
uint64_t platform_wall_clock(void)
{
    FILETIME now;
    GetSystemTimePreciseAsFileTime(&now);
    uint64_t since_1601 = (uint64_t)now.dwHighDateTime << 32 | now.dwLowDateTime;
    return (since_1601 - UINT64_C(116444736000000000)) * 100U;
}

/* ---- text ---- */

wchar_t *windows_widen(const char *text, int *error)
{
    int length = MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, text, -1, NULL, 0);
    if (length <= 0) {
        *error = EILSEQ;
        return NULL;
    }
    wchar_t *wide = malloc((size_t)length * sizeof *wide);
    if (wide == NULL)
        *error = ENOMEM;
    else
        (void)MultiByteToWideChar(CP_UTF8, 0, text, -1, wide, length);
    return wide;
}

/* UTF-16 as UTF-8, to be freed; NULL: no memory. */
static char *narrow(const wchar_t *text)
{
    int length = WideCharToMultiByte(CP_UTF8, 0, text, -1, NULL, 0, NULL, NULL);
    char *narrowed = length > 0 ? malloc((size_t)length) : NULL;
    if (narrowed != NULL)
        (void)WideCharToMultiByte(CP_UTF8, 0, text, -1, narrowed, length, NULL, NULL);
    return narrowed;
}

/* ---- the process ---- */

int64_t platform_pid(void)
{
    return (int64_t)GetCurrentProcessId();
}

int64_t platform_thread(void)
{
    return (int64_t)GetCurrentThreadId();
}

/* Not getenv(): it asks the C library, and the caller may have set the variable in another one. */
char *platform_environment(const char *name)
{
    int error;
    wchar_t *wide_name = windows_widen(name, &error);
    wchar_t *value = NULL;
    DWORD room = 0;
    DWORD needed = wide_name == NULL ? 0 : GetEnvironmentVariableW(wide_name, NULL, 0);
    /* More than once if another thread sets it to something longer in between. */
    while (needed > room) {
        room = needed;
        free(value);
        value = calloc(room, sizeof *value);
        needed = value == NULL ? 0 : GetEnvironmentVariableW(wide_name, value, room);
    }
    char *result = value == NULL ? NULL : narrow(value);
    free(value);
    free(wide_name);
    return result;
}

bool platform_is_roots(const char *path)
{
    /* There are no such paths. */
    (void)path;
    return false;
}

bool platform_random(void *buffer, size_t size)
{
    unsigned char *next = buffer;
    while (size > 0) {
        unsigned int number;
        if (rand_s(&number) != 0)
            return false;
        size_t part = size < sizeof number ? size : sizeof number;
        memcpy(next, &number, part);
        next += part;
        size -= part;
    }
    return true;
}
