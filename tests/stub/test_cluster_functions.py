"""The four cluster functions: every code is reached."""

import ctypes
import os

import pytest
from pkcs11_client import (
    ARGUMENTS_BAD,
    BUFFER_TOO_SMALL,
    CLUSTER_FUNCTIONS,
    DEVICE_ERROR,
    FUNCTION_FAILED,
    NO_SLOT,
    NOT_INITIALIZED,
    OK,
    SLOT_ID_INVALID,
    UNTOUCHED,
    Unassigned,
    call_plainly,
    called_elsewhere,
    locked_elsewhere,
    owners,
    wait_for_call,
)

LOCK_TWICE = "[module.CA_LockClusteredSlot(ctypes.c_ulong(3)) for _ in range(2)].count(0) - 2"


def claimed(module):
    """The slots of all claims until there is none left."""
    slots = []
    while (answer := module.get_unassigned_slot())[0] == OK:
        slots.append(answer[1])
        assert len(slots) <= 100, slots
    assert answer[0] == FUNCTION_FAILED
    return slots


# ---- every code of the four cluster functions ----


@pytest.mark.parametrize(
    ("function", "rv"), [(name, rv) for name, codes in CLUSTER_FUNCTIONS.items() for rv in codes]
)
def test_fault_answers_the_code_and_has_no_effect(module, cluster, function, rv):
    cluster.fault(function, rv, times=2)

    assert [call_plainly(module, function) for _ in range(3)] == [rv, rv, OK]


@pytest.mark.parametrize("function", ["CA_LockClusteredSlot", "CA_GetUnassignedSlot"])
def test_fault_locks_nothing(module, cluster, function):
    cluster.fault(function, OK)

    assert call_plainly(module, function) == OK
    assert owners(cluster) == {}


@pytest.mark.parametrize("function", CLUSTER_FUNCTIONS)
def test_lost_connection_is_a_device_error_until_initialised_anew(module, cluster, function):
    cluster.disconnect(os.getpid())

    assert call_plainly(module, function) == DEVICE_ERROR
    assert call_plainly(module, function) == DEVICE_ERROR
    assert module.C_Finalize(None) == OK
    assert module.C_Initialize(None) == OK
    assert call_plainly(module, function) == OK


@pytest.mark.parametrize(
    ("function", "rv"),
    [
        ("CA_GetSlotId", NOT_INITIALIZED),
        ("CA_GetUnassignedSlot", NOT_INITIALIZED),
        # These two have no such code.
        ("CA_LockClusteredSlot", DEVICE_ERROR),
        ("CA_UnlockClusteredSlot", DEVICE_ERROR),
    ],
)
def test_call_before_initialisation_and_after_finalisation(uninitialised, function, rv):
    assert call_plainly(uninitialised, function) == rv
    assert uninitialised.C_Initialize(None) == OK
    assert call_plainly(uninitialised, function) == OK
    assert uninitialised.C_Finalize(None) == OK
    assert call_plainly(uninitialised, function) == rv


# ---- CA_GetSlotId ----


def test_slot_of_a_label_is_found(module):
    assert module.get_slot_id("keyring3", 1) == (OK, 1, [3, UNTOUCHED])


def test_no_slot_of_a_label_is_no_error(module):
    assert module.get_slot_id("nowhere", 1) == (OK, 0, [UNTOUCHED, UNTOUCHED])


def test_slots_of_a_label_are_counted_without_a_list(module):
    for slot_id in (2, 5):
        assert module.init_token(slot_id, "same") == OK
    count = ctypes.c_ulong(0)

    assert module.CA_GetSlotId(b"same".ljust(32), None, ctypes.byref(count)) == OK
    assert count.value == 2


@pytest.mark.parametrize("room", [0, 1, 2])
def test_too_small_list_of_slots_tells_the_count(module, room):
    for slot_id in (2, 5, 7):
        assert module.init_token(slot_id, "same") == OK

    rv, count, places = module.get_slot_id("same", room)

    assert (rv, count) == (BUFFER_TOO_SMALL, 3)
    assert places[room] == UNTOUCHED


@pytest.mark.parametrize("room", [3, 4])
def test_large_enough_list_of_slots_is_filled(module, room):
    for slot_id in (2, 5, 7):
        assert module.init_token(slot_id, "same") == OK

    rv, count, places = module.get_slot_id("same", room)

    assert (rv, count) == (OK, 3)
    assert sorted(places[:3]) == [2, 5, 7]
    assert places[3] == UNTOUCHED


def test_slot_of_a_label_needs_label_and_count(module):
    count = ctypes.c_ulong(1)
    slot = ctypes.c_ulong(UNTOUCHED)

    assert module.CA_GetSlotId(None, ctypes.byref(slot), ctypes.byref(count)) == ARGUMENTS_BAD
    assert module.CA_GetSlotId(b"keyring1".ljust(32), ctypes.byref(slot), None) == ARGUMENTS_BAD
    assert module.CA_GetSlotId(b"keyring1".ljust(32), None, None) == ARGUMENTS_BAD
    assert (slot.value, count.value) == (UNTOUCHED, 1)


