/*
 * storm_client.c: clients that write values of which no part can be mistaken for another value, and
 * check them.
 *
 * SPDX-License-Identifier: MIT
 */
#include "storm_client.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "storm.h"

void expect_rv(CK_RV rv, CK_RV expected, const char *call)
{
    if (rv != expected)
        fail("%s answered 0x%lX instead of 0x%lX", call, rv, expected);
}

void expect_zero(int error, const char *call)
{
    if (error != 0)
        fail("%s: %s", call, strerror(error));
}

void use_cluster(const char *path)
{
    if (setenv("LUNA_STUB_STATE", path, 1) != 0)
        fail("setenv: %s", strerror(errno));
}

/* ---- values ---- */

void pin_of(uint8_t value, CK_UTF8CHAR pin[STATE_PIN_MAX], CK_ULONG *length)
{
    *length = STATE_PIN_MIN + value % (STATE_PIN_MAX - STATE_PIN_MIN + 1U);
    memset(pin, value, *length);
}

void uniform_label(uint8_t value, CK_UTF8CHAR label[STATE_LABEL_SIZE])
{
    memset(label, value, STATE_LABEL_SIZE);
}

bool label_is_whole(const uint8_t label[STATE_LABEL_SIZE],
                    const uint8_t original[STATE_LABEL_SIZE])
{
    if (memcmp(label, original, STATE_LABEL_SIZE) == 0)
        return true;
    for (unsigned int i = 1; i < STATE_LABEL_SIZE; i++) {
        if (label[i] != label[0])
            return false;
    }
    return true;
}

/* ---- calls with such values ---- */

CK_SESSION_HANDLE open_session(CK_SLOT_ID slot)
{
    CK_SESSION_HANDLE session;
    expect_rv(C_OpenSession(slot, CKF_SERIAL_SESSION | CKF_RW_SESSION, NULL, NULL, &session),
              CKR_OK, "C_OpenSession");
    return session;
}

CK_RV login(CK_SESSION_HANDLE session, CK_USER_TYPE user_type, uint8_t value)
{
    CK_UTF8CHAR pin[STATE_PIN_MAX];
    CK_ULONG length;
    pin_of(value, pin, &length);
    return C_Login(session, user_type, pin, length);
}

void login_right(CK_SESSION_HANDLE session, CK_USER_TYPE user_type, uint8_t value)
{
    expect_rv(login(session, user_type, value), CKR_OK, "C_Login");
}

void init_token(CK_SLOT_ID slot, uint8_t so, uint8_t label)
{
    CK_UTF8CHAR pin[STATE_PIN_MAX];
    CK_UTF8CHAR text[STATE_LABEL_SIZE];
    CK_ULONG length;
    pin_of(so, pin, &length);
    uniform_label(label, text);
    expect_rv(C_InitToken(slot, pin, length, text), CKR_OK, "C_InitToken");
}

void init_pin(CK_SESSION_HANDLE session, uint8_t user)
{
    CK_UTF8CHAR pin[STATE_PIN_MAX];
    CK_ULONG length;
    pin_of(user, pin, &length);
    expect_rv(C_InitPIN(session, pin, length), CKR_OK, "C_InitPIN");
}

void set_pin(CK_SESSION_HANDLE session, uint8_t from, uint8_t to)
{
    CK_UTF8CHAR old_pin[STATE_PIN_MAX];
    CK_UTF8CHAR new_pin[STATE_PIN_MAX];
    CK_ULONG old_length;
    CK_ULONG new_length;
    pin_of(from, old_pin, &old_length);
    pin_of(to, new_pin, &new_length);
    expect_rv(C_SetPIN(session, old_pin, old_length, new_pin, new_length), CKR_OK, "C_SetPIN");
}

void set_fault(const char *path, enum function_id function, uint8_t value)
{
    luna_stub_rule rule = {.rv = value, .times = value, .every = value, .probability = 1.0,
                           .seed = value, .lost_reply = 0};
    if (value == 0)
        rule.every = 1;
    expect_zero(luna_stub_fault(path, function_name(function), &rule), "luna_stub_fault");
}

void set_latency(const char *path, enum function_id function, uint8_t value)
{
    expect_zero(luna_stub_latency(path, function_name(function), value, value, value, 0),
                "luna_stub_latency");
}

/* ---- what others have written ---- */

