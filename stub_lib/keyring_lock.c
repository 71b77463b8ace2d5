/*
 * keyring_lock.c: the lock of a keyring, one word that names its owner. A dead owner's word is as
 * good as none: whoever comes next replaces it.
 *
 * SPDX-License-Identifier: MIT
 */
#include "keyring_lock.h"

#include "registry.h"

/* `waiting` is a flag and not a count, for a waiter that is killed would leave a count that is
   never zero again. The price: who waited and got the lock sets it for those still asleep. */
static void wake(struct state_keyring *keyring)
{
    if (atomic_load(&keyring->waiting) != 0) {
        atomic_store(&keyring->waiting, 0);
        atomic_fetch_add(&keyring->sequence, 1U);
        platform_wake_one(&keyring->sequence);
    }
}

/* What the switches say to a lock call that finds this living owner. */
enum answer { ANSWER_WAIT, ANSWER_GRANTED, ANSWER_ERROR };

static enum answer ask_switches(struct state_file *file, uint64_t owner)
{
    struct state_switches *switches = &file->state->switches;
    if (owner != file->self)
        return atomic_load(&switches->contention) == CONTENTION_ERROR ? ANSWER_ERROR : ANSWER_WAIT;
    switch (atomic_load(&switches->relock)) {
    case RELOCK_WAIT:
        return ANSWER_WAIT;
    case RELOCK_ERROR:
        return ANSWER_ERROR;
    default:
        return ANSWER_GRANTED;
    }
}

static bool lock_contended(struct state_file *file, struct state_keyring *keyring,
                           bool (*interrupted)(void))
{
    bool waited = false;
    while (!interrupted()) {
        uint32_t sequence = atomic_load(&keyring->sequence);
        uint64_t owner = atomic_load(&keyring->owner);
        if (owner == 0 || !registry_alive(file, owner)) {
            if (!atomic_compare_exchange_strong(&keyring->owner, &owner, file->self))
                continue;
            if (waited)
                atomic_store(&keyring->waiting, 1U);
            return true;
        }
        enum answer answer = ask_switches(file, owner);
        if (answer != ANSWER_WAIT)
            return answer == ANSWER_GRANTED;
        /* Either the unlocking call sees the flag, or we see here that it has unlocked. */
        atomic_store(&keyring->waiting, 1U);
        if (atomic_load(&keyring->owner) == owner)
            platform_wait(&keyring->sequence, sequence, KEYRING_WAIT_MS);
        waited = true;
    }
    return false;
}

bool keyring_lock(struct state_file *file, struct state_keyring *keyring,
                  bool (*interrupted)(void))
{
    uint64_t nobody = 0;
    if (atomic_compare_exchange_strong(&keyring->owner, &nobody, file->self))
        return true;
    return lock_contended(file, keyring, interrupted);
}

bool keyring_try_lock(struct state_file *file, struct state_keyring *keyring)
{
    uint64_t owner = atomic_load(&keyring->owner);
    if (owner != 0 && (owner == file->self || registry_alive(file, owner)))
        return false;
    return atomic_compare_exchange_strong(&keyring->owner, &owner, file->self);
}

bool keyring_unlock(struct state_file *file, struct state_keyring *keyring)
{
    uint32_t check = atomic_load_explicit(&file->state->switches.unlock_owner,
                                          memory_order_relaxed);
    if (check == UNLOCK_OWNER_CHECKED) {
        uint64_t owner = file->self;
        if (!atomic_compare_exchange_strong(&keyring->owner, &owner, 0))
            return false;
    } else {
        atomic_store(&keyring->owner, 0);
    }
    wake(keyring);
    return true;
}

void keyring_release(struct state_keyring *keyring, uint64_t owner)
{
    if (atomic_compare_exchange_strong(&keyring->owner, &owner, 0))
        wake(keyring);
}

void keyring_release_all(struct state_file *file, uint64_t owner)
{
    for (uint32_t i = 0; i < file->keyring_count; i++) {
        struct state_keyring *keyring = &file->state->keyrings[i];
        if (atomic_load_explicit(&keyring->owner, memory_order_relaxed) == owner)
            keyring_release(keyring, owner);
    }
}
