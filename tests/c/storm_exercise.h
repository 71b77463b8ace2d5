/*
 * storm_exercise.h: what the steering process and the processes that it steers share.
 *
 * SPDX-License-Identifier: MIT
 */
#ifndef STORM_EXERCISE_H
#define STORM_EXERCISE_H

#include "storm.h"
#include "storm_client.h"

#define PROCESSES 3U
#define THREADS 3U
/* Of the first keyrings, only the holder of the lock unlocks it; with the next ones anything goes.
   The rest have a PIN that all processes guess. */
#define EXCLUSIVE 4U
#define WILD 4U
#define GUESSED 64U
#define KEYRINGS (EXCLUSIVE + WILD + GUESSED)
#define FIRST_SLOT 100U
#define SLOT_OF(keyring) ((CK_SLOT_ID)(FIRST_SLOT + (keyring)))
#define CLUSTER_ID "exercise"

/* A round is one way of doing things. */
struct round {
    bool breaks;  /* locks are lost in every way there is; without: each section counts */
    bool granted; /* a second lock call of a process may be, so that threads exclude each other */
};

struct exercise {
    struct exclusion exclusion;
    struct round round;
    _Atomic bool stop;
    _Atomic uint64_t calls;
    _Atomic uint64_t forks;
    _Atomic uint64_t breaks;
    _Atomic uint32_t ready; /* threads that wait for the others to begin */
    _Atomic uint32_t wrong_guesses[GUESSED]; /* in this round */
    _Atomic uint64_t counted[EXCLUSIVE];
    /* Not atomic: only the holder of the lock changes it. */
    uint64_t counters[EXCLUSIVE];
};

extern struct exercise *exercise;

/* One of the processes that call everything at random, until exercise->stop. */
_Noreturn void be_process(unsigned int party);

#endif
