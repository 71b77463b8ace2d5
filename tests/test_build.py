"""One layout for both headers; sources that compile without a warning; what is installed."""

import ctypes
import importlib.machinery
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from check_wheel import LARGEST, faults, weaknesses
from compile_for_windows import MINGW, complaints, headers_of_python

import luna_ext
from luna_ext.stub import library_path

ROOT = Path(__file__).parent.parent
PACKAGE = Path(luna_ext.__file__).parent
LAYOUT = ROOT / "luna_ext" / "_device" / "layout.h"
STRICT = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"]

# The functions of v2.40 in the order of CK_FUNCTION_LIST.
NAMES = """
    Initialize Finalize GetInfo GetFunctionList GetSlotList GetSlotInfo GetTokenInfo
    GetMechanismList GetMechanismInfo InitToken InitPIN SetPIN OpenSession CloseSession
    CloseAllSessions GetSessionInfo GetOperationState SetOperationState Login Logout CreateObject
    CopyObject DestroyObject GetObjectSize GetAttributeValue SetAttributeValue FindObjectsInit
    FindObjects FindObjectsFinal EncryptInit Encrypt EncryptUpdate EncryptFinal DecryptInit Decrypt
    DecryptUpdate DecryptFinal DigestInit Digest DigestUpdate DigestKey DigestFinal SignInit Sign
    SignUpdate SignFinal SignRecoverInit SignRecover VerifyInit Verify VerifyUpdate VerifyFinal
    VerifyRecoverInit VerifyRecover DigestEncryptUpdate DecryptDigestUpdate SignEncryptUpdate
    DecryptVerifyUpdate GenerateKey GenerateKeyPair WrapKey UnwrapKey DeriveKey SeedRandom
    GenerateRandom GetFunctionStatus CancelFunction WaitForSlotEvent
"""
FUNCTIONS = [f"C_{name}" for name in NAMES.split()]

