"""What a process apart from `luna-ext doctor` does with the client library; see apart.py."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

from .._cluster import ClusterSlot, Library
from ..errors import CryptokiError, LunaError, Meaning, meaning_of, rv_name
from ..info import CLUSTER_FUNCTIONS, LibraryInfo, TokenInfo
from .apart import FINALIZE, FORK, OPENING
from .loading import LOADING, advice_on_loading
from .texts import in_one_line, in_our_words

THREADS = 4
TOGETHER = f"C_GetSlotList, called by {THREADS} threads at a time,"
PATIENCE = 10
"""Seconds for threads to come together."""
WORKERS = 16
"""As many tokens are read at a time."""
MOST_NAMED = 10
"""Slots that one finding names."""

# What Thales requires for clusters in production, and what came with it when they were a preview:
# thalesdocs.com, "Cluster-Client Connections". The client's C_GetInfo gives no third number.
CLIENT, CLIENT_NAME = (10, 7), "10.7.2"
PREVIEW_CLIENT, PREVIEW_CLIENT_NAME = (10, 6), "10.6"
FIRMWARE = (7, 8, 4)
APPLIANCE = "the appliance's software 7.8.5 with the package lnh_cluster 1.0.4"
MAKERS = ("safenet", "thales", "chrystoki")

NO_CLUSTER = (
    "this is the stand-in, not an HSM's client. Name the real library; or let `luna-ext stub create "
    "--state FILE` make a cluster, and put what it prints into the environment"
)

PR_SET_PDEATHSIG = 1

Tell = Callable[..., None]


def main() -> None:
    end_with_parent()
    # The client library may write to what it takes for the terminal.
    results = os.dup(1)
    os.dup2(2, 1)

    def tell(**what: object) -> None:
        os.write(results, json.dumps(what).encode() + b"\n")

    task, path = sys.argv[1:]
    warnings.simplefilter("ignore")
    TASKS[task](tell, path)
    tell(end="ends")


def end_with_parent() -> None:
    """A client library that hangs would keep this process for ever, were doctor killed by SIGKILL."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0)


def end_with_doctor() -> None:
    """The same for a forked child, whose parent the client library may end as well: by doctor's pipe."""
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGKILL)


def _finding(
    tell: Tell, what: str, says: str, advice: str = "", *, note: bool = False, **values: object
) -> None:
    tell(what=what, says=says, advice=advice, note=note, values=values)


def _failure(tell: Tell, what: str, error: LunaError, advice: str = "", **values: object) -> None:
    name = None if error.rv is None else rv_name(error.rv)
    tell(
        what=what,
        says=in_one_line(error),
        advice=advice or _advice_of(error),
        values={"rv_name": name, **values},
    )


def _advice_of(error: LunaError) -> str:
    """What to do about an error of the client library."""
    from ..explanations import explain

    # CKR_OK is that of an answer which cannot be true.
    if not isinstance(error, CryptokiError) or not error.rv:
        return "name the Luna client's libCryptoki2 instead: luna-ext --library FILE doctor"
    known = explain(error.rv)
    return (
        in_our_words(known.advice)
        if known
        else "see the client library's own log, and ask its vendor"
    )


# ---- the library ----


def examine_library(tell: Tell, path: str) -> None:
    """Load and open it, look at it, and keep it open until the standard input ends."""
    if not _load(tell, path):
        return
    tell(step=OPENING)
    try:
        luna = Library(path)
    except LunaError as error:
        stand_in = hasattr(ctypes.CDLL(path), "luna_stub_create")
        _failure(tell, "client library", error, NO_CLUSTER if stand_in else "")
        return
    _look_at(tell, luna)
    tell(end="waits")
    sys.stdin.read()
    tell(step=FINALIZE)
    luna.close()


def _load(tell: Tell, path: str) -> bool:
    tell(step=LOADING)
    try:
        library = ctypes.CDLL(path, os.RTLD_NOW)
    except OSError as error:
        _finding(tell, "client library", *advice_on_loading(path, in_one_line(error)))
        return False
    try:
        function = library.C_GetFunctionList
    except AttributeError:
        # A Library has words for it.
        return True
    tell(step="C_GetFunctionList")
    function(ctypes.byref(ctypes.c_void_p()))
    return True


