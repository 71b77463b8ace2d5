"""slots, tokens, find: what there is."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter
from typing import TypeAlias

import click

from .._cluster import ClusterSlot
from ..errors import CryptokiError
from ..info import SlotFlag, SlotInfo, TokenFlag, TokenInfo, Version
from ..stub import STATE_VARIABLE, Cluster
from .console import (
    Settings,
    examples,
    flag_names,
    json_option,
    print_json,
    settings,
    tell,
)
from .interrupting import ended_at_once
from .tables import print_table
from .texts import in_one_line
from .values import LABEL, MOST_KEYRINGS, Command, Whole, label_glob, matches

_Read: TypeAlias = SlotInfo | TokenInfo | CryptokiError
_Found: TypeAlias = dict[int, _Read]
"""What was read of each slot or token, by the slot's ID; or why that was not to be had."""

_OF_SLOT = ("description", "manufacturer", "flags", "hardware_version", "firmware_version")
_OF_TOKEN = (
    "label",
    "manufacturer",
    "model",
    "serial_number",
    "flags",
    "session_count",
    "max_session_count",
    "min_pin_length",
    "max_pin_length",
    "hardware_version",
    "firmware_version",
)


def _in_json(names: Iterable[str], slot_id: int, read: _Read) -> dict[str, object]:
    """A slot or token. One that cannot be read has the error's name, and null for what is not known."""
    return {
        "slot_id": slot_id,
        **{name: _for_json(getattr(read, name, None)) for name in names},
        "error": read.rv_name if isinstance(read, CryptokiError) else None,
    }


def _read_each(slots: Iterable[ClusterSlot], read: Callable[[ClusterSlot], _Read]) -> _Found:
    """What is known of each slot: one that cannot be read hides none of the others."""
    found: _Found = {}
    for slot in slots:
        try:
            found[slot.slot_id] = read(slot)
        except CryptokiError as error:
            found[slot.slot_id] = error
    return found


def _errors(found: _Found) -> list[CryptokiError]:
    return [read for read in found.values() if isinstance(read, CryptokiError)]


def _for_json(value: object) -> object:
    match value:
        case SlotFlag() | TokenFlag():
            return flag_names(value)
        case Version():
            return str(value)
    return value


@click.command(cls=Command, epilog=examples("luna-ext slots", "luna-ext slots --all --json"))
@click.option("--all", "everything", is_flag=True, help="Those without a token, too.")
@json_option
@settings
def slots(options: Settings, everything: bool, as_json: bool) -> int:
    """List the slots that the client knows (C_GetSlotList).

    A slot that cannot be read hides none of the others: it is listed with its error, stderr says what to
    do, and the exit code is 1.
    """
    with ended_at_once(), options.open() as luna:
        read = _read_each(luna.slots(token_present=not everything), lambda slot: slot.info)
    found = [_in_json(_OF_SLOT, slot_id, info) for slot_id, info in read.items()]
    if as_json:
        print_json(found)
    else:
        columns = ("manufacturer", "firmware_version")
        print_table(
            ("slot", "description", "manufacturer", "firmware"),
            (
                [slot["slot_id"], _or_error(slot, "description"), *(slot[name] for name in columns)]
                for slot in found
            ),
        )
    _tell_errors(_errors(read))
    if not found:
        what = "slot" if everything else "slot with a token"
        tell(f"the client knows no {what}; `luna-ext doctor` says what it is set up for")
    return 1 if _errors(read) else 0


def _or_error(row: dict[str, object], name: str) -> object:
    """What the column shows of a slot or token, for which the error's name stands where there is one."""
    return row[name] if row["error"] is None else f"error: {row['error']}"


def _show(tokens: Sequence[dict[str, object]], as_json: bool) -> None:
    if as_json:
        print_json(tokens)
        return
    # A narrow terminal loses those at the right: of most clusters, all rows have the same there.
    print_table(
        ("slot", "label", "serial number", "user PIN", "sessions", "firmware", "model"),
        (
            (
                token["slot_id"],
                _or_error(token, "label"),
                token["serial_number"],
                _user_pin(token["flags"]),
                token["session_count"],
                token["firmware_version"],
                token["model"],
            )
            for token in tokens
        ),
    )


