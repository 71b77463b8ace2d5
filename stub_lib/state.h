/*
 * state.h: the state file, which is the cluster: its layout, and consistent access to its records.
 *
 * SPDX-License-Identifier: MIT
 */
#ifndef STUB_STATE_H
#define STUB_STATE_H

#include <stdalign.h>

#include "functions.h"
#include "platform.h"

#define STATE_VERSION 5U
#define STATE_MAX_KEYRINGS 3500U
#define STATE_APPLICATIONS 1024U
#ifndef STATE_LOG_ENTRIES
#define STATE_LOG_ENTRIES 16384U /* a power of two */
#endif
#define STATE_CLUSTER_ID_SIZE 64U
#define STATE_LABEL_SIZE 32U
#define STATE_SERIAL_SIZE 16U

/* Locked bytes lie far beyond the end of the file, where no content can ever be. */
#define STATE_WRITER_BYTE (UINT64_C(1) << 62)
#define STATE_LIFE_BYTE(index) (STATE_WRITER_BYTE + 4096U + (index))

_Static_assert(ATOMIC_INT_LOCK_FREE == 2 && ATOMIC_LLONG_LOCK_FREE == 2,
               "atomics that take a lock do not work between processes");

/* ---- records: what has to change as a whole ---- */

#define STATE_PIN_MIN 8U /* unless the cluster is told otherwise */
#define STATE_PIN_MAX 255U
#define STATE_PIN_TRIES 10U

struct token_pin {
    uint8_t value[STATE_PIN_MAX + 1U];
    uint32_t length; /* 0, though it is set: the key of a PED */
    uint32_t set;
    uint32_t failures; /* the wrong tries that count */
    uint32_t by_so;    /* the user's: it is the one that the security officer has set */
};

struct token_record {
    uint8_t label[STATE_LABEL_SIZE]; /* the first field: state_read_label() copies no further */
    uint64_t initialised;
    struct token_pin so_pin;
    struct token_pin user_pin;
};

struct fault_rule {
    uint64_t rv;
    int64_t times;      /* how often it strikes; -1: for ever; 0: never */
    uint64_t every;     /* n: it meets every n-th call; at least 1 */
    uint64_t threshold; /* and strikes if the call's random number is not above this */
    uint64_t seed;      /* of the random numbers */
    uint64_t lost_reply; /* 0: in place of the effect; 1: after it */
};

/* Microseconds. Drawn evenly from between the two. */
struct latency_rule {
    uint64_t least;
    uint64_t most;
    uint64_t seed;
};

/* Two copies of a record and a version whose low bit selects the current one. A writer fills the
   other copy and then steps the version, so that being killed anywhere leaves old or new. */
#define STATE_WORDS(type) (sizeof(type) / sizeof(uint64_t))
#define STATE_RECORD(name, type)                              \
    struct name {                                             \
        _Atomic uint64_t version;                             \
        _Atomic uint64_t copies[2][STATE_WORDS(struct type)]; \
    };                                                        \
    _Static_assert(sizeof(struct type) % sizeof(uint64_t) == 0, "records consist of words")

STATE_RECORD(state_token, token_record);
STATE_RECORD(state_fault_rule, fault_rule);
STATE_RECORD(state_latency_rule, latency_rule);

/* ---- the file ---- */

enum switch_contention { CONTENTION_WAIT, CONTENTION_ERROR };
enum switch_relock { RELOCK_GRANTED, RELOCK_WAIT, RELOCK_ERROR };
enum switch_unlock_owner { UNLOCK_OWNER_UNCHECKED, UNLOCK_OWNER_CHECKED };
enum switch_regrant { REGRANT_ON, REGRANT_OFF };
enum switch_grants { GRANTS_ONCE, GRANTS_COUNTED };
enum switch_identity { IDENTITY_SINGLE, IDENTITY_DUAL };
enum switch_pin_change { PIN_CHANGE_FREE, PIN_CHANGE_FORCED };
enum switch_authentication { AUTHENTICATION_PASSWORD, AUTHENTICATION_PED };
enum switch_application { APPLICATION_PROCESS, APPLICATION_SHARED };
enum switch_change_label { CHANGE_LABEL_OFF, CHANGE_LABEL_ON };
enum switch_log { LOG_ON, LOG_OFF };

/* Written when the file is made and never again. */
struct state_header {
    uint8_t magic[8];
    uint32_t version;
    uint32_t header_size;
    uint32_t function_count;
    uint32_t fault_size;
    uint32_t application_count;
    uint32_t application_size;
    uint32_t keyring_count;
    uint32_t keyring_size;
    uint32_t log_entries;
    uint32_t log_entry_size;
    uint64_t first_slot; /* slot ID of the first keyring; the others follow */
    uint64_t file_size;
    uint64_t identity; /* random: the cluster, whatever its path */
    char cluster_id[STATE_CLUSTER_ID_SIZE + 8]; /* NUL-terminated */
};

struct state_switches {
    _Atomic uint32_t contention;
    _Atomic uint32_t relock;
    _Atomic uint32_t unlock_owner;
    _Atomic uint32_t regrant;
    _Atomic uint32_t grants;
    _Atomic uint32_t identity;
    _Atomic uint32_t pin_change;
    _Atomic uint32_t authentication;
    _Atomic uint32_t application;
    _Atomic uint32_t change_label;
    _Atomic uint32_t log;
    _Atomic uint32_t pin_lengths; /* the longest PIN's << 16 | the shortest's, in one word */
};

