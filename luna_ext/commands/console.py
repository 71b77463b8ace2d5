"""What the subcommands share: opening the library, and printing."""

from __future__ import annotations

import json
import os
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import click

from .. import ownership
from .._cluster import Library
from ..discovery import find_library
from ..errors import rv_name
from ..escaping import printable
from .interrupting import ended_at_once
from .loading import look_at
from .texts import in_lines, in_one_line

EXIT_TEMPORARY = 75
"""EX_TEMPFAIL of sysexits.h: try again later."""
EXIT_INTERRUPTED = 130
"""As a shell has it of a program that SIGINT has ended."""


@dataclass
class Settings:
    """The options before the subcommand."""

    path: str | None
    contention: Literal["block", "poll"]

    @contextmanager
    def open(self, *, takes_pins: bool = False) -> Iterator[Library]:
        """Open the library for a block. With `takes_pins`, refuse one that other users may change."""
        path = find_library(self.path).path
        if takes_pins:
            _refuse_what_others_change(path)
        if wrong := look_at(path):
            # To load a file that is cut off would end the process by SIGBUS.
            says, advice = wrong
            raise click.ClickException(f"{says}; {advice}")
        with warnings.catch_warnings(), ended_at_once():
            # The log record of it is a line already.
            warnings.filterwarnings("ignore", ".* is the stand-in", RuntimeWarning)
            luna = Library(self.path, contention=self.contention)
        raised: BaseException | None = None
        try:
            yield luna
        except BaseException as error:
            raised = error
            raise
        finally:
            # Nothing is locked any more, or only until the end of the process.
            with ended_at_once(after=raised):
                luna.close()


def _refuse_what_others_change(path: str) -> None:
    weaknesses = ownership.weaknesses_of_client(path)
    if weaknesses:
        says, advice = ownership.in_words(weaknesses)
        raise click.ClickException(
            f"{says}. So they could get the PINs. What to do: {advice}; or, if you know that they are to "
            "have that right, give --insecure"
        )


def refuse_on_windows(what: str) -> None:
    """Refuse what needs signals and terminals as POSIX has them."""
    if not hasattr(signal, "pthread_sigmask"):
        raise click.ClickException(f"on Windows luna-ext does not {what}")


settings = click.make_pass_decorator(Settings)

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


def examples(*lines: str) -> str:
    """The examples at the end of a subcommand's help."""
    # \b: click does not make a paragraph of the lines.
    return "\n".join(("\b", "Examples:", *(f"  {line}" for line in lines)))


def say(text: str) -> None:
    """A line on standard output that a person reads; a terminal has it broken between words."""
    click.echo(in_lines(printable(text)))


def tell(text: str) -> None:
    """A line on standard error, for what is not the command's result."""
    try:
        click.echo(f"luna-ext: {printable(text)}", err=True)
    except OSError:
        # There is no other place to tell it, and it is no reason to let a lock go.
        give_up_stream(2)


def give_up_stream(number: int) -> None:
    """Let what is left of its output vanish, or Python would write it once more at its end, and fail."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, number)
    os.close(null)


def print_json(value: object) -> None:
    """The one value that a subcommand prints; docs/schemas/ describes it."""
    click.echo(json.dumps(value, indent=2))


def print_json_line(value: object) -> None:
    """One of several, each in a line of its own, which a program is to have at once."""
    # Flushes, too.
    click.echo(json.dumps(value))


def error_in_json(error: Exception) -> dict[str, object]:
    rv, function, slot_id = (getattr(error, name, None) for name in ("rv", "function", "slot_id"))
    return {
        "exception": type(error).__name__,
        "rv": rv,
        "rv_name": None if rv is None else rv_name(rv),
        "function": function,
        "slot_id": slot_id,
        "message": in_one_line(error),
    }


def flag_names(flags: Any) -> list[str]:
    """The names of an IntFlag's members, in lower case."""
    return [flag.name.lower() for flag in flags]
