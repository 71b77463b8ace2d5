"""Texts for a terminal, without what only the command line needs."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap

from ..escaping import printable

_WORDS = {
    "name its libCryptoki2 as Library(path) or": "name its libCryptoki2 by luna-ext --library FILE or",
    "Library.slots()": "`luna-ext slots`",
    "Library.tokens()": "`luna-ext tokens`",
    "choose one with Library.find() or slot()": "`luna-ext find LABEL` shows them; name one by its slot",
    "Library.reconnect() ends it, and drops all locks of the process": "It ends with this process",
    "until this process disconnects: Library.reconnect() does that, and drops all its locks": "until this "
    "process disconnects, which it does at its end",
    "open a new Library": "run it again",
    "open the Library after the fork": "initialise the client library after the fork",
    'say Library(contention="poll")': "say --contention poll",
    "also a Library that has": "also a program that has",
    ", or assign with unique=False": "",
    "which provision() needs": "which `luna-ext provision` needs",
    "provision() with this label": "`luna-ext provision` with this label",
    "provision(..., user_pin=...) completes": "`luna-ext provision` with the user's PIN completes",
    "token.change_pin(": "in Python: token.change_pin(",
    "token_info.min_pin_length and .max_pin_length say": "min_pin_length and max_pin_length of `luna-ext "
    "tokens --json` say",
    "but user_pin is not set": "but the user's PIN is not set",
    "PIN_PAD is for": "--pin-pad is for",
    "a guard prevents it": "--guard prevents it",
    "Cluster.log()": "`luna-ext stub log`",
    "Cluster.switch says": "`luna-ext stub switch --help` says",
}
"""What an error advises in Python, and what the command has for it."""

# Not in a path or label, which may have the same name.
_OPTIONS = re.compile(
    r"\b(so_pin|user_pin|cluster_id|up_to)(?= (?:has|is) )|(?<=not initialised has no )user_pin"
)


def in_our_words(text: str) -> str:
    """The text with the command's own names for what to do."""
    for python, ours in _WORDS.items():
        text = text.replace(python, ours)
    return _OPTIONS.sub(lambda found: "--" + found[0].replace("_", "-"), text)


def in_one_line(error: BaseException | str) -> str:
    """An error's message and notes; or a text."""
    parts = [str(error) or type(error).__name__, *getattr(error, "__notes__", ())]
    text = "; ".join(part.removeprefix("luna_ext: ") for part in parts)
    text = re.sub(r":\s*\n\s*- ", ": ", text)
    text = re.sub(r"\s*\n\s*(- )?", lambda found: "; " if found[1] else " ", text)
    return printable(in_our_words(text))


def in_lines(text: str, indent: str = "    ") -> str:
    """The text for the standard output: broken between words for a terminal, which would do so anywhere.

    Errors are not: a line of the standard error is copied and looked for as a whole.
    """
    if not sys.stdout.isatty():
        return text
    return textwrap.fill(
        text,
        shutil.get_terminal_size().columns,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
