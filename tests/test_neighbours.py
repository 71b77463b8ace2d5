"""python-pkcs11 and PyKCS11 on the Library's client library: they work, and end no lock."""

import ctypes
import gc
import importlib.metadata
import os
import sys
import types

import pytest
from support import entry_of, nothing_is_locked

import luna_ext

pkcs11 = pytest.importorskip("pkcs11")
SO_PIN, USER_PIN = "12345678", "87654321"


@pytest.fixture
def mine(luna):
    with luna.claim("cluster-1") as token:
        return token.assign("mine", so_pin=SO_PIN, user_pin=USER_PIN)


def check_held(luna, cluster):
    token = luna.token("mine")
    token.ensure_held()
    locked = [one.slot_id for one in cluster.tokens() if one.owner == os.getpid()]
    assert locked == [token.slot.slot_id]


# ---- python-pkcs11 ----


def test_work_under_the_lock_with_python_pkcs11(luna, cluster, mine):
    with luna.token("mine") as token:
        for _ in range(2):
            with token.pkcs11().open(rw=True, user_pin=USER_PIN) as session:
                assert len(session.generate_random(64)) == 8
        check_held(luna, cluster)
    assert nothing_is_locked(cluster)


def test_python_pkcs11_sees_the_same_slots(luna):
    assert [slot.slot_id for slot in luna.pkcs11().get_slots()] == [
        slot.slot_id for slot in luna.slots()
    ]


ENDINGS = {
    "finalize": lambda luna, lib: lib.finalize(),
    "reinitialize": lambda luna, lib: lib.reinitialize(),
    "unload": lambda luna, lib: lib.unload(),
    "pkcs11.unload": lambda luna, lib: pkcs11.unload(luna.path),
    "an object of the application": lambda luna, lib: pkcs11.lib(luna.path).finalize(),
    "its unloading": lambda luna, lib: (pkcs11.lib(luna.path), pkcs11.unload(luna.path)),
    "collected": lambda luna, lib: gc.collect(),
}


@pytest.mark.parametrize("end", ENDINGS.values(), ids=ENDINGS)
def test_no_ending_of_python_pkcs11_ends_a_lock(luna, cluster, mine, end):
    with luna.token("mine"):
        lib = luna.pkcs11()
        lib.get_slots()
        end(luna, lib)
        del lib
        gc.collect()
        check_held(luna, cluster)
        assert len(luna.pkcs11().get_slots()) == 8


def test_a_token_whose_slot_is_gone_is_none_of_python_pkcs11(luna, monkeypatch):
    word = ctypes.c_ulong

    @ctypes.CFUNCTYPE(word, ctypes.c_ubyte, ctypes.c_void_p, ctypes.POINTER(word))
    def list_no_slots(token_present, slots, count):
        count[0] = 0
        return 0

    token = luna.token("keyring1")
    address = ctypes.cast(list_no_slots, ctypes.c_void_p).value
    monkeypatch.setattr(entry_of(luna, 4), "value", address)
    with pytest.raises(luna_ext.SlotIdInvalidError, match="look for the label again") as caught:
        token.pkcs11()
    assert caught.value.slot_id == 1


def test_python_pkcs11_works_in_a_forked_child(luna, cluster, mine, in_child):
    lib = luna.pkcs11()
    with luna.token("mine"):
        assert in_child(lambda: len(lib.get_slots()) == 8) == 0
        assert in_child(lambda: len(luna.pkcs11().get_slots()) == 8) == 0
        check_held(luna, cluster)


def test_python_pkcs11_works_on_after_a_reconnect(luna, mine):
    lib = luna.pkcs11()
    luna.reconnect()
    assert len(lib.get_slots()) == 8
    with luna.token("mine") as token, token.pkcs11().open(user_pin=USER_PIN):
        token.ensure_held()


def test_python_pkcs11_says_that_the_library_is_closed(luna):
    lib = luna.pkcs11()
    luna.close()
    for call in (lib.get_slots, lambda: next(lib.get_tokens()), luna.pkcs11):
        with pytest.raises(luna_ext.LibraryClosedError):
            call()


def test_python_pkcs11_of_a_closed_library_does_not_use_another_one(luna, cluster):
    closed = cluster.library()
    lib = closed.pkcs11()
    closed.close()
    for call in (lib.get_slots, closed.pkcs11):
        with pytest.raises(luna_ext.LibraryClosedError):
            call()
    assert len(luna.pkcs11().get_slots()) == 8


def test_a_slot_that_is_gone_has_no_token_of_python_pkcs11(luna, mine):
    token = luna.token("mine")
    luna.close()
    with pytest.raises(luna_ext.LibraryClosedError):
        token.pkcs11()


