/*
 * fuzz_control.c: calls of the luna_stub_ functions, and what the model says to them.
 *
 * SPDX-License-Identifier: MIT
 */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "fuzz.h"

#define STRANGER_PID 2000000
/* A longer one would not be over before the clock turns round. */
#define LONGEST_LATENCY ((UINT64_C(1) << 50) - 1U)

/* ---- arguments ---- */

/* The second half of them is without a cluster. */
static const char *some_path(bool *there)
{
    unsigned int choice = input_below(32);
    *there = choice < 30;
    return choice < 30 ? FUZZ_PATH : choice == 30 ? "nowhere" : NULL;
}

static int error_of(const char *path)
{
    return path == NULL ? EINVAL : ENOENT;
}

static void expect_error(const char *what, int error, int expected)
{
    release_arguments();
    memory_check_idle();
    if (model.valid && error != expected)
        disagree(what, (uint64_t)error, (uint64_t)expected);
    if (model.valid)
        check_file();
}

/* Half of the time one of the cluster's, which are the last ones. */
static enum function_id some_function(void)
{
    unsigned int choice = input_byte();
    return (enum function_id)(choice < 128 ? FUNCTION_COUNT - 1U - choice % 6U
                                           : choice % FUNCTION_COUNT);
}

/* ---- faults and latencies ---- */

static double some_probability(void)
{
    switch (input_below(16)) {
    case 0:
        return 0.0;
    case 1:
        return -1.0;
    case 2:
        return 1.5;
    case 3:
        return (double)NAN;
    case 4:
        return model.valid ? 1.0 : 0x1p-64;
    case 5:
        return model.valid ? 1.0 : input_byte() / 255.0;
    default:
        return 1.0;
    }
}

static bool is_right(const luna_stub_rule *rule)
{
    return rule->times >= -1 && rule->times <= (int64_t)UINT32_MAX && rule->every >= 1 &&
           rule->probability >= 0.0 && rule->probability <= 1.0 && rule->lost_reply <= 1;
}

static void control_fault(void)
{
    static const char *const names[] = {"C_Nothing", "", "CA_"};
    bool there;
    const char *path = some_path(&there);
    enum function_id function = some_function();
    unsigned int choice = input_below(32);
    const char *name = choice < 29 ? function_name(function) : names[choice - 29U];
    luna_stub_rule *rule = NULL;
    int expected = 0;
    if (input_below(32) != 31) {
        rule = exactly(sizeof *rule);
        memset(rule, 0, sizeof *rule);
        rule->rv = input_below(4) == 0 ? input_bytes(8) : input_below(64);
        rule->times = input_below(8) == 0 ? (int64_t)input_bytes(8) : (int64_t)input_below(6) - 1;
        rule->every = input_below(8) == 0 ? input_bytes(8) : 1U + input_below(3);
        rule->probability = some_probability();
        rule->seed = input_bytes(2);
        rule->lost_reply = input_below(8) == 7 ? input_byte() : input_below(2);
    }
    if (rule == NULL || !is_right(rule))
        expected = EINVAL;
    else if (choice >= 29)
        expected = ENOSYS;
    else if (!there)
        expected = error_of(path);
    if (expected == 0)
        model.faults[function] = (struct model_fault){.rule = *rule};
    expect_error("luna_stub_fault", luna_stub_fault(path, name, rule), expected);
}

static void control_latency(void)
{
    bool there;
    const char *path = some_path(&there);
    enum function_id function = some_function();
    unsigned int choice = input_below(16);
    const char *name = choice < 13 ? function_name(function) : choice == 13 ? "C_Nothing" : NULL;
    uint64_t least = input_bytes(1U + input_below(8)) & LONGEST_LATENCY;
    uint64_t most = input_below(4) == 0 ? input_bytes(8) & LONGEST_LATENCY : least;
    uint64_t seed = input_byte();
    uint32_t after = input_below(16) == 15 ? input_byte() : input_below(2);
    int expected = !there ? error_of(path) : 0;
    if (least > most || after > 1)
        expected = EINVAL;
    else if (choice == 13)
        expected = ENOSYS;
    expect_error("luna_stub_latency", luna_stub_latency(path, name, least, most, seed, after),
                 expected);
    /* While C_WaitForSlotEvent waits other applications act; with a latency the model would not know
       whether before its effect or after. */
    for (after = 0; model.valid && after < 2; after++)
        (void)luna_stub_latency(FUZZ_PATH, "C_WaitForSlotEvent", 0, 0, 0, after);
}

