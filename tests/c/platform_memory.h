/*
 * platform_memory.h: what a harness can do with the system of platform_memory.c.
 *
 * SPDX-License-Identifier: MIT
 */
#ifndef PLATFORM_MEMORY_H
#define PLATFORM_MEMORY_H

#include "platform.h"

/* The harness sets these at will. */
struct memory_system {
    int64_t pid;            /* the process that all calls come from */
    const char *state_path; /* LUNA_STUB_STATE; NULL: not set */
    uint32_t fails_in;      /* n: the n-th call that can fail does; 0: none does */
    bool may_block;         /* a call that sleeps waits for something; else it is a latency */
    void (*blocked)(void);  /* a call waits: the harness has to end the wait */
};

extern struct memory_system memory_system;

/* No processes, files, locks. */
void memory_reset(void);

/* Makes the file, or replaces it, with nothing behind its last byte. */
uint8_t *memory_put_file(const char *path, const void *content, size_t size);
/* NULL: there is none. While no process has the file open, only this makes it accessible. */
uint8_t *memory_file(const char *path, size_t *size);
void memory_remove_file(const char *path);

/* This process goes on as its child, with another process ID; the parent keeps what it has. */
void memory_fork(int64_t child);
/* Its openings and locks are gone. */
void memory_kill(int64_t pid);

/* Between two calls: nothing may be left locked, but for the life of applications. */
void memory_check_idle(void);

/* Ends the program with a crash, for what must not be. */
_Noreturn void memory_fail(const char *what);

#endif
