"""What ends the command: signals, also where a call of the client library does not return.

A handler of Python's runs between two steps of the main thread. While that thread is in a call, as for
minutes where the network is down, Ctrl-C would do nothing, nor would SIGTERM where it has a handler.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

PATIENCE = 0.5
"""Seconds for the handler of Python's to end the block."""
ENDING = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


QUIT = getattr(signal, "SIGQUIT", None)
"""Of Ctrl-\\, the last resort where another signal is not heard. So only what has the screen handles it."""


_end = threading.Lock()
_restores: list[bytes] = []
"""What gives back what the blocks have taken of the terminal, the outer ones first."""


@contextmanager
def ended_by_signals(*, has_screen: bool = False) -> Iterator[None]:
    """Within the block SIGTERM and SIGHUP raise SystemExit, so that what is held is released.

    With `has_screen` SIGQUIT, too.
    """

    def leave(number: int, frame: object) -> NoReturn:
        sys.exit(128 + number)

    previous = {
        number: signal.signal(number, leave)
        for number in (*ENDING, *([QUIT] if QUIT and has_screen else []))
        if number != signal.SIGINT and signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def ended_at_once(restore: bytes = b"", *, after: BaseException | None = None) -> Iterator[None]:
    """Within the block, which locks nothing, signals end the process also during a call that hangs.

    To be used on the main thread. `restore` is what gives a terminal back that the block has taken,
    `after` what a signal has raised before the block: then that one ends the process.
    """
    told, tells = socket.socketpair()
    tells.setblocking(False)
    _restores.append(restore)
    watcher = threading.Thread(target=_watch, args=(told,), daemon=True)
    watcher.start()
    if number := _number_of(after):
        tells.send(bytes([number]))
    previous = signal.set_wakeup_fd(tells.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous)
        # To close it is not enough: a process that the client library has forked has it open as well.
        tells.shutdown(socket.SHUT_RDWR)
        tells.close()
        watcher.join()
        _restores.pop()


def _number_of(raised: BaseException | None) -> int:
    """Of the signal whose handler has raised this; 0: it was none."""
    if isinstance(raised, KeyboardInterrupt):
        return int(signal.SIGINT)
    if isinstance(raised, SystemExit) and isinstance(raised.code, int):
        return next((int(number) for number in ENDING if raised.code == 128 + number), 0)
    return 0


def _watch(told: socket.socket) -> None:
    """Read the numbers of signals, until the block has ended."""
    with told:
        while got := told.recv(1):
            number = got[0]
            if number not in (*ENDING, QUIT) or not callable(signal.getsignal(number)):
                continue
            told.settimeout(PATIENCE)
            with suppress(TimeoutError):
                while told.recv(1):
                    pass
                return
            # Blocks may be nested. It is not released: the process ends.
            _end.acquire()
            with suppress(OSError):
                os.write(1, b"".join(_restores))
            if number == signal.SIGINT:
                with suppress(OSError):
                    os.write(2, b"luna-ext: interrupted\n")
            os._exit(128 + number)
