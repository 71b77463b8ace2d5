"""explain: what a return code means, and what to do; by its name or number."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from luna_ext.errors import rv_name
from luna_ext.explanations import all_explanations, explain

DOCS = Path(__file__).parents[2] / "docs"
LOCKED = "CKR_PIN_LOCKED"


@pytest.mark.parametrize("code", [LOCKED, "pin_locked", "ckr_Pin_Locked", "0xA4", "0xa4", "164"])
def test_a_code_is_a_name_or_a_number(command, code):
    done = command("explain", code)
    assert (done.returncode, done.stderr) == (0, "")
    name, means, advice = done.stdout.splitlines()
    assert name == "CKR_PIN_LOCKED (0xA4): luna_ext.PinError"
    assert means == f"    It means: {explain(0xA4).meaning}"
    assert advice == f"    What to do: {explain(0xA4).advice}."


def test_several_codes(command):
    done = command("explain", "OK", "0x80000305", "DEVICE_ERROR")
    assert done.returncode == 0
    assert [line for line in done.stdout.splitlines() if not line.startswith(" ")] == [
        "CKR_OK (0x0): no error",
        "CKR_OBJECT_NOT_KEYRING (0x80000305): luna_ext.CryptokiError",
        "CKR_DEVICE_ERROR (0x30): luna_ext.DeviceError",
    ]


def test_json(command):
    done = command("explain", "0", "--json", "pin_locked")
    assert done.returncode == 0
    assert json.loads(done.stdout) == [
        {
            "name": name,
            "number": number,
            "exception": kind,
            "kind": meaning,
            "meaning": explain(number).meaning,
            "advice": explain(number).advice,
        }
        for name, number, kind, meaning in [
            ("CKR_OK", 0, None, None),
            (LOCKED, 0xA4, "luna_ext.PinError", "pin"),
        ]
    ]


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("0x8000BEEF", "0x8000BEEF has no name"),
        ("4", "0x4 has no name"),
        ("2147483648", "0x80000000 has no name"),
        ("CKR_NONSENSE", "'CKR_NONSENSE' is no return code"),
        ("0xZZ", "'0xZZ' is no return code"),
        ("-1", "-1"),
        ("0x1FFFFFFFFFFFFFFFF", "is no return code: a CK_RV is 0 to 18446744073709551615"),
    ],
)
def test_an_unknown_code_is_told_in_one_line(command, code, says):
    done = command("explain", LOCKED, code)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert says in line


def test_an_unknown_number_says_what_a_user_does(command):
    (line,) = command("explain", "0x8000BEEF").stderr.splitlines()
    assert "See the client library's own log, and ask its vendor" in line


def test_it_needs_no_client_library(command, monkeypatch):
    monkeypatch.setenv("LUNA_EXT_LIBRARY", "/nonexistent/client.so")
    assert command("explain", LOCKED).returncode == 0


# ---- the texts ----


def test_each_code_with_a_name_is_explained():
    explained = [one.rv for one in all_explanations()]
    named = [rv for base in (0, 1 << 31) for rv in range(base, base + 0x2000)]
    assert explained == [rv for rv in named if rv_name(rv).startswith("CKR_")]
    assert [one.name for one in all_explanations()] == [rv_name(rv) for rv in explained]


@pytest.mark.parametrize("one", all_explanations(), ids=lambda one: one.name)
def test_each_text_is_there(one):
    assert one.meaning.endswith(".")
    assert one.meaning[0].isupper()
    assert one.advice
    assert not one.advice.endswith(".")
    assert "|" not in one.meaning + one.advice
    assert (one.exception is None) == (one.rv == 0)


@pytest.mark.parametrize("rv", [0xA4, 0x80000007, 0x8000001C], ids=rv_name)
def test_a_lock_out_names_the_role_that_resets_a_keyring(rv):
    assert "crypto officer of the cluster's partition" in explain(rv).advice
    assert "lunash keyring unlock" in explain(rv).advice


def test_a_lock_out_says_how_it_comes_about():
    for rv in (0xA0, 0xA4, 0x80000007):
        assert "up to 16 characters is locked after 10 wrong tries" in explain(rv).meaning
    for rv in (0xA0, 0x8000001C):
        assert "erase a partition" in explain(rv).meaning


@pytest.mark.parametrize("rv", [0x80000305, 0x80000306], ids=rv_name)
def test_a_slot_that_is_no_keyring(rv):
    assert "The slot is no keyring" in explain(rv).meaning


def test_a_pin_that_has_to_be_changed_names_the_call():
    assert "token.change_pin(old, new)" in explain(0xA3).advice


def test_the_page_of_the_documentation_is_up_to_date(tmp_path):
    """If not: make docs/errors.md."""
    new = tmp_path / "errors.md"
    subprocess.run([sys.executable, DOCS / "make_errors.py", new], check=True)
    assert (DOCS / "errors.md").read_text() == new.read_text()
