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

/* A new cluster of 1 to 3500 keyrings, labelled `label` with 1, 2, ... appended (at most 32 bytes).
   cluster_id: 1 to 64 bytes. EEXIST: there is a file, and it stays as it is. EINVAL. */
LUNA_STUB_API int luna_stub_create(const char *path, const char *cluster_id, const char *label,
                                   uint32_t keyrings, uint64_t first_slot);

/* The next `times` (at most 2^32 - 1) calls of the function, by anybody, answer rv and have no
   effect; -1: every call; 0: none any more. EINVAL: no such function. */
LUNA_STUB_API int luna_stub_fault(const char *path, const char *function, uint64_t rv,
                                  int64_t times);

/* Calls of the function (NULL: of every function) take so much longer, before their effect. */
LUNA_STUB_API int luna_stub_latency(const char *path, const char *function, uint64_t microseconds);

/* contention=wait|error: a lock call on a token that another application has locked.
   relock=granted|wait|error: on a token that this application has locked.
   unlock_owner=unchecked|checked: an unlock call on a token that this application has not locked.
   The first value is the default. EINVAL: anything else. */
LUNA_STUB_API int luna_stub_switch(const char *path, const char *name, const char *value);

/* All applications of that process: their locks are gone, and their calls answer CKR_DEVICE_ERROR
   until C_Finalize and C_Initialize. ESRCH: it has none. */
LUNA_STUB_API int luna_stub_disconnect(const char *path, int64_t pid);

/* *count: keyrings in the cluster; the first `room` of them are filled in. */
LUNA_STUB_API int luna_stub_snapshot(const char *path, luna_stub_token *tokens, uint32_t room,
                                     uint32_t *count);

#ifdef __cplusplus
}
#endif

#endif
