"""What stands in place of a PIN that is entered at the token's own pad."""

import enum

__all__ = ["PIN_PAD", "PinPad"]


class PinPad(enum.Enum):
    """The type of `PIN_PAD`."""

    PIN_PAD = "PIN_PAD"

    def __repr__(self) -> str:
        return "luna_ext.PIN_PAD"


PIN_PAD = PinPad.PIN_PAD
"""In place of a PIN: it is entered at the PED, or another protected authentication path of the token, and
NULL is passed to the C function. For tokens with the flag PROTECTED_AUTHENTICATION_PATH."""