# Another author's header of the same interface: other macros, other spellings, two files. It wants to be
# told the platform, and has a file for one platform that the others go without.
SDK_TYPES = """
#ifndef SDK_TYPES_H
#define SDK_TYPES_H
#if !defined(OS_UNIX) && !defined(OS_LINUX) && !defined(OS_WIN32)
#error "Which platform?"
#endif
#ifdef OS_AIX
#include "sdk_aix.h"
#endif
typedef unsigned char CK_BYTE;
typedef CK_BYTE CK_CHAR, CK_UTF8CHAR, CK_BBOOL;
typedef unsigned long int CK_ULONG;
typedef CK_ULONG CK_FLAGS, CK_RV, CK_SLOT_ID, CK_SESSION_HANDLE, CK_USER_TYPE;
typedef void *CK_VOID_PTR;
typedef struct CK_VERSION { CK_BYTE major; CK_BYTE minor; } CK_VERSION;
typedef struct CK_INFO {
  CK_VERSION cryptokiVersion;
  CK_UTF8CHAR manufacturerID[32];
  CK_FLAGS flags;
  CK_UTF8CHAR libraryDescription[32];
  CK_VERSION libraryVersion;
} CK_INFO;
typedef struct CK_SLOT_INFO {
  CK_UTF8CHAR slotDescription[64];
  CK_UTF8CHAR manufacturerID[32];
  CK_FLAGS flags;
  CK_VERSION hardwareVersion;
  CK_VERSION firmwareVersion;
} CK_SLOT_INFO;
typedef struct CK_TOKEN_INFO {
  CK_UTF8CHAR label[32];
  CK_UTF8CHAR manufacturerID[32];
  CK_UTF8CHAR model[16];
  CK_CHAR serialNumber[16];
  CK_FLAGS flags;
  CK_ULONG ulMaxSessionCount, ulSessionCount, ulMaxRwSessionCount, ulRwSessionCount;
  CK_ULONG ulMaxPinLen, ulMinPinLen;
  CK_ULONG ulTotalPublicMemory, ulFreePublicMemory, ulTotalPrivateMemory, ulFreePrivateMemory;
  CK_VERSION hardwareVersion, firmwareVersion;
  CK_CHAR utcTime[16];
} CK_TOKEN_INFO;
typedef struct CK_SESSION_INFO {
    CK_SLOT_ID slotID;
    CK_ULONG state;
    CK_FLAGS flags;
    CK_ULONG ulDeviceError;
} CK_SESSION_INFO;
typedef struct CK_C_INITIALIZE_ARGS {
  CK_RV (*CreateMutex)(CK_VOID_PTR *);
  CK_RV (*DestroyMutex)(CK_VOID_PTR);
  CK_RV (*LockMutex)(CK_VOID_PTR);
  CK_RV (*UnlockMutex)(CK_VOID_PTR);
  CK_FLAGS flags;
  CK_VOID_PTR pReserved;
} CK_C_INITIALIZE_ARGS;
#endif
"""
SDK_MAIN = """
#ifndef _CRYPTOKI_V2_H_
#define _CRYPTOKI_V2_H_ 1
#include "sdk_types.h"
#define CK_TRUE 1
#define CK_FALSE 0
#define CK_UNAVAILABLE_INFORMATION (~0UL)
#define CKF_OS_LOCKING_OK 2
#define CKF_RW_SESSION 2
#define CKF_SERIAL_SESSION 4
#define CKF_USER_PIN_INITIALIZED 8
#define CKF_PROTECTED_AUTHENTICATION_PATH 0x100
#define CKF_TOKEN_INITIALIZED 0x400
#define CKF_USER_PIN_FINAL_TRY 0x20000
#define CKF_USER_PIN_LOCKED 0x40000
#define CKF_SO_PIN_FINAL_TRY 0x200000
#define CKF_SO_PIN_LOCKED 0x400000
#define CKU_SO 0
#define CKU_USER 1
#define CKS_RW_PUBLIC_SESSION 2
#define CKS_RW_USER_FUNCTIONS 3
#define CKS_RW_SO_FUNCTIONS 4
#define CKR_OK 0
#define CKR_SLOT_ID_INVALID 3
#define CKR_FUNCTION_FAILED 6
#define CKR_DEVICE_ERROR 0x30
#define CKR_FUNCTION_NOT_SUPPORTED 0x54
#define CKR_PIN_INCORRECT 0xA0
#define CKR_PIN_EXPIRED 0xA3
#define CKR_SESSION_HANDLE_INVALID 0xB3
#define CKR_SESSION_EXISTS 0xB6
#define CKR_TOKEN_NOT_PRESENT 0xE0
#define CKR_TOKEN_NOT_RECOGNIZED 0xE1
#define CKR_USER_ALREADY_LOGGED_IN 0x100
#define CKR_USER_NOT_LOGGED_IN 0x101
#define CKR_USER_ANOTHER_ALREADY_LOGGED_IN 0x104
#define CKR_BUFFER_TOO_SMALL 0x150
#define CKR_CRYPTOKI_NOT_INITIALIZED 0x190
#define CKR_CRYPTOKI_ALREADY_INITIALIZED 0x191
#define CKR_VENDOR_DEFINED 0x80000000
typedef struct CK_FUNCTION_LIST {
  CK_VERSION version;
  ALL_FUNCTIONS;
} CK_FUNCTION_LIST;
NEW
CK_RV CA_LockClusteredSlot(CK_SLOT_ID slotID);
CK_RV CA_UnlockClusteredSlot(CK_SLOT_ID slotID);
#endif
"""
# What came with Luna client 10.6.
NEW_STRUCT = """
typedef struct CK_UNASSIGNED_SLOT_INFO {
  CK_SLOT_ID slotID;
  CK_UTF8CHAR label[32];
} CK_UNASSIGNED_SLOT_INFO;
"""
NEW_FUNCTIONS = """
CK_RV CA_GetSlotId(CK_UTF8CHAR *label, CK_SLOT_ID *pSlotId, CK_ULONG *pulCount);
CK_RV CA_GetUnassignedSlot(CK_CHAR *const clusterID, CK_UNASSIGNED_SLOT_INFO *pUnassignedSlot);
"""
NEW_NAMES = ("CK_UNASSIGNED_SLOT_INFO", "CA_GetSlotId", "CA_GetUnassignedSlot")
SDK_OLD = SDK_MAIN.replace("NEW", "")
SDK_MAIN = SDK_MAIN.replace("NEW", NEW_STRUCT + NEW_FUNCTIONS)
SDK_OLD, SDK_MAIN = (
    text.replace("ALL_FUNCTIONS;", "\n  ".join(f"CK_RV (*{name})();" for name in FUNCTIONS))
    for text in (SDK_OLD, SDK_MAIN)
)


