"""A release: one version, one changelog in its form, and the same Pythons everywhere."""

import re
import shutil
import subprocess
import sys
import tomllib
from datetime import date
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import luna_ext

ROOT = Path(__file__).parent.parent
CHECK = ".ci/check_release.py"
VERSION = luna_ext.__version__
TAG = f"v{VERSION}"
CHANGELOG = f"""# Changelog

## [Unreleased]

## [{VERSION}] - 2026-12-01

### Added

- A lock.

## [0.0.1] - 2026-11-01

### Added

- A door.

[{VERSION}]: https://example.org/{TAG}
"""

pytestmark = pytest.mark.skipif(not (ROOT / CHECK).is_file(), reason="not a whole checkout")


@pytest.fixture
def tree(tmp_path):
    """What a release is checked by, with a changelog that is ready for it."""
    for name in (CHECK, "luna_ext/__init__.py", "CITATION.cff"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "CHANGELOG.md").write_text(CHANGELOG)
    return tmp_path


def check(tree, tag=TAG):
    return subprocess.run([sys.executable, tree / CHECK, tag], capture_output=True, text=True)


def test_release_is_announced_by_its_section_of_the_changelog(tree):
    checked = check(tree)

    assert (checked.returncode, checked.stderr) == (0, "")
    assert checked.stdout == "### Added\n\n- A lock.\n"


@pytest.mark.parametrize(
    ("file", "text", "replacement", "problem"),
    [
        ("luna_ext/__init__.py", f'"{VERSION}"', '"99.0"', f"{TAG}: the tag of luna_ext 99.0 is"),
        ("CITATION.cff", f"version: {VERSION}", "version: 9.8", "CITATION.cff: version 9.8 is not"),
        ("CHANGELOG.md", f"## [{VERSION}] - 2026-12-01", "", "CHANGELOG.md: there is no section"),
        ("CHANGELOG.md", " - 2026-12-01", "", "CHANGELOG.md: there is no section"),
        ("CHANGELOG.md", f"[{VERSION}]: https:", "https:", "CHANGELOG.md: the heading ["),
        ("CHANGELOG.md", "[Unreleased]\n", "[Unreleased]\n\n- More.\n", "CHANGELOG.md: [Unrel"),
    ],
)
def test_release_that_is_not_ready_is_one_line(tree, file, text, replacement, problem):
    before = (tree / file).read_text()
    assert text in before
    (tree / file).write_text(before.replace(text, replacement))

    checked = check(tree)

    assert (checked.returncode, checked.stdout) == (1, "")
    (line,) = checked.stderr.splitlines()
    assert line.startswith(problem)


def test_version_to_cite_is_that_of_the_package():
    cited = re.findall(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)

    assert cited == [VERSION]


def test_what_a_release_is_built_with_is_pinned_and_new_enough():
    text = (ROOT / "requirements/build.txt").read_text()
    pinned = dict(re.findall(r"^([\w-]+)==(\S+) \\\n    --hash=sha256:", text, re.MULTILINE))
    build_system = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]
    needed = map(Requirement, build_system["requires"])

    assert all(one.specifier.contains(pinned[one.name.lower()]) for one in needed)


def test_every_python_is_named_tested_and_built_for():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = settings["project"]
    named = re.findall(r"Python :: (3\.\d+)$", "\n".join(project["classifiers"]), re.MULTILINE)
    jobs = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text())["jobs"]
    tested = {
        name: job["strategy"]["matrix"].get("python")
        for name, job in jobs.items()
        if "strategy" in job
    }
    (minors,) = re.findall(r"^cp31\{(.*)\}-\*$", settings["tool"]["cibuildwheel"]["build"])
    built = [f"3.1{minor}" for minor in minors.split(",")]

    assert project["requires-python"] == f">={named[0]}"
    assert tested["linux"] == tested["windows"] == named
    assert [python for python in built if not python.endswith("t")] == named
    # That of 3.13 is not built for any more.
    without_gil = [python for python in built if python.endswith("t")]
    assert tested["free-threaded"] == ["3.13t", *without_gil]
    page = (ROOT / "docs/platforms.md").read_text()
    assert f"CPython {named[0]} to {named[-1]}" in page


def test_changelog_has_the_form_of_keep_a_changelog():
    lines = (ROOT / "CHANGELOG.md").read_text().splitlines()
    headings = [line.removeprefix("## ") for line in lines if line.startswith("## ")]
    kinds = {line.removeprefix("### ") for line in lines if line.startswith("### ")}

    assert lines[0] == "# Changelog"
    assert headings[0] == "[Unreleased]"
    # A heading in brackets is a link.
    assert all(
        any(line.startswith(f"{heading.split()[0]}: ") for line in lines) for heading in headings
    )
    releases = [re.fullmatch(r"\[(\d+)\.(\d+)\.(\d+)\] - (\S+)", line) for line in headings[1:]]
    assert all(releases)
    newest_first = [
        (date.fromisoformat(release[4]), tuple(map(int, release.groups()[:3])))
        for release in releases
    ]
    assert newest_first == sorted(newest_first, reverse=True)
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    # Each entry stands under a kind.
    heading = ""
    for line in lines:
        heading = line if line.startswith("#") else heading
        assert not line.startswith("- ") or heading.startswith("### "), line
