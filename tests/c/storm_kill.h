/*
 * storm_kill.h: what victims and those who kill them share.
 *
 * Before each write a victim notes what it is about to write, and after it that it is done. So its
 * lane, the process that forked and killed it, knows of each token: it has these values, or if a
 * write was under way, these or those.
 *
 * SPDX-License-Identifier: MIT
 */
#ifndef STORM_KILL_H
#define STORM_KILL_H

#include "storm.h"
#include "storm_client.h"

#define WRITERS 2U /* lanes with victims that write */
#define LANES (WRITERS + 1U) /* and one with victims that create */
#define TOKENS 3U /* of a lane; no other lane touches them */
#define COMMON 2U /* keyrings that all lanes lock and claim */
#define KEYRINGS (COMMON + WRITERS * TOKENS)
#define FIRST_SLOT 1U
#define CLUSTER_ID "kill"

/* A value that a victim writes: it is `settled`, or, while `wanted` differs, either of the two. */
struct value {
    _Atomic uint32_t settled;
    _Atomic uint32_t wanted;
};

struct lane {
    struct value tokens[TOKENS];
    struct value fault;
    struct value latency;
    _Atomic bool file_settled; /* the file to be created is there */
    _Atomic bool begun; /* its victim has initialised the library */
    _Atomic uint64_t writes;
};

struct killing {
    struct exclusion exclusion;
    _Atomic bool stop;
    struct lane lanes[LANES];
    _Atomic uint64_t kills;
    _Atomic uint64_t in_a_write; /* victims that were killed between `wanted` and `settled` */
    _Atomic uint64_t new_values; /* of those, in how many cases the new value was there */
    _Atomic uint64_t locks_left; /* that were set when their owner was killed */
    _Atomic uint64_t created;    /* files that were found after a victim's death */
    _Atomic uint64_t unfinished; /* ... and such as were not yet whole */
    _Atomic uint64_t survivors;  /* children of victims that lived on while we looked */
};

extern struct killing *killing;
extern char *cluster_path;
extern char *created_path; /* of what victims create */
/* This process's, whether it is the lane or its victim. */
extern unsigned int lane_number;
extern struct lane *lane;

#define VICTIM_PARTY (2U * lane_number)
#define LANE_PARTY (2U * lane_number + 1U)

static inline unsigned int keyring_of(unsigned int token)
{
    return COMMON + lane_number * TOKENS + token;
}

static inline CK_SLOT_ID slot_of(unsigned int keyring)
{
    return FIRST_SLOT + keyring;
}

/* Each lane has a function of its own, so that its rules come from its own victim. */
static inline enum function_id lane_function(void)
{
    return lane_number == 0 ? FUNCTION_C_DigestInit : FUNCTION_C_SignInit;
}

/* C_Finalize and C_Initialize. */
void start_over(void);
/* They write, or create and write, until they are killed. */
_Noreturn void be_writer(void);
_Noreturn void be_creator(void);

#endif
