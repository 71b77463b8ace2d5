/*
 * standard_answers.h: all that the stand-in's C_ functions ever answer, faults aside.
 *
 * SPDX-License-Identifier: MIT
 */
#ifndef STANDARD_ANSWERS_H
#define STANDARD_ANSWERS_H

#include "cryptoki_v2.h"

#define STANDARD_ANSWERS \
    CKR_OK,                             \
    CKR_SLOT_ID_INVALID,                \
    CKR_ARGUMENTS_BAD,                  \
    CKR_NO_EVENT,                       \
    CKR_CANT_LOCK,                      \
    CKR_DEVICE_ERROR,                   \
    CKR_FUNCTION_NOT_PARALLEL,          \
    CKR_FUNCTION_NOT_SUPPORTED,         \
    CKR_MECHANISM_INVALID,              \
    CKR_OPERATION_ACTIVE,               \
    CKR_OPERATION_NOT_INITIALIZED,      \
    CKR_PIN_INCORRECT,                  \
    CKR_PIN_LEN_RANGE,                  \
    CKR_PIN_EXPIRED,                    \
    CKR_PIN_LOCKED,                     \
    CKR_SESSION_COUNT,                  \
    CKR_SESSION_HANDLE_INVALID,         \
    CKR_SESSION_PARALLEL_NOT_SUPPORTED, \
    CKR_SESSION_READ_ONLY,              \
    CKR_SESSION_EXISTS,                 \
    CKR_SESSION_READ_ONLY_EXISTS,       \
    CKR_SESSION_READ_WRITE_SO_EXISTS,   \
    CKR_USER_ALREADY_LOGGED_IN,         \
    CKR_USER_NOT_LOGGED_IN,             \
    CKR_USER_PIN_NOT_INITIALIZED,       \
    CKR_USER_TYPE_INVALID,              \
    CKR_USER_ANOTHER_ALREADY_LOGGED_IN, \
    CKR_RANDOM_SEED_NOT_SUPPORTED,      \
    CKR_BUFFER_TOO_SMALL,               \
    CKR_CRYPTOKI_NOT_INITIALIZED,       \
    CKR_CRYPTOKI_ALREADY_INITIALIZED

#endif
