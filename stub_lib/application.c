/*
 * application.c: starts and stops this process as an application of the cluster, and makes the
 * child of a fork none.
 *
 * SPDX-License-Identifier: MIT
 */
#include "application.h"

#include <stdio.h>
#include <stdlib.h>

#include "fault.h"
#include "keyring_lock.h"

#define DRAIN_POLL_US 200U

struct application application;

/* Held by C_Initialize and C_Finalize from beginning to end. */
static platform_mutex life_mutex = PLATFORM_MUTEX_INITIALIZER;

static void explain(const char *path, const char *reason)
{
    if (getenv("LUNA_STUB_TRACE") != NULL)
        (void)fprintf(stderr, "luna_ext stand-in: C_Initialize: %s: %s\n", path, reason);
}

/* The calls that were inside went on in the parent; here they do not exist. */
static void forget(void)
{
    platform_mutex_reset(&life_mutex);
    atomic_store(&application.gate, 0);
}

bool application_started(void)
{
    return (atomic_load(&application.gate) & GATE_OPEN) != 0;
}

bool application_interrupted(void)
{
    return !application_started() || application_disconnected();
}

/* C_Initialize has nothing that could interrupt it, nor has C_Finalize. */
static bool never(void)
{
    return false;
}

static CK_RV open_cluster(struct state_file *file)
{
    const char *path = getenv("LUNA_STUB_STATE");
    const char *reason = "is not set";
    if (path == NULL) {
        explain("LUNA_STUB_STATE", reason);
        return CKR_DEVICE_ERROR;
    }
    if (state_open(path, file, &reason) != 0) {
        explain(path, reason);
        return CKR_DEVICE_ERROR;
    }
    CK_RV rv;
    bool struck = fault_armed(file->state, FUNCTION_C_Initialize) &&
                  fault_strikes(file->state, FUNCTION_C_Initialize, never, &rv);
    if (!struck && registry_enter(file))
        return CKR_OK;
    if (!struck) {
        explain(path, "the table of applications is full");
        rv = CKR_DEVICE_ERROR;
    }
    state_close(file);
    return rv;
}

static CK_RV start(void (*prepare)(void))
{
    if (application_started())
        return CKR_CRYPTOKI_ALREADY_INITIALIZED;
    platform_on_fork(forget);
    CK_RV rv = open_cluster(&application.file);
    /* A fault may say CKR_OK, and still nothing was opened. */
    if (rv != CKR_OK || application.file.state == NULL)
        return rv;
    uint64_t self = application.file.self;
    application.entry = &application.file.state->applications[registry_index(self)];
    application.generation = registry_generation(self);
    prepare();
    atomic_fetch_or(&application.gate, GATE_OPEN);
    return CKR_OK;
}

CK_RV application_start(void (*prepare)(void))
{
    platform_mutex_lock(&life_mutex);
    CK_RV rv = start(prepare);
    platform_mutex_unlock(&life_mutex);
    return rv;
}

static CK_RV stop(void)
{
    if (!application_started())
        return CKR_CRYPTOKI_NOT_INITIALIZED;
    struct state_file *file = &application.file;
    CK_RV rv;
    if (fault_armed(file->state, FUNCTION_C_Finalize) &&
        fault_strikes(file->state, FUNCTION_C_Finalize, never, &rv))
        return rv;
    atomic_fetch_and(&application.gate, ~GATE_OPEN);
    while (atomic_load(&application.gate) != 0)
        platform_sleep(DRAIN_POLL_US);
    keyring_release_all(file, file->self);
    registry_leave(file);
    state_close(file);
    return CKR_OK;
}

CK_RV application_stop(void)
{
    platform_mutex_lock(&life_mutex);
    CK_RV rv = stop();
    platform_mutex_unlock(&life_mutex);
    return rv;
}
