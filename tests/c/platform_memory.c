/*
 * platform_memory.c: platform.h without an operating system, for a harness that wants every run to
 * be the same. A file is a buffer of exactly its size, time passes only when a call sleeps, and
 * processes are numbers. Only one thread: a lock that is not free would wait for ever, and is a
 * crash.
 *
 * SPDX-License-Identifier: MIT
 */
#include "platform_memory.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <sanitizer/asan_interface.h>

#include "random_number.h"
#include "state.h"

#define FILES 2U
#define OPENINGS 16U
#define LOCKS 64U
#define ALIGNMENT 64U
#define MOST_ROUNDS 1000U
/* A call that sleeps so often is waiting for what will not come. */
#define PATIENCE 3U
#define LATENCY_PATIENCE 200U

struct memory_system memory_system;

static struct file {
    const char *path; /* NULL: the place is free */
    uint8_t *content;
    size_t size;
    bool closed; /* for all processes; AddressSanitizer knows */
} files[FILES];

/* Of a process: the platform_file is gone when the process has forked and lives on as its child. */
static struct opening {
    struct file *file; /* NULL: the place is free */
    struct platform_file *platform_file;
    int64_t pid;
} openings[OPENINGS];

static struct lock {
    struct opening *opening; /* NULL: the place is free */
    uint64_t offset;
} locks[LOCKS];

static uint64_t clock_ns;
static uint64_t random_place;
static uint32_t rounds; /* sleeps within one call */
static uint32_t mutexes_held;
static void (*fork_child)(void);

_Noreturn void memory_fail(const char *what)
{
    (void)fprintf(stderr, "fuzz: %s\n", what);
    abort();
}

static bool fails(void)
{
    return memory_system.fails_in != 0 && --memory_system.fails_in == 0;
}

/* ---- mutexes ---- */

void platform_mutex_lock(platform_mutex *mutex)
{
    if (pthread_mutex_trylock(mutex) != 0)
        memory_fail("a mutex is locked twice");
    mutexes_held++;
}

void platform_mutex_unlock(platform_mutex *mutex)
{
    (void)pthread_mutex_unlock(mutex);
    mutexes_held--;
}

void platform_mutex_reset(platform_mutex *mutex)
{
    *mutex = (platform_mutex)PLATFORM_MUTEX_INITIALIZER;
}

/* ---- files ---- */

static struct file *find_file(const char *path)
{
    for (unsigned int i = 0; i < FILES; i++) {
        if (files[i].path != NULL && strcmp(files[i].path, path) == 0)
            return &files[i];
    }
    return NULL;
}

static bool is_open(const struct file *file)
{
    for (unsigned int i = 0; i < OPENINGS; i++) {
        if (openings[i].file == file && openings[i].platform_file != NULL)
            return true;
    }
    return false;
}

/* The memory of a file that no process has open may not be touched. */
static void set_closed(struct file *file, bool closed)
{
    if (closed && !file->closed)
        ASAN_POISON_MEMORY_REGION(file->content, file->size);
    if (!closed && file->closed)
        ASAN_UNPOISON_MEMORY_REGION(file->content, file->size);
    file->closed = closed;
}

static void drop_file(struct file *file)
{
    set_closed(file, false);
    free(file->content);
    *file = (struct file){NULL, NULL, 0, false};
}

static struct file *make_file(const char *path, size_t size)
{
    struct file *file = find_file(path);
    for (unsigned int i = 0; i < FILES && file == NULL; i++) {
        if (files[i].path == NULL)
            file = &files[i];
    }
    if (file == NULL)
        memory_fail("more files than there is room for");
    if (file->path == NULL || file->size != size) {
        if (file->path != NULL)
            drop_file(file);
        /* Not aligned_alloc(): it would have the size rounded up. */
        void *content = NULL;
        if (posix_memalign(&content, ALIGNMENT, size) != 0)
            memory_fail("out of memory");
        *file = (struct file){path, content, size, false};
    }
    set_closed(file, false);
    return file;
}

uint8_t *memory_put_file(const char *path, const void *content, size_t size)
{
    struct file *file = make_file(path, size);
    memcpy(file->content, content, size);
    return file->content;
}

uint8_t *memory_file(const char *path, size_t *size)
{
    struct file *file = find_file(path);
    if (file == NULL)
        return NULL;
    set_closed(file, false);
    *size = file->size;
    return file->content;
}

void memory_remove_file(const char *path)
{
    struct file *file = find_file(path);
    if (file != NULL)
        drop_file(file);
}

static struct opening *opening_of(const struct platform_file *platform_file)
{
    return &openings[platform_file->handle];
}

int platform_open(const char *path, struct platform_file *platform_file)
{
    struct file *file = find_file(path);
    if (file == NULL || fails())
        return file == NULL ? ENOENT : EACCES;
    if (file->size == 0)
        return EBADMSG;
    unsigned int place = 0;
    while (place < OPENINGS && openings[place].file != NULL)
        place++;
    if (place == OPENINGS)
        memory_fail("openings are left open");
    openings[place] = (struct opening){file, platform_file, memory_system.pid};
    platform_file->handle = (intptr_t)place;
    platform_file->memory = file->content;
    platform_file->size = file->size;
    set_closed(file, false);
    return 0;
}

static void drop_opening(struct opening *opening)
{
    for (unsigned int i = 0; i < LOCKS; i++) {
        if (locks[i].opening == opening)
            locks[i].opening = NULL;
    }
    struct file *file = opening->file;
    *opening = (struct opening){NULL, NULL, 0};
    set_closed(file, !is_open(file));
}

static void forget_memory(struct platform_file *platform_file)
{
    platform_file->handle = -1;
    platform_file->memory = NULL;
}

