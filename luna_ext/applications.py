"""Whether the device may take this process and others for one application, as far as this host shows it.

A lock belongs to an application. Which processes are one is decided by the client's application ID: its
configuration may set one for all, and otherwise older clients make it of the process ID.
"""

from __future__ import annotations

import logging
import os

from .discovery import Configuration
from .errors import LibraryLoadError

INITIAL_NAMESPACE = 0xEFFFFFFC
"""The inode of a Linux host's own namespace of process IDs, PROC_PID_INIT_INO."""

FIND_OUT = "`luna-ext probe --slot N` finds out whether it does"
NOT_APART = "a lock that one of them holds may be granted to another, and unlocked by it"

_told = False


def configured() -> tuple[str, dict[str, str]]:
    """The client's configuration file, and its entries for the application ID; none if it is unreadable."""
    try:
        configuration = Configuration()
    except LibraryLoadError:
        return "", {}
    return str(configuration.file), configuration.application_id()


def shared_with_others() -> tuple[str, str] | None:
    """What may make one application of this process and others, and what to do; None: nothing is known."""
    file, entries = configured()
    if entries:
        names = ", ".join(f"{key} = {value}" for key, value in entries.items())
        return (
            f"{file}: {names}: for the device, all processes that use this configuration may be one "
            f"application, and then {NOT_APART}",
            f"{FIND_OUT}; if so, remove these entries, or let no two processes use them at a time",
        )
    if os.getpid() == 1:
        return (
            "this process has the process ID 1, as one of each container has: some clients make their "
            "application ID of it, and then the device takes the processes of several containers for one "
            f"application: {NOT_APART}",
            "give each container an application ID of its own, by AppIdMajor and AppIdMinor in the section "
            "Misc of its Chrystoki.conf, or let the containers share the process IDs of their host",
        )
    return None


def has_own_process_ids() -> bool | None:
    """Whether this process has a process ID of a container; None: the system does not tell."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino != INITIAL_NAMESPACE
    except OSError:
        return None


def tell_once() -> None:
    """A WARNING record, once in a process, if there is something to tell."""
    global _told
    if _told:
        return
    _told = True
    found = shared_with_others()
    if found is not None:
        logging.getLogger("luna_ext").warning("%s. What to do: %s", *found)


def tell_no_more() -> None:
    """The program tells it itself."""
    global _told
    _told = True
