/*
 * storm_process.c: a process whose threads call everything at random.
 *
 * SPDX-License-Identifier: MIT
 */
#include "standard_answers.h"
#include "storm_exercise.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* A fork copies a sanitizer's tables too, and all threads stand still meanwhile. */
#define FORKS_ONE_IN (STORM_SANITIZED ? 32U : 4U)

static struct process {
    unsigned int party;
    _Atomic uint32_t running; /* threads */
    atomic_flag breaking;
    atomic_flag taken[EXCLUSIVE]; /* where the cluster does not exclude threads */
    /* An unlock call that comes after the process has initialised anew would take off a lock that
       is no longer the caller's: that of another thread or, where the owner is not checked, of another
       process. So the process does not initialise anew during one. */
    pthread_rwlock_t life_lock;
    uint64_t lives;
} process = {.breaking = ATOMIC_FLAG_INIT,
             .life_lock = PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP};

struct worker {
    pthread_t thread;
    unsigned int number;
    CK_SESSION_HANDLE sessions[4];
};

static const CK_RV answers[] = {STANDARD_ANSWERS, CKR_FUNCTION_FAILED};

/* Whatever the arguments are and others do, an answer is one of these, or a fault's. */
static CK_RV plausible(CK_RV rv)
{
    atomic_fetch_add_explicit(&exercise->calls, 1U, memory_order_relaxed);
    if (rv == CKR_CRYPTOKI_NOT_INITIALIZED)
        nap(100); /* some other thread is about to initialise */
    if ((rv & CKR_VENDOR_DEFINED) != 0)
        return rv;
    for (size_t i = 0; i < sizeof answers / sizeof answers[0]; i++) {
        if (rv == answers[i])
            return rv;
    }
    fail("a call answered 0x%lX", rv);
}

/* ---- locks ---- */

/* An untroubled round counts twice: what the holders changed, and how often they say they did. */
static void inside_section(unsigned int keyring)
{
    if (exercise->round.breaks) {
        if (one_in(4))
            nap(random_below(100));
        return;
    }
    uint64_t before = exercise->counters[keyring];
    if (one_in(4))
        nap(random_below(100));
    exercise->counters[keyring] = before + 1U;
    atomic_fetch_add(&exercise->counted[keyring], 1U);
}

/* What has to be known of a lock before it is asked for. */
struct request {
    uint64_t ticket;
    uint64_t life;
};

static struct request request_by(const struct worker *worker)
{
    struct request request;
    (void)pthread_rwlock_rdlock(&process.life_lock);
    request.life = process.lives;
    request.ticket = take_ticket(&exercise->exclusion, process.party, worker->number);
    (void)pthread_rwlock_unlock(&process.life_lock);
    return request;
}

static void section(unsigned int keyring, struct request request)
{
    section_enter(&exercise->exclusion, keyring, request.ticket);
    inside_section(keyring);
    section_leave(&exercise->exclusion, keyring, request.ticket);
    (void)pthread_rwlock_rdlock(&process.life_lock);
    if (request.life == process.lives)
        (void)plausible(CA_UnlockClusteredSlot(SLOT_OF(keyring)));
    (void)pthread_rwlock_unlock(&process.life_lock);
}

static void lock_exclusive(const struct worker *worker)
{
    unsigned int keyring = random_below(EXCLUSIVE);
    bool guarded = exercise->round.granted;
    if (guarded && atomic_flag_test_and_set(&process.taken[keyring]))
        return;
    struct request request = request_by(worker);
    if (plausible(CA_LockClusteredSlot(SLOT_OF(keyring))) == CKR_OK)
        section(keyring, request);
    if (guarded)
        atomic_flag_clear(&process.taken[keyring]);
}

static CK_SLOT_ID wild_slot(void)
{
    return SLOT_OF(EXCLUSIVE + random_below(WILD));
}

