/*
 * registry.c: the cluster's table of applications. An entry belongs to the application that holds the
 * lock on its life byte, which the system drops however the process dies.
 *
 * SPDX-License-Identifier: MIT
 */
#include "registry.h"

_Static_assert(STATE_APPLICATIONS < REGISTRY_GRANT, "an index leaves the count its room");

/* Between state_write_begin() and state_write_end(): another application that looks at sessions must not
   take those of the entry's last owner for ours. */
static bool take_entry(struct state_file *file)
{
    for (uint32_t index = 0; index < STATE_APPLICATIONS; index++) {
        if (platform_byte_lock(&file->platform, STATE_LIFE_BYTE(index), false) != 0)
            continue;
        struct state_application *entry = &file->state->applications[index];
        atomic_store(&entry->pid, 0); /* a killed owner's is still there */
        /* Before the process ID, so that no lock of the entry's last owner counts as ours. */
        uint32_t generation = atomic_fetch_add(&entry->generation, 1U) + 1U;
        if (generation == atomic_load(&entry->disconnected))
            generation = atomic_fetch_add(&entry->generation, 1U) + 1U;
        for (uint32_t word = 0; word < STATE_KEYRING_BITS; word++)
            atomic_store_explicit(&entry->in_session[word], 0, memory_order_relaxed);
        atomic_store(&entry->pid, platform_pid());
        file->self = (uint64_t)generation << 32 | (index + 1U);
        return true;
    }
    return false;
}

bool registry_enter(struct state_file *file)
{
    if (!state_write_begin(file))
        return false;
    bool entered = take_entry(file);
    state_write_end(file);
    return entered;
}

void registry_leave(struct state_file *file)
{
    uint32_t index = registry_index(file->self);
    atomic_store(&file->state->applications[index].pid, 0);
    file->self = 0;
    platform_byte_unlock(&file->platform, STATE_LIFE_BYTE(index));
}

bool registry_alive(struct state_file *file, uint64_t owner)
{
    uint32_t index = registry_index(owner);
    uint32_t generation = registry_generation(owner);
    if (index >= STATE_APPLICATIONS)
        return false;
    struct state_application *entry = &file->state->applications[index];
    if (atomic_load(&entry->generation) != generation ||
        atomic_load(&entry->disconnected) == generation)
        return false;
    /* The system does not report an opening's own locks to it. */
    return registry_application(owner) == file->self ||
           platform_byte_locked(&file->platform, STATE_LIFE_BYTE(index));
}

int64_t registry_pid(struct state_file *file, uint64_t owner)
{
    return atomic_load(&file->state->applications[registry_index(owner)].pid);
}

static uint64_t word_of(struct state_file *file, uint32_t index)
{
    return (uint64_t)atomic_load(&file->state->applications[index].generation) << 32 | (index + 1U);
}

uint64_t registry_at(struct state_file *file, uint32_t index)
{
    bool there = atomic_load(&file->state->applications[index].pid) != 0 &&
                 platform_byte_locked(&file->platform, STATE_LIFE_BYTE(index));
    return there ? word_of(file, index) : 0;
}

void registry_disconnect(struct state_file *file, uint64_t owner)
{
    atomic_store(&file->state->applications[registry_index(owner)].disconnected,
                 registry_generation(owner));
}

void registry_restart(struct state_file *file, uint64_t owner)
{
    atomic_fetch_add(&file->state->applications[registry_index(owner)].restarts, 1U);
}

/* ---- sessions ---- */

static _Atomic uint64_t *session_word(struct state_file *file, uint32_t index, uint32_t keyring)
{
    return &file->state->applications[index].in_session[keyring / 64U];
}

void registry_set_in_session(struct state_file *file, uint32_t keyring, bool in_session)
{
    _Atomic uint64_t *word = session_word(file, registry_index(file->self), keyring);
    uint64_t bit = UINT64_C(1) << keyring % 64U;
    if (in_session)
        atomic_fetch_or(word, bit);
    else
        atomic_fetch_and(word, ~bit);
}

bool registry_any_in_session(struct state_file *file, uint32_t keyring)
{
    uint64_t bit = UINT64_C(1) << keyring % 64U;
    for (uint32_t index = 0; index < STATE_APPLICATIONS; index++) {
        if ((atomic_load(session_word(file, index, keyring)) & bit) == 0)
            continue;
        if (registry_alive(file, word_of(file, index)))
            return true;
    }
    return false;
}

void registry_end_sessions(struct state_file *file, uint32_t keyring)
{
    uint64_t bit = UINT64_C(1) << keyring % 64U;
    for (uint32_t index = 0; index < STATE_APPLICATIONS; index++)
        atomic_fetch_and(session_word(file, index, keyring), ~bit);
}
