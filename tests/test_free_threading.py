"""What luna_ext is on a Python without the GIL; `make freethreaded` runs all tests there."""

import contextlib
import os
import subprocess
import sys
import sysconfig
import threading
from functools import partial

import pytest
from support import LOCK, UNLOCK, finalisations, nothing_is_locked

import luna_ext

pytestmark = pytest.mark.skipif(
    not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="this Python has the GIL always"
)


def test_import_leaves_the_gil_off():
    environment = {**os.environ}
    environment.pop("PYTHON_GIL", None)
    program = "import sys, luna_ext; print(sys._is_gil_enabled())"

    finished = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env=environment,
        capture_output=True,
        text=True,
    )

    assert (finished.stdout, finished.stderr) == ("False\n", "")


THREADS = 8
ROUNDS = 300


@pytest.fixture
def together(call):
    """Calls a function in so many threads that begin at the same moment; what each has returned."""

    def run(function):
        barrier = threading.Barrier(THREADS)

        def begin(number):
            barrier.wait(30)
            return function(number)

        callers = [call(partial(begin, number)) for number in range(THREADS)]
        return [caller.result() for caller in callers]

    return run


def test_threads_that_ask_for_a_slot_at_once_get_one_object(luna, together):
    for slot_id in (1, 2, 3):
        slots = together(lambda number, slot_id=slot_id: luna.slot(slot_id))
        assert all(slot is slots[0] for slot in slots)


def test_one_slot_has_one_holder(luna, together):
    """Without a lock, threads that add to a number in this way lose most of their additions."""
    sums = [0]

    def add(number):
        for _ in range(ROUNDS):
            with luna.slot(1):
                seen = sums[0]
                for _ in range(20):
                    pass
                sums[0] = seen + 1

    together(add)
    assert sums == [THREADS * ROUNDS]


@pytest.mark.luna_cluster(keyrings=THREADS)
def test_pairs_on_slots_of_their_own_are_all_counted(cluster, together):
    with cluster.library() as luna:
        before = luna.stats()

        def use(number):
            for _ in range(ROUNDS):
                with luna.slot(number + 1):
                    pass

        together(use)
        after = luna.stats()
    # And close() has returned: it waits until no call is counted as in flight.
    assert nothing_is_locked(cluster)
    for function in (LOCK, UNLOCK):
        earlier = before[function].calls if function in before else 0
        assert after[function].calls - earlier == THREADS * ROUNDS


def test_libraries_that_open_and_close_at_once(cluster, together):
    def use(number):
        for _ in range(20):
            with cluster.library() as luna, luna.slot(number % 2 + 1):
                pass

    together(use)
    assert nothing_is_locked(cluster)


def test_threads_that_close_a_library_at_once(cluster, together):
    for _ in range(20):
        luna = cluster.library()
        luna.slots()
        together(lambda number, luna=luna: luna.close())
    assert finalisations(cluster) == [0] * 20


@pytest.mark.luna_cluster(keyrings=THREADS)
def test_threads_that_lock_while_another_connects_anew_unlock_nothing_of_the_next_connection(
    luna, cluster, together
):
    """A whole reconnect() may come between the last look at a hold and its unlock call."""
    cluster.switch("unlock_owner", "checked")
    over = threading.Event()

    def connect_anew():
        try:
            for _ in range(50):
                with contextlib.suppress(luna_ext.DeviceError):
                    luna.reconnect()
        finally:
            over.set()

    def lock(slot):
        while not over.is_set():
            with contextlib.suppress(luna_ext.LockLostError), slot:
                pass

    before = luna.stats().get(UNLOCK)
    together(lambda number: lock(luna.slot(number)) if number != 0 else connect_anew())
    assert luna.stats()[UNLOCK].errors == ({} if before is None else before.errors)


@pytest.mark.luna_cluster(keyrings=THREADS)
def test_claims_at_once_get_different_tokens(luna, together):
    taken = threading.Barrier(THREADS)

    def claim(number):
        with luna.claim("cluster-1") as token:
            taken.wait(30)
            return token.slot.slot_id

    assert sorted(together(claim)) == list(range(1, THREADS + 1))


def test_only_the_holder_releases(luna, together):
    """All others are refused, whatever they see of the holder's release."""

    def use(number):
        refused = 0
        for _ in range(ROUNDS):
            if number == 0:
                with luna.slot(1):
                    pass
            else:
                with pytest.raises(luna_ext.LockNotOwnedError):
                    luna.slot(1).release()
                refused += 1
        return refused

    assert together(use) == [0] + [ROUNDS] * (THREADS - 1)


@pytest.mark.luna_cluster(keyrings=64)
def test_many_threads_read_each_token_once(luna):
    for _ in range(50):
        assert [token.slot.slot_id for token in luna.tokens(workers=16)] == list(range(1, 65))


@pytest.mark.luna_cluster(keyrings=64)
def test_many_threads_give_each_label_one_token(cluster, luna):
    """A label that two threads took would have two tokens."""
    labels = [f"label{number}" for number in range(64)]
    report = luna_ext.provision(luna, "cluster-1", labels, so_pin="12345678", workers=16)
    assert sorted(report.assigned) == sorted(labels)
    assert sorted(token.label for token in cluster.tokens()) == sorted(labels)
