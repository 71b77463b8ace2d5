"""slots, tokens, find: what there is."""

from __future__ import annotations

from collections.abc import Iterable

import click

from .._cluster import Token
from ..errors import CryptokiError
from ..info import SlotInfo, TokenInfo
from .console import (
    Settings,
    examples,
    flag_names,
    json_option,
    print_json,
    settings,
    tell,
)
from .tables import print_table
from .texts import in_one_line
from .values import LABEL, MOST_KEYRINGS, Command


def _of_slot(slot_id: int, info: SlotInfo) -> dict[str, object]:
    return {
        "slot_id": slot_id,
        "description": info.description,
        "manufacturer": info.manufacturer,
        "flags": flag_names(info.flags),
        "hardware_version": str(info.hardware_version),
        "firmware_version": str(info.firmware_version),
    }


def of_token(slot_id: int, info: TokenInfo) -> dict[str, object]:
    return {
        "slot_id": slot_id,
        "label": info.label,
        "manufacturer": info.manufacturer,
        "model": info.model,
        "serial_number": info.serial_number,
        "flags": flag_names(info.flags),
        "session_count": info.session_count,
        "max_session_count": info.max_session_count,
        "min_pin_length": info.min_pin_length,
        "max_pin_length": info.max_pin_length,
        "hardware_version": str(info.hardware_version),
        "firmware_version": str(info.firmware_version),
    }


@click.command(cls=Command, epilog=examples("luna-ext slots", "luna-ext slots --all --json"))
@click.option("--all", "everything", is_flag=True, help="Those without a token, too.")
@json_option
@settings
def slots(options: Settings, everything: bool, as_json: bool) -> None:
    """List the slots that the client knows (C_GetSlotList)."""
    with options.open() as luna:
        found = [
            _of_slot(slot.slot_id, slot.info) for slot in luna.slots(token_present=not everything)
        ]
    if as_json:
        print_json(found)
        return
    columns = ("slot_id", "description", "manufacturer", "firmware_version")
    print_table(
        ("slot", "description", "manufacturer", "firmware"),
        ([slot[column] for column in columns] for slot in found),
    )


def _show(tokens: Iterable[Token], as_json: bool) -> None:
    found = [of_token(token.slot.slot_id, token.info) for token in tokens]
    if as_json:
        print_json(found)
        return
    columns = ("slot_id", "label", "serial_number", "model", "firmware_version", "session_count")
    print_table(
        ("slot", "label", "serial number", "model", "firmware", "sessions", "user PIN"),
        ([*(token[column] for column in columns), _user_pin(token["flags"])] for token in found),
    )


def _user_pin(flags: object) -> str:
    assert isinstance(flags, list)
    if "user_pin_locked" in flags:
        return "locked"
    return "set" if "user_pin_initialized" in flags else "not set"


@click.command(
    cls=Command, epilog=examples("luna-ext tokens", "luna-ext tokens --json | jq -r '.[].label'")
)
@click.option(
    "--workers",
    type=click.IntRange(1, MOST_KEYRINGS),
    default=16,
    show_default=True,
    help="Device calls at a time.",
)
@json_option
@settings
def tokens(options: Settings, workers: int, as_json: bool) -> int:
    """List all tokens with their information (C_GetTokenInfo).

    A token that cannot be read hides none of the others: its slot and the error go to stderr, and the
    exit code is 1.
    """
    bad: list[CryptokiError] = []
    with options.open() as luna:
        _show(luna.tokens(workers=workers, on_error=lambda slot, error: bad.append(error)), as_json)
    for error in bad:
        tell(in_one_line(error))
    return 1 if bad else 0


@click.command(
    cls=Command, epilog=examples("luna-ext find payments-01", "luna-ext find payments-01 --json")
)
@click.argument("label", type=LABEL)
@json_option
@settings
def find(options: Settings, label: str, as_json: bool) -> int:
    """List the tokens with this LABEL (CA_GetSlotId). Exit code 1: there is none."""
    with options.open() as luna:
        found = luna.find(label)
        if found or as_json:
            _show(found, as_json)
    if not found:
        tell(f"no token has the label {label!r}; `luna-ext tokens` lists all")
    return 0 if found else 1
