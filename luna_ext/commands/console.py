"""What the subcommands share: opening the library, and printing."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import click

from .._cluster import Library
from .texts import printable

if TYPE_CHECKING:
    from rich.table import Table

EXIT_TEMPORARY = 75
"""EX_TEMPFAIL of sysexits.h: try again later."""
EXIT_INTERRUPTED = 130
"""As a shell has it of a program that SIGINT has ended."""


@dataclass
class Settings:
    """The options before the subcommand."""

    path: str | None
    contention: Literal["block", "poll"]

    def open(self) -> Library:
        with warnings.catch_warnings():
            # The commands print their own line about the stand-in, below.
            warnings.filterwarnings("ignore", ".* is the stand-in", RuntimeWarning)
            library = Library(self.path, contention=self.contention)
        if library.is_stub:
            tell(f"warning: {library.path} is the stand-in, not an HSM's client library")
        return library


settings = click.make_pass_decorator(Settings)

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


def examples(*lines: str) -> str:
    """The examples at the end of a subcommand's help."""
    # \b: click does not make a paragraph of the lines.
    return "\n".join(("\b", "Examples:", *(f"  {line}" for line in lines)))


def tell(text: str) -> None:
    """A line on standard error, for what is not the command's result."""
    try:
        click.echo(f"luna-ext: {text}", err=True)
    except OSError:
        # There is no other place to tell it, and it is no reason to let a lock go.
        give_up_stream(2)


def give_up_stream(number: int) -> None:
    """Let what is left of its output vanish, or Python would write it once more at its end, and fail."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, number)
    os.close(null)


def print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2))


# rich is imported where it is used, for most subcommands begin in half the time without it.


def make_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """For a terminal with lines, else as plain columns. A column of numbers is to the right."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    terminal = sys.stdout.isatty()
    table = Table(box=box.SIMPLE_HEAD if terminal else None, pad_edge=terminal)
    cells = [list(row) for row in rows]
    for index, name in enumerate(columns):
        numbers = bool(cells) and all(isinstance(row[index], int) for row in cells)
        table.add_column(name, justify="right" if numbers else "left", overflow="fold")
    for row in cells:
        # Text, for a label in brackets is no markup.
        table.add_row(*(Text("-" if cell is None else printable(str(cell))) for cell in row))
    return table


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    from rich.console import Console

    table = make_table(columns, rows)
    if sys.stdout.isatty():
        Console(highlight=False).print(table)
        return
    # Output for a program or a file: long lines are not broken.
    console = Console(width=10_000)
    with console.capture() as text:
        console.print(table)
    for line in text.get().splitlines():
        click.echo(line.rstrip())


def flag_names(flags: Any) -> list[str]:
    """The names of an IntFlag's members, in lower case."""
    return [flag.name.lower() for flag in flags]
