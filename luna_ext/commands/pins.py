"""Where PINs come from: a prompt, a file, a descriptor, the token's own pad. Never the command line."""

from __future__ import annotations

import codecs
import functools
import os
import signal
import stat
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import click

from ..pin_pad import PIN_PAD, PinPad
from .console import tell
from .pin_memory import PinMemory, never_dumped
from .values import DESCRIPTOR

MOST_BYTES = 256
"""More than any token takes."""

UTF_16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
"""A PIN of bytes may begin so, but has no NUL, as each letter has in UTF-16."""
BLANKS = (b" ", b"\t", b"\r", b"\v", b"\f", "\xa0".encode())

SO_PIN, USER_PIN = "SO PIN", "user PIN"

AnyPin: TypeAlias = memoryview | PinPad
_F = TypeVar("_F", bound=Callable[..., Any])


@dataclass
class PinSources:
    """Where the two PINs are to come from."""

    so_pin_file: str | None
    so_pin_fd: int | None
    user_pin_file: str | None
    user_pin_fd: int | None
    ask_user_pin: bool
    pin_pad: bool
    insecure: bool
    """Also where other users may change the client library."""

    @contextmanager
    def read(self) -> Iterator[tuple[AnyPin, AnyPin | None]]:
        """The SO's PIN and the user's, if there is one; wiped at the end of the block."""
        if self.pin_pad:
            if any(where is not None for where in self._elsewhere):
                raise click.UsageError(
                    "with --pin-pad PINs are entered there, not read from a file or a descriptor"
                )
            yield PIN_PAD, PIN_PAD if self.ask_user_pin else None
            return
        with never_dumped(), PinMemory() as so_pin, PinMemory() as user_pin:
            _read(SO_PIN, self.so_pin_file, self.so_pin_fd, so_pin)
            wanted = (self.user_pin_file, self.user_pin_fd) != (None, None) or self.ask_user_pin
            if wanted:
                _read(USER_PIN, self.user_pin_file, self.user_pin_fd, user_pin)
            yield so_pin.pin, user_pin.pin if wanted else None

    @property
    def _elsewhere(self) -> tuple[object, ...]:
        return self.so_pin_file, self.so_pin_fd, self.user_pin_file, self.user_pin_fd


def pin_options(function: _F) -> Callable[..., Any]:
    """Options for both PINs; the function gets them as `pins`."""

    @functools.wraps(function)
    def with_pins(
        *arguments: object,
        so_pin_file: str | None,
        so_pin_fd: int | None,
        user_pin_file: str | None,
        user_pin_fd: int | None,
        ask_user_pin: bool,
        pin_pad: bool,
        insecure: bool,
        **options: object,
    ) -> object:
        pins = PinSources(
            so_pin_file, so_pin_fd, user_pin_file, user_pin_fd, ask_user_pin, pin_pad, insecure
        )
        return function(*arguments, pins=pins, **options)

    decorated: Callable[..., Any] = click.option(
        "--insecure",
        is_flag=True,
        help="Also where other users may change the client library or its configuration, and so get PINs.",
    )(with_pins)
    decorated = click.option(
        "--pin-pad", is_flag=True, help="PINs are entered at the token's own pad, such as a PED."
    )(decorated)
    decorated = click.option("--ask-user-pin", is_flag=True, help="Ask for the user's PIN.")(
        decorated
    )
    for name, who in (("user-pin", "user's"), ("so-pin", "security officer's")):
        decorated = click.option(
            f"--{name}-fd",
            type=DESCRIPTOR,
            metavar="N",
            help=f"The {who} PIN: a line from this descriptor.",
        )(decorated)
        decorated = click.option(
            f"--{name}-file",
            type=click.Path(),
            metavar="FILE",
            help=f"The {who} PIN: the first line of a file that no other user can read.",
        )(decorated)
    return decorated


def _read(what: str, file: str | None, descriptor: int | None, into: PinMemory) -> None:
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
            raise click.ClickException(f"{path} belongs to another user (UID {state.st_uid})")
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
                raise click.ClickException(f"that has more than {MOST_BYTES} bytes") from None
        if not has_end:
            # Ctrl-D.
            raise click.Abort


@contextmanager
def _asked_for(what: str, terminal: int) -> Iterator[None]:
    """Within the block the terminal does not show what is typed."""

    def hide(*signal_and_frame: object) -> None:
        # What was typed before, and shown, is no answer.
        termios.tcsetattr(terminal, termios.TCSAFLUSH, hidden)

    try:
        shown = termios.tcgetattr(terminal)
        hidden = [*shown[:3], shown[3] & ~termios.ECHO, *shown[4:]]
        hide()
    except termios.error as error:
        raise OSError(*error.args) from None
    # After Ctrl-Z and fg the shell may have let it be shown again.
    before = signal.signal(signal.SIGCONT, hide)
    try:
        click.echo(f"{what}: ", nl=False, err=True)
        yield
    finally:
        signal.signal(signal.SIGCONT, before)
        termios.tcsetattr(terminal, termios.TCSADRAIN, shown)
        click.echo(err=True)
