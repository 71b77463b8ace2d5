/*
 * control.c: the luna_stub_ functions: a cluster is made, watched and made to misbehave.
 *
 * SPDX-License-Identifier: MIT
 */
#include "control.h"

#include <errno.h>
#include <string.h>

#include "application.h"
#include "fault.h"
#include "keyring_lock.h"
#include "log.h"
#include "registry.h"

static int open_state(const char *path, struct state_file *file)
{
    const char *reason;
    return path == NULL ? EINVAL : state_open(path, file, &reason);
}

int luna_stub_create(const char *path, const char *cluster_id, const char *label, uint32_t keyrings,
                     uint64_t first_slot, const uint8_t *password, uint32_t password_length)
{
    if (path == NULL || cluster_id == NULL || label == NULL)
        return EINVAL;
    struct state_plan plan = {.cluster_id = cluster_id,
                              .label = label,
                              .keyrings = keyrings,
                              .first_slot = first_slot,
                              .password = password,
                              .password_length = password_length};
    if (!platform_random(&plan.identity, sizeof plan.identity))
        return EIO;
    return state_create(path, &plan);
}

int luna_stub_cluster_id(const char *path, char cluster_id[65])
{
    if (cluster_id == NULL)
        return EINVAL;
    struct state_file file;
    int error = open_state(path, &file);
    if (error != 0)
        return error;
    memcpy(cluster_id, file.state->header.cluster_id, STATE_CLUSTER_ID_SIZE + 1U);
    state_close(&file);
    return 0;
}

int luna_stub_entered(const char *path)
{
    struct state_file file;
    int error = open_state(path, &file);
    if (error != 0)
        return error;
    error = ESRCH;
    if (application_enter()) {
        if (application_file()->state->header.identity == file.state->header.identity)
            error = 0;
        application_leave();
    }
    state_close(&file);
    return error;
}

/* ---- faults and latencies ---- */

/* The largest random number that is as probable as that. */
static uint64_t threshold_of(double probability)
{
    const double all = 18446744073709551616.0; /* 2^64 */
    double scaled = probability * all;
    return scaled >= all ? UINT64_MAX : (uint64_t)scaled;
}

int luna_stub_fault(const char *path, const char *function, const luna_stub_rule *rule)
{
    if (function == NULL || rule == NULL)
        return EINVAL;
    if (rule->rv > (CK_RV) ~(CK_RV)0 || rule->times < -1 || rule->times > (int64_t)UINT32_MAX ||
        rule->every < 1 || !(rule->probability >= 0.0 && rule->probability <= 1.0) ||
        rule->lost_reply > 1)
        return EINVAL;
    enum function_id id = function_named(function);
    if (id == FUNCTION_COUNT)
        return ENOSYS;
    struct state_file file;
    int error = open_state(path, &file);
    if (error != 0)
        return error;
    if (state_write_begin(&file)) {
        const struct fault_rule record = {
            .rv = rule->rv,
            .times = rule->probability > 0.0 ? rule->times : 0,
            .every = rule->every,
            .threshold = threshold_of(rule->probability),
            .seed = rule->seed,
            .lost_reply = rule->lost_reply,
        };
        fault_set_rule(file.state, id, &record);
        state_write_end(&file);
    } else {
        error = ENOLCK;
    }
    state_close(&file);
    return error;
}

int luna_stub_latency(const char *path, const char *function, uint64_t least, uint64_t most,
                      uint64_t seed, uint32_t after)
{
    if (least > most || after > 1)
        return EINVAL;
    unsigned int first = 0;
    unsigned int end = FUNCTION_COUNT;
    if (function != NULL) {
        first = function_named(function);
        if (first == FUNCTION_COUNT)
            return ENOSYS;
        end = first + 1U;
    }
    struct state_file file;
    int error = open_state(path, &file);
    if (error != 0)
        return error;
    if (state_write_begin(&file)) {
        const struct latency_rule record = {.least = least, .most = most, .seed = seed};
        for (unsigned int id = first; id < end; id++)
            fault_set_latency(file.state, (enum function_id)id,
                              after == 0 ? LATENCY_BEFORE_EFFECT : LATENCY_AFTER_EFFECT, &record);
        state_write_end(&file);
    } else {
        error = ENOLCK;
    }
    state_close(&file);
    return error;
}

