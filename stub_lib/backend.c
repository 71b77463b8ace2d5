/*
 * backend.c: loads the backend, finds or makes the twin of each token in it, and keeps forks away from
 * calls that are inside.
 *
 * SPDX-License-Identifier: MIT
 */
#include "backend.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Of the twins: only the stand-in logs in to them. */
#define TWIN_PIN "luna_ext stand-in"
#define TWIN_PIN_SIZE (sizeof TWIN_PIN - 1U)

/* What SoftHSM2 is configured by. To another module the variable means nothing. */
#define CONFIGURATION_VARIABLE "SOFTHSM2_CONF"

#define DRAIN_POLL_US 200U
#define DRAIN_NS UINT64_C(10000000000)
#define HELD UINT32_C(0x80000000)

CK_FUNCTION_LIST_PTR backend;
static CK_SLOT_ID slots[STATE_MAX_KEYRINGS];
/* The module that is initialised in this process. In a forked child it still is, by the parent. */
static CK_FUNCTION_LIST_PTR initialised;
static char defect[256];

/* ---- forks ---- */

/* How many threads are inside, and whether a fork keeps the others out. */
static _Atomic uint32_t inside;

void backend_enter(void)
{
    while ((atomic_fetch_add(&inside, 1U) & HELD) != 0) {
        atomic_fetch_sub(&inside, 1U);
        while ((atomic_load(&inside) & HELD) != 0)
            platform_sleep(DRAIN_POLL_US);
    }
}

void backend_leave(void)
{
    atomic_fetch_sub(&inside, 1U);
}

/* A call that takes too long does not hold up the fork for ever; the child may then have to do without
   the backend. */
void backend_hold(void)
{
    uint64_t start = platform_monotonic();
    atomic_fetch_or(&inside, HELD);
    while (atomic_load(&inside) != HELD && platform_monotonic() - start < DRAIN_NS)
        platform_sleep(DRAIN_POLL_US);
}

void backend_resume(void)
{
    atomic_fetch_and(&inside, ~HELD);
}

void backend_forget(void)
{
    atomic_store(&inside, 0);
}

/* ---- its configuration ---- */

static char *with_suffix(const char *path, const char *suffix)
{
    size_t size = strlen(path) + strlen(suffix) + 1U;
    char *text = malloc(size);
    if (text != NULL)
        (void)snprintf(text, size, "%s%s", path, suffix);
    return text;
}

static bool write_configuration(const char *file, const char *directory)
{
    const char *format = "# Written by the luna_ext stand-in at each C_Initialize.\n"
                         "directories.tokendir = %s\n"
                         "objectstore.backend = file\n"
                         "log.level = ERROR\n"
                         "slots.removable = false\n";
    size_t size = strlen(format) + strlen(directory);
    char *text = malloc(size);
    if (text == NULL)
        return false;
    (void)snprintf(text, size, format, directory);
    bool written = platform_make_directory(directory) == 0 && platform_write(file, text) == 0;
    free(text);
    return written;
}

/* Its objects are to be beside the state file, and not where the user has others. The variable has its
   old value again when the module has read it. */
static CK_RV initialise_configured(CK_FUNCTION_LIST_PTR module, const char *file)
{
    CK_C_INITIALIZE_ARGS arguments;
    memset(&arguments, 0, sizeof arguments);
    arguments.flags = CKF_OS_LOCKING_OK;
    char *before = platform_environment(CONFIGURATION_VARIABLE);
    platform_set_environment(CONFIGURATION_VARIABLE, file);
    CK_RV rv = module->C_Initialize(&arguments);
    platform_set_environment(CONFIGURATION_VARIABLE, before);
    free(before);
    return rv;
}

static const char *initialise(CK_FUNCTION_LIST_PTR module, const char *path)
{
    char *absolute = platform_absolute(path);
    char *directory = absolute == NULL ? NULL : with_suffix(absolute, ".tokens");
    char *file = directory == NULL ? NULL : with_suffix(directory, "/softhsm2.conf");
    const char *wrong = NULL;
    if (file == NULL) {
        wrong = "the state file's absolute path cannot be found out";
    } else if (strpbrk(directory, "#=\r\n") != NULL || strlen(directory) > 900U) {
        wrong = "SoftHSM2 cannot be told of a directory whose path has a #, a = or 900 characters";
    } else if (!write_configuration(file, directory)) {
        wrong = "the directory beside the state file, or the file in it, cannot be written";
    } else {
        CK_RV rv = initialise_configured(module, file);
        if (rv == CKR_CRYPTOKI_ALREADY_INITIALIZED) {
            wrong = "another part of this process uses the module already";
        } else if (rv != CKR_OK) {
            (void)snprintf(defect, sizeof defect, "its C_Initialize answers 0x%08lX", rv);
            wrong = defect;
        }
    }
    free(directory);
    free(file);
    free(absolute);
    return wrong;
}

