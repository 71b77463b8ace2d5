"""Where a command keeps a PIN: in memory, and in a process, that leave no copy on a disk."""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Self

MADV_WIPEONFORK = 18
PR_GET_DUMPABLE, PR_SET_DUMPABLE = 3, 4
NEWLINE = ord("\n")

_libc = ctypes.CDLL(None)


class PinMemory:
    """A page for a PIN, wiped at the end of the ``with`` block.

    As far as the system lets this process do that, the page is locked, and kept out of core dumps and
    forked children. No object of Python's has the PIN: those are copied and not wiped.
    """

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        for advice in (mmap.MADV_DONTDUMP, MADV_WIPEONFORK):
            with suppress(OSError):
                self._page.madvise(advice)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._page))
        _libc.mlock(ctypes.c_void_p(address), ctypes.c_size_t(len(self._page)))
        self._length = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.forget()

    @property
    def pin(self) -> memoryview:
        """What was read."""
        return memoryview(self._page)[: self._length]

    def read_line(self, descriptor: int, most: int) -> bool:
        """Read a line, without its end; whether it has one. ValueError: it has more bytes than that.

        Byte by byte, so that the next reader of the descriptor gets the rest.
        """
        self.forget()
        room = memoryview(self._page)
        while os.readv(descriptor, [room[self._length : self._length + 1]]):
            if room[self._length] == NEWLINE:
                return True
            self._length += 1
            if self._length > most:
                raise ValueError
        return False

    def forget(self) -> None:
        self._length = 0
        self._page[:] = bytes(len(self._page))

    def begins_with(self, *texts: bytes) -> bool:
        return any(self._page.find(text, 0, self._length) == 0 for text in texts)

    def ends_with(self, *texts: bytes) -> bool:
        found = ((self._page.rfind(text, 0, self._length), len(text)) for text in texts)
        return any(at >= 0 and at + length == self._length for at, length in found)

    def __contains__(self, text: bytes) -> bool:
        return self._page.find(text, 0, self._length) >= 0

    def shorten(self) -> None:
        """Take the last byte away."""
        self._length -= 1


@contextmanager
def never_dumped() -> Iterator[None]:
    """Within the block no core of this process is written, and its user's others cannot read it."""
    limits = resource.getrlimit(resource.RLIMIT_CORE)
    dumpable = _libc.prctl(PR_GET_DUMPABLE, 0, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, limits[1]))
    _libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    try:
        yield
    finally:
        if dumpable == 1:
            _libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
        resource.setrlimit(resource.RLIMIT_CORE, limits)
