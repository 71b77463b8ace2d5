"""The device layer: a loaded client library and this process's calls into it.

It knows nothing of locks. The layers above make device calls through it, and keep with a Client
what they have to keep for it.
"""

import os
import sys

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.math cimport INFINITY
from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memchr, memcmp, memcpy, memset

from .errors import (
    LOCKED_OUT,
    OPEN_AFTER_FORK,
    BufferTooSmallError,
    CryptokiError,
    DeviceError,
    LibraryClosedError,
    LibraryLoadError,
    Meaning,
    PinError,
    UnsupportedFunctionError,
    codes_that_mean,
    error_for,
    rv_name,
)
from .escaping import printable
from .labels import decode_label, decode_text
from .pin_pad import PIN_PAD

include "_device/stats.pyx"
include "_device/pin.pyx"
include "_device/client.pyx"
include "_device/calls.pyx"
include "_device/changes.pyx"
