/*
 * fault.h: faults and latencies, kept in the cluster per function.
 *
 * SPDX-License-Identifier: MIT
 */
#ifndef STUB_FAULT_H
#define STUB_FAULT_H

#include "state.h"

static inline bool fault_armed(struct state *state, enum function_id function)
{
    return atomic_load_explicit(&state->faults[function].armed, memory_order_relaxed) != 0;
}

/* Sleeps out the function's latency, unless interrupted. True: a fault answers *rv in its place. */
bool fault_strikes(struct state *state, enum function_id function, bool (*interrupted)(void),
                   CK_RV *rv);

/* The function of this name; FUNCTION_COUNT: there is none. */
enum function_id fault_function(const char *name);
/* Between state_write_begin() and state_write_end(). */
void fault_set_rule(struct state *state, enum function_id function, const struct fault_rule *rule);
void fault_set_latency(struct state *state, enum function_id function, uint64_t microseconds);

#endif