/* One lock at a time, or threads would wait for each other in a circle. */
static void lock_wild(void)
{
    CK_SLOT_ID slot = wild_slot();
    if (plausible(CA_LockClusteredSlot(slot)) == CKR_OK)
        nap(random_below(100));
    (void)plausible(CA_UnlockClusteredSlot(slot));
}

static void claim(const struct worker *worker)
{
    CK_UNASSIGNED_SLOT_INFO info = {0, {0}};
    CK_CHAR cluster_id[] = CLUSTER_ID;
    struct request request = request_by(worker);
    if (plausible(CA_GetUnassignedSlot(cluster_id, &info)) != CKR_OK)
        return;
    if (info.slotID < FIRST_SLOT || info.slotID >= FIRST_SLOT + KEYRINGS)
        fail("CA_GetUnassignedSlot: slot %lu", info.slotID);
    unsigned int keyring = (unsigned int)(info.slotID - FIRST_SLOT);
    if (keyring >= EXCLUSIVE)
        (void)plausible(CA_UnlockClusteredSlot(info.slotID));
    else if (exercise->round.granted)
        fail("CA_GetUnassignedSlot: keyring %u is assigned", keyring);
    else
        section(keyring, request);
}

/* ---- tokens and sessions ---- */

/* Few different ones, so that they often fit. */
static CK_ULONG some_pin(CK_UTF8CHAR pin[STATE_PIN_MAX])
{
    CK_ULONG length;
    pin_of((uint8_t)('A' + random_below(3)), pin, &length);
    return length;
}

static void some_label(CK_UTF8CHAR label[STATE_LABEL_SIZE])
{
    if (one_in(2)) {
        char text[33];
        (void)snprintf(text, sizeof text, "%-32s", "keyring5");
        text[7] = (char)('1' + random_below(EXCLUSIVE + WILD));
        memcpy(label, text, 32);
    } else {
        uniform_label((uint8_t)('a' + random_below(26)), label);
    }
}

static void init_some_token(void)
{
    CK_UTF8CHAR label[STATE_LABEL_SIZE];
    CK_UTF8CHAR pin[STATE_PIN_MAX];
    CK_ULONG length = some_pin(pin);
    some_label(label);
    (void)plausible(C_InitToken(wild_slot(), pin, length, label));
}

/* All threads guess the PIN of one token at the same time: each wrong guess has to be counted. */
static void guess_pins(void)
{
    CK_UTF8CHAR pin[] = "a wrong one";
    for (unsigned int token = 0; token < GUESSED; token++) {
        CK_SESSION_HANDLE session = CK_INVALID_HANDLE;
        (void)plausible(C_OpenSession(SLOT_OF(EXCLUSIVE + WILD + token),
                                      CKF_SERIAL_SESSION | CKF_RW_SESSION, NULL, NULL, &session));
        for (unsigned int tries = 0; tries < STATE_PIN_TRIES; tries++) {
            if (plausible(C_Login(session, CKU_USER, pin, sizeof pin - 1U)) == CKR_PIN_INCORRECT)
                atomic_fetch_add(&exercise->wrong_guesses[token], 1U);
        }
        (void)plausible(C_CloseSession(session));
    }
}

static void find_by_label(void)
{
    CK_SLOT_ID slots[KEYRINGS];
    CK_ULONG count = random_below(KEYRINGS + 1U);
    CK_ULONG room = count;
    CK_UTF8CHAR label[STATE_LABEL_SIZE];
    some_label(label);
    CK_RV rv = plausible(CA_GetSlotId(label, one_in(4) ? NULL : slots, &count));
    if (rv == CKR_BUFFER_TOO_SMALL && count <= room)
        fail("CA_GetSlotId: %lu is too small for %lu", room, count);
}

