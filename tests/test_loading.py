"""What is loaded, what is refused and why; opening and closing; clients that lack functions."""

import ctypes
import ctypes.util
import gc
import importlib.util
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import STAND_IN_IS_MEANT

import luna_ext
from luna_ext.info import CLUSTER_FUNCTIONS
from luna_ext.stub import Cluster, library_path

# The stand-in is what most of these tests load by its path.
pytestmark = STAND_IN_IS_MEANT

HERE = Path(__file__).parent
SOFTHSM = Path("/usr/lib/softhsm/libsofthsm2.so")


@pytest.fixture(scope="session")
def plain_library(tmp_path_factory):
    """A shared library that loads but is no PKCS #11 module."""
    directory = tmp_path_factory.mktemp("plain")
    (directory / "plain.c").write_text("int answer(void) { return 42; }\n")
    library = directory / "plain.so"
    command = ["cc", "-shared", "-fPIC", str(directory / "plain.c"), "-o", str(library)]
    subprocess.run(command, check=True)
    return library


def refusal(path):
    """What Library(path) says when it refuses to load."""
    with pytest.raises(luna_ext.LibraryLoadError) as caught:
        luna_ext.Library(path)
    return str(caught.value)


def locked_slots(cluster):
    return [token.slot_id for token in cluster.tokens() if token.owner is not None]


# ---- what is no client library ----


def test_missing_file_is_named(tmp_path):
    assert refusal(tmp_path / "gone.so") == f"the path '{tmp_path / 'gone.so'}' does not exist"


def test_dangling_link_is_named(tmp_path):
    (tmp_path / "link.so").symlink_to(tmp_path / "gone.so")

    assert refusal(tmp_path / "link.so") == f"the path '{tmp_path / 'link.so'}' does not exist"


def test_directory_is_named(tmp_path):
    assert refusal(tmp_path) == f"the path '{tmp_path}' is not a file"


@pytest.mark.parametrize("content", [b"", b"not a library\n", b"\x7fELF", b"\x7fELF" + bytes(4096)])
def test_file_that_is_no_library_is_named_with_the_reason(tmp_path, content):
    file = tmp_path / "client.so"
    file.write_bytes(content)

    message = refusal(file)

    assert message.startswith(f"'{file}' cannot be loaded as a library of this platform: ")
    assert len(message.partition("platform: ")[2]) > 5


