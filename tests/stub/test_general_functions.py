"""The function list, C_Initialize, C_Finalize and the general functions."""

import ctypes
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pkcs11_client import (
    ALREADY_INITIALIZED,
    ARGUMENTS_BAD,
    CALLBACK,
    CANT_LOCK,
    CLUSTER_FUNCTIONS,
    DEVICE_ERROR,
    FUNCTION_NOT_SUPPORTED,
    NOT_INITIALIZED,
    OK,
    InitializeArguments,
)

from luna_ext.stub import STATE_VARIABLE, library_path

HEADER = (Path(__file__).parents[2] / "include" / "cryptoki_v2.h").read_text()
FUNCTIONS = re.findall(r"^ +X\((C_\w+),", HEADER, re.MULTILINE)
# The functions that have a meaning on a cluster in a file.
MEANINGFUL = """
    C_Initialize C_Finalize C_GetInfo C_GetFunctionList C_GetSlotList C_GetSlotInfo C_GetTokenInfo
    C_GetMechanismList C_GetMechanismInfo C_InitToken C_InitPIN C_SetPIN C_OpenSession
    C_CloseSession C_CloseAllSessions C_GetSessionInfo C_Login C_Logout C_FindObjectsInit
    C_FindObjects C_FindObjectsFinal C_SeedRandom C_GenerateRandom C_GetFunctionStatus
    C_CancelFunction C_WaitForSlotEvent
"""
WITHOUT_MEANING = [name for name in FUNCTIONS if name not in MEANINGFUL.split()]


# ---- the function list ----


def test_header_names_all_functions_of_the_standard():
    assert len(FUNCTIONS) == len(set(FUNCTIONS)) == 68


@pytest.mark.parametrize("name", [*FUNCTIONS, *CLUSTER_FUNCTIONS])
def test_function_is_exported(name):
    assert hasattr(ctypes.CDLL(library_path()), name)


def test_function_list_holds_the_exported_functions_in_order(uninitialised):
    address = ctypes.c_void_p()

    assert uninitialised.C_GetFunctionList(ctypes.byref(address)) == OK
    members = (ctypes.c_void_p * 69).from_address(address.value)
    version = (ctypes.c_ubyte * 2).from_address(address.value)
    exported = [
        ctypes.cast(getattr(uninitialised.library, name), ctypes.c_void_p).value
        for name in FUNCTIONS
    ]

    assert tuple(version) == (2, 40)
    assert members[1:] == exported


def test_function_list_needs_a_place(uninitialised):
    assert uninitialised.C_GetFunctionList(None) == ARGUMENTS_BAD


def test_most_functions_have_no_meaning_here():
    assert len(WITHOUT_MEANING) == 68 - 26


@pytest.mark.parametrize("name", WITHOUT_MEANING)
def test_function_without_a_meaning_is_not_supported(uninitialised, name):
    call = getattr(uninitialised, name)
    nothing = [0] * 8

    assert call(*nothing) == NOT_INITIALIZED
    assert uninitialised.C_Initialize(None) == OK
    assert call(*nothing) == FUNCTION_NOT_SUPPORTED


@pytest.mark.parametrize("name", sorted(set(MEANINGFUL.split()) - {"C_Initialize"}))
def test_function_with_a_meaning_needs_initialisation(uninitialised, name):
    if name == "C_GetFunctionList":
        assert uninitialised.C_GetFunctionList(ctypes.byref(ctypes.c_void_p())) == OK
    else:
        assert getattr(uninitialised, name)(*[0] * 8) == NOT_INITIALIZED


UNLOADING = """
import _ctypes, ctypes, sys

_ctypes.dlclose(ctypes.CDLL(sys.argv[1])._handle)
print(sys.argv[1] in open("/proc/self/maps").read())
"""


def test_module_stays_in_a_process_that_unloads_it():
    # Gone, it could not give back in a forked child what it has open.
    finished = subprocess.run(
        [sys.executable, "-c", UNLOADING, library_path()], capture_output=True, text=True
    )

    assert finished.stdout == "True\n"


# ---- C_Initialize and C_Finalize ----


def test_second_initialisation_is_refused(module):
    assert module.C_Initialize(None) == ALREADY_INITIALIZED


def test_second_finalisation_is_refused(module):
    assert module.C_Finalize(None) == OK
    assert module.C_Finalize(None) == NOT_INITIALIZED


def test_finalisation_takes_no_argument(module):
    assert module.C_Finalize(ctypes.byref(ctypes.c_ulong())) == ARGUMENTS_BAD
    assert module.C_Initialize(None) == ALREADY_INITIALIZED


@pytest.mark.parametrize(
    ("functions", "flags", "reserved", "rv"),
    [
        (0, 0x0, None, OK),
        (0, 0x2, None, OK),
        (0, 0x3, None, OK),
        (4, 0x2, None, OK),
        (4, 0x0, None, CANT_LOCK),
        (1, 0x2, None, ARGUMENTS_BAD),
        (3, 0x2, None, ARGUMENTS_BAD),
        (0, 0x2, 1, ARGUMENTS_BAD),
    ],
)
def test_initialisation_checks_its_arguments(uninitialised, functions, flags, reserved, rv):
    unused = CALLBACK(lambda mutex: OK)
    arguments = InitializeArguments(flags=flags, reserved=reserved)
    for index in range(functions):
        arguments.mutex_functions[index] = unused

    assert uninitialised.C_Initialize(ctypes.byref(arguments)) == rv
    assert uninitialised.C_GetInfo(None) == (ARGUMENTS_BAD if rv == OK else NOT_INITIALIZED)


@pytest.mark.parametrize("state", ["missing", "directory", "text"])
def test_initialisation_without_a_cluster_is_a_device_error(
    uninitialised, monkeypatch, tmp_path, state
):
    (tmp_path / "directory").mkdir()
    (tmp_path / "text").write_text("this is no cluster\n" * 1000)
    monkeypatch.setenv(STATE_VARIABLE, str(tmp_path / state))

    assert uninitialised.C_Initialize(None) == DEVICE_ERROR
