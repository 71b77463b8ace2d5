"""The stand-in in moments that are too short for a test in Python: tests/c/races.c."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STRICT = ["-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror"]
PATIENCE = 40


@pytest.fixture(scope="session")
def races(tmp_path_factory):
    """How often one of the races went wrong."""
    directory = tmp_path_factory.mktemp("races")
    sources = [ROOT / "tests" / "c" / "races.c"]
    sources += [each for each in (ROOT / "stub_lib").glob("*.c") if "_windows" not in each.stem]
    command = ["cc", *STRICT, "-O2", "-pthread", "-D_GNU_SOURCE", "-Wl,--wrap=platform_pid"]
    command += [f"-I{ROOT / 'include'}", f"-I{ROOT / 'stub_lib'}", *map(str, sources)]
    subprocess.run([*command, "-o", str(directory / "races")], check=True)

    def run(way):
        finished = subprocess.run(
            [directory / "races", way, directory / way],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert (finished.returncode, finished.stderr) == (0, "")
        return int(finished.stdout)

    return run


def test_fault_that_is_replaced_while_calls_run_strikes_no_more_often_than_it_may(races):
    assert races("rules") == 0


def test_child_of_a_fork_among_refused_calls_can_initialise_and_finalise(races):
    assert races("forks") == 0


def test_finalisation_ends_while_others_go_on_calling(races):
    assert races("finalise") == 0


def test_disconnection_of_a_dead_process_does_not_strike_its_successor(races):
    assert races("disconnect") == 0
