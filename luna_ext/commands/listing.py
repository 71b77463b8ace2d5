"""slots, tokens, find: what there is."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from operator import itemgetter

import click

from ..errors import CryptokiError
from ..info import SlotInfo, TokenFlag, TokenInfo, Version
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


def _of_slot(slot_id: int, info: SlotInfo) -> dict[str, object]:
    return {
        "slot_id": slot_id,
        "description": info.description,
        "manufacturer": info.manufacturer,
        "flags": flag_names(info.flags),
        "hardware_version": str(info.hardware_version),
        "firmware_version": str(info.firmware_version),
    }


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


def _of_token(
    slot_id: int, info: TokenInfo | None, error: CryptokiError | None = None
) -> dict[str, object]:
    """One that cannot be read has the error's name, and null for what is not known."""
    return {
        "slot_id": slot_id,
        **{name: _for_json(getattr(info, name, None)) for name in _OF_TOKEN},
        "error": None if error is None else error.rv_name,
    }


def _for_json(value: object) -> object:
    match value:
        case TokenFlag():
            return flag_names(value)
        case Version():
            return str(value)
    return value


@click.command(cls=Command, epilog=examples("luna-ext slots", "luna-ext slots --all --json"))
@click.option("--all", "everything", is_flag=True, help="Those without a token, too.")
@json_option
@settings
def slots(options: Settings, everything: bool, as_json: bool) -> None:
    """List the slots that the client knows (C_GetSlotList)."""
    with ended_at_once(), options.open() as luna:
        found = [
            _of_slot(slot.slot_id, slot.info) for slot in luna.slots(token_present=not everything)
        ]
    if as_json:
        print_json(found)
    else:
        columns = ("slot_id", "description", "manufacturer", "firmware_version")
        print_table(
            ("slot", "description", "manufacturer", "firmware"),
            ([slot[column] for column in columns] for slot in found),
        )
    if not found:
        what = "slot" if everything else "slot with a token"
        tell(f"the client knows no {what}; `luna-ext doctor` says what it is set up for")


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
                token["label"] if token["error"] is None else f"error: {token['error']}",
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
            *(_of_token(one.slot.slot_id, one.info) for one in good if matches(one.label, glob)),
            *(_of_token(slot_id, None, error) for slot_id, error in bad.items()),
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
    """List the tokens with this LABEL (CA_GetSlotId). Exit code 1: there is none."""
    with ended_at_once(), options.open() as luna:
        found = [_of_token(token.slot.slot_id, token.info) for token in luna.find(label)]
    if found or as_json:
        _show(found, as_json)
    if not found:
        tell(f"no token has the label {label!r}; `luna-ext tokens` lists all")
    return 0 if found else 1
