/*
 * platform_posix.c: platform.h on Linux and other systems with open file description locks.
 *
 * SPDX-License-Identifier: MIT
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* open file description locks */
#endif
#define _FILE_OFFSET_BITS 64
#include "platform.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#ifdef __linux__
#include <linux/futex.h>
#include <sys/random.h>
#include <sys/syscall.h>
#endif

/* The older POSIX locks vanish when any descriptor of the file is closed anywhere in the process,
   so they are no substitute. */
#ifndef F_OFD_SETLK
#error "open file description locks are needed"
#endif

/* ---- mutexes of this process ---- */

void platform_mutex_lock(platform_mutex *mutex)
{
    (void)pthread_mutex_lock(mutex);
}

void platform_mutex_unlock(platform_mutex *mutex)
{
    (void)pthread_mutex_unlock(mutex);
}

void platform_mutex_reset(platform_mutex *mutex)
{
    *mutex = (platform_mutex)PLATFORM_MUTEX_INITIALIZER;
}

/* ---- open files, and what a fork does to them ---- */

/* Asking the system each time would be most of what a logged call costs. 0: not asked yet. */
static _Atomic int64_t process_number;
static _Thread_local int64_t thread_number;

static platform_mutex files_mutex = PLATFORM_MUTEX_INITIALIZER;
static struct platform_file *files;
static void (*fork_before)(void);
static void (*fork_parent)(void);
static void (*fork_child)(void);

/* A fork between open() and the entry in the list would give the child a descriptor that is never
   closed there, and with it the parent's locks. */
static void before_fork(void)
{
    platform_mutex_lock(&files_mutex);
    if (fork_before != NULL)
        fork_before();
}

static void after_fork_in_parent(void)
{
    if (fork_parent != NULL)
        fork_parent();
    platform_mutex_unlock(&files_mutex);
}

/* The mapping refers to the open file as much as the descriptor does: while one of the two is left
   in the child, the parent's locks outlive the parent. */
static void after_fork_in_child(void)
{
    while (files != NULL) {
        struct platform_file *file = files;
        files = file->next;
        (void)munmap(file->memory, file->size);
        (void)close((int)file->handle);
        file->memory = NULL;
        file->handle = -1;
    }
    atomic_store(&process_number, 0);
    thread_number = 0;
    platform_mutex_unlock(&files_mutex); /* this thread took it, before the fork */
    if (fork_child != NULL)
        fork_child();
}

__attribute__((constructor)) static void watch_forks(void)
{
    (void)pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
}

void platform_on_fork(void (*before)(void), void (*parent)(void), void (*child)(void))
{
    platform_mutex_lock(&files_mutex);
    fork_before = before;
    fork_parent = parent;
    fork_child = child;
    platform_mutex_unlock(&files_mutex);
}

/* ---- files ---- */

static int map_file(int fd, struct platform_file *file)
{
    struct stat status;
    if (fstat(fd, &status) != 0)
        return errno;
    if (!S_ISREG(status.st_mode) || status.st_size <= 0)
        return EBADMSG;
    /* Its owner can change it while it is in use. */
    if (status.st_uid != 0 && status.st_uid != geteuid())
        return EPERM;
    file->size = (size_t)status.st_size;
    file->memory = mmap(NULL, file->size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    return file->memory == MAP_FAILED ? errno : 0;
}

int platform_open(const char *path, struct platform_file *file)
{
    platform_mutex_lock(&files_mutex);
    int fd = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK);
    int error = fd < 0 ? errno : map_file(fd, file);
    if (error == 0) {
        file->handle = fd;
        file->previous = NULL;
        file->next = files;
        if (files != NULL)
            files->previous = file;
        files = file;
    } else if (fd >= 0) {
        (void)close(fd);
    }
    platform_mutex_unlock(&files_mutex);
    return error;
}

void platform_close(struct platform_file *file)
{
    platform_mutex_lock(&files_mutex);
    if (file->next != NULL)
        file->next->previous = file->previous;
    if (file->previous != NULL)
        file->previous->next = file->next;
    else
        files = file->next;
    (void)munmap(file->memory, file->size);
    (void)close((int)file->handle);
    file->memory = NULL;
    file->handle = -1;
    platform_mutex_unlock(&files_mutex);
}

static int fill_file(int fd, size_t size, void (*fill)(void *memory, const void *context),
                     const void *context)
{
    /* Allocated now, for a full disk would otherwise be a SIGBUS on the first store. */
    int error = posix_fallocate(fd, 0, (off_t)size);
    if (error != 0)
        return error;
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED)
        return errno;
    fill(memory, context);
    (void)munmap(memory, size);
    return 0;
}

