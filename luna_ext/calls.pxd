from libc.stdint cimport uint64_t

from luna_ext.client cimport Client
from luna_ext.cryptoki cimport CK_RV, CK_SLOT_ID, CK_UNASSIGNED_SLOT_INFO
from luna_ext.pin cimport Pin

# These three answer the CK_RV, for who calls them has to act on it at once; all others raise.
cdef CK_RV lock_slot(
    Client client, CK_SLOT_ID slot_id, uint64_t *nanoseconds
) except? 0xFFFFFFFF
cdef CK_RV unlock_slot(Client client, CK_SLOT_ID slot_id) except? 0xFFFFFFFF
cdef CK_RV next_unassigned(
    Client client, bytes cluster_id, CK_UNASSIGNED_SLOT_INFO *info
) except? 0xFFFFFFFF

cdef object library_info(Client client)
cdef list slot_ids(Client client, bint token_present)
cdef object slot_info(Client client, CK_SLOT_ID slot_id)
cdef tuple labelled_token_info(Client client, CK_SLOT_ID slot_id)
cdef bytes token_label(Client client, CK_SLOT_ID slot_id)
cdef list slots_with_label(Client client, bytes label)
cdef int init_token(Client client, CK_SLOT_ID slot_id, Pin so_pin, bytes label) except -1
cdef int init_user_pin(Client client, CK_SLOT_ID slot_id, Pin so_pin, Pin user_pin) except -1
