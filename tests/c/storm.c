/*
 * storm.c: torments the stand-in, on the real operating system, and watches whether it keeps its
 * promises.
 *
 *     storm exercise|kill|step SECONDS [SEED]
 *
 * exercise: processes and threads call everything at random, while faults, switches and lost
 *           connections are set from outside; do two ever hold the same lock?
 * kill:     processes are killed at random instants; does the next one find old or new values?
 * step:     a process is stopped after each of its instructions; what would the next one find if it
 *           were killed just there?
 *
 * Prints one line of figures, name=value, and exits with 0; after a violation it says which, and
 * exits with 1. The seed gives each process the same random numbers; the system's scheduling, on
 * which the first two depend as much, it cannot repeat.
 *
 * SPDX-License-Identifier: MIT
 */
#include "storm.h"

#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "random_number.h"

struct storm storm;

/* ---- the run ---- */

_Noreturn void fail(const char *format, ...)
{
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    (void)vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    (void)fprintf(stderr, "storm: %s\n", text);
    _exit(1);
}

static const char *volatile watched;

static void say(const char *text)
{
    ssize_t written = write(STDERR_FILENO, text, strlen(text));
    (void)written;
}

static void stuck(int signal_number)
{
    (void)signal_number;
    say("storm: stuck: ");
    say(watched);
    say("\n");
    _exit(1);
}

void watch_for(unsigned int seconds, const char *what)
{
    watched = what;
    (void)alarm(seconds);
}