def test_it_keeps_the_library_alive(cluster):
    lib = cluster.library().pkcs11()
    gc.collect()
    assert len(lib.get_slots()) == 8
    with pytest.warns(ResourceWarning, match="unclosed Library"):
        del lib
        gc.collect()
    # The next one finalises.
    cluster.library().close()


@pytest.mark.parametrize(
    ("method", "distribution", "module"),
    [("pkcs11", "python-pkcs11", "pkcs11"), ("pykcs11", "PyKCS11", "PyKCS11")],
)
def test_a_neighbour_that_is_missing_or_too_old_is_named(
    luna, monkeypatch, method, distribution, module
):
    pytest.importorskip(module, reason=f"{distribution} is not installed")

    def version(name):
        assert name == distribution
        return "0.7.1"

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(
        ImportError, match=rf"{distribution} 0.7.1 is too old.*pip install '{distribution}>="
    ):
        getattr(luna, method)()

    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"{distribution} is not installed: pip install"):
        getattr(luna, method)()


def test_loaded_before_the_library_it_is_left_as_it_is(succeed):
    """Its C_Initialize came first, so C_Finalize is its own affair."""
    body = """
        import pkcs11
        from luna_ext.stub import library_path
        luna.close()
        lib = pkcs11.lib(library_path())
        luna = cluster.library()
        with luna.slot(1) as slot:
            assert len(lib.get_slots()) == len(luna.pkcs11().get_slots()) == 8
            slot.ensure_held()
        luna.close()
        assert len(lib.get_slots()) == 8
        lib.finalize()
    """
    assert succeed(body) == []


# ---- PyKCS11 ----


@pytest.fixture
def pykcs11():
    return pytest.importorskip("PyKCS11")


def test_work_under_the_lock_with_pykcs11(luna, cluster, mine, pykcs11):
    with luna.token("mine") as token:
        lib = luna.pykcs11()
        assert lib.getTokenInfo(token.slot.slot_id).label.strip() == "mine"
        session = lib.openSession(token.slot.slot_id)
        session.login(USER_PIN)
        assert len(session.generateRandom(8)) == 8
        session.logout()
        session.closeSession()
        check_held(luna, cluster)


def test_no_ending_of_pykcs11_ends_a_lock(luna, cluster, mine, pykcs11):
    with luna.token("mine"):
        lib = luna.pykcs11()
        own = pykcs11.PyKCS11Lib()
        own.load(luna.path)
        assert len(own.getSlotList()) == 8
        own.unload()
        lib.unload()
        del own, lib
        gc.collect()
        check_held(luna, cluster)
        assert len(luna.pykcs11().getSlotList()) == 8


def test_pykcs11_works_in_a_forked_child_and_after_a_reconnect(luna, cluster, pykcs11, in_child):
    lib = luna.pykcs11()
    assert in_child(lambda: len(lib.getSlotList()) == 8) == 0
    luna.reconnect()
    assert len(lib.getSlotList()) == 8


@pytest.mark.parametrize("broken", ["imported by half", "refuses"])
def test_a_library_opens_beside_a_pykcs11_that_does_not_work(cluster, monkeypatch, broken):
    """Another thread is just importing it, say."""
    module = types.ModuleType("PyKCS11")
    if broken == "refuses":
        module.PyKCS11Lib = type("PyKCS11Lib", (), {"_loaded_libs": {}, "load": lambda *_: 1 / 0})
    monkeypatch.setitem(sys.modules, "PyKCS11", module)
    monkeypatch.setattr("luna_ext.neighbours._keepers", {})
    with cluster.library() as luna:
        assert len(luna.slots()) == 8


def test_pykcs11_says_that_the_library_is_closed(luna, pykcs11):
    lib = luna.pykcs11()
    luna.close()
    with pytest.raises(luna_ext.LibraryClosedError):
        lib.getSlotList()


@pytest.mark.parametrize("when", ["before", "after"])
def test_objects_of_pykcs11_that_the_application_makes_end_no_lock(cluster, succeed, pykcs11, when):
    """Where PyKCS11 is imported before a Library opens."""
    making = "own = PyKCS11.PyKCS11Lib()\nown.load(library_path())\n"
    body = f"""
import gc
import PyKCS11
from luna_ext.stub import library_path
luna.close()
{making if when == "before" else ""}
luna = cluster.library()
{making if when == "after" else ""}
with luna.slot(1) as slot:
    assert len(own.getSlotList()) == 8
    own.unload()
    del own
    gc.collect()
    slot.ensure_held()
print("held")
luna.close()
"""
    assert succeed(body) == ["held"]
