"""OpenSC's pkcs11-tool uses the stand-in."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from foreign_clients import (
    DEVICE_ERROR,
    MANUFACTURER,
    SECONDS,
    SO_PIN,
    USER_PIN,
    described_slots,
)

import luna_ext
from luna_ext.stub import library_path


@pytest.mark.parametrize("option", ["--list-slots", "--list-token-slots"])
def test_pkcs11_tool_lists_slots_and_tokens(pkcs11_tool, luna, payments, option):
    slots = described_slots(pkcs11_tool(option, "--verbose"))

    names = ("description", "token label", "token manufacturer", "token model", "serial num")
    assert {number: [slots[number][name] for name in names] for number in slots} == {
        slot.slot_id: [
            slot.info.description,
            slot.token_info.label,
            MANUFACTURER,
            slot.token_info.model,
            slot.token_info.serial_number,
        ]
        for slot in luna.slots()
    }
    assert {fields["pin min/max"] for fields in slots.values()} == {"8/255"}
    assert set(slots[payments.slot.slot_id]["token flags"].split(", ")) == {
        "login required",
        "rng",
        "token initialized",
        "PIN initialized",
    }


def test_pkcs11_tool_tells_which_tokens_are_initialised(pkcs11_tool, payments):
    slots = described_slots(pkcs11_tool("--list-slots"))
    described = slots.pop(payments.slot.slot_id)

    assert described["token label"] == "payments"
    assert described["serial num"] == payments.info.serial_number
    assert [fields["token state"] for fields in slots.values()] == ["uninitialized"] * 7


def test_pkcs11_tool_shows_what_the_module_is(pkcs11_tool):
    output = pkcs11_tool("--show-info", "--use-locking")

    assert "Cryptoki version 2.40" in output
    assert MANUFACTURER in output


def test_pkcs11_tool_lists_no_mechanisms_and_no_objects(pkcs11_tool, payments):
    slot = ("--slot", str(payments.slot.slot_id))

    assert pkcs11_tool("--list-mechanisms", *slot).splitlines() == ["Supported mechanisms:"]
    assert pkcs11_tool("--list-objects", *slot) == ""
    assert pkcs11_tool("--list-objects", *slot, "--login", "--pin", USER_PIN) == ""


@pytest.mark.usefixtures("dual_identity")
def test_pkcs11_tool_initialises_token_and_user_s_pin(pkcs11_tool, luna):
    pkcs11_tool("--init-token", "--slot", "3", "--label", "über alles", "--so-pin", SO_PIN)
    slot = luna.token("über alles").slot
    before = slot.token_info.flags
    pkcs11_tool("--init-pin", "--slot", "3", "--login", "--so-pin", SO_PIN, "--pin", USER_PIN)
    after = slot.token_info.flags

    assert slot.slot_id == 3
    assert luna_ext.TokenFlag.TOKEN_INITIALIZED in before
    assert after == before | luna_ext.TokenFlag.USER_PIN_INITIALIZED
    pkcs11_tool("--list-objects", "--token-label", "über alles", "--login", "--pin", USER_PIN)


def test_pkcs11_tool_initialises_no_token_with_a_wrong_pin(pkcs11_tool, cluster, luna, payments):
    slot = ("--slot", str(payments.slot.slot_id))
    # Its own session is on that token, and no token with a session can be initialised.
    luna.close()

    output = pkcs11_tool.refusal("--init-token", *slot, "--label", "new", "--so-pin", "wrong")
    assert "CKR_PIN_INCORRECT" in output
    output = pkcs11_tool.refusal("--init-token", "--slot", "8", "--label", "new", "--so-pin", "123")
    assert "CKR_PIN_INCORRECT" in output
    assert "new" not in [token.label for token in cluster.tokens()]


@pytest.mark.parametrize(
    ("kind", "pin"), [("user", ("--pin", USER_PIN)), ("so", ("--so-pin", SO_PIN))]
)
def test_pkcs11_tool_logs_in_with_the_right_pin_only(pkcs11_tool, payments, kind, pin):
    option, right = pin
    login = ("--token-label", "payments", "--session-rw", "--login", "--login-type", kind)

    assert pkcs11_tool("--list-objects", *login, option, right) == ""
    assert "CKR_PIN_INCORRECT" in pkcs11_tool.refusal("--list-objects", *login, option, "wrong")


def test_pkcs11_tool_cannot_log_in_to_a_token_without_pins(pkcs11_tool):
    output = pkcs11_tool.refusal("--list-objects", "--slot", "8", "--login", "--pin", USER_PIN)

    assert "CKR_USER_PIN_NOT_INITIALIZED" in output


@pytest.mark.parametrize("login", [(), ("--login",)])
def test_pkcs11_tool_changes_the_pin(pkcs11_tool, payments, login):
    token = ("--token-label", "payments")
    change = ("--change-pin", *token, *login, "--pin", USER_PIN, "--new-pin", "changed-1")

    pkcs11_tool(*change)

    assert "CKR_PIN_INCORRECT" in pkcs11_tool.refusal(*change)
    assert pkcs11_tool("--list-objects", *token, "--login", "--pin", "changed-1") == ""


def test_pkcs11_tool_gets_random_numbers(pkcs11_tool, payments, tmp_path):
    drawn = set()
    for name in ("first", "second"):
        file = str(tmp_path / name)
        pkcs11_tool("--generate-random", "16", "--slot", "1", "--output-file", file)
        drawn.add((tmp_path / name).read_bytes())

    assert [len(each) for each in drawn] == [16, 16]


def test_pkcs11_tool_s_own_tests_find_no_errors(pkcs11_tool, payments):
    login = ("--token-label", "payments", "--login", "--pin", USER_PIN)

    assert "No errors" in pkcs11_tool("--test", *login)
    assert "C_Initialize in forked child" in pkcs11_tool("--test-fork", "--list-slots")


def test_pkcs11_tool_names_the_code_of_what_the_stand_in_cannot_do(pkcs11_tool, cluster):
    assert "CKR_FUNCTION_NOT_SUPPORTED" in pkcs11_tool.refusal("--hash", "--mechanism", "SHA256")
    assert "CKR_SLOT_ID_INVALID" in pkcs11_tool.refusal("--list-objects", "--slot", "99")
    cluster.fault("C_OpenSession", DEVICE_ERROR, times=1)
    assert "CKR_DEVICE_ERROR" in pkcs11_tool.refusal("--list-objects", "--slot", "1")


def test_pkcs11_tool_uses_a_token_that_another_process_has_locked(pkcs11_tool, payments):
    login = ("--token-label", "payments", "--login", "--pin", USER_PIN)

    with payments:
        assert pkcs11_tool("--list-objects", *login) == ""
        payments.ensure_held()


THROUGH_A_WRAPPER = """
import sys
import luna_ext

