"""Texts for a terminal, without what only the command line needs."""

from __future__ import annotations

import re


def printable(text: str) -> str:
    """The text with all characters escaped that a terminal takes for a command, or does not show."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "backslashreplace").decode()
        for char in text
    )


def in_one_line(error: BaseException | str) -> str:
    """An error's message and notes; or a text."""
    parts = [str(error) or type(error).__name__, *getattr(error, "__notes__", ())]
    text = "; ".join(part.removeprefix("luna_ext: ") for part in parts)
    text = re.sub(r":\s*\n\s*- ", ": ", text)
    return printable(re.sub(r"\s*\n\s*(- )?", lambda found: "; " if found[1] else " ", text))
