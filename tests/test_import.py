"""`import luna_ext`: what it imports, and what it leaves until it is asked for."""

import inspect
import pydoc
import subprocess
import sys

import pytest

import luna_ext

NEW_MODULES = """
import threading, logging, sys

before = set(sys.modules)
import luna_ext

print(*sorted(set(sys.modules) - before))
"""
FIRST_USE = """
import luna_ext
from luna_ext.stub import Cluster

with Cluster(keyrings=1) as cluster, cluster.library() as luna:
    print(luna.slot(1).token_info.label, luna.stats()["C_Initialize"].calls)
print(luna_ext.TokenFlag.RNG.name, luna_ext.provision.__name__)
"""
# What is slow to import, or is for other programs than those that lock.
LEFT_ALONE = {
    "asyncio",
    "click",
    "configparser",
    "ctypes",
    "dataclasses",
    "json",
    "tempfile",
    "typing",
    "luna_ext.commands",
    "luna_ext.holders",
    "luna_ext.info",
    "luna_ext.provisioning",
    "luna_ext.stub",
}


def run(program: str) -> list[str]:
    finished = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=45
    )
    assert (finished.returncode, finished.stderr) == (0, "")
    return finished.stdout.split()


def test_import_brings_the_layers_and_nothing_that_a_lock_does_without():
    imported = set(run(NEW_MODULES))

    assert {"luna_ext._device", "luna_ext._mutex", "luna_ext._cluster"} <= imported
    assert imported & LEFT_ALONE == set()


def test_what_is_left_until_its_first_use_is_there_then():
    assert run(FIRST_USE) == ["keyring1", "1", "RNG", "provision"]


def test_every_public_name_is_listed_and_can_be_had():
    assert set(luna_ext.__all__) <= set(dir(luna_ext))
    for name in luna_ext.__all__:
        value = getattr(luna_ext, name)
        # PIN_PAD is no class and no function.
        assert getattr(value, "__name__", getattr(value, "name", None)) == name


def test_provision_is_the_function_whatever_was_imported_before():
    program = "import luna_ext.provisioning, luna_ext; print(luna_ext.provision.__module__)"

    assert run(program) == ["luna_ext.provisioning"]


def test_unknown_name_is_an_attribute_error_that_names_it():
    with pytest.raises(AttributeError, match=r"^module 'luna_ext' has no attribute 'Librarian'$"):
        luna_ext.Librarian  # noqa: B018
    assert not hasattr(luna_ext, "__wrapped__")


def test_help_shows_how_a_library_is_opened():
    signature = "(path=None, *, contention='block', handover=0.0)"
    assert str(inspect.signature(luna_ext.Library)) == signature
    shown = pydoc.render_doc(luna_ext.Library, renderer=pydoc.plaintext)
    assert f"Library{signature}" in shown


@pytest.mark.parametrize("public", [luna_ext.Library, luna_ext.ClusterSlot, luna_ext.Token])
def test_no_signature_shows_what_is_private(public):
    for name, method in inspect.getmembers(public, callable):
        if name.startswith("_") or isinstance(method, type):
            continue
        assert not [each for each in inspect.signature(method).parameters if each[0] == "_"]
