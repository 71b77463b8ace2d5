/*
 * fuzz.h: the parts of the fuzz target: its input, its calls, and the model that it compares with.
 *
 * SPDX-License-Identifier: MIT
 */
#ifndef FUZZ_H
#define FUZZ_H

#include "application.h"
#include "control.h"
#include "platform_memory.h"
#include "sessions.h"

#define FUZZ_PATH "cluster"
#define FUZZ_NEW_PATH "another"

/* ---- input ---- */

struct input {
    const uint8_t *next;
    const uint8_t *end;
};

extern struct input input;

bool input_left(void);
/* Behind its end the input is zeros. */
uint64_t input_bytes(unsigned int count);
static inline uint8_t input_byte(void)
{
    return (uint8_t)input_bytes(1);
}
static inline unsigned int input_below(unsigned int bound)
{
    return input_byte() % bound;
}

/* ---- arguments of one call ---- */

/* Memory of exactly this size. */
void *exactly(size_t size);
void release_arguments(void);

struct pin {
    CK_UTF8CHAR *value;
    CK_ULONG length;
};

/* The places for so many words, and their number; either may be missing. */
struct room {
    CK_ULONG *words;
    CK_ULONG *count;
    CK_ULONG given;
};

CK_SLOT_ID some_slot(void);
CK_SESSION_HANDLE some_session(void);
struct pin some_pin(void);
CK_UTF8CHAR *some_label(void); /* or NULL */
struct room some_room(void);
#define UNTOUCHED 0xA5U
void *some_memory(size_t size); /* of such bytes; or NULL */

/* ---- the model ---- */

/* While the file is not damaged (`model.valid`) every answer is known in advance. */

enum who { NOBODY, US, OTHER, PARENT };
#define WHO_COUNT 4

#define MODEL_TOKENS 4U
#define MODEL_SESSIONS 16U

struct model_pin {
    uint8_t value[STATE_PIN_MAX];
    CK_ULONG length;
    bool set;
    unsigned int failures;
    bool by_so;
};

struct model_token {
    uint8_t label[STATE_LABEL_SIZE];
    uint8_t original[STATE_LABEL_SIZE];
    bool initialised;
    struct model_pin so_pin;
    struct model_pin user_pin;
    enum who owner;
    unsigned int grants; /* to the owner, beyond the first */
    enum login login;           /* ours */
    bool in_session[WHO_COUNT]; /* others than us */
};

struct model_session {
    bool open;
    CK_SESSION_HANDLE handle; /* CK_INVALID_HANDLE: the reply was lost */
    unsigned int token;
    bool read_write;
    bool searching;
};

struct model_application {
    int64_t pid;
    bool entered;
    bool disconnected;
};

struct model_fault {
    luna_stub_rule rule;
    uint64_t met;
    uint64_t struck;
};

struct model {
    bool valid;
    unsigned int tokens_count;
    uint64_t first_slot;
    const char *cluster_id;
    struct model_token tokens[MODEL_TOKENS];
    struct model_session sessions[MODEL_SESSIONS];
    struct model_application applications[WHO_COUNT];
    struct model_fault faults[FUNCTION_COUNT];
    enum switch_contention contention;
    enum switch_relock relock;
    enum switch_unlock_owner unlock_owner;
    enum switch_regrant regrant;
    enum switch_grants grants;
    enum switch_identity identity;
    enum switch_pin_change pin_change;
    enum switch_authentication authentication;
    enum switch_application application;
    enum switch_change_label change_label;
    enum switch_log log;
    CK_ULONG shortest_pin;
    CK_ULONG longest_pin;
};

extern struct model model;

static inline struct model_application *model_us(void)
{
    return &model.applications[US];
}

/* NULL: no such slot, session. */
struct model_token *model_token(CK_SLOT_ID slot);
struct model_session *model_session(CK_SESSION_HANDLE handle);
unsigned int model_sessions_of(unsigned int token, bool only_read_write);
void model_forget_sessions(void);
/* Whether this application lives, with its connection. */
bool model_alive(enum who who);
/* Does the device take this application for the one that has the lock? */
bool model_is_own(const struct model_token *token, enum who who);
/* Can a claim of this living application get the token? And it gets it, as a lock call does. */
bool model_can_claim(const struct model_token *token, enum who who);
void model_grant(struct model_token *token, enum who who);
void model_release_all(enum who who);
void model_disconnect(enum who who);

/* The cluster's file as it is. */
struct state *fuzz_state(void);

/* What becomes of a call, before it has looked at its arguments. */
struct model_entry {
    bool enters; /* else rv is its answer */
    bool lost;   /* enters, but rv is its answer all the same */
    CK_RV rv;
};

struct model_entry model_gate(enum function_id function);
/* For C_Initialize and C_Finalize, which ask for nothing else. */
struct model_entry model_fault(enum function_id function);

/* ---- calls ---- */

/* A call from its first look at the model to the comparison of its answer. `normal` is the model's
   answer to a call that enters. */
struct fuzz_call {
    enum function_id function;
    struct model_entry gate;
    bool armed; /* a fault may be set, so any answer is possible if the model does not know */
    bool logged;
};

struct fuzz_call call_starts(enum function_id function);
void call_ended(const struct fuzz_call *call, CK_RV rv, CK_RV normal);

void fuzz_initialize(void);
/* One of the calls of the PKCS #11 module, and those of its calls that are elsewhere. */
void fuzz_pkcs11_call(void);
void call_init_token(void);
void call_init_pin(void);
void call_set_pin(void);
void call_login(void);
void call_change_label(void);
void call_logout(void);
void call_open_session(void);
void call_close_session(void);
void call_close_all_sessions(void);
void call_get_session_info(void);
void call_find(void);
void call_random(void);
/* One of the luna_stub_ functions. */
void fuzz_control_call(void);
void fuzz_set_switch(const char *name, const char *value, unsigned int number);
void fuzz_disconnect(enum who who);
/* Another application, or this process's parent, does something. */
void fuzz_others_act(void);
/* ... while a call of ours waits; how often in this call. */
void fuzz_others_have_to_act(void);
extern unsigned int fuzz_acts;
/* Nothing of this run is left to the next one. */
void fuzz_end(void);

/* The file agrees with the model. */
void check_file(void);
_Noreturn void disagree(const char *what, uint64_t found, uint64_t expected);

#endif
