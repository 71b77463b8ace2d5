"""The state file: its mode, what is refused and left alone, and how large a cluster can be."""

import errno
import os
import stat
import subprocess
import sys

import pytest
from pkcs11_client import DEVICE_ERROR, OK
from support import ANOTHER_USER, GIVES_FILES_AWAY

from luna_ext.stub import STATE_VARIABLE, Cluster, library_path

VERSION = slice(8, 12)
"""Where the header has the version of the layout."""
INITIALISE = """
import ctypes, sys
print(ctypes.CDLL(sys.argv[1]).C_Initialize(None))
"""


def newer(content):
    return (
        content[:8]
        + (int.from_bytes(content[VERSION], sys.byteorder) + 1).to_bytes(4, sys.byteorder)
        + content[12:]
    )


def with_number(offset, number, size=4):
    """The header of state.h, with another number in the field that begins there."""
    changed = number.to_bytes(size, sys.byteorder)
    return lambda content: content[:offset] + changed + content[offset + size :]


# name: what is made of the content of a good file, and what is said of it.
BAD_FILES = {
    "empty": (lambda content: b"", "empty or not a regular file"),
    "shorter than a header": (lambda content: content[:100], "truncated"),
    "truncated": (lambda content: content[:-1], "truncated"),
    "longer": (lambda content: content + b"\0", "longer than its header says"),
    "foreign": (lambda content: b"# a note\n" * 100_000, "not a state file"),
    "zeroed": (lambda content: bytes(len(content)), "not a state file"),
    "newer": (newer, "another version"),
    "of another layout": (with_number(12, 1), "a state file of another layout"),
    "without keyrings": (with_number(32, 0), "the number of keyrings is out of range"),
    "of another size": (with_number(56, 1, 8), "its sizes do not add up"),
    "with too large slots": (with_number(48, 2**64 - 1, 8), "the slot IDs wrap around"),
    "without an end": (
        lambda content: content[:72] + b"x" * 72 + content[144:],
        "the cluster ID has no end",
    ),
}


@pytest.fixture
def bad_file(request, tmp_path):
    change, reason = BAD_FILES[request.param]
    path = tmp_path / "cluster"
    with Cluster(path):
        content = change(path.read_bytes())
    path.write_bytes(content)
    yield path, reason
    assert path.read_bytes() == content, "the file was overwritten"


def initialise(path, **environment):
    return subprocess.run(
        [sys.executable, "-c", INITIALISE, library_path()],
        env={**os.environ, STATE_VARIABLE: str(path), **environment},
        capture_output=True,
        text=True,
        timeout=45,
    )


@pytest.mark.parametrize("bad_file", BAD_FILES, indirect=True)
def test_bad_file_is_a_device_error_with_its_reason_on_demand(bad_file):
    path, reason = bad_file

    silent = initialise(path)
    traced = initialise(path, LUNA_STUB_TRACE="1")

    assert (silent.stdout, silent.stderr) == (f"{DEVICE_ERROR}\n", "")
    assert traced.stdout == f"{DEVICE_ERROR}\n"
    assert traced.stderr.count("\n") == 1
    assert f"C_Initialize: {path}: " in traced.stderr
    assert reason in traced.stderr


@pytest.mark.parametrize("bad_file", BAD_FILES, indirect=True)
def test_bad_file_is_no_cluster_to_steer(bad_file):
    path, _ = bad_file

    with pytest.raises(OSError, match="not a state file") as caught:
        Cluster(path)
    assert (caught.value.errno, caught.value.filename) == (errno.EBADMSG, str(path))


@pytest.mark.parametrize("kind", ["missing", "directory"])
def test_path_without_a_file_is_a_device_error_with_its_reason(tmp_path, kind):
    path = tmp_path / "cluster"
    if kind == "directory":
        path.mkdir()

    traced = initialise(path, LUNA_STUB_TRACE="1")

    assert traced.stdout == f"{DEVICE_ERROR}\n"
    assert f"C_Initialize: {path}: " in traced.stderr
    assert path.is_dir() == (kind == "directory")


