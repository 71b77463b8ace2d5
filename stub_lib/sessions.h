/*
 * sessions.h: the sessions of this process and who is logged in to its tokens.
 *
 * SPDX-License-Identifier: MIT
 */
#ifndef STUB_SESSIONS_H
#define STUB_SESSIONS_H

#include "backend.h"
#include "call.h"

#define SESSIONS_MAX 1024U      /* of one token */
#define SESSION_PLACES 0x10000U /* of all */

enum login { LOGIN_NONE, LOGIN_SO, LOGIN_USER };

struct session {
    CK_SESSION_HANDLE handle; /* CK_INVALID_HANDLE: the place is free */
    CK_SESSION_HANDLE twin; /* the backend's */
    CK_SLOT_ID slot_id;
    bool read_write;
    bool searching; /* between C_FindObjectsInit and C_FindObjectsFinal */
};

/* Login is per application and token, not per session. */
struct token_use {
    uint16_t sessions;
    uint16_t rw_sessions;
    enum login login;
    uint64_t erasures; /* of the keyring, that its sessions know of */
};

/* As if the process had never had any. Only while no call is in flight. */
void sessions_forget(void);

/* Not inside RETURN_LOCKED_CALL. The backend's session behind one of ours, whose slot becomes the call's.
   False: no such session. */
bool session_twin(CK_SESSION_HANDLE handle, CK_SESSION_HANDLE_PTR twin, struct call *call);

/* The rest only inside RETURN_LOCKED_CALL. */

void sessions_lock(void);
void sessions_unlock(void);
struct session *session_find(CK_SESSION_HANDLE handle); /* NULL: no such session */
/* Of a slot that exists. Closes the sessions that are older than the keyring's last erasure. */
struct token_use *session_token(CK_SLOT_ID slot_id);
/* After wrong tries have erased the keyring: no application has a session with it any more. Between
   state_write_begin() and state_write_end(). */
void sessions_end(CK_SLOT_ID slot_id);
CK_STATE session_state(const struct session *session);

uint64_t session_slot(CK_SESSION_HANDLE handle); /* CALL_NO_SLOT: no such session */

/* RETURN_CALL for functions that look at sessions. Latencies are slept out outside of the lock. */
#define RETURN_LOCKED_CALL(function, slot_id, answer)               \
    do {                                                            \
        struct call call;                                           \
        if (call_begin(&call, FUNCTION_##function, (slot_id))) {    \
            sessions_lock();                                        \
            CK_RV call_rv = (answer);                               \
            sessions_unlock();                                      \
            call_end(&call, call_rv);                               \
        }                                                           \
        return call.rv;                                             \
    } while (0)

/* For those that are given a session: its slot is the call's. */
#define RETURN_SESSION_CALL(function, handle, answer) \
    RETURN_LOCKED_CALL(function, CALL_NO_SLOT, (call.slot_id = session_slot(handle), (answer)))

/* The same within another macro. */
#define SESSION_ANSWER(handle, answer)                              \
    (sessions_lock(), call.slot_id = session_slot(handle),          \
     call_rv = (answer), sessions_unlock(), call_rv)

/* For those that are given a session and ask for what the backend has. Outside of the lock: they may take
   long. In `arguments`, `twin` is the backend's session. Without a backend, `answer` is the answer. */
#define RETURN_BACKEND_CALL(function, handle, arguments, answer)    \
    do {                                                            \
        struct call call;                                           \
        if (call_begin(&call, FUNCTION_##function, CALL_NO_SLOT)) { \
            CK_SESSION_HANDLE twin = CK_INVALID_HANDLE;             \
            CK_RV call_rv = CKR_SESSION_HANDLE_INVALID;             \
            if (!backend_used()) {                                  \
                call_rv = answer;                                   \
            } else if (session_twin((handle), &twin, &call)) {      \
                backend_enter();                                    \
                call_rv = backend->function arguments;              \
                backend_leave();                                    \
            }                                                       \
            call_end(&call, call_rv);                               \
        }                                                           \
        return call.rv;                                             \
    } while (0)

#endif