def test_label_matches_in_all_of_its_32_bytes(module):
    assert module.init_token(1, "a" * 32) == OK

    assert module.get_slot_id("a" * 31, 1)[:2] == (OK, 0)
    assert module.get_slot_id("a" * 31 + "b", 1)[:2] == (OK, 0)
    assert module.get_slot_id("a" * 32, 1)[:2] == (OK, 1)


# ---- CA_GetUnassignedSlot ----


def test_unassigned_slot_comes_locked_with_its_label(module, cluster):
    rv, slot_id, label = module.get_unassigned_slot()

    assert rv == OK
    assert label == f"keyring{slot_id}".encode().ljust(32)
    assert owners(cluster) == {slot_id: os.getpid()}


def test_unassigned_slots_run_out_when_all_are_locked(module, cluster):
    cluster.switch("regrant", "off")
    slots = {module.get_unassigned_slot()[1] for _ in range(8)}

    assert slots == set(range(1, 9))
    assert module.get_unassigned_slot()[:2] == (FUNCTION_FAILED, UNTOUCHED)
    assert module.CA_UnlockClusteredSlot(5) == OK
    assert module.get_unassigned_slot()[:2] == (OK, 5)


def test_unassigned_slots_run_out_when_all_are_assigned(module, cluster):
    for slot_id in range(1, 9):
        assert module.init_token(slot_id, f"assigned{slot_id}") == OK

    assert module.get_unassigned_slot()[:2] == (FUNCTION_FAILED, UNTOUCHED)
    assert owners(cluster) == {}


def test_token_with_its_original_label_again_is_unassigned_again(module):
    for slot_id in range(1, 9):
        assert module.init_token(slot_id, f"assigned{slot_id}") == OK
    assert module.init_token(4, "keyring4") == OK

    assert module.get_unassigned_slot()[:2] == (OK, 4)


def test_unassigned_slot_needs_cluster_and_place(module, cluster):
    info = Unassigned(UNTOUCHED)

    assert module.CA_GetUnassignedSlot(None, ctypes.byref(info)) == ARGUMENTS_BAD
    assert module.CA_GetUnassignedSlot(b"cluster-1", None) == ARGUMENTS_BAD
    assert info.slot_id == UNTOUCHED
    assert owners(cluster) == {}


@pytest.mark.parametrize("cluster_id", [b"", b"cluster", b"cluster-2", b"cluster-11", b"x" * 100])
def test_unassigned_slot_of_another_cluster_is_an_argument_error(module, cluster, cluster_id):
    assert module.get_unassigned_slot(cluster_id)[:2] == (ARGUMENTS_BAD, UNTOUCHED)
    assert owners(cluster) == {}


# ---- a claim and the locks of its own process ----


def test_claim_leaves_out_what_its_process_holds_if_so_switched(module, cluster):
    cluster.switch("regrant", "off")
    assert module.CA_LockClusteredSlot(3) == OK

    assert sorted(claimed(module)) == [1, 2, 4, 5, 6, 7, 8]


def test_claim_gives_what_its_process_holds_once_more_by_default(module, cluster):
    assert module.CA_LockClusteredSlot(3) == OK

    # The others were free, and then held.
    assert sorted(claimed(module)) == sorted([3, *2 * (1, 2, 4, 5, 6, 7, 8)])
    assert owners(cluster) == dict.fromkeys(range(1, 9), os.getpid())


def test_claim_comes_to_held_and_to_free_tokens_by_chance(module, cluster):
    cluster.switch("regrant", "on")
    first = []
    for _ in range(64):
        for slot_id in (1, 2, 3, 4):
            assert module.CA_LockClusteredSlot(slot_id) == OK
        first.append(module.get_unassigned_slot()[1])
        for slot_id in range(1, 9):
            assert module.CA_UnlockClusteredSlot(slot_id) == OK

    held = sum(slot_id <= 4 for slot_id in first)
    assert 8 < held < 56


def test_claim_is_told_the_label_of_a_token_that_its_process_holds(module, cluster):
    cluster.switch("regrant", "on")
    for slot_id in range(1, 9):
        assert module.CA_LockClusteredSlot(slot_id) == OK

    rv, slot_id, label = module.get_unassigned_slot()

    assert (rv, label) == (OK, f"keyring{slot_id}".encode().ljust(32))


def test_claim_gives_no_held_token_that_a_lock_call_was_granted_again(module, cluster):
    cluster.switch("regrant", "on")
    for slot_id in range(1, 9):
        assert module.CA_LockClusteredSlot(slot_id) == OK
        assert slot_id == 5 or module.CA_LockClusteredSlot(slot_id) == OK

    assert claimed(module) == [5]


