"""README and docs/ are true: their code blocks are run on the stand-in, or at least read."""

import ast
import asyncio
import contextlib
import gc
import os
import re
import shutil
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path

import pytest
import tenants
from blocks import (
    PAGES,
    PARSED,
    RUN,
    TREE,
    Block,
    Shell,
    blocks_of,
    call_test,
    command_lines,
    compiled,
    every_command,
    functions_to_test,
    read,
    read_command_line,
    run_python,
    takes,
    verify_unit,
)
from prometheus_client import CollectorRegistry
from support import STAND_IN_IS_MEANT, install_command

import luna_ext
from luna_ext.commands.cli import luna_ext as command
from luna_ext.stub import library_path

SOFTHSM = "/usr/lib/softhsm/libsofthsm2.so"
NEEDS = {
    "docs/howto/asyncio.md": ["fastapi", "httpx"],
    "docs/howto/celery.md": ["celery"],
    "docs/howto/gunicorn.md": ["gunicorn", "curl"],
    "docs/howto/uwsgi.md": ["uwsgi", "curl"],
    "docs/concepts/keyrings_and_clusters.md": ["pkcs11-tool"],
    "docs/howto/systemd.md": ["pkcs11"],
    "docs/neighbours.md": ["PyKCS11"],
    "docs/tutorial.md": [SOFTHSM, "pkcs11"],
    "docs/real_cryptography.md": [SOFTHSM, "pkcs11-tool", "openssl"],
    "docs/stand_in.md": ["pkcs11-tool"],
}
"""Modules, files and programs without which the blocks of a page cannot be run."""

SO_PIN, USER_PIN = "so-pin-1", "user-pin-1"


def is_there(thing):
    if thing.startswith("/"):
        return Path(thing).exists()
    return shutil.which(thing) is not None or find_spec(thing) is not None


def name_of(page):
    return str(page.relative_to(TREE))


@pytest.fixture
def shell(luna_cluster, tmp_path, monkeypatch):
    """Of a user who has luna_ext installed, and the stand-in for an HSM."""
    programs = tmp_path / ".bin"
    programs.mkdir()
    install_command(programs / "luna-ext")
    # A reader's own program.
    make_programs(tmp_path, "backup")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(
        "PATH",
        os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]]),
    )
    monkeypatch.setenv("PYTHONPATH", str(TREE))
    monkeypatch.setenv("LUNA_EXT_LIBRARY", library_path())
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p no:asyncio -p no:cacheprovider")
    monkeypatch.chdir(tmp_path)
    return Shell(tmp_path)


@pytest.fixture
def names(luna_cluster):
    """What the blocks of Python take for granted, as a reader does."""

    async def sign_all(documents):
        pass

    with luna_cluster.library() as luna:
        for label in ("payments-01", "alice"):
            with luna.claim(luna_cluster.cluster_id) as token:
                token.assign(label, so_pin=SO_PIN, user_pin=USER_PIN)
    return {
        "__name__": "documentation",
        "asyncio": asyncio,
        "luna_ext": luna_ext,
        "SO_PIN": SO_PIN,
        "USER_PIN": USER_PIN,
        "old": USER_PIN,
        "new": "user-pin-2",
        "labels": ["payments-03", "payments-04"],
        "documents": [b"order 4711"],
        "sign": lambda document: None,
        "sign_all": sign_all,
        "pytest": pytest,
        **{name: getattr(tenants, name) for name in ("TenantError", "with_keyring")},
        "work": lambda slot_id: None,
    }


def run_with_library(block, names, cluster):
    """The block has `luna`, an open Library, and a `slot` of it, unless it opens a Library itself."""
    with contextlib.ExitStack() as stack:
        tests = functions_to_test(block)
        if takes(block, "luna") or takes(block, "slot") or tests:
            names["luna"] = stack.enter_context(cluster.library())
            names["slot"] = names["luna"].slot(42)
        run_python(block, names)
        fixtures = {"luna": names.get("luna"), "luna_cluster": cluster}
        for test in tests:
            call_test(names[test], fixtures)


@pytest.mark.parametrize("begin", ["def", "async def"])
def test_tests_of_a_block_are_called(names, luna_cluster, begin):
    block = Block("page.md", 1, "python", {}, f"{begin} test_it(luna):\n    assert luna.closed\n")
    with pytest.raises(AssertionError):
        run_with_library(block, names, luna_cluster)


@pytest.mark.luna_cluster(keyrings=150)
@STAND_IN_IS_MEANT
@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(b.language in RUN for b in blocks_of(page))], ids=name_of
)
def test_blocks_can_be_run(page, luna_cluster, names, shell, tmp_path):
    missing = [one for one in NEEDS.get(name_of(page), []) if not is_there(one)]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    for block in blocks_of(page):
        if "file" in block.options:
            (tmp_path / block.options["file"]).write_text(block.text)
        elif "not-run" in block.options or block.language not in RUN:
            continue
        elif block.language == "python":
            run_with_library(block, names, luna_cluster)
        elif block.language == "sh":
            shell.run_block(block)
        else:
            shell.run_console(block)
    # What a block has left open is told of as a part of this page's test, and not of a later one.
    names.clear()
    gc.collect()


