"""Keeps an application from using the stand-in as an HSM by accident."""

from __future__ import annotations

import os
import warnings

from ..errors import LibraryLoadError

FORBID_VARIABLE = "LUNA_EXT_FORBID_STUB"


class ExpectedStandIn(str):
    """The stand-in's path, given by a caller that means the stand-in."""


def check_stand_in(path: str, *, warn: bool) -> None:
    """Before the stand-in at `path` is used: refuse it where it is forbidden, else warn."""
    if os.environ.get(FORBID_VARIABLE, "") not in ("", "0"):
        raise LibraryLoadError(
            f"{path!r} is the stand-in, not an HSM's client library, and {FORBID_VARIABLE}=1 "
            "forbids it. Give the path of the real library"
        )
    if warn:
        warnings.warn(
            f"{path!r} is the stand-in, not an HSM's client library: its locks protect nothing "
            "outside of this machine. Where it is meant, open it by "
            "luna_ext.stub.Cluster.library(), and this warning goes; where it must never be, set "
            f"{FORBID_VARIABLE}=1",
            RuntimeWarning,
            # The caller of Library(); compiled functions have no frame.
            stacklevel=2,
        )
