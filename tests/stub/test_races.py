"""The stand-in in moments that are too short for a test in Python: tests/c/races.c."""

import subprocess

import pytest

PATIENCE = 40


@pytest.fixture(scope="session")
def races(stand_in_program):
    """How often one of the races went wrong."""
    program = stand_in_program("races", "races.c", "-Wl,--wrap=platform_pid")

    def run(way):
        finished = subprocess.run(
            [program, way, program.with_name(way)],
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
