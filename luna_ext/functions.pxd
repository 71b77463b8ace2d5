from luna_ext.counters cimport luna_counter
from luna_ext.cryptoki cimport CK_RV

# The C functions that are called; indices into functions.NAMES and into a Client's counters.
cdef enum:
    C_INITIALIZE
    C_FINALIZE
    C_GET_INFO
    C_GET_SLOT_LIST
    C_GET_SLOT_INFO
    C_GET_TOKEN_INFO
    C_INIT_TOKEN
    C_INIT_PIN
    C_OPEN_SESSION
    C_CLOSE_SESSION
    C_LOGIN
    C_LOGOUT
    CA_GET_SLOT_ID
    CA_GET_UNASSIGNED_SLOT
    CA_LOCK_CLUSTERED_SLOT
    CA_UNLOCK_CLUSTERED_SLOT
    FUNCTION_COUNT


cdef str name_of(int function)
cdef object error_of(CK_RV rv, int function, object slot_id)
cdef dict stats_of(luna_counter *counters)