static void use_sessions(struct worker *worker)
{
    CK_SESSION_HANDLE *session = &worker->sessions[random_below(4)];
    CK_UTF8CHAR pin[STATE_PIN_MAX];
    CK_UTF8CHAR other_pin[STATE_PIN_MAX];
    CK_ULONG length = some_pin(pin);
    CK_ULONG other_length = some_pin(other_pin);
    CK_SESSION_INFO info;
    CK_OBJECT_HANDLE object;
    CK_ULONG count;
    CK_BYTE bytes[40];
    CK_UTF8CHAR label[STATE_LABEL_SIZE];
    switch (random_below(15)) {
    case 0:
    case 1:
    case 2:
        (void)plausible(C_OpenSession(wild_slot(), one_in(4) ? CKF_SERIAL_SESSION
                                                             : CKF_SERIAL_SESSION | CKF_RW_SESSION,
                                      NULL, NULL, session));
        break;
    case 3:
        (void)plausible(C_CloseSession(*session));
        break;
    case 4:
        (void)plausible(C_CloseAllSessions(wild_slot()));
        break;
    case 5:
    case 6:
        (void)plausible(C_Login(*session, random_below(4), pin, length));
        break;
    case 7:
        (void)plausible(C_Logout(*session));
        break;
    case 8:
        (void)plausible(C_InitPIN(*session, pin, length));
        break;
    case 9:
        (void)plausible(C_SetPIN(*session, pin, length, other_pin, other_length));
        break;
    case 10:
        (void)plausible(C_GetSessionInfo(*session, &info));
        break;
    case 11:
        (void)plausible(C_FindObjectsInit(*session, NULL, 0));
        break;
    case 12:
        (void)plausible(C_FindObjects(*session, &object, 1, &count));
        (void)plausible(C_FindObjectsFinal(*session));
        break;
    case 13:
        some_label(label);
        (void)plausible(CA_ChangeLabel(*session, wild_slot(), label, sizeof label));
        break;
    default:
        (void)plausible(C_SeedRandom(*session, bytes, sizeof bytes));
        (void)plausible(C_GenerateRandom(*session, bytes, sizeof bytes));
        break;
    }
}

static void ask(void)
{
    CK_INFO info;
    CK_SLOT_ID slots[KEYRINGS];
    CK_ULONG count = KEYRINGS;
    CK_SLOT_INFO slot_info;
    CK_TOKEN_INFO token_info;
    CK_MECHANISM_INFO mechanism_info;
    CK_FUNCTION_LIST_PTR functions;
    CK_SLOT_ID slot = SLOT_OF(random_below(KEYRINGS + 1U));
    switch (random_below(9)) {
    case 0:
        (void)plausible(C_GetInfo(one_in(8) ? NULL : &info));
        break;
    case 1:
        (void)plausible(C_GetSlotList(CK_TRUE, one_in(2) ? NULL : slots, &count));
        break;
    case 2:
        (void)plausible(C_GetSlotInfo(slot, &slot_info));
        break;
    case 3:
    case 4:
        (void)plausible(C_GetTokenInfo(slot, &token_info));
        break;
    case 5:
        (void)plausible(C_GetMechanismList(slot, NULL, &count));
        (void)plausible(C_GetMechanismInfo(slot, 1, &mechanism_info));
        break;
    case 6:
        (void)plausible(C_GetFunctionList(&functions));
        break;
    case 7:
        (void)plausible(C_GetFunctionStatus(1));
        (void)plausible(C_CancelFunction(1));
        break;
    default:
        (void)plausible(C_Encrypt(1, NULL, 0, NULL, NULL));
        /* It waits for nothing but a break. */
        (void)plausible(C_WaitForSlotEvent(
            exercise->round.breaks && one_in(16) ? 0 : CKF_DONT_BLOCK, &slot, NULL));
        break;
    }
}

/* ---- life ---- */

static void initialise(void)
{
    CK_RV rv;
    do
        rv = plausible(C_Initialize(NULL));
    while (rv != CKR_OK && rv != CKR_CRYPTOKI_ALREADY_INITIALIZED);
}

