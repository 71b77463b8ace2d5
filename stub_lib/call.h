/*
 * call.h: how every exported function begins and ends.
 *
 * SPDX-License-Identifier: MIT
 */
#ifndef STUB_CALL_H
#define STUB_CALL_H

#include "application.h"
#include "fault.h"

/* The two lock functions have no code for a library that is not initialised. */
static inline CK_RV call_not_initialised(enum function_id function)
{
    bool locks = function == FUNCTION_CA_LockClusteredSlot ||
                 function == FUNCTION_CA_UnlockClusteredSlot;
    return locks ? CKR_DEVICE_ERROR : CKR_CRYPTOKI_NOT_INITIALIZED;
}

/* True: the call goes ahead, and ends with call_leave(). False: *rv is its answer. */
static inline bool call_enter(enum function_id function, CK_RV *rv)
{
    if (!application_enter()) {
        *rv = call_not_initialised(function);
        return false;
    }
    if (!application_disconnected()) {
        if (!fault_armed(application_file()->state, function))
            return true;
        bool struck = fault_strikes(application_file()->state, function, application_interrupted,
                                    rv);
        if (!struck && !application_interrupted())
            return true;
        if (!struck)
            *rv = application_started() ? CKR_DEVICE_ERROR : call_not_initialised(function);
    } else {
        *rv = CKR_DEVICE_ERROR;
    }
    application_leave();
    return false;
}

/* The body of an exported function. `answer` is evaluated only if the call goes ahead. */
#define RETURN_CALL(function, answer)                   \
    do {                                                \
        CK_RV call_rv;                                  \
        if (call_enter(FUNCTION_##function, &call_rv)) { \
            call_rv = (answer);                         \
            application_leave();                        \
        }                                               \
        return call_rv;                                 \
    } while (0)

#endif
