"""Starts and steers the stand-in for the HSM. Nothing in this package chooses it by itself."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Literal, NamedTuple, Self

from .labels import decode_label
from .library import Library

__all__ = ["Cluster", "ClusterToken", "library_path"]

STATE_VARIABLE = "LUNA_STUB_STATE"


class ClusterToken(NamedTuple):
    """One keyring of the stand-in's cluster, as it was at the moment of asking."""

    slot_id: int
    label: str
    original_label: str
    owner: int | None
    """The PID of the process that holds its lock."""


class _Token(ctypes.Structure):
    # luna_stub_token of control.h
    _fields_ = (
        ("slot_id", ctypes.c_uint64),
        ("label", ctypes.c_uint8 * 32),
        ("original_label", ctypes.c_uint8 * 32),
        ("owner_pid", ctypes.c_int64),
    )


def library_path() -> str:
    """The stand-in's shared library: a PKCS #11 module, for `Library(path)` or any other client.

    The environment variable LUNA_STUB_STATE has to name a cluster's state file when it is
    initialised.
    """
    suffix = ".dll" if sys.platform == "win32" else ".so"
    return str(Path(__file__).with_name("luna_stub" + suffix))


class Cluster:
    """A cluster of the stand-in: keyrings that every process of this machine can share.

    Parameters
    ----------
    path : str or os.PathLike, optional
        The state file; made if it does not exist, kept if it does. Without it: a file in a
        temporary directory that goes with `destroy()` or the end of the ``with`` block.
    cluster_id : str
        What `Library.claim()` names.
    keyrings : int
        1 to 3500. Their labels are `label` with 1, 2, 3 ... appended.
    label : str
        What the keyrings' original labels begin with.
    first_slot : int
        The first slot ID; the others follow.

    Notes
    -----
    A process is one application of one cluster at a time: `library()` says which by setting
    LUNA_STUB_STATE in this process's environment, and child processes inherit it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        cluster_id: str = "cluster-1",
        keyrings: int = 8,
        label: str = "keyring",
        first_slot: int = 1,
    ) -> None:
        self._control = ctypes.CDLL(library_path())
        self._temporary = None if path else tempfile.mkdtemp(prefix="luna_stub-")
        self.path = os.path.abspath(path or os.path.join(str(self._temporary), "cluster"))
        self.cluster_id = cluster_id
        if not os.path.exists(self.path):
            try:
                self._call(
                    "create",
                    cluster_id.encode(),
                    label.encode(),
                    ctypes.c_uint32(keyrings),
                    ctypes.c_uint64(first_slot),
                )
            except OSError:
                self.destroy()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.destroy()

    def destroy(self) -> None:
        """Remove the temporary directory; a state file that was named by its path is kept."""
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)

    def library(self, *, contention: Literal["block", "poll"] = "block") -> Library:
        """Open the stand-in on this cluster in this process."""
        os.environ[STATE_VARIABLE] = self.path
        return Library(library_path(), contention=contention)

    def fault(self, function: str, rv: int, *, times: int = -1) -> None:
        """Let a C function answer `rv`, without effect, to its next `times` calls by anybody.

        -1: to every call; 0: to no call any more.
        """
        self._call("fault", function.encode(), ctypes.c_uint64(rv), ctypes.c_int64(times))

    def latency(self, seconds: float, function: str | None = None) -> None:
        """Let a C function, or all of them, take this long."""
        name = None if function is None else function.encode()
        self._call("latency", name, ctypes.c_uint64(round(seconds * 1_000_000)))

    def switch(self, name: str, value: str) -> None:
        """Choose what the SDK leaves open.

        ========== ======================== ===================================================
        name       values, the first is set it is about
        ========== ======================== ===================================================
        contention wait, error              a lock call while another process holds the lock
        relock     granted, wait, error     a second lock call of the process that holds it
        unlock_owner unchecked, checked     an unlock call by a process that does not hold it
        ========== ======================== ===================================================
        """
        self._call("switch", name.encode(), value.encode())

    def disconnect(self, pid: int) -> None:
        """Drop a process's connection: its locks are gone, its calls answer CKR_DEVICE_ERROR."""
        self._call("disconnect", ctypes.c_int64(pid))

    def tokens(self) -> list[ClusterToken]:
        """All keyrings and who holds their locks."""
        count = ctypes.c_uint32(0)
        self._call("snapshot", None, ctypes.c_uint32(0), ctypes.byref(count))
        tokens = (_Token * count.value)()
        self._call("snapshot", tokens, count, ctypes.byref(count))
        return [
            ClusterToken(
                slot_id=token.slot_id,
                label=decode_label(bytes(token.label)),
                original_label=decode_label(bytes(token.original_label)),
                owner=token.owner_pid or None,
            )
            for token in tokens
        ]

    def _call(self, name: str, *arguments: object) -> None:
        error: int = self._control[f"luna_stub_{name}"](os.fsencode(self.path), *arguments)
        if error:
            raise OSError(error, f"the stand-in's {name}: {os.strerror(error)}", self.path)

    def __repr__(self) -> str:
        return f"<luna_ext.stub.Cluster {self.cluster_id!r} at {self.path!r}>"