/* ---- switches ---- */

void fuzz_set_switch(const char *name, const char *value, unsigned int number)
{
    expect_error("luna_stub_switch", luna_stub_switch(FUZZ_PATH, name, value), 0);
    if (strcmp(name, "contention") == 0)
        model.contention = (enum switch_contention)number;
    else if (strcmp(name, "relock") == 0)
        model.relock = (enum switch_relock)number;
    else if (strcmp(name, "unlock_owner") == 0)
        model.unlock_owner = (enum switch_unlock_owner)number;
    else if (strcmp(name, "regrant") == 0)
        model.regrant = (enum switch_regrant)number;
    else if (strcmp(name, "grants") == 0)
        model.grants = (enum switch_grants)number;
    else if (strcmp(name, "identity") == 0)
        model.identity = (enum switch_identity)number;
    else if (strcmp(name, "pin_change") == 0)
        model.pin_change = (enum switch_pin_change)number;
    else if (strcmp(name, "authentication") == 0)
        model.authentication = (enum switch_authentication)number;
    else if (strcmp(name, "application") == 0)
        model.application = (enum switch_application)number;
    else if (strcmp(name, "change_label") == 0)
        model.change_label = (enum switch_change_label)number;
    else
        model.log = (enum switch_log)number;
}

static void control_switch(void)
{
    static const struct {
        const char *name;
        const char *value;
        unsigned int number;
    } settings[] = {
        {"contention", "wait", CONTENTION_WAIT},
        {"contention", "error", CONTENTION_ERROR},
        {"relock", "granted", RELOCK_GRANTED},
        {"relock", "wait", RELOCK_WAIT},
        {"relock", "error", RELOCK_ERROR},
        {"unlock_owner", "unchecked", UNLOCK_OWNER_UNCHECKED},
        {"unlock_owner", "checked", UNLOCK_OWNER_CHECKED},
        {"regrant", "on", REGRANT_ON},
        {"regrant", "off", REGRANT_OFF},
        {"grants", "once", GRANTS_ONCE},
        {"grants", "counted", GRANTS_COUNTED},
        {"identity", "single", IDENTITY_SINGLE},
        {"identity", "dual", IDENTITY_DUAL},
        {"pin_change", "free", PIN_CHANGE_FREE},
        {"pin_change", "forced", PIN_CHANGE_FORCED},
        {"authentication", "password", AUTHENTICATION_PASSWORD},
        {"authentication", "ped", AUTHENTICATION_PED},
        {"application", "process", APPLICATION_PROCESS},
        {"application", "shared", APPLICATION_SHARED},
        {"change_label", "off", CHANGE_LABEL_OFF},
        {"change_label", "on", CHANGE_LABEL_ON},
        {"log", "on", LOG_ON},
        {"log", "off", LOG_OFF},
    };
    static const unsigned int count = sizeof settings / sizeof settings[0];
    static const struct {
        const char *name;
        const char *value;
    } wrong[] = {{"contention", "granted"}, {"relock", "on"}, {"", ""},
                 {NULL, "wait"}, {"contention", NULL}};
    unsigned int choice = input_below(64);
    if (choice < 5)
        expect_error("luna_stub_switch",
                     luna_stub_switch(FUZZ_PATH, wrong[choice].name, wrong[choice].value), EINVAL);
    else
        fuzz_set_switch(settings[choice % count].name, settings[choice % count].value,
                        settings[choice % count].number);
}

/* ---- PINs ---- */