double now(void)
{
    struct timespec time;
    (void)clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

void nap(uint64_t microseconds)
{
    struct timespec time = {(time_t)(microseconds / 1000000U),
                            (long)(microseconds % 1000000U) * 1000L};
    (void)nanosleep(&time, NULL);
}

char *path_in_directory(const char *name)
{
    size_t size = strlen(storm.directory) + strlen(name) + 2U;
    char *path = malloc(size);
    if (path == NULL)
        fail("out of memory");
    (void)snprintf(path, size, "%s/%s", storm.directory, name);
    return path;
}

void *shared_memory(size_t size)
{
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        fail("mmap: %s", strerror(errno));
    return memory;
}

pid_t fork_child(uint64_t stream)
{
    pid_t parent = getpid();
    pid_t child = fork();
    if (child < 0)
        fail("fork: %s", strerror(errno));
    if (child == 0) {
        (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent)
            _exit(1);
        random_state = random_number(storm.seed, stream);
    }
    return child;
}

void expect_success(int status, const char *who)
{
    if (WIFSIGNALED(status))
        fail("%s died of signal %d", who, WTERMSIG(status));
    if (WEXITSTATUS(status) != 0)
        fail("%s failed", who);
}

/* ---- random numbers ---- */

_Thread_local uint64_t random_state;

uint64_t random_next(void)
{
    random_state += UINT64_C(0x9E3779B97F4A7C15);
    return random_mix(random_state);
}

uint32_t random_below(uint32_t bound)
{
    return (uint32_t)(random_next() % bound);
}

/* ---- exclusion ---- */

#define TICKET_UNSOUND (UINT64_C(1) << 47)

void break_begin(struct exclusion *exclusion, unsigned int party)
{
    atomic_fetch_add(&exclusion->parties[party].breaks_begun, 1U);
}

void break_end(struct exclusion *exclusion, unsigned int party)
{
    atomic_fetch_add(&exclusion->parties[party].breaks_done, 1U);
}

uint64_t take_ticket(struct exclusion *exclusion, unsigned int party, unsigned int thread)
{
    uint32_t done = atomic_load(&exclusion->parties[party].breaks_done);
    uint32_t begun = atomic_load(&exclusion->parties[party].breaks_begun);
    uint64_t who = (uint64_t)(party + 1U) << 48 | (uint64_t)thread << 32;
    return (done == begun ? 0 : TICKET_UNSOUND) | who | begun;
}

/* No break of its party has begun since it was taken. */
static bool sound(struct exclusion *exclusion, uint64_t ticket)
{
    unsigned int party = (unsigned int)(ticket >> 48) - 1U;
    return (ticket & TICKET_UNSOUND) == 0 &&
           atomic_load(&exclusion->parties[party].breaks_begun) == (uint32_t)ticket;
}

void section_enter(struct exclusion *exclusion, unsigned int keyring, uint64_t ticket)
{
    _Atomic uint64_t *holder = &exclusion->holders[keyring];
    uint64_t other = atomic_load(holder);
    do {
        /* In this order: we have had the lock since before the other was seen inside. */
        if (other != 0 && sound(exclusion, other)) {
            if (sound(exclusion, ticket))
                fail("keyring %u: two have the lock, %llx and %llx", keyring,
                     (unsigned long long)other, (unsigned long long)ticket);
            return;
        }
    } while (!atomic_compare_exchange_strong(holder, &other, ticket));
    atomic_fetch_add(&exclusion->sections, 1U);
}

void section_leave(struct exclusion *exclusion, unsigned int keyring, uint64_t ticket)
{
    uint64_t own = ticket;
    if (!atomic_compare_exchange_strong(&exclusion->holders[keyring], &own, 0) &&
        sound(exclusion, ticket))
        fail("keyring %u: %llx came in while %llx had the lock", keyring, (unsigned long long)own,
             (unsigned long long)ticket);
}

/* ---- the command line ---- */

static void (*mode_named(const char *name))(void)
{
    if (strcmp(name, "exercise") == 0)
        return storm_exercise;
    if (strcmp(name, "kill") == 0)
        return storm_kill;
    return strcmp(name, "step") == 0 ? storm_step : NULL;
}

static void remove_directory(void)
{
    DIR *entries = opendir(storm.directory);
    if (entries == NULL)
        return;
    const struct dirent *entry;
    while ((entry = readdir(entries)) != NULL) {
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            (void)unlinkat(dirfd(entries), entry->d_name, 0);
    }
    (void)closedir(entries);
    (void)rmdir(storm.directory);
}

static _Noreturn void run_to_the_end(void (*run)(void))
{
    (void)signal(SIGALRM, stuck);
    /* Grandchildren whose parent was killed come to us, not to the system's first process. */
    (void)prctl(PR_SET_CHILD_SUBREAPER, 1);
    run();
    exit(0);
}

/* However it ends, nothing is left behind: no process, no file. */
static int look_after(pid_t runner)
{
    int status = 0;
    int other;
    while (waitpid(runner, &status, 0) < 0 && errno == EINTR)
        continue;
    while (waitpid(-1, &other, 0) > 0)
        continue;
    remove_directory();
    if (WIFSIGNALED(status))
        (void)fprintf(stderr, "storm: died of signal %d\n", WTERMSIG(status));
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}

int main(int argc, char **argv)
{
    void (*run)(void) = argc == 3 || argc == 4 ? mode_named(argv[1]) : NULL;
    if (run == NULL) {
        (void)fprintf(stderr, "usage: storm exercise|kill|step SECONDS [SEED]\n");
        return 2;
    }
    storm.seconds = strtod(argv[2], NULL);
    storm.seed = argc == 4 ? strtoull(argv[3], NULL, 0) : (uint64_t)time(NULL);
    const char *parent = getenv("TMPDIR");
    char directory[512];
    (void)snprintf(directory, sizeof directory, "%s/storm-XXXXXX",
                   parent == NULL ? "/tmp" : parent);
    if (mkdtemp(directory) == NULL)
        fail("%s: %s", directory, strerror(errno));
    storm.directory = directory;
    (void)prctl(PR_SET_CHILD_SUBREAPER, 1);
    pid_t runner = fork_child(UINT64_MAX);
    if (runner == 0)
        run_to_the_end(run);
    return look_after(runner);
}
