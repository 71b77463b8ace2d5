/*
 * storm_step.c: a victim is stopped after each of its instructions. Whenever it has changed the
 * state file, a copy of the file is what the next process would find if the victim were killed just
 * there, for the kernel drops the locks of the dead and does nothing else. So all that the next
 * process may do is tried on the copy. Some victims are then really killed, at an instant drawn by lot.
 *
 * SPDX-License-Identifier: MIT
 */
#include "storm_step.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include "application.h"

#define MOST_STEPS 3000000U
/* Exit status where a process may not trace its children. */
#define NOT_POSSIBLE 77

static char *copy_path;

static struct figures {
    uint64_t scenarios;
    uint64_t steps;
    uint64_t images; /* copies of the file on which the next process was tried */
    uint64_t kills;
} figures;

/* ---- a view of the file ---- */

/* The parts of a file with so few applications and calls that may change. */
#define CHANGING_APPLICATIONS 4U
#define CHANGING_CALLS 64U

static struct part {
    size_t offset;
    size_t size;
} parts[] = {
    {0, offsetof(struct state, applications) +
            CHANGING_APPLICATIONS * sizeof(struct state_application)},
    {offsetof(struct state, log),
     offsetof(struct state_log, entries) + CHANGING_CALLS * sizeof(struct state_log_entry)},
    {offsetof(struct state, keyrings), KEYRINGS * sizeof(struct state_keyring)},
};

#define PARTS (sizeof parts / sizeof parts[0])

/* Only reads, while the victim stands still in the midst of a call. */
static struct state_file seen;

static bool changed(const uint8_t *last)
{
    const uint8_t *memory = seen.platform.memory;
    for (size_t i = 0; i < PARTS; i++) {
        if (memcmp(memory + parts[i].offset, last + parts[i].offset, parts[i].size) != 0)
            return true;
    }
    return false;
}

static void remember(uint8_t *last)
{
    const uint8_t *memory = seen.platform.memory;
    for (size_t i = 0; i < PARTS; i++)
        memcpy(last + parts[i].offset, memory + parts[i].offset, parts[i].size);
}

static void write_copy(void)
{
    (void)unlink(copy_path);
    int fd = open(copy_path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    ssize_t size = (ssize_t)seen.platform.size;
    if (fd < 0 || write(fd, seen.platform.memory, seen.platform.size) != size)
        fail("%s: %s", copy_path, strerror(errno));
    (void)close(fd);
}

/* ---- the next process ---- */

static bool between(uint32_t value, uint32_t before, uint32_t after)
{
    return value == before || value == after;
}

static void check_labels(const char *file)
{
    luna_stub_token tokens[KEYRINGS];
    uint32_t count;
    expect_zero(luna_stub_snapshot(file, tokens, KEYRINGS, &count), "luna_stub_snapshot");
    if (count != KEYRINGS)
        fail("luna_stub_snapshot: %u keyrings", count);
    for (unsigned int i = 0; i < KEYRINGS; i++) {
        if (!label_is_whole(tokens[i].label, tokens[i].original_label))
            fail("keyring %u: the label is a mixture", i);
    }
}

static void check_rules(const char *file, const struct scenario *scenario)
{
    uint32_t fault = fault_of(file, RULED);
    uint32_t latency = latency_of(file, RULED);
    if (!between(fault, scenario->before.fault, scenario->after.fault))
        fail("the fault is %u", fault);
    if (!between(latency, scenario->before.latency, scenario->after.latency))
        fail("the latency is %u", latency);
}

static void use_locks(void)
{
    for (CK_SLOT_ID slot = SLOT; slot < SLOT + KEYRINGS; slot++) {
        expect_rv(CA_LockClusteredSlot(slot), CKR_OK, "CA_LockClusteredSlot");
        expect_rv(CA_UnlockClusteredSlot(slot), CKR_OK, "CA_UnlockClusteredSlot");
    }
}

/* Everything that it might do with the file that the victim has left. */
static void be_next_process(const char *file, const struct scenario *scenario)
{
    check_labels(file);
    check_rules(file, scenario);
    check_log(file, 64);
    /* The locks of a dead process are free; they do not belong to the next process either. */
    expect_zero(luna_stub_switch(file, "contention", "error"), "luna_stub_switch");
    expect_zero(luna_stub_switch(file, "relock", "error"), "luna_stub_switch");
    use_cluster(file);
    initialise();
    use_locks();
    uint32_t token = scenario->after.token;
    if (!token_is(SLOT, token)) {
        token = scenario->before.token;
        if (!token_is(SLOT, token))
            fail("the token has neither its old values nor its new ones");
    }
    init_token(SLOT, LABEL_OF(token) == 0 ? 61 : SO_OF(token), 62);
    init_token(OTHER_SLOT, 63, 64);
    expect_rv(C_Finalize(NULL), CKR_OK, "C_Finalize");
}

/* ---- one step at a time ---- */

static _Noreturn void be_victim(const struct scenario *scenario)
{
    watch_for(60, scenario->name);
    if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) != 0)
        _exit(NOT_POSSIBLE);
    use_cluster(stepped_path);
    if (scenario->beginning == INITIALISED)
        initialise();
    if (scenario->prepare != NULL)
        scenario->prepare();
    (void)raise(SIGSTOP);
    scenario->act();
    (void)raise(SIGSTOP);
    _exit(0);
}