@pytest.mark.parametrize("grants", ["once", "counted"])
def test_claim_gives_a_held_token_again_when_its_last_grant_was_unlocked(module, cluster, grants):
    cluster.switch("regrant", "on")
    cluster.switch("grants", grants)
    for slot_id in range(1, 9):
        assert module.CA_LockClusteredSlot(slot_id) == OK
    assert sorted(claimed(module)) == list(range(1, 9))

    assert module.CA_UnlockClusteredSlot(5) == OK
    # Where grants count it is held still, else it was free, and is claimed twice.
    assert claimed(module) == ([5] if grants == "counted" else [5, 5])


@pytest.mark.parametrize("relock", ["wait", "error"])
def test_claim_leaves_out_what_its_process_holds_where_no_second_lock_is_granted(
    module, cluster, relock
):
    cluster.switch("regrant", "on")
    cluster.switch("relock", relock)
    assert module.CA_LockClusteredSlot(3) == OK

    assert sorted(claimed(module)) == [1, 2, 4, 5, 6, 7, 8]


def test_claim_gives_no_held_token_that_is_assigned(module, cluster):
    cluster.switch("regrant", "on")
    for slot_id in range(1, 9):
        assert module.init_token(slot_id, f"assigned{slot_id}") == OK
        assert module.CA_LockClusteredSlot(slot_id) == OK

    assert claimed(module) == []


def test_claim_gives_nothing_that_another_process_holds(module, cluster):
    cluster.switch("regrant", "on")

    with locked_elsewhere(3) as other:
        assert 3 not in claimed(module)
        assert owners(cluster)[3] == other.pid
    assert claimed(module) == [3, 3]


def test_lost_reply_of_a_claim_may_grant_again_what_its_process_holds(module, cluster):
    cluster.switch("regrant", "on")
    cluster.fault("CA_GetUnassignedSlot", DEVICE_ERROR, times=8, lost_reply=True)
    for slot_id in range(1, 9):
        assert module.CA_LockClusteredSlot(slot_id) == OK

    assert {module.get_unassigned_slot() for _ in range(8)} == {(DEVICE_ERROR, UNTOUCHED, b"")}
    assert claimed(module) == []


# ---- CA_LockClusteredSlot and CA_UnlockClusteredSlot ----


def test_lock_is_set_and_taken_off(module, cluster):
    assert module.CA_LockClusteredSlot(3) == OK
    assert owners(cluster) == {3: os.getpid()}
    assert module.CA_UnlockClusteredSlot(3) == OK
    assert owners(cluster) == {}


@pytest.mark.parametrize("slot_id", [0, 9, NO_SLOT, 2**32 + 1, 2**64 - 1])
def test_lock_of_an_unknown_slot_is_refused(module, cluster, slot_id):
    assert module.CA_LockClusteredSlot(slot_id) == SLOT_ID_INVALID
    assert module.CA_UnlockClusteredSlot(slot_id) == SLOT_ID_INVALID
    assert owners(cluster) == {}


def test_lock_that_another_process_has_is_a_device_error_if_so_switched(module, cluster):
    cluster.switch("contention", "error")

    with locked_elsewhere(3) as other:
        assert module.CA_LockClusteredSlot(3) == DEVICE_ERROR
        assert owners(cluster) == {3: other.pid}
    assert module.CA_LockClusteredSlot(3) == OK


def test_second_lock_of_one_process_is_granted_by_default(module):
    assert [module.CA_LockClusteredSlot(3) for _ in range(2)] == [OK, OK]


def test_second_lock_of_one_process_is_a_device_error_if_so_switched(module, cluster):
    cluster.switch("relock", "error")

    assert [module.CA_LockClusteredSlot(3) for _ in range(2)] == [OK, DEVICE_ERROR]
    assert owners(cluster) == {3: os.getpid()}


def test_one_unlock_takes_off_a_lock_that_was_granted_twice_by_default(module, cluster):
    assert [module.CA_LockClusteredSlot(3) for _ in range(2)] == [OK, OK]

    assert module.CA_UnlockClusteredSlot(3) == OK
    assert owners(cluster) == {}


def test_each_grant_takes_an_unlock_of_its_own_if_so_switched(module, cluster):
    cluster.switch("grants", "counted")
    assert [module.CA_LockClusteredSlot(3) for _ in range(3)] == [OK, OK, OK]

    for _ in range(2):
        assert module.CA_UnlockClusteredSlot(3) == OK
        assert owners(cluster) == {3: os.getpid()}
    assert module.CA_UnlockClusteredSlot(3) == OK
    assert owners(cluster) == {}
    # There is nothing below zero.
    assert module.CA_UnlockClusteredSlot(3) == OK
    assert module.CA_LockClusteredSlot(3) == OK
    assert module.CA_UnlockClusteredSlot(3) == OK
    assert owners(cluster) == {}


