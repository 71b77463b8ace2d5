/*
 * registry.h: the cluster's table of applications: which are in it, which live, which lost their
 * connection. An application is named by the word that its locks hold when they were granted once.
 *
 * SPDX-License-Identifier: MIT
 */
#ifndef STUB_REGISTRY_H
#define STUB_REGISTRY_H

#include "state.h"

/* In a lock's word: how often it was granted beyond the first time, up to so many times. */
#define REGISTRY_GRANT UINT64_C(0x10000)
#define REGISTRY_GRANTS UINT64_C(0xFFFF0000)

/* A lock's word without its count. */
static inline uint64_t registry_application(uint64_t owner)
{
    return owner & ~REGISTRY_GRANTS;
}

static inline uint32_t registry_index(uint64_t owner)
{
    return (uint32_t)registry_application(owner) - 1U;
}

static inline uint32_t registry_generation(uint64_t owner)
{
    return (uint32_t)(owner >> 32);
}

/* Makes this opening of the file an application: sets file->self. False: the table is full. */
bool registry_enter(struct state_file *file);
void registry_leave(struct state_file *file);

/* Whether its process lives, with its connection. Asks the system, unless the word itself says no. */
bool registry_alive(struct state_file *file, uint64_t owner);
int64_t registry_pid(struct state_file *file, uint64_t owner);

/* The word of the application in this entry of the table; 0: it has no living one. */
uint64_t registry_at(struct state_file *file, uint32_t index);
void registry_disconnect(struct state_file *file, uint64_t owner);
void registry_restart(struct state_file *file, uint64_t owner);

/* Whether this application has a session with the keyring's token. To set that, and to ask whether any
   application has one, needs state_write_begin(). */
void registry_set_in_session(struct state_file *file, uint32_t keyring, bool in_session);
bool registry_any_in_session(struct state_file *file, uint32_t keyring);
/* So does this: no application has one any more. */
void registry_end_sessions(struct state_file *file, uint32_t keyring);

#endif
