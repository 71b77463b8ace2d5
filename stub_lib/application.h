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
   operation, and C_Finalize cannot miss a call. */
#define GATE_OPEN UINT32_C(0x80000000)

struct application {
    alignas(64) _Atomic uint32_t gate;
    /* Constant while the gate is open. */
    alignas(64) struct state_file file;
    struct state_application *entry;
    uint32_t generation;
};

extern struct application application;

static inline bool application_enter(void)
{
    if ((atomic_load(&application.gate) & GATE_OPEN) == 0)
        return false;
    if ((atomic_fetch_add(&application.gate, 1U) & GATE_OPEN) != 0)
        return true;
    atomic_fetch_sub(&application.gate, 1U);
    return false;
}

static inline void application_leave(void)
{
    atomic_fetch_sub(&application.gate, 1U);
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
