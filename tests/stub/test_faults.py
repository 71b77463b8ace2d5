"""Faults, lost replies and latencies: which calls they strike, and what these calls have done."""

import ctypes
import itertools
import os
import time

import pytest
from pkcs11_client import (
    ALREADY_INITIALIZED,
    CLUSTER_FUNCTIONS,
    DEVICE_ERROR,
    FUNCTION_FAILED,
    NOT_INITIALIZED,
    OK,
    RW_SESSION,
    UNTOUCHED,
    call_plainly,
    called_elsewhere,
    owners,
    wait_for_call,
)
from support import CLAIM, LOCK, UNLOCK


def struck(module, count):
    """Which of so many calls of CA_GetSlotId a fault strikes, from 1."""
    return [
        number
        for number in range(1, count + 1)
        if call_plainly(module, "CA_GetSlotId") == DEVICE_ERROR
    ]


# ---- which calls ----


def test_fault_strikes_every_call(module, cluster):
    cluster.fault("CA_GetSlotId", DEVICE_ERROR)

    assert struck(module, 5) == [1, 2, 3, 4, 5]


def test_fault_strikes_the_first_calls(module, cluster):
    cluster.fault("CA_GetSlotId", DEVICE_ERROR, times=2)

    assert struck(module, 5) == [1, 2]


def test_fault_strikes_every_third_call(module, cluster):
    cluster.fault("CA_GetSlotId", DEVICE_ERROR, every=3)

    assert struck(module, 10) == [3, 6, 9]


def test_fault_strikes_every_third_call_but_not_for_ever(module, cluster):
    cluster.fault("CA_GetSlotId", DEVICE_ERROR, every=3, times=2)

    assert struck(module, 10) == [3, 6]


def test_fault_strikes_by_chance(module, cluster):
    cluster.fault("CA_GetSlotId", DEVICE_ERROR, probability=0.25, seed=1)

    calls = struck(module, 4000)

    assert 800 < len(calls) < 1200
    assert len({later - earlier for earlier, later in itertools.pairwise(calls)}) > 5


@pytest.mark.parametrize("probability", [0.0, 1e-300])
def test_fault_without_a_chance_strikes_nothing(module, cluster, probability):
    cluster.fault("CA_GetSlotId", DEVICE_ERROR, probability=probability)

    assert struck(module, 100) == []


def test_same_seed_strikes_the_same_calls_and_another_seed_others(module, cluster):
    def strikes(seed):
        cluster.fault("CA_GetSlotId", DEVICE_ERROR, probability=0.5, seed=seed)
        return struck(module, 64)

    assert strikes(7) == strikes(7)
    assert strikes(7) != strikes(8)


def test_chance_among_every_second_call_with_a_limit(module, cluster):
    cluster.fault("CA_GetSlotId", DEVICE_ERROR, every=2, probability=0.5, times=5)

    calls = struck(module, 200)

    assert len(calls) == 5
    assert {number % 2 for number in calls} == {0}


def test_fault_replaces_the_one_before_and_counts_anew(module, cluster):
    cluster.fault("CA_GetSlotId", FUNCTION_FAILED, every=2)
    assert struck(module, 3) == []

    cluster.fault("CA_GetSlotId", DEVICE_ERROR, every=2)
    assert struck(module, 4) == [2, 4]

    cluster.fault("CA_GetSlotId", DEVICE_ERROR, times=0)
    assert struck(module, 4) == []


def test_fault_of_one_function_leaves_the_others_alone(module, cluster):
    cluster.fault(LOCK, DEVICE_ERROR)

    assert [call_plainly(module, name) for name in CLUSTER_FUNCTIONS] == [OK, OK, DEVICE_ERROR, OK]


def test_calls_of_all_processes_count_together(module, cluster):
    cluster.fault("CA_GetSlotId", DEVICE_ERROR, every=3)
    assert struck(module, 1) == []

    with called_elsewhere("module.CA_GetSlotId(b'x' * 32, None, ctypes.byref(ctypes.c_ulong()))"):
        assert struck(module, 1) == [1]


def test_fault_of_the_function_list(module, cluster):
    place = ctypes.byref(ctypes.c_void_p())
    cluster.fault("C_GetFunctionList", DEVICE_ERROR, times=1)

    assert [module.C_GetFunctionList(place) for _ in range(2)] == [DEVICE_ERROR, OK]
    cluster.disconnect(os.getpid())
    assert module.C_GetFunctionList(place) == OK


