"""What is said where the device may take several processes for one application, or the lock for another."""

import os
import subprocess
import sys

import pytest

from luna_ext import applications, discovery
from luna_ext.info import CLUSTER_FUNCTIONS
from luna_ext.stub import STATE_VARIABLE, library_path

IDS = "Misc = {\n  AppIdMajor = 1;\n  AppIdMinor = 40;\n}\n"
# After the preamble: opens a client library twice, and prints what that logs.
OPEN = """
    import logging, warnings
    warnings.simplefilter("ignore")
    class Printed(logging.Handler):
        def emit(self, record):
            print(record.levelname, record.getMessage(), flush=True)
    logging.getLogger("luna_ext").addHandler(Printed())
    luna.close()
    for _ in range(2):
        with luna_ext.Library({path!r}) as luna, luna.slot(3) as slot:
            slot.ensure_held()
        if {fork}:
            child = os.fork()
            if child == 0:
                luna_ext.Library({path!r}).close()
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


@pytest.fixture
def configuration(monkeypatch, tmp_path):
    """Where Chrystoki.conf is."""
    monkeypatch.setenv("ChrystokiConfigurationPath", str(tmp_path))
    return tmp_path / "Chrystoki.conf"


@pytest.fixture
def client(old_client):
    return old_client(*CLUSTER_FUNCTIONS)


@pytest.fixture
def opening(succeed):
    """The lines that are logged when a client library is opened twice."""

    def lines(path, *, fork=False):
        said = " ".join(succeed(OPEN.format(path=str(path), fork=fork)))
        return [line for line in said.split("WARNING ") if line]

    return lines


# ---- the configuration ----

ENTRIES = {
    IDS: {"AppIdMajor": "1", "AppIdMinor": "40"},
    "Misc = { AppId = 0x1; }\n": {"AppId": "0x1"},
    "Misc = {\n  #AppIdMajor = 1;\n  AppIdMinor = ;\n}\nChrystoki2 = { AppId = 1; }\n": {},
    "": {},
}


@pytest.mark.parametrize(("text", "entries"), ENTRIES.items())
def test_the_entries_that_set_an_application_id(configuration, text, entries):
    configuration.write_text(text)
    assert discovery.Configuration().application_id() == entries
    assert applications.configured() == (str(configuration), entries)


def test_an_application_id_that_is_set_is_told_once(opening, client, configuration):
    configuration.write_text(IDS)
    (said,) = opening(client, fork=True)
    assert said.startswith(
        f"{configuration}: AppIdMajor = 1, AppIdMinor = 40: for the device, all "
    )
    assert "a lock that one of them holds may be granted to another" in said
    assert "luna-ext probe --slot N" in said


def test_nothing_is_told_where_none_is_set(opening, client, configuration):
    configuration.write_text("Misc = {\n  ToolsDir = /usr/safenet/lunaclient/bin;\n}\n")
    assert opening(client) == []


def test_the_stand_in_has_no_such_configuration(opening, configuration):
    configuration.write_text(IDS)
    (said,) = opening(library_path())
    assert "is the stand-in" in said


@pytest.mark.parametrize("what", ["missing", "a directory", "a pipe", "a loop", "noise"])
def test_a_configuration_that_cannot_be_read_is_no_obstacle(opening, client, configuration, what):
    if what == "a directory":
        configuration.mkdir()
    elif what == "a pipe":
        os.mkfifo(configuration)
    elif what == "a loop":
        configuration.symlink_to(configuration)
    elif what == "noise":
        configuration.write_bytes(bytes(range(256)) * 100)
    assert opening(client) == []


def test_a_pipe_is_no_configuration(configuration):
    os.mkfifo(configuration)
    with pytest.raises(discovery.LibraryLoadError, match=r"Chrystoki\.conf: is not a file"):
        discovery.Configuration()


# ---- the process ID ----

FIRST_PROCESS = """
import logging, os, sys
import luna_ext
logging.basicConfig(format="%(levelname)s %(message)s", stream=sys.stdout)
for _ in range(2):
    with luna_ext.Library(sys.argv[1]) as luna, luna.slot(3) as slot:
        slot.ensure_held()
print("process", os.getpid())
"""
UNSHARE = ["unshare", "--pid", "--fork", "--kill-child"]


def separate_processes():
    """Whether a process can have the process ID 1 here, as in a container."""
    try:
        done = subprocess.run([*UNSHARE, "true"], capture_output=True, check=False)
    except OSError:
        return False
    return done.returncode == 0


@pytest.mark.parametrize("ids", ["", IDS], ids=["no application ID", "an application ID"])
def test_the_first_process_of_a_container_is_told_once(
    cluster, client, configuration, monkeypatch, ids
):
    if not separate_processes():
        pytest.skip("unshare --pid is not permitted here")
    configuration.write_text(ids)
    monkeypatch.setenv(STATE_VARIABLE, cluster.path)
    command = [*UNSHARE, sys.executable, "-c", FIRST_PROCESS, str(client)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=45)
    assert (done.returncode, done.stderr) == (0, "")
    said, process = done.stdout.splitlines()
    assert process == "process 1"
    if ids:
        assert said.startswith(f"WARNING {configuration}: AppIdMajor = 1")
    else:
        assert said.startswith(
            "WARNING this process has the process ID 1, as one of each container"
        )
        assert "AppIdMajor and AppIdMinor in the section Misc" in said


# ---- old clients ----

LOCKS = ["CA_LockClusteredSlot", "CA_UnlockClusteredSlot"]


def test_lock_functions_alone_are_told_once(opening, old_client):
    library = old_client(*LOCKS)
    (said,) = opening(library, fork=True)
    assert said.startswith(f"{str(library)!r} exports CA_LockClusteredSlot and CA_UnlockClustered")
    assert "Install Luna client 10.6 or newer" in said


@pytest.mark.parametrize("more", ["CA_GetSlotId", "CA_GetUnassignedSlot"])
def test_newer_clients_are_not_told_of(opening, old_client, more):
    assert opening(old_client(*LOCKS, more)) == []
