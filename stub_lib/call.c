/*
 * call.c: the parts of a call that only some calls need: faults, and the log.
 *
 * SPDX-License-Identifier: MIT
 */
#include "call.h"

/* What a call answers when it was interrupted. */
static CK_RV interrupted_rv(const struct call *call)
{
    return application_started() ? CKR_DEVICE_ERROR : call_not_initialised(call->function);
}

bool call_meet_fault(struct call *call)
{
    CK_RV rv = CKR_OK;
    enum fault_kind kind = fault_meet(application_file()->state, call->function,
                                      application_interrupted, &rv);
    if (kind == FAULT_INSTEAD) {
        call->struck = true;
        call_end(call, rv);
        return false;
    }
    if (application_interrupted() && !call_works_anywhere(call->function)) {
        call_end(call, interrupted_rv(call));
        return false;
    }
    if (kind == FAULT_LOST_REPLY) {
        call->reply_lost = true;
        call->rv = rv;
    }
    return true;
}

/* If the answer is lost, the call's effect remains. */
void call_delay_answer(struct call *call)
{
    bool arrives = fault_delay_answer(application_file()->state, call->function,
                                      application_interrupted);
    if (!arrives && !call_works_anywhere(call->function))
        call->rv = interrupted_rv(call);
}

void call_log_end(struct call *call)
{
    log_end(application_file()->state, call->function, call->slot_id, call->rv, &call->ticket);
}