enum latency_moment { LATENCY_BEFORE_EFFECT, LATENCY_AFTER_EFFECT, LATENCY_MOMENTS };

struct state_latency {
    struct state_latency_rule rule;
    _Atomic uint64_t delayed; /* version of the rule << 32 | calls that it has delayed */
};

struct state_fault {
    _Atomic uint32_t armed; /* 0: nothing below applies; all that an untroubled call looks at */
    struct state_fault_rule rule;
    _Atomic uint64_t met;    /* version of the rule << 32 | calls that it has met */
    _Atomic uint64_t struck; /* version of the rule << 32 | calls that it has struck */
    struct state_latency latencies[LATENCY_MOMENTS];
};

#define STATE_KEYRING_BITS ((STATE_MAX_KEYRINGS + 63U) / 64U)

struct state_application {
    _Atomic uint32_t generation;   /* steps with every owner of the entry */
    _Atomic uint32_t disconnected; /* the generation that lost its connection */
    _Atomic int64_t pid;
    _Atomic uint64_t restarts; /* how often it was initialised anew without its knowledge */
    _Atomic uint64_t in_session[STATE_KEYRING_BITS]; /* the keyrings that it has sessions with */
};

/* What an entry is, its check says: that of the whole, a call that has returned; that of number,
   began, pid_and_function and thread alone, one that has not. With any other the entry is half
   written, by a process that was killed or overtaken by a whole round of the log, and is none. */
struct state_log_entry {
    alignas(64) _Atomic uint64_t number; /* of the call, from 1 */
    _Atomic uint64_t began;              /* nanoseconds since 1970-01-01 UTC */
    _Atomic uint64_t duration;           /* nanoseconds */
    _Atomic uint64_t pid_and_function;   /* pid << 32 | enum function_id */
    _Atomic uint64_t thread;
    _Atomic uint64_t slot_id; /* all ones: none */
    _Atomic uint64_t rv;
    _Atomic uint64_t check;
};

struct state_log {
    alignas(64) _Atomic uint64_t calls; /* the number of the latest one */
    struct state_log_entry entries[STATE_LOG_ENTRIES];
};

struct state_keyring {
    /* The cluster's half: the lock. */
    /* 0 or generation << 32 | grants beyond the first << 16 | application index + 1 */
    alignas(64) _Atomic uint64_t owner;
    _Atomic uint32_t sequence;          /* what waiters sleep on */
    _Atomic uint32_t waiting;           /* a waiter may be asleep */
    uint8_t original_label[STATE_LABEL_SIZE];
    /* The token's half. */
    alignas(64) uint8_t serial[STATE_SERIAL_SIZE];
    _Atomic uint64_t erasures; /* steps when wrong tries erase it; sessions are older or younger */
    struct state_token token;
};

struct state {
    alignas(64) struct state_header header;
    alignas(64) struct state_switches switches;
    alignas(64) struct state_fault faults[FUNCTION_COUNT];
    alignas(64) struct state_application applications[STATE_APPLICATIONS];
    struct state_log log;
    struct state_keyring keyrings[];
};

/* ---- access ---- */

/* One opened state file. Sizes are taken from the header once, when they have been checked. */
struct state_file {
    struct platform_file platform;
    struct state *state;
    uint32_t keyring_count;
    uint64_t first_slot;
    uint64_t self; /* the lock word of the application behind this opening; 0: none */
    platform_mutex writer;
};

/* What a new cluster looks like. */
struct state_plan {
    const char *cluster_id;
    const char *label;
    uint32_t keyrings;
    uint64_t first_slot;
    uint64_t identity;
    const uint8_t *password; /* of both roles; NULL: the keyrings are not initialised */
    uint32_t password_length;
};

/* 0 or an errno value: EEXIST, EINVAL, ... */
int state_create(const char *path, const struct state_plan *plan);
/* 0 or an errno value, with the reason in words. EBADMSG: not a state file of this version. */
int state_open(const char *path, struct state_file *file, const char **reason);
void state_close(struct state_file *file);

static inline uint32_t state_keyring_index(const struct state_file *file, uint64_t slot_id)
{
    return (uint32_t)(slot_id - file->first_slot);
}

/* NULL when the slot is none of the cluster's. */
static inline struct state_keyring *state_keyring(struct state_file *file, uint64_t slot_id)
{
    uint64_t index = slot_id - file->first_slot;
    return index < file->keyring_count ? &file->state->keyrings[index] : NULL;
}

/* One writer on the whole machine between these two. False: no lock to be had. */
bool state_write_begin(struct state_file *file);
void state_write_end(struct state_file *file);

void state_read_token(struct state_token *token, struct token_record *record);
void state_write_token(struct state_token *token, const struct token_record *record);
void state_read_label(struct state_token *token, uint8_t label[STATE_LABEL_SIZE]);
/* In a record: at most STATE_PIN_MAX bytes, or NULL and none. Its wrong tries are forgotten. */
void state_set_pin(struct token_pin *pin, const uint8_t *value, size_t length);
/* How long a PIN that is set has to be and may be. */
void state_pin_lengths(struct state *state, uint32_t *least, uint32_t *most);
void state_set_pin_lengths(struct state *state, uint32_t least, uint32_t most);
/* The version that these return is another one for each rule. */
uint64_t state_read_fault(struct state_fault_rule *rule, struct fault_rule *record);
void state_write_fault(struct state_fault_rule *rule, const struct fault_rule *record);
uint64_t state_read_latency(struct state_latency_rule *rule, struct latency_rule *record);
void state_write_latency(struct state_latency_rule *rule, const struct latency_rule *record);

#endif
