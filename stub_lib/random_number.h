/*
 * random_number.h: numbers that look random and are the same for the same seed and place.
 *
 * SPDX-License-Identifier: MIT
 */
#ifndef STUB_RANDOM_NUMBER_H
#define STUB_RANDOM_NUMBER_H

#include <stdint.h>

/* The finaliser of SplitMix64: every bit of the input moves half of the output's. */
static inline uint64_t random_mix(uint64_t word)
{
    word = (word ^ word >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
    word = (word ^ word >> 27) * UINT64_C(0x94D049BB133111EB);
    return word ^ word >> 31;
}

static inline uint64_t random_number(uint64_t seed, uint64_t place)
{
    return random_mix(random_mix(seed) + (place + 1U) * UINT64_C(0x9E3779B97F4A7C15));
}

#endif