def test_library_with_undefined_symbols_is_named_with_the_missing_one(tmp_path):
    source = tmp_path / "broken.c"
    source.write_text("int nowhere_defined(void); int f(void) { return nowhere_defined(); }\n")
    library = tmp_path / "broken.so"
    subprocess.run(["cc", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)

    assert re.search(r"broken\.so.*nowhere_defined", refusal(library))


def test_library_that_is_no_pkcs_11_module_is_named_with_what_it_lacks(plain_library):
    message = refusal(plain_library)

    assert str(plain_library) in message
    assert "no PKCS #11 module" in message
    assert "C_GetFunctionList" in message


def test_refused_library_is_refused_again(plain_library):
    assert refusal(plain_library) == refusal(plain_library)


def test_module_whose_function_list_fails_is_named_with_the_code(old_client):
    library = old_client(function_list_rv=0x5)

    with pytest.raises(luna_ext.LibraryLoadError) as caught:
        luna_ext.Library(library)

    error = caught.value
    assert (error.rv, error.rv_name) == (0x5, "CKR_GENERAL_ERROR")
    assert error.function == "C_GetFunctionList"
    assert str(library) in str(error)
    assert "CKR_GENERAL_ERROR" in str(error)


def test_module_that_gives_no_function_list_is_refused(old_client):
    library = old_client(function_list_rv=0x0)

    message = refusal(library)

    assert str(library) in message
    assert "gives no function list" in message


@pytest.mark.parametrize("name", ["libCryptoki2_64.so", "libm.so.6", "client", ""])
def test_path_without_a_slash_is_refused_and_told_how(name):
    message = refusal(name)

    assert repr(name) in message
    assert "has no slash" in message
    assert "./" in message


def test_path_without_a_slash_is_refused_although_the_file_is_there(tmp_path, monkeypatch):
    (tmp_path / "client.so").symlink_to(library_path())
    monkeypatch.chdir(tmp_path)

    assert "'./client.so'" in refusal("client.so")


@pytest.mark.parametrize("path", ["\0", "/usr/lib/\0client.so", "/usr/lib/client.so\0"])
def test_path_with_nul_is_refused(path):
    message = refusal(path)

    assert repr(path) in message
    assert "NUL" in message


@pytest.mark.parametrize("path", [b"/usr/lib/client.so", bytearray(b"/x"), 7, ["/x"], object()])
def test_path_of_another_type_is_a_type_error(path):
    with pytest.raises(TypeError, match=r"str"):
        luna_ext.Library(path)


def test_load_error_is_an_os_error_without_a_code(tmp_path):
    with pytest.raises(OSError, match=r"gone\.so") as caught:
        luna_ext.Library(tmp_path / "gone.so")

    assert (caught.value.rv, caught.value.slot_id, caught.value.errno) == (None, None, None)


# ---- what is one ----


def test_relative_path_with_a_slash_is_made_absolute(cluster, tmp_path, monkeypatch):
    (tmp_path / "client.so").symlink_to(library_path())
    monkeypatch.chdir(tmp_path)

    with luna_ext.Library("./client.so") as luna:
        monkeypatch.chdir("/")

        assert luna.path == str(tmp_path / "client.so")
        assert len(luna.slots()) == 8


def test_path_object_is_as_good_as_a_str(cluster):
    with luna_ext.Library(Path(library_path())) as luna:
        assert luna.path == library_path()


def test_path_that_is_no_ascii_is_loaded(cluster, tmp_path):
    link = tmp_path / "ключ 鍵.so"
    link.symlink_to(library_path())

    with luna_ext.Library(link) as luna:
        assert luna.path == str(link)
        assert len(luna.slots()) == 8


def test_link_has_the_same_locks_as_its_target(cluster, luna, tmp_path):
    link = tmp_path / "client.so"
    link.symlink_to(library_path())

    with luna_ext.Library(link) as other, luna.slot(3):
        assert other.slot(3).locked()
        with pytest.raises(luna_ext.LockReentryError):
            other.slot(3).acquire()
        assert not other.slot(4).locked()


def test_what_is_loaded_gives_its_functions_to_no_other_library(succeed):
    """Two clients, and an OpenSSL inside one, have functions of the same names."""
    succeed("""
        import ctypes
        everything = ctypes.CDLL(None)
        assert hasattr(everything, "printf")
        assert not hasattr(everything, "C_GetFunctionList")
    """)


# ---- what a Library says about itself ----


def test_library_says_what_it_is(luna):
    info = luna.info

    assert luna.path == library_path()
    assert luna.is_stub
    assert not luna.closed
    assert luna.cluster_functions == frozenset(CLUSTER_FUNCTIONS)
    assert isinstance(info, luna_ext.LibraryInfo)
    assert info.cryptoki_version == (2, 40)
    assert info.manufacturer == "luna_ext stand-in, not an HSM"
    assert info.description == "Cluster of keyrings in a file"
    assert str(info.version) == "1.00"


def test_repr_says_path_and_state(luna):
    assert repr(luna) == f"<luna_ext.Library '{library_path()}', open>"
    luna.close()
    assert repr(luna) == f"<luna_ext.Library '{library_path()}', closed>"


def test_library_is_not_pickled(luna):
    with pytest.raises(TypeError, match="belongs to its process"):
        pickle.dumps(luna)


@pytest.mark.parametrize("contention", ["block", "poll"])
def test_contention_is_one_of_two(cluster, contention):
    with luna_ext.Library(library_path(), contention=contention) as luna, luna.slot(1):
        assert locked_slots(cluster) == [1]


@pytest.mark.parametrize("contention", ["", "wait", "BLOCK", b"block", None, 1])
def test_contention_is_nothing_else(cluster, contention):
    with pytest.raises(ValueError, match=f'"block" or "poll", not {re.escape(repr(contention))}'):
        luna_ext.Library(library_path(), contention=contention)


def test_contention_is_named(cluster):
    with pytest.raises(TypeError):
        luna_ext.Library(library_path(), "poll")


@pytest.mark.parametrize("handover", [0, 0.0, 1, 0.05, 1e300])
def test_handover_is_a_number_of_seconds(cluster, handover):
    with luna_ext.Library(library_path(), handover=handover) as luna, luna.slot(1):
        assert locked_slots(cluster) == [1]


@pytest.mark.parametrize(
    "handover", [-1, -0.001, float("nan"), float("inf"), -float("inf"), 10**400]
)
def test_handover_is_no_other_number(cluster, handover):
    with pytest.raises(ValueError, match=f"0 or more, not {re.escape(repr(handover))}"):
        luna_ext.Library(library_path(), handover=handover)


@pytest.mark.parametrize("handover", [True, "0.05", None, 1j])
def test_handover_is_nothing_else(cluster, handover):
    with pytest.raises(TypeError, match=f"number of seconds, not {type(handover).__name__}"):
        luna_ext.Library(library_path(), handover=handover)


# ---- closing ----


def test_close_closes(luna):
    luna.close()

    assert luna.closed


def test_second_close_does_nothing(luna):
    luna.close()
    before = luna.stats()
    luna.close()

    assert luna.closed
    assert luna.stats() == before


def test_end_of_the_block_closes_also_when_the_body_raises(cluster):
    with pytest.raises(KeyError, match="the body's"), cluster.library() as luna:
        raise KeyError("the body's")

    assert luna.closed


def test_close_finalises(luna):
    before = luna.stats().get("C_Finalize", luna_ext.FunctionStats())
    luna.close()

    after = luna.stats()["C_Finalize"]
    assert (after.calls, after.errors) == (before.calls + 1, before.errors)


def test_failing_finalisation_is_logged_and_the_library_is_closed(luna, cluster, caplog):
    cluster.fault("C_Finalize", 0x30, times=1)
    luna.close()

    assert luna.closed
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "CKR_DEVICE_ERROR" in caplog.text
    # Still initialised, for the fault had no effect: the next one finds it so and leaves it so.
    assert ctypes.CDLL(library_path()).C_Finalize(None) == 0


def test_unclosed_library_is_warned_of_and_closed(cluster):
    luna = cluster.library()
    before = luna.stats().get("C_Finalize", luna_ext.FunctionStats()).calls

    def forget():
        nonlocal luna
        del luna
        gc.collect()

    with pytest.warns(ResourceWarning, match=r"unclosed Library for "):
        forget()

    with cluster.library() as luna:
        assert luna.stats()["C_Finalize"].calls == before + 1


CALLS_OF_A_LIBRARY = {
    "info": lambda luna: luna.info,
    "slot": lambda luna: luna.slot(1),
    "slots": lambda luna: luna.slots(),
    "slots without token": lambda luna: luna.slots(token_present=False),
    "find": lambda luna: luna.find("keyring1"),
    "token": lambda luna: luna.token("keyring1"),
    "tokens": lambda luna: luna.tokens(),
    "claim": lambda luna: luna.claim("cluster-1"),
    "lock_all": lambda luna: luna.lock_all([]),
    "reconnect": lambda luna: luna.reconnect(),
    "pkcs11": lambda luna: luna.pkcs11(),
    "pykcs11": lambda luna: luna.pykcs11(),
    "with": lambda luna: luna.__enter__(),
}
CALLS_OF_A_SLOT = {
    "info": lambda slot: slot.info,
    "token_info": lambda slot: slot.token_info,
    "acquire": lambda slot: slot.acquire(),
    "acquire without blocking": lambda slot: slot.acquire(blocking=False),
    "acquire with a timeout": lambda slot: slot.acquire(timeout=1),
    "with": lambda slot: slot.__enter__(),
    "lock": lambda slot: slot.lock().__enter__(),
    "lock with a timeout": lambda slot: slot.lock(timeout=1).__enter__(),
}
CALLS_OF_A_TOKEN = {
    "info": lambda token: token.info,
    "with": lambda token: token.__enter__(),
    "lock": lambda token: token.lock().__enter__(),
    "lock with a timeout": lambda token: token.lock(timeout=1).__enter__(),
}


WITHOUT_NEIGHBOURS = {
    name: pytest.mark.skipif(
        importlib.util.find_spec(module) is None, reason=f"{module} is not installed"
    )
    for name, module in (("pkcs11", "pkcs11"), ("pykcs11", "PyKCS11"))
}


def by_name(calls):
    return [
        pytest.param(call, id=name, marks=WITHOUT_NEIGHBOURS.get(name, ()))
        for name, call in calls.items()
    ]


def test_every_public_name_of_a_library_is_tried_after_close_or_works_then():
    works = {"path", "closed", "is_stub", "cluster_functions", "close", "stats", "lock_stats"}
    tried = {name.partition(" ")[0] for name in CALLS_OF_A_LIBRARY} - {"with"}

    assert {name for name in dir(luna_ext.Library) if not name.startswith("_")} == works | tried


@pytest.mark.parametrize("call", by_name(CALLS_OF_A_LIBRARY))
def test_call_of_a_closed_library_is_refused(luna, call):
    luna.close()
    before = luna.stats()

    with pytest.raises(luna_ext.LibraryClosedError, match=re.escape(library_path())):
        call(luna)

    assert luna.stats() == before


@pytest.mark.parametrize("another", ["open", "closed"])
@pytest.mark.parametrize("call", by_name(CALLS_OF_A_SLOT))
def test_call_of_a_closed_library_s_slot_is_refused(luna, cluster, call, another):
    slot = luna.slot(1)
    with cluster.library() as other:
        luna.close()
        if another == "closed":
            other.close()
        before = other.stats()

        with pytest.raises(luna_ext.LibraryClosedError, match=r"is closed; .*slot 1\b") as caught:
            call(slot)

        assert caught.value.slot_id == 1
        assert other.stats() == before
        assert locked_slots(cluster) == []


@pytest.mark.parametrize("another", ["open", "closed"])
@pytest.mark.parametrize("call", by_name(CALLS_OF_A_TOKEN))
def test_call_of_a_closed_library_s_token_is_refused(luna, cluster, call, another):
    token = luna.token("keyring1")
    with cluster.library() as other:
        luna.close()
        if another == "closed":
            other.close()
        before = other.stats()

        with pytest.raises(luna_ext.LibraryClosedError, match=r"is closed; .*slot 1\b") as caught:
            call(token)

        assert caught.value.slot_id == 1
        assert other.stats() == before
        assert locked_slots(cluster) == []


@pytest.mark.parametrize("another", ["open", "closed"])
def test_claim_of_a_closed_library_is_refused_and_leaves_nothing_locked(luna, cluster, another):
    claim = luna.claim("cluster-1")
    with cluster.library() as other:
        luna.close()
        if another == "closed":
            other.close()

        with pytest.raises(luna_ext.LibraryClosedError, match="closed"), claim:
            pytest.fail("nothing was claimed")

        assert locked_slots(cluster) == []


def test_slot_of_a_library_under_another_path_names_that_path(luna, cluster, tmp_path):
    link = tmp_path / "client.so"
    link.symlink_to(library_path())
    with luna_ext.Library(link) as other:
        slot = other.slot(1)
        assert repr(slot) == f"<luna_ext.ClusterSlot 1 of '{link}', unlocked>"

    with pytest.raises(luna_ext.LibraryClosedError, match=re.escape(f"'{link}' is closed")):
        slot.acquire()


def test_what_needs_no_device_works_after_close(luna):
    slot = luna.slot(3)
    token = luna.token("keyring1")
    calls = luna.stats()["CA_GetSlotId"].calls
    luna.close()

    assert luna.path == library_path()
    assert luna.is_stub
    assert luna.cluster_functions == frozenset(CLUSTER_FUNCTIONS)
    assert luna.stats()["CA_GetSlotId"].calls == calls
    assert (slot.slot_id, slot.library, slot.locked()) == (3, luna, False)
    assert (token.label, token.slot.slot_id) == ("keyring1", 1)


def test_nothing_is_held_after_close(luna):
    slot = luna.slot(3)
    luna.close()

    with pytest.raises(luna_ext.LockNotOwnedError):
        slot.release()
    with pytest.raises(luna_ext.LockNotOwnedError):
        slot.ensure_held()


# ---- several users of one client library ----


def test_closing_one_library_leaves_the_other_working(luna, cluster):
    other = cluster.library()
    other.close()

    with luna.slot(3):
        assert locked_slots(cluster) == [3]
    assert len(luna.tokens()) == 8


def test_library_opens_again_after_the_last_one_closed(cluster):
    for _ in range(3):
        with cluster.library() as luna:
            assert len(luna.slots()) == 8


def test_library_finds_the_next_cluster_after_the_last_one_closed(cluster):
    with cluster.library() as luna:
        assert len(luna.slots()) == 8
    with Cluster(keyrings=2) as another, another.library() as luna:
        assert len(luna.slots()) == 2


def test_library_that_other_code_has_initialised_works_and_stays_initialised(cluster):
    theirs = ctypes.CDLL(library_path())
    assert theirs.C_Initialize(None) == 0
    try:
        luna = luna_ext.Library(library_path())
        with luna.slot(3):
            assert locked_slots(cluster) == [3]
        before = luna.stats().get("C_Finalize")
        luna.close()

        assert luna.stats().get("C_Finalize") == before
        assert luna.stats()["C_Initialize"].errors["CKR_CRYPTOKI_ALREADY_INITIALIZED"] >= 1
        assert theirs.CA_LockClusteredSlot(ctypes.c_ulong(4)) == 0
        assert locked_slots(cluster) == [4]
    finally:
        assert theirs.C_Finalize(None) == 0
    assert locked_slots(cluster) == []


def test_library_that_other_code_finalises_says_so(luna):
    assert ctypes.CDLL(library_path()).C_Finalize(None) == 0

    with pytest.raises(luna_ext.NotInitializedError, match="finalised"):
        luna.slots()


def test_failing_initialisation_is_an_error_and_a_later_library_works(cluster):
    cluster.fault("C_Initialize", 0x5, times=1)

    with pytest.raises(luna_ext.CryptokiError) as caught:
        luna_ext.Library(library_path())

    error = caught.value
    assert (error.rv, error.rv_name, error.function) == (0x5, "CKR_GENERAL_ERROR", "C_Initialize")
    with luna_ext.Library(library_path()) as luna:
        assert len(luna.slots()) == 8


def test_failing_initialisation_does_not_close_what_is_open(luna, cluster):
    cluster.fault("C_Initialize", 0x5)

    with cluster.library() as other:
        assert len(other.slots()) == 8
    assert len(luna.slots()) == 8


def test_stand_in_without_a_cluster_does_not_initialise():
    with pytest.raises(luna_ext.DeviceError) as caught:
        luna_ext.Library(library_path())

    assert caught.value.function == "C_Initialize"


# ---- clients that lack cluster functions ----

USES = {
    "CA_GetSlotId": {
        "find": lambda luna: luna.find("keyring3"),
        "token": lambda luna: luna.token("keyring3"),
    },
    "CA_GetUnassignedSlot": {"claim": lambda luna: luna.claim("cluster-1").__enter__()},
    "CA_LockClusteredSlot": {
        "acquire": lambda luna: luna.slot(3).acquire(),
        "acquire without blocking": lambda luna: luna.slot(3).acquire(blocking=False),
        "acquire with a timeout": lambda luna: luna.slot(3).acquire(timeout=1),
        "with a slot": lambda luna: luna.slot(3).__enter__(),
        "lock": lambda luna: luna.slot(3).lock(timeout=1).__enter__(),
        "with a token": lambda luna: luna.tokens()[2].__enter__(),
    },
}
# What cannot be undone is not begun.
USES["CA_UnlockClusteredSlot"] = {**USES["CA_LockClusteredSlot"], **USES["CA_GetUnassignedSlot"]}
MISSING = [
    pytest.param(function, use, id=f"{function}-{name}")
    for function, uses in USES.items()
    for name, use in uses.items()
]


@pytest.mark.parametrize(("missing", "use"), MISSING)
def test_missing_function_is_named_when_it_is_needed(old_client, cluster, missing, use):
    library = old_client(*(name for name in CLUSTER_FUNCTIONS if name != missing))

    with luna_ext.Library(library) as luna:
        with pytest.raises(luna_ext.UnsupportedFunctionError) as caught:
            use(luna)

        error = caught.value
        assert (error.function, error.rv) == (missing, None)
        assert str(library) in str(error)
        assert missing in str(error)
        assert "10.6" in str(error)
        assert locked_slots(cluster) == []


@pytest.mark.parametrize("missing", CLUSTER_FUNCTIONS)
def test_cluster_functions_tell_which_are_there(old_client, cluster, missing):
    there = frozenset(CLUSTER_FUNCTIONS) - {missing}

    with luna_ext.Library(old_client(*sorted(there))) as luna:
        assert luna.cluster_functions == there


def test_client_without_any_cluster_function_does_everything_else(old_client, cluster):
    with luna_ext.Library(old_client()) as luna:
        assert luna.cluster_functions == frozenset()
        assert not luna.is_stub
        assert [slot.slot_id for slot in luna.slots()] == list(range(1, 9))
        assert [token.label for token in luna.tokens()][2] == "keyring3"
        assert luna.slot(3).token_info.label == "keyring3"


@pytest.mark.parametrize(
    "use",
    [pytest.param(use, id=name) for uses in USES.values() for name, use in uses.items()],
)
def test_client_without_any_cluster_function_locks_nothing(old_client, cluster, use):
    with luna_ext.Library(old_client()) as luna:
        with pytest.raises(luna_ext.UnsupportedFunctionError, match=r"CA_\w+.*10\.6"):
            use(luna)

        assert locked_slots(cluster) == []


def test_client_with_all_cluster_functions_works(old_client, cluster):
    with luna_ext.Library(old_client(*CLUSTER_FUNCTIONS)) as luna:
        with luna.token("keyring3"):
            assert locked_slots(cluster) == [3]
        with luna.claim("cluster-1") as token:
            assert locked_slots(cluster) == [token.slot.slot_id]
        assert locked_slots(cluster) == []


def test_searching_needs_no_lock_functions(old_client, cluster):
    with luna_ext.Library(old_client("CA_GetSlotId")) as luna:
        assert luna.token("keyring3").slot.slot_id == 3


def test_find_starts_again_when_the_number_of_matches_grew_in_between(old_client, cluster):
    with luna_ext.Library(old_client(growing_from=17)) as luna:
        assert [token.slot.slot_id for token in luna.find("same")] == list(range(1, 21))
        assert luna.stats()["CA_GetSlotId"].calls == 5
    with (
        luna_ext.Library(old_client(growing_from=2**61)) as luna,
        pytest.raises(luna_ext.BufferTooSmallError) as caught,
    ):
        luna.find("same")
    assert f"CKR_BUFFER_TOO_SMALL, and the client reports {2**61} slots" in str(caught.value)


# ---- clients whose function list is not complete ----

OF_ASSIGNING = [
    "C_InitToken",
    "C_InitPIN",
    "C_OpenSession",
    "C_CloseSession",
    "C_Login",
    "C_Logout",
]


@pytest.mark.parametrize(
    "missing", ["C_Initialize", "C_Finalize", "C_GetSlotList", "C_GetTokenInfo"]
)
def test_a_client_without_what_every_lock_needs_is_refused(old_client, cluster, missing):
    library = old_client(*CLUSTER_FUNCTIONS, without=missing)
    for _ in range(2):
        with pytest.raises(luna_ext.LibraryLoadError) as caught:
            luna_ext.Library(library)
        assert caught.value.function == missing
        assert str(library) in str(caught.value)
        assert f"without {missing};" in str(caught.value)
    assert cluster.log() == []


@pytest.mark.parametrize(
    ("missing", "use"),
    [
        ("C_GetInfo", lambda luna: luna.info),
        ("C_GetSlotInfo", lambda luna: luna.slot(3).info),
    ],
    ids=["C_GetInfo", "C_GetSlotInfo"],
)
def test_a_function_that_the_list_lacks_is_named_when_it_is_needed(
    old_client, cluster, missing, use
):
    with luna_ext.Library(old_client(*CLUSTER_FUNCTIONS, without=missing)) as luna:
        with pytest.raises(luna_ext.UnsupportedFunctionError, match=missing) as caught:
            use(luna)
        assert caught.value.function == missing
        with luna.token("keyring3"):
            assert locked_slots(cluster) == [3]


def test_a_client_is_asked_once_in_a_process_whether_it_is_the_stand_in(old_client, cluster):
    library = old_client(*CLUSTER_FUNCTIONS)
    calls = []
    for _ in range(2):
        with luna_ext.Library(library) as luna:
            calls.append(luna.stats().get("C_GetInfo"))
    assert calls[0] == calls[1]


@pytest.mark.parametrize("user_pin", [None, "user-pin-1"])
@pytest.mark.parametrize("missing", OF_ASSIGNING)
def test_a_client_that_cannot_assign_refuses_before_anything_is_erased(
    old_client, cluster, missing, user_pin
):
    with luna_ext.Library(old_client(*CLUSTER_FUNCTIONS, without=missing)) as luna:
        with luna.claim("cluster-1") as token:
            with pytest.raises(luna_ext.UnsupportedFunctionError) as caught:
                token.assign("new", so_pin="so-pin-1", user_pin=user_pin)
            token.ensure_held()
        assert caught.value.function == missing
        assert f"no {missing} in its function list" in str(caught.value)
        assert "Nothing was done" in str(caught.value)
    assert "C_InitToken" not in {call.function for call in cluster.log()}
    assert {token.label for token in cluster.tokens()} == {f"keyring{n}" for n in range(1, 9)}


@pytest.mark.parametrize("missing", ["C_SetPIN", "C_OpenSession", "C_CloseSession", "C_Logout"])
def test_a_pin_is_not_begun_to_be_changed_by_a_client_that_cannot_end_it(
    old_client, cluster, missing
):
    with luna_ext.Library(old_client(*CLUSTER_FUNCTIONS, without=missing)) as luna:
        with luna.token("keyring3") as token:
            with pytest.raises(luna_ext.UnsupportedFunctionError) as caught:
                token.change_pin("so-pin-1", "so-pin-2", role="so")
            token.ensure_held()
        assert caught.value.function == missing
        assert "Nothing was done" in str(caught.value)
    assert "C_Login" not in {call.function for call in cluster.log()}


@pytest.mark.parametrize("missing", [*OF_ASSIGNING, "C_GetSessionInfo"])
def test_a_client_that_cannot_assign_locks(old_client, cluster, missing):
    with luna_ext.Library(old_client(*CLUSTER_FUNCTIONS, without=missing)) as luna:
        with luna.slot(3) as slot:
            slot.ensure_held()
            assert locked_slots(cluster) == [3]
        luna.reconnect()
        with luna.slot(3).lock(timeout=5):
            assert locked_slots(cluster) == [3]
    assert locked_slots(cluster) == []


OF_A_LOGIN = ["C_OpenSession", "C_CloseSession", "C_Login", "C_Logout"]


@pytest.mark.parametrize(
    ("identity", "missing"),
    [("single", function) for function in OF_A_LOGIN]
    + [("dual", function) for function in [*OF_A_LOGIN, "C_InitPIN"]],
)
def test_a_user_pin_is_not_begun_to_be_set_by_a_client_that_cannot_end_it(
    old_client, cluster, identity, missing
):
    cluster.switch("identity", identity)
    with cluster.library() as luna:
        report = luna_ext.provision(luna, "cluster-1", ["new"], so_pin="so-pin-1")
        assert report.failed == {}
    before = len(cluster.log())
    with luna_ext.Library(old_client(*CLUSTER_FUNCTIONS, without=missing)) as luna:
        pins = {"so_pin": "so-pin-1", "user_pin": "user-pin-1"}
        report = luna_ext.provision(luna, "cluster-1", ["new"], **pins)
        assert type(report.failed["new"]) is luna_ext.UnsupportedFunctionError
        assert report.failed["new"].function == missing
    assert "C_Login" not in {call.function for call in cluster.log()[before:]}


# ---- an ordinary PKCS #11 module ----

ORDINARY_MODULE = """
import sys
import luna_ext

with luna_ext.Library(sys.argv[1]) as luna:
    slots = luna.slots()
    print("slots", len(slots))
    print("functions", sorted(luna.cluster_functions))
    print("stand-in", luna.is_stub)
    print("description", bool(slots[0].info.description), bool(slots[0].token_info.model))
    print("tokens", len(luna.tokens()))
    for call in (
        lambda: luna.find("x"),
        lambda: luna.token("x"),
        lambda: luna.claim("cluster-1").__enter__(),
        lambda: slots[0].acquire(),
        lambda: slots[0].lock(timeout=1).__enter__(),
    ):
        try:
            call()
        except luna_ext.UnsupportedFunctionError as error:
            print("unsupported", error.function)
print("closed", luna.closed)
"""


@pytest.mark.skipif(not SOFTHSM.exists(), reason=f"SoftHSM2 is not installed: no {SOFTHSM}")
def test_ordinary_module_loads_and_lists_its_slots(tmp_path, monkeypatch):
    (tmp_path / "tokens").mkdir()
    configuration = tmp_path / "softhsm2.conf"
    configuration.write_text(f"directories.tokendir = {tmp_path / 'tokens'}\n")
    monkeypatch.setenv("SOFTHSM2_CONF", str(configuration))

    # In a process of its own, for its library stays loaded and runs code at the exit.
    finished = subprocess.run(
        [sys.executable, "-c", ORDINARY_MODULE, str(SOFTHSM)], capture_output=True, text=True
    )

    assert finished.stderr == ""
    assert finished.returncode == 0
    assert finished.stdout.splitlines() == [
        "slots 1",
        "functions []",
        "stand-in False",
        "description True True",
        "tokens 1",
        "unsupported CA_GetSlotId",
        "unsupported CA_GetSlotId",
        "unsupported CA_GetUnassignedSlot",
        "unsupported CA_LockClusteredSlot",
        "unsupported CA_LockClusteredSlot",
        "closed True",
    ]


def test_two_copies_of_one_client_library_are_warned_of(succeed):
    """The device may take both for one application; each would unlock what the other one holds."""
    body = """
        import logging, shutil, tempfile, warnings
        from luna_ext.stub import library_path
        warnings.simplefilter("ignore")
        told = []
        handler = logging.Handler()
        handler.emit = lambda record: told.append((record.levelname, record.getMessage()))
        logging.getLogger("luna_ext").addHandler(handler)
        with tempfile.TemporaryDirectory() as directory:
            copy = shutil.copy(library_path(), directory)
            luna_ext.Library(copy).close()
            luna_ext.Library(copy).close()
        # That one is gone, and remains loaded. Another one is looked at all the same.
        with tempfile.TemporaryDirectory() as directory:
            luna_ext.Library(shutil.copy(library_path(), directory)).close()
        [(level, said), (_, said_again)] = [one for one in told if "is a copy" in one[1]]
        assert f"is a copy of {library_path()!r}" in said_again
        assert level == "WARNING"
        assert f"{copy!r} is a copy of {library_path()!r}" in said
        print(said.rpartition(". ")[2])
    """
    assert succeed(body) == ["Use", "one", "of", "them"]


def test_long_calls_are_watched_while_another_client_library_is_being_loaded(succeed):
    """The watcher looks once a second, and a handler of the warning of copies takes longer."""
    body = """
        import logging, shutil, tempfile, warnings
        from luna_ext.stub import library_path
        warnings.simplefilter("ignore")
        handler = logging.Handler()
        handler.emit = lambda record: "is a copy" in record.getMessage() and time.sleep(2.5)
        logging.getLogger("luna_ext").addHandler(handler)

        def lock():
            with slot:
                pass

        cluster.latency(3, "CA_LockClusteredSlot")
        locking = in_thread(lock)
        wait_until_inside("CA_LockClusteredSlot")
        with tempfile.TemporaryDirectory() as directory:
            luna_ext.Library(shutil.copy(library_path(), directory)).close()
        locking.join(20)
        assert not locking.is_alive()
        luna.close()
    """
    assert succeed(body) == []