def packed(struct):
    """Packs one struct to 1 byte, as the header of another platform would."""
    return (
        rf"(typedef struct {struct} \{{.*?\}} {struct};)",
        r"#pragma pack(push, 1)\n\1\n#pragma pack(pop)",
    )


UNASSIGNED = r"CK_SLOT_ID slotID;\s*CK_UTF8CHAR label\[32\];"
# name: what is changed (a regular expression and its replacement), and what the compiler names.
WRONG_LAYOUTS = {
    "packed CK_INFO": (packed("CK_INFO"), "CK_INFO"),
    "packed CK_SLOT_INFO": (packed("CK_SLOT_INFO"), "CK_SLOT_INFO"),
    "packed CK_TOKEN_INFO": (packed("CK_TOKEN_INFO"), "CK_TOKEN_INFO"),
    "packed CK_FUNCTION_LIST": (packed("CK_FUNCTION_LIST"), "CK_FUNCTION_LIST"),
    "4-byte CK_ULONG": (("unsigned long int CK_ULONG", "unsigned int CK_ULONG"), "CK_ULONG"),
    "4-byte CK_RV": (
        ("CK_FLAGS, CK_RV,", "CK_FLAGS; typedef int CK_RV; typedef CK_ULONG"),
        "CK_RV",
    ),
    "4-byte CK_BBOOL": (("CK_UTF8CHAR, CK_BBOOL", "CK_UTF8CHAR; typedef int CK_BBOOL"), "CK_BBOOL"),
    "longer label": (
        (UNASSIGNED, "CK_SLOT_ID slotID; CK_UTF8CHAR label[33];"),
        "CK_UNASSIGNED_SLOT_INFO",
    ),
    "label before slot": (
        (UNASSIGNED, "CK_UTF8CHAR label[32]; CK_SLOT_ID slotID;"),
        "CK_UNASSIGNED_SLOT_INFO",
    ),
    "shorter description": ((r"slotDescription\[64\]", "slotDescription[32]"), "CK_SLOT_INFO"),
    "missing field": ((r"ulMaxPinLen, ulMinPinLen;", "ulMaxPinLen;"), "CK_TOKEN_INFO"),
    "fields swapped": ((r"ulMaxPinLen, ulMinPinLen", "ulMinPinLen, ulMaxPinLen"), "CK_TOKEN_INFO"),
    "missing mutex": ((r"CK_RV \(\*LockMutex\)\(CK_VOID_PTR\);", ""), "CK_C_INITIALIZE_ARGS"),
    "missing function": ((r"CK_RV \(\*C_SeedRandom\)\(\);", ""), "CK_FUNCTION_LIST"),
    "additional function": (
        (r"CK_RV \(\*C_SetPIN\)\(\);", r"\g<0> CK_RV (*C_Another)();"),
        "CK_FUNCTION_LIST",
    ),
    "appended function": (
        (r"CK_RV \(\*C_WaitForSlotEvent\)\(\);", r"\g<0> CK_RV (*C_Another)();"),
        "CK_FUNCTION_LIST",
    ),
    "functions swapped": ((r"C_Login\b(.*?)C_Logout", r"C_Logout\1C_Login"), "CK_FUNCTION_LIST"),
}


FOR_WINDOWS = pytest.mark.skipif(
    shutil.which(MINGW) is None, reason=f"no Windows compiler: {MINGW}"
)
CPP = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler: g++")


def write_sdk(directory, change=None, main=SDK_MAIN):
    texts = {"sdk_types.h": SDK_TYPES, "cryptoki_v2.h": main}
    if change is not None:
        pattern, replacement = change
        changed = {
            name: re.sub(pattern, replacement, text, flags=re.DOTALL)
            for name, text in texts.items()
        }
        assert changed != texts
        texts = changed
    for name, text in texts.items():
        (directory / name).write_text(text)


