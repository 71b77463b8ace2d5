/*
 * control.c: the luna_stub_ functions: a cluster is made, watched and made to misbehave.
 *
 * SPDX-License-Identifier: MIT
 */
#include "control.h"

#include <errno.h>
#include <string.h>

#include "fault.h"
#include "keyring_lock.h"
#include "registry.h"

static int open_state(const char *path, struct state_file *file)
{
    const char *reason;
    return path == NULL ? EINVAL : state_open(path, file, &reason);
}

int luna_stub_create(const char *path, const char *cluster_id, const char *label, uint32_t keyrings,
                     uint64_t first_slot)
{
    if (path == NULL || cluster_id == NULL || label == NULL)
        return EINVAL;
    struct state_plan plan = {cluster_id, label, keyrings, first_slot, 0};
    if (!platform_random(&plan.serial_base, sizeof plan.serial_base))
        return EIO;
    return state_create(path, &plan);
}

int luna_stub_fault(const char *path, const char *function, uint64_t rv, int64_t times)
{
    if (function == NULL || times < -1 || times > (int64_t)UINT32_MAX || rv > (CK_RV)~(CK_RV)0)
        return EINVAL;
    enum function_id id = fault_function(function);
    if (id == FUNCTION_COUNT)
        return EINVAL;
    struct state_file file;
    int error = open_state(path, &file);
    if (error != 0)
        return error;
    if (state_write_begin(&file)) {
        const struct fault_rule rule = {rv, times};
        fault_set_rule(file.state, id, &rule);
        state_write_end(&file);
    } else {
        error = ENOLCK;
    }
    state_close(&file);
    return error;
}

int luna_stub_latency(const char *path, const char *function, uint64_t microseconds)
{
    unsigned int first = 0;
    unsigned int end = FUNCTION_COUNT;
    if (function != NULL) {
        first = fault_function(function);
        if (first == FUNCTION_COUNT)
            return EINVAL;
        end = first + 1U;
    }
    struct state_file file;
    int error = open_state(path, &file);
    if (error != 0)
        return error;
    if (state_write_begin(&file)) {
        for (unsigned int id = first; id < end; id++)
            fault_set_latency(file.state, (enum function_id)id, microseconds);
        state_write_end(&file);
    } else {
        error = ENOLCK;
    }
    state_close(&file);
    return error;
}

/* ---- switches ---- */

enum switch_name { SWITCH_CONTENTION, SWITCH_RELOCK, SWITCH_UNLOCK_OWNER };

static const struct setting {
    const char *name;
    const char *value;
    enum switch_name which;
    uint32_t number;
} settings[] = {
    {"contention", "wait", SWITCH_CONTENTION, CONTENTION_WAIT},
    {"contention", "error", SWITCH_CONTENTION, CONTENTION_ERROR},
    {"relock", "granted", SWITCH_RELOCK, RELOCK_GRANTED},
    {"relock", "wait", SWITCH_RELOCK, RELOCK_WAIT},
    {"relock", "error", SWITCH_RELOCK, RELOCK_ERROR},
    {"unlock_owner", "unchecked", SWITCH_UNLOCK_OWNER, UNLOCK_OWNER_UNCHECKED},
    {"unlock_owner", "checked", SWITCH_UNLOCK_OWNER, UNLOCK_OWNER_CHECKED},
};

static const struct setting *find_setting(const char *name, const char *value)
{
    for (size_t i = 0; i < sizeof settings / sizeof settings[0]; i++) {
        if (strcmp(settings[i].name, name) == 0 && strcmp(settings[i].value, value) == 0)
            return &settings[i];
    }
    return NULL;
}

static _Atomic uint32_t *find_switch(struct state_switches *switches, enum switch_name which)
{
    switch (which) {
    case SWITCH_CONTENTION:
        return &switches->contention;
    case SWITCH_RELOCK:
        return &switches->relock;
    default:
        return &switches->unlock_owner;
    }
}

int luna_stub_switch(const char *path, const char *name, const char *value)
{
    if (name == NULL || value == NULL)
        return EINVAL;
    const struct setting *setting = find_setting(name, value);
    if (setting == NULL)
        return EINVAL;
    struct state_file file;
    int error = open_state(path, &file);
    if (error != 0)
        return error;
    atomic_store(find_switch(&file.state->switches, setting->which), setting->number);
    state_close(&file);
    return 0;
}

/* ---- applications and their locks ---- */

int luna_stub_disconnect(const char *path, int64_t pid)
{
    struct state_file file;
    int error = open_state(path, &file);
    if (error != 0)
        return error;
    error = ESRCH;
    for (uint32_t index = 0; index < STATE_APPLICATIONS; index++) {
        uint64_t owner = registry_at(&file, index);
        if (owner == 0 || registry_pid(&file, owner) != pid)
            continue;
        registry_disconnect(&file, owner);
        keyring_release_all(&file, owner);
        error = 0;
    }
    state_close(&file);
    return error;
}

static int64_t owner_pid(struct state_file *file, struct state_keyring *keyring)
{
    uint64_t owner = atomic_load(&keyring->owner);
    return owner != 0 && registry_alive(file, owner) ? registry_pid(file, owner) : 0;
}

int luna_stub_snapshot(const char *path, luna_stub_token *tokens, uint32_t room, uint32_t *count)
{
    if (count == NULL || (tokens == NULL && room > 0))
        return EINVAL;
    struct state_file file;
    int error = open_state(path, &file);
    if (error != 0)
        return error;
    *count = file.keyring_count;
    for (uint32_t i = 0; i < file.keyring_count && i < room; i++) {
        struct state_keyring *keyring = &file.state->keyrings[i];
        tokens[i].slot_id = file.first_slot + i;
        state_read_label(&keyring->token, tokens[i].label);
        memcpy(tokens[i].original_label, keyring->original_label, STATE_LABEL_SIZE);
        tokens[i].owner_pid = owner_pid(&file, keyring);
    }
    state_close(&file);
    return 0;
}
