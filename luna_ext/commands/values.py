"""What the values on the command line may be. A wrong one ends the command before it touches a device."""

from __future__ import annotations

import ctypes
import fnmatch
import math
from collections.abc import Callable
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from ..labels import encode_label
from .offers import offer_labels, offer_slots

_F = TypeVar("_F", bound=Callable[..., Any])

MOST_KEYRINGS = 3500
"""That a cluster has."""
MOST_SECONDS = 10**9
"""More than 31 years. What the system can still wait for differs, and is not much more."""
LARGEST_DESCRIPTOR = 2**31 - 1
LARGEST_SLOT_ID = 2 ** (8 * ctypes.sizeof(ctypes.c_ulong)) - 1


class Number(click.FloatRange):
    """A number within limits. Without them the range would let nan pass, which is beyond neither."""

    def convert(
        self, value: Any, parameter: click.Parameter | None, context: click.Context | None
    ) -> float:
        number = float(super().convert(value, parameter, context))
        if math.isnan(number):
            self.fail(f"{value} is not a number", parameter, context)
        return number


class SlotId(click.IntRange):
    """The ID of a slot of the client library's device."""

    def __init__(self) -> None:
        super().__init__(0, LARGEST_SLOT_ID)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        return offer_slots(ctx, incomplete)


class NewLabel(click.ParamType[str]):
    """A label that a token can have; others are refused here."""

    name = "label"

    def convert(
        self, value: Any, parameter: click.Parameter | None, context: click.Context | None
    ) -> str:
        try:
            encode_label(value)
        except ValueError as error:
            self.fail(str(error), parameter, context)
        return str(value)


class Label(NewLabel):
    """The label of a token of the client library's device."""

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        return offer_labels(ctx, incomplete)


class Filled(click.ParamType[str]):
    """A text that is not empty, such as a cluster's ID."""

    name = "text"

    def convert(
        self, value: Any, parameter: click.Parameter | None, context: click.Context | None
    ) -> str:
        if not value:
            self.fail("it is empty", parameter, context)
        return str(value)


SLOT = SlotId()
NEW_SLOT = click.IntRange(0, LARGEST_SLOT_ID)
DESCRIPTOR = click.IntRange(0, LARGEST_DESCRIPTOR)
SECONDS = Number(0, MOST_SECONDS)
LABEL = Label()
NEW_LABEL = NewLabel()
CLUSTER = Filled()

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


class Command(click.Command):
    """A subcommand that takes no value twice: one of the two would be ignored, without a word."""

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
