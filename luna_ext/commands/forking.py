"""A process that opens a Library and forks: for `luna-ext doctor`.

A client library may do anything in a forked child: hang, crash, or use up its parent's connection. So the
parent is not doctor itself, and both are in a session of their own, for doctor to kill them.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import warnings
from contextlib import suppress
from typing import NamedTuple

from .._cluster import Library
from ..errors import LunaError
from .console import in_one_line

# It finds the modules that this process has, wherever these are.
PROGRAM = """
import json, sys
sys.path[:] = json.loads(sys.argv.pop(1))
from luna_ext.commands.forking import main
main()
"""


class Child(NamedTuple):
    """What has become of a forked child that uses the client library."""

    answered: bool = False
    """Whether its call has come back."""
    error: str = ""
    """With an error; its text."""
    rv: int | None = None
    """The error's CK_RV."""
    ended: int | None = None
    """The exit code, -N if signal N has killed it. None: the child, or its parent, has not ended."""


class ForkError(Exception):
    """No child could be forked, for this process cannot open the Library itself."""


def fork_child(path: str, seconds: float) -> Child:
    """Let a process open the Library at this path, and a child that it forks make a call.

    Raises
    ------
    ForkError
        The process cannot open it.
    """
    with subprocess.Popen(
        [sys.executable, "-I", "-c", PROGRAM, json.dumps(sys.path), path],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            said, _ = process.communicate(timeout=seconds)
        except BaseException as error:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            said, _ = process.communicate()
    told: dict[str, object] = {}
    for line in said.splitlines():
        told.update(json.loads(line))
    if "refused" in told:
        raise ForkError(told["refused"])
    return Child(**told)  # type: ignore[arg-type]


def main() -> None:
    # The client library may write to what it takes for the terminal.
    results = os.dup(1)
    os.dup2(2, 1)

    def tell(**what: object) -> None:
        os.write(results, json.dumps(what).encode() + b"\n")

    warnings.simplefilter("ignore")
    try:
        luna = Library(sys.argv[1])
    except LunaError as error:
        tell(refused=in_one_line(error))
        return
    with luna:
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
