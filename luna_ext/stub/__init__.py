"""Starts and steers the stand-in for the HSM. luna_ext never uses the stand-in by itself."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Literal, NamedTuple, Self

from .._cluster import Library
from ..errors import rv_name
from ..labels import decode_label
from .control import (
    ALL_ONES,
    LONGEST_PIN,
    SHORTEST_PASSWORD,
    Call,
    Control,
    Rule,
    Token,
    file_path,
    length_of,
    microseconds,
    module_path,
    pin_bytes,
    real,
    text,
    whole,
)
from .environment import Variable
from .guard import ExpectedStandIn, check_stand_in

__all__ = ["Cluster", "ClusterToken", "LoggedCall", "library_path"]

STATE_VARIABLE = "LUNA_STUB_STATE"
BACKEND_VARIABLE = "LUNA_STUB_BACKEND"
NANOSECONDS = 1_000_000_000

_log = logging.getLogger("luna_ext")
_state = Variable(STATE_VARIABLE)
_backend = Variable(BACKEND_VARIABLE)


class ClusterToken(NamedTuple):
    """One keyring of the stand-in's cluster, as it was at the moment of asking."""

    slot_id: int
    label: str
    original_label: str
    owner: int | None
    """The PID of the process that holds its lock; None: not locked."""


class LoggedCall(NamedTuple):
    """One call of a C function, by any process."""

    number: int
    """From 1, in the order in which the calls began."""
    function: str
    slot_id: int | None
    """The slot of the call, or of its session; of CA_GetUnassignedSlot, the slot that it gave. None: a
    call without a slot."""
    rv: int | None
    """What it answered; None: it has not returned, or its process died during the call."""
    pid: int
    thread_id: int
    """The thread's `threading.get_native_id()`."""
    time: float
    """When it began, in seconds, as `time.time()` counts them."""
    duration: float | None
    """Seconds until it returned; None as in `rv`."""

    @property
    def rv_name(self) -> str | None:
        """The name of the result: "CKR_OK"."""
        return None if self.rv is None else rv_name(self.rv)


def library_path() -> str:
    """The stand-in's shared library: a PKCS #11 module, for `Library(path)` or any other client.

    The environment variable LUNA_STUB_STATE has to name a cluster's state file when it is
    initialised.
    """
    suffix = ".dll" if sys.platform == "win32" else ".so"
    # In luna_ext itself, where programs in any language load it.
    return str(Path(__file__).parents[1] / ("luna_stub" + suffix))


def _remove(directory: str, made_by: int) -> None:
    if os.getpid() == made_by:
        shutil.rmtree(directory, ignore_errors=True)


