"""The JSON of the subcommands, and what docs/ says of it."""

import json
import re
from pathlib import Path

import click
import pytest

from luna_ext.commands import cli

DOCS = Path(__file__).parents[2] / "docs"
SCHEMAS = DOCS / "schemas"


def with_json(group=cli.luna_ext, above=()):
    """The names of the subcommands that have the option."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from with_json(command, (*above, name))
        elif any("--json" in parameter.opts for parameter in command.params):
            yield "-".join((*above, name))


def test_each_has_a_schema():
    assert {file.stem for file in SCHEMAS.glob("*.json")} == set(with_json())


def keys_of(schema):
    if isinstance(schema, dict):
        if isinstance(schema.get("properties"), dict):
            yield from schema["properties"]
        schema = schema.values()
    if not isinstance(schema, str | int | float | bool | None):
        for each in schema:
            yield from keys_of(each)


@pytest.mark.parametrize("name", [*with_json()])
def test_the_schema(name):
    jsonschema = pytest.importorskip("jsonschema", reason="its part in Rust is not installed")
    schema = json.loads((SCHEMAS / f"{name}.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["title"].startswith(f"luna-ext {name.replace('-', ' ')}")
    assert [key for key in keys_of(schema) if not re.fullmatch("[a-z][a-z0-9_]*", key)] == []
    assert f"(schemas/{name}.json)" in (DOCS / "json.md").read_text()


def test_slots_and_tokens(command, read_json):
    assert len(read_json("slots", command("slots", "--all", "--json"))) == 8
    assert len(read_json("tokens", command("tokens", "--json"))) == 8
    assert read_json("find", command("find", "keyring3", "--json"))[0]["slot_id"] == 3
    assert read_json("find", command("find", "none", "--json")) == []


def test_explain(command, read_json):
    found = read_json(
        "explain", command("explain", "--json", "0", "pin_locked", "0x30", "6", "0x82")
    )
    assert [code["kind"] for code in found] == [None, "pin", "lost", "none_left", None]


def test_bench(command, read_json):
    done = command("bench", "--json", "--threads", 2, "--slots", 2, "--seconds", 0.1)
    found = read_json("bench", done)
    assert (found["threads"], found["slots"]) == (2, 2)
    assert found["locks_per_second"] > 0


def test_demo(command, read_json):
    found = read_json("demo", command("demo", "--json"))
    names = {process["name"]: process["pid"] for process in found["processes"]}
    assert names.keys() == {"alice", "bob"}
    assert found["held_by_two"] == 0
    assigned = [hold for hold in found["holds"] if hold["outcome"] == "assigned"]
    assert len(assigned) == len(found["tokens"]) == 8
    assert {token["label"] for token in found["tokens"]} == {hold["label"] for hold in assigned}
    assert {token["owner"] for token in found["tokens"]} <= {None, *names.values()}


def test_stub_status(command, read_json, hold_elsewhere):
    holder = hold_elsewhere(2)
    tokens = read_json("stub-status", command("stub", "status", "--json"))["tokens"]
    assert [token["owner"] for token in tokens[:3]] == [None, holder.pid, None]


def test_stub_log(command, read_json, hold_elsewhere):
    hold_elsewhere(2)
    calls = read_json("stub-log", command("stub", "log", "--json"))
    (lock,) = (call for call in calls if call["function"] == "CA_LockClusteredSlot")
    assert (lock["slot_id"], lock["rv_name"]) == (2, "CKR_OK")


def test_assign(command, read_json, pin_file, cluster):
    done = command("assign", "cluster-1", "x", "--json", "--so-pin-file", pin_file())
    found = read_json("assign", done)
    (token,) = (token for token in cluster.tokens() if token.label == "x")
    assert found == {"label": "x", "slot_id": token.slot_id}


# ---- provision ----


@pytest.fixture
def provision(command, read_json, pin_file):
    def run(*options):
        words = ("cluster-1", "--prefix", "x", "--json", "--so-pin-file", pin_file(), *options)
        done = command("provision", *words)
        return done.returncode, read_json("provision", done, lines=True)

    return run


def test_provision(provision, assign):
    slot_id = assign("x2")
    code, (*steps, end) = provision("--count", 3, "--workers", 1)
    assert (code, [step["label"] for step in steps]) == (0, ["x1", "x2", "x3"])
    assert [step["outcome"] for step in steps] == ["assigned", "skipped", "assigned"]
    assert [step["done"] for step in steps] == [1, 2, 3]
    assert steps[1]["slot_id"] == slot_id
    fresh = [{"label": step["label"], "slot_id": step["slot_id"]} for step in (steps[0], steps[2])]
    assert end == {
        "event": "end",
        "complete": True,
        "total": 3,
        "assigned": 2,
        "skipped": 1,
        "failed": 0,
        "fresh": fresh,
    }


def test_provision_that_fails(provision, cluster):
    cluster.fault("C_InitToken", 0x30, times=1)
    code, (first, second, end) = provision("--count", 2, "--workers", 1)
    assert (code, end["failed"], end["complete"]) == (1, 1, True)
    assert (first["outcome"], first["slot_id"]) == ("failed", None)
    error = first["error"]
    assert (error["exception"], error["rv"], error["rv_name"]) == (
        "DeviceError",
        0x30,
        "CKR_DEVICE_ERROR",
    )
    assert error["function"] == "C_InitToken"
    assert second["error"] is None


def test_what_provision_would_do(provision, assign):
    slot_id = assign("x2")
    code, (first, second, end) = provision("--count", 2, "--dry-run")
    assert (code, first["slot_id"], second["slot_id"]) == (0, None, slot_id)
    assert end == {"event": "plan_end", "total": 2, "to_assign": 1, "skipped": 1, "unassigned": 7}
