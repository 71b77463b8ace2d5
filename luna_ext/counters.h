/*
 * counters.h: what is counted of the calls of one C function, without the GIL and without a lock.
 *
 * Each number is exact. They are changed one after the other, so that a reader may find a call in
 * one of them and not yet in the next.
 */
#ifndef LUNA_EXT_COUNTERS_H
#define LUNA_EXT_COUNTERS_H

#include <stdint.h>

/* The last one takes what takes longer than 2^39 ns, some 9 minutes. */
#define LUNA_DURATIONS 41
/* A function answers few different errors. The last place is for all that find no other. */
#define LUNA_ERRORS 32

struct luna_counter {
    uint64_t nanoseconds;                /* of all calls together */
    uint64_t longest;                    /* nanoseconds */
    uint64_t durations[LUNA_DURATIONS];  /* [n]: calls of less than 2^n ns that are not in [n - 1] */
    uint64_t codes[LUNA_ERRORS];         /* the CK_RV that is counted in this place; 0: none yet */
    uint64_t errors[LUNA_ERRORS];
};

#ifdef _MSC_VER

#include <intrin.h>

#define luna_load(place) ((uint64_t)_InterlockedOr64((volatile __int64 *)(place), 0))
#define luna_add(place, amount) \
    ((void)_InterlockedExchangeAdd64((volatile __int64 *)(place), (__int64)(amount)))

/* Whether *place was `before`, and is `after` now. */
static inline int luna_swap(uint64_t *place, uint64_t before, uint64_t after) {
    return (uint64_t)_InterlockedCompareExchange64((volatile __int64 *)place, (__int64)after,
                                                   (__int64)before) == before;
}

static inline int luna_bits(uint64_t number) {
    unsigned long highest;
#ifdef _WIN64
    return _BitScanReverse64(&highest, number) ? (int)highest + 1 : 0;
#else
    if (_BitScanReverse(&highest, (unsigned long)(number >> 32))) {
        return (int)highest + 33;
    }
    return _BitScanReverse(&highest, (unsigned long)number) ? (int)highest + 1 : 0;
#endif
}

#else

#define luna_load(place) __atomic_load_n((place), __ATOMIC_RELAXED)
#define luna_add(place, amount) ((void)__atomic_fetch_add((place), (amount), __ATOMIC_RELAXED))

/* Whether *place was `before`, and is `after` now. */
static inline int luna_swap(uint64_t *place, uint64_t before, uint64_t after) {
    return __atomic_compare_exchange_n(place, &before, after, 0, __ATOMIC_RELAXED,
                                       __ATOMIC_RELAXED);
}

/* How many binary digits the number has. */
static inline int luna_bits(uint64_t number) {
    return number == 0 ? 0 : 64 - __builtin_clzll(number);
}

#endif

static inline void luna_count_error(struct luna_counter *counter, uint64_t rv) {
    int place = 0;
    while (place < LUNA_ERRORS - 1) {
        uint64_t code = luna_load(&counter->codes[place]);
        if (code == rv || (code == 0 && luna_swap(&counter->codes[place], 0, rv))) {
            break;
        }
        /* Somebody else may just have taken the place for the same code: then look again. */
        if (code != 0) {
            place++;
        }
    }
    luna_add(&counter->errors[place], 1);
}

/* A call has lasted so many nanoseconds, and answered `rv`. */
static inline void luna_count(struct luna_counter *counter, uint64_t nanoseconds, uint64_t rv) {
    int digits = luna_bits(nanoseconds);
    uint64_t longest = luna_load(&counter->longest);
    luna_add(&counter->nanoseconds, nanoseconds);
    luna_add(&counter->durations[digits < LUNA_DURATIONS ? digits : LUNA_DURATIONS - 1], 1);
    while (nanoseconds > longest && !luna_swap(&counter->longest, longest, nanoseconds)) {
        longest = luna_load(&counter->longest);
    }
    if (rv != 0) {
        luna_count_error(counter, rv);
    }
}

#endif
