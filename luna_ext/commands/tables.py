"""Tables and paragraphs, as wide as there is room for: on a terminal, and in pipes and files."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Sequence

import click
from rich.cells import cell_len, set_cell_size

from ..escaping import printable
from .texts import in_lines

NARROWEST = 40
"""Columns of a terminal. On a narrower one a table is a list."""
ALWAYS = 2
"""That many columns of a table, from the left, are always shown."""
LEAST_OF_LAST = 16
"""To that many columns of a terminal the last column may be cut, if it may be cut."""
GAP = "  "


class Layout:
    """How a table's rows are drawn on so many columns of a terminal; None: all that it takes.

    Columns that do not fit are left out, from the right. Nothing is broken or cut but the cells of the last
    column, where `cut_last` says so. Where the first two do not fit, or the terminal is narrower than
    NARROWEST, each row is a list of its cells.
    """

    def __init__(
        self,
        columns: Sequence[str],
        rows: Iterable[Sequence[object]],
        width: int | None,
        *,
        cut_last: bool = False,
    ) -> None:
        values = [list(row) for row in rows]
        self.cells = [[_cell(value) for value in row] for row in values]
        self.columns = [_cell(name) for name in columns]
        self._width = width
        self._widths = [
            max(cell_len(text) for text in (name, *(row[index] for row in self.cells)))
            for index, name in enumerate(self.columns)
        ]
        self._numbers = [
            _are_numbers([row[index] for row in values]) for index in range(len(columns))
        ]
        shown = len(columns)
        if width is not None:
            if cut_last and self._needs(shown) > width:
                least = min(self._widths[-1], max(LEAST_OF_LAST, cell_len(self.columns[-1])))
                self._widths[-1] = max(least, width - self._needs(shown - 1) - len(GAP))
            while shown > ALWAYS and self._needs(shown) > width:
                shown -= 1
        self._shown = shown
        self.is_list = width is not None and (width < NARROWEST or self._needs(shown) > width)

    def heading(self) -> list[str]:
        if self.is_list:
            return []
        names = self._line(self.columns)
        if self._width is None:
            return [names]
        return [names, _encodable("─", "-") * self._needs(self._shown)]

    def blocks(self) -> Iterable[list[str]]:
        """The lines of each row."""
        if not self.is_list:
            return ([self._line(row)] for row in self.cells)
        return (
            [
                *(
                    line
                    for entry in zip(self.columns, row, strict=True)
                    for line in self._entry(*entry)
                ),
                "",
            ]
            for row in self.cells
        )

    def _entry(self, name: str, cell: str) -> list[str]:
        """An entry of a list: in one line if it fits, or the cell in one of its own, to be broken last."""
        width = self._width or 0
        if cell_len(f"{name}: {cell}") <= width:
            return [f"{name}: {cell}"]
        indented = GAP + cell
        return [f"{name}:", indented if cell_len(indented) <= width else cell]

    def _needs(self, shown: int) -> int:
        return sum(self._widths[:shown]) + len(GAP) * (shown - 1)

    def _line(self, cells: Sequence[str]) -> str:
        # zip() leaves out the columns that are not shown.
        shown = zip(cells, self._widths[: self._shown], self._numbers, strict=False)
        return GAP.join(_fitted(*cell) for cell in shown).rstrip()


def cut(text: str, width: int) -> str:
    """The text, or as much of it as fits, with a sign that there is more."""
    if cell_len(text) <= width:
        return text
    more = _encodable("…", "...")
    return set_cell_size(text, max(0, width - cell_len(more))) + more


def _fitted(text: str, width: int, to_the_right: bool) -> str:
    text = cut(text, width)
    room = " " * (width - cell_len(text))
    return room + text if to_the_right else text + room


def _are_numbers(values: Sequence[object]) -> bool:
    return all(value is None or isinstance(value, int) for value in values) and any(
        value is not None for value in values
    )


def _cell(value: object) -> str:
    return "-" if value is None else _encodable(printable(str(value)))


def _encodable(text: str, otherwise: str | None = None) -> str:
    """The text, if the standard output's encoding has all of it; with escapes, or what else is given."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        if otherwise is not None:
            return otherwise
        return text.encode(encoding, "backslashreplace").decode(encoding)
    return text


def _room() -> int | None:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """On a terminal as it has room, else whole: a line for each row."""
    layout = Layout(columns, rows, _room())
    lines = [*layout.heading(), *(line for block in layout.blocks() for line in block)]
    for line in lines:
        click.echo(line)


def print_paragraph(
    text: str, *, mark: str = "", color: str | None = None, indent: str = "    "
) -> None:
    """A line, which a terminal breaks between words, `indent` before all but the first.

    `mark` comes before the text, in this color.
    """
    whole = in_lines(mark + printable(text), indent)
    colored = click.style(mark, color) if mark else ""
    click.echo(colored + whole.removeprefix(mark))
