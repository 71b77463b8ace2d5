"""python-pkcs11 and PyKCS11 on the client library of a `Library`, in the same process.

A lock is taken to work with the token's keys, by one of these libraries. Each of them would like to call
C_Initialize and C_Finalize itself, and C_Finalize drops all locks of the process. The objects made here do
not: the client library stays initialised and loaded for as long as its `Library` is open. They keep that
`Library` alive, initialise anew in a forked child, work on after `Library.reconnect()`, and raise
`LibraryClosedError` after `Library.close()`.

Use `Library.pkcs11()`, `Token.pkcs11()` and `Library.pykcs11()`.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import importlib.util
import os
import sys
import weakref
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from ._cluster import Library

__all__ = ["keep_pykcs11", "pkcs11_of", "pkcs11_token", "pykcs11_of"]

# The oldest versions that the tests run with.
OLDEST = {"python-pkcs11": (0, 10), "PyKCS11": (1, 5, 18)}

# The slots of python-pkcs11 by their ID: it asks the client for each slot to make them.
_slots: weakref.WeakKeyDictionary[Library, dict[int, Any]] = weakref.WeakKeyDictionary()
# PyKCS11 finalises a library when the last object on it goes. These never go.
_keepers: dict[str, Any] = {}


def installed(distribution: str) -> tuple[str | None, str]:
    """Its version, if it is installed; and what is wrong with that, which is mostly nothing."""
    try:
        found = importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None, ""
    oldest = OLDEST[distribution]
    digits = (part for part in found.split(".")[: len(oldest)])
    if tuple(int(part) if part.isdecimal() else 0 for part in digits) < oldest:
        return found, f"{distribution} {found} is too old, {_oldest(distribution)} is needed"
    return found, ""


def how_to_install(distribution: str) -> str:
    """The command that installs it, new enough."""
    # Not by the extra: an index need not have luna_ext.
    return f"pip install '{distribution}>={_oldest(distribution)}'"


def _oldest(distribution: str) -> str:
    return ".".join(map(str, OLDEST[distribution]))


def _neighbour(module: str, distribution: str) -> ModuleType:
    """The module, if it is installed and new enough."""
    install = how_to_install(distribution)
    if importlib.util.find_spec(module) is None:
        raise ImportError(f"{distribution} is not installed: {install}", name=module)
    # A frozen program has the module alone, and no version.
    _, wrong = installed(distribution)
    if wrong:
        raise ImportError(f"{wrong}: {install}", name=module)
    return importlib.import_module(module)


def pkcs11_of(library: Library, make_ready: Callable[[], None]) -> Any:
    """A ``pkcs11.lib`` on the Library's client library; see `Library.pkcs11()`.

    `make_ready` is called before each use: it initialises the library anew in a forked child, and raises
    if the Library is closed.
    """
    pkcs11 = _neighbour("pkcs11", "python-pkcs11")
    kind = _pkcs11_class()
    make_ready()
    lib = kind(library.path)
    # A bound method of the Library, so it keeps that alive.
    lib.make_ready = make_ready
    # So pkcs11.lib(path) gives the application an object that leaves the client library alone as well.
    if library.path not in pkcs11._loaded:
        pkcs11._loaded[library.path] = kind(library.path)
    return lib


@functools.cache
def _pkcs11_class() -> type:
    """The class is made when python-pkcs11 is there to inherit from."""
    from pkcs11._pkcs11 import lib

    class Pkcs11OfLibrary(lib):
        """A ``pkcs11.lib`` whose client library luna_ext initialises and finalises."""

        make_ready: Callable[[], None] | None = None
        """None: of the object that ``pkcs11.lib(path)`` gives, which keeps no Library alive."""

        def initialize(self) -> None:
            """The Library has done it."""

        def finalize(self) -> None:
            """The Library does it when it is closed: it would drop the locks."""

        def reinitialize(self) -> None:
            """`Library.reconnect()` does it."""

        def unload(self) -> None:
            """The client library is never unloaded."""

        def get_slots(self, token_present: bool = False) -> list[Any]:
            if self.make_ready is not None:
                self.make_ready()
            slots: list[Any] = super().get_slots(token_present)
            return slots

        def wait_for_slot_event(self, blocking: bool = True) -> Any:
            if self.make_ready is not None:
                self.make_ready()
            return super().wait_for_slot_event(blocking)

    return Pkcs11OfLibrary


def pkcs11_token(library: Library, slot_id: int, make_ready: Callable[[], None]) -> Any:
    """The ``pkcs11.Token`` of a slot; see `Token.pkcs11()`."""
    slots = _slots.setdefault(library, {})
    if slot_id not in slots:
        slots.update((slot.slot_id, slot) for slot in pkcs11_of(library, make_ready).get_slots())
    make_ready()
    return slots[slot_id].get_token()


def keep_pykcs11(path: str) -> None:
    """Let no object of PyKCS11 on this client library be the last one, which would finalise it.

    Called when a Library opens and PyKCS11 is imported.
    """
    kind = getattr(sys.modules["PyKCS11"], "PyKCS11Lib", None)
    if kind is None:
        # Another thread is just importing it, and has no object on the library yet.
        return
    loaded = getattr(kind, "_loaded_libs", {})
    same = [name for name in loaded if os.path.realpath(name) == os.path.realpath(path)]
    for name in {path, *same} - _keepers.keys():
        # A neighbour that does not work keeps no Library from opening.
        with contextlib.suppress(Exception):
            _keepers[name] = kind().load(name)


def pykcs11_of(library: Library, make_ready: Callable[[], None]) -> Any:
    """A ``PyKCS11.PyKCS11Lib`` on the Library's client library; see `Library.pykcs11()`."""
    pykcs11 = _neighbour("PyKCS11", "PyKCS11")

    class PyKCS11OfLibrary(pykcs11.PyKCS11Lib):  # type: ignore[misc, name-defined]
        """A ``PyKCS11Lib`` whose client library luna_ext initialises and finalises."""

        @property
        def lib(self) -> Any:
            # Each of its methods comes through here.
            make_ready()
            return self._lib

        @lib.setter
        def lib(self, lib: Any) -> None:
            self._lib = lib

    make_ready()
    keep_pykcs11(library.path)
    return PyKCS11OfLibrary().load(library.path)