static int wait_for(pid_t victim)
{
    int status;
    if (waitpid(victim, &status, 0) != victim)
        fail("waitpid: %s", strerror(errno));
    if (WIFEXITED(status) && WEXITSTATUS(status) == NOT_POSSIBLE) {
        (void)fprintf(stderr, "storm: step: this process may not trace its children\n");
        exit(NOT_POSSIBLE);
    }
    if (!WIFSTOPPED(status))
        fail("the victim ended");
    return WSTOPSIG(status);
}

static pid_t start_victim(const struct scenario *scenario)
{
    pid_t victim = fork_child(figures.kills);
    if (victim == 0)
        be_victim(scenario);
    if (wait_for(victim) != SIGSTOP)
        fail("the victim did not get ready");
    return victim;
}

/* False: it is done. */
static bool step(pid_t victim)
{
    if (ptrace(PTRACE_SINGLESTEP, victim, NULL, NULL) != 0)
        fail("ptrace: %s", strerror(errno));
    int signal_number = wait_for(victim);
    if (signal_number == SIGSTOP)
        return false;
    if (signal_number != SIGTRAP)
        fail("the victim got signal %d", signal_number);
    return true;
}

static void kill_victim(pid_t victim)
{
    int status;
    (void)kill(victim, SIGKILL);
    if (waitpid(victim, &status, 0) != victim || !WIFSIGNALED(status))
        fail("the victim was not killed");
}

static bool look_at_file(void)
{
    const char *reason;
    int error = state_open(stepped_path, &seen, &reason);
    if (error != 0 && error != ENOENT)
        fail("the file that the victim made: %s", reason);
    return error == 0;
}

static void try_copy(const struct scenario *scenario)
{
    check_labels(stepped_path); /* of the file that the victim is in the midst of changing */
    write_copy();
    be_next_process(copy_path, scenario);
    figures.images++;
}

/* All its steps: how many. */
static uint64_t step_through(const struct scenario *scenario)
{
    static uint8_t last[sizeof(struct state) + KEYRINGS * sizeof(struct state_keyring)];
    make_file(scenario);
    memset(last, 0, sizeof last);
    pid_t victim = start_victim(scenario);
    bool there = look_at_file();
    uint64_t steps = 0;
    while (step(victim)) {
        if (++steps == MOST_STEPS)
            fail("%s does not end", scenario->name);
        /* Made under a name of its own, it is there all at once. */
        if (!there && access(stepped_path, F_OK) == 0)
            there = look_at_file();
        if (!there || !changed(last))
            continue;
        remember(last);
        try_copy(scenario);
    }
    if (!there)
        fail("%s made no file", scenario->name);
    state_close(&seen);
    kill_victim(victim);
    be_next_process(stepped_path, scenario);
    figures.steps += steps;
    figures.scenarios++;
    return steps;
}

