/*
 * keyring_lock.c: the lock of a keyring, one word that names its owner and counts its grants. If the
 * owner is dead, the lock is free: the next lock call replaces the word. The grants are always counted;
 * a switch says whether an unlock call takes off one grant or all.
 *
 * SPDX-License-Identifier: MIT
 */
#include "keyring_lock.h"

#include "registry.h"

/* `waiting` is a flag and not a count, because a waiter that is killed would leave a count that is
   never zero again. So a waiter that has got the lock sets the flag for waiters that still sleep. */
static void wake(struct state_keyring *keyring)
{
    if (atomic_load(&keyring->waiting) != 0) {
        atomic_store(&keyring->waiting, 0);
        atomic_fetch_add(&keyring->sequence, 1U);
        platform_wake_one(&keyring->sequence);
    }
}

/* Whether the device takes this living owner for the application that calls. With one application ID
   for all, it does not keep their processes apart. */
static bool is_own(struct state_file *file, uint64_t owner)
{
    return registry_application(owner) == file->self ||
           atomic_load(&file->state->switches.application) == APPLICATION_SHARED;
}

/* What the switches say to a lock call that finds this living owner. */
enum answer { ANSWER_WAIT, ANSWER_GRANTED, ANSWER_ERROR };

static enum answer ask_switches(struct state_file *file, uint64_t owner)
{
    struct state_switches *switches = &file->state->switches;
    if (!is_own(file, owner))
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

/* A count that is full stays so. False: the word has changed meanwhile. */
static bool grant_again(struct state_keyring *keyring, uint64_t owner)
{
    bool full = (owner & REGISTRY_GRANTS) == REGISTRY_GRANTS;
    uint64_t next = full ? owner : owner + REGISTRY_GRANT;
    return atomic_compare_exchange_strong(&keyring->owner, &owner, next);
}

static uint64_t one_grant_less(uint64_t owner)
{
    return (owner & REGISTRY_GRANTS) != 0 ? owner - REGISTRY_GRANT : 0;
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
        if (answer == ANSWER_ERROR)
            return false;
        if (answer == ANSWER_GRANTED) {
            if (grant_again(keyring, owner))
                return true;
            continue;
        }
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
    uint64_t no_owner = 0;
    if (atomic_compare_exchange_strong(&keyring->owner, &no_owner, file->self))
        return true;
    return lock_contended(file, keyring, interrupted);
}

/* A token that was granted again already is not given once more: so a client that asks again gets a
   free token, or the answer that there is none. */
static bool may_claim_again(struct state_file *file, uint64_t owner)
{
    struct state_switches *switches = &file->state->switches;
    return (owner & REGISTRY_GRANTS) == 0 && is_own(file, owner) &&
           atomic_load(&switches->regrant) == REGRANT_ON &&
           atomic_load(&switches->relock) == RELOCK_GRANTED;
}

bool keyring_claim(struct state_file *file, struct state_keyring *keyring)
{
    uint64_t owner = atomic_load(&keyring->owner);
    if (owner == 0 || !registry_alive(file, owner))
        return atomic_compare_exchange_strong(&keyring->owner, &owner, file->self);
    return may_claim_again(file, owner) && grant_again(keyring, owner);
}

void keyring_unclaim(struct state_file *file, struct state_keyring *keyring)
{
    uint64_t owner = atomic_load(&keyring->owner);
    uint64_t next;
    do {
        if (owner == 0 || !is_own(file, owner))
            return;
        next = one_grant_less(owner);
    } while (!atomic_compare_exchange_weak(&keyring->owner, &owner, next));
    if (next == 0)
        wake(keyring);
}

static bool has_lock(struct state_file *file, uint64_t owner)
{
    return owner != 0 && is_own(file, owner) && registry_alive(file, owner);
}

bool keyring_unlock(struct state_file *file, struct state_keyring *keyring)
{
    struct state_switches *switches = &file->state->switches;
    bool checked = atomic_load_explicit(&switches->unlock_owner, memory_order_relaxed) ==
                   UNLOCK_OWNER_CHECKED;
    bool counted = atomic_load_explicit(&switches->grants, memory_order_relaxed) == GRANTS_COUNTED;
    uint64_t owner = atomic_load(&keyring->owner);
    uint64_t next;
    do {
        if (checked && !has_lock(file, owner))
            return false;
        next = counted ? one_grant_less(owner) : 0;
    } while (!atomic_compare_exchange_weak(&keyring->owner, &owner, next));
    if (next == 0)
        wake(keyring);
    return true;
}

void keyring_release(struct state_keyring *keyring, uint64_t application)
{
    uint64_t owner = atomic_load(&keyring->owner);
    do {
        if (registry_application(owner) != application)
            return;
    } while (!atomic_compare_exchange_weak(&keyring->owner, &owner, 0));
    wake(keyring);
}

void keyring_release_all(struct state_file *file, uint64_t application)
{
    for (uint32_t i = 0; i < file->keyring_count; i++)
        keyring_release(&file->state->keyrings[i], application);
}
