/*
 * control.h: how a cluster is made, watched and made to misbehave from outside. Each function opens
 * the state file on its own, works while clients run, and disturbs no locks but those it names.
 * Plain C types throughout: it is called through ctypes too. Answers 0 or an errno value: ENOENT,
 * EACCES, ..., EBADMSG when the file is not a state file of this version.
 *
 * SPDX-License-Identifier: MIT
 */
#ifndef LUNA_STUB_CONTROL_H
#define LUNA_STUB_CONTROL_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(_WIN32)
#define LUNA_STUB_API __declspec(dllexport)
#else
#define LUNA_STUB_API __attribute__((visibility("default")))
#endif

typedef struct luna_stub_token {
    uint64_t slot_id;
    uint8_t label[32]; /* blank padded, as the next one */
    uint8_t original_label[32];
    int64_t owner_pid; /* of the process that has the lock; 0: not locked, or its owner is dead */
} luna_stub_token;

/* When and how a function misbehaves. */
typedef struct luna_stub_rule {
    uint64_t rv;         /* what a struck call answers */
    int64_t times;       /* how many calls it strikes, at most 2^32 - 1; -1: no limit; 0: none */
    uint64_t every;      /* n: only every n-th call; 1: each */
    double probability;  /* of those, only so many; 1: all */
    uint64_t seed;       /* the same seed, the same calls */
    uint32_t lost_reply; /* 0: a struck call has no effect. 1: it has its effect, and the caller is
                            told neither that nor the slot or session that it has got */
} luna_stub_rule;

/* A call in the log. */
typedef struct luna_stub_call {
    uint64_t number;      /* from 1, in the order in which the calls began */
    uint64_t began;       /* nanoseconds since 1970-01-01 UTC */
    uint64_t duration;    /* nanoseconds; all ones: it has not returned, and may never */
    const char *function; /* its name, constant */
    uint64_t slot_id;     /* all ones: none */
    uint64_t rv;          /* if it has returned */
    int64_t pid;
    int64_t thread; /* as the system numbers it */
} luna_stub_call;

/* A new cluster of 1 to 3500 keyrings, labelled `label` with 1, 2, ... appended (at most 32 bytes).
   cluster_id: 1 to 64 bytes. password: 8 to 255 bytes, which both roles of each keyring have, as the
   appliance makes them; NULL: the keyrings are not initialised, and the first C_InitToken sets the
   security officer's PIN. EEXIST: there is a file, and it stays as it is. EINVAL. */
LUNA_STUB_API int luna_stub_create(const char *path, const char *cluster_id, const char *label,
                                   uint32_t keyrings, uint64_t first_slot, const uint8_t *password,
                                   uint32_t password_length);

/* NUL-terminated. */
LUNA_STUB_API int luna_stub_cluster_id(const char *path, char cluster_id[65]);

/* Is this process an application of the cluster? ESRCH: of another one, or of none. */
LUNA_STUB_API int luna_stub_entered(const char *path);

/* For calls of the function by all applications, from now on; it replaces the function's present rule,
   and counts the calls from then on. ENOSYS: no such function. EINVAL: a number is out of range. */
LUNA_STUB_API int luna_stub_fault(const char *path, const char *function,
                                  const luna_stub_rule *rule);

/* Calls of the function (NULL: of every function) take so many microseconds longer, before their
   effect or, with `after` 1, after it, or both: from least to most, evenly distributed; the same
   seed, the same delays. ENOSYS: no such function. EINVAL: least is more than most, or after more
   than 1. */
LUNA_STUB_API int luna_stub_latency(const char *path, const char *function, uint64_t least,
                                    uint64_t most, uint64_t seed, uint32_t after);

/* contention=wait|error: a lock call on a token that another application has locked.
   relock=granted|wait|error: on a token that this application has locked.
   unlock_owner=unchecked|checked: an unlock call on a token that this application has not locked.
   regrant=on|off: whether a claim may return a token that this application has locked, which is then
   granted again. Only while relock=granted, and only one that was not granted again already, by a
   claim or a lock call.
   grants=once|counted: whether one unlock call takes off a lock that was granted several times, or
   one for each grant.
   identity=single|dual: whether both roles of a keyring have one password. single: what sets the PIN
   of one sets the other's; after C_InitToken, the user's PIN is the security officer's. dual:
   C_InitToken erases the user's PIN.
   pin_change=free|forced: whether a user has to change a PIN that C_InitPIN has set. forced: C_Login
   answers CKR_PIN_EXPIRED to the right PIN, until C_SetPIN.
   authentication=password|ped: ped: PINs are NULL and of length 0, and always right.
   application=process|shared: shared: all processes are one application to the device. A lock that
   one of them has is each one's own; it still goes with the process that it was first granted to.
   change_label=off|on: whether CA_ChangeLabel is supported.
   log=on|off: whether calls are logged.
   The first value is the default. EINVAL: anything else. */
LUNA_STUB_API int luna_stub_switch(const char *path, const char *name, const char *value);

/* How long a PIN that is set from now on has to be: 1 to 255 bytes. In a new cluster 8 to 255. EINVAL:
   out of range, or the shortest is longer than the longest. */
LUNA_STUB_API int luna_stub_pin_lengths(const char *path, uint32_t least, uint32_t most);

/* The keyring is initialised and has these PINs of 1 to 255 bytes, whatever luna_stub_pin_lengths() and
   the switches say; no wrong try is remembered. user_pin NULL: the user has none. so_pin NULL: the
   keyring is not initialised. Its label and its objects stay. ENXIO: no such slot. EINVAL. */
LUNA_STUB_API int luna_stub_set_pins(const char *path, uint64_t slot_id, const uint8_t *so_pin,
                                     uint32_t so_pin_length, const uint8_t *user_pin,
                                     uint32_t user_pin_length);

/* What `keyring unlock` does on the appliance: the wrong tries of the keyring's roles are forgotten.
   ENXIO: no such slot. */
LUNA_STUB_API int luna_stub_unlock_keyring(const char *path, uint64_t slot_id);

/* All applications of that process: their locks are gone, and their calls answer CKR_DEVICE_ERROR
   until C_Finalize and C_Initialize. ESRCH: it has none. */
LUNA_STUB_API int luna_stub_disconnect(const char *path, int64_t pid);

/* All applications of that process, as if other code of it had called C_Finalize and C_Initialize: their
   locks and sessions are gone, and no call says so. ESRCH: it has none. */
LUNA_STUB_API int luna_stub_reinitialise(const char *path, int64_t pid);

/* *count: keyrings in the cluster; the first `room` of them are filled in. */
LUNA_STUB_API int luna_stub_snapshot(const char *path, luna_stub_token *tokens, uint32_t room,
                                     uint32_t *count);

/* The calls of all applications, the latest 16384 of them at most. With no room, *count is how many
   there are; else the latest are filled in, the oldest of them first, and *count is their number. */
LUNA_STUB_API int luna_stub_log(const char *path, luna_stub_call *calls, uint32_t room,
                                uint32_t *count);

/* The name of one of the module's functions, which are numbered from 0. ENOSYS: there are no more. */
LUNA_STUB_API int luna_stub_function(uint32_t number, const char **name);

#ifdef __cplusplus
}
#endif

#endif
