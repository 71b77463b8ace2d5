/*
 * log.h: the cluster's log of calls: which function, by whom, when, with what result. The latest
 * STATE_LOG_ENTRIES of them.
 *
 * SPDX-License-Identifier: MIT
 */
#ifndef STUB_LOG_H
#define STUB_LOG_H

#include "state.h"

#define LOG_NO_SLOT UINT64_MAX
#define LOG_UNFINISHED UINT64_MAX

/* A call that is being logged. */
struct log_ticket {
    uint64_t number;
    uint64_t began;   /* on the wall clock */
    uint64_t started; /* on the monotonic clock */
};

static inline bool log_wanted(struct state *state)
{
    return atomic_load_explicit(&state->switches.log, memory_order_relaxed) == LOG_ON;
}

void log_begin(struct state *state, enum function_id function, uint64_t slot_id,
               struct log_ticket *ticket);
void log_end(struct state *state, enum function_id function, uint64_t slot_id, uint64_t rv,
             const struct log_ticket *ticket);

/* An entry's content. */
struct log_call {
    uint64_t number;
    uint64_t began;
    uint64_t duration;
    uint64_t slot_id;
    uint64_t rv;
    int64_t pid;
    int64_t thread;
    enum function_id function;
};

uint64_t log_latest(struct state *state);
/* False: it is no longer, or not yet wholly, in the log. */
bool log_read(struct state *state, uint64_t number, struct log_call *call);

#endif