# ---- after the effect ----


def test_lost_reply_of_a_lock_call_leaves_the_lock_set(module, cluster):
    cluster.fault(LOCK, DEVICE_ERROR, times=1, lost_reply=True)

    assert module.CA_LockClusteredSlot(3) == DEVICE_ERROR
    assert owners(cluster) == {3: os.getpid()}


def test_lost_reply_of_an_unlock_call_leaves_the_lock_off(module, cluster):
    assert module.CA_LockClusteredSlot(3) == OK
    cluster.fault(UNLOCK, DEVICE_ERROR, times=1, lost_reply=True)

    assert module.CA_UnlockClusteredSlot(3) == DEVICE_ERROR
    assert owners(cluster) == {}


def test_lost_reply_of_a_claim_locks_a_token_and_does_not_name_it(module, cluster):
    cluster.fault(CLAIM, DEVICE_ERROR, times=1, lost_reply=True)

    assert module.get_unassigned_slot() == (DEVICE_ERROR, UNTOUCHED, b"")
    assert list(owners(cluster).values()) == [os.getpid()]


def test_lost_reply_of_a_new_session_does_not_tell_its_handle(module, cluster):
    cluster.fault("C_OpenSession", DEVICE_ERROR, times=1, lost_reply=True)
    handle = ctypes.c_ulong(UNTOUCHED)

    rv = module.C_OpenSession(1, RW_SESSION, None, None, ctypes.byref(handle))

    assert (rv, handle.value) == (DEVICE_ERROR, UNTOUCHED)
    assert module.token_info(1).session_count == 1


def test_lost_reply_of_init_token_leaves_the_new_label(module, cluster):
    cluster.fault("C_InitToken", DEVICE_ERROR, times=1, lost_reply=True)

    assert module.init_token(1, "new") == DEVICE_ERROR
    assert cluster.tokens()[0].label == "new"


def test_lost_reply_of_initialisation_leaves_the_library_initialised(uninitialised, cluster):
    cluster.fault("C_Initialize", DEVICE_ERROR, times=1, lost_reply=True)

    assert uninitialised.C_Initialize(None) == DEVICE_ERROR
    assert uninitialised.C_Initialize(None) == ALREADY_INITIALIZED


def test_lost_reply_of_finalisation_leaves_the_library_finalised(module, cluster):
    assert module.CA_LockClusteredSlot(3) == OK
    cluster.fault("C_Finalize", DEVICE_ERROR, times=1, lost_reply=True)

    assert module.C_Finalize(None) == DEVICE_ERROR
    assert owners(cluster) == {}
    assert module.C_Finalize(None) == NOT_INITIALIZED


# ---- latency ----


def durations(cluster, function):
    return [call.duration for call in cluster.log() if call.function == function]


def test_latency_is_added_to_each_call(module, cluster):
    cluster.latency(0.02, "CA_GetSlotId")

    assert struck(module, 3) == []
    assert min(durations(cluster, "CA_GetSlotId")) >= 0.02


def test_latency_of_all_functions(module, cluster):
    cluster.latency(0.01)
    for function in CLUSTER_FUNCTIONS:
        assert call_plainly(module, function) == OK
    cluster.latency(0)

    for function in CLUSTER_FUNCTIONS:
        assert min(durations(cluster, function)) >= 0.01


def test_latency_comes_before_the_effect(module, cluster, call):
    cluster.latency(0.2, LOCK)

    caller = call(lambda: module.CA_LockClusteredSlot(2))
    wait_for_call(cluster, LOCK)
    assert owners(cluster) == {}
    assert caller.result() == OK
    assert owners(cluster) == {2: os.getpid()}