def examples_of_docstrings():
    """The reference has them as well. Each with the name that it describes; `...` is a PIN in it."""
    package = TREE / "luna_ext"
    for file in sorted(
        [package / "_cluster.pyi", *package.glob("*.py"), *package.glob("stub/*.py")]
    ):
        for part in ast.walk(ast.parse(file.read_text())):
            if isinstance(part, ast.Module | ast.ClassDef | ast.FunctionDef):
                docstring = ast.get_docstring(part) or ""
                for text in re.findall(r"::\n\n((?:(?: {4}.*)?(?:\n|$))+)", docstring):
                    yield getattr(part, "name", file.stem), textwrap.dedent(text)


@pytest.mark.luna_cluster(keyrings=50)
@STAND_IN_IS_MEANT
@pytest.mark.skipif(find_spec("pkcs11") is None, reason="python-pkcs11 is not installed")
@pytest.mark.parametrize("name", sorted({name for name, _ in examples_of_docstrings()}))
def test_examples_of_docstrings_can_be_run(name, luna_cluster, names, monkeypatch):
    monkeypatch.setattr("prometheus_client.REGISTRY", CollectorRegistry())
    for described, text in examples_of_docstrings():
        if described == name:
            text = text.replace("so_pin=...", "so_pin=SO_PIN")
            text = text.replace("user_pin=...", "user_pin=USER_PIN")
            run_with_library(Block(name, 1, "python", {}, text), names, luna_cluster)
    names.clear()
    gc.collect()


NOT_RUN = {
    "bench": "it takes ten seconds; tests/commands/test_bench.py has it",
    "doctor": "it finds the stand-in to be a problem; docs/command.md shows what it prints",
    "probe": "it takes seconds; docs/command.md shows what it prints",
    "provision": "it asks for a PIN on the terminal; tests/commands/test_pins.py does so",
}
"""The subcommands whose lines in indented blocks are read alone."""


def command_lines_of(page):
    """Those of luna-ext in its indented blocks."""
    blocks = [block for block in blocks_of(page) if not block.language]
    return [
        line.strip()
        for block in blocks
        for line in command_lines(block.text)
        if line.split()[0] == "luna-ext" and line.split()[1] not in NOT_RUN
    ]


def make_programs(directory, *programs):
    for name in programs:
        (directory / name).write_text("#!/bin/sh\n")
        (directory / name).chmod(0o755)


@pytest.mark.luna_cluster(keyrings=50)
@STAND_IN_IS_MEANT
@pytest.mark.parametrize("page", [*filter(command_lines_of, PAGES)], ids=name_of)
def test_command_lines_of_indented_blocks_can_be_run(page, luna_cluster, names, shell, tmp_path):
    """Where a second host holds the lock that they ask for is not here."""
    with luna_cluster.library() as luna, luna.claim(luna_cluster.cluster_id) as token:
        token.assign("payments-02", so_pin=SO_PIN)
    make_programs(tmp_path, "rotate-keys", "initialise")
    make_programs(tmp_path / ".bin", "rotate", "copy", "initialise", "sleep")
    pin = tmp_path / "so.pin"
    pin.write_text(SO_PIN)
    pin.chmod(0o600)
    for line in command_lines_of(page):
        code, printed = shell.run(line)
        assert code == 0, f"{name_of(page)}: {line}\n{printed}"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_units_are_right_for_systemd():
    units = [
        block
        for page in PAGES
        for block in blocks_of(page)
        if block.language == "ini" and "[Service]" in block.text
    ]
    assert units
    for unit in units:
        verify_unit(unit)


@pytest.fixture
def files_of_a_reader(tmp_path, monkeypatch):
    """What command lines that are only read name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LUNA_STUB_STATE", "cluster")
    Path("labels.txt").write_text("orders\n")


COMMANDS = {"luna-ext": command} | {
    " ".join(("luna-ext", *path)): one for path, one in every_command()
}


@pytest.mark.parametrize("name", COMMANDS, ids=lambda name: name.replace(" ", "-"))
def test_examples_of_a_help_are_read(name, files_of_a_reader):
    lines = re.findall(
        r"(?:[A-Z_]+=\S+ )?luna-ext .*?(?=\)\"|$)", COMMANDS[name].epilog, re.MULTILINE
    )
    assert lines
    for line in lines:
        read_command_line(line, f"{name} --help")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_blocks_that_are_not_run_are_read(page, files_of_a_reader):
    for block in blocks_of(page):
        assert block.language in RUN or block.language in PARSED, (
            f"{block.place}: no test knows what to do with {block.language!r}"
        )
        if "not-run" in block.options:
            assert len(block.options["not-run"]) > 10, f"{block.place}: no reason"
        if block.language not in RUN or "not-run" in block.options:
            read(block)
        elif block.language == "python":
            compiled(block)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_reader_is_told_the_name_of_each_file(page):
    """The info string of a block, which says it, is not shown."""
    lines = page.read_text().splitlines()
    for block in blocks_of(page):
        if "file" in block.options:
            before = "\n".join(lines[max(block.line - 8, 0) : block.line - 2])
            assert f"`{block.options['file']}`" in before, block.place
