"""What a lock and unlock without a wait costs, in instructions, and what a slot keeps, in bytes.

Both are the same on a busy machine.
"""

import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

HERE = Path(__file__).parent
INSTRUCTIONS = 945
"""Of ClusterSlot's __enter__ and __exit__ and all below them, where the device does nothing; without those
that give up the GIL and take it again, twice, which are some 900, and not always as many. If a change takes
fewer, write that here."""
TOLERANCE = 1.05
ROUNDS = (500, 1500)

PAIRS = """
import sys, threading
import luna_ext

def use():
    for _ in range(int(sys.argv[2])):
        with slot:
            pass

with luna_ext.Library(sys.argv[1]) as luna:
    slot = luna.slot(1)
    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
"""

BYTES = 256
"""Of a slot that was locked once: the ClusterSlot, its lock, and its places in the tables."""

SLOTS = """
import gc, os, sys, threading
import luna_ext

def resident():
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")

def lock_each(slot_ids):
    for slot_id in slot_ids:
        with luna.slot(slot_id):
            pass

def measure():
    lock_each(range(1_000))  # what the first locks need beyond their slots
    before = resident()
    lock_each(range(1_000, 101_000))
    print((resident() - before) / 100_000)

with luna_ext.Library(sys.argv[1]) as luna:
    thread = threading.Thread(target=measure)
    thread.start()
    thread.join()
"""

pytestmark = [
    pytest.mark.limit(3),
    pytest.mark.skipif(
        (platform.machine(), sys.platform, sys.version_info[:2]) != ("x86_64", "linux", (3, 11))
        or bool(sysconfig.get_config_var("Py_DEBUG")),
        reason="the number is that of CPython 3.11 on x86-64 Linux",
    ),
]


@pytest.fixture(scope="module")
def idle_client(tmp_path_factory):
    library = tmp_path_factory.mktemp("idle_client") / "client.so"
    command = ["cc", "-O2", "-shared", "-fPIC", "-std=c11", "-Wall", "-Wextra", "-Werror"]
    command += [f"-I{HERE.parent / 'include'}", str(HERE / "c" / "idle_client.c")]
    subprocess.run([*command, "-o", str(library)], check=True)
    return library


def instructions(client, rounds, profile):
    """While so many pairs are made."""
    subprocess.run(
        [
            *("valgrind", "--tool=callgrind", "--compress-strings=no", "--compress-pos=no"),
            *(f"--callgrind-out-file={profile}", sys.executable, "-c", PAIRS, client, str(rounds)),
        ],
        capture_output=True,
        check=True,
    )
    here = module = function = ""
    times = 0
    total = 0
    for line in profile.read_text().splitlines():
        if line.startswith("ob="):
            here = module = line[3:]
        elif line.startswith("cob="):
            module = line[4:]
        elif line.startswith("cfn="):
            function = line[4:]
        elif line.startswith("calls="):
            times = int(line[6:].split()[0])
        elif times:
            # What the calls before took, with all that was called from there. Those that begin and open the
            # library are few, and do not always take as much.
            took = int(line.split()[1])
            if times < rounds:
                pass
            elif "/luna_ext/" not in here and "/luna_ext/_cluster." in module:
                total += took
            elif "/luna_ext/" in here and function in {"PyEval_SaveThread", "PyEval_RestoreThread"}:
                total -= took
            times, module = 0, here
    return total


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed")
def test_a_lock_and_unlock_takes_no_more_instructions_than_it_did(idle_client, tmp_path):
    few, many = (
        instructions(idle_client, rounds, tmp_path / f"{rounds}.profile") for rounds in ROUNDS
    )
    of_a_pair = (many - few) / (ROUNDS[1] - ROUNDS[0])
    print(f"{of_a_pair:.0f} instructions for a lock and unlock")
    assert 0.5 * INSTRUCTIONS < of_a_pair < TOLERANCE * INSTRUCTIONS


def test_a_slot_that_was_locked_once_keeps_few_bytes(idle_client):
    done = subprocess.run(
        [sys.executable, "-c", SLOTS, idle_client], capture_output=True, text=True, check=True
    )
    print(f"{float(done.stdout):.0f} bytes of a slot")
    assert 0.5 * BYTES < float(done.stdout) <= BYTES
