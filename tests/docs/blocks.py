"""The code blocks of README and docs/: what is in them, and how each kind is tried out.

The first word of a block's info string is its language, which says how it is tried; what follows says more:

- `python` is run, and the tests in it are called. The blocks of a page share their names, and have those
  that the fixture `names` gives; they may await. `file=NAME` writes it to a file instead, for the page's
  other blocks.
- `sh` is run by bash, in the page's directory; what it sets, the page's later blocks have. `exit=N` is
  how it has to end, `file=NAME` writes it to a file.
- `console` is a terminal: what follows a `$` is run, the rest is what it prints. `...` stands for
  anything.
- A block that is indented has command lines. Those of luna-ext are run one by one, but for a few
  subcommands; all are read: the subcommand and its options are there, and so are the target of make, the
  extra of pip, the package of Debian and the variable of export.
- PARSED has the languages that are only read, and why.
- `not-run="REASON"` keeps one from being run; Python is compiled all the same.
"""

import ast
import asyncio
import configparser
import contextlib
import doctest
import inspect
import itertools
import os
import re
import shlex
import signal
import subprocess
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import sequence
import yaml
from markdown_it import MarkdownIt
from support import but_for_the_warning

from luna_ext.commands.cli import luna_ext as top

TREE = Path(__file__).parents[2]
PAGES = [
    *(TREE / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((TREE / "docs").rglob("*.md")),
]
PATIENCE = 45.0

RUN = ("python", "sh", "console")
PARSED = {
    "ini": "there is no service manager to run it",
    "yaml": "there is no Kubernetes to run it",
    "toml": "it is the configuration of another program",
    "dockerfile": "there is no container to build it in",
    "mermaid": "it is drawn",
    "text": "it is no code",
    "": "a line for the reader's own cluster and files",
}


class Block(NamedTuple):
    """One code block of a page."""

    page: str
    line: int
    """Of its text, from 1."""
    language: str
    options: dict[str, str]
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: Path) -> Iterator[Block]:
    """The blocks of a page, in their order, also those of list items."""
    name = str(page.relative_to(TREE))
    for token in MarkdownIt().parse(page.read_text()):
        if token.type not in ("fence", "code_block"):
            continue
        assert token.map is not None
        words = shlex.split(token.info)
        language = words.pop(0) if words else ""
        if language.startswith("{"):
            continue  # a directive of Sphinx
        options = dict(word.split("=", 1) for word in words)
        yield Block(name, token.map[0] + (2 if token.info else 1), language, options, token.content)


# ---- Python ----


