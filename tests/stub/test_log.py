"""The log: what was called, by whom, when, and with what result."""

import ctypes
import os
import signal
import sys
import threading
import time

import pytest
from pkcs11_client import (
    ALREADY_INITIALIZED,
    ARGUMENTS_BAD,
    DEVICE_ERROR,
    NO_SLOT,
    OK,
    SLOT_ID_INVALID,
    call_plainly,
    called_elsewhere,
    locked_elsewhere,
    wait_for_call,
)

from luna_ext.stub import Cluster, LoggedCall

KEPT = 16384


def entries(cluster, *names):
    """So many fields of each entry."""
    return [tuple(getattr(call, name) for name in names) for call in cluster.log()]


def test_new_cluster_has_an_empty_log(cluster):
    assert cluster.log() == []


def test_calls_are_logged_with_their_slots_and_results(module, cluster):
    assert module.CA_LockClusteredSlot(3) == OK
    assert module.CA_LockClusteredSlot(NO_SLOT) == SLOT_ID_INVALID
    assert module.CA_UnlockClusteredSlot(3) == OK
    assert module.C_GetInfo(None) == ARGUMENTS_BAD

    assert entries(cluster, "number", "function", "slot_id", "rv") == [
        (1, "C_Initialize", None, OK),
        (2, "CA_LockClusteredSlot", 3, OK),
        (3, "CA_LockClusteredSlot", NO_SLOT, SLOT_ID_INVALID),
        (4, "CA_UnlockClusteredSlot", 3, OK),
        (5, "C_GetInfo", None, ARGUMENTS_BAD),
    ]


def test_result_has_a_name(module, cluster):
    assert call_plainly(module, "CA_GetSlotId") == OK

    assert [call.rv_name for call in cluster.log()] == ["CKR_OK", "CKR_OK"]


def test_slot_of_a_claim_is_the_one_that_it_found(module, cluster):
    rv, slot_id, _ = module.get_unassigned_slot()

    assert rv == OK
    assert entries(cluster, "function", "slot_id")[1:] == [("CA_GetUnassignedSlot", slot_id)]


def test_slot_of_a_session_s_call_is_the_session_s(module, cluster):
    session = module.open_session(5)
    assert module.C_Logout(session) != OK
    assert module.C_CloseSession(session) == OK
    assert module.C_CloseSession(session) != OK

    assert entries(cluster, "function", "slot_id")[1:] == [
        ("C_OpenSession", 5),
        ("C_Logout", 5),
        ("C_CloseSession", 5),
        ("C_CloseSession", None),
    ]


def test_log_says_who_called(module, cluster, call):
    call(lambda: module.CA_LockClusteredSlot(1)).result()
    with locked_elsewhere(2) as process:
        pass

    log = [each for each in cluster.log() if each.function == "CA_LockClusteredSlot"]
    assert [each.pid for each in log] == [os.getpid(), process.pid]
    assert log[0].thread_id != threading.get_native_id()
    assert cluster.log()[0].thread_id == threading.get_native_id()


def test_log_of_a_forked_child_names_the_child(module, cluster):
    pid = os.fork()
    if pid == 0:
        rv = module.C_Initialize(None)
        os._exit(rv)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == OK

    last = cluster.log()[-1]
    assert (last.function, last.pid, last.thread_id) == ("C_Initialize", pid, pid)


def test_log_says_when_and_how_long(module, cluster):
    cluster.latency(0.02, "C_GetInfo")
    before = time.time()
    module.C_GetInfo(None)
    after = time.time()

    call = cluster.log()[-1]
    assert before - 0.001 <= call.time <= after
    assert 0.02 <= call.duration <= after - before + 0.001


def test_call_that_has_not_returned_is_in_the_log(module, cluster, call):
    with locked_elsewhere(1):
        caller = call(lambda: module.CA_LockClusteredSlot(1))
        wait_for_call(cluster, "CA_LockClusteredSlot")
        waiting = cluster.log()[-1]
        assert waiting._replace(number=0, time=0.0, thread_id=0) == LoggedCall(
            0, "CA_LockClusteredSlot", 1, None, os.getpid(), 0, 0.0, None
        )
        assert waiting.rv_name is None
    assert caller.result() == OK

    returned = cluster.log()[waiting.number - 1]
    assert returned == waiting._replace(rv=OK, duration=returned.duration)
    assert returned.duration > 0


def test_call_in_which_a_process_was_killed_never_returns(module, cluster):
    assert module.CA_LockClusteredSlot(1) == OK
    pid = os.fork()
    if pid == 0:
        module.C_Initialize(None)
        module.CA_LockClusteredSlot(1)
        os._exit(1)
    wait_for_call(cluster, "CA_LockClusteredSlot")
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)

    last = cluster.log()[-1]
    assert (last.pid, last.function, last.rv) == (pid, "CA_LockClusteredSlot", None)


