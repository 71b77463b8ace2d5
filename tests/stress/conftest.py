"""Many processes that lock the slots of one cluster: run, and looked at.

Normally in a short form. LUNA_EXT_STRESS=long, which `make stress` sets, asks for the long one.
Both print their figures, which pytest shows with -s.
"""

import array
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

import luna_ext
from luna_ext.stub import Cluster

CROWD = Path(__file__).with_name("crowd.py")
WORD = 8


class Interval(NamedTuple):
    """From when until when a process held a slot, in nanoseconds of `time.monotonic_ns()`."""

    entered: int
    left: int
    process: str


class Crowd:
    """What `crowd.py` has left behind."""

    def __init__(self, directory: Path, told: str, seconds: float) -> None:
        self.seconds = seconds
        of_processes = [json.loads(line) for line in told.splitlines()]
        self.totals: dict[str, int] = {
            name: sum(process[name] for process in of_processes) for name in of_processes[0]
        }
        """Numbers that the processes report: how often a wait was given up, and so on."""
        self._counters = (directory / "counters").read_bytes()
        self.intervals: dict[int, list[Interval]] = {}
        for file in directory.glob("intervals-*"):
            words = array.array("Q", file.read_bytes())
            for slot_id, entered, left in zip(words[::3], words[1::3], words[2::3], strict=True):
                interval = Interval(entered, left, file.name)
                self.intervals.setdefault(slot_id, []).append(interval)

    @property
    def acquisitions(self) -> int:
        return sum(map(len, self.intervals.values()))

    def counter(self, slot_id: int) -> int:
        """How many of the slot's holders added one to a number that only the lock protects."""
        return int.from_bytes(self._counters[slot_id * WORD :][:WORD])

    @property
    def changes(self) -> int:
        """How often a slot went from one process to another."""
        return sum(
            one.process != next_one.process
            for intervals in self.intervals.values()
            for one, next_one in itertools.pairwise(sorted(intervals))
        )

    def overlaps(self, slot_id: int) -> list[tuple[Interval, Interval]]:
        """Holders that had the slot at the same time."""
        in_order = sorted(self.intervals[slot_id])
        return [pair for pair in itertools.pairwise(in_order) if pair[1].entered < pair[0].left]


@pytest.fixture(autouse=True)
def same_luna_ext(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program imports the luna_ext that its test has: another may be installed."""
    monkeypatch.setenv("PYTHONPATH", str(Path(luna_ext.__file__).parents[1]))


@pytest.fixture(scope="session")
def long() -> bool:
    """Whether the long form is asked for."""
    return os.environ.get("LUNA_EXT_STRESS") == "long"


@pytest.fixture
def crowd(cluster: Cluster, tmp_path: Path, long: bool) -> Callable[..., Crowd]:
    """Runs `crowd.py` on the test's cluster, with these options."""

    def run(**options: float) -> Crowd:
        limit = 540 if long else 100
        settings = {"cluster": cluster.path, "directory": str(tmp_path), "limit": limit, **options}
        begin = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-W", "error", CROWD, json.dumps(settings)],
            stdout=subprocess.PIPE,
            text=True,
            timeout=limit + 10,
        )
        assert done.returncode == 0
        return Crowd(tmp_path, done.stdout, time.monotonic() - begin)

    return run
