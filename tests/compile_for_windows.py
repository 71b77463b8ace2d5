"""Compiles luna_ext's modules for Windows by MinGW, as far as that goes without a Python for Windows.

    python tests/compile_for_windows.py DIRECTORY

Their C is what the last build has left in build/cython. Python's headers are those of this Python, copied
into DIRECTORY, with the configuration that they have on Windows. Nothing is linked, so nothing runs.
"""

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MINGW = "x86_64-w64-mingw32-gcc"
STRICT = ["-std=gnu11", "-fsyntax-only", "-Wall", "-Wextra", "-Werror"]
# As in setup.py; and an enum of Cython's is unsigned there, and compared with what is not.
OF_CYTHON = ["-Wno-unused-but-set-variable", "-Wno-missing-field-initializers", "-Wno-sign-compare"]
# What PC/pyconfig.h of CPython's sources says of 64 bits, as far as its headers ask for it.
CONFIGURATION = """
#include <io.h>
#define MS_WINDOWS
#define MS_WIN32
#define MS_WIN64
#define NT_THREADS
#define WITH_THREAD
#define HAVE_DECLSPEC_DLL
#define Py_ENABLE_SHARED 1
#define SIZEOF_SHORT 2
#define SIZEOF_INT 4
#define SIZEOF_LONG 4
#define SIZEOF_LONG_LONG 8
#define SIZEOF_VOID_P 8
#define SIZEOF_SIZE_T 8
#define SIZEOF_TIME_T 8
#define SIZEOF_WCHAR_T 2
#define SIZEOF_PID_T 4
#define ALIGNOF_LONG 4
#define ALIGNOF_SIZE_T 8
#define ALIGNOF_MAX_ALIGN_T 8
#define HAVE_STDINT_H 1
#define HAVE_STDDEF_H 1
#define HAVE_WCHAR_H 1
"""


def headers_of_python(directory: Path) -> Path:
    """Its headers, as they are for Windows, in a folder of the directory."""
    headers = directory / "python"
    shutil.rmtree(headers, ignore_errors=True)
    shutil.copytree(sysconfig.get_path("include"), headers)
    without_gil = sysconfig.get_config_var("Py_GIL_DISABLED")
    (headers / "pyconfig.h").write_text(
        CONFIGURATION + ("#define Py_GIL_DISABLED 1\n" if without_gil else "")
    )
    return headers


def complaints(headers: Path, source: Path, *options: str) -> str:
    """What MinGW finds wrong with a file of C; empty if nothing is."""
    folders = [headers, ROOT / "luna_ext/_device", ROOT / "include"]
    include = [f"-I{folder}" for folder in folders]
    done = subprocess.run(
        [MINGW, *STRICT, *options, *include, source], capture_output=True, text=True
    )
    assert (done.returncode == 0) == (done.stderr == ""), done
    return done.stderr


def main(directory: Path) -> None:
    headers = headers_of_python(directory)
    sources = sorted((ROOT / "build/cython/luna_ext").glob("_*.c"))
    said = [complaints(headers, source, *OF_CYTHON) for source in sources]
    if len(sources) != 3 or any(said):
        raise SystemExit("".join(said) or f"{sys.argv[0]}: the modules are not built here")
    print(", ".join(source.stem for source in sources), "can be compiled for Windows")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
