/*
 * storm_exercise.c: steers processes that call everything at random on one cluster: sets faults,
 * latencies and switches, disconnects and kills.
 *
 * SPDX-License-Identifier: MIT
 */
#include "storm_exercise.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define ROUNDS 4U

struct exercise *exercise;

static char *path;
static pid_t children[PROCESSES];
static unsigned int kills;

static void start_process(unsigned int party)
{
    children[party] = fork_child(party);
    if (children[party] == 0)
        be_process(party);
}

static void kill_process(unsigned int party)
{
    int status;
    break_begin(&exercise->exclusion, party);
    (void)kill(children[party], SIGKILL);
    if (waitpid(children[party], &status, 0) != children[party])
        fail("waitpid: %s", strerror(errno));
    if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL)
        fail("a process ended before it was killed");
    start_process(party);
    break_end(&exercise->exclusion, party);
    kills++;
}

static void disconnect_process(unsigned int party)
{
    break_begin(&exercise->exclusion, party);
    int error = luna_stub_disconnect(path, children[party]);
    if (error != 0 && error != ESRCH)
        fail("luna_stub_disconnect: %s", strerror(error));
    break_end(&exercise->exclusion, party);
    atomic_fetch_add(&exercise->breaks, 1U);
}

/* Where each section counts, a fault must not leave a lock set. */
static bool may_fail(enum function_id function)
{
    switch (function) {
    case FUNCTION_CA_LockClusteredSlot:
    case FUNCTION_CA_UnlockClusteredSlot:
    case FUNCTION_CA_GetUnassignedSlot:
        return exercise->round.breaks;
    default:
        return true;
    }
}

static void steer_fault(void)
{
    enum function_id function = (enum function_id)random_below(FUNCTION_COUNT);
    luna_stub_rule rule = {.rv = CKR_VENDOR_DEFINED + random_below(8), .times = 0, .every = 1,
                           .probability = 1.0, .seed = random_next(), .lost_reply = 0};
    if (may_fail(function) && !one_in(3)) {
        rule.times = random_below(4);
        rule.every = 1U + random_below(4);
        rule.probability = one_in(2) ? 1.0 : 0.5;
        rule.lost_reply = random_below(2);
    }
    expect_zero(luna_stub_fault(path, function_name(function), &rule), "luna_stub_fault");
}

static void steer_latency(void)
{
    enum function_id function = (enum function_id)random_below(FUNCTION_COUNT);
    uint64_t least = random_below(50);
    uint32_t after = random_below(2);
    int error = one_in(2) ? luna_stub_latency(path, NULL, 0, 0, 0, after)
                          : luna_stub_latency(path, function_name(function), least,
                                              least + random_below(50), random_next(), after);
    expect_zero(error, "luna_stub_latency");
}

static void steer_switch(void)
{
    static const char *const relock[] = {"error", "wait", "granted"};
    switch (random_below(10)) {
    case 0:
        expect_zero(luna_stub_switch(path, "contention", one_in(4) ? "error" : "wait"), "switch");
        break;
    case 1:
        expect_zero(luna_stub_switch(path, "relock",
                                     relock[random_below(exercise->round.granted ? 3U : 2U)]),
                    "switch");
        break;
    case 2:
        expect_zero(luna_stub_switch(path, "unlock_owner", one_in(2) ? "checked" : "unchecked"),
                    "switch");
        break;
    case 3:
        expect_zero(luna_stub_switch(path, "regrant", one_in(4) ? "off" : "on"), "switch");
        break;
    case 4:
        expect_zero(luna_stub_switch(path, "grants", one_in(2) ? "counted" : "once"), "switch");
        break;
    case 5:
        expect_zero(luna_stub_switch(path, "identity", one_in(2) ? "single" : "dual"), "switch");
        break;
    case 6:
        expect_zero(luna_stub_switch(path, "pin_change", one_in(4) ? "forced" : "free"), "switch");
        break;
    case 7:
        expect_zero(luna_stub_switch(path, "authentication", one_in(4) ? "ped" : "password"),
                    "switch");
        break;
    case 8:
        expect_zero(luna_stub_switch(path, "change_label", one_in(2) ? "on" : "off"), "switch");
        break;
    default:
        expect_zero(luna_stub_switch(path, "log", one_in(4) ? "off" : "on"), "switch");
        break;
    }
}

