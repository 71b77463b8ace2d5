/*
 * keyring_lock.h: the lock of a keyring. Uncontended it costs one atomic operation each way.
 *
 * SPDX-License-Identifier: MIT
 */
#ifndef STUB_KEYRING_LOCK_H
#define STUB_KEYRING_LOCK_H

#include "state.h"

/* A blocked lock call looks this often at whether the owner lives and whether to give up. */
#define KEYRING_WAIT_MS 20U

/* For file->self, as the switches say. False: refused, or given up because `interrupted`. */
bool keyring_lock(struct state_file *file, struct state_keyring *keyring,
                  bool (*interrupted)(void));
/* For a claim: succeeds if no living application has the lock, or if this one has it and the switches
   grant it again; never waits. */
bool keyring_claim(struct state_file *file, struct state_keyring *keyring);
/* Undoes a keyring_claim() that has granted it, and that grant alone. */
void keyring_unclaim(struct state_file *file, struct state_keyring *keyring);
/* As the switches say. False: refused. */
bool keyring_unlock(struct state_file *file, struct state_keyring *keyring);

/* Takes off the lock, however often it was granted, if it is this application's, and all locks of an
   application. */
void keyring_release(struct state_keyring *keyring, uint64_t application);
void keyring_release_all(struct state_file *file, uint64_t application);

#endif
