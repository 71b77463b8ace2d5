/*
 * storm_kill.c: victims are killed at random instants, and what they have left is looked at.
 *
 * SPDX-License-Identifier: MIT
 */
#include "storm_kill.h"

#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define CREATED "created"
#define UNFINISHED CREATED "."
#define EARLY_US 600U
#define LONGEST_LIFE_US 1500U
/* How long a lock may still seem set: a child that the victim has just forked has to drop what it
   inherited, and an application that has just taken the victim's place passes for it at first. */
#define PATIENCE_S 5.0

struct killing *killing;
char *cluster_path;
char *created_path;
unsigned int lane_number;
struct lane *lane;

/* ---- what a lane looks at ---- */

/* Settles a value after its writer's death: `is` says whether the file has it. */
static void settle(struct value *value, bool (*is)(CK_SLOT_ID slot, uint32_t value),
                   CK_SLOT_ID slot, const char *what)
{
    uint32_t old = atomic_load(&value->settled);
    uint32_t new = atomic_load(&value->wanted);
    bool in_a_write = old != new;
    if (in_a_write)
        atomic_fetch_add(&killing->in_a_write, 1U);
    if (in_a_write && is(slot, new)) {
        atomic_fetch_add(&killing->new_values, 1U);
        atomic_store(&value->settled, new);
        return;
    }
    if (!is(slot, old))
        fail("slot %lu: the %s is neither 0x%06x nor 0x%06x", slot, what, old, new);
    atomic_store(&value->wanted, old);
}

static bool fault_is(CK_SLOT_ID slot, uint32_t value)
{
    (void)slot;
    return fault_of(cluster_path, lane_function()) == value;
}

static bool latency_is(CK_SLOT_ID slot, uint32_t value)
{
    (void)slot;
    return latency_of(cluster_path, lane_function()) == value;
}

/* The victim is the only other one that locks this lane's keyrings. */
static void take_lock(unsigned int keyring)
{
    double begin = now();
    uint64_t ticket;
    for (;;) {
        ticket = take_ticket(&killing->exclusion, LANE_PARTY, 0);
        CK_RV rv = CA_LockClusteredSlot(slot_of(keyring));
        if (rv == CKR_OK)
            break;
        expect_rv(rv, CKR_DEVICE_ERROR, "CA_LockClusteredSlot after a death");
        if (now() - begin > PATIENCE_S)
            fail("slot %lu: the lock of a dead process is not free", slot_of(keyring));
        nap(100);
    }
    section_enter(&killing->exclusion, keyring, ticket);
    section_leave(&killing->exclusion, keyring, ticket);
    expect_rv(CA_UnlockClusteredSlot(slot_of(keyring)), CKR_OK, "CA_UnlockClusteredSlot");
}

static void look_at_locks(pid_t victim)
{
    luna_stub_token tokens[KEYRINGS];
    uint32_t count;
    unsigned int left = 0;
    for (unsigned int i = 0; i < TOKENS; i++)
        left += atomic_load(&killing->exclusion.holders[keyring_of(i)]) != 0;
    atomic_fetch_add(&killing->locks_left, left);
    double begin = now();
    bool held = true;
    while (held) {
        expect_zero(luna_stub_snapshot(cluster_path, tokens, KEYRINGS, &count),
                    "luna_stub_snapshot");
        if (count != KEYRINGS)
            fail("luna_stub_snapshot: %u keyrings", count);
        held = false;
        for (unsigned int i = 0; i < KEYRINGS; i++) {
            if (!label_is_whole(tokens[i].label, tokens[i].original_label))
                fail("keyring %u: the label is a mixture", i);
            held = held || tokens[i].owner_pid == victim;
        }
        if (held && now() - begin > PATIENCE_S)
            fail("a dead process has a lock");
    }
    for (unsigned int i = 0; i < TOKENS; i++)
        take_lock(keyring_of(i));
}

/* A living process has the writer's lock for a moment only. If it is not free for long, a dead one has
   kept it. */
static void look_at_writer(void)
{
    struct state_file file;
    const char *reason;
    expect_zero(state_open(cluster_path, &file, &reason), "the file after a death");
    double begin = now();
    while (platform_byte_lock(&file.platform, STATE_WRITER_BYTE, false) != 0) {
        if (now() - begin > PATIENCE_S)
            fail("the writer's lock is not free");
        nap(20);
    }
    state_close(&file);
}