def test_grants_of_a_claim_and_of_a_lock_call_count_together(module, cluster):
    cluster.switch("grants", "counted")
    slot_id = module.get_unassigned_slot()[1]
    assert module.CA_LockClusteredSlot(slot_id) == OK

    assert module.CA_UnlockClusteredSlot(slot_id) == OK
    assert owners(cluster) == {slot_id: os.getpid()}
    assert module.CA_UnlockClusteredSlot(slot_id) == OK
    assert owners(cluster) == {}


def test_grants_that_are_refused_do_not_count(module, cluster):
    cluster.switch("grants", "counted")
    cluster.switch("relock", "error")
    assert [module.CA_LockClusteredSlot(3) for _ in range(2)] == [OK, DEVICE_ERROR]

    assert module.CA_UnlockClusteredSlot(3) == OK
    assert owners(cluster) == {}


def test_grants_that_count_no_longer_are_all_taken_off(module, cluster):
    cluster.switch("grants", "counted")
    assert [module.CA_LockClusteredSlot(3) for _ in range(3)] == [OK, OK, OK]

    cluster.switch("grants", "once")
    assert module.CA_UnlockClusteredSlot(3) == OK
    assert owners(cluster) == {}


def test_another_process_waits_for_the_unlock_of_the_last_grant(module, cluster, call):
    cluster.switch("grants", "counted")

    with called_elsewhere(LOCK_TWICE) as other:
        caller = call(lambda: module.CA_LockClusteredSlot(3))
        wait_for_call(cluster, "CA_LockClusteredSlot")
        assert module.CA_UnlockClusteredSlot(3) == OK
        assert owners(cluster) == {3: other.pid}
        assert caller.is_alive()
        assert module.CA_UnlockClusteredSlot(3) == OK
        assert caller.result() == OK
        assert owners(cluster) == {3: os.getpid()}


def test_another_process_s_grants_are_not_ours_to_take_off_where_the_owner_is_checked(
    module, cluster
):
    cluster.switch("grants", "counted")
    cluster.switch("unlock_owner", "checked")

    with called_elsewhere(LOCK_TWICE) as other:
        assert module.CA_UnlockClusteredSlot(3) == DEVICE_ERROR
        cluster.switch("unlock_owner", "unchecked")
        assert module.CA_UnlockClusteredSlot(3) == OK
        assert owners(cluster) == {3: other.pid}
        cluster.switch("unlock_owner", "checked")
    assert module.CA_LockClusteredSlot(3) == OK
    assert module.CA_UnlockClusteredSlot(3) == OK
    assert owners(cluster) == {}


def test_grants_of_a_dead_process_are_gone_however_many(module, cluster):
    cluster.switch("grants", "counted")
    cluster.switch("contention", "error")

    with called_elsewhere(LOCK_TWICE) as other:
        assert module.CA_LockClusteredSlot(3) == DEVICE_ERROR
        other.kill()
        other.wait()
        assert owners(cluster) == {}
        assert module.CA_LockClusteredSlot(3) == OK
    assert module.CA_UnlockClusteredSlot(3) == OK
    assert owners(cluster) == {}


def test_lost_connection_takes_off_all_grants(module, cluster):
    cluster.switch("grants", "counted")
    assert [module.CA_LockClusteredSlot(3) for _ in range(3)] == [OK, OK, OK]

    cluster.disconnect(os.getpid())
    assert owners(cluster) == {}


def test_unlock_takes_off_another_process_s_lock_by_default(module, cluster):
    with locked_elsewhere(3):
        assert module.CA_UnlockClusteredSlot(3) == OK
        assert owners(cluster) == {}


def test_unlock_checks_the_owner_if_so_switched(module, cluster):
    cluster.switch("unlock_owner", "checked")

    with locked_elsewhere(3) as other:
        assert module.CA_UnlockClusteredSlot(3) == DEVICE_ERROR
        assert owners(cluster) == {3: other.pid}
    assert module.CA_UnlockClusteredSlot(3) == DEVICE_ERROR
    assert module.CA_LockClusteredSlot(3) == OK
    assert module.CA_UnlockClusteredSlot(3) == OK


def test_locks_of_a_dead_process_are_gone(module, cluster):
    with locked_elsewhere(3):
        assert 3 in owners(cluster)

    assert owners(cluster) == {}
    assert module.CA_LockClusteredSlot(3) == OK


def test_finalisation_takes_off_all_locks(module, cluster):
    for slot_id in (1, 4, 4, 8):
        assert module.CA_LockClusteredSlot(slot_id) == OK
    assert module.C_Finalize(None) == OK

    assert owners(cluster) == {}
