"""The stand-in on a fresh cluster: as a C library, and as the module of other makers' clients."""

import subprocess
from pathlib import Path

import pytest
from foreign_clients import SO_PIN, USER_PIN, Program, installed
from pkcs11_client import OK, Module

from luna_ext.stub import STATE_VARIABLE, library_path

ROOT = Path(__file__).parents[2]


@pytest.fixture
def uninitialised(cluster, monkeypatch):
    monkeypatch.setenv(STATE_VARIABLE, cluster.path)
    module = Module()
    yield module
    # The library is one for the whole process: the next test has to find it closed.
    cluster.fault("C_Finalize", OK, times=0)
    module.C_Finalize(None)


@pytest.fixture
def module(uninitialised):
    assert uninitialised.C_Initialize(None) == OK
    return uninitialised


@pytest.fixture
def token(module, dual_identity):
    """The slot of a token that has SO PIN so-pin-1 and user PIN user-pin."""
    assert module.init_token(1) == OK
    session = module.open_session(1)
    assert module.login(session) == OK
    assert module.init_pin(session) == OK
    assert module.C_CloseSession(session) == OK
    return 1


@pytest.fixture(scope="session")
def stand_in_program(tmp_path_factory):
    """Builds a C program of tests/c together with the stand-in, instead of loading it."""

    def build(name, sources, *flags):
        program = tmp_path_factory.mktemp(name) / name
        files = [*(ROOT / "tests" / "c").glob(sources), *(ROOT / "stub_lib").glob("*.c")]
        command = ["cc", "-std=c11", "-O2", "-pthread", "-D_GNU_SOURCE", *flags]
        command += ["-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror"]
        command += [f"-I{ROOT / 'include'}", f"-I{ROOT / 'stub_lib'}", "-o", str(program)]
        command += [str(file) for file in files if "_windows" not in file.stem]
        command += ["-ldl"]
        subprocess.run(command, check=True)
        return program

    return build


# ---- clients of other makers ----


@pytest.fixture
def payments(luna, dual_identity):
    """The token "payments", assigned with both PINs; the other seven keyrings are as new."""
    with luna.claim("cluster-1") as token:
        return token.assign("payments", so_pin=SO_PIN, user_pin=USER_PIN)


@pytest.fixture
def pkcs11_tool(cluster):
    return Program(installed("pkcs11-tool", "opensc"), "--module", library_path())


@pytest.fixture
def p11tool(cluster):
    return Program(installed("p11tool", "gnutls-bin"), "--batch", "--provider", library_path())
