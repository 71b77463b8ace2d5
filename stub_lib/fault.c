/*
 * fault.c: faults and latencies: what a call meets before it takes effect, and how they are set.
 *
 * SPDX-License-Identifier: MIT
 */
#include "fault.h"

#include <string.h>

/* Sleeps are cut into pieces of this length, to notice C_Finalize. */
#define SLICE_US UINT64_C(20000)

static void sleep_out(uint64_t microseconds, bool (*interrupted)(void))
{
    uint64_t start = platform_monotonic();
    while (!interrupted()) {
        uint64_t elapsed = platform_monotonic() - start;
        if (elapsed >= microseconds)
            return;
        uint64_t left = microseconds - elapsed;
        platform_sleep(left < SLICE_US ? left : SLICE_US);
    }
}

/* One of the rule's times is used up. They are counted together with the rule's version, so that
   a rule that replaces another starts from none. */
static bool use_up(struct state_fault *fault, uint64_t version, int64_t times)
{
    uint64_t used = atomic_load(&fault->used);
    for (;;) {
        uint32_t struck = (uint32_t)(used >> 32) == (uint32_t)version ? (uint32_t)used : 0;
        if ((int64_t)struck >= times)
            return false;
        uint64_t next = (uint64_t)(uint32_t)version << 32 | (struck + 1U);
        if (atomic_compare_exchange_weak(&fault->used, &used, next))
            return true;
    }
}

bool fault_strikes(struct state *state, enum function_id function, bool (*interrupted)(void),
                   CK_RV *rv)
{
    struct state_fault *fault = &state->faults[function];
    uint64_t latency = atomic_load(&fault->latency);
    if (latency != 0)
        sleep_out(latency, interrupted);
    struct fault_rule rule;
    uint64_t version = state_read_rule(&fault->rule, &rule);
    if (rule.times == 0 || (rule.times > 0 && !use_up(fault, version, rule.times)))
        return false;
    *rv = (CK_RV)rule.rv;
    return true;
}

enum function_id fault_function(const char *name)
{
    static const char *const names[FUNCTION_COUNT] = {
#define FUNCTION_NAME(function, parameters) [FUNCTION_##function] = #function,
        CRYPTOKI_FUNCTIONS(FUNCTION_NAME) CLUSTER_FUNCTIONS(FUNCTION_NAME)
#undef FUNCTION_NAME
    };
    unsigned int i = 0;
    while (i < FUNCTION_COUNT && strcmp(names[i], name) != 0)
        i++;
    return (enum function_id)i;
}

static void rearm(struct state_fault *fault)
{
    struct fault_rule rule;
    (void)state_read_rule(&fault->rule, &rule);
    atomic_store(&fault->armed, rule.times != 0 || atomic_load(&fault->latency) != 0 ? 1U : 0U);
}

void fault_set_rule(struct state *state, enum function_id function, const struct fault_rule *rule)
{
    state_write_rule(&state->faults[function].rule, rule);
    rearm(&state->faults[function]);
}

void fault_set_latency(struct state *state, enum function_id function, uint64_t microseconds)
{
    atomic_store(&state->faults[function].latency, microseconds);
    rearm(&state->faults[function]);
}