def compile_only(language, source, *options, compiler="cc"):
    """Let the compiler look at a source text; the finished process."""
    return subprocess.run(
        [compiler, "-x", language, "-fsyntax-only", *options, "-"],
        input=source,
        capture_output=True,
        text=True,
    )


def check_layout(include, *options, language="c", compiler="cc"):
    source = f'#include "{LAYOUT}"\n'
    return compile_only(language, source, f"-I{include}", *options, compiler=compiler)


# ---- the layout of whichever header is used ----


@pytest.mark.parametrize(
    ("language", "standard"), [("c", "c11"), pytest.param("c++", "c++17", marks=CPP)]
)
def test_own_header_has_the_layout(language, standard):
    finished = check_layout(ROOT / "include", f"-std={standard}", *STRICT, language=language)

    assert (finished.returncode, finished.stderr) == (0, "")


@pytest.mark.parametrize(
    ("language", "standard"), [("c", "c11"), pytest.param("c++", "c++17", marks=CPP)]
)
def test_sdk_style_header_has_the_layout(tmp_path, language, standard):
    write_sdk(tmp_path)

    finished = check_layout(tmp_path, f"-std={standard}", *STRICT, language=language)

    assert (finished.returncode, finished.stderr) == (0, "")


def test_sdk_style_header_has_all_functions():
    assert len(FUNCTIONS) == len(set(FUNCTIONS)) == 68


@pytest.mark.parametrize("language", ["c", pytest.param("c++", marks=CPP)])
@pytest.mark.parametrize(
    ("change", "struct"),
    [pytest.param(*wrong, id=name) for name, wrong in WRONG_LAYOUTS.items()],
)
def test_wrong_layout_does_not_compile_and_is_named(tmp_path, change, struct, language):
    write_sdk(tmp_path, change)

    finished = check_layout(tmp_path, language=language)

    assert finished.returncode != 0
    errors = [line for line in finished.stderr.splitlines() if "error:" in line]
    assert any(re.search(rf"\b{struct}\b", line) for line in errors)


@FOR_WINDOWS
def test_own_header_is_packed_on_windows():
    finished = check_layout(ROOT / "include", "-std=c11", *STRICT, compiler=MINGW)
    sizes = {
        "CK_ULONG": 4,
        "CK_INFO": 72,
        "CK_SLOT_INFO": 104,
        "CK_TOKEN_INFO": 160,
        "CK_C_INITIALIZE_ARGS": 44,
        "CK_UNASSIGNED_SLOT_INFO": 36,
        "CK_FUNCTION_LIST": 2 + 68 * 8,
    }
    source = '#include "cryptoki_v2.h"\n' + "".join(
        f'_Static_assert(sizeof({name}) == {size}, "{name}");\n' for name, size in sizes.items()
    )
    measured = compile_only("c", source, f"-I{ROOT / 'include'}", compiler=MINGW)

    assert (finished.returncode, finished.stderr) == (0, "")
    assert (measured.returncode, measured.stderr) == (0, "")


@FOR_WINDOWS
def test_header_that_is_not_packed_does_not_compile_on_windows(tmp_path):
    write_sdk(tmp_path)

    finished = check_layout(tmp_path, compiler=MINGW)

    assert finished.returncode != 0
    assert re.search(r"cryptoki_v2\.h: .*\bCK_INFO\b", finished.stderr)


@FOR_WINDOWS
def test_own_c_of_the_layers_compiles_for_windows(tmp_path):
    """What Cython makes takes longer: `make windows` compiles that too."""
    source = tmp_path / "own.c"
    names = ("Python.h", "native.h", "secret.h", "layout.h")
    source.write_text("".join(f'#include "{name}"\n' for name in names))
    assert complaints(headers_of_python(tmp_path), source, "-Wno-unused-function") == ""