/* Answers how many locks are set. */
static unsigned int look(void)
{
    luna_stub_token tokens[KEYRINGS];
    uint32_t count;
    unsigned int locked = 0;
    expect_zero(luna_stub_snapshot(path, tokens, KEYRINGS, &count), "luna_stub_snapshot");
    if (count != KEYRINGS)
        fail("luna_stub_snapshot: %u keyrings", count);
    for (unsigned int i = 0; i < KEYRINGS; i++) {
        locked += tokens[i].owner_pid != 0;
        if (tokens[i].slot_id != SLOT_OF(i))
            fail("luna_stub_snapshot: slot %llu", (unsigned long long)tokens[i].slot_id);
        if (memcmp(tokens[i].label, "keyring", 7) != 0 &&
            !label_is_whole(tokens[i].label, tokens[i].original_label))
            fail("keyring %u: the label is a mixture: %.32s", i, (char *)tokens[i].label);
    }
    return locked;
}

static void check_cluster_id(void)
{
    char cluster_id[65];
    expect_zero(luna_stub_cluster_id(path, cluster_id), "luna_stub_cluster_id");
    if (strcmp(cluster_id, CLUSTER_ID) != 0)
        fail("the cluster's ID is %s", cluster_id);
    if (luna_stub_create(path, "another", "keyring", 1, 1, NULL, 0) != EEXIST)
        fail("luna_stub_create replaced a file");
}

static void steer(void)
{
    unsigned int party = random_below(PROCESSES);
    switch (random_below(exercise->round.breaks ? 12 : 10)) {
    case 0:
    case 1:
        steer_fault();
        break;
    case 2:
    case 3:
        steer_latency();
        break;
    case 4:
    case 5:
    case 6:
        steer_switch();
        break;
    case 7:
        (void)look();
        break;
    case 8:
        check_log(path, one_in(16) ? STATE_LOG_ENTRIES : 100);
        break;
    case 9:
        check_cluster_id();
        break;
    case 10:
        disconnect_process(party);
        break;
    default:
        if (one_in(4))
            kill_process(party);
        break;
    }
}

/* A child that has found a violation is no longer there to be steered. */
static void reap(void)
{
    int status;
    pid_t child;
    while ((child = waitpid(-1, &status, WNOHANG)) > 0) {
        /* Any other was the forked child of one that was killed. */
        for (unsigned int i = 0; i < PROCESSES; i++) {
            if (child == children[i]) {
                expect_success(status, "a process with threads");
                fail("a process with threads ended too early");
            }
        }
    }
}

static void stop_processes(void)
{
    luna_stub_rule none = {.every = 1, .probability = 1.0};
    for (unsigned int id = 0; id < FUNCTION_COUNT; id++)
        expect_zero(luna_stub_fault(path, function_name((enum function_id)id), &none), "fault");
    for (uint32_t after = 0; after < 2; after++)
        expect_zero(luna_stub_latency(path, NULL, 0, 0, 0, after), "luna_stub_latency");
    atomic_store(&exercise->stop, true);
    for (unsigned int i = 0; i < PROCESSES; i++) {
        int status;
        if (waitpid(children[i], &status, 0) != children[i])
            fail("waitpid: %s", strerror(errno));
        expect_success(status, "a process with threads");
    }
    while (waitpid(-1, NULL, 0) > 0)
        continue;
}

