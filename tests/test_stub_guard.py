"""No application uses the stand-in as an HSM by accident."""

import ctypes
import os
import shutil
import subprocess
import sys
import types

import pytest
from support import ANOTHER_USER, DEVICE_ERROR, GIVES_FILES_AWAY, entry_of, finalisations

import luna_ext
from luna_ext.info import CLUSTER_FUNCTIONS
from luna_ext.stub import library_path

OPEN_BY_PATH = """
import sys, warnings
import luna_ext
from luna_ext.stub import Cluster

def by_path():
    luna_ext.Library(sys.argv[1]).close()  # the line that the warning names

by_path()
by_path()
cluster = Cluster()
cluster.library().close()
by_path()
cluster.destroy()
"""
OPEN_THROUGH_THE_CLUSTER = """
from luna_ext.stub import Cluster

with Cluster() as cluster, cluster.library() as luna:
    print(luna.is_stub)
"""

WARNING_AS_ERROR = """
import sys, warnings
import luna_ext

warnings.simplefilter("error")
for _ in range(2):
    try:
        luna_ext.Library(sys.argv[1])
    except RuntimeWarning:
        print("refused")
"""


def run(program, *arguments):
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=45,
    )


def refusal(open_it):
    with pytest.raises(luna_ext.LibraryLoadError) as caught:
        open_it()
    return str(caught.value)


# ---- the warning ----


def test_stand_in_that_is_loaded_by_its_path_warns_once_per_process(cluster):
    finished = run(OPEN_BY_PATH, library_path())

    assert finished.returncode == 0
    assert finished.stderr.count("RuntimeWarning") == 1
    assert f"<string>:7: RuntimeWarning: {library_path()!r} is the stand-in" in finished.stderr
    assert "LUNA_EXT_FORBID_STUB=1" in finished.stderr
    # Python shows warnings to developers; a service has its log.
    record = (
        f"{library_path()!r} is the stand-in, not an HSM's client library: its locks protect nothing "
        "outside of this machine"
    )
    assert finished.stderr.splitlines().count(record) == 1


def test_stand_in_warns_under_another_name_too(cluster, tmp_path):
    link = tmp_path / "libCryptoki2_64.so"
    link.symlink_to(library_path())

    finished = run(OPEN_BY_PATH, str(link))

    assert finished.returncode == 0
    assert finished.stderr.count(f"RuntimeWarning: {str(link)!r} is the stand-in") == 1


def test_stand_in_that_is_opened_through_a_cluster_does_not_warn():
    finished = run(OPEN_THROUGH_THE_CLUSTER)

    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "True\n", "")


def test_stand_in_that_is_opened_through_a_cluster_is_a_log_record(cluster, caplog):
    with caplog.at_level("INFO", "luna_ext"), cluster.library():
        pass
    told = [
        record for record in caplog.records if "the stand-in, not an HSM" in record.getMessage()
    ]
    assert [record.levelname for record in told] == ["INFO"]
    assert cluster.path in told[0].getMessage()


def test_warning_that_is_an_error_opens_nothing(cluster):
    finished = run(WARNING_AS_ERROR, library_path())

    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.splitlines() == ["refused", "refused"]
    assert cluster.log() == []


# ---- the prohibition ----


@pytest.mark.parametrize("value", ["1", "true", "yes"])
def test_stand_in_is_refused_where_it_is_forbidden(cluster, monkeypatch, value):
    monkeypatch.setenv("LUNA_EXT_FORBID_STUB", value)

    for open_it in (lambda: luna_ext.Library(library_path()), cluster.library):
        message = refusal(open_it)
        assert library_path() in message
        assert "stand-in" in message
        assert "LUNA_EXT_FORBID_STUB" in message
    assert cluster.log() == []


def test_stand_in_is_refused_under_another_name_where_it_is_forbidden(
    cluster, tmp_path, monkeypatch
):
    link = tmp_path / "libCryptoki2_64.so"
    link.symlink_to(library_path())
    monkeypatch.setenv("LUNA_EXT_FORBID_STUB", "1")

    assert "stand-in" in refusal(lambda: luna_ext.Library(link))