static void kill_at(const struct scenario *scenario, uint64_t steps)
{
    make_file(scenario);
    pid_t victim = start_victim(scenario);
    while (steps-- > 0 && step(victim))
        continue;
    kill_victim(victim);
    figures.kills++;
    if (scenario->beginning == WITHOUT_FILE && access(stepped_path, F_OK) != 0)
        return;
    be_next_process(stepped_path, scenario);
}

/* ---- the reader's side ---- */

#define READS 16U

static void read_records(void)
{
    struct token_record record;
    for (unsigned int i = 0; i < READS; i++) {
        state_read_token(&application.file.state->keyrings[0].token, &record);
        if (memcmp(&record, (const uint8_t *)&record + 1, sizeof record - 1U) != 0)
            fail("a reader has read parts of two records");
    }
}

/* Two writes, so that the copy that is being read is one of those that are written. */
static void disturb(struct state_token *token)
{
    static uint8_t value;
    for (unsigned int i = 0; i < 2; i++) {
        struct token_record record;
        memset(&record, ++value, sizeof record);
        state_write_token(token, &record);
    }
}

/* Runs the reader step by step. After one step in so many a record is written; 0: after none. */
static uint64_t step_through_reading(uint32_t disturbed_one_in)
{
    static const struct scenario reading = {.name = "reading", .act = read_records};
    make_file(&reading);
    pid_t victim = start_victim(&reading);
    if (!look_at_file())
        fail("there is no file");
    struct state_token *token = &seen.state->keyrings[0].token;
    disturb(token);
    uint64_t steps = 0;
    while (step(victim)) {
        if (++steps == MOST_STEPS)
            fail("a reader does not come to an end");
        if (disturbed_one_in != 0 && one_in(disturbed_one_in))
            disturb(token);
    }
    state_close(&seen);
    kill_victim(victim);
    figures.steps += steps;
    figures.scenarios++;
    return steps;
}

/* Each read is disturbed once, on the average, and has to begin anew. */
static void try_reading(void)
{
    watch_for(120, "reading");
    uint64_t steps = step_through_reading(0);
    (void)step_through_reading((uint32_t)(steps / READS));
}

void storm_step(void)
{
    uint64_t *steps = calloc(scenarios_count, sizeof *steps);
    if (steps == NULL)
        fail("out of memory");
    stepped_path = path_in_directory("cluster");
    copy_path = path_in_directory("copy");
    double begin = now();
    for (size_t i = 0; i < scenarios_count; i++) {
        watch_for(120, scenarios[i].name);
        steps[i] = step_through(&scenarios[i]);
    }
    try_reading();
    if (figures.steps < 1000 * figures.scenarios || figures.images < 10 * figures.scenarios)
        fail("%llu steps and %llu images of the file are too few for %llu scenarios",
             (unsigned long long)figures.steps, (unsigned long long)figures.images,
             (unsigned long long)figures.scenarios);
    while (now() - begin < storm.seconds) {
        uint32_t i = random_below((uint32_t)scenarios_count);
        watch_for(120, scenarios[i].name);
        kill_at(&scenarios[i], random_next() % steps[i]);
    }
    (void)printf("step: seconds=%.1f scenarios=%llu steps=%llu images=%llu kills=%llu seed=%llu\n",
                 now() - begin, (unsigned long long)figures.scenarios,
                 (unsigned long long)figures.steps, (unsigned long long)figures.images,
                 (unsigned long long)figures.kills, (unsigned long long)storm.seed);
    free(stepped_path);
    free(copy_path);
    free(steps);
}