static void control_pin_lengths(void)
{
    bool there;
    const char *path = some_path(&there);
    uint32_t least = input_below(4) == 0 ? input_byte() : 1U + input_below(10);
    uint32_t most = input_below(4) == 0 ? input_byte() + input_below(8) : STATE_PIN_MAX;
    bool right = least >= 1 && most <= STATE_PIN_MAX && least <= most;
    int expected = !right ? EINVAL : !there ? error_of(path) : 0;
    if (expected == 0) {
        model.shortest_pin = least;
        model.longest_pin = most;
    }
    expect_error("luna_stub_pin_lengths", luna_stub_pin_lengths(path, least, most), expected);
}

static void give_pin(struct model_pin *pin, struct pin given)
{
    memset(pin, 0, sizeof *pin);
    if (given.value == NULL)
        return;
    pin->set = true;
    pin->length = given.length;
    memcpy(pin->value, given.value, given.length);
}

static bool is_possible(struct pin pin)
{
    return pin.value == NULL || (pin.length >= 1 && pin.length <= STATE_PIN_MAX);
}

static void control_set_pins(void)
{
    bool there;
    const char *path = some_path(&there);
    CK_SLOT_ID slot = some_slot();
    struct pin so_pin = some_pin();
    struct pin user_pin = some_pin();
    struct model_token *token = model_token(slot);
    so_pin.length &= UINT32_MAX;
    user_pin.length &= UINT32_MAX;
    bool right = is_possible(so_pin) && is_possible(user_pin) &&
                 (so_pin.value != NULL || user_pin.value == NULL);
    int expected = !right ? EINVAL : !there ? error_of(path) : token == NULL ? ENXIO : 0;
    if (model.valid && expected == 0) {
        give_pin(&token->so_pin, so_pin);
        give_pin(&token->user_pin, user_pin);
        token->initialised = so_pin.value != NULL;
    }
    expect_error("luna_stub_set_pins",
                 luna_stub_set_pins(path, slot, so_pin.value, (uint32_t)so_pin.length,
                                    user_pin.value, (uint32_t)user_pin.length),
                 expected);
}

static void control_unlock_keyring(void)
{
    bool there;
    const char *path = some_path(&there);
    CK_SLOT_ID slot = some_slot();
    struct model_token *token = model_token(slot);
    int expected = !there ? error_of(path) : token == NULL ? ENXIO : 0;
    if (model.valid && expected == 0) {
        token->so_pin.failures = 0;
        token->user_pin.failures = 0;
    }
    expect_error("luna_stub_unlock_keyring", luna_stub_unlock_keyring(path, slot), expected);
}

/* ---- disconnecting ---- */

void fuzz_disconnect(enum who who)
{
    const struct model_application *application = &model.applications[who];
    int64_t pid = who == NOBODY ? STRANGER_PID : application->pid;
    bool entered = who != NOBODY && application->entered;
    int error = luna_stub_disconnect(FUZZ_PATH, pid);
    if (entered)
        model_disconnect(who);
    expect_error("luna_stub_disconnect", error, entered ? 0 : ESRCH);
}

static void control_disconnect(void)
{
    enum who who = (enum who)input_below(WHO_COUNT);
    if (model.applications[who].pid != 0 || who == NOBODY)
        fuzz_disconnect(who);
}

/* ---- looking ---- */

static void control_snapshot(void)
{
    bool there;
    const char *path = some_path(&there);
    uint32_t room = input_below(MODEL_TOKENS + 3U);
    luna_stub_token *tokens = input_below(8) == 7 ? NULL : exactly(room * sizeof *tokens);
    uint32_t *count = input_below(8) == 7 ? NULL : exactly(sizeof *count);
    int error = luna_stub_snapshot(path, tokens, room, count);
    int expected = !there ? error_of(path) : 0;
    if (count == NULL || (tokens == NULL && room > 0))
        expected = EINVAL;
    if (model.valid && expected == 0 && *count != model.tokens_count)
        disagree("luna_stub_snapshot's count", *count, model.tokens_count);
    expect_error("luna_stub_snapshot", error, expected);
}

static void check_log(const luna_stub_call *calls, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        if (function_named(calls[i].function) == FUNCTION_COUNT)
            disagree("the log's function", 0, 1);
        if (i > 0 && calls[i].number <= calls[i - 1U].number)
            disagree("the log's numbers", calls[i].number, calls[i - 1U].number + 1U);
    }
}