int platform_create(const char *path, size_t size, void (*fill)(void *memory, const void *context),
                    const void *context)
{
    struct stat status;
    if (lstat(path, &status) == 0)
        return EEXIST;
    size_t room = strlen(path) + sizeof ".XXXXXX";
    char *temporary = malloc(room);
    if (temporary == NULL)
        return ENOMEM;
    (void)snprintf(temporary, room, "%s.XXXXXX", path);
    int fd = mkostemp(temporary, O_CLOEXEC);
    int error = fd < 0 ? errno : 0;
    if (fd >= 0) {
        error = fill_file(fd, size, fill, context);
        (void)close(fd);
        /* link() rather than rename(): it never replaces a file. */
        if (error == 0 && link(temporary, path) != 0)
            error = errno;
        (void)unlink(temporary);
    }
    free(temporary);
    return error;
}

/* ---- locks on bytes of the file ---- */

static struct flock one_byte(uint64_t offset, short type)
{
    struct flock lock;
    memset(&lock, 0, sizeof lock);
    lock.l_type = type;
    lock.l_whence = SEEK_SET;
    lock.l_start = (off_t)offset;
    lock.l_len = 1;
    return lock;
}

int platform_byte_lock(struct platform_file *file, uint64_t offset, bool wait)
{
    struct flock lock = one_byte(offset, F_WRLCK);
    while (fcntl((int)file->handle, wait ? F_OFD_SETLKW : F_OFD_SETLK, &lock) != 0) {
        if (errno != EINTR)
            return errno == EACCES ? EAGAIN : errno;
    }
    return 0;
}

void platform_byte_unlock(struct platform_file *file, uint64_t offset)
{
    struct flock lock = one_byte(offset, F_UNLCK);
    (void)fcntl((int)file->handle, F_OFD_SETLK, &lock);
}

bool platform_byte_locked(struct platform_file *file, uint64_t offset)
{
    struct flock lock = one_byte(offset, F_WRLCK);
    return fcntl((int)file->handle, F_OFD_GETLK, &lock) != 0 || lock.l_type != F_UNLCK;
}

/* ---- waiting ---- */

void platform_sleep(uint64_t microseconds)
{
    struct timespec time = {(time_t)(microseconds / 1000000U),
                            (long)(microseconds % 1000000U) * 1000L};
    (void)nanosleep(&time, NULL);
}

static uint64_t read_clock(clockid_t clock)
{
    struct timespec now;
    (void)clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000U + (uint64_t)now.tv_nsec;
}

uint64_t platform_monotonic(void)
{
    return read_clock(CLOCK_MONOTONIC);
}

uint64_t platform_wall_clock(void)
{
    return read_clock(CLOCK_REALTIME);
}

#ifdef __linux__

void platform_wait(_Atomic uint32_t *word, uint32_t expected, uint32_t milliseconds)
{
    struct timespec timeout = {(time_t)(milliseconds / 1000U),
                               (long)(milliseconds % 1000U) * 1000000L};
    (void)syscall(SYS_futex, word, FUTEX_WAIT, expected, &timeout, NULL, 0);
}

void platform_wake_one(_Atomic uint32_t *word)
{
    (void)syscall(SYS_futex, word, FUTEX_WAKE, 1, NULL, NULL, 0);
}

#else

void platform_wait(_Atomic uint32_t *word, uint32_t expected, uint32_t milliseconds)
{
    if (atomic_load(word) == expected)
        platform_sleep(milliseconds > 0 ? 1000U : 0U);
}

void platform_wake_one(_Atomic uint32_t *word)
{
    (void)word;
}

#endif

/* ---- the process ---- */

int64_t platform_pid(void)
{
    int64_t number = atomic_load_explicit(&process_number, memory_order_relaxed);
    if (number == 0) {
        number = (int64_t)getpid();
        atomic_store_explicit(&process_number, number, memory_order_relaxed);
    }
    return number;
}

int64_t platform_thread(void)
{
    if (thread_number == 0) {
#ifdef __linux__
        thread_number = (int64_t)syscall(SYS_gettid);
#else
        uint64_t number = 0;
        (void)pthread_threadid_np(NULL, &number);
        thread_number = (int64_t)number;
#endif
    }
    return thread_number;
}

char *platform_environment(const char *name)
{
    const char *value = getenv(name);
    return value == NULL ? NULL : strdup(value);
}

bool platform_is_roots(const char *path)
{
    struct stat status;
    if (stat(path, &status) != 0)
        return errno != ENOENT && errno != ENOTDIR;
    return status.st_uid == 0;
}

bool platform_random(void *buffer, size_t size)
{
#ifdef __linux__
    unsigned char *next = buffer;
    while (size > 0) {
        ssize_t got = getrandom(next, size, 0);
        if (got < 0 && errno != EINTR)
            return false;
        if (got > 0) {
            next += got;
            size -= (size_t)got;
        }
    }
#else
    arc4random_buf(buffer, size);
#endif
    return true;
}