class Cluster:
    """A cluster of the stand-in: keyrings that every process of this machine can share.

    Parameters
    ----------
    path : str or os.PathLike, optional
        The state file; made if it does not exist. A cluster that exists stays as it is, and the
        other arguments are ignored. Without a path: a file in a temporary directory, which
        `destroy()`, the end of the ``with`` block or the interpreter's exit removes.
    cluster_id : str
        What `Library.claim()` names; 1 to 64 bytes in UTF-8.
    keyrings : int
        1 to 3500. Their labels are `label` with 1, 2, 3 ... appended.
    label : str
        What the keyrings' original labels begin with.
    first_slot : int
        The first slot ID; the others follow.
    password : str or bytes, optional
        8 to 255 bytes. Every keyring is made as the appliance makes it: initialised, and both of its
        roles, CKU_SO and CKU_USER, have this password. Without it the keyrings are fresh: the first
        C_InitToken sets the security officer's PIN.
    backend : str or os.PathLike, optional
        Another PKCS #11 module, such as SoftHSM2's, that keeps the objects of the keyrings and does
        their cryptography: "/usr/lib/softhsm/libsofthsm2.so". Without it there is none, unless
        LUNA_STUB_BACKEND in the environment names one.

    Raises
    ------
    TypeError, ValueError
        An argument is out of range.
    OSError
        The file cannot be made or opened, or is no state file of this version.
    LibraryLoadError
        LUNA_EXT_FORBID_STUB=1 or /etc/luna_ext/forbid-stub forbids the stand-in.

    Notes
    -----
    A process is one application of one cluster at a time: `library()` says which by setting
    LUNA_STUB_STATE in this process's environment, and child processes inherit it. So it is with the
    backend and LUNA_STUB_BACKEND. `destroy()` or the end of the ``with`` block puts both back. The
    backend's objects are in a directory beside the state file.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        cluster_id: str = "cluster-1",
        keyrings: int = 8,
        label: str = "keyring",
        first_slot: int = 1,
        password: str | bytes | None = None,
        backend: str | os.PathLike[str] | None = None,
    ) -> None:
        check_stand_in(library_path(), warn=False)
        self.backend = None if backend is None else module_path(backend)
        self._remove: Callable[[], None] | None = None
        if path is None:
            directory = tempfile.mkdtemp(prefix="luna_stub-")
            # Not as soon as the Cluster is collected, for child processes may still use the file.
            self._remove = atexit.register(functools.partial(_remove, directory, os.getpid()))
            path = os.path.join(directory, "cluster")
        try:
            self.path = os.path.abspath(file_path(path))
            self._control = Control(library_path(), self.path)
            if not os.path.exists(self.path):
                self._create(cluster_id, label, keyrings, first_slot, password)
            stored_id = ctypes.create_string_buffer(65)
            self._control.call("cluster_id", stored_id)
        except BaseException:
            self.destroy()
            raise
        self.cluster_id = stored_id.value.decode("utf-8", "surrogateescape")

    def _create(
        self,
        cluster_id: str,
        label: str,
        keyrings: int,
        first_slot: int,
        password: str | bytes | None,
    ) -> None:
        common = pin_bytes("password", password, SHORTEST_PASSWORD)
        # Another process may have made the file meanwhile; then its cluster is used.
        with contextlib.suppress(FileExistsError):
            self._control.call(
                "create",
                text("cluster_id", cluster_id),
                text("label", label),
                ctypes.c_uint32(whole("keyrings", keyrings, 1, 3500)),
                ctypes.c_uint64(whole("first_slot", first_slot, 0, 2**64 - 1)),
                common,
                length_of(common),
                refusal="a cluster_id has 1 to 64 bytes, a label with its index 32 at most, and "
                "the last slot ID has to be a CK_SLOT_ID, too: "
                f"{cluster_id!r}, {label!r}, {first_slot}",
            )

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
        """Remove the temporary directory; a state file that was named by its path is kept.

        A forked child leaves it to its parent. LUNA_STUB_STATE and LUNA_STUB_BACKEND are again as they
        were before `library()`.
        """
        _state.put_back(self)
        _backend.put_back(self)
        if self._remove is not None:
            atexit.unregister(self._remove)
            self._remove()

    def library(
        self, *, contention: Literal["block", "poll"] = "block", handover: float = 0.0
    ) -> Library:
        """Open the stand-in on this cluster in this process.

        There is no warning, for the stand-in is meant here; an INFO record tells of it.

        Parameters
        ----------
        contention : {"block", "poll"}
        handover : float
            As for `Library`.

        Raises
        ------
        RuntimeError
            A Library of this process is still open on another cluster.
        LibraryLoadError, DeviceError
            As `Library`: the stand-in is forbidden, or cannot use the state file or the backend.
        """
        _state.set(self, self.path)
        if self.backend is not None:
            _backend.set(self, self.backend)
        library = Library(ExpectedStandIn(library_path()), contention=contention, handover=handover)
        try:
            self._control.call("entered")
        except BaseException as error:
            library.close()
            if isinstance(error, ProcessLookupError):
                raise RuntimeError(
                    f"this process has not become an application of the cluster at {self.path!r}, "
                    "for it is already one of another cluster; close the Library that is open there"
                ) from None
            raise
        _log.info(
            "the stand-in, not an HSM, is open on the cluster at %r: its locks protect nothing outside of "
            "this machine",
            self.path,
        )
        return library

    def fault(
        self,
        function: str,
        rv: int,
        *,
        times: int = -1,
        every: int = 1,
        probability: float = 1.0,
        seed: int = 0,
        lost_reply: bool = False,
    ) -> None:
        """Let a C function answer `rv` to the calls of all processes, from now on.

        A function has one fault at a time: a new one replaces the old one, and counts the calls from
        then on.

        Parameters
        ----------
        function : str
            Its C name: "CA_LockClusteredSlot".
        rv : int
            The code that it answers: 0x30.
        times : int
            How many calls it strikes at most; -1: no limit; 0: no call any more.
        every : int
            n: only every n-th call is struck; 1: each.
        probability : float
            0 to 1: the part of these calls that is struck, chosen by random numbers.
        seed : int
            Of the random numbers: the same seed strikes the same calls.
        lost_reply : bool
            False: a call that is struck has no effect. True: it takes effect and answers the
            error: a lock is set, a token is claimed but the caller does not get its slot, a session
            is open but the caller does not get its handle.

        Raises
        ------
        TypeError, ValueError
            An argument is out of range, or there is no such function.
        OSError
            The state file cannot be used.
        """
        rule = Rule(
            rv=whole("rv", rv, 0, 2**64 - 1),
            times=whole("times", times, -1, 2**32 - 1),
            every=whole("every", every, 1, 2**64 - 1),
            probability=real("probability", probability, 0, 1),
            seed=whole("seed", seed, 0, 2**64 - 1),
            lost_reply=bool(lost_reply),
        )
        self._control.call(
            "fault",
            text("function", function),
            ctypes.byref(rule),
            refusal=f"rv is a CK_RV, which 0x{rv:X} cannot be on this platform",
        )

    def latency(
        self,
        seconds: float,
        function: str | None = None,
        *,
        up_to: float | None = None,
        seed: int = 0,
        after: bool = False,
    ) -> None:
        """Let a C function, or all of them, take so many seconds longer, from now on.

        A function can have a latency before its effect and one after it at the same time.

        Parameters
        ----------
        seconds : float
            The delay; 0: none. Rounded to microseconds.
        function : str, optional
            Its C name; without it: all functions.
        up_to : float, optional
            Seconds. Each delay is a random number from `seconds` to this, evenly distributed.
        seed : int
            Of the random numbers: the same seed gives the same delays.
        after : bool
            False: the delay comes before the call takes effect. True: it comes after the effect,
            before the caller gets the answer: a lock is set, or is off, or a token is claimed
            already. If the connection is lost meanwhile, the answer is an error.

        Raises
        ------
        TypeError, ValueError
            An argument is out of range, or there is no such function.
        OSError
            The state file cannot be used.
        """
        least = microseconds("seconds", seconds)
        most = least if up_to is None else microseconds("up_to", up_to)
        self._control.call(
            "latency",
            None if function is None else text("function", function),
            ctypes.c_uint64(least),
            ctypes.c_uint64(most),
            ctypes.c_uint64(whole("seed", seed, 0, 2**64 - 1)),
            ctypes.c_uint32(bool(after)),
            refusal=f"up_to is not less than seconds, as {up_to!r} is",
        )

    def switch(self, name: str, value: str) -> None:
        """Choose what the SDK leaves open.

        ============== ===================== ==================================================
        name           values, default first what it is about
        ============== ===================== ==================================================
        contention     wait, error           a lock call while another process holds the lock
        relock         granted, wait, error  a second lock call of the process that holds it
        unlock_owner   unchecked, checked    an unlock call by a process that does not hold it
        regrant        on, off               whether a claim may give a token whose lock this
                                             process holds, while relock is granted
        grants         once, counted         whether one unlock call takes off a lock that was
                                             granted several times, or one for each grant
        application    process, shared       whether each process is an application, or all are
                                             one: then what one of them holds, each holds
        identity       single, dual          whether both roles of a keyring have one password,
                                             so that what sets one sets the other's as well
        pin_change     free, forced          whether a user has to change a PIN that C_InitPIN
                                             has set: until then, CKR_PIN_EXPIRED
        authentication password, ped         whether PINs are passed, or are NULL and read by a
                                             PED, and always right
        change_label   off, on               whether CA_ChangeLabel is supported
        log            on, off               whether calls are logged
        ============== ===================== ==================================================

        The change also applies to calls that wait already. With regrant, a claim gives a free token
        or one that the process holds, by chance; but one that was granted again already, by a claim
        or a lock call, is not given once more until an unlock call has taken that grant off. So a
        client that asks again gets a free token, or the answer that there is none.

        Parameters
        ----------
        name, value : str
            A switch of the table, and one of its values.

        Raises
        ------
        TypeError, ValueError
            There is no such switch, or it has no such value.
        OSError
            The state file cannot be used.
        """
        self._control.call(
            "switch",
            text("name", name),
            text("value", value),
            refusal=f"there is no switch {name!r} with a value {value!r}; "
            "Cluster.switch says which there are",
        )

    def pin_lengths(self, least: int, most: int) -> None:
        """Say how long a PIN has to be that is set from now on. At first: 8 to 255 bytes.

        Parameters
        ----------
        least, most : int
            Bytes, 1 to 255.

        Raises
        ------
        TypeError, ValueError
            A number is out of range, or `least` is more than `most`.
        OSError
            The state file cannot be used.
        """
        self._control.call(
            "pin_lengths",
            ctypes.c_uint32(whole("least", least, 1, LONGEST_PIN)),
            ctypes.c_uint32(whole("most", most, 1, LONGEST_PIN)),
            refusal=f"least is not more than most, as {least!r} is",
        )

    def set_pins(
        self, slot_id: int, so_pin: str | bytes | None, user_pin: str | bytes | None = None
    ) -> None:
        """Give a keyring these PINs; wrong tries are forgotten.

        Its label and its objects stay. The PINs are taken as they are, whatever `pin_lengths()` and
        the switches say: with a single identity they should be the same.

        Parameters
        ----------
        slot_id : int
            The keyring's.
        so_pin : str or bytes, optional
            The security officer's: 1 to 255 bytes. None: the keyring is not initialised.
        user_pin : str or bytes, optional
            The user's. None: the user's PIN is not set.

        Raises
        ------
        TypeError, ValueError
            The cluster has no such slot, a PIN is out of range, or there is one of the user's alone.
        OSError
            The state file cannot be used.
        """
        officer, user = pin_bytes("so_pin", so_pin), pin_bytes("user_pin", user_pin)
        self._control.call(
            "set_pins",
            ctypes.c_uint64(whole("slot_id", slot_id, 0, 2**64 - 1)),
            officer,
            length_of(officer),
            user,
            length_of(user),
            refusal="a keyring that is not initialised has no user_pin",
        )

    def unlock_keyring(self, slot_id: int) -> None:
        """Forget the wrong tries of a keyring's roles, as `lunash keyring unlock` does.

        Parameters
        ----------
        slot_id : int
            The keyring's.

        Raises
        ------
        TypeError, ValueError
            The cluster has no such slot.
        OSError
            The state file cannot be used.
        """
        self._control.call(
            "unlock_keyring", ctypes.c_uint64(whole("slot_id", slot_id, 0, 2**64 - 1))
        )

    def disconnect(self, pid: int) -> None:
        """Drop a process's connection: its locks and sessions are gone.

        Its calls answer CKR_DEVICE_ERROR until it calls C_Finalize and C_Initialize.

        Parameters
        ----------
        pid : int
            The process ID.

        Raises
        ------
        TypeError, ValueError
            `pid` is not a process ID.
        ProcessLookupError
            No such process has initialised the stand-in on this cluster.
        """
        self._control.call("disconnect", ctypes.c_int64(whole("pid", pid, 1, 2**63 - 1)))

    def reinitialise(self, pid: int) -> None:
        """Initialise a process's client library anew without its knowledge.

        As if other code of that process had called C_Finalize and C_Initialize: its locks and sessions
        are gone, and its calls go on answering CKR_OK.

        Parameters
        ----------
        pid : int
            The process ID.

        Raises
        ------
        TypeError, ValueError
            `pid` is not a process ID.
        ProcessLookupError
            No such process has initialised the stand-in on this cluster.
        """
        self._control.call("reinitialise", ctypes.c_int64(whole("pid", pid, 1, 2**63 - 1)))

    def tokens(self) -> list[ClusterToken]:
        """All keyrings, each with the process that holds its lock: a list of ClusterToken."""
        count = ctypes.c_uint32(0)
        self._control.call("snapshot", None, ctypes.c_uint32(0), ctypes.byref(count))
        tokens = (Token * count.value)()
        self._control.call("snapshot", tokens, count, ctypes.byref(count))
        return [
            ClusterToken(
                slot_id=token.slot_id,
                label=decode_label(bytes(token.label)),
                original_label=decode_label(bytes(token.original_label)),
                owner=token.owner_pid or None,
            )
            for token in tokens
        ]

    def log(self) -> list[LoggedCall]:
        """The calls of all processes, the latest 16384 at most, in the order in which they began.

        A call that came before C_Initialize, or for which no cluster was found, is not in it. If a
        process is killed during a call, that call has no result.

        Returns
        -------
        list of LoggedCall
        """
        count = ctypes.c_uint32(0)
        self._control.call("log", None, ctypes.c_uint32(0), ctypes.byref(count))
        calls = (Call * count.value)()
        self._control.call("log", calls, count, ctypes.byref(count))
        return [
            LoggedCall(
                number=call.number,
                function=call.function.decode(),
                slot_id=None if call.slot_id == ALL_ONES else call.slot_id,
                rv=None if call.duration == ALL_ONES else call.rv,
                pid=call.pid,
                thread_id=call.thread,
                time=call.began / NANOSECONDS,
                duration=None if call.duration == ALL_ONES else call.duration / NANOSECONDS,
            )
            for call in calls[: count.value]
        ]

    def __repr__(self) -> str:
        return f"<luna_ext.stub.Cluster {self.cluster_id!r} at {self.path!r}>"