def test_packing_ends_with_the_header():
    source = '#include "cryptoki_v2.h"\nstruct own { char c; long l; };\n'
    source += '_Static_assert(sizeof(struct own) == 2 * sizeof(long), "packed");\n'

    for compiler in filter(shutil.which, ["cc", MINGW]):
        finished = compile_only("c", source, f"-I{ROOT / 'include'}", compiler=compiler)
        assert (finished.returncode, finished.stderr) == (0, "")


# ---- sources ----


@pytest.mark.parametrize(
    ("language", "standard"),
    [
        ("c", "c99"),
        ("c", "c11"),
        ("c", "c17"),
        pytest.param("c++", "c++11", marks=CPP),
        pytest.param("c++", "c++17", marks=CPP),
    ],
)
@pytest.mark.parametrize("header", ["include/cryptoki_v2.h", "stub_lib/control.h"])
def test_public_header_compiles_alone_and_twice(header, language, standard):
    source = f'#include "{ROOT / header}"\n' * 2

    finished = compile_only(language, source, f"-std={standard}", *STRICT)

    assert (finished.returncode, finished.stderr) == (0, "")


@pytest.mark.parametrize(
    "source",
    [source for source in sorted((ROOT / "stub_lib").glob("*.c")) if "_windows" not in source.stem],
    ids=lambda path: path.name,
)
def test_stand_in_compiles_without_a_warning(tmp_path, source):
    command = ["cc", "-std=c11", *STRICT, "-Wconversion", "-O2", "-fPIC", "-D_GNU_SOURCE"]
    command += [f"-I{ROOT / 'include'}", f"-I{ROOT / 'stub_lib'}", "-c", str(source)]

    finished = subprocess.run(
        [*command, "-o", str(tmp_path / "object.o")], capture_output=True, text=True
    )

    assert (finished.returncode, finished.stderr) == (0, "")


# ---- setup.py, with the SDK's headers ----

