# cython: language_level=3, freethreading_compatible=True
"""The limit for a lock in Cython: a class that makes the two calls without the GIL, and does nothing else.

It is linked to the client library that does nothing (tests/c/idle_client.c).
"""

cdef extern from "cryptoki_v2.h":
    ctypedef unsigned long CK_RV
    ctypedef unsigned long CK_SLOT_ID
    CK_RV CA_LockClusteredSlot(CK_SLOT_ID slotID) nogil
    CK_RV CA_UnlockClusteredSlot(CK_SLOT_ID slotID) nogil


cdef class TenLines:
    cdef CK_SLOT_ID slot_id

    def __init__(self, slot_id):
        self.slot_id = slot_id

    def __enter__(self):
        cdef CK_RV rv
        with nogil:
            rv = CA_LockClusteredSlot(self.slot_id)
        if rv:
            raise RuntimeError(f"CA_LockClusteredSlot: 0x{rv:X}")
        return self

    def __exit__(self, exc_type, exc_value, traceback):
        cdef CK_RV rv
        with nogil:
            rv = CA_UnlockClusteredSlot(self.slot_id)
        if rv:
            raise RuntimeError(f"CA_UnlockClusteredSlot: 0x{rv:X}")


cdef class Empty:
    """Its methods do nothing: what `with` itself costs."""

    def __enter__(self):
        return self

    def __exit__(self, exc_type, exc_value, traceback):
        return None
