"""What a device's answer means, for C code. Only declarations."""

from luna_ext.cryptoki cimport CK_RV, CKR_VENDOR_DEFINED


cdef inline bint says_busy(CK_RV rv) noexcept nogil:
    """Whether the answer is AGAIN or BUSY: nothing was done, the same call may succeed later."""
    return rv == CKR_VENDOR_DEFINED + 0x41 or rv == CKR_VENDOR_DEFINED + 0x1604
