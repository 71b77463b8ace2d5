"""A slot has one holder at a time, among all the threads, tasks and processes that want it."""

import pytest

SLOTS = 4
PROCESSES = 8
THREADS = 8

# With a latency, what is in the wrong order at the device has the time to do harm.
KINDS = [("granted", 0.0), ("granted", 0.0002), ("wait", 0.0), ("error", 0.0)]

pytestmark = [pytest.mark.stress, pytest.mark.limit(10), pytest.mark.luna_cluster(keyrings=SLOTS)]


def check(crowd, rounds):
    assert crowd.acquisitions == PROCESSES * THREADS * rounds
    assert sorted(crowd.intervals) == list(range(1, SLOTS + 1))
    for slot_id, intervals in crowd.intervals.items():
        assert crowd.overlaps(slot_id) == []
        assert crowd.counter(slot_id) == len(intervals), "updates were lost"


def show(what, crowd, relock, latency):
    print(
        f"\n{what}, relock {relock}, calls of {latency * 1000:.1f} ms at most: "
        f"{crowd.acquisitions} acquisitions by {PROCESSES} processes in {crowd.seconds:.1f} s, "
        f"{crowd.acquisitions / crowd.seconds:.0f} per second, {crowd.changes} of them after "
        f"another process; given up and tried again {crowd.given_up} times"
    )


@pytest.mark.parametrize(("relock", "latency"), KINDS)
def test_threads_of_many_processes_hold_a_slot_one_at_a_time(cluster, crowd, long, relock, latency):
    cluster.switch("relock", relock)
    cluster.latency(0, up_to=latency)
    rounds = 2000 if long else 40
    done = crowd(
        slots=SLOTS, processes=PROCESSES, threads=THREADS, loops=0, tasks=0, rounds=rounds, seed=1
    )
    show("threads", done, relock, latency)
    check(done, rounds)


@pytest.mark.parametrize(("relock", "latency"), KINDS)
def test_threads_and_tasks_of_many_processes_hold_a_slot_one_at_a_time(
    cluster, crowd, long, relock, latency
):
    cluster.switch("relock", relock)
    cluster.latency(0, up_to=latency)
    rounds = 2000 if long else 40
    done = crowd(
        slots=SLOTS, processes=PROCESSES, threads=5, loops=3, tasks=6, rounds=rounds, seed=2
    )
    show("threads and tasks", done, relock, latency)
    check(done, rounds)
