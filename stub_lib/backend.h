/*
 * backend.h: another PKCS #11 module that keeps the objects of the tokens and does their cryptography.
 * There is one if LUNA_STUB_BACKEND names it.
 *
 * Labels, PINs, sessions and logins are as without it. Of each token of the cluster the backend has a
 * twin, with PINs of its own that never change: it may keep PINs in the memory of each
 * process, and would not notice that another process has changed one.
 *
 * SPDX-License-Identifier: MIT
 */
#ifndef STUB_BACKEND_H
#define STUB_BACKEND_H

#include "state.h"

/* NULL: there is no backend. Constant while calls can enter. Each call of one of its functions stands
   between backend_enter() and backend_leave(). */
extern CK_FUNCTION_LIST_PTR backend;

static inline bool backend_used(void)
{
    return backend != NULL;
}

/* No fork happens while a thread is between these two: the child would have a copy of the module in
   the midst of its work. */
void backend_enter(void);
void backend_leave(void);

/* While no call can enter. Loads and initialises it, and makes the twins that are missing. NULL: done, or
   there is none to use; else what is wrong. `path` is that of the state file. */
const char *backend_start(struct state_file *file, const char *path);
void backend_stop(void);

/* Before a fork, and after it in the parent and in the child. */
void backend_hold(void);
void backend_resume(void);
void backend_forget(void);

/* The rest does nothing, with CKR_OK, without a backend. */

CK_SLOT_ID backend_slot(uint32_t keyring);
CK_RV backend_open_session(uint32_t keyring, CK_FLAGS flags, CK_SESSION_HANDLE_PTR session);
void backend_close_session(CK_SESSION_HANDLE session);
void backend_logout(CK_SESSION_HANDLE session);

/* These between state_write_begin() and state_write_end(), for they change what the backend keeps of the
   token itself. SoftHSM2, for one, fails when two processes do that at a time. */

CK_RV backend_login(CK_SESSION_HANDLE session, CK_USER_TYPE user_type);
/* Destroys all objects of the token. While it has no sessions. */
CK_RV backend_erase(struct state_file *file, uint32_t keyring);

#endif
