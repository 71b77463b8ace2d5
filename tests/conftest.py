"""What the tests share beyond the fixtures that luna_ext gives to everybody."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

import luna_ext
from luna_ext.stub import STATE_VARIABLE, Cluster


@pytest.fixture(autouse=True)
def no_cluster_from_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Cluster.library() puts into the environment goes with the test."""
    monkeypatch.setenv(STATE_VARIABLE, "")
    monkeypatch.delenv(STATE_VARIABLE)


@pytest.fixture
def cluster(luna_cluster: Cluster) -> Cluster:
    return luna_cluster


HOLDER = """
import os
import sys
from luna_ext.stub import STATE_VARIABLE, Cluster

with Cluster(os.environ[STATE_VARIABLE]).library() as luna:
    slot = luna.slot(int(sys.argv[1]))
    with slot:
        print("held", flush=True)
        sys.stdin.readline()
    print("released", flush=True)
    sys.stdin.readline()
"""


class Holder:
    """Another process that holds a slot's lock until it is told to release it."""

    def __init__(self, slot_id: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(slot_id)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._expect("held")

    @property
    def pid(self) -> int:
        return self.process.pid

    def release(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self._expect("released")

    def kill(self) -> None:
        self.process.kill()
        self.end()

    def end(self) -> None:
        self.process.communicate()

    def _expect(self, word: str) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline().strip() == word


@pytest.fixture
def hold_elsewhere(cluster: Cluster) -> Iterator[Callable[[int], Holder]]:
    holders: list[Holder] = []

    def hold(slot_id: int) -> Holder:
        holders.append(Holder(slot_id))
        return holders[-1]

    yield hold
    for holder in holders:
        if holder.process.stdin is not None and not holder.process.stdin.closed:
            holder.end()
        assert holder.process.returncode in (0, -9)


class Caller(threading.Thread):
    """A thread that calls one function; `result()` gives what it returned or raised."""

    def __init__(self, function: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._function = function
        self._result: object = None
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._result = self._function()
        except BaseException as error:
            self._error = error

    def result(self, timeout: float = 10) -> object:
        self.join(timeout)
        assert not self.is_alive(), "the thread is still busy"
        if self._error is not None:
            raise self._error
        return self._result


@pytest.fixture
def call() -> type[Caller]:
    return Caller


@pytest.fixture
def owner_of(cluster: Cluster) -> Callable[[int], int | None]:
    """The PID of the process that holds a slot's lock on the device."""

    def owner(slot_id: int) -> int | None:
        return {token.slot_id: token.owner for token in cluster.tokens()}[slot_id]

    return owner


@pytest.fixture
def calls_of(luna: luna_ext.Library) -> Callable[[str], int]:
    """How often a C function was called since the test began; stats() counts for the process."""

    def count(function: str) -> int:
        stats = luna.stats().get(function)
        return 0 if stats is None else stats.calls

    before = {function: count(function) for function in luna.stats()}
    return lambda function: count(function) - before.get(function, 0)


@pytest.fixture
def wait_until_queued() -> Callable[[luna_ext.ClusterSlot, int], None]:
    def wait(slot: luna_ext.ClusterSlot, count: int) -> None:
        """Until so many threads or tasks wait for the slot; its repr tells."""
        deadline = time.monotonic() + 10
        while f"{count} waiting" not in repr(slot):
            assert time.monotonic() < deadline, repr(slot)
            os.sched_yield()

    return wait
