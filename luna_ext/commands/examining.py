"""What a process apart from `luna-ext doctor` does with the client library; see apart.py."""

from __future__ import annotations

import ctypes
import json
import os
import sys
import threading
import warnings
from collections.abc import Callable
from queue import SimpleQueue

from .._cluster import Library
from ..errors import CryptokiError, LunaError
from ..info import CLUSTER_FUNCTIONS
from .apart import FINALIZE, FORK, OPENING
from .loading import LOADING, advice_on_loading
from .texts import in_one_line, in_our_words

THREADS = 4
TOGETHER = f"C_GetSlotList, called by {THREADS} threads at a time,"
PATIENCE = 10
"""Seconds for threads to come together."""

Tell = Callable[..., None]


def main() -> None:
    # The client library may write to what it takes for the terminal.
    results = os.dup(1)
    os.dup2(2, 1)

    def tell(**what: object) -> None:
        os.write(results, json.dumps(what).encode() + b"\n")

    task, path = sys.argv[1:]
    warnings.simplefilter("ignore")
    TASKS[task](tell, path)
    tell(end="ends")


def _finding(tell: Tell, what: str, says: str, advice: str = "") -> None:
    tell(what=what, says=says, advice=advice)


def _advice_of(error: LunaError) -> str:
    """What to do about an error of the client library."""
    from ..explanations import explain

    if not isinstance(error, CryptokiError) or error.rv is None:
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
        _finding(tell, "client library", in_one_line(error), _advice_of(error))
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
    for look in (_info, _functions, _slots, _threads):
        try:
            look(tell, luna)
        except LunaError as error:
            _finding(tell, look.__name__.strip("_"), in_one_line(error), _advice_of(error))


def _info(tell: Tell, luna: Library) -> None:
    info = luna.info
    _finding(
        tell,
        "it says",
        f"{info.manufacturer}: {info.description} {info.version}, PKCS #11 {info.cryptoki_version}",
        "this is the stand-in, not an HSM's client; its locks protect nothing outside of this "
        "machine. Name the real library"
        if luna.is_stub
        else "",
    )


def _functions(tell: Tell, luna: Library) -> None:
    for function in CLUSTER_FUNCTIONS:
        there = function in luna.cluster_functions
        advice = "" if there else "install Luna client 10.6 or newer"
        _finding(tell, function, "there" if there else "missing", advice)
    tell(is_stub=luna.is_stub)


def _slots(tell: Tell, luna: Library) -> None:
    tell(step="C_GetSlotList")
    slots = luna.slots()
    advice = "" if slots else "the client reaches no token; register it with the HSM (vtl verify)"
    _finding(tell, "slots", f"{len(slots)} with a token", advice)


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
        _finding(
            tell,
            "threads",
            in_one_line(errors[0]),
            "the client does not take calls of several threads; use processes",
        )
    else:
        _finding(tell, "threads", f"{THREADS} of them can call it at a time")


# ---- a forked child ----


def examine_fork(tell: Tell, path: str) -> None:
    """Open the library, and let a child that is forked make a call."""
    tell(step=OPENING)
    try:
        luna = Library(path)
    except LunaError as error:
        tell(refused=in_one_line(error), advice=_advice_of(error))
        return
    with luna:
        tell(step=FORK)
        child = os.fork()
        if child == 0:
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