static void finalise_and_initialise(void)
{
    if (atomic_flag_test_and_set(&process.breaking))
        return;
    break_begin(&exercise->exclusion, process.party);
    (void)plausible(C_Finalize(NULL));
    (void)pthread_rwlock_wrlock(&process.life_lock);
    process.lives++;
    initialise();
    (void)pthread_rwlock_unlock(&process.life_lock);
    break_end(&exercise->exclusion, process.party);
    atomic_flag_clear(&process.breaking);
    atomic_fetch_add(&exercise->breaks, 1U);
}

/* In a child that was forked while its parent made calls. It must have no lock or session of its parent. */
static _Noreturn void be_forked(void)
{
    watch_for(60, "a forked child");
    CK_INFO info;
    expect_rv(C_GetInfo(&info), CKR_CRYPTOKI_NOT_INITIALIZED, "C_GetInfo in a forked child");
    expect_rv(CA_LockClusteredSlot(SLOT_OF(EXCLUSIVE)), CKR_DEVICE_ERROR,
              "CA_LockClusteredSlot in a forked child");
    initialise();
    (void)plausible(C_GetInfo(&info));
    lock_wild();
    init_some_token();
    (void)plausible(C_Finalize(NULL));
    _exit(0);
}

static void fork_without_exec(void)
{
    if (STORM_SANITIZED && atomic_flag_test_and_set(&process.breaking))
        return;
    pid_t child = fork_child(random_next());
    if (child == 0)
        be_forked();
    if (STORM_SANITIZED)
        atomic_flag_clear(&process.breaking);
    int status;
    while (waitpid(child, &status, 0) < 0) {
        if (errno != EINTR)
            fail("waitpid: %s", strerror(errno));
    }
    expect_success(status, "a forked child");
    atomic_fetch_add(&exercise->forks, 1U);
}

static void *work(void *argument)
{
    struct worker *worker = argument;
    random_state = storm.seed + worker->number * 7919U + process.party * 104729U;
    atomic_fetch_add(&exercise->ready, 1U);
    while (atomic_load(&exercise->ready) < PROCESSES * THREADS && !atomic_load(&exercise->stop))
        (void)sched_yield();
    guess_pins();
    while (!atomic_load(&exercise->stop)) {
        uint32_t choice = random_below(100);
        if (choice < 40)
            lock_exclusive(worker);
        else if (choice < 50)
            claim(worker);
        else if (choice < 60)
            lock_wild();
        else if (choice < 65)
            (void)plausible(CA_UnlockClusteredSlot(wild_slot()));
        else if (choice < 70)
            init_some_token();
        else if (choice < 80)
            find_by_label();
        else if (choice < 90)
            use_sessions(worker);
        else if (choice < 98)
            ask();
        else if (choice == 98 && one_in(FORKS_ONE_IN))
            fork_without_exec();
        else if (exercise->round.breaks && one_in(4))
            finalise_and_initialise();
    }
    atomic_fetch_sub(&process.running, 1U);
    return NULL;
}

_Noreturn void be_process(unsigned int party)
{
    static struct worker workers[THREADS];
    watch_for((unsigned int)storm.seconds + 120U, "a process with threads");
    process.party = party;
    initialise();
    atomic_store(&process.running, THREADS);
    for (unsigned int i = 0; i < THREADS; i++) {
        workers[i].number = i + 1U;
        if (pthread_create(&workers[i].thread, NULL, work, &workers[i]) != 0)
            fail("pthread_create");
    }
    while (!atomic_load(&exercise->stop))
        nap(1000);
    /* A thread that waits for a lock gets it when its holder ends. Unless the lock was lost:
       then C_Finalize ends the waiting, and what a thread has initialised meanwhile. */
    while (atomic_load(&process.running) != 0) {
        if (exercise->round.breaks) {
            break_begin(&exercise->exclusion, party);
            (void)plausible(C_Finalize(NULL));
        }
        nap(1000);
    }
    for (unsigned int i = 0; i < THREADS; i++)
        (void)pthread_join(workers[i].thread, NULL);
    (void)C_Finalize(NULL);
    exit(0);
}
