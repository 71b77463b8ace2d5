"""What the values on the command line may be. A wrong one ends the command before it touches a device."""

from __future__ import annotations

import ctypes
import fnmatch
import math
from collections.abc import Callable
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from ..errors import rv_named
from ..labels import encode_label
from .offers import offer_codes, offer_labels, offer_slots

_F = TypeVar("_F", bound=Callable[..., Any])

MOST_KEYRINGS = 3500
"""That a cluster has."""
MOST_SECONDS = 10**9
"""More than 31 years. What the system can still wait for differs, and is not much more."""
LARGEST_DESCRIPTOR = 2**31 - 1
LARGEST_SLOT_ID = 2 ** (8 * ctypes.sizeof(ctypes.c_ulong)) - 1
LARGEST_RV = 2**64 - 1


class Whole(click.IntRange):
    """A whole number within limits."""

    name = "integer"


class Number(click.FloatRange):
    """A number within limits. Without them the range would let nan pass, which is beyond neither."""

    name = "number"

    def convert(
        self, value: Any, parameter: click.Parameter | None, context: click.Context | None
    ) -> float:
        number = float(super().convert(value, parameter, context))
        if math.isnan(number):
            self.fail(f"{value} is not a number", parameter, context)
        return number


class SlotId(Whole):
    """The ID of a slot of the client library's device."""

    def __init__(self) -> None:
        super().__init__(0, LARGEST_SLOT_ID)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        return offer_slots(ctx, incomplete)


def check_new_label(label: str) -> None:
    """Raise ValueError for a label that no token can have, or that is not meant to be one."""
    encode_label(label, errors="strict")
    if label[0].isspace():
        raise ValueError(f"the label {label!r} begins with a blank; take it away")
    if not label.isprintable():
        raise ValueError(f"the label {label!r} has a character that is not shown; take it away")


class NewLabel(click.ParamType[str]):
    """A label that a token is to get."""

    name = "label"

    def convert(
        self, value: Any, parameter: click.Parameter | None, context: click.Context | None
    ) -> str:
        try:
            self.check(value)
        except ValueError as error:
            self.fail(str(error), parameter, context)
        return str(value)

    def check(self, label: str) -> None:
        check_new_label(label)


class Label(NewLabel):
    """The label of a token of the client library's device, whatever other programs have made it."""

    def check(self, label: str) -> None:
        encode_label(label)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        return offer_labels(ctx, incomplete)


class ReturnCode(click.ParamType[int]):
    """A CK_RV, by its name or number."""

    name = "code"

    def convert(
        self, value: Any, parameter: click.Parameter | None, context: click.Context | None
    ) -> int:
        try:
            rv = rv_named(value)
        except ValueError as error:
            self.fail(str(error), parameter, context)
        if not 0 <= rv <= LARGEST_RV:
            self.fail(
                f"{value} is no return code: a CK_RV is 0 to {LARGEST_RV}", parameter, context
            )
        return rv

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        return offer_codes(incomplete)


class Text(click.ParamType[str]):
    """A text that the device is told."""

    name = "text"

    def convert(
        self, value: Any, parameter: click.Parameter | None, context: click.Context | None
    ) -> str:
        try:
            str(value).encode()
        except UnicodeEncodeError:
            self.fail(f"{value!r} is not UTF-8", parameter, context)
        return str(value)


class Filled(click.ParamType[str]):
    """A text that is not empty."""

    name = "text"

    def convert(
        self, value: Any, parameter: click.Parameter | None, context: click.Context | None
    ) -> str:
        if not value:
            self.fail("it is empty", parameter, context)
        return str(value)


class FilledText(Filled):
    """One that the device is told, such as a cluster's ID."""

    def convert(
        self, value: Any, parameter: click.Parameter | None, context: click.Context | None
    ) -> str:
        return TEXT.convert(super().convert(value, parameter, context), parameter, context)


SLOT = SlotId()
RETURN_CODE = ReturnCode()
NEW_SLOT = Whole(0, LARGEST_SLOT_ID)
DESCRIPTOR = Whole(0, LARGEST_DESCRIPTOR)
SECONDS = Number(0, MOST_SECONDS)
LABEL = Label()
NEW_LABEL = NewLabel()
TEXT = Text()
PREFIX = CLUSTER = FilledText()

label_glob = click.option(
    "--label",
    "glob",
    shell_complete=lambda context, parameter, incomplete: offer_labels(context, incomplete),
    type=Filled(),
    metavar="GLOB",
    help="Those whose label matches, as a shell matches names of files: 'payments-*'.",
)


def matches(label: str, glob: str | None) -> bool:
    """Whether the label is one of those that --label has chosen."""
    return glob is None or fnmatch.fnmatchcase(label, glob)


WHOLE = 1000
"""Characters, more than a subcommand's summary has: it is broken in the help, not cut off."""


class Command(click.Command):
    """A subcommand that takes no value twice: one of the two would be ignored, without a word."""

    def get_short_help_str(self, limit: int = WHOLE) -> str:
        return super().get_short_help_str(WHOLE)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not ctx.resilient_parsing:
            _, _, given = self.make_parser(ctx).parse_args(args=list(args))
            for option in given:
                if _takes_one_value(option) and given.count(option) > 1:
                    raise click.UsageError(
                        f"{option.get_error_hint(ctx)} is given more than once; give it once", ctx
                    )
        return super().parse_args(ctx, args)


def _takes_one_value(parameter: click.Parameter) -> bool:
    return isinstance(parameter, click.Option) and not (parameter.is_flag or parameter.multiple)


class Group(click.Group):
    """A group of such subcommands."""

    command_class = Command

    def get_short_help_str(self, limit: int = WHOLE) -> str:
        return super().get_short_help_str(WHOLE)
