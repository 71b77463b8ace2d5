"""Builds a wheel for each CPython of this Linux machine, and uses each once, installed with nothing else.

The argument is a directory that has the sources as they are released; wheels come into its folder wheels.
From the package index comes what requirements/build.txt pins, and nothing else. A wheel gets the platform
tag that its libraries ask for. Prints a line for each CPython, and ends with 1 if one of them has no
wheel that works.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import check_wheel

ROOT = Path(__file__).resolve().parents[1]
ABOUT = """
import importlib.util, json, pathlib, sys, sysconfig
header = pathlib.Path(sysconfig.get_path("include"), "Python.h")
needed = {str(header): header.exists(), "ensurepip": importlib.util.find_spec("ensurepip")}
free = "t" if sysconfig.get_config_var("Py_GIL_DISABLED") else ""
print(json.dumps({
    "tag": f"cp3{sys.version_info[1]}{free}",
    "fits": sys.implementation.name == "cpython" and sys.version_info[1] >= 11,
    "lacks": [name for name, there in needed.items() if not there],
}))
"""


def candidates():
    """Paths that may be interpreters: of PATH, of pyenv, and the one without the GIL of the tests."""
    directories = os.environ["PATH"].split(os.pathsep)
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    directories += sorted(str(directory) for directory in pyenv.glob("*/bin"))
    for directory in map(Path, directories):
        if directory.is_dir():
            yield from (
                file
                for file in sorted(directory.iterdir())
                if re.fullmatch(r"python3\.\d+t?", file.name)
            )
    own = subprocess.run([ROOT / "tests/python-freethreaded", "--if-built"], stdout=subprocess.PIPE)
    if own.returncode == 0:
        yield Path(os.fsdecode(own.stdout).strip())


def interpreters():
    """By tag, such as cp313t, an interpreter that can build. Of those that cannot, a line says why."""
    found, left_out = {}, {}
    for path in candidates():
        asked = subprocess.run([path, "-c", ABOUT], capture_output=True, text=True)
        about = json.loads(asked.stdout) if asked.returncode == 0 else {"fits": False}
        if about["fits"] and about["lacks"]:
            left_out[about["tag"]] = f"{path} has no {' and no '.join(about['lacks'])}"
        elif about["fits"]:
            found.setdefault(about["tag"], path)
    for tag in sorted(left_out.keys() - found.keys()):
        print(f"{tag}: left out, for {left_out[tag]}", flush=True)
    return found


def run(*command, cwd=ROOT, **variables):
    """Run a command; if it fails, say what it said and raise."""
    done = subprocess.run(
        [*map(str, command)],
        cwd=cwd,
        # A date for auditwheel, which is setup.py's.
        env={**os.environ, "SOURCE_DATE_EPOCH": "946684800", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        print(done.stdout, flush=True)
        done.check_returncode()
    return done.stdout


def make(directory, tag, python, sources):
    """Build a wheel, use it in an environment that has nothing else, and say what came of it."""
    requirements = directory / "requirements"
    builder = directory / tag / "builder"
    run(python, "-m", "venv", builder)
    pip = [builder / "bin/python", "-m", "pip", "-q"]
    pinned = ROOT / "requirements/build.txt"
    run(
        *pip,
        "download",
        "-d",
        requirements,
        "--only-binary",
        ":all:",
        "--require-hashes",
        "-r",
        pinned,
    )
    offline = ["--no-index", "--find-links", requirements]
    run(*pip, "wheel", *offline, "--no-deps", "-w", directory / tag, sources, CPPFLAGS="-Werror")
    (built,) = (directory / tag).glob("*.whl")
    run(sys.executable, "-m", "auditwheel", "repair", "-w", directory / "wheels", built)
    (wheel,) = (directory / "wheels").glob(f"*-{tag}-*.whl")
    if wrong := list(check_wheel.faults(wheel)):
        raise ValueError(f"{wheel.name}: {'; '.join(wrong)}")
    user = directory / tag / "user"
    run(python, "-m", "venv", user)
    run(user / "bin/python", "-m", "pip", "-q", "install", "--no-index", wheel)
    # A warning would say that the GIL was switched on again.
    smoke = [user / "bin/python", "-P", "-W", "error", ROOT / "tests/smoke.py"]
    said = run(*smoke, cwd=user)
    print(f"{tag}: {wheel.name}, {wheel.stat().st_size // 1000} kB: {said.strip()}", flush=True)


def main(directory):
    (sources,) = directory.glob("*.tar.gz")
    failed = []
    for tag, python in sorted(interpreters().items()):
        try:
            make(directory, tag, python, sources)
        except (subprocess.CalledProcessError, ValueError) as error:
            print(f"{tag}: no wheel that works: {error}", flush=True)
            failed.append(tag)
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
