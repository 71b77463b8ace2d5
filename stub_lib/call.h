/*
 * call.h: how every exported function begins and ends.
 *
 * SPDX-License-Identifier: MIT
 */
#ifndef STUB_CALL_H
#define STUB_CALL_H

#include "application.h"
#include "fault.h"
#include "log.h"

#define CALL_NO_SLOT LOG_NO_SLOT

/* One call, from its beginning to its end. */
struct call {
    enum function_id function;
    bool struck;     /* by a fault, which is the answer in place of any effect */
    bool reply_lost; /* it takes effect, but the caller gets only rv, not the slot or handle */
    uint64_t slot_id;
    CK_RV rv;
    struct log_ticket ticket; /* of number 0: it is not logged */
};

/* The two lock functions have no code for a library that is not initialised. */
static inline CK_RV call_not_initialised(enum function_id function)
{
    bool locks = function == FUNCTION_CA_LockClusteredSlot ||
                 function == FUNCTION_CA_UnlockClusteredSlot;
    return locks ? CKR_DEVICE_ERROR : CKR_CRYPTOKI_NOT_INITIALIZED;
}

/* The functions that hand out a table work in any state. */
static inline bool call_works_anywhere(enum function_id function)
{
    return function == FUNCTION_C_GetFunctionList || function == FUNCTION_CA_GetFunctionList;
}

/* The parts that a call without a fault, latency and log does not need. */
bool call_meet_fault(struct call *call);
void call_delay_answer(struct call *call);
void call_log_end(struct call *call);

static inline void call_end(struct call *call, CK_RV rv)
{
    if (!call->reply_lost)
        call->rv = rv;
    if (fault_armed(application_file()->state, call->function))
        call_delay_answer(call);
    if (call->ticket.number != 0)
        call_log_end(call);
    application_leave();
}

/* True: the call goes ahead, and ends with call_end(). False: call->rv is its answer. */
static inline bool call_begin(struct call *call, enum function_id function, uint64_t slot_id)
{
    call->function = function;
    call->struck = false;
    call->reply_lost = false;
    call->slot_id = slot_id;
    call->ticket.number = 0;
    if (!application_enter()) {
        call->rv = call_not_initialised(function);
        return false;
    }
    struct state *state = application_file()->state;
    if (log_wanted(state))
        log_begin(state, function, slot_id, &call->ticket);
    if (application_disconnected() && !call_works_anywhere(function)) {
        call_end(call, CKR_DEVICE_ERROR);
        return false;
    }
    return !fault_armed(state, function) || call_meet_fault(call);
}

/* The body of an exported function. `answer` is evaluated only if the call goes ahead; in it,
   `call` is this call. */
#define RETURN_CALL(function, slot_id, answer)                      \
    do {                                                            \
        struct call call;                                           \
        if (call_begin(&call, FUNCTION_##function, (slot_id)))      \
            call_end(&call, (answer));                              \
        return call.rv;                                             \
    } while (0)

#endif
