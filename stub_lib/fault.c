/*
 * fault.c: faults and latencies: what a call meets, and how they are set.
 *
 * SPDX-License-Identifier: MIT
 */
#include "fault.h"

#include "random_number.h"

/* Sleeps are cut into pieces of this length, to notice C_Finalize. */
#define SLICE_US UINT64_C(20000)

/* Even with one seed for all, the fault and the two latencies have different random numbers. */
#define LATENCY_STREAM(moment) (UINT64_C(0x6C6174656E6379) + (moment))

/* False: interrupted. */
static bool sleep_out(uint64_t microseconds, bool (*interrupted)(void))
{
    uint64_t start = platform_monotonic();
    while (!interrupted()) {
        uint64_t elapsed = (platform_monotonic() - start) / 1000U;
        if (elapsed >= microseconds)
            return true;
        uint64_t left = microseconds - elapsed;
        platform_sleep(left < SLICE_US ? left : SLICE_US);
    }
    return false;
}

/* Counts one more, unless `limit` is reached. A count belongs to one version of a rule, so that a
   rule that replaces another starts from none. */
static bool count(_Atomic uint64_t *counter, uint64_t version, uint64_t limit, uint32_t *before)
{
    uint64_t old = atomic_load(counter);
    for (;;) {
        *before = (uint32_t)(old >> 32) == (uint32_t)version ? (uint32_t)old : 0;
        bool replaced = (int32_t)((uint32_t)(old >> 32) - (uint32_t)version) > 0;
        if (replaced || *before >= limit)
            return false;
        uint64_t next = (uint64_t)(uint32_t)version << 32 | (uint32_t)(*before + 1U);
        if (atomic_compare_exchange_weak(counter, &old, next))
            return true;
    }
}

static bool meet_latency(struct state_fault *fault, enum latency_moment moment,
                         bool (*interrupted)(void))
{
    struct state_latency *latency = &fault->latencies[moment];
    struct latency_rule rule;
    uint64_t version = state_read_latency(&latency->rule, &rule);
    uint64_t microseconds = rule.least;
    if (rule.most > rule.least) {
        uint32_t place;
        (void)count(&latency->delayed, version, UINT64_MAX, &place);
        uint64_t number = random_number(rule.seed ^ LATENCY_STREAM(moment), place);
        uint64_t span = rule.most - rule.least;
        microseconds += span == UINT64_MAX ? number : number % (span + 1U);
    }
    return microseconds == 0 || sleep_out(microseconds, interrupted);
}

enum fault_kind fault_meet(struct state *state, enum function_id function,
                           bool (*interrupted)(void), CK_RV *rv)
{
    struct state_fault *fault = &state->faults[function];
    (void)meet_latency(fault, LATENCY_BEFORE_EFFECT, interrupted);
    struct fault_rule rule;
    uint64_t version = state_read_fault(&fault->rule, &rule);
    uint32_t place = 0;
    while (rule.times != 0 && !count(&fault->met, version, UINT64_MAX, &place)) {
        uint64_t replaced = version;
        version = state_read_fault(&fault->rule, &rule);
        if (version == replaced) /* in a damaged file */
            break;
    }
    if (rule.times == 0)
        return FAULT_NONE;
    if (rule.every > 1 && (place + UINT64_C(1)) % rule.every != 0)
        return FAULT_NONE;
    if (random_number(rule.seed, place) > rule.threshold)
        return FAULT_NONE;
    uint32_t struck;
    if (rule.times > 0 && !count(&fault->struck, version, (uint64_t)rule.times, &struck))
        return FAULT_NONE;
    *rv = (CK_RV)rule.rv;
    return rule.lost_reply != 0 ? FAULT_LOST_REPLY : FAULT_INSTEAD;
}

bool fault_delay_answer(struct state *state, enum function_id function, bool (*interrupted)(void))
{
    return meet_latency(&state->faults[function], LATENCY_AFTER_EFFECT, interrupted);
}

/* ---- setting them ---- */

/* While a rule is changed its function is armed, which is never wrong: a writer that is killed must
   not leave a rule behind that no call looks at. */
static void arm(struct state_fault *fault)
{
    atomic_store(&fault->armed, 1U);
}

static void disarm_if_idle(struct state_fault *fault)
{
    struct fault_rule rule;
    (void)state_read_fault(&fault->rule, &rule);
    bool idle = rule.times == 0;
    for (unsigned int moment = 0; moment < LATENCY_MOMENTS; moment++) {
        struct latency_rule latency;
        (void)state_read_latency(&fault->latencies[moment].rule, &latency);
        idle = idle && latency.most == 0;
    }
    if (idle)
        atomic_store(&fault->armed, 0);
}

void fault_set_rule(struct state *state, enum function_id function, const struct fault_rule *rule)
{
    struct state_fault *fault = &state->faults[function];
    arm(fault);
    state_write_fault(&fault->rule, rule);
    disarm_if_idle(fault);
}

void fault_set_latency(struct state *state, enum function_id function, enum latency_moment moment,
                       const struct latency_rule *rule)
{
    struct state_fault *fault = &state->faults[function];
    arm(fault);
    state_write_latency(&fault->latencies[moment].rule, rule);
    disarm_if_idle(fault);
}
