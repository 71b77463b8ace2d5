"""The stand-in's control interface (stub_lib/control.h) by ctypes: its structs, errors, ranges."""

from __future__ import annotations

import ctypes
import errno
import itertools
import operator
import os
from collections.abc import Iterator

ALL_ONES = 2**64 - 1
"""The number that means "none" in control.h."""
MICROSECONDS = 1_000_000
SHORTEST_PASSWORD = 8
LONGEST_PIN = 255
MOST_SECONDS = 1e9


class Token(ctypes.Structure):
    """luna_stub_token of control.h."""

    _fields_ = (
        ("slot_id", ctypes.c_uint64),
        ("label", ctypes.c_uint8 * 32),
        ("original_label", ctypes.c_uint8 * 32),
        ("owner_pid", ctypes.c_int64),
    )


class Rule(ctypes.Structure):
    """luna_stub_rule of control.h."""

    _fields_ = (
        ("rv", ctypes.c_uint64),
        ("times", ctypes.c_int64),
        ("every", ctypes.c_uint64),
        ("probability", ctypes.c_double),
        ("seed", ctypes.c_uint64),
        ("lost_reply", ctypes.c_uint32),
    )


class Call(ctypes.Structure):
    """luna_stub_call of control.h."""

    _fields_ = (
        ("number", ctypes.c_uint64),
        ("began", ctypes.c_uint64),
        ("duration", ctypes.c_uint64),
        ("function", ctypes.c_char_p),
        ("slot_id", ctypes.c_uint64),
        ("rv", ctypes.c_uint64),
        ("pid", ctypes.c_int64),
        ("thread", ctypes.c_int64),
    )


class Control:
    """The control functions of the stand-in at `library`, on the state file at `path`."""

    def __init__(self, library: str, path: str) -> None:
        self._library = ctypes.CDLL(library)
        self._path = path

    def call(self, name: str, *arguments: object, refusal: str = "") -> None:
        """luna_stub_`name`(path, *arguments); `refusal` says what is wrong if it is EINVAL."""
        error: int = self._library[f"luna_stub_{name}"](os.fsencode(self._path), *arguments)
        if error == errno.EINVAL and refusal:
            raise ValueError(refusal)
        if error == errno.ENOSYS:
            raise ValueError(f"there is no such C_ or CA_ function: {_shown(arguments[0])}")
        if error == errno.ENXIO:
            raise ValueError(f"the cluster has no slot {_number(arguments[0])}")
        if error == errno.EBADMSG:
            raise OSError(error, "not a state file of this version of the stand-in", self._path)
        if error == errno.EPERM:
            raise PermissionError(
                error, "the state file belongs to another user; make one of your own", self._path
            )
        if error == errno.ESRCH:
            process = f"process {_number(arguments[0])}" if arguments else "this process"
            raise ProcessLookupError(
                error,
                f"{process} has not initialised the stand-in on this cluster; Cluster.log() shows which "
                "processes have",
            )
        if error:
            raise OSError(error, f"the stand-in's {name}: {os.strerror(error)}", self._path)


def function_names(library: str) -> Iterator[str]:
    """Of the functions that the stand-in at `library` exports."""
    function, name = ctypes.CDLL(library).luna_stub_function, ctypes.c_char_p()
    for number in itertools.count():
        if function(ctypes.c_uint32(number), ctypes.byref(name)) != 0:
            return
        assert name.value is not None
        yield name.value.decode()


def _number(number: object) -> object:
    return getattr(number, "value", number)


def _shown(name: object) -> str:
    return repr(name.decode(errors="replace") if isinstance(name, bytes) else name)


def file_path(path: str | os.PathLike[str]) -> str:
    """The path of a file, which need not exist."""
    decoded = os.fsdecode(path)
    if not decoded or "\0" in decoded:
        raise ValueError(f"path is the path of a file, not {path!r}")
    return decoded


def module_path(path: str | os.PathLike[str]) -> str:
    """The absolute path of a file that exists: a name alone would be searched for elsewhere."""
    decoded = os.path.abspath(os.fsdecode(path))
    if not os.path.isfile(decoded):
        raise FileNotFoundError(errno.ENOENT, "there is no such PKCS #11 module", decoded)
    return decoded


def text(name: str, value: str) -> bytes:
    """A text for C, in UTF-8; `name` is that of the argument, for the error."""
    if not isinstance(value, str):
        raise TypeError(f"{name} is a str, not {value!r}")
    encoded = value.encode("utf-8", "surrogateescape")
    if b"\0" in encoded:
        raise ValueError(f"{name} must not contain a NUL character: {value!r}")
    return encoded


def pin_bytes(name: str, value: str | bytes | None, least: int = 1) -> bytes | None:
    """A PIN for C, of at least so many bytes; None: there is none."""
    if value is None:
        return None
    if not isinstance(value, str | bytes):
        raise TypeError(f"{name} is a str or bytes, not {type(value).__name__}")
    encoded = value.encode() if isinstance(value, str) else value
    if not least <= len(encoded) <= LONGEST_PIN:
        raise ValueError(f"{name} has {least} to {LONGEST_PIN} bytes, not {len(encoded)}")
    return encoded


def length_of(pin: bytes | None) -> ctypes.c_uint32:
    """How many bytes it has, for C."""
    return ctypes.c_uint32(0 if pin is None else len(pin))


def whole(name: str, value: int, least: int, most: int) -> int:
    """A whole number between two others."""
    # ctypes would cut off a number that is too large, without an error.
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is a whole number, not {value!r}") from None
    if not least <= number <= most:
        raise ValueError(f"{name} is a whole number from {least} to {most}, not {value!r}")
    return number


def real(name: str, value: float, least: float, most: float) -> float:
    """A real number between two others."""
    if not isinstance(value, int | float):
        raise TypeError(f"{name} is a number, not {value!r}")
    if not least <= value <= most:
        raise ValueError(f"{name} is a number from {least:g} to {most:g}, not {value!r}")
    return float(value)


def microseconds(name: str, seconds: float) -> int:
    """A time in seconds, as whole microseconds for C."""
    return round(real(name, seconds, 0, MOST_SECONDS) * MICROSECONDS)