def _look_at(tell: Tell, luna: Library) -> None:
    for what, look in LOOKS.items():
        try:
            look(tell, luna)
        except LunaError as error:
            _failure(tell, what, error)


def _version(tell: Tell, luna: Library) -> None:
    info = luna.info
    advice, note = "", False
    if luna.is_stub:
        advice = (
            "this is the stand-in, not an HSM's client; its locks protect nothing outside of this "
            "machine. Name the real library"
        )
    elif _is_of_thales(info) and info.version < PREVIEW_CLIENT:
        advice = f"clusters need a newer one: install Luna client {CLIENT_NAME} or newer"
    elif _is_of_thales(info) and info.version < CLIENT:
        advice = f"for clusters in production Thales requires Luna client {CLIENT_NAME} or newer"
        note = True
    _finding(
        tell,
        "client version",
        f"{info.manufacturer}: {info.description} {info.version}, PKCS #11 {info.cryptoki_version}",
        advice,
        note=note,
        manufacturer=info.manufacturer,
        description=info.description,
        version=str(info.version),
        cryptoki_version=str(info.cryptoki_version),
        is_stand_in=luna.is_stub,
    )


def _is_of_thales(info: LibraryInfo) -> bool:
    """What other clients' versions mean is not known."""
    name = f"{info.manufacturer} {info.description}".lower()
    return any(maker in name for maker in MAKERS)


def _functions(tell: Tell, luna: Library) -> None:
    for function in CLUSTER_FUNCTIONS:
        there = function in luna.cluster_functions
        advice = "" if there else f"install Luna client {PREVIEW_CLIENT_NAME} or newer"
        _finding(tell, function, "there" if there else "missing", advice, there=there)
    tell(is_stub=luna.is_stub)


def _slots(tell: Tell, luna: Library) -> None:
    tell(step="C_GetSlotList")
    slots = luna.slots()
    advice = "" if slots else "the client reaches no token; register it with the HSM (vtl verify)"
    _finding(tell, "slots", f"{len(slots)} with a token", advice, count=len(slots))
    if slots:
        _tokens(tell, luna, slots)


# ---- the tokens ----


def _tokens(tell: Tell, luna: Library, slots: list[ClusterSlot]) -> None:
    """Whether each can be read and has a session left; and the firmware."""
    tell(step="C_GetTokenInfo")
    read: dict[int, TokenInfo] = {}
    bad: dict[int, CryptokiError] = {}
    with ThreadPoolExecutor(WORKERS) as pool:
        for slot, found in zip(slots, pool.map(_token_info, slots), strict=True):
            # Each of them has the time of a step.
            tell(step="C_GetTokenInfo")
            if isinstance(found, TokenInfo):
                read[slot.slot_id] = found
            elif found is not None:
                bad[slot.slot_id] = found
    if bad:
        error = next(iter(bad.values()))
        _finding(
            tell,
            "tokens",
            f"{len(bad)} of {len(slots)} cannot be read, in {_slots_named(bad)}: {in_one_line(error)}",
            _advice_of(error),
            read=len(read),
            unreadable_slots=list(bad),
        )
    else:
        _finding(tell, "tokens", f"{len(read)} can be read", read=len(read), unreadable_slots=[])
    if read:
        _sessions(tell, read)
        if not luna.is_stub and _is_of_thales(luna.info):
            _firmware(tell, luna, *next(iter(read.items())))


def _token_info(slot: ClusterSlot) -> TokenInfo | CryptokiError | None:
    """None: the token has gone since the slots were listed."""
    try:
        return slot.token_info
    except CryptokiError as error:
        return None if meaning_of(error.rv or 0) is Meaning.GONE else error


def _slots_named(slot_ids: Collection[int]) -> str:
    named = list(slot_ids)[:MOST_NAMED]
    more = len(slot_ids) - len(named)
    text = f"slot{'s' * (len(slot_ids) > 1)} {', '.join(map(str, named))}"
    return f"{text} and {more} more" if more else text


