"""Files of labels, as people and their editors write them."""

from __future__ import annotations

import codecs
from typing import BinaryIO

import click

from .values import MOST_KEYRINGS, check_new_label

MOST_BYTES = 1 << 20
"""More than a label for each keyring takes, with comments."""


def read_labels(file: BinaryIO) -> list[str]:
    """The labels of a file: one in each line, but for empty lines and those that begin with #.

    A byte order mark at the beginning and a carriage return at the end of a line are no part of a label.

    Raises
    ------
    click.BadParameter
        A line is no label, or one that another line has; it names the line.
    """
    contents = file.read(MOST_BYTES + 1)
    if len(contents) > MOST_BYTES:
        raise _refused(file, f"it has more than {MOST_BYTES} bytes, and is no file of labels")
    found: dict[str, int] = {}
    for number, line in enumerate(contents.removeprefix(codecs.BOM_UTF8).split(b"\n"), 1):
        if not line.strip() or line.startswith(b"#"):
            continue
        try:
            label = _label(line.removesuffix(b"\r"))
        except ValueError as error:
            raise _refused(file, f"line {number}: {error}") from None
        if label in found:
            raise _refused(file, f"line {number}: {label!r} is in line {found[label]} already")
        found[label] = number
    if not found:
        raise _refused(file, "it has no label")
    if len(found) > MOST_KEYRINGS:
        raise _refused(file, f"it has {len(found)} labels; a cluster has {MOST_KEYRINGS} keyrings")
    return list(found)


def _refused(file: BinaryIO, why: str) -> click.BadParameter:
    # A number: the command was started without a standard input.
    name = file.name if isinstance(file.name, str) else "<stdin>"
    return click.BadParameter(f"{name}: {why}", param_hint="'--labels'")


def _label(line: bytes) -> str:
    try:
        label = line.decode()
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8, and cannot be written as a label") from None
    check_new_label(label)
    return label
