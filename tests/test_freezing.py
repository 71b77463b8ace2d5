"""A program in one file, with all that it needs of luna_ext."""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import zipapp
from pathlib import Path

import pytest

import luna_ext
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
PAGE = Path(__file__).parents[1] / "docs" / "platforms.md"


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


LOCKING = """
from luna_ext.stub import Cluster

with Cluster(keyrings=1) as cluster, cluster.library() as luna, luna.slot(1):
    print(cluster.tokens()[0].owner is not None)
"""


def run_away_from_the_tree(program, **variables):
    """How a program ends that finds no luna_ext but its own, or what the variables say."""
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    # Without the environment's packages, where luna_ext is installed.
    return subprocess.run(
        [sys.executable, "-S", program],
        cwd="/",
        env=environment | variables,
        capture_output=True,
        text=True,
        timeout=60,
    )


def make_zip(directory, *, with_luna_ext):
    program = directory / "program"
    program.mkdir()
    (program / "__main__.py").write_text(LOCKING)
    if with_luna_ext:
        shutil.copytree(
            luna_ext.__path__[0],
            program / "luna_ext",
            ignore=shutil.ignore_patterns("__pycache__", "*.pyx"),
        )
    zipapp.create_archive(program)
    return program.with_suffix(".pyz")


@pytest.mark.skipif(not PAGE.is_file(), reason="not a whole checkout")
def test_program_in_a_zip_is_told_why_luna_ext_cannot_be_in_it(tmp_path):
    archive = make_zip(tmp_path, with_luna_ext=True)

    ran = run_away_from_the_tree(archive)

    assert (ran.returncode, ran.stdout) == (1, "")
    (documented,) = [
        line.strip()
        for line in PAGE.read_text().splitlines()
        if "luna_ext cannot be imported" in line
    ]
    assert ran.stderr.splitlines()[-1] == documented.replace("program.pyz", str(archive))


def test_program_in_a_zip_locks_by_a_luna_ext_beside_it(tmp_path):
    archive = make_zip(tmp_path, with_luna_ext=False)

    ran = run_away_from_the_tree(archive, PYTHONPATH=str(Path(luna_ext.__path__[0]).parent))

    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "True\n", "")


def test_package_of_another_python_is_told_which_modules_are_missing(tmp_path):
    shutil.copytree(
        luna_ext.__path__[0],
        tmp_path / "luna_ext",
        ignore=shutil.ignore_patterns("__pycache__", "_*.so"),
    )
    (tmp_path / "program.py").write_text(LOCKING)

    ran = run_away_from_the_tree(tmp_path / "program.py")

    assert (ran.returncode, ran.stdout) == (1, "")
    modules = "*" + sysconfig.get_config_var("EXT_SUFFIX")
    assert ran.stderr.splitlines()[-1] == (
        f"ImportError: luna_ext has no compiled modules for this Python ({modules}) in "
        f"{tmp_path}/luna_ext. Install it with the pip of this Python; in a clone that is: "
        "pip install --editable ."
    )