def _sessions(tell: Tell, read: dict[int, TokenInfo]) -> None:
    free = dict(_free_sessions(read))
    full = [slot_id for slot_id, count in free.items() if not count]
    if full:
        says = f"none is free on the token in {_slots_named(full)}"
        advice = (
            "end programs that keep sessions on it which they do not need: a lock needs none, but a login "
            "does, and so do `luna-ext assign` and `luna-ext provision` with a user's PIN"
        )
    elif free:
        least = min(free.values())
        says, advice = f"at least {least} {'is' if least == 1 else 'are'} free on each token", ""
    else:
        says, advice = "no token has a limit, as far as the client tells", ""
    _finding(
        tell,
        "sessions",
        says,
        advice,
        least_free=min(free.values()) if free else None,
        full_slots=full,
    )


def _free_sessions(read: dict[int, TokenInfo]) -> Iterator[tuple[int, int]]:
    for slot_id, info in read.items():
        # 0 is no limit.
        if info.max_session_count and info.session_count is not None:
            yield slot_id, max(0, info.max_session_count - info.session_count)


def _firmware(tell: Tell, luna: Library, slot_id: int, info: TokenInfo) -> None:
    tell(step="CA_GetFirmwareVersion")
    version = _full_firmware(luna.path, slot_id) or tuple(info.firmware_version)
    name = ".".join(map(str, version))
    wanted = ".".join(map(str, FIRMWARE))
    old = version < FIRMWARE[: len(version)]
    _finding(
        tell,
        "firmware",
        f"{name}, of the token in slot {slot_id}",
        f"for clusters in production Thales requires HSM firmware {wanted} or newer, and {APPLIANCE}"
        if old
        else "",
        note=True,
        version=name,
        slot_id=slot_id,
    )


def _full_firmware(path: str, slot_id: int) -> tuple[int, ...] | None:
    """C_GetTokenInfo leaves the third number out."""
    try:
        function = ctypes.CDLL(path).CA_GetFirmwareVersion
    except AttributeError:
        return None
    function.restype = ctypes.c_ulong
    numbers = [ctypes.c_ulong() for _ in range(3)]
    if function(ctypes.c_ulong(slot_id), *map(ctypes.byref, numbers)):
        return None
    return tuple(number.value for number in numbers)


_NO_THREADS = "the client does not take calls of several threads; use processes"


def _answers(luna: Library) -> bool:
    try:
        luna.slots()
    except LunaError:
        return False
    return True


def _threads(tell: Tell, luna: Library) -> None:
    """Calls of several threads at a time."""
    tell(step=TOGETHER)
    results: SimpleQueue[LunaError | None] = SimpleQueue()
    together = threading.Barrier(THREADS)

    def ask() -> None:
        error = None
        try:
            together.wait(PATIENCE)
            luna.slots()
        except LunaError as failure:
            error = failure
        results.put(error)

    for _ in range(THREADS):
        threading.Thread(target=ask, daemon=True).start()
    errors = [error for error in (results.get() for _ in range(THREADS)) if error is not None]
    if errors:
        # Where a call alone fails as well, it is not for the threads.
        advice = _NO_THREADS if _answers(luna) else ""
        _failure(tell, "threads", errors[0], advice, count=THREADS)
    else:
        says = f"{THREADS} of them can call it at a time"
        _finding(tell, "threads", says, count=THREADS, rv_name=None)


LOOKS: dict[str, Callable[[Tell, Library], None]] = {
    "client version": _version,
    "functions": _functions,
    "slots": _slots,
    "threads": _threads,
}


# ---- a forked child ----


def examine_fork(tell: Tell, path: str) -> None:
    """Open the library, and let a child that is forked make a call."""
    tell(step=OPENING)
    try:
        luna = Library(path)
    except LunaError as error:
        tell(refused=in_one_line(error), advice=_advice_of(error), rv=error.rv)
        return
    with luna:
        tell(step="C_GetSlotList")
        try:
            luna.slots()
        except LunaError as error:
            tell(fails=in_one_line(error), advice=_advice_of(error), rv=error.rv)
            return
        tell(step=FORK)
        child = os.fork()
        if child == 0:
            threading.Thread(target=end_with_doctor, daemon=True).start()
            try:
                luna.slots()
                tell(answered=True)
            except LunaError as error:
                tell(answered=True, error=in_one_line(error), rv=error.rv)
            finally:
                os._exit(0)
        tell(ended=os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        tell(step=FINALIZE)


TASKS = {"library": examine_library, "fork": examine_fork}
