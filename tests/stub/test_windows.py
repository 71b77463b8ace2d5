"""The stand-in for Windows: cross-compiled, and run as far as there is something to run it."""

import os
import platform
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TARGET = "x86_64-w64-mingw32"
CC = f"{TARGET}-gcc"
SOURCES = [
    source for source in sorted((ROOT / "stub_lib").glob("*.c")) if "_posix" not in source.stem
]
STRICT = [
    "-std=c11",
    "-O2",
    "-Wall",
    "-Wextra",
    "-Wpedantic",
    "-Wconversion",
    "-Wshadow",
    "-Werror",
]
INCLUDE = [f"-I{ROOT / directory}" for directory in ("include", "stub_lib", "luna_ext")]

pytestmark = [
    pytest.mark.skipif(shutil.which(CC) is None, reason=f"no Windows compiler: {CC}"),
    # Wine makes itself ready before the first of them.
    pytest.mark.limit(4),
]


def compile_for_windows(*arguments):
    return subprocess.run(
        [CC, *STRICT, *INCLUDE, *map(str, arguments)], capture_output=True, text=True
    )


def names(header, pattern):
    return set(re.findall(pattern, (ROOT / header).read_text()))


@pytest.fixture(scope="module")
def dll(tmp_path_factory):
    library = tmp_path_factory.mktemp("windows") / "luna_stub.dll"
    # What is a thread's own is kept by libgcc, which no Windows has by itself.
    finished = compile_for_windows("-shared", "-static-libgcc", *SOURCES, "-o", library)
    assert (finished.returncode, finished.stderr) == (0, "")
    return library


@pytest.fixture
def wine():
    """Runs a program for Windows, on a Windows that is made for it and gone afterwards."""
    if platform.machine() != "x86_64":
        pytest.skip("Wine runs programs for the machine's own processor alone")
    for program in ("wine", "wineserver"):
        if shutil.which(program) is None:
            pytest.skip(f"nothing to run programs for Windows: {program}")
    # Not in tmp_path, of which pytest keeps the last ones: it has hundreds of megabytes.
    with tempfile.TemporaryDirectory(prefix="luna_ext-wine-") as prefix:
        environment = {
            **os.environ,
            "WINEPREFIX": prefix,
            "WINEDEBUG": "-all",
            "WINEDLLOVERRIDES": "mscoree,mshtml=",  # asks to download them otherwise
            "LC_ALL": "C.UTF-8",
        }
        environment.pop("DISPLAY", None)

        def run(*command):
            # Not a pipe: processes that outlive the program would keep it open.
            output = Path(prefix, "output")
            with output.open("w") as file:
                finished = subprocess.run(
                    ["wine", *map(str, command)],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.DEVNULL,
                    timeout=120,
                )
            return finished.returncode, output.read_text()

        try:
            assert run("wineboot", "--init") == (0, "")
            yield run
        finally:
            for option in ("--kill", "--wait"):
                subprocess.run(["wineserver", option], env=environment, timeout=60)


# ---- sources ----


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_stand_in_compiles_for_windows_without_a_warning(tmp_path, source):
    finished = compile_for_windows("-c", source, "-o", tmp_path / "object.o")

    assert (finished.returncode, finished.stderr) == (0, "")


def test_dll_exports_the_functions_of_the_module_and_no_others(dll):
    listed = subprocess.run(
        [f"{TARGET}-objdump", "-p", str(dll)], capture_output=True, text=True, check=True
    )
    table = listed.stdout.partition("[Ordinal/Name Pointer] Table")[2].partition("\n\n")[0]
    exported = re.findall(r"^\s*\[ *\d+\].*\b(\w+)$", table, flags=re.MULTILINE)
    standard = names("include/cryptoki_v2.h", r"X\((C_\w+),")
    cluster = names("include/cryptoki_v2.h", r"extern CK_RV (CA_\w+)\(")
    control = names("stub_lib/control.h", r"\bint (luna_stub_\w+)\(")

    assert (len(standard), len(cluster)) == (68, 6)
    assert "luna_stub_create" in control
    assert sorted(exported) == sorted(standard | cluster | control)


# ---- running it ----


def test_stand_in_works_on_windows_and_grants_the_lock_of_a_killed_process(dll, wine, tmp_path):
    # Beside the DLL, which is where a program looks for it first.
    program = dll.with_name("windows_client.exe")
    finished = compile_for_windows(
        "-municode", ROOT / "tests" / "c" / "windows_client.c", dll, "-o", program
    )
    assert (finished.returncode, finished.stderr) == (0, "")
    # Longer than Windows takes it as it is, and in no alphabet of a code page.
    directory = tmp_path / ("d" * 120) / ("e" * 120)
    directory.mkdir(parents=True)
    state = directory / "Schlüssel-鍵"

    assert wine(program, f"Z:{state}") == (0, "")
    assert state.stat().st_mode & 0o007 == 0
    assert list(directory.iterdir()) == [state]