def test_forbidding_does_not_disturb_an_open_library(luna, monkeypatch):
    monkeypatch.setenv("LUNA_EXT_FORBID_STUB", "1")

    assert "stand-in" in refusal(lambda: luna_ext.Library(luna.path))
    with luna.slot(1):
        assert luna.slot(1).locked()


# Runs a program on a machine of its own kind: with that file in /etc, owned by the user with this ID.
WITH_FORBID_FILE = """
mount -t tmpfs none "$1"
mkdir "$1/upper" "$1/work"
mount -t overlay none -o "lowerdir=/etc,upperdir=$1/upper,workdir=$1/work" /etc
mkdir -p /etc/luna_ext
touch /etc/luna_ext/forbid-stub
chown "$2" /etc/luna_ext/forbid-stub
shift 2
exec "$@"
"""
OPEN_EACH = """
import sys
import luna_ext

for path in sys.argv[1:]:
    try:
        luna_ext.Library(path).close()
        print("opened")
    except luna_ext.LunaError as error:
        print(type(error).__name__, error)
"""


@pytest.fixture
def open_each(tmp_path, monkeypatch):
    """Open libraries where the file is, and the environment allows the stand-in."""
    monkeypatch.setenv("LUNA_EXT_FORBID_STUB", "0")
    alone = ["unshare", "--mount", "--propagation", "private"]
    alone += [] if os.geteuid() == 0 else ["--map-root-user"]
    alone += ["sh", "-ec", WITH_FORBID_FILE, "-", str(tmp_path)]
    tried = subprocess.run([*alone, "0", "true"], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        pytest.skip(f"no other /etc for a process: {tried.stderr}")

    def run(owner, *paths):
        command = [*alone, str(owner), sys.executable, "-W", "ignore", "-c", OPEN_EACH]
        command += map(str, paths)
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    return run


def test_roots_file_forbids_the_stand_in_its_copies_and_what_wraps_it(
    cluster, open_each, old_client, tmp_path_factory
):
    copy = tmp_path_factory.mktemp("copy") / "libCryptoki2_64.so"
    shutil.copy(library_path(), copy)
    # It does not say what it wraps.
    wrapper = old_client(*CLUSTER_FUNCTIONS)
    original, copied, wrapped = open_each(0, library_path(), copy, wrapper).splitlines()
    for line in (original, copied):
        assert line.startswith("LibraryLoadError")
        assert "/etc/luna_ext/forbid-stub forbids it" in line
    assert wrapped.startswith("DeviceError C_Initialize: CKR_DEVICE_ERROR")
    assert cluster.log() == []


def test_a_wrapper_that_tells_whom_it_wraps_is_closed_where_the_warning_is_an_error(
    cluster, old_client, monkeypatch
):
    """Its maker's name is asked for when it is initialised, and again where that was no answer."""
    wrapper = str(old_client(*CLUSTER_FUNCTIONS, firmware="10,11,12"))
    cluster.fault("C_GetInfo", DEVICE_ERROR, times=1)
    luna_ext.Library(wrapper).close()
    say = ctypes.cast(ctypes.CDLL(library_path()).C_GetInfo, ctypes.c_void_p)
    entry = entry_of(types.SimpleNamespace(path=wrapper), 2)
    monkeypatch.setattr(entry, "value", say.value)
    with pytest.raises(RuntimeWarning, match="is the stand-in"):
        luna_ext.Library(wrapper)
    assert finalisations(cluster) == [0, 0]


@GIVES_FILES_AWAY
def test_a_file_that_is_not_roots_forbids_nothing(cluster, open_each, old_client):
    wrapper = old_client(*CLUSTER_FUNCTIONS)
    assert open_each(ANOTHER_USER, library_path(), wrapper) == "opened\nopened\n"


@pytest.mark.parametrize("value", ["", "0"])
def test_stand_in_is_allowed_unless_it_is_forbidden(cluster, monkeypatch, value):
    monkeypatch.setenv("LUNA_EXT_FORBID_STUB", value)

    with cluster.library() as luna:
        assert luna.is_stub
