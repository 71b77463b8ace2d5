"""How a PIN is read: from a file, from a descriptor, from a prompt."""

from __future__ import annotations

import codecs
import os
import signal
import stat
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress

import click

from .console import tell
from .pin_memory import PinMemory

MOST_BYTES = 256
"""More than any token takes."""

UTF_16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
"""A PIN of bytes may begin so, but has no NUL, as each letter has in UTF-16."""
GIVING_BACK = (
    signal.SIGQUIT,
    signal.SIGTSTP,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGALRM,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
"""Signals that end or stop a process which has no handler for them."""
_SPACES = " \t\r\v\f\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000"
BLANKS = tuple(map(str.encode, (*_SPACES, *map(chr, range(0x2000, 0x200B)))))
_UNSEEN_CODES = (
    *range(0x01, 0x20),
    *range(0x7F, 0xA0),
    0xAD,
    *range(0x200B, 0x2010),
    *range(0x2028, 0x202F),
    *range(0x2060, 0x2070),
    0xFEFF,
)
UNSEEN = tuple(chr(code).encode() for code in _UNSEEN_CODES)
"""Controls and formats: what an editor or a key may leave that no person sees, nor types again."""


def read_pin(what: str, file: str | None, descriptor: int | None, into: PinMemory) -> None:
    """Read one from where it is to come from: the prompt, if that is neither."""
    if file is not None and descriptor is not None:
        raise click.UsageError(f"the {what} comes from a file or from a descriptor, not from both")
    if file is not None:
        _from_file(what, file, into)
    elif descriptor is not None:
        _from_descriptor(what, descriptor, into)
    else:
        _from_prompt(what, into)


def _from_file(what: str, path: str, into: PinMemory) -> None:
    # Not blocking: to open a FIFO without a writer would wait for ever.
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise click.ClickException(
            f"the {what} cannot be read from {path or repr(path)}: {error.strerror}"
        ) from None
    try:
        # fstat() of the opened file: the path may name another file by now.
        state = os.fstat(descriptor)
        if not stat.S_ISREG(state.st_mode):
            raise click.ClickException(
                f"{path} is not a regular file; let the {what} from a pipe come by its descriptor"
            )
        if state.st_mode & 0o077:
            raise click.ClickException(
                f"others may have read the {what}: {path} has mode {state.st_mode & 0o777:04o}. "
                f"Change the PIN, and then: chmod 600 {path}"
            )
        if state.st_uid not in (os.geteuid(), 0):
            raise click.ClickException(
                f"{path} belongs to another user (UID {state.st_uid}), who may have read the {what}. "
                "Change the PIN, and write it into a file of your own"
            )
        _first_line(what, path, descriptor, into)
    finally:
        os.close(descriptor)


def _from_descriptor(what: str, descriptor: int, into: PinMemory) -> None:
    try:
        with _asked_for(what, descriptor) if os.isatty(descriptor) else nullcontext():
            _first_line(what, f"descriptor {descriptor}", descriptor, into)
    except OSError as error:
        raise click.ClickException(
            f"the {what} cannot be read from descriptor {descriptor}: {error.strerror}"
        ) from None


def _first_line(what: str, where: str, descriptor: int, into: PinMemory) -> None:
    try:
        into.read_line(descriptor, MOST_BYTES)
    except ValueError:
        raise click.ClickException(
            f"the first line of {where} has more than {MOST_BYTES} bytes; that is no {what}"
        ) from None
    if into.ends_with(b"\r"):
        into.shorten()
    if not into.pin:
        raise click.ClickException(f"the first line of {where} is empty; that is no {what}")
    has_nul = b"\0" in into
    if into.begins_with(codecs.BOM_UTF8) or (into.begins_with(*UTF_16_MARKS) and has_nul):
        raise click.ClickException(
            f"{where} begins with a byte order mark, which would be part of the {what}; save it without"
        )
    if has_nul:
        raise click.ClickException(f"the first line of {where} contains a NUL; that is no {what}")
    if into.begins_with(*BLANKS) or into.ends_with(*BLANKS):
        raise click.ClickException(
            f"the first line of {where} begins or ends with a blank, which would be part of the {what}; "
            "take it away"
        )
    if any(character in into for character in UNSEEN):
        raise click.ClickException(
            f"the first line of {where} has a character that is not shown, which would be part of the "
            f"{what}; take it away"
        )


def _from_prompt(what: str, into: PinMemory) -> None:
    terminal = sys.stdin.fileno() if sys.stdin.isatty() else None
    if terminal is None:
        option = what.lower().replace(" ", "-")
        raise click.ClickException(
            f"no terminal to ask for the {what}; use --{option}-file or --{option}-fd"
        )
    while True:
        into.forget()
        _typed(what, terminal, into)
        # Asked twice: a fresh token accepts any PIN, so a typing error would become its PIN.
        with PinMemory() as again:
            _typed("Repeat for confirmation", terminal, again)
            if again.pin == into.pin:
                return
        tell(f"that was not the same {what}; once more")


def _typed(what: str, terminal: int, into: PinMemory) -> None:
    """A line that is typed, asked for until there is one that is not empty."""
    while not into.pin:
        with _asked_for(what, terminal):
            try:
                has_end = into.read_line(terminal, MOST_BYTES)
            except ValueError:
                raise click.ClickException(
                    f"what was typed has more than {MOST_BYTES} bytes, which no token takes"
                ) from None
        if not has_end:
            # Ctrl-D.
            raise click.Abort
        if any(character in into for character in (b"\0", *UNSEEN)):
            raise click.ClickException(
                "a character was typed that is not shown, as by an arrow key; no PIN has one"
            )


@contextmanager
def _asked_for(what: str, terminal: int) -> Iterator[None]:
    """Within the block the terminal does not show what is typed.

    It does again where a signal ends or stops the process meanwhile, as Ctrl-\\ and Ctrl-Z do; whatever
    reads from it next, such as a shell, may rely on that.
    """

    def hide(*signal_and_frame: object) -> None:
        # What was typed before, and shown, is no answer.
        termios.tcsetattr(terminal, termios.TCSAFLUSH, hidden)

    def ask() -> None:
        hide()
        # A signal may have come in the midst of it, and then a stream would refuse the second one.
        with suppress(OSError):
            os.write(2, f"{what}: ".encode())

    def give_back(number: int, frame: object) -> None:
        termios.tcsetattr(terminal, termios.TCSADRAIN, shown)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        # It goes on: it was stopped, or has no shell that would let it go on.
        signal.signal(number, give_back)
        ask()

    try:
        shown = termios.tcgetattr(terminal)
    except termios.error as error:
        raise OSError(*error.args) from None
    hidden = [*shown[:3], shown[3] & ~termios.ECHO, *shown[4:]]
    # Those that end the command in order raise in the block.
    before = {
        number: signal.signal(number, give_back)
        for number in GIVING_BACK
        if signal.getsignal(number) is signal.SIG_DFL
    }
    before[signal.SIGCONT] = signal.signal(signal.SIGCONT, hide)
    try:
        ask()
        yield
    except termios.error as error:
        raise OSError(*error.args) from None
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, shown)
        for number, handler in before.items():
            signal.signal(number, handler)
        click.echo(err=True)