static void look_after_writer(pid_t victim, uint64_t round)
{
    look_at_writer();
    look_at_locks(victim);
    for (unsigned int i = 0; i < TOKENS; i++)
        settle(&lane->tokens[i], token_is, slot_of(keyring_of(i)), "token");
    settle(&lane->fault, fault_is, 0, "fault");
    settle(&lane->latency, latency_is, 0, "latency");
    check_log(cluster_path, round % 64 == 0 ? STATE_LOG_ENTRIES : 64);
    /* The next process to open it: mostly the same one, for that is faster. */
    if (round % 16 == 0) {
        break_begin(&killing->exclusion, LANE_PARTY);
        start_over();
        break_end(&killing->exclusion, LANE_PARTY);
    }
}

/* ---- what a creator has left ---- */

/* A file that was being made has a name of its own until it is whole. */
static void remove_unfinished(void)
{
    DIR *entries = opendir(storm.directory);
    if (entries == NULL)
        fail("opendir: %s", strerror(errno));
    const struct dirent *entry;
    while ((entry = readdir(entries)) != NULL) {
        if (strncmp(entry->d_name, UNFINISHED, sizeof UNFINISHED - 1U) != 0)
            continue;
        (void)unlinkat(dirfd(entries), entry->d_name, 0);
        atomic_fetch_add(&killing->unfinished, 1U);
    }
    (void)closedir(entries);
}

static void look_after_creator(uint64_t round)
{
    char cluster_id[65];
    remove_unfinished();
    int error = luna_stub_cluster_id(created_path, cluster_id);
    if (error == ENOENT && !atomic_load(&lane->file_settled))
        return;
    expect_zero(error, "a file that was being created");
    if (strcmp(cluster_id, CLUSTER_ID) != 0)
        fail("the cluster's ID is %s", cluster_id);
    atomic_store(&lane->file_settled, true);
    atomic_fetch_add(&killing->created, 1U);
    expect_rv(C_Initialize(NULL), CKR_OK, "C_Initialize after a death");
    for (unsigned int i = 0; i < TOKENS; i++)
        settle(&lane->tokens[i], token_is, slot_of(i), "token");
    expect_rv(C_Finalize(NULL), CKR_OK, "C_Finalize after a death");
    check_log(created_path, 64);
    if (round % 4 == 0)
        return; /* the next victim goes on with this one */
    if (unlink(created_path) != 0)
        fail("unlink: %s", strerror(errno));
    atomic_store(&lane->file_settled, false);
    for (unsigned int i = 0; i < TOKENS; i++) {
        atomic_store(&lane->tokens[i].settled, 0);
        atomic_store(&lane->tokens[i].wanted, 0);
    }
}

/* ---- lanes ---- */

/* Some die early, for the first steps are not repeated; the others, when they have begun to write,
   however long that takes. */
static void let_live(pid_t victim)
{
    siginfo_t ended = {.si_pid = 0};
    bool early = one_in(3);
    while (!early && !atomic_load(&lane->begun) && ended.si_pid == 0) {
        nap(50);
        (void)waitid(P_PID, (id_t)victim, &ended, WEXITED | WNOHANG | WNOWAIT);
    }
    nap(random_below(early ? EARLY_US : LONGEST_LIFE_US));
}

static void kill_victim(pid_t victim)
{
    int status;
    (void)kill(victim, SIGKILL);
    if (waitpid(victim, &status, 0) != victim)
        fail("waitpid: %s", strerror(errno));
    if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL) {
        expect_success(status, "a victim");
        fail("a victim ended before it was killed");
    }
    atomic_fetch_add(&killing->kills, 1U);
}

/* What the victim has forked has lived until now. */
static void kill_survivors(pid_t victim)
{
    int status;
    (void)kill(-victim, SIGKILL);
    while (waitpid(-1, &status, 0) > 0) {
        if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL)
            atomic_fetch_add(&killing->survivors, 1U);
        else
            expect_success(status, "a victim's child");
    }
}