BUILDS = pytest.mark.skipif(
    importlib.util.find_spec("Cython") is None or importlib.util.find_spec("setuptools") is None,
    reason="setup.py needs Cython and setuptools here, not only in pip's build environment",
)
ADVICE = (
    ". Name the directory of the Luna SDK that has cryptoki_v2.h, such as "
    "/usr/safenet/lunaclient/samples/include, or unset LUNA_SDK_INCLUDE to use the header that comes "
    "with luna_ext"
)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy that builds the lowest layer alone, which is quick."""
    copy = tmp_path_factory.mktemp("checkout")
    files = shutil.ignore_patterns("*.so", "__pycache__")
    for name in ("luna_ext", "include", "build/cython"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=files)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for layer in ("_mutex", "_cluster"):
        (copy / f"luna_ext/{layer}.pyx").unlink()
    setup = (ROOT / "setup.py").read_text()
    whole, part = "ext_modules=[*modules, stub]", "ext_modules=modules"
    assert whole in setup
    (copy / "setup.py").write_text(setup.replace(whole, part))
    return copy


@pytest.fixture
def build(checkout, tmp_path):
    """Build the copy, perhaps with headers of the SDK; how setup.py ended, and what it has built."""

    def run(sdk="", setup=("setup.py",), **variables):
        command = [sys.executable, *setup, "-q", "build_ext"]
        command += ["--build-lib", str(tmp_path / "lib"), "--build-temp", str(tmp_path / "temp")]
        environment = {**os.environ, "LUNA_SDK_INCLUDE": str(sdk), "CFLAGS": "-O0", "LC_ALL": "C"}
        environment |= variables
        finished = subprocess.run(
            command, cwd=checkout, env=environment, capture_output=True, text=True
        )
        return finished, list((tmp_path / "lib").glob("luna_ext/*"))

    return run


@pytest.fixture
def sdk(tmp_path):
    directory = tmp_path / "the sdk"
    directory.mkdir()
    return directory


def age(built):
    """When the one module was built."""
    (module,) = built
    assert module.name.startswith("_device.")
    return module.stat().st_mtime_ns


@BUILDS
@pytest.mark.limit(5)
def test_builds_with_the_headers_of_the_sdk_and_anew_with_others(build, sdk):
    write_sdk(sdk)

    finished, built = build(sdk)

    # On stdout Cython says which files it compiles anew.
    assert (finished.returncode, finished.stderr) == (0, "")
    before = age(built)

    write_sdk(sdk, main=SDK_MAIN.replace(NEW_FUNCTIONS, ""))

    finished, built = build(sdk)

    assert finished.returncode == 0
    assert finished.stderr.endswith("luna_ext declares CA_GetSlotId, CA_GetUnassignedSlot itself\n")
    assert age(built) > before


@BUILDS
@pytest.mark.limit(5)
def test_builds_with_the_headers_of_an_older_client_and_says_so(build, sdk):
    write_sdk(sdk, main=SDK_OLD)

    finished, built = build(sdk)

    assert finished.returncode == 0
    assert finished.stderr == (
        f"LUNA_SDK_INCLUDE={sdk}: from before Luna client 10.6; luna_ext declares "
        f"{', '.join(NEW_NAMES)} itself\n"
    )
    assert age(built)


LACKING = [f"-DSDK_LACKS_{name}" for name in NEW_NAMES]


@pytest.mark.parametrize("language", ["c", pytest.param("c++", marks=CPP)])
def test_what_an_older_client_lacks_has_the_layout(tmp_path, language):
    write_sdk(tmp_path, main=SDK_OLD)

    finished = check_layout(tmp_path, *STRICT, *LACKING, language=language)

    assert (finished.returncode, finished.stderr) == (0, "")


@FOR_WINDOWS
def test_what_an_older_client_lacks_is_packed_on_windows(tmp_path):
    header = (ROOT / "include" / "cryptoki_v2.h").read_text()
    struct = r"typedef struct CK_UNASSIGNED_SLOT_INFO \{.*?\} CK_UNASSIGNED_SLOT_INFO;"
    uses = r"^[^\n]*CK_UNASSIGNED_SLOT_INFO CK_PTR[^;]*;|^extern CK_RV CA_Get[^;]*;"
    table = r"^struct CK_SFNT_CA_FUNCTION_LIST \{.*?^\};"
    header, tables = re.subn(table, "", header, flags=re.DOTALL | re.MULTILINE)
    header, structs = re.subn(struct, "", header, flags=re.DOTALL)
    header, others = re.subn(uses, "", header, flags=re.MULTILINE)
    assert (tables, structs, others) == (1, 1, 4)
    (tmp_path / "cryptoki_v2.h").write_text(header)

    finished = check_layout(tmp_path, "-std=c11", *STRICT, *LACKING, compiler=MINGW)

    assert (finished.returncode, finished.stderr) == (0, "")


def leave_out_a_file(sdk):
    (sdk / "sdk_types.h").unlink()
    return "cryptoki_v2.h cannot be compiled: ", "sdk_types.h: No such file or directory"


def cut_off(sdk):
    file = sdk / "cryptoki_v2.h"
    file.write_text(file.read_text()[:600])
    return "cryptoki_v2.h cannot be compiled: ", "error: unterminated"


def change_the_layout(sdk):
    file = sdk / "sdk_types.h"
    file.write_text(
        file.read_text().replace("ulMaxPinLen, ulMinPinLen", "ulMinPinLen, ulMaxPinLen")
    )
    return "cryptoki_v2.h is not that of PKCS #11 v2.40: ", "CK_TOKEN_INFO"


def change_the_layout_of_an_older_client(sdk):
    write_sdk(sdk, main=SDK_OLD)
    return change_the_layout(sdk)


def leave_out_a_constant(sdk):
    file = sdk / "cryptoki_v2.h"
    file.write_text(file.read_text().replace("CKR_SESSION_EXISTS", "CKR_ANOTHER"))
    return "cryptoki_v2.h is not that of PKCS #11 v2.40: ", "CKR_SESSION_EXISTS"


def empty(sdk):
    for file in sdk.iterdir():
        file.unlink()
    return "there is no cryptoki_v2.h", ""


def remove(sdk):
    shutil.rmtree(sdk)
    return "there is no cryptoki_v2.h", ""


def replace_by_a_file(sdk):
    shutil.rmtree(sdk)
    sdk.touch()
    return "there is no cryptoki_v2.h", ""


def make_a_directory_of_the_header(sdk):
    (sdk / "cryptoki_v2.h").unlink()
    (sdk / "cryptoki_v2.h").mkdir()
    return "cryptoki_v2.h: Is a directory", ""


@BUILDS
@pytest.mark.limit(5)
@pytest.mark.parametrize(
    "damage",
    [
        leave_out_a_file,
        cut_off,
        change_the_layout,
        change_the_layout_of_an_older_client,
        leave_out_a_constant,
        empty,
        remove,
        replace_by_a_file,
        make_a_directory_of_the_header,
    ],
)
def test_headers_that_cannot_be_used_are_one_line_and_nothing_is_built(build, sdk, damage):
    write_sdk(sdk)
    problem, detail = damage(sdk)

    finished, built = build(sdk)

    assert (finished.returncode, finished.stdout) == (1, "")
    (line,) = finished.stderr.splitlines()
    assert line.startswith(f"LUNA_SDK_INCLUDE={sdk}: {problem}")
    assert line.endswith(ADVICE)
    assert detail in line
    assert built == []


# ---- setup.py, where something is missing ----

# gcc on a machine that has no headers of Python, nor, by an option, of the C library.
COMPILER_WITHOUT_HEADERS = """#!/bin/sh
for argument do
    shift
    case $argument in -I*/python3.*) argument=-I{directory} ;; esac
    set -- "$@" "$argument"
