/*
 * ticks.h: a clock for the length of device calls, each of which asks it twice. On x86-64 it is the
 * processor's own counter, where that is steady: it has a third of the price of clock_gettime(), which
 * would be a fourth of an uncontended lock and unlock.
 */
#ifndef LUNA_EXT_TICKS_H
#define LUNA_EXT_TICKS_H

#include <stdint.h>

#include "clock.h"

#if defined(__x86_64__) && defined(__GNUC__)

#include <cpuid.h>
#include <x86intrin.h>

/* CPUID 80000007H, EDX bit 8: it runs at one rate, whatever the processor does. */
static inline int luna_counter_is_steady(void) {
    unsigned int eax, ebx, ecx, edx;
    return __get_cpuid(0x80000007U, &eax, &ebx, &ecx, &edx) && (edx & (1U << 8)) != 0;
}

/* Both clocks at one moment: of several looks, the one during which least time went by. */
static inline void luna_both_clocks(uint64_t *ticks, double *now) {
    uint64_t shortest = UINT64_MAX;
    int look;
    for (look = 0; look < 10; look++) {
        uint64_t before = __rdtsc();
        double clock = luna_now();
        uint64_t took = __rdtsc() - before;
        if (took < shortest) {
            shortest = took;
            *ticks = before + took / 2;
            *now = clock;
        }
    }
}

/* Takes a millisecond. Nanoseconds of one tick; 0: luna_ticks() takes the other clock. */
static inline double luna_measure_tick(void) {
    uint64_t begin = 0, end = 0;
    double from = 0, to = 0, tick;
    if (!luna_counter_is_steady()) {
        return 0;
    }
    luna_both_clocks(&begin, &from);
    luna_pause(0.001);
    luna_both_clocks(&end, &to);
    tick = end > begin ? 1e9 * (to - from) / (double)(end - begin) : 0;
    return tick > 0.01 && tick < 100 ? tick : 0;
}

static inline uint64_t luna_ticks(double tick) {
    return tick > 0 ? __rdtsc() : (uint64_t)(1e9 * luna_now());
}

#else

static inline double luna_measure_tick(void) {
    return 0;
}

static inline uint64_t luna_ticks(double tick) {
    (void)tick;
    return (uint64_t)(1e9 * luna_now());
}

#endif

/* Nanoseconds since then. */
static inline uint64_t luna_since(uint64_t began, double tick) {
    uint64_t ticks = luna_ticks(tick) - began;
    /* Two processors' counters may differ by a few ticks. */
    if (ticks > UINT64_MAX / 2) {
        return 0;
    }
    return tick > 0 ? (uint64_t)((double)ticks * tick) : ticks;
}

#endif
