"""The stand-in's locks and file stay right while processes are killed, and while many call at once.

`make fuzz` has what takes a process instruction by instruction.
"""

import os
import re
import subprocess
import sys

import pytest

# Exit status where a process may not trace its children.
NOT_POSSIBLE = 77
SECONDS = 120

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's process control"),
    pytest.mark.limit(3),
]


@pytest.fixture(scope="session")
def storm(stand_in_program):
    """Runs the storm in one of its ways, with the same random numbers each time: its figures."""
    program = stand_in_program("storm", "storm*.c")

    def run(way, seconds):
        finished = subprocess.run(
            [program, way, str(seconds), "1"],
            env={**os.environ, "TMPDIR": str(program.parent)},
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        if finished.returncode == NOT_POSSIBLE:
            pytest.skip(finished.stderr)
        assert (finished.returncode, finished.stderr) == (0, "")
        return {name: float(value) for name, value in re.findall(r"(\w+)=(\S+)", finished.stdout)}

    return run


def test_no_two_have_a_lock_whatever_else_happens(storm):
    figures = storm("exercise", 2)

    assert figures["sections"] > figures["counted"] > 1000
    assert figures["calls"] > 10_000
    assert figures["breaks"] > 20
    assert figures["kills"] > 0
    assert figures["forks"] > 20


def test_file_has_old_or_new_values_when_its_writer_is_killed(storm):
    figures = storm("kill", 2)

    assert figures["kills"] > 200
    assert figures["writes"] > 10 * figures["kills"]
    assert figures["in_a_write"] > figures["new_values"] > 10
    assert figures["locks_left"] > 10
    assert figures["created"] > 20
    assert figures["unfinished"] > 0
    assert figures["survivors"] > 10
