"""Texts of others, such as paths and what a loader says, in a message that a person reads."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text with all characters escaped that a terminal takes for a command, or does not show."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "backslashreplace").decode()
        for char in text
    )