static _Noreturn void be_lane(unsigned int number)
{
    lane_number = number;
    lane = &killing->lanes[number];
    bool creates = number >= WRITERS;
    (void)prctl(PR_SET_CHILD_SUBREAPER, 1);
    use_cluster(creates ? created_path : cluster_path);
    if (!creates)
        expect_rv(C_Initialize(NULL), CKR_OK, "C_Initialize of a lane");
    for (uint64_t round = 1; !atomic_load(&killing->stop); round++) {
        watch_for(60, "a lane");
        atomic_store(&lane->begun, false);
        pid_t victim = fork_child(number + LANES * round);
        if (victim == 0 && creates)
            be_creator();
        if (victim == 0)
            be_writer();
        let_live(victim);
        break_begin(&killing->exclusion, VICTIM_PARTY);
        kill_victim(victim);
        if (creates)
            look_after_creator(round);
        else
            look_after_writer(victim, round);
        kill_survivors(victim);
        break_end(&killing->exclusion, VICTIM_PARTY);
    }
    if (!creates)
        expect_rv(C_Finalize(NULL), CKR_OK, "C_Finalize of a lane");
    exit(0);
}

static void check_what_is_left(void)
{
    luna_stub_token tokens[KEYRINGS];
    uint32_t count;
    expect_zero(luna_stub_snapshot(cluster_path, tokens, KEYRINGS, &count), "luna_stub_snapshot");
    for (unsigned int i = 0; i < KEYRINGS; i++) {
        if (tokens[i].owner_pid != 0)
            fail("slot %lu: a lock outlived its owner", slot_of(i));
    }
    check_log(cluster_path, STATE_LOG_ENTRIES);
}

/* No claim is to find a lane's tokens. */
static void label_tokens(void)
{
    expect_rv(C_Initialize(NULL), CKR_OK, "C_Initialize");
    for (unsigned int i = COMMON; i < KEYRINGS; i++) {
        struct value *token = &killing->lanes[(i - COMMON) / TOKENS].tokens[(i - COMMON) % TOKENS];
        init_token(slot_of(i), 1, 1);
        atomic_store(&token->settled, TOKEN(1, 1, 0));
        atomic_store(&token->wanted, TOKEN(1, 1, 0));
    }
    expect_rv(C_Finalize(NULL), CKR_OK, "C_Finalize");
}

/* WNOWAIT: which child it was is found out later. */
static bool a_child_ended(void)
{
    siginfo_t info = {.si_pid = 0};
    return waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid != 0;
}

static unsigned long long figure(_Atomic uint64_t *counter)
{
    return atomic_load(counter);
}

static void print_figures(double seconds)
{
    unsigned long long writes = 0;
    for (unsigned int i = 0; i < LANES; i++)
        writes += figure(&killing->lanes[i].writes);
    (void)printf("kill: seconds=%.1f kills=%llu writes=%llu in_a_write=%llu new_values=%llu "
                 "locks_left=%llu created=%llu unfinished=%llu survivors=%llu sections=%llu "
                 "seed=%llu\n",
                 seconds, figure(&killing->kills), writes, figure(&killing->in_a_write),
                 figure(&killing->new_values), figure(&killing->locks_left),
                 figure(&killing->created), figure(&killing->unfinished),
                 figure(&killing->survivors), figure(&killing->exclusion.sections),
                 (unsigned long long)storm.seed);
}

void storm_kill(void)
{
    killing = shared_memory(sizeof *killing);
    cluster_path = path_in_directory("cluster");
    created_path = path_in_directory(CREATED);
    watch_for((unsigned int)storm.seconds + 120U, "the first process");
    expect_zero(luna_stub_create(cluster_path, CLUSTER_ID, "keyring", KEYRINGS, FIRST_SLOT, NULL, 0),
                "luna_stub_create");
    expect_zero(luna_stub_switch(cluster_path, "identity", "dual"), "luna_stub_switch");
    use_cluster(cluster_path);
    label_tokens();
    double begin = now();
    pid_t lanes[LANES];
    for (unsigned int i = 0; i < LANES; i++) {
        lanes[i] = fork_child(i);
        if (lanes[i] == 0)
            be_lane(i);
    }
    while (now() - begin < storm.seconds && !a_child_ended())
        nap(10000);
    atomic_store(&killing->stop, true);
    for (unsigned int i = 0; i < LANES; i++) {
        int status;
        if (waitpid(lanes[i], &status, 0) != lanes[i])
            fail("waitpid: %s", strerror(errno));
        expect_success(status, "a lane");
    }
    check_what_is_left();
    print_figures(now() - begin);
    free(created_path);
    free(cluster_path);
}