done
exec gcc {option} "$@"
"""
# What Python was built with is in a file that is named after the platform.
ON_ANOTHER = """
import runpy, sys, sysconfig
sysconfig.get_config_vars()
sys.{name} = {value!r}
runpy.run_path("setup.py")
"""


def no_compiler(directory):
    return {"PATH": str(directory)}, "and there is none that works: ", "gcc libc6-dev"


def no_headers_of_python(directory, option=""):
    compiler = directory / "cc"
    compiler.write_text(COMPILER_WITHOUT_HEADERS.format(directory=directory, option=option))
    compiler.chmod(0o755)
    return {"CC": str(compiler)}, f"with the headers of {sys.executable}, and they", "python3-dev"


def no_headers_of_c(directory):
    variables, _, _ = no_headers_of_python(directory, "-nostdinc")
    return variables, "with the headers of the C library, and they are missing: ", "libc6-dev"


def on_another(name, value):
    return {"setup": ("-c", ON_ANOTHER.format(name=name, value=value))}


def another_platform(directory):
    return on_another("platform", "haiku1"), "cannot be built on haiku1: ", "Linux and Windows"


def another_python(directory):
    return on_another("implementation.name", "pypy"), "cannot be built for pypy: ", "CPython"


def a_python_of_32_bits(directory):
    return on_another("maxsize", 2**31 - 1), "cannot be built for 32 bits: ", "64 bits"


@BUILDS
@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
@pytest.mark.parametrize(
    "lacking",
    [
        no_compiler,
        no_headers_of_python,
        no_headers_of_c,
        another_platform,
        another_python,
        a_python_of_32_bits,
    ],
)
def test_build_that_lacks_something_is_one_line_that_says_what_to_install(
    build, tmp_path, monkeypatch, lacking
):
    monkeypatch.delenv("CC", raising=False)
    (tmp_path / "empty").mkdir()
    options, problem, remedy = lacking(tmp_path / "empty")

    finished, built = build(**options)

    assert (finished.returncode, finished.stdout, built) == (1, "", [])
    (line,) = finished.stderr.splitlines()
    assert line.startswith("luna_ext ")
    assert problem in line
    assert remedy in line


FLAGS_OF_THE_MODULES = """
import json, runpy, setuptools
def tell(ext_modules, **others):
    print(json.dumps([one.extra_compile_args + one.extra_link_args for one in ext_modules]))
