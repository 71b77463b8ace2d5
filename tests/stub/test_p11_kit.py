"""p11-kit loads the stand-in for other clients."""

import os
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from foreign_clients import (
    MANUFACTURER,
    SECONDS,
    SO_PIN,
    USER_PIN,
    Program,
    described_slots,
    installed,
    labels_and_serials,
    tokens_of_urls,
)

import luna_ext
from luna_ext.stub import library_path

CLIENT_MODULE, PROXY_MODULE = "pkcs11/p11-kit-client.so", "p11-kit-proxy.so"


def p11_kit_module(name):
    for directory in ("lib64", "lib", "lib/*"):
        for module in Path("/usr").glob(f"{directory}/{name}"):
            return str(module)
    return pytest.skip(f"{name} is not installed (Debian: p11-kit-modules)")


def as_a_user(path):
    """How to run a program that heeds its user's configuration of p11-kit."""
    if os.getuid() != 0:
        return []
    # p11-kit does not read root's configuration. So the program runs as the user nobody, with root's
    # access to all files.
    command = [installed("setpriv", "util-linux"), "--reuid=65534", "--regid=65534"]
    command += ["--clear-groups", "--inh-caps=+dac_override", "--ambient-caps=+dac_override"]
    tried = subprocess.run([*command, "head", "-c1", path], capture_output=True, timeout=SECONDS)
    if tried.returncode != 0:
        pytest.skip("p11-kit ignores root's own configuration, and setpriv cannot change the user")
    return command


@pytest.fixture
def with_p11_kit(cluster, tmp_path):
    """Makes a Program for which the stand-in is the only module that p11-kit knows."""

    def program(*command, module):
        modules = tmp_path / "pkcs11" / "modules"
        modules.mkdir(parents=True, exist_ok=True)
        (modules.parent / "pkcs11.conf").write_text("user-config: only\n")
        (modules / "stand-in.module").write_text(module)
        environment = {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
        return Program(*as_a_user(cluster.path), *command, **environment)

    return program


@pytest.fixture
def configurations():
    """The module in p11-kit's own process, and in another one at the end of a pipe."""
    return {
        "here": f"module: {library_path()}\n",
        "remote": f"remote: |p11-kit remote {library_path()}\nmodule: p11-kit-client.so\n",
    }


@pytest.mark.parametrize("where", ["here", "remote"])
def test_p11_kit_lists_the_module_and_its_tokens(with_p11_kit, configurations, luna, where):
    p11_kit = installed("p11-kit", "p11-kit")
    if where == "remote":
        p11_kit_module(CLIENT_MODULE)
    output = with_p11_kit(p11_kit, module=configurations[where])("list-modules")
    fields = [line.strip().partition(": ")[::2] for line in output.splitlines()]

    def values(name):
        return [value for key, value in fields if key == name]

    assert "stand-in" in output.splitlines()[0]
    assert values("library-manufacturer") == [MANUFACTURER]
    tokens = zip(values("token"), values("serial-number"), strict=True)
    assert list(tokens) == labels_and_serials(luna)


def test_p11tool_finds_the_tokens_by_p11_kit_s_configuration(with_p11_kit, configurations, luna):
    p11tool = installed("p11tool", "gnutls-bin")
    output = with_p11_kit(p11tool, module=configurations["here"])("--list-token-urls")

    assert tokens_of_urls(output) == labels_and_serials(luna)


@pytest.fixture
def p11_kit_server(cluster):
    """The address of a server that offers the stand-in's tokens to other processes."""
    p11_kit = installed("p11-kit", "p11-kit")
    # Not in tmp_path: the name of a socket has room for 107 bytes only.
    with tempfile.TemporaryDirectory(prefix="luna_stub-") as directory:
        name = f"{directory}/socket"
        command = [p11_kit, "server", "--foreground", "--timeout", "60", "--name", name]
        server = subprocess.Popen(
            [*command, "--provider", library_path(), "pkcs11:"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            wait_for_server(server, name)
            yield f"unix:path={name}"
        finally:
            server.terminate()
            try:
                # To the end of the file, which comes when the processes of all connections ended.
                complaints = server.communicate(timeout=SECONDS)[1]
            finally:
                server.kill()
        assert complaints == ""


def wait_for_server(server, name):
    deadline = time.monotonic() + SECONDS
    with socket.socket(socket.AF_UNIX) as attempt:
        while attempt.connect_ex(name) != 0:
            assert server.poll() is None, "the server has ended"
            assert time.monotonic() < deadline, "the server does not listen"
            time.sleep(0.01)


@pytest.fixture(params=["proxy", "server"])
def pkcs11_tool_by_p11_kit(request, with_p11_kit, configurations):
    """pkcs11-tool, with a module of p11-kit's that has the stand-in behind it."""
    pkcs11_tool = installed("pkcs11-tool", "opensc")
    if request.param == "proxy":
        command = (pkcs11_tool, "--module", p11_kit_module(PROXY_MODULE))
        return with_p11_kit(*command, module=configurations["here"])
    command = (pkcs11_tool, "--module", p11_kit_module(CLIENT_MODULE))
    address = request.getfixturevalue("p11_kit_server")
    return Program(*command, P11_KIT_SERVER_ADDRESS=address)


def test_client_uses_the_tokens_that_p11_kit_offers(pkcs11_tool_by_p11_kit, luna, payments):
    pkcs11_tool = pkcs11_tool_by_p11_kit
    login = ("--list-objects", "--token-label", "payments", "--login", "--pin")
    # The slot IDs are p11-kit's own.
    slots = list(described_slots(pkcs11_tool("--list-slots")).values())

    assert [each["description"] for each in slots] == [s.info.description for s in luna.slots()]
    assert slots[payments.slot.slot_id - 1]["serial num"] == payments.info.serial_number
    assert pkcs11_tool(*login, USER_PIN) == ""
    assert "CKR_PIN_INCORRECT" in pkcs11_tool.refusal(*login, "wrong")


def test_client_initialises_a_token_that_p11_kit_offers(pkcs11_tool_by_p11_kit, luna):
    pkcs11_tool = pkcs11_tool_by_p11_kit
    so_pin, pin = ("--so-pin", SO_PIN), ("--pin", USER_PIN)

    pkcs11_tool("--init-token", "--slot-index", "4", "--label", "made elsewhere", *so_pin)
    slot = luna.token("made elsewhere").slot
    assert slot.slot_id == 5
    pkcs11_tool("--init-pin", "--token-label", "made elsewhere", "--login", *so_pin, *pin)
    assert luna_ext.TokenFlag.USER_PIN_INITIALIZED in slot.token_info.flags
