"""What a shell offers for a value that is being typed."""

from __future__ import annotations

from collections.abc import Iterable

import click
from click.shell_completion import CompletionItem

from .._cluster import Library
from ..errors import named_codes, rv_name

COMPLETION_VARIABLE = "_LUNA_EXT_COMPLETE"
"""Set by the function of a shell that asks."""


def offer(values: Iterable[object], incomplete: str) -> list[CompletionItem]:
    """Those of the values that begin with what is typed so far, and can be typed."""
    texts = map(str, values)
    return [
        CompletionItem(text)
        for text in texts
        if text and text.isprintable() and text.startswith(incomplete)
    ]


def offer_slots(context: click.Context, incomplete: str) -> list[CompletionItem]:
    """The slots of the client library's device."""
    with _library(context) as luna:
        return offer((slot.slot_id for slot in luna.slots()), incomplete)


def offer_labels(context: click.Context, incomplete: str) -> list[CompletionItem]:
    """The labels of the tokens of the client library's device."""
    with _library(context) as luna:
        tokens = luna.tokens(on_error=lambda slot, error: None)
        return offer(dict.fromkeys(token.label for token in tokens), incomplete)


def offer_codes(incomplete: str) -> list[CompletionItem]:
    """The names of return codes."""
    return offer(map(rv_name, named_codes()), incomplete)


def offer_files(incomplete: str) -> list[CompletionItem]:
    """The shell looks for them."""
    return [CompletionItem(incomplete, type="file")]


def _library(context: click.Context) -> Library:
    # The options before the subcommand; nothing has made Settings of them.
    given = context.find_root().params
    return Library(given.get("path"), contention=given.get("contention") or "block")
