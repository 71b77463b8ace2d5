/*
 * application.c: starts and stops this process as an application of the cluster. A forked child is not
 * an application until it calls C_Initialize itself.
 *
 * SPDX-License-Identifier: MIT
 */
#include "application.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend.h"
#include "fault.h"
#include "keyring_lock.h"
#include "log.h"

#define DRAIN_POLL_US 200U

struct application application;
_Thread_local uint32_t application_gate_number;

/* Held by C_Initialize and C_Finalize from beginning to end. */
static platform_mutex life_mutex = PLATFORM_MUTEX_INITIALIZER;

static void explain(const char *path, const char *reason)
{
    char *trace = platform_environment("LUNA_STUB_TRACE");
    if (trace != NULL)
        (void)fprintf(stderr, "luna_ext stand-in: C_Initialize: %s: %s\n", path, reason);
    free(trace);
}

/* In a forked child: the calls that were inside go on in the parent, not here. */
static void forget(void)
{
    platform_mutex_reset(&life_mutex);
    for (uint32_t i = 0; i < GATES; i++)
        atomic_store(&application.gates[i].word, 0);
    backend_forget();
}

static void watch_forks(void)
{
    platform_on_fork(backend_hold, backend_resume, forget);
}

uint32_t application_choose_gate(void)
{
    static _Atomic uint32_t threads;
    application_gate_number = atomic_fetch_add(&threads, 1U) % GATES + 1U;
    return application_gate_number;
}

/* The first gate, which application_started() looks at, opens and closes before the others: so no call
   comes in and is told at once to give up, and one that waits hears of C_Finalize. */
static void open_gates(void)
{
    for (uint32_t i = 0; i < GATES; i++)
        atomic_fetch_or(&application.gates[i].word, GATE_OPEN);
}

static void close_gates(void)
{
    for (uint32_t i = 0; i < GATES; i++)
        atomic_fetch_and(&application.gates[i].word, ~GATE_OPEN);
    for (uint32_t i = 0; i < GATES; i++)
        while (atomic_load(&application.gates[i].word) != 0)
            platform_sleep(DRAIN_POLL_US);
}

bool application_started(void)
{
    return (atomic_load(&application.gates[0].word) & GATE_OPEN) != 0;
}

bool application_interrupted(void)
{
    return !application_started() || application_disconnected();
}

/* Nothing interrupts C_Initialize and C_Finalize. */
static bool never(void)
{
    return false;
}

static const char FORBID_VARIABLE[] = "LUNA_EXT_FORBID_STUB";
static const char FORBID_FILE[] = "/etc/luna_ext/forbid-stub";

/* What forbids the stand-in; NULL: nothing. The variable does so by any value but an empty one and 0: an
   application that sets it to "yes" means it as well. */
static const char *forbidden_by(void)
{
    char *value = platform_environment(FORBID_VARIABLE);
    bool forbids = value != NULL && strcmp(value, "") != 0 && strcmp(value, "0") != 0;
    free(value);
    if (forbids)
        return FORBID_VARIABLE;
    /* Here and not in luna_ext alone: it holds as well for what is loaded as a copy or behind a wrapper. */
    return platform_is_roots(FORBID_FILE) ? FORBID_FILE : NULL;
}

/* `path`: the state file's, to be freed. */
static CK_RV open_cluster(struct state_file *file, char **path)
{
    const char *forbids = forbidden_by();
    if (forbids != NULL) {
        explain(forbids, "forbids the stand-in");
        return CKR_DEVICE_ERROR;
    }
    *path = platform_environment("LUNA_STUB_STATE");
    const char *reason = "is not set";
    bool opened = *path != NULL && state_open(*path, file, &reason) == 0;
    if (!opened)
        explain(*path == NULL ? "LUNA_STUB_STATE" : *path, reason);
    return opened ? CKR_OK : CKR_DEVICE_ERROR;
}

static bool enter_cluster(struct state_file *file, const char *path, void (*prepare)(void))
{
    const char *reason = backend_start(file, path);
    if (reason != NULL) {
        explain("LUNA_STUB_BACKEND", reason);
        return false;
    }
    if (!registry_enter(file)) {
        explain(file->state->header.cluster_id, "has no place for another application, or its file no locks");
        backend_stop();
        return false;
    }
    application.entry = &file->state->applications[registry_index(file->self)];
    application.generation = registry_generation(file->self);
    prepare();
    return true;
}

/* A call of C_Initialize or C_Finalize. They change whether calls are possible, so they cannot begin and
   end as other calls do. */
struct life_call {
    enum function_id function;
    enum fault_kind fault;
    CK_RV fault_rv;
    struct log_ticket ticket;
};

static void begin(struct life_call *call, enum function_id function)
{
    struct state *state = application.file.state;
    call->function = function;
    call->fault = FAULT_NONE;
    call->ticket.number = 0;
    if (log_wanted(state))
        log_begin(state, function, LOG_NO_SLOT, &call->ticket);
    if (fault_armed(state, function))
        call->fault = fault_meet(state, function, never, &call->fault_rv);
}

/* While the file is still open. */
static CK_RV end(const struct life_call *call, CK_RV rv)
{
    CK_RV answer = call->fault == FAULT_NONE ? rv : call->fault_rv;
    struct state *state = application.file.state;
    if (fault_armed(state, call->function))
        (void)fault_delay_answer(state, call->function, never);
    if (call->ticket.number != 0)
        log_end(state, call->function, LOG_NO_SLOT, answer, &call->ticket);
    return answer;
}

static CK_RV start_here(const char *path, void (*prepare)(void))
{
    struct state_file *file = &application.file;
    struct life_call call;
    begin(&call, FUNCTION_C_Initialize);
    bool entered = call.fault != FAULT_INSTEAD && enter_cluster(file, path, prepare);
    if (entered)
        open_gates();
    CK_RV rv = end(&call, entered ? CKR_OK : CKR_DEVICE_ERROR);
    if (!entered)
        state_close(file);
    return rv;
}

static CK_RV start(CK_RV argument_rv, void (*prepare)(void))
{
    if (application_started()) {
        struct life_call call;
        begin(&call, FUNCTION_C_Initialize);
        return end(&call, argument_rv != CKR_OK ? argument_rv : CKR_CRYPTOKI_ALREADY_INITIALIZED);
    }
    if (argument_rv != CKR_OK)
        return argument_rv;
    char *path = NULL;
    CK_RV rv = open_cluster(&application.file, &path);
    if (rv == CKR_OK)
        rv = start_here(path, prepare);
    free(path);
    return rv;
}

CK_RV application_start(CK_RV argument_rv, void (*prepare)(void))
{
    watch_forks();
    platform_mutex_lock(&life_mutex);
    CK_RV rv = start(argument_rv, prepare);
    platform_mutex_unlock(&life_mutex);
    return rv;
}

static CK_RV stop(CK_RV argument_rv)
{
    if (!application_started())
        return CKR_CRYPTOKI_NOT_INITIALIZED;
    struct state_file *file = &application.file;
    struct life_call call;
    begin(&call, FUNCTION_C_Finalize);
    if (call.fault == FAULT_INSTEAD || argument_rv != CKR_OK)
        return end(&call, argument_rv);
    close_gates();
    backend_stop();
    keyring_release_all(file, file->self);
    registry_leave(file);
    CK_RV rv = end(&call, CKR_OK);
    state_close(file);
    return rv;
}

CK_RV application_stop(CK_RV argument_rv)
{
    watch_forks();
    platform_mutex_lock(&life_mutex);
    CK_RV rv = stop(argument_rv);
    platform_mutex_unlock(&life_mutex);
    return rv;
}
