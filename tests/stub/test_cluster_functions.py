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
    locked_elsewhere,
    owners,
)

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
    for slot_id in (1, 4, 8):
        assert module.CA_LockClusteredSlot(slot_id) == OK
    assert module.C_Finalize(None) == OK

    assert owners(cluster) == {}
