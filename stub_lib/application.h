/*
 * application.h: this process as an application of the cluster: initialised or not, its opened
 * state file, its calls in flight.
 *
 * SPDX-License-Identifier: MIT
 */
#ifndef STUB_APPLICATION_H
#define STUB_APPLICATION_H

#include "registry.h"

/* Whether calls may come in and how many are inside are one word, so that entering is one atomic
   operation, and C_Finalize cannot miss a call. There are several such words, over which the threads are
   spread: one would wander between the processors at each call. */
#define GATE_OPEN UINT32_C(0x80000000)
#define GATES 8U

struct gate {
    alignas(64) _Atomic uint32_t word;
};

struct application {
    struct gate gates[GATES];
    /* Constant while the gates are open. */
    alignas(64) struct state_file file;
    struct state_application *entry;
    uint32_t generation;
};

extern struct application application;
/* Which gate the calling thread uses, plus 1; 0: none yet. */
extern _Thread_local uint32_t application_gate_number;
uint32_t application_choose_gate(void);

static inline _Atomic uint32_t *application_gate(void)
{
    uint32_t number = application_gate_number;
    return &application.gates[(number != 0 ? number : application_choose_gate()) - 1U].word;
}

static inline bool application_enter(void)
{
    _Atomic uint32_t *gate = application_gate();
    if ((atomic_load(gate) & GATE_OPEN) == 0)
        return false;
    if ((atomic_fetch_add(gate, 1U) & GATE_OPEN) != 0)
        return true;
    atomic_fetch_sub(gate, 1U);
    return false;
}

static inline void application_leave(void)
{
    atomic_fetch_sub(application_gate(), 1U);
}

/* The rest is for calls that have entered. */

static inline struct state_file *application_file(void)
{
    return &application.file;
}

static inline bool application_disconnected(void)
{
    return atomic_load(&application.entry->disconnected) == application.generation;
}

/* Whether a call that waits has to give up: it asks this again and again. */
bool application_interrupted(void);

/* C_Initialize and C_Finalize, and what is wrong with their arguments. `prepare` runs before any call
   can enter. */
CK_RV application_start(CK_RV argument_rv, void (*prepare)(void));
CK_RV application_stop(CK_RV argument_rv);
bool application_started(void);

#endif
