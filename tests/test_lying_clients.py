"""What a client library says about the number of slots is not trusted."""

import ctypes
import subprocess
from pathlib import Path

import pytest
from support import logged

import luna_ext
from luna_ext.stub import STATE_VARIABLE, library_path

HERE = Path(__file__).parent
SLOTS = [2, 3, 4, 5, 6, 7]
"""All that the lying client has."""
MANY_SLOTS = list(range(2, 42))
"""All that it has when it has many."""
MOST_SLOTS = list(range(2, 3502))
"""All that it has when it has as many as a cluster can have."""
MOST_CALLS = 100
"""A caller that asks more often than this is about to ask for ever."""
FUNCTIONS = {
    "C_GetSlotList": lambda luna: [slot.slot_id for slot in luna.slots()],
    "CA_GetSlotId": lambda luna: [token.slot.slot_id for token in luna.find("same")],
}

pytestmark = pytest.mark.parametrize("function", FUNCTIONS)


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    library = tmp_path_factory.mktemp("lying_client") / "client.so"
    command = ["cc", "-shared", "-fPIC", "-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra"]
    command += ["-Wpedantic", "-Wconversion", "-Werror", f'-DSTAND_IN="{library_path()}"']
    command += [f"-I{HERE.parent / 'include'}", str(HERE / "c" / "lying_client.c")]
    subprocess.run([*command, "-o", str(library), "-ldl"], check=True)
    return library


@pytest.fixture
def ask(client, cluster, monkeypatch, function, call):
    """Ask for the slots while the function gives that wrong answer; the slots that luna_ext returns."""
    monkeypatch.setenv(STATE_VARIABLE, cluster.path)
    liar = ctypes.CDLL(str(client))
    with luna_ext.Library(client) as luna:

        def ask(lie):
            liar.lie_about(function.encode(), lie.encode())
            try:
                return call(lambda: FUNCTIONS[function](luna)).result()
            finally:
                assert 1 <= liar.calls_of_the_liar() <= MOST_CALLS

        yield ask
        liar.lie_about(b"", b"")


def test_client_that_tells_the_truth_is_believed(ask):
    assert ask("none") == SLOTS


@pytest.mark.parametrize(
    "change",
    [
        "too many to begin with",
        "too few to begin with",
        "too few to begin with, and never how many",
        "none to begin with",
    ],
)
def test_slots_may_come_and_go_between_the_count_and_the_list(ask, change):
    assert ask(change) == SLOTS


def test_slot_that_is_listed_twice_is_one_slot(ask):
    assert ask("each twice") == SLOTS


@pytest.mark.parametrize(
    "lie", ["many, and how many to a question alone", "many, and never how many"]
)
def test_a_list_that_needs_more_room_is_read_though_the_client_does_not_say_how_much(ask, lie):
    assert ask(lie) == MANY_SLOTS


def test_a_list_of_all_slots_of_a_cluster_is_read_though_only_a_question_says_how_many(ask):
    assert ask("most, and how many to a question alone") == MOST_SLOTS


@pytest.mark.parametrize("lie", ["one more each time", "twice as many each time"])
def test_a_list_that_grows_for_ever_is_said_to_grow(ask, function, lie):
    with pytest.raises(luna_ext.BufferTooSmallError) as caught:
        ask(lie)

    assert str(caught.value).startswith(f"{function}: the list of slots kept growing: 8 times ")
    assert "TOO_SMALL" not in str(caught.value)


@pytest.mark.parametrize("lie", ["huge", "largest"])
def test_a_number_of_slots_that_cannot_be_is_named(ask, lie):
    with pytest.raises(luna_ext.CryptokiError, match=r"the client reports \d{19,20} slots"):
        ask(lie)


@pytest.mark.parametrize(
    "lie",
    [
        "too small, but enough",
        "too small for none",
        "too small for an unknown number",
        "one more each time",
        "twice as many each time",
        "huge",
        "largest",
    ],
)
def test_list_that_is_never_large_enough_is_an_error_that_names_the_function(ask, function, lie):
    with pytest.raises(luna_ext.LunaError) as caught:
        ask(lie)

    assert caught.value.function == function
    assert function in str(caught.value)


@pytest.mark.parametrize(
    "lie",
    [
        "more than was asked for",
        "huge, and all is well",
        "nothing written, and all is well",
    ],
)
def test_list_that_was_not_written_is_an_error_that_names_the_function(ask, function, lie):
    with pytest.raises(luna_ext.LunaError) as caught:
        ask(lie)

    assert caught.value.function == function
    assert function in str(caught.value)


def test_no_slot_is_asked_about_that_was_not_written(ask, client, cluster, function):
    with pytest.raises(luna_ext.LunaError):
        ask("nothing written, and all is well")
    # After such an answer, a new Library asks some of the slots whether the device still knows it.
    cluster.fault("C_GetTokenInfo", 0x30, times=1)
    with luna_ext.Library(client) as luna, pytest.raises(luna_ext.DeviceError):
        luna.slot(SLOTS[0]).token_info  # noqa: B018
    luna_ext.Library(client).close()
    asked = [call.slot_id for call in logged(cluster, "C_GetTokenInfo")]
    assert set(asked) <= set(SLOTS)


def test_library_works_on_after_a_lie(ask):
    with pytest.raises(luna_ext.LunaError):
        ask("huge")

    assert ask("none") == SLOTS