static bool has_label(const CK_TOKEN_INFO *info, uint32_t values)
{
    CK_UTF8CHAR label[STATE_LABEL_SIZE];
    uniform_label(LABEL_OF(values), label);
    return memcmp(info->label, label, sizeof label) == 0;
}

static bool logs_in(CK_SESSION_HANDLE session, CK_USER_TYPE user_type, uint8_t value)
{
    CK_RV rv = login(session, user_type, value);
    if (rv == CKR_PIN_INCORRECT)
        return false;
    expect_rv(rv, CKR_OK, "C_Login");
    expect_rv(C_Logout(session), CKR_OK, "C_Logout");
    return true;
}

bool token_is(CK_SLOT_ID slot, uint32_t values)
{
    CK_TOKEN_INFO info;
    expect_rv(C_GetTokenInfo(slot, &info), CKR_OK, "C_GetTokenInfo");
    if (LABEL_OF(values) == 0)
        return (info.flags & (CKF_TOKEN_INITIALIZED | CKF_USER_PIN_INITIALIZED)) == 0 &&
               memcmp(info.label, "keyring", 7) == 0;
    if (!has_label(&info, values) || (info.flags & CKF_TOKEN_INITIALIZED) == 0 ||
        ((info.flags & CKF_USER_PIN_INITIALIZED) != 0) != (USER_OF(values) != 0))
        return false;
    CK_SESSION_HANDLE session = open_session(slot);
    bool right = logs_in(session, CKU_SO, SO_OF(values)) &&
                 (USER_OF(values) == 0 || logs_in(session, CKU_USER, USER_OF(values)));
    expect_rv(C_CloseSession(session), CKR_OK, "C_CloseSession");
    return right;
}

/* The control functions have no way to ask for a rule, so this looks into the file. */
struct rules {
    struct fault_rule fault;
    struct latency_rule latency;
    bool armed;
};

static struct rules read_rules(const char *path, enum function_id function)
{
    struct rules rules;
    struct state_file file;
    const char *reason;
    expect_zero(state_open(path, &file, &reason), path);
    struct state_fault *fault = &file.state->faults[function];
    (void)state_read_fault(&fault->rule, &rules.fault);
    (void)state_read_latency(&fault->latencies[LATENCY_BEFORE_EFFECT].rule, &rules.latency);
    rules.armed = atomic_load(&fault->armed) != 0;
    state_close(&file);
    return rules;
}

uint32_t fault_of(const char *path, enum function_id function)
{
    const struct rules rules = read_rules(path, function);
    const struct fault_rule *rule = &rules.fault;
    uint64_t value = rule->rv;
    bool cleared = value == 0 && rule->times == 0 && rule->every <= 1 && rule->seed == 0;
    bool set = value != 0 && (uint64_t)rule->times == value && rule->every == value &&
               rule->seed == value && rule->lost_reply == 0;
    if (!cleared && !set)
        fail("the fault rule of %s is a mixture", function_name(function));
    if (set && !rules.armed)
        fail("the fault of %s is set, and will not strike", function_name(function));
    return (uint32_t)value;
}

uint32_t latency_of(const char *path, enum function_id function)
{
    const struct rules rules = read_rules(path, function);
    const struct latency_rule *rule = &rules.latency;
    if (rule->least != rule->most || rule->least != rule->seed)
        fail("the latency of %s is a mixture", function_name(function));
    if (rule->most != 0 && !rules.armed)
        fail("the latency of %s is set, and will not delay", function_name(function));
    return (uint32_t)rule->most;
}

static void check_log_entry(const luna_stub_call *call, uint64_t after)
{
    if (call->number <= after)
        fail("log: number %llu comes after %llu", (unsigned long long)call->number,
             (unsigned long long)after);
    if (function_named(call->function) == FUNCTION_COUNT || call->pid <= 0 || call->thread <= 0)
        fail("log: entry %llu is not whole", (unsigned long long)call->number);
}

void check_log(const char *path, uint32_t room)
{
    luna_stub_call *calls = calloc(room, sizeof *calls);
    uint32_t count = 0;
    if (calls == NULL)
        fail("out of memory");
    expect_zero(luna_stub_log(path, calls, room, &count), "luna_stub_log");
    uint64_t after = 0;
    for (uint32_t i = 0; i < count; i++) {
        check_log_entry(&calls[i], after);
        after = calls[i].number;
    }
    free(calls);
}
