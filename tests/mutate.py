"""Puts the faults of mutations.toml into a copy of the tree, one at a time: does a test find each?

python tests/mutate.py [--look] [--fitting] [--sample N] [--only NUMBERS_OR_NAME]

The copy is in build/mutate. The modules are built there, and tests run until one fails: first those that
the fault names, then all of its layer. Tests that hang have found the fault too. Ends with 1 if a fault has
survived.
"""

import argparse
import contextlib
import filecmp
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent
COPY = PROJECT / "build/mutate"
COPIED = ("README.md", "LICENSE", "setup.py", "pyproject.toml")
COPIED_FOLDERS = ("include", "luna_ext", "stub_lib", "tests", "examples", "benchmarks", "docs")
HANG_SECONDS = 60
"""For one test; a test that says `limit(n)` has n times as long."""
FILE_SECONDS = 600
NOTHING_TO_RUN = 5
"""pytest's status where a whole file is skipped."""

Fault = dict[str, Any]


def read_table() -> tuple[list[Fault], dict[str, list[str]]]:
    table = tomllib.loads((HERE / "mutations.toml").read_text())
    return table["fault"], table["layers"]


def problems(faults: list[Fault], layers: dict[str, list[str]]) -> list[str]:
    """What is wrong with the table: each fault has to change one place, and to have a name of its own."""
    found = []
    names = [fault["name"] for fault in faults]
    for fault in faults:
        count = (PROJECT / "luna_ext" / fault["file"]).read_text().count(fault["old"])
        if count != 1:
            found.append(f"{fault['name']}: its text is found {count} times in {fault['file']}")
        if fault["old"] == fault["new"]:
            found.append(f"{fault['name']}: changes nothing")
        if names.count(fault["name"]) > 1:
            found.append(f"{fault['name']}: named twice")
    tests = {test for tests in layers.values() for test in tests}
    tests.update(test for fault in faults for test in fault.get("tests", ()))
    return found + [
        f"there is no {file_of(test)}" for test in tests if not (PROJECT / file_of(test)).exists()
    ]


def file_of(test: str) -> str:
    folder, slash, name = test.rpartition("/")
    return f"tests/{folder}{slash}test_{name}.py" if name else f"tests/{folder}"


def chosen(faults: list[Fault], only: str | None, sample: int | None) -> list[tuple[int, Fault]]:
    numbered = list(enumerate(faults, 1))
    if only and re.fullmatch(r"[\d,]+", only):
        numbers = {int(number) for number in only.split(",") if number}
        numbered = [(number, fault) for number, fault in numbered if number in numbers]
    elif only:
        numbered = [(number, fault) for number, fault in numbered if re.search(only, fault["name"])]
    if sample is not None:
        drawn = random.Random(sample).sample(numbered, min(sample, len(numbered)))
        numbered = sorted(drawn, key=lambda each: each[0])
    return numbered


def renew_copy() -> None:
    """Files that are as they were keep their time, so that nothing is built anew for them."""

    def copy(source: str, target: str) -> None:
        if not os.path.exists(target) or not filecmp.cmp(source, target, shallow=False):
            shutil.copy(source, target)

    shutil.rmtree(COPY / "tests", ignore_errors=True)
    COPY.mkdir(parents=True, exist_ok=True)
    for name in COPIED:
        copy(str(PROJECT / name), str(COPY / name))
    for name in COPIED_FOLDERS:
        shutil.copytree(
            PROJECT / name,
            COPY / name,
            copy_function=copy,
            ignore=shutil.ignore_patterns("*.so", "__pycache__"),
            dirs_exist_ok=True,
        )


def build() -> None:
    """Build what has changed, without optimisation, which takes the compiler half the time."""
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    status, output = run(command, 10 * HANG_SECONDS, CFLAGS="-g -O0")
    if status != 0:
        sys.exit(f"{output}\nit cannot be built")


def run(command: list[str], seconds: float, **variables: str) -> tuple[int | None, str]:
    """Run it in the copy, with all that it starts: its status, None if it hung, and what it said."""
    environment = os.environ | {"PYTHONPATH": str(COPY), "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= variables
    log = COPY / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=COPY, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    try:
        status = process.wait(seconds)
    except subprocess.TimeoutExpired:
        status = None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return status, log.read_text(errors="replace")


def failing_test(tests: list[str]) -> str | None:
    """Run these tests; the first one that fails."""
    for test in tests:
        file = file_of(test)
        command = [sys.executable, "-P", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
        command += ["-o", f"faulthandler_timeout={HANG_SECONDS}", file]
        status, output = run(command, FILE_SECONDS)
        if status not in (0, NOTHING_TO_RUN):
            found = re.search(r"^(?:FAILED|ERROR) (tests/\S+)", output, re.MULTILINE)
            hung = re.search(r"^  File .* in (test_\w+)", output, re.MULTILINE)
            return found[1] if found else f"{file} {hung[1] if hung else ''} ended with {status}"
    return None


def what_finds(fault: Fault, tests: list[str]) -> str | None:
    """The test that finds the fault, if one does."""
    file = COPY / "luna_ext" / fault["file"]
    text = file.read_text()
    file.write_text(text.replace(fault["old"], fault["new"]))
    try:
        build()
        return failing_test(tests)
    finally:
        file.write_text(text)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--look", action="store_true", help="only look whether the table fits the code")
    add("--only", help="numbers, as 3,14, or a regular expression for the names")
    add("--fitting", action="store_true", help="only the tests that the fault names")
    add("--sample", type=int, metavar="N", help="so many of them, always the same ones")
    options = parser.parse_args()
    faults, layers = read_table()
    if found := problems(faults, layers):
        sys.exit("\n".join(found))
    if options.look:
        return 0
    renew_copy()
    build()
    faults_to_try = chosen(faults, options.only, options.sample)
    if options.only is None:
        fitting = {test for _, fault in faults_to_try for test in fault.get("tests", ())}
        if failing := failing_test(sorted(fitting)):
            sys.exit(f"without a fault: {failing}")
    survived = 0
    for number, fault in faults_to_try:
        if "equivalent" in fault:
            print(f"{number:4} equivalent {fault['name']}: {fault['equivalent']}", flush=True)
            continue
        began = time.monotonic()
        tests = fault["tests"]
        if not options.fitting:
            layer = fault["file"].split("/")[0].removesuffix(".py")
            tests = tests + [test for test in layers[layer] if test not in tests]
        finder = what_finds(fault, tests)
        survived += finder is None
        outcome = "SURVIVED  " if finder is None else "caught    "
        seconds = time.monotonic() - began
        print(f"{number:4} {outcome} {fault['name']} [{seconds:.0f} s] {finder or ''}", flush=True)
    print(f"{survived} survived")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
