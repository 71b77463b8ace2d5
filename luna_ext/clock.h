/*
 * clock.h: a clock that never goes back, and a pause, both without the GIL and without Python.
 */
#ifndef LUNA_EXT_CLOCK_H
#define LUNA_EXT_CLOCK_H

#ifdef _WIN32

#include <windows.h>

static inline double luna_now(void) {
    LARGE_INTEGER count, per_second;
    QueryPerformanceCounter(&count);
    QueryPerformanceFrequency(&per_second);
    return (double)count.QuadPart / (double)per_second.QuadPart;
}

static inline void luna_pause(double seconds) {
    Sleep((DWORD)(seconds * 1e3) + 1);
}

#else

#include <errno.h>
#include <time.h>

static inline double luna_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* To the end, whatever signals come. */
static inline void luna_pause(double seconds) {
    struct timespec left = {(time_t)seconds, 0};
    left.tv_nsec = (long)((seconds - (double)left.tv_sec) * 1e9);
    while (nanosleep(&left, &left) != 0 && errno == EINTR) {
    }
}

#endif
#endif
