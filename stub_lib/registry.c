/*
 * registry.c: the cluster's table of applications. An entry belongs to whoever holds the lock on
 * its life byte, which the system drops however the process dies.
 *
 * SPDX-License-Identifier: MIT
 */
#include "registry.h"

bool registry_enter(struct state_file *file)
{
    for (uint32_t index = 0; index < STATE_APPLICATIONS; index++) {
        if (platform_byte_lock(&file->platform, STATE_LIFE_BYTE(index), false) != 0)
            continue;
        struct state_application *entry = &file->state->applications[index];
        /* Before the process ID, so that no lock of the entry's last owner counts as ours. */
        uint32_t generation = atomic_fetch_add(&entry->generation, 1U) + 1U;
        if (generation == atomic_load(&entry->disconnected))
            generation = atomic_fetch_add(&entry->generation, 1U) + 1U;
        atomic_store(&entry->pid, platform_pid());
        file->self = (uint64_t)generation << 32 | (index + 1U);
        return true;
    }
    return false;
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
    return owner == file->self || platform_byte_locked(&file->platform, STATE_LIFE_BYTE(index));
}

int64_t registry_pid(struct state_file *file, uint64_t owner)
{
    return atomic_load(&file->state->applications[registry_index(owner)].pid);
}

uint64_t registry_at(struct state_file *file, uint32_t index)
{
    struct state_application *entry = &file->state->applications[index];
    uint64_t owner = (uint64_t)atomic_load(&entry->generation) << 32 | (index + 1U);
    bool there = atomic_load(&entry->pid) != 0 &&
                 platform_byte_locked(&file->platform, STATE_LIFE_BYTE(index));
    return there ? owner : 0;
}

void registry_disconnect(struct state_file *file, uint64_t owner)
{
    atomic_store(&file->state->applications[registry_index(owner)].disconnected,
                 registry_generation(owner));
}
