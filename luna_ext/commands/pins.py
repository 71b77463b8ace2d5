"""Where PINs come from: a prompt, a file, a descriptor, the token's own pad. Never the command line."""

from __future__ import annotations

import codecs
import functools
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import click

from ..pin_pad import PIN_PAD, PinPad
from .values import DESCRIPTOR

MOST_BYTES = 256
"""More than any token takes."""

UTF_16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
"""A PIN of bytes may begin so, but has no NUL, as each letter has in UTF-16."""
NO_BREAK_SPACE = "\xa0".encode()

SO_PIN, USER_PIN = "SO PIN", "user PIN"

AnyPin: TypeAlias = bytearray | PinPad
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
        so_pin = _read(SO_PIN, self.so_pin_file, self.so_pin_fd)
        user_pin = None
        try:
            if (self.user_pin_file, self.user_pin_fd) != (None, None) or self.ask_user_pin:
                user_pin = _read(USER_PIN, self.user_pin_file, self.user_pin_fd)
            yield so_pin, user_pin
        finally:
            for pin in (so_pin, user_pin):
                if pin is not None:
                    pin[:] = bytes(len(pin))

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


def _read(what: str, file: str | None, descriptor: int | None) -> bytearray:
    if file is not None and descriptor is not None:
        raise click.UsageError(f"the {what} comes from a file or from a descriptor, not from both")
    if file is not None:
        return _from_file(what, file)
    if descriptor is not None:
        return _from_descriptor(what, descriptor)
    return _from_prompt(what)


def _from_file(what: str, path: str) -> bytearray:
    # Not blocking: to open a FIFO without a writer would wait for ever.
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise click.ClickException(
            f"the {what} cannot be read from {path}: {error.strerror}"
        ) from None
    try:
        # fstat() of the opened file: the path may name another file by now.
        state = os.fstat(descriptor)
        if not stat.S_ISREG(state.st_mode):
            raise click.ClickException(
                f"{path} is not a regular file; a {what} from a pipe comes by its descriptor"
            )
        if state.st_mode & 0o077:
            raise click.ClickException(
                f"others may have read the {what}: {path} has mode {state.st_mode & 0o777:04o}. "
                f"Change the PIN, and then: chmod 600 {path}"
            )
        if state.st_uid not in (os.geteuid(), 0):
            raise click.ClickException(f"{path} belongs to another user (UID {state.st_uid})")
        return _first_line(what, path, descriptor)
    finally:
        os.close(descriptor)


def _from_descriptor(what: str, descriptor: int) -> bytearray:
    try:
        return _first_line(what, f"descriptor {descriptor}", descriptor)
    except OSError as error:
        raise click.ClickException(
            f"the {what} cannot be read from descriptor {descriptor}: {error.strerror}"
        ) from None


def _first_line(what: str, where: str, descriptor: int) -> bytearray:
    """Read one line, byte by byte, so that the next reader of the descriptor gets the rest."""
    pin = bytearray()
    while (byte := os.read(descriptor, 1)) not in (b"", b"\n"):
        pin += byte
        if len(pin) > MOST_BYTES:
            raise click.ClickException(
                f"the first line of {where} has more than {MOST_BYTES} bytes; that is no {what}"
            )
    if pin.endswith(b"\r"):
        del pin[-1:]
    if not pin:
        raise click.ClickException(f"the first line of {where} is empty; that is no {what}")
    if pin.startswith(codecs.BOM_UTF8) or (pin.startswith(UTF_16_MARKS) and 0 in pin):
        raise click.ClickException(
            f"{where} begins with a byte order mark, which would be part of the {what}; save it without"
        )
    if pin[:1].isspace() or pin[-1:].isspace() or NO_BREAK_SPACE in (pin[:2], pin[-2:]):
        raise click.ClickException(
            f"the first line of {where} begins or ends with a blank, which would be part of the {what}; "
            "take it away"
        )
    return pin


def _from_prompt(what: str) -> bytearray:
    if not sys.stdin.isatty():
        option = what.lower().replace(" ", "-")
        raise click.ClickException(
            f"no terminal to ask for the {what}; use --{option}-file or --{option}-fd"
        )
    # Asked twice: a fresh token accepts any PIN, so a typing error would become its PIN.
    entered: str = click.prompt(what, hide_input=True, confirmation_prompt=True, err=True)
    return bytearray(entered.encode("utf-8", "surrogateescape"))