def test_fault_is_logged_as_the_caller_saw_it(module, cluster):
    cluster.fault("CA_LockClusteredSlot", DEVICE_ERROR, times=1, lost_reply=True)
    cluster.fault("CA_UnlockClusteredSlot", DEVICE_ERROR, times=1)
    module.CA_LockClusteredSlot(1)
    module.CA_UnlockClusteredSlot(1)
    cluster.disconnect(os.getpid())
    module.CA_UnlockClusteredSlot(1)

    assert entries(cluster, "rv")[1:] == [(DEVICE_ERROR,)] * 3


def test_initialisation_and_finalisation_are_logged(uninitialised, cluster):
    cluster.fault("C_Initialize", DEVICE_ERROR, times=1)
    cluster.fault("C_Finalize", DEVICE_ERROR, times=1)
    answers = [uninitialised.C_Initialize(None) for _ in range(3)]
    answers.append(uninitialised.C_Initialize(b"x" * 64))
    answers += [uninitialised.C_Finalize(argument) for argument in (None, b"x", None)]

    results = [DEVICE_ERROR, OK, ALREADY_INITIALIZED, ARGUMENTS_BAD]
    assert answers == [*results, DEVICE_ERROR, ARGUMENTS_BAD, OK]
    functions = ["C_Initialize"] * 4 + ["C_Finalize"] * 3
    assert entries(cluster, "function", "rv") == list(zip(functions, answers, strict=True))


def test_log_keeps_the_latest_calls(module, cluster):
    for _ in range(KEPT + 10):
        module.C_GetInfo(None)

    log = cluster.log()
    assert [call.number for call in log] == list(range(12, KEPT + 12))


def test_call_that_returns_after_a_whole_round_of_the_log_is_not_put_in_another_s_place(
    module, cluster, call
):
    with locked_elsewhere(1):
        caller = call(lambda: module.CA_LockClusteredSlot(1))
        wait_for_call(cluster, "CA_LockClusteredSlot")
        for _ in range(KEPT + 10):
            module.C_GetInfo(None)
    assert caller.result() == OK

    log = cluster.log()
    assert [call.number for call in log] == list(range(log[0].number, log[0].number + KEPT))


@pytest.mark.luna_cluster(first_slot=0x1122334455667788)
def test_half_written_entry_is_left_out(module, cluster):
    slot_id = 0x1122334455667788
    assert module.CA_LockClusteredSlot(slot_id) == OK
    assert module.CA_UnlockClusteredSlot(slot_id) == OK
    with open(cluster.path, "r+b") as file:
        content = file.read()
        # The last entry's slot ID; its result comes next.
        file.seek(content.rindex(slot_id.to_bytes(8, sys.byteorder)) + 8)
        file.write((DEVICE_ERROR).to_bytes(8, sys.byteorder))

    assert entries(cluster, "function") == [("C_Initialize",), ("CA_LockClusteredSlot",)]


def test_log_is_switched_off_and_on(module, cluster):
    cluster.switch("log", "off")
    module.C_GetInfo(None)
    cluster.switch("log", "on")
    module.CA_LockClusteredSlot(1)

    assert entries(cluster, "function") == [("C_Initialize",), ("CA_LockClusteredSlot",)]


def test_log_is_read_through_any_cluster_object_of_the_file(module, cluster):
    with Cluster(cluster.path) as same:
        assert same.log() == cluster.log()


def test_no_call_of_many_threads_and_processes_is_missing(module, cluster, call):
    each = 1000
    body = f"[module.C_GetInfo(None) for _ in range({each})].count({ARGUMENTS_BAD}) - {each}"
    threads = [
        call(lambda: [module.C_GetInfo(None) for _ in range(each)].count(ARGUMENTS_BAD))
        for _ in range(4)
    ]
    with called_elsewhere(body):
        assert [thread.result() for thread in threads] == [each] * 4

    log = cluster.log()
    assert [entry.number for entry in log] == list(range(1, len(log) + 1))
    assert sum(entry.function == "C_GetInfo" and entry.rv == ARGUMENTS_BAD for entry in log) == (
        5 * each
    )


def test_function_list_is_logged_as_answered_after_a_disconnection(module, cluster):
    cluster.disconnect(os.getpid())

    assert module.C_GetFunctionList(ctypes.byref(ctypes.c_void_p())) == OK
    assert cluster.log()[-1].rv == OK


@pytest.mark.parametrize("function", ["C_GetSlotList", "CA_GetSlotId"])
def test_name_of_each_function_is_its_c_name(module, cluster, function):
    count = ctypes.c_ulong()
    if function == "C_GetSlotList":
        assert module.C_GetSlotList(0, None, ctypes.byref(count)) == OK
    else:
        assert module.CA_GetSlotId(b"x" * 32, None, ctypes.byref(count)) == OK

    assert cluster.log()[-1].function == function