with luna_ext.Library(sys.argv[1]) as luna:
    print(luna.is_stub)
    print(luna.info.manufacturer)
    print(luna.slot(1).token_info.manufacturer)
"""


OPEN_THE_WRAPPER_TWICE = """
import sys, warnings
import luna_ext

warnings.simplefilter("error")
for _ in range(2):
    try:
        with luna_ext.Library(sys.argv[1]) as luna:
            print(luna.is_stub)
    except RuntimeWarning:
        print("warned")
"""


@pytest.fixture
def run_on_spy(cluster, tmp_path):
    """Run a program that is given the path of a pkcs11-spy, which wraps the stand-in."""
    spies = [
        *Path("/usr/lib").glob("**/pkcs11-spy.so"),
        *Path("/usr/lib64").glob("**/pkcs11-spy.so"),
    ]
    if not spies:
        pytest.skip("there is no pkcs11-spy (Debian: opensc-pkcs11)")

    def run(program, forbidden="0"):
        return subprocess.run(
            [sys.executable, "-c", program, str(spies[0])],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            env={
                **os.environ,
                "PKCS11SPY": library_path(),
                "PKCS11SPY_OUTPUT": str(tmp_path / "spy"),
                "LUNA_EXT_FORBID_STUB": forbidden,
            },
        )

    return run


def test_a_wrapper_that_could_not_be_asked_what_it_wraps_is_asked_again(cluster, run_on_spy):
    cluster.fault("C_GetInfo", DEVICE_ERROR, times=1)
    done = run_on_spy(OPEN_THE_WRAPPER_TWICE)
    assert done.stdout.splitlines() == ["False", "warned"], done


@pytest.mark.parametrize("forbidden", ["0", "1"])
def test_pkcs11_spy_does_not_hide_the_stand_in(run_on_spy, forbidden):
    done = run_on_spy(THROUGH_A_WRAPPER, forbidden)
    if forbidden == "1":
        assert done.returncode == 1
        assert "CKR_DEVICE_ERROR" in done.stderr.splitlines()[-1]
    else:
        assert done.stdout.splitlines() == ["True", MANUFACTURER, MANUFACTURER]
        assert "RuntimeWarning" in done.stderr
        assert "is the stand-in, not an HSM's client library" in done.stderr
