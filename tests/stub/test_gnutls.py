"""GnuTLS's p11tool uses the stand-in."""

import pytest
from foreign_clients import MANUFACTURER, SO_PIN, USER_PIN, labels_and_serials, tokens_of_urls

import luna_ext


def test_p11tool_lists_all_tokens_initialised_or_not(p11tool, luna, payments):
    output = p11tool("--list-tokens")
    fields = [line.strip().partition(": ")[::2] for line in output.splitlines()]

    assert tokens_of_urls(output) == labels_and_serials(luna)
    assert [value for name, value in fields if name == "Label"] == [t.label for t in luna.tokens()]
    assert {value for name, value in fields if name == "Manufacturer"} == {MANUFACTURER}
    uninitialised = [value for name, value in fields if name == "Flags" if "Uninit" in value]
    assert len(uninitialised) == 7
    assert tokens_of_urls(p11tool("--list-token-urls")) == labels_and_serials(luna)


def test_p11tool_lists_no_mechanisms_and_no_objects(p11tool, payments):
    token = "pkcs11:token=payments"
    login = ("--login", "--set-pin", USER_PIN)

    assert p11tool("--list-mechanisms", token) == ""
    assert "No matching objects" in p11tool.refusal("--list-all", token)
    assert "No matching objects" in p11tool.refusal("--list-all", *login, token)


@pytest.mark.usefixtures("dual_identity")
def test_p11tool_initialises_token_and_user_s_pin(p11tool, luna):
    so_pin, pin = ("--set-so-pin", SO_PIN), ("--set-pin", USER_PIN)

    p11tool("--initialize", "--label", "made elsewhere", *so_pin, "pkcs11:token=keyring5")
    slot = luna.token("made elsewhere").slot
    assert slot.slot_id == 5
    assert luna_ext.TokenFlag.USER_PIN_INITIALIZED not in slot.token_info.flags
    p11tool("--initialize-pin", *so_pin, *pin, "pkcs11:token=made%20elsewhere")
    assert luna_ext.TokenFlag.USER_PIN_INITIALIZED in slot.token_info.flags


@pytest.mark.parametrize(
    ("login", "option", "right", "wrong_try"),
    [
        ("--login", "--set-pin", USER_PIN, luna_ext.TokenFlag.USER_PIN_COUNT_LOW),
        ("--so-login", "--set-so-pin", SO_PIN, luna_ext.TokenFlag.SO_PIN_COUNT_LOW),
    ],
)
def test_p11tool_logs_in_with_the_right_pin_only(
    p11tool, payments, login, option, right, wrong_try
):
    def list_all(pin):
        return p11tool.refusal("--list-all", login, option, pin, "pkcs11:token=payments")

    assert "No matching objects" in list_all(right)
    assert wrong_try not in payments.slot.token_info.flags
    assert "No matching objects" not in list_all("the wrong one")
    assert wrong_try in payments.slot.token_info.flags


def test_p11tool_gets_random_numbers(p11tool, payments, tmp_path):
    for name in ("first", "second"):
        output = ("--outfile", str(tmp_path / name))
        p11tool("--generate-random", "16", *output, "pkcs11:token=payments")
    first, second = ((tmp_path / name).read_bytes() for name in ("first", "second"))

    assert (len(first), len(second)) == (16, 16)
    assert first != second
