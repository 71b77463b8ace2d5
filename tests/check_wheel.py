"""Says what is wrong with the wheels that it is given: contents, size, how the modules are linked."""

import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

LARGEST = 1_200_000
SOURCES = (".pyx", ".c", ".o", ".html", ".pyc")
MODULES = ["_cluster", "_device", "_mutex"]
# For programs that cimport luna_ext, and for type checkers.
DECLARATIONS = {
    *(f"luna_ext/{layer}.pxd" for layer in MODULES),
    "luna_ext/_device/cryptoki.pxd",
    "luna_ext/_device/native.h",
    "luna_ext/_cluster.pyi",
    "luna_ext/py.typed",
}


def weaknesses(library):
    """What makes a shared library of Linux easier to attack, or larger, than it has to be."""

    def told(*options):
        command = ["readelf", "-W", *options, str(library)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    headers = told("-lSd")
    if ".symtab" in headers:
        yield "has symbols"
    if "GNU_RELRO" not in headers or "BIND_NOW" not in headers:
        yield "its table of foreign functions can be written to"
    if not re.search(r"GNU_STACK .* RW +0x", headers):
        yield "its stack can be executed"
    if "__stack_chk_fail" not in told("--dyn-syms"):
        yield "its stack is not guarded"


def faults(wheel):
    """What is wrong with a wheel."""
    size = wheel.stat().st_size
    if size > LARGEST:
        yield f"has {size} bytes, more than {LARGEST}"
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory() as directory:
        names = archive.namelist()
        for name in sorted(DECLARATIONS.difference(names)):
            yield f"lacks {name}"
        for name in names:
            if name.endswith(SOURCES):
                yield f"has {name}, which is no use without the sources"
        compiled = [name for name in names if name.endswith((".so", ".pyd", ".dll"))]
        found = sorted(Path(name).name.split(".")[0] for name in compiled)
        if found != [*MODULES, "luna_stub"]:
            yield f"has other compiled modules: {compiled}"
        if shutil.which("readelf"):
            for name in compiled:
                if name.endswith(".so"):
                    for weakness in weaknesses(archive.extract(name, directory)):
                        yield f"{name}: {weakness}"


def main():
    wheels = [Path(argument) for argument in sys.argv[1:]]
    found = [f"{wheel.name}: {fault}" for wheel in wheels for fault in faults(wheel)]
    if found or not wheels:
        raise SystemExit("\n".join(found) or f"{sys.argv[0]}: no wheels")


if __name__ == "__main__":
    main()
