"""Builds the extension modules, and the stand-in as a shared library beside them."""

import os
import sys
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).parent
STUB_LIBRARY = "luna_ext.luna_stub"
WINDOWS = os.name == "nt"
TRACED = os.environ.get("LUNA_EXT_TRACE") == "1"

# The date of a wheel's files, so that two wheels of one source are equal.
os.environ.setdefault("SOURCE_DATE_EPOCH", "946684800")


def include_directory() -> str:
    """Where cryptoki_v2.h is: our own, or the SDK's where LUNA_SDK_INCLUDE says."""
    sdk = os.environ.get("LUNA_SDK_INCLUDE")
    if not sdk:
        return "include"
    if not Path(sdk, "cryptoki_v2.h").is_file():
        raise SystemExit(
            f"LUNA_SDK_INCLUDE={sdk}: there is no cryptoki_v2.h. Name the directory of the Luna "
            "SDK that has it, or unset LUNA_SDK_INCLUDE to use the header that comes with luna_ext"
        )
    return str(Path(sdk).resolve())


def release_flags() -> tuple[list[str], list[str]]:
    """Flags for the compiler and the linker; none for modules that are debugged, traced or sanitized.

    The modules have no symbols, and are hardened: the addresses of foreign functions are looked up
    when a module is loaded, and are read-only from then on. CFLAGS may ask for symbols or for
    sanitizers (`-g`, `-fsanitize=...`), and for another degree of fortification.
    """
    asked = os.environ.get("CFLAGS", "")
    watched = TRACED or "-fsanitize" in asked or "-g" in asked.split()
    if watched or not sys.platform.startswith("linux"):
        return [], []
    compiling = ["-g0", "-O2", "-fstack-protector-strong"]
    if "_FORTIFY_SOURCE" not in asked:
        compiling += ["-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=2"]
    return compiling, ["-Wl,-s", "-Wl,-z,relro,-z,now"]


class BuildExt(build_ext):
    """Builds the stand-in as a plain shared library; setuptools' own Library would be static."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()

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
of_cython = [] if WINDOWS else ["-Wno-unused-but-set-variable"]
compiling, linking = release_flags()
# Each layer sees those below it. A layer's .pyx includes the files of its folder.
LAYERS = ("_device", "_mutex", "_cluster")
headers = [str(header) for header in sorted(HERE.glob("luna_ext/_*/*.h"))]
modules = [
    Extension(
        f"luna_ext.{layer}",
        [f"luna_ext/{layer}.pyx"],
        include_dirs=[include_directory(), "luna_ext/_device"],
        depends=[*headers, "include/cryptoki_v2.h"],
        define_macros=[("CYTHON_TRACE", "1"), ("CYTHON_USE_SYS_MONITORING", "0")] if TRACED else [],
        extra_compile_args=[*warnings, *of_cython, *compiling],
        extra_link_args=linking,
    )
    for layer in LAYERS
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
    extra_link_args=[] if WINDOWS else ["-pthread", "-ldl", "-Wl,-z,nodelete", *linking],
    libraries=["advapi32"] if WINDOWS else [],
)

setup(
    ext_modules=[
        *cythonize(
            modules,
            # Beside the sources, the .c files would end up in the sdist instead of the .pyx. Only
            # there, however, Cython's coverage plugin finds them.
            build_dir=None if TRACED else "build/cython",
            compiler_directives={
                "language_level": "3",
                "binding": True,
                "embedsignature": False,
                "freethreading_compatible": True,
                "linetrace": TRACED,
            },
        ),
        stub,
    ],
    cmdclass={"build_ext": BuildExt},
)
