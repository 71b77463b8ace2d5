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

static uint64_t check_of(const struct log_call *call)
{
    uint64_t check = random_mix(call->number);
    check = random_mix(check + call->began);
    check = random_mix(check + call->duration);
    check = random_mix(check + pid_and_function(call));
    check = random_mix(check + (uint64_t)call->thread);
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

static void write_entry(struct state *state, struct log_call *call)
{
    struct state_log_entry *entry = entry_of(state, call->number);
    call->pid = platform_pid();
    call->thread = platform_thread();
    put(&entry->number, call->number);
    put(&entry->began, call->began);
    put(&entry->duration, call->duration);
    put(&entry->pid_and_function, pid_and_function(call));
    put(&entry->thread, (uint64_t)call->thread);
    put(&entry->slot_id, call->slot_id);
    put(&entry->rv, call->rv);
    put(&entry->check, check_of(call));
}

void log_begin(struct state *state, enum function_id function, uint64_t slot_id,
               struct log_ticket *ticket)
{
    ticket->began = platform_wall_clock();
    ticket->started = platform_monotonic();
    ticket->number = atomic_fetch_add(&state->log.calls, 1U) + 1U;
    struct log_call call = {.number = ticket->number, .began = ticket->began,
                            .duration = LOG_UNFINISHED, .slot_id = slot_id, .function = function};
    write_entry(state, &call);
}

void log_end(struct state *state, enum function_id function, uint64_t slot_id, uint64_t rv,
             const struct log_ticket *ticket)
{
    /* The log may have gone all the way round while the call waited. */
    if (get(&entry_of(state, ticket->number)->number) != ticket->number)
        return;
    struct log_call call = {.number = ticket->number, .began = ticket->began,
                            .duration = platform_monotonic() - ticket->started,
                            .slot_id = slot_id, .rv = rv, .function = function};
    write_entry(state, &call);
}

uint64_t log_latest(struct state *state)
{
    return atomic_load(&state->log.calls);
}

bool log_read(struct state *state, uint64_t number, struct log_call *call)
{
    struct state_log_entry *entry = entry_of(state, number);
    uint64_t check = get(&entry->check);
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
    return call->number == number && (uint32_t)pid_function < FUNCTION_COUNT &&
           check == check_of(call);
}
