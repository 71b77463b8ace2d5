"""luna_ext.stub.Cluster: what it refuses, before anything has changed, and how it says so."""

import os
import subprocess
import sys
import tempfile

import pytest

import luna_ext
from luna_ext.stub import STATE_VARIABLE, Cluster

REFUSED = {
    "unknown function": (lambda c: c.fault("CA_Lock", 0x30), "'CA_Lock'"),
    "function with a NUL": (lambda c: c.fault("C_Login\0", 0x30), "NUL"),
    "negative code": (lambda c: c.fault("C_Login", -1), "rv is a whole number"),
    "too large code": (lambda c: c.fault("C_Login", 2**64), "rv is a whole number"),
    "too few times": (lambda c: c.fault("C_Login", 0x30, times=-2), "times is a whole number"),
    "too many times": (lambda c: c.fault("C_Login", 0x30, times=2**32), "times is a whole"),
    "every 0th": (lambda c: c.fault("C_Login", 0x30, every=0), "every is a whole number"),
    "probability below 0": (lambda c: c.fault("C_Login", 0x30, probability=-0.1), "-0.1"),
    "probability above 1": (lambda c: c.fault("C_Login", 0x30, probability=1.1), "1.1"),
    "no probability": (lambda c: c.fault("C_Login", 0x30, probability=float("nan")), "nan"),
    "negative seed": (lambda c: c.fault("C_Login", 0x30, seed=-1), "seed is a whole number"),
    "latency of an unknown function": (lambda c: c.latency(1, "C_Nothing"), "'C_Nothing'"),
    "negative latency": (lambda c: c.latency(-1), "seconds is a number from 0"),
    "endless latency": (lambda c: c.latency(float("inf")), "seconds is a number from 0"),
    "latency that shrinks": (lambda c: c.latency(2, up_to=1), "up_to is not less"),
    "no such process": (lambda c: c.disconnect(-1), "pid is a whole number"),
    "unknown switch": (lambda c: c.switch("contest", "wait"), "'contest'"),
    "unknown value": (lambda c: c.switch("contention", "granted"), "'granted'"),
}


@pytest.mark.parametrize(("call", "reason"), REFUSED.values(), ids=REFUSED)
def test_bad_argument_is_refused_and_named(cluster, call, reason):
    with open(cluster.path, "rb") as file:
        before = file.read()

    with pytest.raises(ValueError, match=reason):
        call(cluster)

    with open(cluster.path, "rb") as file:
        assert file.read() == before


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda c: c.fault(b"C_Login", 0x30), "function"),
        (lambda c: c.fault("C_Login", "CKR_DEVICE_ERROR"), "rv"),
        (lambda c: c.fault("C_Login", 0x30, every=1.5), "every"),
        (lambda c: c.fault("C_Login", 0x30, probability="often"), "probability"),
        (lambda c: c.latency("long"), "seconds"),
        (lambda c: c.switch("log", True), "value"),
        (lambda c: c.disconnect("1"), "pid"),
    ],
)
def test_argument_of_a_wrong_type_is_refused_and_named(cluster, call, name):
    with pytest.raises(TypeError, match=f"^{name} is a"):
        call(cluster)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"keyrings": 0}, "keyrings is a whole number from 1 to 3500"),
        ({"keyrings": 3501}, "keyrings is a whole number from 1 to 3500"),
        ({"keyrings": 2**32 + 1}, "keyrings"),
        ({"cluster_id": ""}, "cluster_id has 1 to 64 bytes"),
        ({"cluster_id": "x" * 65}, "cluster_id has 1 to 64 bytes"),
        ({"cluster_id": "a\0b"}, "NUL"),
        ({"label": "x" * 32}, "label with its index 32"),
        ({"first_slot": -1}, "first_slot"),
        ({"first_slot": 2**64 - 1}, "slot ID"),
    ],
)
def test_impossible_cluster_is_refused_and_not_made(tmp_path, options, reason):
    with pytest.raises(ValueError, match=reason):
        Cluster(tmp_path / "cluster", **options)

    assert list(tmp_path.iterdir()) == []