def compiled(block: Block) -> Any:
    # So that a traceback has the line of the page.
    source = "\n" * (block.line - 1) + block.text
    return compile(source, block.page, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def takes(block: Block, name: str) -> bool:
    """Whether it uses a name that it does not give itself."""
    uses = [
        isinstance(part.ctx, ast.Store)
        for part in ast.walk(ast.parse(block.text))
        if isinstance(part, ast.Name) and part.id == name
    ]
    return bool(uses) and not any(uses)


def functions_to_test(block: Block) -> list[str]:
    """The names of the test functions that it defines, also of those that await."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    functions = [part.name for part in ast.parse(block.text).body if isinstance(part, kinds)]
    return [name for name in functions if name.startswith("test_")]


def call_test(function: Callable[..., Any], fixtures: dict[str, Any]) -> None:
    """Call a test function with the fixtures that it asks for, to its end."""
    wanted = inspect.signature(function).parameters
    result = function(**{name: fixtures[name] for name in wanted})
    if inspect.iscoroutine(result):
        asyncio.run(result)


def run_python(block: Block, names: dict[str, Any]) -> None:
    code = compiled(block)
    result = eval(code, names)
    if code.co_flags & inspect.CO_COROUTINE:
        asyncio.run(result)


# ---- the shell ----


class Shell:
    """bash, whose variables, working directory excepted, last from one block to the next."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.variables = dict(os.environ)

    def run(self, text: str) -> tuple[int, str]:
        """How it ended, and what it printed."""
        after = self.directory / ".environment"
        process = subprocess.Popen(
            ["bash", "-c", f"set -aeuo pipefail\n{text}\nenv -0 >'{after}'"],
            cwd=self.directory,
            env=self.variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            printed, _ = process.communicate(timeout=PATIENCE)
        finally:
            # What it has left running, if it was stopped or has failed.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        if after.exists():
            pairs = after.read_text().split("\0")[:-1]
            self.variables = dict(pair.split("=", 1) for pair in pairs)
            after.unlink()
        return process.returncode, printed

    def run_block(self, block: Block) -> None:
        wanted = int(block.options.get("exit", 0))
        code, printed = self.run(block.text)
        assert code == wanted, f"{block.place} ended with {code}:\n{printed}"

    def run_console(self, block: Block) -> None:
        for command, expected in examples_of(block):
            _, printed = self.run(command)
            printed = "".join(f"{line}\n" for line in but_for_the_warning(printed))
            assert doctest.OutputChecker().check_output(
                expected, printed, doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
            ), f"{block.place}: `{command}` prints\n{printed}\nand not\n{expected}"


def examples_of(block: Block) -> Iterator[tuple[str, str]]:
    """Each command of a terminal, with what it prints."""
    parts = re.split(r"^\$ ", block.text, flags=re.MULTILINE)
    assert parts[0] == "", f"{block.place} does not begin with a command"
    for part in parts[1:]:
        lines = part.splitlines(keepends=True)
        last = next(i for i, line in enumerate(lines) if not line.endswith("\\\n"))
        yield "".join(lines[: last + 1]).rstrip("\n"), "".join(lines[last + 1 :])


# ---- what is only read ----


def read(block: Block) -> None:
    """Find out, without running it, whether a block can be right."""
    match block.language:
        case "python":
            compiled(block)
        case "sh" | "console":
            text = block.text
            if block.language == "console":
                text = "\n".join(command for command, _ in examples_of(block))
            done = subprocess.run(["bash", "-n", "-c", text], capture_output=True, text=True)
            assert done.returncode == 0, f"{block.place}: {done.stderr}"
            for line in command_lines(text):
                if line.startswith("luna-ext "):
                    read_command_line(line, block.place)
        case "ini":
            unit = configparser.ConfigParser(strict=False, interpolation=None)
            unit.optionxform = str  # type: ignore[assignment,method-assign]
            unit.read_string(block.text, block.place)
            assert unit.sections(), f"{block.place} has no section"
        case "yaml":
            assert all(isinstance(part, dict) for part in yaml.safe_load_all(block.text)), (
                block.place
            )
        case "toml":
            tomllib.loads(block.text)
        case "dockerfile":
            words = [line.split()[0] for line in block.text.splitlines() if line[:1].strip()]
            assert words[0] == "FROM", block.place
            assert {*words} <= {"FROM", "RUN", "COPY", "ENV", "USER", "ENTRYPOINT", "CMD"}, (
                block.place
            )
        case "mermaid":
            sequence.draw(block.text)
        case "text":
            # docs/make_command_output.py runs those of its page.
            assert block.page == "docs/command.md" or not block.text.startswith("$ "), (
                f"{block.place}: a command, and no test runs it: make it a block of `console`"
            )
        case "":
            for line in command_lines(block.text):
                read_command_line(line, block.place)


def verify_unit(block: Block) -> None:
    """Let systemd look at a unit; the programs that it names are not installed."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "payments.service")
        file.write_text(block.text)
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", file], capture_output=True, text=True
        )
    wrong = [line for line in done.stderr.splitlines() if "is not executable" not in line]
    assert wrong == [], f"{block.place}: {wrong}"


def command_lines(text: str) -> list[str]:
    return [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]


def is_argument(word: str) -> bool:
    """Not a pipe or a redirection, which the shell keeps, with what follows; or the next command's."""
    return re.match(r"\||\d?[<>]", word) is None and not word.endswith(";")


def read_command_line(line: str, place: str) -> None:
    """Whether the command of a line, and what it names, is there."""
    words = [*itertools.takewhile(is_argument, shlex.split(line, comments=True))]
    while words and re.match(r"[A-Z_]+=", words[0]):
        read_variable(words.pop(0), place)
    match words:
        case []:
            pass
        case ["eval", text] if text.startswith("$("):
            read_command_line(text[2:-1], place)
        case ["luna-ext", *arguments]:
            read_arguments(arguments, place)
        case ["make", *targets]:
            for target in targets:
                name = target.partition("=")[0]
                assert name.isupper() or name in make_targets(), f"{place}: no target {target}"
        case ["pip", "install", *packages]:
            for extra in re.findall(r"\[([\w,]+)\]", " ".join(packages)):
                assert {*extra.split(",")} <= {*extras()}, f"{place}: no extra {extra}"
        case ["apt-get", "install", *packages]:
            assert {*packages} <= {*(TREE / ".ci" / "packages").read_text().split()}, (
                f"{place}: {packages}"
            )
        case ["export", variable]:
            read_variable(variable, place)
        case _:
            raise AssertionError(
                f"{place}: `{line.strip()}` is not tried out: make it a block of `sh`, which is run, or "
                "say not-run= and the reason"
            )


def read_arguments(arguments: list[str], place: str) -> None:
    """Whether luna-ext would take these."""
    try:
        context = top.make_context("luna-ext", [*arguments])
        name, one, rest = top.resolve_command(context, [*context._protected_args, *context.args])
        while isinstance(one, click.Group):
            context = one.make_context(name, rest, parent=context)
            name, one, rest = one.resolve_command(
                context, [*context._protected_args, *context.args]
            )
        assert one is not None
        one.make_context(name, rest, parent=context).close()
    except click.UsageError as error:
        raise AssertionError(
            f"{place}: {shlex.join(arguments)}: {error.format_message()}"
        ) from None


def read_variable(assignment: str, place: str) -> None:
    name = assignment.partition("=")[0]
    assert not name.startswith("LUNA_") or name in documented_variables(), f"{place}: {name}"


# ---- what there is ----


def every_command(
    group: click.Group = top, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Each subcommand of luna-ext, by the words that call it; those of a group after it."""
    context = click.Context(group)
    for name in group.list_commands(context):
        one = group.get_command(context, name)
        assert one is not None
        yield (*path, name), one
        if isinstance(one, click.Group):
            yield from every_command(one, (*path, name))


def rules_of_make() -> str:
    text = "".join((TREE / name).read_text() for name in ("Makefile", "tests/c/sanitizers.mk"))
    return text.replace("\\\n", " ")


def make_targets() -> set[str]:
    """Those of all rules but for the ones that make a file, whose name has a dot or a slash."""
    heads = re.findall(r"^([a-zA-Z][\w -]*):(?!=)", rules_of_make(), re.MULTILINE)
    return {name for line in heads for name in line.split()} | phony_targets()


def phony_targets() -> set[str]:
    lines = re.findall(r"^\.PHONY:(.*)", rules_of_make(), re.MULTILINE)
    return {name for line in lines for name in line.split()}


def extras() -> list[str]:
    project = tomllib.loads((TREE / "pyproject.toml").read_text())["project"]
    return [*project["optional-dependencies"]]


def documented_variables() -> set[str]:
    page = (TREE / "docs" / "reference" / "environment.md").read_text()
    return {*re.findall(r"^\| (\w+) \|", page, re.MULTILINE)} - {"variable"}
