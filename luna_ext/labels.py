"""Token labels between Python's str and PKCS #11's 32 blank padded bytes."""

from __future__ import annotations

LABEL_BYTES = 32


def encode_label(label: str, *, errors: str = "surrogateescape") -> bytes:
    """Encode a label as UTF-8, padded with blanks to 32 bytes.

    Parameters
    ----------
    label : str
        1 to 32 bytes of UTF-8. It may not contain NUL nor end in a blank, which the padding
        would hide.
    errors : str
        How str.encode() treats lone surrogates. The default turns those that decode_label() made
        of bytes that are not UTF-8 back into these bytes; "strict" refuses them.

    Returns
    -------
    bytes
        32 bytes.

    Raises
    ------
    TypeError
        The label is not a str.
    ValueError
        The label is empty, too long, or cannot be stored as it is.
    """
    if not isinstance(label, str):
        raise TypeError(
            f"a token label is a str of 1 to {LABEL_BYTES} bytes of UTF-8, "
            f"not {type(label).__name__}"
        )
    try:
        raw = label.encode("utf-8", errors)
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the label {label!r} cannot be written as UTF-8 "
            f"(a label is 1 to {LABEL_BYTES} bytes of UTF-8): {error.reason}"
        ) from None
    if not raw:
        raise ValueError(f"the label is empty; a label is 1 to {LABEL_BYTES} bytes of UTF-8")
    if len(raw) > LABEL_BYTES:
        raise ValueError(
            f"the label {label!r} is {len(raw)} bytes of UTF-8; at most {LABEL_BYTES} fit"
        )
    if b"\0" in raw:
        raise ValueError(
            f"the label {label!r} contains NUL; "
            f"a label is 1 to {LABEL_BYTES} bytes of UTF-8 without NUL"
        )
    if raw.endswith(b" "):
        raise ValueError(
            f"the label {label!r} ends in a blank, "
            f"which the padding to {LABEL_BYTES} bytes would hide"
        )
    return raw.ljust(LABEL_BYTES)


def decode_label(raw: bytes) -> str:
    """Decode a label, which blanks or NULs end; bytes that are not UTF-8 become lone surrogates."""
    return raw.split(b"\0", 1)[0].rstrip(b" ").decode("utf-8", "surrogateescape")


def decode_text(raw: bytes) -> str:
    """Decode a blank padded text field for people; bytes that are not UTF-8 become U+FFFD."""
    return raw.split(b"\0", 1)[0].rstrip(b" ").decode("utf-8", "replace")
