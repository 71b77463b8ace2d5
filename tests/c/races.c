/*
 * races.c: moments that are too short for a test in Python. Each way answers on stdout how often it
 * went wrong, and 0 is right.
 *
 *     races rules|forks|finalise|disconnect STATE_FILE
 *
 * SPDX-License-Identifier: MIT
 */
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "control.h"
#include "cryptoki_v2.h"
#include "platform.h"

#define THREADS 6
#define RULES 5000U
#define FIRST_RV 0x80000000U
#define FORKS 20
#define FINALISATIONS 60

static const char *path;
static atomic_bool stop;
static atomic_uint struck[RULES];

static void check(bool fine, const char *what)
{
    if (!fine) {
        (void)fprintf(stderr, "races: %s\n", what);
        exit(1);
    }
}

static void *call_until_stopped(void *unused)
{
    (void)unused;
    CK_INFO info;
    while (!atomic_load(&stop)) {
        CK_RV rv = C_GetInfo(&info);
        if (rv >= FIRST_RV && rv < FIRST_RV + RULES)
            atomic_fetch_add(&struck[rv - FIRST_RV], 1U);
    }
    return NULL;
}

static void start_callers(pthread_t threads[THREADS])
{
    for (int i = 0; i < THREADS; i++)
        check(pthread_create(&threads[i], NULL, call_until_stopped, NULL) == 0, "pthread_create");
}

static void stop_callers(pthread_t threads[THREADS])
{
    atomic_store(&stop, true);
    for (int i = 0; i < THREADS; i++)
        (void)pthread_join(threads[i], NULL);
}

/* Rules that strike once, replaced while calls run: how many struck more often? */
static unsigned int rules(void)
{
    pthread_t threads[THREADS];
    check(C_Initialize(NULL) == CKR_OK, "C_Initialize");
    start_callers(threads);
    for (unsigned int i = 0; i < RULES; i++) {
        const luna_stub_rule rule = {.rv = FIRST_RV + i, .times = 1, .every = 1, .probability = 1};
        check(luna_stub_fault(path, "C_GetInfo", &rule) == 0, "luna_stub_fault");
        platform_sleep(20U);
    }
    stop_callers(threads);
    unsigned int wrong = 0;
    unsigned int ever = 0;
    for (unsigned int i = 0; i < RULES; i++) {
        unsigned int times = atomic_load(&struck[i]);
        wrong += times > 1U;
        ever += times > 0U;
    }
    check(ever > RULES / 10U, "hardly a rule was met");
    return wrong;
}

/* Forks while threads call functions that are refused, as the library is not initialised: how many
   children hang? */
static unsigned int forks(void)
{
    pthread_t threads[THREADS];
    unsigned int wrong = 0;
    start_callers(threads);
    for (int i = 0; i < FORKS; i++) {
        pid_t child = fork();
        check(child >= 0, "fork");
        if (child == 0) {
            (void)alarm(2);
            _exit(C_Initialize(NULL) == CKR_OK && C_Finalize(NULL) == CKR_OK ? 0 : 1);
        }
        int status;
        check(waitpid(child, &status, 0) == child, "waitpid");
        wrong += status != 0;
    }
    stop_callers(threads);
    return wrong;
}

/* C_Finalize among threads that go on calling and are refused: it must not wait for a moment at
   which none of them calls. If it does, the test's own time limit ends this program. */
static unsigned int finalise(void)
{
    pthread_t threads[THREADS];
    start_callers(threads);
    for (int i = 0; i < FINALISATIONS; i++) {
        check(C_Initialize(NULL) == CKR_OK, "C_Initialize");
        platform_sleep(500U);
        check(C_Finalize(NULL) == CKR_OK, "C_Finalize");
    }
    stop_callers(threads);
    return 0;
}

/* The linker puts this before the true one: it is called by C_Initialize when the process takes a
   dead one's place in the table of applications. */
int64_t __real_platform_pid(void);
int64_t __wrap_platform_pid(void);
static int64_t dead;

int64_t __wrap_platform_pid(void)
{
    if (dead != 0)
        (void)luna_stub_disconnect(path, dead);
    return __real_platform_pid();
}

/* A dead process is disconnected while this one takes its place: is this one disconnected then? */
static unsigned int disconnect(void)
{
    check(luna_stub_switch(path, "log", "off") == 0, "luna_stub_switch");
    pid_t child = fork();
    check(child >= 0, "fork");
    if (child == 0) {
        (void)C_Initialize(NULL);
        (void)raise(SIGKILL);
    }
    check(waitpid(child, NULL, 0) == child, "waitpid");
    dead = child;
    check(C_Initialize(NULL) == CKR_OK, "C_Initialize");
    CK_INFO info;
    return C_GetInfo(&info) != CKR_OK;
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        unsigned int (*race)(void);
    } ways[] = {
        {"rules", rules}, {"forks", forks}, {"finalise", finalise}, {"disconnect", disconnect}};
    check(argc == 3, "usage: races rules|forks|finalise|disconnect STATE_FILE");
    path = argv[2];
    check(luna_stub_create(path, "c", "k", 1, 1, NULL, 0) == 0, "luna_stub_create");
    check(setenv("LUNA_STUB_STATE", path, 1) == 0, "setenv");
    for (size_t i = 0; i < sizeof ways / sizeof ways[0]; i++) {
        if (strcmp(argv[1], ways[i].name) == 0) {
            (void)printf("%u\n", ways[i].race());
            return 0;
        }
    }
    check(false, "no such way");
}
