"""doctor: each thing that it looks at, well and not well."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import LOCK

from luna_ext.info import CLUSTER_FUNCTIONS


@pytest.fixture
def client(old_client, monkeypatch):
    """Let the environment name a client library that is not the stand-in; its path."""

    def choose(*functions, **options):
        library = old_client(*functions, **options)
        monkeypatch.setenv("LUNA_EXT_LIBRARY", str(library))
        return library

    return choose


def findings(done):
    """{what: what it says} of what is well, the same of the problems, and what is advised."""
    found = {"ok": {}, "problem": {}}
    advice = []
    for line in done.stdout.splitlines():
        if line.startswith("    -> "):
            advice.append(line.removeprefix("    -> "))
        elif line.startswith(("ok: ", "problem: ")):
            mark, what, says = line.split(": ", 2)
            found[mark][what] = says
    assert len(advice) == len(found["problem"])
    return found["ok"], found["problem"], advice


def test_all_is_well(command, client):
    library = client(*CLUSTER_FUNCTIONS)
    done = command("doctor")
    well, problems, _ = findings(done)
    assert (done.returncode, problems, done.stderr) == (0, {}, "")
    assert (
        well["client library"] == f"{library}, named by the environment variable LUNA_EXT_LIBRARY"
    )
    assert well["it says"].endswith("1.00, PKCS #11 2.40")
    assert [well[name] for name in CLUSTER_FUNCTIONS] == ["there"] * 4
    assert well["slots"] == "8 with a token"
    assert "4 of them can call it at a time" in well["threads"]
    assert "initialises the client anew" in well["forking"]


def test_the_stand_in_is_a_problem(command):
    done = command("doctor")
    _, problems, advice = findings(done)
    assert done.returncode == 1
    assert list(problems) == ["it says"]
    assert "not an HSM's client" in advice[0]


def test_a_function_that_is_missing(command, client):
    client("CA_GetSlotId", "CA_LockClusteredSlot")
    done = command("doctor")
    _, problems, advice = findings(done)
    assert done.returncode == 1
    assert problems == {"CA_GetUnassignedSlot": "missing", "CA_UnlockClusteredSlot": "missing"}
    assert advice == ["install Luna client 10.6 or newer"] * 2


def test_no_client_library(command, monkeypatch):
    monkeypatch.delenv("LUNA_EXT_LIBRARY")
    monkeypatch.setenv("ChrystokiConfigurationPath", "/nonexistent")
    done = command("doctor")
    well, problems, _ = findings(done)
    assert done.returncode == 1
    assert well["configuration"].startswith("/nonexistent/Chrystoki.conf: No such file")
    assert "clusters" not in well
    assert "Install the Luna client" in problems["client library"]


def test_what_the_configuration_says(command, old_client, monkeypatch, tmp_path):
    library = old_client(*CLUSTER_FUNCTIONS)
    monkeypatch.delenv("LUNA_EXT_LIBRARY")
    monkeypatch.setenv("ChrystokiConfigurationPath", str(tmp_path))
    (tmp_path / "Chrystoki.conf").write_text(f"Chrystoki2 = {{\n LibUNIX64 = {library};\n}}\n")
    done = command("doctor")
    well, _, _ = findings(done)
    assert well["clusters"] == "the configuration names none"
    assert done.returncode == 0
    assert well["configuration"] == f"{tmp_path / 'Chrystoki.conf'}: LibUNIX64 = {library}"
    assert well["client library"] == f"{library}, named by {well['configuration']}"


def test_the_clusters_of_the_configuration(command, client, monkeypatch, tmp_path):
    client(*CLUSTER_FUNCTIONS)
    monkeypatch.setenv("ChrystokiConfigurationPath", str(tmp_path))
    (tmp_path / "Chrystoki.conf").write_text(
        "LunaSA Client = {\n LNHServer00 = 192.0.2.10;\n #LNHServer01 = 192.0.2.11;\n"
        " LNHServer09 = hsm\x1b[1m.example;\n}\n"
    )
    well, _, _ = findings(command("doctor"))
    assert well["clusters"] == "LNHServer00 = 192.0.2.10, LNHServer09 = hsm\\x1b[1m.example"


def test_an_application_id_that_the_configuration_sets(command, client, monkeypatch, tmp_path):
    client(*CLUSTER_FUNCTIONS)
    monkeypatch.setenv("ChrystokiConfigurationPath", str(tmp_path))
    (tmp_path / "Chrystoki.conf").write_text("Misc = {\n  AppIdMajor = 1;\n  AppIdMinor = 2;\n}\n")
    done = command("doctor")
    _, problems, advice = findings(done)
    assert (done.returncode, done.stderr) == (1, "")
    assert list(problems) == ["application ID"]
    assert "AppIdMajor = 1, AppIdMinor = 2: for the device, all" in problems["application ID"]
    assert "luna-ext probe --slot N" in advice[0]
    (tmp_path / "Chrystoki.conf").write_text("Misc = {\n  #AppIdMajor = 1;\n}\n")
    done = command("doctor")
    well, _, _ = findings(done)
    assert done.returncode == 0
    assert well["application ID"] == "the configuration sets none; each process has one of its own"


def test_a_file_that_is_no_library(command, tmp_path):
    file = tmp_path / "none.so"
    file.write_text("not a library")
    done = command("--library", file, "doctor")
    _, problems, advice = findings(done)
    assert done.returncode == 1
    assert "cannot be loaded" in problems["client library"]
    assert advice == ["put that right, and run `luna-ext doctor` again"]


def test_a_device_that_does_not_answer(command, client, cluster):
    client(*CLUSTER_FUNCTIONS)
    cluster.fault("C_Initialize", 0x30)
    done = command("doctor")
    _, problems, _ = findings(done)
    assert done.returncode == 1
    assert problems["client library"].startswith("C_Initialize: CKR_DEVICE_ERROR")


def test_threads_that_get_errors(command, client, cluster):
    client(*CLUSTER_FUNCTIONS)
    # The first two C_GetSlotList are those of one thread alone.
    cluster.fault("C_GetSlotList", 0xA, every=3, times=1)
    done = command("doctor")
    _, problems, advice = findings(done)
    assert done.returncode == 1
    assert "CKR_CANT_LOCK" in problems["threads"]
    assert "use processes" in advice[0]


AFTER_THE_FORK = (
    "let the parent open no Library before it forks, but each process one after the fork; or start "
    "processes without a fork (multiprocessing's spawn)"
)


def test_a_child_that_cannot_use_it(command, client, cluster):
    client(*CLUSTER_FUNCTIONS)
    # The others are those of this command and of the child's parent.
    cluster.fault("C_Initialize", 0x30, every=3)
    done = command("doctor")
    _, problems, advice = findings(done)
    assert done.returncode == 1
    assert list(problems) == ["forking"]
    assert problems["forking"].startswith(
        "a forked child that uses the client gets: C_Initialize: "
    )
    assert "CKR_DEVICE_ERROR" in problems["forking"]
    assert advice == [AFTER_THE_FORK]


# What a client library does in a child, and what doctor, which goes on, says of it.
NO_NOTICE = (
    "C_Initialize answers CKR_CRYPTOKI_ALREADY_INITIALIZED in a forked child: the client does not "
    "notice forks, and the child would act as its parent"
)
FORKED = {
    "NOTICES_NOTHING": NO_NOTICE,
    "KILLS": NO_NOTICE,
    "CRASHES": "a forked child that uses the client ends with -11",
    "HANGS": "a forked child that uses the client does not answer for 10 s",
}


@pytest.mark.parametrize(("in_child", "says"), FORKED.items(), ids=FORKED)
def test_a_client_library_that_cannot_be_used_in_a_child(command, client, cluster, in_child, says):
    client(*CLUSTER_FUNCTIONS, in_child=in_child)
    done = command("doctor")
    well, problems, advice = findings(done)
    assert (done.returncode, done.stderr) == (1, "")
    assert problems == {"forking": says}
    assert advice == [AFTER_THE_FORK]
    assert "4 of them can call it at a time" in well["threads"]
    # No process is left that uses the library.
    for pid in {call.pid for call in cluster.log()}:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_process_that_cannot_open_the_library_beside_doctor(command, client, cluster):
    client(*CLUSTER_FUNCTIONS)
    cluster.fault("C_Initialize", 0x30, every=2)
    done = command("doctor")
    _, problems, advice = findings(done)
    assert done.returncode == 1
    assert problems["forking"].startswith("another process cannot open the client: C_Initialize: ")
    assert advice == ["put that right, and run `luna-ext doctor` again"]


WORK = """
import multiprocessing, os, sys
import luna_ext

def work():
    with luna_ext.Library() as luna, luna.slot(1) as slot:
        slot.ensure_held()

if __name__ == "__main__":
    # Each process opens one after the fork.
    for _ in range(2):
        if os.fork() == 0:
            work()
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
    # Without a fork.
    with luna_ext.Library() as luna, luna.slot(2) as slot:
        process = multiprocessing.get_context("spawn").Process(target=work)
        process.start()
        process.join()
        assert process.exitcode == 0
        slot.ensure_held()
"""


def test_what_is_advised_on_forks_helps(client, cluster, tmp_path):
    client(*CLUSTER_FUNCTIONS, in_child="NOTICES_NOTHING")
    program = tmp_path / "work.py"
    program.write_text(WORK)
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [call.rv for call in cluster.log() if call.function == LOCK] == [0] * 4


def test_it_leaves_nothing_behind(command, client, cluster):
    client(*CLUSTER_FUNCTIONS)
    before = set(os.listdir(Path(cluster.path).parent))
    assert command("doctor").returncode == 0
    called = [call.function for call in cluster.log() if call.rv == 0]
    assert "CA_LockClusteredSlot" not in called
    assert set(os.listdir(Path(cluster.path).parent)) == before
