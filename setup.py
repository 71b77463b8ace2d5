"""Builds the extension modules, and the stand-in as a shared library beside them."""

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

HERE = Path(__file__).parent
STUB_LIBRARY = "luna_ext.luna_stub"
WINDOWS = os.name == "nt"
COUNTED = os.environ.get("LUNA_EXT_COVERAGE") == "1"

# The date of a wheel's files, so that two wheels of one source are equal.
os.environ.setdefault("SOURCE_DATE_EPOCH", "946684800")


DECLARATIONS = HERE / "luna_ext/_device/cryptoki.pxd"
SDK = os.environ.get("LUNA_SDK_INCLUDE")
# What headers of before Luna client 10.6 lack, and a line of C that needs it.
NEW_IN_THE_SDK = {
    "CK_UNASSIGNED_SLOT_INFO": "extern CK_UNASSIGNED_SLOT_INFO *probe;",
    "CA_GetSlotId": "void (*probe)(void) = (void (*)(void))CA_GetSlotId;",
    "CA_GetUnassignedSlot": "void (*probe)(void) = (void (*)(void))CA_GetUnassignedSlot;",
}


def include_directory() -> str:
    """Where cryptoki_v2.h is: our own, or the SDK's where LUNA_SDK_INCLUDE says."""
    if not SDK:
        return "include"
    try:
        Path(SDK, "cryptoki_v2.h").read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise sdk_error("there is no cryptoki_v2.h") from None
    except OSError as error:
        raise sdk_error(f"cryptoki_v2.h: {error.strerror}") from None
    return str(Path(SDK).resolve())


def sdk_error(problem: str) -> SystemExit:
    return SystemExit(
        f"LUNA_SDK_INCLUDE={SDK}: {problem}. Name the directory of the Luna SDK that has "
        "cryptoki_v2.h, such as /usr/safenet/lunaclient/samples/include, or unset LUNA_SDK_INCLUDE "
        "to use the header that comes with luna_ext"
    )


@contextlib.contextmanager
def output_to(file: BinaryIO) -> Iterator[None]:
    """Let what this process and its children print go to a file, in English."""
    language = os.environ.get("LC_ALL")
    kept = [os.dup(descriptor) for descriptor in (1, 2)]
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.environ["LC_ALL"] = "C"
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, descriptor)
            os.close(copy)
        del os.environ["LC_ALL"]
        if language is not None:
            os.environ["LC_ALL"] = language


def release_flags() -> tuple[list[str], list[str]]:
    """Flags for the compiler and the linker; none for modules that are debugged or sanitized.

    The modules have no symbols, and are hardened: the addresses of foreign functions are looked up
    when a module is loaded, and are read-only from then on. CFLAGS may ask for symbols or for
    sanitizers (`-g`, `-fsanitize=...`), and for another degree of fortification.
    """
    asked = os.environ.get("CFLAGS", "")
    if WINDOWS:
        # No time of the build in the modules, so that two wheels of one source are equal.
        return [], ["/Brepro"]
    if COUNTED:
        return ["-O0", "--coverage", "-fprofile-update=atomic"], ["--coverage"]
    if "-fsanitize" in asked or "-g" in asked.split():
        return [], []
    compiling = ["-g0", "-O3", "-fstack-protector-strong", "-fno-plt"]
    if "_FORTIFY_SOURCE" not in asked:
        compiling += ["-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=2"]
    return compiling, ["-Wl,-s", "-Wl,-z,relro,-z,now"]