def arrives(cluster, condition):
    """Wait until the call has had its effect on the device, although its answer has not come."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, cluster.tokens()
        os.sched_yield()


def test_latency_after_the_effect_comes_when_the_lock_is_set(module, cluster, call):
    cluster.latency(3600, LOCK, after=True)

    caller = call(lambda: module.CA_LockClusteredSlot(2))
    arrives(cluster, lambda: owners(cluster) == {2: os.getpid()})
    assert (cluster.log()[-1].function, cluster.log()[-1].rv) == (LOCK, None)
    assert module.C_Finalize(None) == OK
    assert caller.result() == DEVICE_ERROR
    assert owners(cluster) == {}


def test_latency_after_the_effect_comes_when_the_lock_is_off(module, cluster, call):
    assert module.CA_LockClusteredSlot(2) == OK
    cluster.latency(0.2, UNLOCK, after=True)

    caller = call(lambda: module.CA_UnlockClusteredSlot(2))
    arrives(cluster, lambda: owners(cluster) == {})
    assert module.CA_LockClusteredSlot(2) == OK
    assert caller.result() == OK
    assert owners(cluster) == {2: os.getpid()}
    assert durations(cluster, UNLOCK)[0] >= 0.2


def test_latency_after_the_effect_comes_when_the_token_is_claimed(module, cluster, call):
    cluster.latency(0.2, CLAIM, after=True)

    caller = call(module.get_unassigned_slot)
    arrives(cluster, lambda: len(owners(cluster)) == 1)
    (slot_id,) = owners(cluster)
    with called_elsewhere(f"module.CA_UnlockClusteredSlot(ctypes.c_ulong({slot_id}))"):
        assert owners(cluster) == {}
        assert caller.result() == (OK, slot_id, f"keyring{slot_id}".encode().ljust(32))


def test_latency_before_and_after_the_effect(module, cluster, call):
    cluster.latency(0.2, LOCK)
    cluster.latency(0.3, LOCK, after=True)

    caller = call(lambda: module.CA_LockClusteredSlot(2))
    wait_for_call(cluster, LOCK)
    assert owners(cluster) == {}
    arrives(cluster, lambda: owners(cluster) == {2: os.getpid()})
    assert caller.result() == OK
    assert durations(cluster, LOCK)[0] >= 0.5


def test_latencies_before_and_after_the_effect_are_set_apart(module, cluster):
    cluster.latency(0.05, "CA_GetSlotId")
    cluster.latency(0.02, "CA_GetSlotId", after=True)
    cluster.latency(0, "CA_GetSlotId")
    assert struck(module, 1) == []
    cluster.latency(0.05, "CA_GetSlotId")
    cluster.latency(0, after=True)
    assert struck(module, 1) == []
    cluster.latency(0)
    cluster.latency(0.02, after=True)
    assert struck(module, 1) == []
    cluster.latency(0, after=True)

    assert [duration >= 0.02 for duration in durations(cluster, "CA_GetSlotId")] == [True] * 3


def test_latency_after_the_effect_that_is_set_while_a_call_waits(module, cluster, call):
    with called_elsewhere("module.CA_LockClusteredSlot(ctypes.c_ulong(1))"):
        caller = call(lambda: module.CA_LockClusteredSlot(1))
        wait_for_call(cluster, LOCK)
        cluster.latency(3600, LOCK, after=True)
        assert module.CA_UnlockClusteredSlot(1) == OK

        arrives(cluster, lambda: owners(cluster) == {1: os.getpid()})
        cluster.disconnect(os.getpid())
        assert caller.result() == DEVICE_ERROR


@pytest.mark.parametrize("lost_reply", [False, True])
def test_answer_of_a_fault_is_late_too(module, cluster, lost_reply):
    cluster.fault(LOCK, FUNCTION_FAILED, times=1, lost_reply=lost_reply)
    cluster.latency(0.1, LOCK, after=True)

    assert module.CA_LockClusteredSlot(2) == FUNCTION_FAILED
    assert durations(cluster, LOCK)[0] >= 0.1
    assert owners(cluster) == ({2: os.getpid()} if lost_reply else {})


@pytest.mark.parametrize(
    ("function", "rv"),
    [
        ("CA_GetSlotId", NOT_INITIALIZED),
        (CLAIM, NOT_INITIALIZED),
        (LOCK, DEVICE_ERROR),
        (UNLOCK, DEVICE_ERROR),
    ],
)
def test_answer_that_is_overtaken_by_finalisation_is_an_error(module, cluster, call, function, rv):
    cluster.latency(3600, function, after=True)

    caller = call(lambda: call_plainly(module, function))
    wait_for_call(cluster, function)
    assert module.C_Finalize(None) == OK
    assert caller.result() == rv
    assert owners(cluster) == {}


@pytest.mark.parametrize("function", CLUSTER_FUNCTIONS)
def test_answer_of_a_lost_connection_is_an_error(module, cluster, call, function):
    cluster.latency(3600, function, after=True)

    caller = call(lambda: call_plainly(module, function))
    wait_for_call(cluster, function)
    cluster.disconnect(os.getpid())
    assert caller.result() == DEVICE_ERROR
    assert owners(cluster) == {}


def test_session_is_open_while_its_answer_is_on_its_way(module, cluster, call):
    cluster.latency(3600, "C_OpenSession", after=True)

    handle = ctypes.c_ulong()
    caller = call(lambda: module.C_OpenSession(1, RW_SESSION, None, None, ctypes.byref(handle)))
    arrives(cluster, lambda: module.token_info(1).session_count == 1)
    cluster.disconnect(os.getpid())
    assert caller.result() == DEVICE_ERROR


def test_late_answers_of_initialisation_and_finalisation(uninitialised, cluster, call):
    cluster.latency(1, "C_Initialize", after=True)
    cluster.latency(1, "C_Finalize", after=True)

    caller = call(lambda: uninitialised.C_Initialize(None))
    arrives(cluster, lambda: uninitialised.CA_LockClusteredSlot(2) == OK)
    assert caller.is_alive()
    assert caller.result() == OK
    caller = call(lambda: uninitialised.C_Finalize(None))
    arrives(cluster, lambda: owners(cluster) == {})
    assert caller.is_alive()
    assert caller.result() == OK


def test_late_answer_of_the_function_list_is_right_even_without_a_connection(module, cluster, call):
    cluster.latency(3600, "C_GetFunctionList", after=True)
    place = ctypes.c_void_p()

    caller = call(lambda: module.C_GetFunctionList(ctypes.byref(place)))
    wait_for_call(cluster, "C_GetFunctionList")
    cluster.disconnect(os.getpid())
    assert caller.result() == OK
    assert place.value is not None


def test_latency_varies_within_its_range(module, cluster):
    cluster.latency(0.001, "CA_GetSlotId", up_to=0.011, seed=3)
    assert struck(module, 40) == []

    times = sorted(durations(cluster, "CA_GetSlotId"))

    # A busy machine can only lengthen them, so the shortest ones are looked at.
    assert times[0] >= 0.001
    assert times[10] < times[-1] - 0.002


def test_latency_varies_in_the_same_way_for_the_same_seed(module, cluster):
    def shortest_of_each_call(seed):
        """What the machine adds is different each time, and mostly little."""
        rounds = []
        for _ in range(2):
            cluster.latency(0, "CA_GetSlotId", up_to=0.1, seed=seed)
            before = len(durations(cluster, "CA_GetSlotId"))
            assert struck(module, 4) == []
            rounds.append(durations(cluster, "CA_GetSlotId")[before:])
        return [min(times) for times in zip(*rounds, strict=True)]

    def distance(some, others):
        return max(abs(one - other) for one, other in zip(some, others, strict=True))

    first = shortest_of_each_call(1)
    assert distance(first, shortest_of_each_call(1)) < distance(first, shortest_of_each_call(2))


def test_finalisation_ends_a_long_latency(module, cluster, call):
    cluster.latency(3600, "C_GetInfo")
    caller = call(lambda: module.C_GetInfo(None))
    wait_for_call(cluster, "C_GetInfo")

    began = time.monotonic()
    assert module.C_Finalize(None) == OK
    assert caller.result() == NOT_INITIALIZED
    assert time.monotonic() - began < 60


# ---- all of it while clients run ----


def test_switch_is_seen_by_a_call_that_waits_already(module, cluster, call):
    with called_elsewhere("module.CA_LockClusteredSlot(ctypes.c_ulong(1))"):
        caller = call(lambda: module.CA_LockClusteredSlot(1))
        wait_for_call(cluster, LOCK)
        cluster.switch("contention", "error")

        assert caller.result() == DEVICE_ERROR


def test_disconnection_is_seen_by_a_call_that_waits_already(module, cluster, call):
    with called_elsewhere("module.CA_LockClusteredSlot(ctypes.c_ulong(1))"):
        caller = call(lambda: module.CA_LockClusteredSlot(1))
        wait_for_call(cluster, LOCK)
        cluster.disconnect(os.getpid())

        assert caller.result() == DEVICE_ERROR
        assert list(owners(cluster)) == [1]


def test_disconnection_strikes_one_process_alone(module, cluster):
    assert module.CA_LockClusteredSlot(2) == OK
    with called_elsewhere("module.CA_LockClusteredSlot(ctypes.c_ulong(1))") as process:
        cluster.disconnect(process.pid)

        assert owners(cluster) == {2: os.getpid()}
        assert module.CA_LockClusteredSlot(1) == OK
