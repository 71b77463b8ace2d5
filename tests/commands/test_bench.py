"""demo, bench."""

from luna_ext.commands.demo import Hold, overlaps


def test_demo(command):
    done = command("demo")
    assert done.returncode == 0
    assert "held by two at once: 0." in done.stdout


def test_the_demo_counts_only_what_was_held():
    held = Hold(1, 3, "alice", 1, "assigned", "alice-1", "")
    assert overlaps([held, Hold(2, 4, "bob", 1, "locked", "alice-1", "")]) == 1
    assert overlaps([held, Hold(3, 4, "bob", 1, "locked", "alice-1", "")]) == 0
    # It has asked for the lock meanwhile, and then met another label.
    assert overlaps([held, Hold(2, 2, "bob", 1, "changed", "keyring1", "")]) == 0


def row(done):
    assert done.returncode == 0
    header, values = done.stdout.splitlines()
    assert header.startswith("threads  slots  locked per second  wait p50, µs")
    return [int(value) for value in values.split()]


def test_bench_on_a_stand_in_of_its_own(command, cluster):
    done = command("bench", "--threads", 3, "--slots", 2, "--latency", 2, "--seconds", 0.3)
    threads, slots, per_second, p50, p99, longest = row(done)
    assert (threads, slots) == (3, 2)
    # A lock and an unlock of 2 ms each, two at a time.
    assert 0 < per_second <= 500
    assert 2000 <= p50 <= p99 <= longest
    assert cluster.log() == []


def test_bench_on_a_slot_of_the_device(command, cluster):
    threads, slots, *_ = row(command("bench", "--slot", 3, "--threads", 2, "--seconds", 0.2))
    assert (threads, slots) == (2, 1)
    locked = {call.slot_id for call in cluster.log() if call.function == "CA_LockClusteredSlot"}
    assert locked == {3}
    assert all(token.owner is None for token in cluster.tokens())


def test_an_error_of_a_thread_is_the_commands(command, cluster):
    cluster.fault("CA_LockClusteredSlot", 0x30, every=5)
    done = command("bench", "--slot", 1, "--threads", 2, "--seconds", 0.2)
    assert done.returncode == 1
    (line,) = done.said
    assert "CKR_DEVICE_ERROR" in line
