"""The C functions that are called: their names, their errors, and what is counted of each."""

from libc.stdint cimport uint64_t

from luna_ext.counters cimport LUNA_DURATIONS, LUNA_ERRORS, luna_counter, luna_load
from luna_ext.cryptoki cimport CK_RV

from .errors import error_for, rv_name
from .info import FunctionStats

NAMES = (
    "C_Initialize",
    "C_Finalize",
    "C_GetInfo",
    "C_GetSlotList",
    "C_GetSlotInfo",
    "C_GetTokenInfo",
    "C_InitToken",
    "C_InitPIN",
    "C_OpenSession",
    "C_CloseSession",
    "C_Login",
    "C_Logout",
    "CA_GetSlotId",
    "CA_GetUnassignedSlot",
    "CA_LockClusteredSlot",
    "CA_UnlockClusteredSlot",
)
CLUSTER_FUNCTIONS = NAMES[CA_GET_SLOT_ID:]
# Under which name the errors are counted for which a function's table has no place left.
OTHER_ERRORS = "other"


cdef str name_of(int function):
    return NAMES[function]


cdef object error_of(CK_RV rv, int function, object slot_id):
    return error_for(rv, NAMES[function], slot_id)


cdef dict stats_of(luna_counter *counters):
    """FunctionStats of what was called, by name. Reads what others may be writing."""
    cdef luna_counter *counter
    stats = {}
    for function in range(FUNCTION_COUNT):
        counter = &counters[<int> function]
        histogram = tuple([luna_load(&counter.durations[n]) for n in range(LUNA_DURATIONS)])
        if any(histogram):
            stats[NAMES[function]] = FunctionStats(
                calls=sum(histogram),
                errors=errors_of(counter),
                total_seconds=luna_load(&counter.nanoseconds) / 1e9,
                max_seconds=luna_load(&counter.longest) / 1e9,
                histogram=histogram,
            )
    return stats


cdef dict errors_of(luna_counter *counter):
    cdef uint64_t count
    errors = {}
    for place in range(LUNA_ERRORS):
        count = luna_load(&counter.errors[place])
        if count:
            code = luna_load(&counter.codes[place])
            errors[rv_name(code) if code else OTHER_ERRORS] = count
    return errors
