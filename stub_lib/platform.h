/*
 * platform.h: everything the stand-in asks of the operating system. Another system needs another
 * platform_*.c and nothing else.
 *
 * SPDX-License-Identifier: MIT
 */
#ifndef STUB_PLATFORM_H
#define STUB_PLATFORM_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ---- mutexes of this process ---- */

#if defined(_WIN32)
typedef struct platform_mutex {
    void *slim; /* an SRWLOCK, without the header that would bring in everything */
} platform_mutex;
#define PLATFORM_MUTEX_INITIALIZER {NULL}
#else
#include <pthread.h>
typedef pthread_mutex_t platform_mutex;
#define PLATFORM_MUTEX_INITIALIZER PTHREAD_MUTEX_INITIALIZER
#endif

void platform_mutex_lock(platform_mutex *mutex);
void platform_mutex_unlock(platform_mutex *mutex);
/* Makes it free, also if it is held: after a fork the holder may be a thread that no longer exists. */
void platform_mutex_reset(platform_mutex *mutex);

/* ---- a file mapped into memory and shared with other processes ---- */

struct platform_file {
    intptr_t handle; /* a file descriptor, or a HANDLE */
    void *memory;
    size_t size;
    struct platform_file *next; /* all open ones, for the child of a fork to close */
    struct platform_file *previous;
};

/* 0 or an errno value; EBADMSG for something that is not a regular file or is empty. */
int platform_open(const char *path, struct platform_file *file);
void platform_close(struct platform_file *file);
/* Makes the file whole or not at all, readable by its owner only; EEXIST when there is one. */
int platform_create(const char *path, size_t size, void (*fill)(void *memory, const void *context),
                    const void *context);

/* Exclusive locks on single bytes of the file. They belong to the platform_file, so neither another
   platform_file of this process nor its closing disturbs them, and the system drops them when the
   process dies. `wait` false: EAGAIN when another platform_file holds it. */
int platform_byte_lock(struct platform_file *file, uint64_t offset, bool wait);
void platform_byte_unlock(struct platform_file *file, uint64_t offset);
/* Whether another platform_file holds it. True also if the system cannot tell, so that nothing is taken
   from a process that lives. Not to be asked of a byte that this one has locked: it could lose that
   lock. */
bool platform_byte_locked(struct platform_file *file, uint64_t offset);

/* ---- waiting ---- */

/* Sleeps while *word == expected, at most so long; may return early for no reason. */
void platform_wait(_Atomic uint32_t *word, uint32_t expected, uint32_t milliseconds);
void platform_wake_one(_Atomic uint32_t *word);
void platform_sleep(uint64_t microseconds);
uint64_t platform_monotonic(void); /* nanoseconds since some moment */
uint64_t platform_wall_clock(void); /* nanoseconds since 1970-01-01 UTC */

/* ---- the process ---- */

int64_t platform_pid(void);
int64_t platform_thread(void); /* as the system numbers it, and threading.get_native_id() */
/* The value of an environment variable, in the encoding of paths; free() it. NULL: not set. */
char *platform_environment(const char *name);
/* Whether there is such a file of the system's administrator, or may be one that cannot be seen. */
bool platform_is_roots(const char *path);
bool platform_random(void *buffer, size_t size);
/* Called at every fork: before it, after it in the parent, and in the child when all platform_files are
   closed there. Forks do not overlap. */
void platform_on_fork(void (*before)(void), void (*parent)(void), void (*child)(void));

/* ---- another module, and what it is configured by ---- */

/* A function of a shared library, which stays loaded. NULL, with the reason in words. */
typedef void (*platform_function)(void);
platform_function platform_load(const char *path, const char *function, const char **reason);
/* To be freed; NULL: there is no such file. */
char *platform_absolute(const char *path);
/* 0 or an errno value. For their owner only; to make a directory that exists is no error. */
int platform_make_directory(const char *path);
int platform_write(const char *path, const char *text);
/* NULL: it is not to be set. */
void platform_set_environment(const char *name, const char *value);

#endif
