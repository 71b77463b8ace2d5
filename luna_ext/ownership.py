"""Whether other users may change the client library, its configuration, or the directories above them.

Such a user gets the PINs and the keys of each program that loads the library. As ssh does it with its
files, each of them has to belong to root or to the user of this process, and to be writable by no other. A
directory of theirs that is sticky, as /tmp is, may be writable: what others own in it is noticed, and what
they do not own they cannot replace.
"""

from __future__ import annotations

import logging
import os
import shlex
import stat
from pathlib import Path

from .discovery import configuration_file
from .errors import LibraryLoadError
from .escaping import printable

# As typing.TYPE_CHECKING, which takes long to import.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

MOST_LINKS = 40
"""As Linux follows in a path."""
STAND_IN = os.path.abspath(Path(__file__).with_name("luna_stub.so"))
"""Who may change it may change this package as well."""

_looked_at: set[str] = set()


class Weakness:
    """Why a file or directory is not safe from other users."""

    __slots__ = ("advice", "path", "says")

    def __init__(self, path: str, says: str, advice: str) -> None:
        self.path = path
        self.says = says
        self.advice = advice


def weaknesses_of_client(library: str) -> list[Weakness]:
    """Those of a client library and of the configuration that it reads."""
    if library == STAND_IN or not hasattr(os, "geteuid"):
        return []
    found = {weakness.path: weakness for weakness in _weaknesses(library)}
    try:
        # Also where there is none yet: another user may put one there.
        file = str(configuration_file())
    except LibraryLoadError:
        return list(found.values())
    return list({**found, **{weakness.path: weakness for weakness in _weaknesses(file)}}.values())


def in_words(weaknesses: list[Weakness]) -> tuple[str, str]:
    """What is wrong, and what to do."""
    says = "; ".join(f"{weakness.path} {weakness.says}" for weakness in weaknesses)
    advice = "; ".join(weakness.advice for weakness in weaknesses)
    return printable(f"other users may change what this process loads: {says}"), printable(advice)


def tell_once(library: str) -> None:
    """A WARNING record, once in a process for each client library, if there is something to tell."""
    if library in _looked_at:
        return
    _looked_at.add(library)
    weaknesses = weaknesses_of_client(library)
    if weaknesses:
        logging.getLogger("luna_ext").warning(
            "%s. A user who does gets its PINs and the use of its keys. What to do: %s",
            *in_words(weaknesses),
        )


def _weaknesses(path: str) -> Iterator[Weakness]:
    for step, state in _steps(path):
        # Any user may read a link; its mode says nothing.
        mode = 0 if stat.S_ISLNK(state.st_mode) else stat.S_IMODE(state.st_mode)
        quoted = shlex.quote(step)
        if state.st_uid not in (0, os.geteuid()):
            yield Weakness(
                step, f"belongs to the user {_user(state.st_uid)}", f"chown root {quoted}"
            )
        elif mode & stat.S_ISVTX and stat.S_ISDIR(state.st_mode):
            continue
        elif mode & stat.S_IWOTH:
            says = f"is writable by all users (mode {mode:04o})"
            yield Weakness(step, says, f"chmod go-w {quoted}")
        elif mode & stat.S_IWGRP and not _has_no_other_member(state.st_gid):
            says = f"is writable by the group {_group(state.st_gid)} (mode {mode:04o})"
            yield Weakness(step, says, f"chmod g-w {quoted}")


def _steps(path: str) -> Iterator[tuple[str, os.stat_result]]:
    """The directories and links that lead to the file, and itself, as far as they are there."""
    here, left, links = os.sep, _parts(path), 0
    try:
        yield here, os.lstat(here)
        while left:
            part = left.pop()
            if part == os.pardir:
                here = os.path.dirname(here)
                continue
            step = os.path.join(here, part)
            state = os.lstat(step)
            yield step, state
            if not stat.S_ISLNK(state.st_mode):
                here = step
                continue
            links += 1
            if links > MOST_LINKS:
                return
            target = os.readlink(step)
            left += _parts(target)
            if os.path.isabs(target):
                here = os.sep
    except OSError:
        return


def _parts(path: str) -> list[str]:
    return [part for part in reversed(path.split(os.sep)) if part not in ("", os.curdir)]


def _has_no_other_member(gid: int) -> bool:
    """Whether only root and this user are in the group, as far as the system's lists have it."""
    import grp
    import pwd

    try:
        own = {"root", pwd.getpwuid(os.geteuid()).pw_name}
        members = set(grp.getgrgid(gid).gr_mem)
    except KeyError:
        return False
    members |= {user.pw_name for user in pwd.getpwall() if user.pw_gid == gid}
    return members <= own


def _user(uid: int) -> str:
    import pwd

    try:
        return f"{pwd.getpwuid(uid).pw_name} (UID {uid})"
    except KeyError:
        return f"with the UID {uid}"


def _group(gid: int) -> str:
    import grp

    try:
        return f"{grp.getgrgid(gid).gr_name} (GID {gid})"
    except KeyError:
        return f"with the GID {gid}"
