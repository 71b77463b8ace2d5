"""Why a file cannot be loaded as a client library: as its header tells, and as the system's loader does."""

from __future__ import annotations

import os
import re
import struct
from typing import BinaryIO, NamedTuple

LOADING = "the loading of its file"

THIS_PROGRAM = "/proc/self/exe"
MAGIC = b"\x7fELF"
SHARED, LOADED = 3, 1
"""e_type of a library, p_type of what is loaded of it."""
MACHINES = {
    3: "x86 of 32 bits",
    20: "PowerPC of 32 bits",
    21: "PowerPC",
    22: "IBM Z",
    40: "ARM of 32 bits",
    62: "x86-64",
    183: "ARM of 64 bits",
    243: "RISC-V",
}

# Of files for 32 and 64 bits: from e_entry on, e_phoff, e_phentsize and e_phnum; of a program header
# p_type, p_offset and p_filesz.
LAYOUTS = {1: ("4xI4x4x2xHH", "II4x4xI"), 2: ("8xQ8x4x2xHH", "I4xQ8x8xQ")}


class _Header(NamedTuple):
    """What is to be known of an ELF file."""

    kind: int
    machine: str
    least_size: int
    """The file has so many bytes at least, for what is loaded of it."""


def _read(file: BinaryIO) -> _Header | None:
    """The file's header; None if it has none, or not a whole one."""
    begin = file.read(24)
    if len(begin) < 24 or not begin.startswith(MAGIC) or begin[4] not in LAYOUTS:
        return None
    order = "<" if begin[5] == 1 else ">"
    kind, machine = struct.unpack(f"{order}HH", begin[16:20])
    header, segment = (order + layout for layout in LAYOUTS[begin[4]])
    least = len(begin) + struct.calcsize(header)
    try:
        place, size, count = struct.unpack(header, file.read(struct.calcsize(header)))
        least = place + size * count
        for number in range(count):
            file.seek(place + size * number)
            read = file.read(struct.calcsize(segment))
            what, offset, length = struct.unpack(segment, read)
            if what == LOADED:
                least = max(least, offset + length)
    except struct.error:
        # The end of the file has come first.
        pass
    return _Header(kind, MACHINES.get(machine, f"machine {machine}"), least)


def look_at(path: str) -> tuple[str, str] | None:
    """What is wrong with the file, and what to do; None: nothing that its header tells."""
    try:
        with open(THIS_PROGRAM, "rb") as file:
            ours = _read(file)
        if ours is None:
            # A system of another kind.
            return None
        with open(path, "rb") as file:
            its = _read(file)
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        if error.filename == THIS_PROGRAM:
            return None
        return (
            f"{path} cannot be read: {error.strerror}",
            "let this user read and execute it",
        )
    if its is None or its.kind != SHARED:
        return (
            f"{path} is no shared library: {size} bytes of another kind",
            "name the client's libCryptoki2_64.so instead; the package of the Luna client has it",
        )
    if its.machine != ours.machine:
        return (
            f"{path} is for {its.machine}, but this Python is for {ours.machine}",
            f"install the Luna client for {ours.machine}, or run a Python for {its.machine}",
        )
    if size < its.least_size:
        return (
            f"{path} is cut off: it has {size} bytes of {its.least_size}",
            "install the Luna client once more; see whether the disk was full",
        )
    return None


def advice_on_loading(path: str, says: str) -> tuple[str, str]:
    """What the system's loader says, in our words where there are better ones, and what to do."""
    missing = re.match(r"(?P<name>\S+): cannot open shared object file: No such file", says)
    if missing and missing["name"] != path:
        return (
            f"{path} needs {missing['name']}, which the system does not find",
            f"install what has {missing['name']}; or, if it is there, put its folder into "
            f"LD_LIBRARY_PATH or /etc/ld.so.conf.d. `ldd {path}` shows all that it needs",
        )
    if missing := re.search(r"version `(?P<name>\S+)' not found", says):
        return (
            f"{path} needs {missing['name']}, and this system's is older: {says}",
            "install a Luna client that is made for this system, or take a newer system",
        )
    if missing := re.search(r"undefined symbol: (?P<name>\S+)", says):
        return (
            f"{path} needs the function or variable {missing['name']}, which no library that it names has",
            "the libraries that it names have other versions than it was made with: install the Luna "
            f"client as a whole; `ldd {path}` shows which ones are found",
        )
    if "failed to map segment" in says:
        return (
            f"{path} may not be executed: {says}",
            "see whether its file system is mounted with noexec, and whether a policy such as SELinux's "
            "forbids it",
        )
    return (f"{path} cannot be loaded: {says}", f"see what `ldd {path}` says of it")
