/*
 * fuzz_model.c: what the cluster has to look like, as far as its file is not damaged.
 *
 * SPDX-License-Identifier: MIT
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fuzz.h"
#include "standard_answers.h"

struct model model;

_Noreturn void disagree(const char *what, uint64_t found, uint64_t expected)
{
    (void)fprintf(stderr, "fuzz: %s: 0x%llx instead of 0x%llx\n", what, (unsigned long long)found,
                  (unsigned long long)expected);
    abort();
}

/* ---- slots, sessions, applications ---- */

struct model_token *model_token(CK_SLOT_ID slot)
{
    uint64_t index = slot - model.first_slot;
    return index < model.tokens_count ? &model.tokens[index] : NULL;
}

struct model_session *model_session(CK_SESSION_HANDLE handle)
{
    for (unsigned int i = 0; i < MODEL_SESSIONS; i++) {
        struct model_session *session = &model.sessions[i];
        if (session->open && handle != CK_INVALID_HANDLE && session->handle == handle)
            return session;
    }
    return NULL;
}

unsigned int model_sessions_of(unsigned int token, bool only_read_write)
{
    unsigned int count = 0;
    for (unsigned int i = 0; i < MODEL_SESSIONS; i++) {
        const struct model_session *session = &model.sessions[i];
        count += session->open && session->token == token &&
                 (session->read_write || !only_read_write);
    }
    return count;
}

void model_forget_sessions(void)
{
    memset(model.sessions, 0, sizeof model.sessions);
    for (unsigned int i = 0; i < MODEL_TOKENS; i++)
        model.tokens[i].login = LOGIN_NONE;
}

bool model_alive(enum who who)
{
    return model.applications[who].entered && !model.applications[who].disconnected;
}

bool model_is_own(const struct model_token *token, enum who who)
{
    return token->owner == who ||
           (token->owner != NOBODY && model.application == APPLICATION_SHARED);
}

bool model_can_claim(const struct model_token *token, enum who who)
{
    if (token->owner == NOBODY)
        return true;
    return model_is_own(token, who) && token->grants == 0 && model.regrant == REGRANT_ON &&
           model.relock == RELOCK_GRANTED;
}

void model_grant(struct model_token *token, enum who who)
{
    token->grants = token->owner == NOBODY ? 0 : token->grants + 1U;
    if (token->owner == NOBODY)
        token->owner = who;
}

void model_release_all(enum who who)
{
    for (unsigned int i = 0; i < MODEL_TOKENS; i++) {
        if (model.tokens[i].owner == who)
            model.tokens[i].owner = NOBODY;
    }
}

void model_disconnect(enum who who)
{
    model.applications[who].disconnected = true;
    model_release_all(who);
}

struct state *fuzz_state(void)
{
    size_t size = 0;
    return (struct state *)(void *)memory_file(FUZZ_PATH, &size);
}

/* ---- what becomes of a call ---- */

struct model_entry model_fault(enum function_id function)
{
    struct model_fault *fault = &model.faults[function];
    const luna_stub_rule *rule = &fault->rule;
    const struct model_entry open = {.enters = true};
    if (rule->times == 0 || rule->probability == 0.0)
        return open;
    if (++fault->met % rule->every != 0)
        return open;
    if (rule->times > 0 && fault->struck == (uint64_t)rule->times)
        return open;
    fault->struck++;
    return (struct model_entry){.enters = rule->lost_reply != 0, .lost = rule->lost_reply != 0,
                                .rv = rule->rv};
}

struct model_entry model_gate(enum function_id function)
{
    bool anywhere = call_works_anywhere(function);
    if (!model_us()->entered)
        return (struct model_entry){.enters = anywhere, .rv = call_not_initialised(function)};
    if (model_us()->disconnected && !anywhere)
        return (struct model_entry){.rv = CKR_DEVICE_ERROR};
    return model_fault(function);
}

/* ---- one call ---- */

static const CK_RV get_slot_id_answers[] = {CKR_OK, CKR_ARGUMENTS_BAD, CKR_DEVICE_ERROR,
                                            CKR_BUFFER_TOO_SMALL, CKR_CRYPTOKI_NOT_INITIALIZED};
static const CK_RV get_unassigned_answers[] = {CKR_OK, CKR_FUNCTION_FAILED, CKR_ARGUMENTS_BAD,
                                               CKR_DEVICE_ERROR, CKR_BUFFER_TOO_SMALL,
                                               CKR_CRYPTOKI_NOT_INITIALIZED};
