/*
 * storm.h: what the ways of tormenting the stand-in share.
 *
 * SPDX-License-Identifier: MIT
 */
#ifndef STORM_H
#define STORM_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* A fork while another thread is in malloc() leaves the child an allocator that is locked for ever,
   if it is a sanitizer's; the system's own knows about forks. And it takes long. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define STORM_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define STORM_SANITIZED 1
#endif
#endif
#ifndef STORM_SANITIZED
#define STORM_SANITIZED 0
#endif

/* ---- the run ---- */

struct storm {
    double seconds;
    uint64_t seed;
    const char *directory; /* for files; it goes with everything in it */
};

extern struct storm storm;

/* Each runs for storm.seconds and prints one line of figures, or ends the process with fail(). */
void storm_exercise(void);
void storm_kill(void);
void storm_step(void);

/* A violation: says what is wrong and ends this process. Its parent notices, and does the same. */
_Noreturn void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* What this process says it was doing, should it have to be stopped after so many seconds. */
void watch_for(unsigned int seconds, const char *what);

double now(void); /* seconds */
void nap(uint64_t microseconds);
char *path_in_directory(const char *name); /* free() it */

/* Memory that children share. */
void *shared_memory(size_t size);

/* Forks. The child dies with its parent, and has its own random numbers. */
pid_t fork_child(uint64_t stream);
/* Its exit status has to be 0. */
void expect_success(int status, const char *who);

/* ---- random numbers ---- */

extern _Thread_local uint64_t random_state;
uint64_t random_next(void);
uint32_t random_below(uint32_t bound);
static inline bool one_in(uint32_t n)
{
    return random_below(n) == 0;
}

/* ---- exclusion ---- */

/* Do two ever hold the same lock? A party is a process that takes locks. Its locks may vanish at a
   break: when it is disconnected, killed, or finalises. What it took before a break says nothing
   from the beginning of the break on; what it takes during one, neither. */
#define PARTIES 16
#define EXCLUSIVE_MAX 64

struct exclusion {
    struct {
        _Atomic uint32_t breaks_begun;
        _Atomic uint32_t breaks_done;
    } parties[PARTIES];
    _Atomic uint64_t holders[EXCLUSIVE_MAX]; /* the ticket of the holder; 0: none */
    _Atomic uint64_t sections;               /* how often the lock was taken */
};

void break_begin(struct exclusion *exclusion, unsigned int party);
void break_end(struct exclusion *exclusion, unsigned int party);
/* To be taken before the lock call. */
uint64_t take_ticket(struct exclusion *exclusion, unsigned int party, unsigned int thread);
/* After the lock call has answered CKR_OK, and before the unlock call. */
void section_enter(struct exclusion *exclusion, unsigned int keyring, uint64_t ticket);
void section_leave(struct exclusion *exclusion, unsigned int keyring, uint64_t ticket);

#endif
