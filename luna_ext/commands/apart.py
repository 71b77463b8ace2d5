"""A process apart that loads a client library and calls it: for `luna-ext doctor`.

A client library may do anything: hang, crash, abort, end its process, or use up its parent's connection
in a forked child. So the process is not doctor itself, and it is in a session of its own, for doctor to
kill it and what it has started. It says what it is about to do, and so doctor knows what it did not
survive.

It has the modules of Python and luna_ext, wherever that is, and no others: none of the working directory.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Self, TypeAlias

HOME = str(Path(__file__).parents[2])
PROGRAM = """
import sys
sys.path.append(sys.argv.pop(1))
from luna_ext.commands.examining import main
main()
"""

OPENING, FORK, FINALIZE = "the opening (C_Initialize, C_GetInfo)", "a forked child", "C_Finalize"
"""Steps."""
PATIENCE = 20.0
"""Seconds for a step. To initialise a client takes several if one of its HSMs is not reached."""
SHORTER = {FORK: 10.0, FINALIZE: 5.0}
SLOW = 1.0
"""Seconds after which it is told what is waited for."""

Message: TypeAlias = dict[str, Any]


class Apart:
    """The process. It does what `task` names, one of those in examining.py, with the library at `path`.

    `tell_slow` is called with a line on a step that takes long.
    """

    def __init__(self, task: str, path: str, tell_slow: Callable[[str], object]) -> None:
        self.step = ""
        """What it has been doing."""
        self.trouble = ""
        """How it has ended, if it was not in the end of its task."""
        self.exit_code: int | None = None
        """With trouble: as subprocess has it; None: it has not ended, but was killed."""
        self.waits = False
        """Whether it keeps the library open until go_on()."""
        self._tell_slow = tell_slow
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", PROGRAM, HOME, task, path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        self._lines: SimpleQueue[str] = SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.go_on()
        self._kill()
        # What has left the session may still have the pipe.
        self._reader.join(SHORTER[FINALIZE])

    def messages(self) -> Iterator[Message]:
        """What it tells, until it waits or has ended; it is killed if a step takes too long."""
        self.waits = False
        while True:
            seconds = SHORTER.get(self.step, PATIENCE)
            try:
                line = self._next_line(seconds)
                message: Message = json.loads(line) if line else self._how_it_ended(seconds)
            except (Empty, subprocess.TimeoutExpired):
                self.trouble = f"does not return for {seconds:g} s"
                self._kill()
                return
            if "step" in message:
                self.step = message["step"]
            elif "trouble" in message:
                self.trouble = message["trouble"]
                return
            elif "end" in message:
                self.waits = message["end"] == "waits"
                return
            else:
                yield message

    def go_on(self) -> None:
        """Let it close the library and end."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()

    def _next_line(self, seconds: float) -> str:
        with suppress(Empty):
            return self._lines.get(timeout=min(SLOW, seconds))
        left = max(0.0, seconds - SLOW)
        if left:
            step = self.step or "the start of another process"
            self._tell_slow(f"{step} takes long; it is waited for, {seconds:g} s at most")
        end = time.monotonic() + left
        while time.monotonic() < end:
            has_ended = self._process.poll() is not None
            with suppress(Empty):
                return self._lines.get(timeout=min(SLOW, left))
            if has_ended:
                # What it has started still has the pipe, whose end does not come.
                return ""
        return self._lines.get(False)

    def _how_it_ended(self, seconds: float) -> Message:
        self.exit_code = self._process.wait(seconds)
        return {"trouble": how_it_ended(self.exit_code)}

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as told:
            for line in told:
                self._lines.put(line)
        self._lines.put("")

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            if hasattr(os, "killpg"):
                os.killpg(self._process.pid, signal.SIGKILL)
            else:
                self._process.kill()
        self._process.wait()


def how_it_ended(code: int) -> str:
    """In words, by the exit code, which is -N if signal N has ended the process."""
    if code >= 0:
        return f"ends the process with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"ends the process by {name} ({signal.strsignal(-code)})"