@GIVES_FILES_AWAY
def test_file_of_another_user_is_refused(tmp_path):
    """Its owner could change it while it is in use."""
    path = tmp_path / "cluster"
    with Cluster(path):
        os.chown(path, ANOTHER_USER, ANOTHER_USER)

    traced = initialise(path, LUNA_STUB_TRACE="1")

    assert traced.stdout == f"{DEVICE_ERROR}\n"
    assert f"C_Initialize: {path}: belongs to another user" in traced.stderr
    with pytest.raises(PermissionError, match="make one of your own") as caught:
        Cluster(path)
    assert caught.value.filename == str(path)


def test_unset_variable_is_a_device_error_with_its_reason():
    program = [sys.executable, "-c", INITIALISE, library_path()]

    traced = subprocess.run(
        program,
        env={**os.environ, "LUNA_STUB_TRACE": "1"},
        capture_output=True,
        text=True,
        timeout=45,
    )

    assert traced.stdout == f"{DEVICE_ERROR}\n"
    assert "LUNA_STUB_STATE: is not set" in traced.stderr


def test_forbidden_stand_in_does_not_initialise_for_any_client(tmp_path):
    path = tmp_path / "cluster"
    with Cluster(path):
        pass

    allowed = initialise(path, LUNA_EXT_FORBID_STUB="0")
    forbidden = initialise(path, LUNA_EXT_FORBID_STUB="1", LUNA_STUB_TRACE="1")

    assert allowed.stdout == f"{OK}\n"
    assert forbidden.stdout == f"{DEVICE_ERROR}\n"
    assert "LUNA_EXT_FORBID_STUB: forbids the stand-in" in forbidden.stderr


def test_file_is_for_its_owner_alone_whatever_the_umask(tmp_path):
    old = os.umask(0)
    try:
        with Cluster(tmp_path / "cluster"):
            pass
    finally:
        os.umask(old)

    assert stat.S_IMODE((tmp_path / "cluster").stat().st_mode) == 0o600


def test_making_a_cluster_leaves_nothing_else_behind(tmp_path):
    with Cluster(tmp_path / "cluster"):
        assert os.listdir(tmp_path) == ["cluster"]


def test_cluster_that_is_there_stays_as_it_is(tmp_path):
    with Cluster(tmp_path / "cluster", cluster_id="first", keyrings=3, label="a"):
        content = (tmp_path / "cluster").read_bytes()
    with Cluster(tmp_path / "cluster", cluster_id="second", keyrings=5, label="b") as cluster:
        assert cluster.cluster_id == "first"
        assert [token.label for token in cluster.tokens()] == ["a1", "a2", "a3"]
        assert (tmp_path / "cluster").read_bytes() == content


def test_temporary_cluster_goes_with_its_block():
    with Cluster() as cluster:
        assert os.path.isfile(cluster.path)
    assert not os.path.exists(os.path.dirname(cluster.path))


def test_cluster_of_one_path_is_shared(module, cluster):
    with Cluster(cluster.path) as same:
        assert module.CA_LockClusteredSlot(7) == OK
        assert same.tokens() == cluster.tokens()
        assert same.tokens()[6].owner == os.getpid()
    assert os.path.exists(cluster.path), "only the one that made the directory removes it"


@pytest.mark.luna_cluster(keyrings=3500, label="payments-")
def test_largest_cluster_has_3500_keyrings(module, cluster):
    tokens = cluster.tokens()

    assert len(tokens) == 3500
    assert [token.label for token in tokens[:2]] == ["payments-1", "payments-2"]
    assert module.CA_LockClusteredSlot(3500) == OK
    assert module.get_slot_id("payments-3500", 1) == (OK, 1, [3500, 0xABCDEF])
    assert cluster.tokens()[-1].owner == os.getpid()
