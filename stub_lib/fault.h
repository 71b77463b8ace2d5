/*
 * fault.h: faults and latencies, kept in the cluster per function.
 *
 * SPDX-License-Identifier: MIT
 */
#ifndef STUB_FAULT_H
#define STUB_FAULT_H

#include "state.h"

enum fault_kind {
    FAULT_NONE,
    FAULT_INSTEAD,    /* the answer in place of any effect */
    FAULT_LOST_REPLY, /* the answer in place of the true one, after the effect */
};

static inline bool fault_armed(struct state *state, enum function_id function)
{
    return atomic_load_explicit(&state->faults[function].armed, memory_order_relaxed) != 0;
}

/* Sleeps out the function's latency before its effect, unless interrupted, and says what becomes of
   the call. */
enum fault_kind fault_meet(struct state *state, enum function_id function,
                           bool (*interrupted)(void), CK_RV *rv);
/* Sleeps out the one after it. False: interrupted, the answer has not arrived. */
bool fault_delay_answer(struct state *state, enum function_id function, bool (*interrupted)(void));

/* Between state_write_begin() and state_write_end(). */
void fault_set_rule(struct state *state, enum function_id function, const struct fault_rule *rule);
void fault_set_latency(struct state *state, enum function_id function, enum latency_moment moment,
                       const struct latency_rule *rule);

#endif
