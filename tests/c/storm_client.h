/*
 * storm_client.h: clients of the stand-in that write values of which a mixture would be noticed, and that
 * check what others have written.
 *
 * SPDX-License-Identifier: MIT
 */
#ifndef STORM_CLIENT_H
#define STORM_CLIENT_H

#include "control.h"
#include "state.h"

void expect_rv(CK_RV rv, CK_RV expected, const char *call);
void expect_zero(int error, const char *call); /* of the luna_stub_ functions */

/* This process's next C_Initialize is on it. */
void use_cluster(const char *path);

/* ---- values ---- */

/* A value is a byte. Of two PINs with different values the lengths differ, or else all bytes. */
void pin_of(uint8_t value, CK_UTF8CHAR pin[STATE_PIN_MAX], CK_ULONG *length);
void uniform_label(uint8_t value, CK_UTF8CHAR label[STATE_LABEL_SIZE]);
/* Is it uniform, or the original one? */
bool label_is_whole(const uint8_t label[STATE_LABEL_SIZE],
                    const uint8_t original[STATE_LABEL_SIZE]);

/* The values of a token in one word: of its label, and of its PINs. Label 0: the original one, with
   no PINs; user PIN 0: none. */
#define TOKEN(label, so, user) ((uint32_t)(label) << 16 | (uint32_t)(so) << 8 | (uint32_t)(user))
#define LABEL_OF(token) ((uint8_t)((token) >> 16))
#define SO_OF(token) ((uint8_t)((token) >> 8))
#define USER_OF(token) ((uint8_t)(token))

/* ---- calls with such values: whatever is not CKR_OK is a violation ---- */

CK_SESSION_HANDLE open_session(CK_SLOT_ID slot);
CK_RV login(CK_SESSION_HANDLE session, CK_USER_TYPE user_type, uint8_t value);
void login_right(CK_SESSION_HANDLE session, CK_USER_TYPE user_type, uint8_t value);
void init_token(CK_SLOT_ID slot, uint8_t so, uint8_t label);
void init_pin(CK_SESSION_HANDLE session, uint8_t user);
void set_pin(CK_SESSION_HANDLE session, uint8_t from, uint8_t to);
/* All fields of the rule have this value; 0: no fault, no latency. */
void set_fault(const char *path, enum function_id function, uint8_t value);
void set_latency(const char *path, enum function_id function, uint8_t value);

/* ---- what others have written ---- */

/* Has the token all of these values, its PINs included? */
bool token_is(CK_SLOT_ID slot, uint32_t values);
/* The value of the rule; a mixture is a violation, and so is a rule that no call would look at. */
uint32_t fault_of(const char *path, enum function_id function);
uint32_t latency_of(const char *path, enum function_id function);
/* Reads the log's latest entries; figures that cannot be are a violation. */
void check_log(const char *path, uint32_t room);

#endif
