"""A terminal's whole screen, drawn anew again and again, for as long as the command has it."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.text import Text

from .awaited import next_signal

RESTORE = b"\x1b[?1049l\x1b[?25h"
"""Leaves the screen, and shows the cursor: for where the process ends without it."""

Draw = Callable[[int, int], Sequence[str]]
"""Gives the lines for a screen of so many columns and lines."""


def is_there() -> bool:
    """Whether the standard output is a terminal on which lines can be drawn anew."""
    return sys.stdout.isatty() and os.environ.get("TERM") not in (None, "", "dumb", "unknown")


@contextmanager
def signals_held_back() -> Iterator[None]:
    """Within the block Ctrl-Z and changes of the terminal's size wait, until Screen takes them.

    For all threads that the block starts as well: any thread would do for the system to stop them all.
    """
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTSTP, signal.SIGWINCH})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


class Screen:
    """The screen, until the end of the ``with`` block. To be used within signals_held_back()."""

    def __init__(self) -> None:
        self._live = Live(
            console=Console(highlight=False),
            screen=True,
            auto_refresh=False,
            # Or the standard output would have another encoding than it has.
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> Screen:
        return self

    def __exit__(self, *exc: object) -> None:
        self._live.stop()

    def show(self, draw: Draw, seconds: float) -> None:
        """Show what `draw(columns, lines)` gives for so long, whatever size the screen takes meanwhile.

        While the process is in the background it has no screen: it stops, as with Ctrl-Z.
        """
        end = time.monotonic() + seconds
        while True:
            if not _in_foreground():
                self._stop(signal.SIGTTOU)
            size = shutil.get_terminal_size()
            self._live.start()
            text = "\n".join(draw(size.columns, size.lines)[: size.lines])
            self._live.update(Text(text, no_wrap=True, overflow="crop"), refresh=True)
            left = max(0.0, end - time.monotonic())
            got = next_signal({signal.SIGTSTP, signal.SIGWINCH}, left)
            if got and got.number == signal.SIGTSTP:
                self._stop(signal.SIGTSTP)
            elif time.monotonic() >= end:
                return

    def _stop(self, number: signal.Signals) -> None:
        """Give the terminal back, and stop until the shell lets the process go on."""
        self._live.stop()
        previous = signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
        signal.raise_signal(number)
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def _in_foreground() -> bool:
    try:
        return os.tcgetpgrp(sys.stdout.fileno()) == os.getpgrp()
    except OSError:
        # It is not the terminal of this session, whose shell would stop and continue processes.
        return True
