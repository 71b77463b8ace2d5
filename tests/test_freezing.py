"""A program in one file, with all that it needs of luna_ext."""

import importlib.util
import os
import shutil
import subprocess
import sys

import pytest

from luna_ext.info import CLUSTER_FUNCTIONS

PROGRAM = """
import sys
import luna_ext
import PyKCS11
from luna_ext.stub import Cluster

with Cluster(keyrings=2) as cluster, cluster.library() as luna:
    with luna.slot(1).lock(timeout=10), luna.slot(2):
        print(sys.frozen, [token.owner is not None for token in cluster.tokens()])
    print([token.owner for token in cluster.tokens()])
    # PyKCS11 on the same client.
    print(len(luna.pykcs11().getSlotList(tokenPresent=True)))
    # A second client library, and one that is not the stand-in.
    with luna_ext.Library(sys.argv[1]) as other, other.slot(1):
        print(len(other.slots()))
"""
MINUTES = 5


@pytest.mark.limit(MINUTES)
@pytest.mark.skipif(
    importlib.util.find_spec("PyInstaller") is None,
    reason="PyInstaller is not installed (PyPI: pyinstaller)",
)
def test_program_of_one_file_locks_and_needs_no_options(tmp_path, old_client):
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = {**os.environ, "PYINSTALLER_CONFIG_DIR": str(tmp_path / "cache")}
    freezing = [sys.executable, "-m", "PyInstaller", "--onefile", "program.py"]

    built = subprocess.run(
        freezing,
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60 * MINUTES,
    )
    assert built.returncode == 0, built.stderr[-2000:]
    # Away from all that it was made of.
    (tmp_path / "elsewhere").mkdir()
    program = shutil.move(tmp_path / "dist" / "program", tmp_path / "elsewhere")
    command = [program, old_client(*CLUSTER_FUNCTIONS)]
    ran = subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=60)

    assert (ran.stdout, ran.stderr) == ("True [True, True]\n[None, None]\n2\n2\n", "")