static const CK_RV lock_answers[] = {CKR_OK, CKR_SLOT_ID_INVALID, CKR_DEVICE_ERROR};
static const CK_RV other_answers[] = {STANDARD_ANSWERS};

#define ANSWERS(list) ((struct answers){list, sizeof list / sizeof list[0]})

struct answers {
    const CK_RV *list;
    size_t count;
};

static struct answers answers_of(enum function_id function)
{
    switch (function) {
    case FUNCTION_CA_GetSlotId:
        return ANSWERS(get_slot_id_answers);
    case FUNCTION_CA_GetUnassignedSlot:
        return ANSWERS(get_unassigned_answers);
    case FUNCTION_CA_LockClusteredSlot:
    case FUNCTION_CA_UnlockClusteredSlot:
        return ANSWERS(lock_answers);
    default:
        return ANSWERS(other_answers);
    }
}

static void check_answer(enum function_id function, CK_RV rv)
{
    struct answers answers = answers_of(function);
    for (size_t i = 0; i < answers.count; i++) {
        if (rv == answers.list[i])
            return;
    }
    disagree(function_name(function), rv, CKR_OK);
}

struct fuzz_call call_starts(enum function_id function)
{
    struct fuzz_call call = {.function = function};
    bool enters = application_started();
    fuzz_acts = 0;
    call.armed = fault_armed(fuzz_state(), function);
    call.logged = enters && log_wanted(fuzz_state());
    if (model.valid && function != FUNCTION_C_Initialize && function != FUNCTION_C_Finalize)
        call.gate = model_gate(function);
    return call;
}

/* The file's header may have been damaged since, so this goes past luna_stub_log(). */
static void check_logged(const struct fuzz_call *call, CK_RV rv)
{
    struct state *state = fuzz_state();
    struct log_call logged;
    if (!log_read(state, log_latest(state), &logged))
        disagree("the log has no entry of a call", 0, call->function);
    if (logged.function != call->function)
        disagree("the log's function", logged.function, call->function);
    if (logged.rv != rv)
        disagree("the log's rv", logged.rv, rv);
    if (logged.pid != memory_system.pid || logged.duration == LOG_UNFINISHED)
        disagree("the log's entry", (uint64_t)logged.pid, (uint64_t)memory_system.pid);
}

/* libFuzzer takes these for coverage: with a damaged file, too, it is to get everywhere. */
__attribute__((used, section("__libfuzzer_extra_counters"))) static uint8_t
    outcomes[2][FUNCTION_COUNT][2];

void call_ended(const struct fuzz_call *call, CK_RV rv, CK_RV normal)
{
    outcomes[model.valid][call->function][rv == CKR_OK]++;
    release_arguments();
    memory_check_idle();
    if (!model.valid) {
        if (!call->armed)
            check_answer(call->function, rv);
        return;
    }
    CK_RV expected = call->gate.enters && !call->gate.lost ? normal : call->gate.rv;
    if (rv != expected)
        disagree(function_name(call->function), rv, expected);
    if (call->logged)
        check_logged(call, rv);
    check_file();
}

/* ---- the file ---- */

static void check_token(const luna_stub_token *found, unsigned int index)
{
    const struct model_token *token = &model.tokens[index];
    if (found->slot_id != model.first_slot + index)
        disagree("the snapshot's slot", found->slot_id, model.first_slot + index);
    if (memcmp(found->original_label, token->original, STATE_LABEL_SIZE) != 0)
        disagree("the snapshot's original label", found->original_label[0], token->original[0]);
    if (memcmp(found->label, token->label, STATE_LABEL_SIZE) != 0)
        disagree("the snapshot's label", found->label[0], token->label[0]);
    int64_t owner = token->owner == NOBODY ? 0 : model.applications[token->owner].pid;
    if (found->owner_pid != owner)
        disagree("the snapshot's owner", (uint64_t)found->owner_pid, (uint64_t)owner);
    uint64_t word = atomic_load(&fuzz_state()->keyrings[index].owner);
    if (owner != 0 && (word & REGISTRY_GRANTS) / REGISTRY_GRANT != token->grants)
        disagree("a lock's grants", (word & REGISTRY_GRANTS) / REGISTRY_GRANT, token->grants);
}

void check_file(void)
{
    luna_stub_token found[MODEL_TOKENS];
    uint32_t count = 0;
    if (luna_stub_snapshot(FUZZ_PATH, found, MODEL_TOKENS, &count) != 0)
        disagree("luna_stub_snapshot", 1, 0);
    if (count != model.tokens_count)
        disagree("the snapshot's count", count, model.tokens_count);
    for (unsigned int i = 0; i < count; i++)
        check_token(&found[i], i);
}
