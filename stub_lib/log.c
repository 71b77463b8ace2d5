/*
 * log.c: writes and reads the cluster's log of calls.
 *
 * SPDX-License-Identifier: MIT
 */
#include "log.h"

#include "random_number.h"

_Static_assert((STATE_LOG_ENTRIES & (STATE_LOG_ENTRIES - 1U)) == 0, "a power of two");

static struct state_log_entry *entry_of(struct state *state, uint64_t number)
{
    return &state->log.entries[number & (STATE_LOG_ENTRIES - 1U)];
}

static uint64_t pid_and_function(const struct log_call *call)
{
    return (uint64_t)(uint32_t)call->pid << 32 | (uint32_t)call->function;
}

/* Of what is known when the call begins and never changes. */
static uint64_t check_of_beginning(const struct log_call *call)
{
    uint64_t check = random_mix(call->number);
    check = random_mix(check + call->began);
    check = random_mix(check + pid_and_function(call));
    return random_mix(check + (uint64_t)call->thread);
}

static uint64_t check_of(const struct log_call *call)
{
    uint64_t check = random_mix(check_of_beginning(call) + call->duration);
    check = random_mix(check + call->slot_id);
    return random_mix(check + call->rv);
}

static void put(_Atomic uint64_t *word, uint64_t value)
{
    atomic_store_explicit(word, value, memory_order_relaxed);
}

static uint64_t get(_Atomic uint64_t *word)
{
    return atomic_load_explicit(word, memory_order_relaxed);
}

void log_begin(struct state *state, enum function_id function, uint64_t slot_id,
               struct log_ticket *ticket)
{
    ticket->began = platform_wall_clock();
    ticket->started = platform_monotonic();
    ticket->number = atomic_fetch_add(&state->log.calls, 1U) + 1U;
    struct log_call call = {.number = ticket->number, .began = ticket->began,
                            .pid = platform_pid(), .thread = platform_thread(),
                            .function = function};
    struct state_log_entry *entry = entry_of(state, call.number);
    put(&entry->number, call.number);
    put(&entry->began, call.began);
    put(&entry->pid_and_function, pid_and_function(&call));
    put(&entry->thread, (uint64_t)call.thread);
    put(&entry->slot_id, slot_id);
    put(&entry->check, check_of_beginning(&call));
}

void log_end(struct state *state, enum function_id function, uint64_t slot_id, uint64_t rv,
             const struct log_ticket *ticket)
{
    struct state_log_entry *entry = entry_of(state, ticket->number);
    /* The log may have gone all the way round while the call waited. */
    if (get(&entry->number) != ticket->number)
        return;
    struct log_call call = {.number = ticket->number, .began = ticket->began,
                            .duration = platform_monotonic() - ticket->started,
                            .slot_id = slot_id, .rv = rv, .pid = platform_pid(),
                            .thread = platform_thread(), .function = function};
    /* Until the check changes, the call has not returned. */
    put(&entry->slot_id, call.slot_id);
    put(&entry->rv, call.rv);
    put(&entry->duration, call.duration);
    atomic_store_explicit(&entry->check, check_of(&call), memory_order_release);
}

uint64_t log_latest(struct state *state)
{
    return atomic_load(&state->log.calls);
}

bool log_read(struct state *state, uint64_t number, struct log_call *call)
{
    struct state_log_entry *entry = entry_of(state, number);
    uint64_t check = atomic_load_explicit(&entry->check, memory_order_acquire);
    uint64_t pid_function = get(&entry->pid_and_function);
    *call = (struct log_call){
        .number = get(&entry->number),
        .began = get(&entry->began),
        .duration = get(&entry->duration),
        .slot_id = get(&entry->slot_id),
        .rv = get(&entry->rv),
        .pid = (int64_t)(pid_function >> 32),
        .thread = (int64_t)get(&entry->thread),
        .function = (enum function_id)(uint32_t)pid_function,
    };
    if (call->number != number || (uint32_t)pid_function >= FUNCTION_COUNT)
        return false;
    if (check == check_of(call))
        return true;
    call->duration = LOG_UNFINISHED;
    call->rv = 0;
    return check == check_of_beginning(call);
}