/* ---- twins ---- */

/* A twin is known by its label, which is the serial number of its token: the backend gives its slots
   and serial numbers as it likes. */
static void twin_label(struct state_file *file, uint32_t keyring, CK_UTF8CHAR label[STATE_LABEL_SIZE])
{
    memset(label, ' ', STATE_LABEL_SIZE);
    memcpy(label, file->state->keyrings[keyring].serial, STATE_SERIAL_SIZE);
}

static CK_RV open_twin(CK_FUNCTION_LIST_PTR module, CK_SLOT_ID slot, CK_SESSION_HANDLE_PTR session)
{
    return module->C_OpenSession(slot, CKF_SERIAL_SESSION | CKF_RW_SESSION, NULL, NULL, session);
}

static CK_RV log_in(CK_FUNCTION_LIST_PTR module, CK_SESSION_HANDLE session, CK_USER_TYPE user_type)
{
    CK_UTF8CHAR pin[] = TWIN_PIN;
    return module->C_Login(session, user_type, pin, TWIN_PIN_SIZE);
}

static CK_RV set_user_pin(CK_FUNCTION_LIST_PTR module, CK_SLOT_ID slot)
{
    CK_UTF8CHAR pin[] = TWIN_PIN;
    CK_SESSION_HANDLE session;
    CK_RV rv = open_twin(module, slot, &session);
    if (rv != CKR_OK)
        return rv;
    rv = log_in(module, session, CKU_SO);
    if (rv == CKR_OK)
        rv = module->C_InitPIN(session, pin, TWIN_PIN_SIZE);
    (void)module->C_CloseSession(session);
    return rv;
}

static CK_RV make_empty(CK_FUNCTION_LIST_PTR module, struct state_file *file, uint32_t keyring,
                        CK_SLOT_ID slot)
{
    CK_UTF8CHAR pin[] = TWIN_PIN;
    CK_UTF8CHAR label[STATE_LABEL_SIZE];
    twin_label(file, keyring, label);
    CK_RV rv = module->C_InitToken(slot, pin, TWIN_PIN_SIZE, label);
    return rv == CKR_OK ? set_user_pin(module, slot) : rv;
}

/* To be freed. NULL: there is no list to be had. */
static CK_SLOT_ID_PTR list_slots(CK_FUNCTION_LIST_PTR module, CK_ULONG_PTR count)
{
    /* To ask for their number makes SoftHSM2 offer one more. */
    if (module->C_GetSlotList(CK_TRUE, NULL, count) != CKR_OK)
        return NULL;
    CK_SLOT_ID_PTR list = calloc(*count + 1U, sizeof *list);
    if (list != NULL && module->C_GetSlotList(CK_TRUE, list, count) != CKR_OK) {
        free(list);
        list = NULL;
    }
    return list;
}

static uint32_t keyring_of_twin(struct state_file *file, const CK_TOKEN_INFO *info)
{
    uint32_t keyring = 0;
    CK_UTF8CHAR label[STATE_LABEL_SIZE];
    for (; keyring < file->keyring_count; keyring++) {
        twin_label(file, keyring, label);
        if (memcmp(info->label, label, STATE_LABEL_SIZE) == 0)
            break;
    }
    return keyring;
}

static CK_RV find_twins(CK_FUNCTION_LIST_PTR module, struct state_file *file, bool *found)
{
    CK_ULONG count = 0;
    CK_SLOT_ID_PTR list = list_slots(module, &count);
    CK_RV rv = list == NULL ? CKR_DEVICE_ERROR : CKR_OK;
    for (CK_ULONG i = 0; i < count && rv == CKR_OK; i++) {
        CK_TOKEN_INFO info;
        if (module->C_GetTokenInfo(list[i], &info) != CKR_OK)
            continue;
        uint32_t keyring = keyring_of_twin(file, &info);
        if ((info.flags & CKF_TOKEN_INITIALIZED) == 0 || keyring == file->keyring_count)
            continue;
        /* The process that made it may have been killed in the midst of that. */
        if ((info.flags & CKF_USER_PIN_INITIALIZED) == 0)
            rv = set_user_pin(module, list[i]);
        slots[keyring] = list[i];
        found[keyring] = true;
    }
    free(list);
    return rv;
}