def test_cluster_id_and_labels_are_utf_8(tmp_path):
    with Cluster(tmp_path / "cluster", cluster_id="Zürich", label="Schlüssel-") as cluster:
        assert cluster.cluster_id == "Zürich"
        assert cluster.tokens()[0].label == "Schlüssel-1"


def test_disconnection_of_a_process_that_is_no_client_is_an_error(cluster):
    with pytest.raises(ProcessLookupError):
        cluster.disconnect(1)


def test_cluster_whose_file_has_gone_says_so(tmp_path):
    cluster = Cluster(tmp_path / "cluster")
    (tmp_path / "cluster").unlink()

    with pytest.raises(FileNotFoundError, match="cluster"):
        cluster.tokens()


@pytest.mark.parametrize("path", ["", "a\0b", b""])
def test_path_that_is_none_is_refused(path):
    with pytest.raises(ValueError, match="path of a file"):
        Cluster(path)


def test_path_of_bytes_is_a_path(tmp_path):
    path = os.fsencode(tmp_path / "cluster")

    with Cluster(path) as cluster, cluster.library() as luna:
        assert cluster.path == os.fsdecode(path)
        assert len(luna.slots()) == 8


def test_failure_leaves_no_temporary_directory(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    with pytest.raises(ValueError, match="keyrings"):
        Cluster(keyrings=0)
    assert list(tmp_path.iterdir()) == []


def test_library_on_another_cluster_is_refused_while_one_is_open(cluster, luna):
    with Cluster(keyrings=2) as other:
        with pytest.raises(RuntimeError, match="already one of another cluster"):
            other.library()
        assert len(luna.slots()) == 8
        luna.close()
        with other.library() as luna_there:
            assert len(luna_there.slots()) == 2


def test_forked_child_leaves_the_cluster_to_its_parent(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with Cluster() as cluster:
        pid = os.fork()
        if pid == 0:
            cluster.destroy()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        assert len(cluster.tokens()) == 8
    assert list(tmp_path.iterdir()) == []


NO_BLOCK = """
import os, sys
from luna_ext.stub import Cluster

luna = Cluster().library()  # the Cluster has no name, its file is in use
luna.slot(1).acquire()
if (child := os.fork()) == 0:
    sys.exit()
print(os.waitpid(child, 0)[1], os.path.exists(os.environ["LUNA_STUB_STATE"]))
"""


def test_exit_removes_a_cluster_without_a_block(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", NO_BLOCK],
        capture_output=True,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert (done.returncode, done.stdout) == (0, "0 True\n")
    assert "slot 1 was still locked" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("before", [None, "of the shell"])
def test_state_variable_is_put_back_in_whatever_order_clusters_end(monkeypatch, before):
    if before is not None:
        monkeypatch.setenv(STATE_VARIABLE, before)
    first, second, third = (Cluster(keyrings=1) for _ in range(3))
    for cluster in (first, second, third, third):
        cluster.library().close()
    assert os.environ[STATE_VARIABLE] == third.path
    second.destroy()
    assert os.environ[STATE_VARIABLE] == third.path
    third.destroy()
    assert os.environ[STATE_VARIABLE] == first.path
    first.destroy()
    first.destroy()
    assert os.environ.get(STATE_VARIABLE) == before


def test_state_variable_that_the_program_has_set_since_stays(monkeypatch):
    with Cluster(keyrings=1) as cluster:
        cluster.library().close()
        monkeypatch.setenv(STATE_VARIABLE, "of the program")
    assert os.environ[STATE_VARIABLE] == "of the program"


def test_forbidden_stand_in_is_not_steered_either(monkeypatch):
    monkeypatch.setenv("LUNA_EXT_FORBID_STUB", "1")

    with pytest.raises(luna_ext.LibraryLoadError, match="LUNA_EXT_FORBID_STUB"):
        Cluster()


def test_repr_names_cluster_and_file(cluster):
    assert repr(cluster) == f"<luna_ext.stub.Cluster 'cluster-1' at {cluster.path!r}>"