class BuildExt(build_ext):
    """Looks at the SDK's headers before anything is built against them, and builds the stand-in as a plain
    shared library; setuptools' own Library would be static.
    """

    def finalize_options(self) -> None:
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()

    def build_extensions(self) -> None:
        self.look_at_tools()
        if SDK:
            # What was built before may have been built against another header.
            self.force = True
            lacking = self.look_at_sdk()
            for extension in self.extensions:
                if extension.name != STUB_LIBRARY:
                    extension.define_macros += lacking
        self.write_c()
        super().build_extensions()

    def look_at_tools(self) -> None:
        """End the build if it lacks what every module needs.

        One line says what to install; the compiler would say it for each file, or not at all.
        """
        if not (WINDOWS or sys.platform.startswith("linux")):
            raise SystemExit(
                f"luna_ext cannot be built on {sys.platform}: it is for Linux and Windows, as Luna's "
                "client is. Build it there"
            )
        if sys.implementation.name != "cpython" or sys.maxsize < 2**32:
            python = "32 bits" if sys.implementation.name == "cpython" else sys.implementation.name
            raise SystemExit(
                f"luna_ext cannot be built for {python}: it is for CPython on 64 bits. Build it with the "
                "pip of such a Python"
            )
        if problem := self.complaint("int probe;"):
            raise SystemExit(
                f"luna_ext is built by a C compiler, and there is none that works: {problem}. Install "
                "one (Debian and Ubuntu: gcc libc6-dev; Fedora and Red Hat: gcc; Alpine: gcc musl-dev), "
                "or name yours by CC"
            )
        if problem := self.complaint("#include <stdlib.h>"):
            raise SystemExit(
                f"luna_ext is built with the headers of the C library, and they are missing: {problem}. "
                "Install them (Debian and Ubuntu: libc6-dev; Fedora and Red Hat: glibc-devel; Alpine: "
                "musl-dev)"
            )
        if problem := self.complaint("#include <Python.h>"):
            raise SystemExit(
                f"luna_ext is built with the headers of {sys.executable}, and they are missing: "
                f"{problem}. Install them (Debian, Ubuntu and Alpine: python3-dev; Fedora and Red Hat: "
                "python3-devel)"
            )

    def write_c(self) -> None:
        """Let Cython make C of its modules. Only here: sources and metadata are had without."""
        made = cythonize(
            modules,
            # Beside the sources, the .c files would end up in the sdist instead of the .pyx.
            build_dir="build/cython",
            # So that what is counted is told of the lines of the .pyx.
            emit_linenums=COUNTED,
            compiler_directives={
                "language_level": "3",
                "binding": True,
                "embedsignature": False,
                "freethreading_compatible": True,
                # With them PyErr_Print() is called first, which ends the process for a SystemExit.
                "unraisable_tracebacks": False,
            },
        )
        for extension, in_c in zip(modules, made, strict=True):
            extension.sources = in_c.sources
            extension.depends = in_c.depends

    def look_at_sdk(self) -> list[tuple[str, str | None]]:
        """Macros for what the SDK's headers lack; ends the build if they cannot be used.

        One line says what is wrong. The modules themselves would say it many times over.
        """
        if problem := self.complaint('#include "sdk.h"'):
            raise sdk_error(f"cryptoki_v2.h cannot be compiled: {problem}")
        lacking = [
            name
            for name, line in NEW_IN_THE_SDK.items()
            if self.complaint(f'#include "sdk.h"\n{line}')
        ]
        macros: list[tuple[str, str | None]] = [(f"SDK_LACKS_{name}", None) for name in lacking]
        names = re.findall(r"const \w+ (\w+)$", DECLARATIONS.read_text(), re.MULTILINE)
        constants = f'#include "layout.h"\nCK_ULONG probe[] = {{{", ".join(names)}}};'
        if problem := self.complaint(constants, macros):
            raise sdk_error(f"cryptoki_v2.h is not that of PKCS #11 v2.40: {problem}")
        if lacking:
            print(
                f"LUNA_SDK_INCLUDE={SDK}: from before Luna client 10.6; luna_ext declares "
                f"{', '.join(lacking)} itself",
                file=sys.stderr,
            )
        return macros

    def complaint(self, source: str, macros: list[tuple[str, str | None]] | None = None) -> str:
        """The first error that the compiler finds in a source text; empty if there is none."""
        with tempfile.TemporaryDirectory() as directory, tempfile.TemporaryFile() as said:
            file = Path(directory, "probe.c")
            file.write_text(source + "\n")
            try:
                with output_to(said):
                    self.compiler.compile(
                        [str(file)],
                        output_dir=directory,
                        macros=macros,
                        include_dirs=INCLUDE_DIRECTORIES,
                    )
            except CompileError as failure:
                said.seek(0)
                lines = said.read().decode(errors="replace").splitlines()
                errors = [line for line in lines if re.search(r"\berror\b", line)]
                return (errors or [str(failure)])[0].strip()
        return ""

    def get_ext_filename(self, fullname: str) -> str:
        # No interpreter tag: programs in any language load it by this name.
        if fullname.endswith("luna_stub"):
            return str(Path(*fullname.split("."))) + (".dll" if WINDOWS else ".so")
        return super().get_ext_filename(fullname)

    def get_export_symbols(self, ext: Extension) -> list[str]:
        # It has no PyInit_ function to export.
        return [] if ext.name == STUB_LIBRARY else super().get_export_symbols(ext)