setuptools.setup = tell
runpy.run_path("setup.py")
"""


@BUILDS
@pytest.mark.parametrize(("value", "counted"), [("1", True), ("0", False), ("", False)])
def test_modules_count_their_lines_where_the_environment_says_so(value, counted):
    asked = subprocess.run(
        [sys.executable, "-c", FLAGS_OF_THE_MODULES],
        cwd=ROOT,
        env={**os.environ, "LUNA_EXT_COVERAGE": value},
        capture_output=True,
        text=True,
        check=True,
    )
    flags = json.loads(asked.stdout)
    assert len(flags) == 4
    assert all(("--coverage" in of_one) == counted for of_one in flags)
    assert all(("-O0" in of_one) == counted for of_one in flags)


# ---- what is installed ----


def compiled_modules():
    names = [module.name for module in PACKAGE.iterdir()]
    endings = importlib.machinery.EXTENSION_SUFFIXES[0]
    return sorted(name.removesuffix(endings) for name in names if name.endswith(endings))


def compiled_files():
    endings = importlib.machinery.EXTENSION_SUFFIXES[0]
    return [*(PACKAGE / (module + endings) for module in compiled_modules()), Path(library_path())]


def test_modules_are_not_built_anew_because_they_were_imported(tmp_path):
    # Other tests may be running on them.
    rules = ["Makefile", "tests/c/sanitizers.mk"]
    for name in (*rules, "setup.py", "pyproject.toml", "luna_ext/_device.pyx"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / name)
    question = ["make", "-q", "venv/built", "VENV=venv"]
    for made in ("venv/pip", "venv/built"):
        (tmp_path / made).parent.mkdir(exist_ok=True)
        (tmp_path / made).touch()
    later = (tmp_path / "venv/built").stat().st_mtime + 10

    bytecode = tmp_path / "luna_ext" / "__pycache__" / "errors.pyc"
    bytecode.parent.mkdir()
    bytecode.touch()
    os.utime(bytecode, (later, later))
    assert subprocess.run(question, cwd=tmp_path).returncode == 0

    os.utime(tmp_path / "luna_ext" / "_device.pyx", (later, later))
    assert subprocess.run(question, cwd=tmp_path).returncode == 1


def test_package_has_compiled_modules():
    assert compiled_modules() == ["_cluster", "_device", "_mutex"]


def test_layer_that_users_see_has_a_typing_stub():
    assert (PACKAGE / "_cluster.pyi").is_file()


def test_package_says_that_it_is_typed():
    assert (PACKAGE / "py.typed").is_file()


def test_package_has_the_stand_in():
    library = ctypes.CDLL(library_path())

    assert Path(library_path()).parent == PACKAGE
    assert hasattr(library, "C_GetFunctionList")
    assert hasattr(library, "luna_stub_create")


def test_extension_modules_are_not_linked_to_the_stand_in():
    for file in compiled_files():
        assert file.name == "luna_stub.so" or b"luna_stub.so" not in file.read_bytes()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other files")
@pytest.mark.skipif(shutil.which("readelf") is None, reason="readelf is not installed: binutils")
@pytest.mark.parametrize("file", compiled_files(), ids=lambda file: file.name)
def test_compiled_file_is_hardened_and_has_no_symbols(file):
    sections = subprocess.run(["readelf", "-W", "-S", file], capture_output=True, text=True).stdout
    if ".debug_info" in sections:
        pytest.skip("built with -g, for a debugger")

    assert list(weaknesses(file)) == []


def test_wheel_of_other_contents_is_told(tmp_path):
    wheel = tmp_path / "luna_ext-0.1.0-cp311-cp311-linux_x86_64.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for file in PACKAGE.rglob("*"):
            name = str(file.relative_to(PACKAGE.parent))
            if (
                file.is_file()
                and file.suffix not in (".pyx", ".pyc", ".pyd")
                and file.name.split(".")[0] != "_mutex"
            ):
                archive.write(file, name)
        archive.writestr("luna_ext/_mutex.pyx", "")
        archive.writestr("large", bytes(1_300_000))

    found = list(faults(wheel))

    assert f"has {wheel.stat().st_size} bytes, more than {LARGEST}" in found
    assert any(fault.startswith("has other compiled modules: ") for fault in found)
    assert "lacks luna_ext/_mutex.pxd" in found
    assert "has luna_ext/_mutex.pyx, which is no use without the sources" in found