/* ---- switches ---- */

enum switch_name {
    SWITCH_CONTENTION,
    SWITCH_RELOCK,
    SWITCH_UNLOCK_OWNER,
    SWITCH_REGRANT,
    SWITCH_GRANTS,
    SWITCH_IDENTITY,
    SWITCH_PIN_CHANGE,
    SWITCH_AUTHENTICATION,
    SWITCH_APPLICATION,
    SWITCH_CHANGE_LABEL,
    SWITCH_LOG,
};

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
    {"regrant", "on", SWITCH_REGRANT, REGRANT_ON},
    {"regrant", "off", SWITCH_REGRANT, REGRANT_OFF},
    {"grants", "once", SWITCH_GRANTS, GRANTS_ONCE},
    {"grants", "counted", SWITCH_GRANTS, GRANTS_COUNTED},
    {"identity", "single", SWITCH_IDENTITY, IDENTITY_SINGLE},
    {"identity", "dual", SWITCH_IDENTITY, IDENTITY_DUAL},
    {"pin_change", "free", SWITCH_PIN_CHANGE, PIN_CHANGE_FREE},
    {"pin_change", "forced", SWITCH_PIN_CHANGE, PIN_CHANGE_FORCED},
    {"authentication", "password", SWITCH_AUTHENTICATION, AUTHENTICATION_PASSWORD},
    {"authentication", "ped", SWITCH_AUTHENTICATION, AUTHENTICATION_PED},
    {"application", "process", SWITCH_APPLICATION, APPLICATION_PROCESS},
    {"application", "shared", SWITCH_APPLICATION, APPLICATION_SHARED},
    {"change_label", "off", SWITCH_CHANGE_LABEL, CHANGE_LABEL_OFF},
    {"change_label", "on", SWITCH_CHANGE_LABEL, CHANGE_LABEL_ON},
    {"log", "on", SWITCH_LOG, LOG_ON},
    {"log", "off", SWITCH_LOG, LOG_OFF},
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
    case SWITCH_UNLOCK_OWNER:
        return &switches->unlock_owner;
    case SWITCH_REGRANT:
        return &switches->regrant;
    case SWITCH_GRANTS:
        return &switches->grants;
    case SWITCH_IDENTITY:
        return &switches->identity;
    case SWITCH_PIN_CHANGE:
        return &switches->pin_change;
    case SWITCH_AUTHENTICATION:
        return &switches->authentication;
    case SWITCH_APPLICATION:
        return &switches->application;
    case SWITCH_CHANGE_LABEL:
        return &switches->change_label;
    default:
        return &switches->log;
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

/* ---- PINs ---- */

int luna_stub_pin_lengths(const char *path, uint32_t least, uint32_t most)
{
    if (least < 1 || most > STATE_PIN_MAX || least > most)
        return EINVAL;
    struct state_file file;
    int error = open_state(path, &file);
    if (error != 0)
        return error;
    state_set_pin_lengths(file.state, least, most);
    state_close(&file);
    return 0;
}

/* What a keyring's record is changed to. */
struct pins {
    const uint8_t *so_pin;
    const uint8_t *user_pin;
    uint32_t so_pin_length;
    uint32_t user_pin_length;
};

static void give_pins(struct token_record *record, const struct pins *pins)
{
    memset(&record->so_pin, 0, sizeof record->so_pin);
    memset(&record->user_pin, 0, sizeof record->user_pin);
    record->initialised = pins->so_pin != NULL;
    if (pins->so_pin != NULL)
        state_set_pin(&record->so_pin, pins->so_pin, pins->so_pin_length);
    if (pins->user_pin != NULL)
        state_set_pin(&record->user_pin, pins->user_pin, pins->user_pin_length);
}

