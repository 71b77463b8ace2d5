/*
 * fuzz_others.c: what others do meanwhile: another application, and the process that this one was
 * forked from.
 *
 * SPDX-License-Identifier: MIT
 */
#include "fuzz.h"

#include "keyring_lock.h"

#define OTHER_PID 1000000
#define PATIENCE 4U

static struct state_file other;

static void other_enters(void)
{
    const char *reason;
    int64_t us = memory_system.pid;
    if (model.applications[OTHER].entered)
        return;
    memory_system.pid = OTHER_PID;
    if (state_open(FUZZ_PATH, &other, &reason) == 0) {
        if (registry_enter(&other))
            model.applications[OTHER] =
                (struct model_application){.pid = OTHER_PID, .entered = true};
        else
            state_close(&other);
    }
    memory_system.pid = us;
    if (model.valid && !model.applications[OTHER].entered)
        disagree("another application", 0, 1);
}

static void is_gone(enum who who)
{
    model_release_all(who);
    model.applications[who].entered = false;
    for (unsigned int i = 0; i < MODEL_TOKENS; i++)
        model.tokens[i].in_session[who] = false;
}

static void other_leaves(void)
{
    if (!model.applications[OTHER].entered)
        return;
    keyring_release_all(&other, other.self);
    registry_leave(&other);
    state_close(&other);
    is_gone(OTHER);
}

static void dies(enum who who)
{
    if (!model.applications[who].entered)
        return;
    memory_kill(model.applications[who].pid);
    is_gone(who);
}

static void other_locks(unsigned int token)
{
    if (!model_alive(OTHER))
        return;
    bool locked = keyring_claim(&other, &other.state->keyrings[token % other.keyring_count]);
    if (!model.valid)
        return;
    struct model_token *wanted = &model.tokens[token % other.keyring_count];
    bool expected = model_can_claim(wanted, OTHER);
    if (locked != expected)
        disagree("another's lock", locked, expected);
    if (locked)
        model_grant(wanted, OTHER);
}

static void other_unlocks(void)
{
    if (!model.applications[OTHER].entered)
        return;
    keyring_release_all(&other, other.self);
    model_release_all(OTHER);
}

static void other_uses(unsigned int token)
{
    if (!model.applications[OTHER].entered || !state_write_begin(&other))
        return;
    unsigned int index = token % other.keyring_count;
    bool in_session = input_below(2) == 0;
    registry_set_in_session(&other, index, in_session);
    state_write_end(&other);
    if (index < MODEL_TOKENS)
        model.tokens[index].in_session[OTHER] = in_session;
}

/* The process goes on as its child; what it had stays with the parent. */
static void fork_process(void)
{
    if (model.applications[PARENT].entered)
        return;
    if (!model.valid) /* it may have an application without our knowing */
        memory_kill(model.applications[PARENT].pid);
    for (unsigned int i = 0; i < MODEL_TOKENS; i++) {
        struct model_token *token = &model.tokens[i];
        token->in_session[PARENT] = model_sessions_of(i, false) > 0;
        if (token->owner == US)
            token->owner = PARENT;
    }
    model.applications[PARENT] = *model_us();
    *model_us() = (struct model_application){.pid = memory_system.pid + 1};
    model_forget_sessions();
    memory_fork(memory_system.pid + 1);
}

void fuzz_others_act(void)
{
    unsigned int choice = input_below(16);
    unsigned int token = input_below(MODEL_TOKENS);
    if (choice < 3)
        other_enters();
    else if (choice < 8)
        other_locks(token);
    else if (choice < 10)
        other_unlocks();
    else if (choice < 12)
        other_uses(token);
    else if (choice == 12)
        other_leaves();
    else if (choice == 13)
        dies(OTHER);
    else if (choice == 14)
        dies(PARENT);
    else
        fork_process();
    memory_check_idle();
    if (model.valid)
        check_file();
}

unsigned int fuzz_acts;

void fuzz_others_have_to_act(void)
{
    unsigned int choice = fuzz_acts++ < PATIENCE ? input_below(8) : 7;
    if (choice == 0)
        other_unlocks();
    else if (choice == 1)
        dies(OTHER);
    else if (choice == 2)
        dies(PARENT);
    else if (choice == 3)
        fuzz_set_switch("contention", "error", CONTENTION_ERROR);
    else if (choice == 4)
        fuzz_set_switch("relock", "granted", RELOCK_GRANTED);
    else if (choice == 5)
        other_leaves();
    else if (choice == 7) {
        if (model.valid)
            fuzz_disconnect(US);
        else /* nothing in the file could keep this from working */
            atomic_store(&application.entry->disconnected, application.generation);
    }
}

/* ---- the end ---- */

void fuzz_end(void)
{
    size_t size = 0;
    struct state *state = (struct state *)(void *)memory_file(FUZZ_PATH, &size);
    memory_system.fails_in = 0;
    other_leaves();
    if (application_started()) {
        atomic_store(&state->faults[FUNCTION_C_Finalize].armed, 0U);
        CK_RV rv = C_Finalize(NULL);
        if (rv != CKR_OK)
            disagree("the last C_Finalize", rv, CKR_OK);
    }
    memory_check_idle();
    memory_reset();
}