void platform_close(struct platform_file *platform_file)
{
    drop_opening(opening_of(platform_file));
    forget_memory(platform_file);
}

int platform_create(const char *path, size_t size, void (*fill)(void *memory, const void *context),
                    const void *context)
{
    if (find_file(path) != NULL || fails())
        return find_file(path) != NULL ? EEXIST : ENOSPC;
    struct file *file = make_file(path, size);
    memset(file->content, 0, size);
    fill(file->content, context);
    set_closed(file, true);
    return 0;
}

/* ---- locks on bytes ---- */

static struct lock *find_lock(const struct platform_file *platform_file, uint64_t offset)
{
    const struct file *file = opening_of(platform_file)->file;
    for (unsigned int i = 0; i < LOCKS; i++) {
        if (locks[i].opening != NULL && locks[i].opening->file == file && locks[i].offset == offset)
            return &locks[i];
    }
    return NULL;
}

int platform_byte_lock(struct platform_file *platform_file, uint64_t offset, bool wait)
{
    struct opening *opening = opening_of(platform_file);
    const struct lock *present = find_lock(platform_file, offset);
    if (fails())
        return ENOLCK;
    if (present != NULL && present->opening == opening)
        return 0;
    if (present != NULL && wait)
        memory_fail("a byte lock that is not free would wait for ever");
    if (present != NULL)
        return EAGAIN;
    unsigned int place = 0;
    while (place < LOCKS && locks[place].opening != NULL)
        place++;
    if (place == LOCKS)
        memory_fail("byte locks are left locked");
    locks[place] = (struct lock){opening, offset};
    return 0;
}

void platform_byte_unlock(struct platform_file *platform_file, uint64_t offset)
{
    struct lock *present = find_lock(platform_file, offset);
    if (present != NULL && present->opening == opening_of(platform_file))
        present->opening = NULL;
}

bool platform_byte_locked(struct platform_file *platform_file, uint64_t offset)
{
    const struct lock *present = find_lock(platform_file, offset);
    return (present != NULL && present->opening != opening_of(platform_file)) || fails();
}

/* ---- waiting ---- */

/* Each sleep within a call lasts twice as long as the one before, so that the longest latency is
   over soon. */
static void sleep_for(uint64_t nanoseconds, uint32_t patience)
{
    clock_ns += nanoseconds << (rounds < 36U ? rounds : 36U);
    if (++rounds >= MOST_ROUNDS)
        memory_fail("a call waits for ever");
    if (rounds >= patience && memory_system.blocked != NULL)
        memory_system.blocked();
}

void platform_wait(_Atomic uint32_t *word, uint32_t expected, uint32_t milliseconds)
{
    sleep_for(atomic_load(word) == expected ? milliseconds * UINT64_C(1000000) : 0, PATIENCE);
}

void platform_wake_one(_Atomic uint32_t *word)
{
    (void)word;
}

void platform_sleep(uint64_t microseconds)
{
    sleep_for(microseconds * 1000U, memory_system.may_block ? PATIENCE : LATENCY_PATIENCE);
}

uint64_t platform_monotonic(void)
{
    return clock_ns += 100U;
}

uint64_t platform_wall_clock(void)
{
    return platform_monotonic() + UINT64_C(1600000000000000000);
}

/* ---- processes ---- */

int64_t platform_pid(void)
{
    return memory_system.pid;
}

int64_t platform_thread(void)
{
    return memory_system.pid;
}

char *platform_environment(const char *name)
{
    bool set = strcmp(name, "LUNA_STUB_STATE") == 0 && memory_system.state_path != NULL;
    return set && !fails() ? strdup(memory_system.state_path) : NULL;
}

/* There is no file that forbids the stand-in. */
bool platform_is_roots(const char *path)
{
    (void)path;
    return false;
}

bool platform_random(void *buffer, size_t size)
{
    uint8_t *bytes = buffer;
    for (size_t i = 0; i < size; i++)
        bytes[i] = (uint8_t)random_number(1, random_place++);
    return !fails();
}

/* There is no backend to hold. */
void platform_on_fork(void (*before)(void), void (*parent)(void), void (*child)(void))
{
    (void)before;
    (void)parent;
    fork_child = child;
}

void memory_fork(int64_t child)
{
    for (unsigned int i = 0; i < OPENINGS; i++) {
        struct opening *opening = &openings[i];
        if (opening->file == NULL || opening->platform_file == NULL ||
            opening->pid != memory_system.pid)
            continue;
        forget_memory(opening->platform_file);
        opening->platform_file = NULL;
        set_closed(opening->file, !is_open(opening->file));
    }
    memory_system.pid = child;
    if (fork_child != NULL)
        fork_child();
}

void memory_kill(int64_t pid)
{
    for (unsigned int i = 0; i < OPENINGS; i++) {
        if (openings[i].file == NULL || openings[i].pid != pid)
            continue;
        if (openings[i].platform_file != NULL)
            forget_memory(openings[i].platform_file);
        drop_opening(&openings[i]);
    }
}

/* The files' memory is kept: to get it anew each time takes longer than a whole run. */
void memory_reset(void)
{
    for (unsigned int i = 0; i < OPENINGS; i++) {
        if (openings[i].file != NULL)
            drop_opening(&openings[i]);
    }
    memory_system = (struct memory_system){.pid = 1};
    fork_child = NULL;
    clock_ns = 0;
    random_place = 0;
    rounds = 0;
}

void memory_check_idle(void)
{
    rounds = 0;
    if (mutexes_held != 0)
        memory_fail("a mutex is left locked");
    for (unsigned int i = 0; i < LOCKS; i++) {
        if (locks[i].opening != NULL && locks[i].offset == STATE_WRITER_BYTE)
            memory_fail("the writer's lock is left locked");
    }
}