def _user_pin(flags: object) -> str | None:
    if not isinstance(flags, list):
        return None
    if "user_pin_locked" in flags:
        return "locked"
    return "set" if "user_pin_initialized" in flags else "not set"


@click.command(
    cls=Command,
    epilog=examples(
        "luna-ext tokens",
        "luna-ext tokens --label 'payments-*'",
        "luna-ext tokens --json | jq -r '.[].label'",
    ),
)
@label_glob
@click.option(
    "--unassigned",
    is_flag=True,
    help="Those that have their original label still. Only the stand-in tells.",
)
@click.option(
    "--workers",
    type=Whole(1, MOST_KEYRINGS),
    default=16,
    show_default=True,
    help="Device calls at a time.",
)
@json_option
@settings
def tokens(
    options: Settings, glob: str | None, unassigned: bool, workers: int, as_json: bool
) -> int:
    """List all tokens with their information (C_GetTokenInfo).

    A token that cannot be read hides none of the others: it is listed with its error, whatever its
    label may be, stderr says what to do, and the exit code is 1.
    """
    bad: dict[int, CryptokiError] = {}
    with ended_at_once(), options.open() as luna:
        if unassigned and not luna.is_stub:
            raise click.ClickException(
                "which tokens are unassigned is not known: the client has no function that tells it, only "
                "one that claims such a token. Leave --unassigned out, or let `luna-ext claim` find one"
            )
        good = luna.tokens(
            workers=workers, on_error=lambda slot, error: bad.update({slot.slot_id: error})
        )
        found = [
            *(
                _in_json(_OF_TOKEN, one.slot.slot_id, one.info)
                for one in good
                if matches(one.label, glob)
            ),
            *(_in_json(_OF_TOKEN, slot_id, error) for slot_id, error in bad.items()),
        ]
        if unassigned:
            # Asked last: one that is assigned meanwhile is left out.
            of = unassigned_slots()
            found = [token for token in found if token["slot_id"] in of]
    _show(sorted(found, key=itemgetter("slot_id")), as_json)
    _tell_errors(bad.values())
    if not found:
        tell(
            "no token is one of those; `luna-ext tokens` lists all"
            if unassigned or glob is not None
            else "the client knows no token; `luna-ext doctor` says what it is set up for"
        )
    return 1 if bad else 0


def unassigned_slots() -> set[int]:
    """The slots of the stand-in's tokens that have their original label. A device does not tell."""
    tokens = Cluster(os.environ[STATE_VARIABLE]).tokens()
    return {token.slot_id for token in tokens if token.label == token.original_label}


def _tell_errors(errors: Iterable[CryptokiError]) -> None:
    """One of each kind, for 3500 tokens may have the same."""
    by_code: dict[int | None, list[CryptokiError]] = {}
    for error in errors:
        by_code.setdefault(error.rv, []).append(error)
    for first, *more in by_code.values():
        others = f" (so for {len(more)} more)" if more else ""
        tell(f"{in_one_line(first)}{others}")


@click.command(
    cls=Command, epilog=examples("luna-ext find payments-01", "luna-ext find payments-01 --json")
)
@click.argument("label", type=LABEL)
@json_option
@settings
def find(options: Settings, label: str, as_json: bool) -> int:
    """List the tokens with this LABEL (CA_GetSlotId).

    One that cannot be read is listed with its error, and hides none of the others. Exit code 1: there is
    such a one, or none at all.
    """
    with ended_at_once(), options.open() as luna:
        slots = [token.slot for token in luna.find(label)]
        read = _read_each(slots, lambda slot: slot.token_info)
    if read or as_json:
        _show([_in_json(_OF_TOKEN, *one) for one in read.items()], as_json)
    _tell_errors(_errors(read))
    if not read:
        tell(f"no token has the label {label!r}; `luna-ext tokens` lists all")
    return 1 if _errors(read) or not read else 0