/* When all processes have ended: all locks have to be free, and all that was counted has to be there. */
static void check_what_is_left(void)
{
    if (look() != 0)
        fail("a lock outlived its owner");
    check_log(path, STATE_LOG_ENTRIES);
    expect_zero(luna_stub_switch(path, "contention", "error"), "luna_stub_switch");
    expect_rv(C_Initialize(NULL), CKR_OK, "C_Initialize after all");
    for (unsigned int i = 0; i < KEYRINGS; i++) {
        expect_rv(CA_LockClusteredSlot(SLOT_OF(i)), CKR_OK, "CA_LockClusteredSlot after all");
        expect_rv(CA_UnlockClusteredSlot(SLOT_OF(i)), CKR_OK, "CA_UnlockClusteredSlot after all");
    }
    expect_rv(C_Finalize(NULL), CKR_OK, "C_Finalize after all");
    for (unsigned int i = 0; i < GUESSED; i++) {
        if (atomic_load(&exercise->wrong_guesses[i]) > STATE_PIN_TRIES)
            fail("keyring %u: %u guesses at its PIN", EXCLUSIVE + WILD + i,
                 atomic_load(&exercise->wrong_guesses[i]));
    }
    for (unsigned int i = 0; i < EXCLUSIVE; i++) {
        if (exercise->counters[i] != atomic_load(&exercise->counted[i]))
            fail("keyring %u: %llu sections counted to %llu", i,
                 (unsigned long long)atomic_load(&exercise->counted[i]),
                 (unsigned long long)exercise->counters[i]);
    }
}

static void make_cluster(void)
{
    (void)unlink(path);
    expect_zero(luna_stub_create(path, CLUSTER_ID, "keyring", KEYRINGS, FIRST_SLOT, NULL, 0),
                "create");
    use_cluster(path);
    if (!exercise->round.granted)
        expect_zero(luna_stub_switch(path, "relock", "wait"), "luna_stub_switch");
    expect_rv(C_Initialize(NULL), CKR_OK, "C_Initialize");
    for (unsigned int i = 0; i < GUESSED; i++) {
        static const uint8_t pin[] = "12345678"; /* of so few bytes that it can be locked */
        init_token(SLOT_OF(EXCLUSIVE + WILD + i), 'g', 'g');
        expect_zero(luna_stub_set_pins(path, SLOT_OF(EXCLUSIVE + WILD + i), pin, 8, pin, 8),
                    "luna_stub_set_pins");
        atomic_store(&exercise->wrong_guesses[i], 0);
    }
    /* Assigned, so that no claim gets past the threads' own exclusion. */
    for (unsigned int i = 0; i < EXCLUSIVE && exercise->round.granted; i++)
        init_token(SLOT_OF(i), 'A', 'A');
    expect_rv(C_Finalize(NULL), CKR_OK, "C_Finalize");
}

static void run_round(struct round round, double until)
{
    exercise->round = round;
    atomic_store(&exercise->stop, false);
    atomic_store(&exercise->ready, 0);
    make_cluster();
    for (unsigned int i = 0; i < PROCESSES; i++)
        start_process(i);
    while (now() < until) {
        steer();
        reap();
        nap(random_below(2000));
    }
    stop_processes();
    check_what_is_left();
}

void storm_exercise(void)
{
    static const struct round rounds[ROUNDS] = {
        {false, false}, {true, false}, {false, true}, {true, true}};
    exercise = shared_memory(sizeof *exercise);
    path = path_in_directory("cluster");
    watch_for((unsigned int)storm.seconds + 150U, "the steering process");
    double begin = now();
    for (unsigned int i = 0; i < ROUNDS; i++)
        run_round(rounds[i], begin + storm.seconds * (i + 1U) / ROUNDS);
    uint64_t counted = 0;
    for (unsigned int i = 0; i < EXCLUSIVE; i++)
        counted += atomic_load(&exercise->counted[i]);
    (void)printf("exercise: seconds=%.1f calls=%llu sections=%llu counted=%llu breaks=%llu "
                 "kills=%u forks=%llu seed=%llu\n",
                 now() - begin, (unsigned long long)atomic_load(&exercise->calls),
                 (unsigned long long)atomic_load(&exercise->exclusion.sections),
                 (unsigned long long)counted, (unsigned long long)atomic_load(&exercise->breaks),
                 kills, (unsigned long long)atomic_load(&exercise->forks),
                 (unsigned long long)storm.seed);
    free(path);
}
