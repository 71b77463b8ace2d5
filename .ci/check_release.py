#!/usr/bin/env python3
"""Checks that a tag, its argument, names the version of this tree; prints its section of CHANGELOG.md."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def found(file: str, pattern: str) -> str:
    """What the group of a pattern matches in a file of the tree; empty if it does not."""
    match = re.search(pattern, (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return match[1].strip() if match else ""


def problem(tag: str) -> str:
    """What is in the way of a release; empty if nothing is."""
    version = found("luna_ext/__init__.py", r'^__version__ = "([^"\n]+)"')
    if tag != f"v{version}":
        return f"{tag}: the tag of luna_ext {version} is v{version}. Change __version__ or the tag"
    cited = found("CITATION.cff", r"^version: ([^\n]+)")
    if cited != version:
        return f"CITATION.cff: version {cited} is not {version}, luna_ext's. Write that there"
    if not section(version):
        return (
            f"CHANGELOG.md: there is no section [{version}] with a date. Name [Unreleased] "
            f'"[{version}] - YYYY-MM-DD", and begin another [Unreleased]'
        )
    if not found("CHANGELOG.md", rf"^(\[{re.escape(version)}\]: https://)"):
        return f'CHANGELOG.md: the heading [{version}] has no link. Write a line "[{version}]: https://...{tag}"'
    if section("Unreleased"):
        return f"CHANGELOG.md: [Unreleased] is not empty. Move what it says to [{version}]"
    return ""


def section(name: str) -> str:
    """What CHANGELOG.md says of a release, or of what is unreleased."""
    date = "" if name == "Unreleased" else r" - \d{4}-\d\d-\d\d"
    return found("CHANGELOG.md", rf"^## \[{re.escape(name)}\]{date}\n(.*?)(?=^## |\Z)")


def main(tag: str) -> None:
    """End with one line if there is a problem."""
    if trouble := problem(tag):
        raise SystemExit(trouble)
    print(section(tag.removeprefix("v")))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(f"{sys.argv[0]}: one argument, the tag, such as v1.2.3")
    main(sys.argv[1])