static void control_log(void)
{
    bool there;
    const char *path = some_path(&there);
    uint32_t room = input_below(STATE_LOG_ENTRIES + 3U);
    luna_stub_call *calls = input_below(8) == 7 ? NULL : exactly(room * sizeof *calls);
    uint32_t *count = input_below(8) == 7 ? NULL : exactly(sizeof *count);
    int error = luna_stub_log(path, calls, room, count);
    int expected = !there ? error_of(path) : 0;
    if (count == NULL || (calls == NULL && room > 0))
        expected = EINVAL;
    if (error == 0 && room > 0 && *count > room)
        disagree("luna_stub_log's count", *count, room);
    if (error == 0 && room > 0)
        check_log(calls, *count);
    expect_error("luna_stub_log", error, expected);
}

static void control_cluster_id(void)
{
    bool there;
    const char *path = some_path(&there);
    char *cluster_id = input_below(8) == 7 ? NULL : exactly(STATE_CLUSTER_ID_SIZE + 1U);
    int error = luna_stub_cluster_id(path, cluster_id);
    if (model.valid && error == 0 && strcmp(cluster_id, model.cluster_id) != 0)
        disagree("luna_stub_cluster_id", (uint64_t)cluster_id[0], (uint64_t)model.cluster_id[0]);
    int expected = !there ? error_of(path) : 0;
    expect_error("luna_stub_cluster_id", error, cluster_id == NULL ? EINVAL : expected);
}

static void control_entered(void)
{
    bool there;
    const char *path = some_path(&there);
    int error = luna_stub_entered(path);
    expect_error("luna_stub_entered", error,
                 !there ? error_of(path) : model_us()->entered ? 0 : ESRCH);
}

/* ---- making ---- */

/* A text of so many bytes. */
static char *text_of(size_t length)
{
    char *text = exactly(length + 1U);
    memset(text, 'x', length);
    text[length] = 0;
    return text;
}

static void control_create(void)
{
    static const uint32_t counts[] = {0, 1, 2, 9, 10, STATE_MAX_KEYRINGS + 1U, UINT32_MAX, 3};
    static const uint64_t first_slots[] = {0, 1, UINT64_MAX, UINT64_MAX - 1U, 77};
    uint32_t keyrings = counts[input_below(8)];
    size_t label_length = input_below(STATE_LABEL_SIZE + 4U);
    size_t id_length = input_below(STATE_CLUSTER_ID_SIZE + 3U);
    uint64_t first_slot = first_slots[input_below(5)];
    bool again = input_below(8) == 7;
    struct pin password = some_pin();
    password.length &= UINT32_MAX;
    int error = luna_stub_create(again ? FUZZ_PATH : FUZZ_NEW_PATH, text_of(id_length),
                                 text_of(label_length), keyrings, first_slot, password.value,
                                 (uint32_t)password.length);
    size_t digits = keyrings < 10 ? 1 : 2;
    bool right = keyrings >= 1 && keyrings <= STATE_MAX_KEYRINGS && id_length >= 1 &&
                 id_length <= STATE_CLUSTER_ID_SIZE && label_length + digits <= STATE_LABEL_SIZE &&
                 first_slot + (keyrings - 1U) >= first_slot &&
                 (password.value == NULL ||
                  (password.length >= STATE_PIN_MIN && password.length <= STATE_PIN_MAX));
    expect_error("luna_stub_create", error, !right ? EINVAL : again ? EEXIST : 0);
    if (error == 0) {
        uint32_t count = 0;
        int opened = luna_stub_snapshot(FUZZ_NEW_PATH, NULL, 0, &count);
        if (model.valid && (opened != 0 || count != keyrings))
            disagree("a new cluster's keyrings", count, keyrings);
        memory_remove_file(FUZZ_NEW_PATH);
    }
}

void fuzz_control_call(void)
{
    static void (*const calls[])(void) = {
        control_fault,    control_fault, control_latency,    control_switch, control_disconnect,
        control_snapshot, control_log,   control_cluster_id, control_entered, control_create,
        control_set_pins, control_set_pins, control_unlock_keyring, control_pin_lengths,
    };
    calls[input_below(sizeof calls / sizeof calls[0])]();
}