warnings = [] if WINDOWS else ["-Wall", "-Wextra"]
# Cython makes variables that only an assert() reads, and assert() is off in releases.
# Nor does it know the fields that CPython 3.15 has added to a type.
# C23, the default of newer compilers, takes a function that a header declares as `f()` for one without
# parameters.
of_cython = (
    []
    if WINDOWS
    else ["-Wno-unused-but-set-variable", "-Wno-missing-field-initializers", "-std=gnu11"]
)
compiling, linking = release_flags()
# Each layer sees those below it. A layer's .pyx includes the files of its folder.
LAYERS = ("_device", "_mutex", "_cluster")
# Ours first, so that no file of the SDK takes the place of one of ours.
INCLUDE_DIRECTORIES = ["luna_ext/_device", include_directory()]
headers = [str(header) for header in sorted(HERE.glob("luna_ext/_*/*.h"))]
modules = [
    Extension(
        f"luna_ext.{layer}",
        [f"luna_ext/{layer}.pyx"],
        include_dirs=INCLUDE_DIRECTORIES,
        depends=[*headers, "include/cryptoki_v2.h"],
        extra_compile_args=[*warnings, *of_cython, *compiling],
        extra_link_args=linking,
    )
    for layer in LAYERS
    # A copy with some of them, or none, is enough to try out a header.
    if (HERE / f"luna_ext/{layer}.pyx").exists()
]
foreign = "_posix" if WINDOWS else "_windows"
if WINDOWS:
    # MSVC: its atomics are complete enough for us, but still called experimental.
    stub_flags = ["/std:c11", "/experimental:c11atomics", "/Zc:preprocessor"]
else:
    stub_flags = [*warnings, "-std=c11", "-Wpedantic", "-Wconversion", "-fvisibility=hidden", "-O2"]
stub = Extension(
    STUB_LIBRARY,
    [
        str(source.relative_to(HERE))
        for source in sorted(HERE.glob("stub_lib/*.c"))
        if foreign not in source.stem
    ],
    # Always our own header: the stand-in is no client of the SDK.
    include_dirs=["include", "stub_lib"],
    depends=[str(header) for header in sorted(HERE.glob("stub_lib/*.h"))],
    define_macros=[("_CRT_SECURE_NO_WARNINGS" if WINDOWS else "_GNU_SOURCE", None)],
    extra_compile_args=[*stub_flags, *compiling],
    # It must not be unloaded: then it could not close its files in a forked child, and with them its
    # locks.
    extra_link_args=[*([] if WINDOWS else ["-pthread", "-ldl", "-Wl,-z,nodelete"]), *linking],
    libraries=["advapi32"] if WINDOWS else [],
)

setup(ext_modules=[*modules, stub], cmdclass={"build_ext": BuildExt})
