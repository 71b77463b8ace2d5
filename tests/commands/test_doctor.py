"""doctor: each thing that it looks at, well and not well."""

import os
from pathlib import Path

import pytest

from luna_ext.info import CLUSTER_FUNCTIONS


@pytest.fixture
def client(old_client, monkeypatch):
    """Let the environment name a client library that is not the stand-in; its path."""

    def choose(*functions):
        library = old_client(*functions)
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
    assert "Install the Luna client" in problems["client library"]


def test_what_the_configuration_says(command, old_client, monkeypatch, tmp_path):
    library = old_client(*CLUSTER_FUNCTIONS)
    monkeypatch.delenv("LUNA_EXT_LIBRARY")
    monkeypatch.setenv("ChrystokiConfigurationPath", str(tmp_path))
    (tmp_path / "Chrystoki.conf").write_text(f"Chrystoki2 = {{\n LibUNIX64 = {library};\n}}\n")
    done = command("doctor")
    well, _, _ = findings(done)
    assert done.returncode == 0
    assert well["configuration"] == f"{tmp_path / 'Chrystoki.conf'}: LibUNIX64 = {library}"
    assert well["client library"] == f"{library}, named by {well['configuration']}"


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


def test_a_child_that_cannot_use_it(command, client, cluster):
    client(*CLUSTER_FUNCTIONS)
    # Its C_Initialize is the second one.
    cluster.fault("C_Initialize", 0x30, every=2)
    done = command("doctor")
    _, problems, advice = findings(done)
    assert done.returncode == 1
    assert problems == {"forking": "a forked child that uses the client ends with 1"}
    assert "spawn" in advice[0]


def test_it_leaves_nothing_behind(command, client, cluster):
    client(*CLUSTER_FUNCTIONS)
    before = set(os.listdir(Path(cluster.path).parent))
    assert command("doctor").returncode == 0
    called = [call.function for call in cluster.log() if call.rv == 0]
    assert "CA_LockClusteredSlot" not in called
    assert set(os.listdir(Path(cluster.path).parent)) == before
