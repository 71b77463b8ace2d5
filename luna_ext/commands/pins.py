"""Where PINs come from: a prompt, a file, a descriptor, the token's own pad. Never the command line."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import click

from ..pin_pad import PIN_PAD, PinPad
from .console import refuse_on_windows
from .values import DESCRIPTOR

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
        if self.ask_user_pin and (self.user_pin_file, self.user_pin_fd) != (None, None):
            raise click.UsageError(
                "the user PIN comes from --ask-user-pin, or from a file or a descriptor, not from both"
            )
        refuse_on_windows("take PINs but from the token's own pad: --pin-pad")
        # It has terminals, files and memory as they are not on Windows.
        from .pin_memory import PinMemory, never_dumped
        from .pin_reading import read_pin

        with never_dumped(), PinMemory() as so_pin, PinMemory() as user_pin:
            read_pin(SO_PIN, self.so_pin_file, self.so_pin_fd, so_pin)
            wanted = (self.user_pin_file, self.user_pin_fd) != (None, None) or self.ask_user_pin
            if wanted:
                read_pin(USER_PIN, self.user_pin_file, self.user_pin_fd, user_pin)
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
