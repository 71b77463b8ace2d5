"""Keeps an application from using the stand-in as an HSM by accident."""

from __future__ import annotations

import logging
import os
import warnings

from ..errors import LibraryLoadError

FORBID_VARIABLE = "LUNA_EXT_FORBID_STUB"
FORBID_FILE = "/etc/luna_ext/forbid-stub"

_log = logging.getLogger("luna_ext")


class ExpectedStandIn(str):
    """The stand-in's path, given by a caller that means the stand-in."""


def check_stand_in(path: str, *, warn: bool) -> None:
    """Before the stand-in at `path` is used: refuse it where it is forbidden, else warn."""
    forbids = _forbidden_by()
    if forbids:
        raise LibraryLoadError(
            f"{path!r} is the stand-in, not an HSM's client library, and {forbids} forbids it. Give the "
            "path of the real library"
        )
    if warn:
        says = (
            f"{path!r} is the stand-in, not an HSM's client library: its locks protect nothing outside of "
            "this machine"
        )
        # By default Python shows a warning to developers alone.
        _log.warning("%s", says)
        warnings.warn(
            f"{says}. Where it is meant, open it by luna_ext.stub.Cluster.library(), and this warning "
            f"goes; where it must never be, set {FORBID_VARIABLE}=1, or let root make {FORBID_FILE}",
            RuntimeWarning,
            # The caller of Library(); compiled functions have no frame.
            stacklevel=2,
        )


def _forbidden_by() -> str:
    """What forbids the stand-in; "": nothing. The stand-in itself asks the same (application.c)."""
    if os.environ.get(FORBID_VARIABLE, "") not in ("", "0"):
        return f"{FORBID_VARIABLE}=1"
    try:
        return FORBID_FILE if os.stat(FORBID_FILE).st_uid == 0 else ""
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError:
        # One that cannot be seen may be there.
        return FORBID_FILE