static void forget_tries(struct token_record *record, const struct pins *pins)
{
    (void)pins;
    record->so_pin.failures = 0;
    record->user_pin.failures = 0;
}

static int change_record(const char *path, uint64_t slot_id, const struct pins *pins,
                         void (*change)(struct token_record *record, const struct pins *pins))
{
    struct state_file file;
    int error = open_state(path, &file);
    if (error != 0)
        return error;
    struct state_keyring *keyring = state_keyring(&file, slot_id);
    if (keyring == NULL) {
        error = ENXIO;
    } else if (state_write_begin(&file)) {
        struct token_record record;
        state_read_token(&keyring->token, &record);
        change(&record, pins);
        state_write_token(&keyring->token, &record);
        state_write_end(&file);
    } else {
        error = ENOLCK;
    }
    state_close(&file);
    return error;
}

static bool pin_possible(const uint8_t *pin, uint32_t length)
{
    return pin == NULL || (length >= 1 && length <= STATE_PIN_MAX);
}

int luna_stub_set_pins(const char *path, uint64_t slot_id, const uint8_t *so_pin,
                       uint32_t so_pin_length, const uint8_t *user_pin, uint32_t user_pin_length)
{
    if (!pin_possible(so_pin, so_pin_length) || !pin_possible(user_pin, user_pin_length) ||
        (so_pin == NULL && user_pin != NULL))
        return EINVAL;
    const struct pins pins = {so_pin, user_pin, so_pin_length, user_pin_length};
    return change_record(path, slot_id, &pins, give_pins);
}

int luna_stub_unlock_keyring(const char *path, uint64_t slot_id)
{
    return change_record(path, slot_id, NULL, forget_tries);
}

/* ---- applications and their locks ---- */

static int for_each_of(const char *path, int64_t pid,
                       void (*change)(struct state_file *file, uint64_t owner))
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
        change(&file, owner);
        keyring_release_all(&file, owner);
        error = 0;
    }
    state_close(&file);
    return error;
}

int luna_stub_disconnect(const char *path, int64_t pid)
{
    return for_each_of(path, pid, registry_disconnect);
}

int luna_stub_reinitialise(const char *path, int64_t pid)
{
    return for_each_of(path, pid, registry_restart);
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

/* ---- the log ---- */

static void describe_call(const struct log_call *logged, luna_stub_call *call)
{
    call->number = logged->number;
    call->began = logged->began;
    call->duration = logged->duration;
    call->function = function_name(logged->function);
    call->slot_id = logged->slot_id;
    call->rv = logged->rv;
    call->pid = logged->pid;
    call->thread = logged->thread;
}

int luna_stub_log(const char *path, luna_stub_call *calls, uint32_t room, uint32_t *count)
{
    if (count == NULL || (calls == NULL && room > 0))
        return EINVAL;
    struct state_file file;
    int error = open_state(path, &file);
    if (error != 0)
        return error;
    uint64_t latest = log_latest(file.state);
    uint32_t kept = latest < STATE_LOG_ENTRIES ? (uint32_t)latest : STATE_LOG_ENTRIES;
    uint32_t wanted = room < kept ? room : kept;
    *count = room == 0 ? kept : 0;
    for (uint32_t i = wanted; i > 0; i--) {
        struct log_call logged;
        if (log_read(file.state, latest - (i - 1U), &logged))
            describe_call(&logged, &calls[(*count)++]);
    }
    state_close(&file);
    return 0;
}

int luna_stub_function(uint32_t number, const char **name)
{
    if (name == NULL)
        return EINVAL;
    if (number >= FUNCTION_COUNT)
        return ENOSYS;
    *name = function_name((enum function_id)number);
    return 0;
}