static CK_RV make_twin(CK_FUNCTION_LIST_PTR module, struct state_file *file, uint32_t keyring)
{
    CK_ULONG count = 0;
    CK_SLOT_ID_PTR list = list_slots(module, &count);
    CK_RV rv = CKR_DEVICE_ERROR;
    /* A slot that was offered just now is the last. */
    while (list != NULL && count > 0) {
        CK_TOKEN_INFO info;
        CK_SLOT_ID slot = list[--count];
        if (module->C_GetTokenInfo(slot, &info) == CKR_OK &&
            (info.flags & CKF_TOKEN_INITIALIZED) == 0) {
            rv = make_empty(module, file, keyring, slot);
            slots[keyring] = slot;
            break;
        }
    }
    free(list);
    return rv;
}

static const char *provide_twins(CK_FUNCTION_LIST_PTR module, struct state_file *file)
{
    static bool found[STATE_MAX_KEYRINGS];
    memset(found, 0, sizeof found);
    CK_RV rv = find_twins(module, file, found);
    for (uint32_t keyring = 0; keyring < file->keyring_count && rv == CKR_OK; keyring++) {
        if (!found[keyring])
            rv = make_twin(module, file, keyring);
    }
    if (rv == CKR_OK)
        return NULL;
    (void)snprintf(defect, sizeof defect, "it has no token for each keyring: 0x%08lX", rv);
    return defect;
}

/* ---- start and stop ---- */

static const char *load(const char *path, CK_FUNCTION_LIST_PTR_PTR module)
{
    const char *wrong = NULL;
    CK_C_GetFunctionList get_list =
        (CK_C_GetFunctionList)platform_load(path, "C_GetFunctionList", &wrong);
    if (get_list == NULL)
        return wrong;
    if (get_list(module) != CKR_OK || *module == NULL)
        return "its C_GetFunctionList fails";
    if ((*module)->C_Initialize == C_Initialize)
        return "this is the stand-in itself";
    return NULL;
}

static void finalise(void)
{
    (void)initialised->C_Finalize(NULL);
    initialised = NULL;
}

/* Processes that start at the same time do it one after the other: each would make the twins. */
static const char *start(CK_FUNCTION_LIST_PTR module, struct state_file *file, const char *path)
{
    if (!state_write_begin(file))
        return "the state file has no locks";
    const char *wrong = initialise(module, path);
    if (wrong == NULL) {
        initialised = module;
        wrong = provide_twins(module, file);
        if (wrong != NULL)
            finalise();
    }
    state_write_end(file);
    return wrong;
}

const char *backend_start(struct state_file *file, const char *path)
{
    char *name = platform_environment("LUNA_STUB_BACKEND");
    const char *wrong = NULL;
    if (name != NULL && name[0] != '\0') {
        CK_FUNCTION_LIST_PTR module = NULL;
        backend_enter();
        if (initialised != NULL)
            finalise(); /* in a forked child, which has it from its parent */
        wrong = load(name, &module);
        if (wrong == NULL)
            wrong = start(module, file, path);
        if (wrong == NULL)
            backend = module;
        backend_leave();
    }
    free(name);
    return wrong;
}

void backend_stop(void)
{
    if (!backend_used())
        return;
    backend_enter();
    backend = NULL;
    finalise();
    backend_leave();
}

/* ---- tokens and sessions ---- */

CK_SLOT_ID backend_slot(uint32_t keyring)
{
    return slots[keyring];
}

CK_RV backend_open_session(uint32_t keyring, CK_FLAGS flags, CK_SESSION_HANDLE_PTR session)
{
    if (!backend_used())
        return CKR_OK;
    backend_enter();
    CK_RV rv = backend->C_OpenSession(slots[keyring], flags, NULL, NULL, session);
    backend_leave();
    return rv;
}

void backend_close_session(CK_SESSION_HANDLE session)
{
    if (!backend_used())
        return;
    backend_enter();
    (void)backend->C_CloseSession(session);
    backend_leave();
}

/* That a twin's PIN is wrong is no answer to a user who gave the right one of the token. */
CK_RV backend_login(CK_SESSION_HANDLE session, CK_USER_TYPE user_type)
{
    if (!backend_used())
        return CKR_OK;
    backend_enter();
    CK_RV rv = log_in(backend, session, user_type);
    backend_leave();
    return rv == CKR_PIN_INCORRECT ? CKR_DEVICE_ERROR : rv;
}

void backend_logout(CK_SESSION_HANDLE session)
{
    if (!backend_used())
        return;
    backend_enter();
    (void)backend->C_Logout(session);
    backend_leave();
}

CK_RV backend_erase(struct state_file *file, uint32_t keyring)
{
    if (!backend_used())
        return CKR_OK;
    backend_enter();
    CK_RV rv = make_empty(backend, file, keyring, slots[keyring]);
    backend_leave();
    return rv == CKR_OK ? CKR_OK : CKR_DEVICE_ERROR;
}
