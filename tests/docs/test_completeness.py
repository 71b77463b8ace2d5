"""What there is, is documented: names, environment variables, extras, targets of make, options."""

import ast
import importlib
import inspect
import re
import subprocess
import tomllib

import click
import pytest
import yaml
from blocks import (
    PAGES,
    TREE,
    blocks_of,
    documented_variables,
    every_command,
    extras,
    make_targets,
    phony_targets,
)

from luna_ext.commands.cli import luna_ext as command

PUBLIC_MODULES = ("luna_ext", "luna_ext.metrics", "luna_ext.stub")
DOCS = "".join(page.read_text() for page in PAGES)
REFERENCE = "".join(
    page.read_text() for page in sorted((TREE / "docs" / "reference").glob("*.rst"))
)


def sources():
    folders = [TREE / "luna_ext", TREE / "stub_lib", TREE / "tests" / "stress"]
    kinds = {".py", ".pyx", ".pxd", ".pyi", ".c", ".h"}
    yield from (file for folder in folders for file in folder.rglob("*") if file.suffix in kinds)
    yield TREE / "setup.py"
    yield TREE / "Makefile"


def variables_of_the_sources():
    """A string that is the name of a variable, and what the Makefile sets."""
    named = re.compile(
        r'"(LUNA_[A-Z0-9_]+)"|^\t.*?\b(LUNA_[A-Z_]+)=|\$\{?(LUNA_[A-Z_]+)', re.MULTILINE
    )
    return {
        name
        for file in sources()
        for names in named.findall(file.read_text())
        for name in names
        if name
    }


OF_OTHERS = {
    "CFLAGS": "every compiler's",
    "COMP_LINE": "of bash, while it completes",
    "LC_ALL": "the system's: setup.py lets the compiler speak English",
    "PYTHONSAFEPATH": "Python's: `luna-ext demo` sets it for its processes",
    "SOURCE_DATE_EPOCH": "of all that builds packages",
    "TERM": "every terminal's",
    "_LUNA_EXT_COMPLETE": "between the shell and what `luna-ext completion` prints",
}
"""The variables that Python code reads or sets, which are no option of luna_ext, and why."""


def variables_that_python_reads():
    """In quotes, or by the name of a constant, which is the same in all files or may be any of them."""
    texts = [file.read_text() for file in sources()]
    constant = re.compile(r'^(\w+)(?:: \w+)? = "(\w+)"$', re.MULTILINE)
    constants = [pair for text in texts for pair in constant.findall(text)]
    used = re.compile(
        r'environ(?:\.\w+\(|\[)([\w."]+)|getenv\(([\w."]+)|([\w."]+) (?:not )?in os\.environ\b'
    )
    for word in {word for text in texts for words in used.findall(text) for word in words if word}:
        if word.startswith('"'):
            yield word.strip('"')
        else:
            last = word.rpartition(".")[2]
            yield from (value for name, value in constants if name == last)


def test_every_environment_variable_is_documented_and_no_other():
    told = {name for name in documented_variables() if name.startswith("LUNA_")}
    assert variables_of_the_sources() == told
    assert {*variables_that_python_reads()} - documented_variables() == {*OF_OTHERS}


def test_every_environment_variable_has_a_test():
    """Outside of this folder, where all of them are named."""
    tests = "".join(
        file.read_text()
        for file in (TREE / "tests").rglob("*.py")
        if "docs" not in file.relative_to(TREE).parts
    )
    assert [name for name in documented_variables() if not re.search(rf"\b{name}\b", tests)] == []


@pytest.mark.parametrize("module", PUBLIC_MODULES)
def test_every_public_name_is_in_the_reference(module):
    names = importlib.import_module(module).__all__
    shown = {*re.findall(r"^.. autoapi\w+:: [\w.]*?\b(\w+)(?:\(.*\))?$", REFERENCE, re.MULTILINE)}
    assert [name for name in names if name not in shown] == []


def test_every_exception_is_in_the_troubleshooting():
    page = (TREE / "docs" / "troubleshooting.md").read_text()
    names = [name for name in importlib.import_module("luna_ext").__all__ if name.endswith("Error")]
    assert len(names) > 20
    assert [name for name in names if f"`{name}`" not in page] == []


def test_every_audit_event_is_documented_and_no_other():
    sources = "".join(
        file.read_text() for file in (TREE / "luna_ext").rglob("*.py*") if file.suffix != ".pyc"
    )
    raised = re.findall(r'\b(?:PySys_Audit|audit)\("(luna_ext\.\w+)"', sources)
    page = (TREE / "docs" / "lock.md").read_text()
    assert {*raised} == {*re.findall(r"^\| `(luna_ext\.\w+)` \|", page, re.MULTILINE)}


def test_every_fixture_for_pytest_is_in_the_reference():
    source = (TREE / "luna_ext" / "pytest_plugin.py").read_text()
    fixtures = re.findall(r"^@pytest\.fixture.*\ndef (\w+)", source, re.MULTILINE)
    assert len(fixtures) == 6
    for name in fixtures:
        assert f"luna_ext.pytest_plugin.{name}\n" in REFERENCE, name


def test_signature_of_library_in_the_reference_is_its_own():
    import luna_ext

    signature = str(inspect.signature(luna_ext.Library)).replace("'", '"')
    assert f"luna_ext.Library{signature}" in REFERENCE


def test_extras_are_installed_from_what_a_reader_has():
    """From a clone, a wheel or a directory: no index need have luna_ext."""
    by_name = re.compile(r"(?<![/\w])luna_ext\[")
    for page in PAGES:
        assert not by_name.search(page.read_text()), page
    for file in (TREE / "luna_ext").rglob("*.py*"):
        if file.suffix in {".py", ".pyi", ".pyx"}:
            assert not by_name.search(file.read_text()), file


def test_every_extra_is_documented():
    said = {
        name
        for names in re.findall(r"(?:luna_ext|whl|\.)\[([\w,]+)\]", DOCS)
        for name in names.split(",")
    }
    assert said == {*extras()}


TESTS_OF_EXTRAS = {
    "cli": "commands/test_cli.py",
    "prometheus": "test_metrics.py",
    "pkcs11": "test_neighbours.py",
    "pykcs11": "test_neighbours.py",
}
"""Where each is used, and where it is missing."""


def test_every_extra_has_a_test():
    assert {*TESTS_OF_EXTRAS} == {*extras()}
    packages = tomllib.loads((TREE / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    for extra, file in TESTS_OF_EXTRAS.items():
        tests = (TREE / "tests" / file).read_text()
        for package in packages[extra]:
            assert re.match(r"[\w-]+", package)[0] in tests, (extra, file)


def test_tests_have_what_every_extra_installs():
    """So none of their tests is skipped."""
    project = tomllib.loads((TREE / "pyproject.toml").read_text())
    groups = project["dependency-groups"]

    def names(requirements):
        for one in requirements:
            if isinstance(one, str):
                yield re.match(r"[\w-]+", one)[0]
            else:
                yield from names(groups[one["include-group"]])

    installed = {*names(groups["test"])}
    of_extras = project["project"]["optional-dependencies"]
    assert {extra: {*names(of_extras[extra])} - installed for extra in of_extras} == {
        extra: set() for extra in of_extras
    }


def test_every_package_has_one_lower_bound():
    """`make lowest` installs each at its bound, and could not do it with two of them."""
    text = (TREE / "pyproject.toml").read_text()
    bounds = {}
    for name, bound in re.findall(r"([A-Za-z0-9-]+)>=([0-9.]+)", text):
        bounds.setdefault(name, set()).add(bound)
    assert {name: found for name, found in bounds.items() if len(found) > 1} == {}


BY_HAND = {
    "arm64": "an hour on qemu, of what the workflow does on arm64",
    "benchmark": "an idle machine for minutes; tests/test_benchmarks.py tries each script",
    "chroot-test": "of what the workflow does on the same Pythons",
    "clean": "there is nothing to clean",
    "coverage": "it is for people to read",
    "mutate": "hours; `make check` looks whether each mutation can be made",
    "pins": "it asks for the newest of everything",
    "stress": "minutes; `make test` runs the short form of its tests",
    "tsan-freethreaded": "it builds a CPython for that",
    "wheels": "the workflow builds each by cibuildwheel",
    "windows": "tests/stub/test_windows.py, which `make test` runs as well, and a compilation",
}
"""The targets of make that neither .ci/run nor a workflow runs, and why."""


def targets_that_are_run():
    texts = [(TREE / ".ci" / "run").read_text()]
    for file in (TREE / ".github" / "workflows").glob("*.yml"):
        texts.append(file.read_text())
        # `make "$TARGET"`
        for job in yaml.safe_load(texts[-1])["jobs"].values():
            matrix = job.get("strategy", {}).get("matrix", {})
            values = [
                *matrix.get("sanitizer", ()),
                *(one["target"] for one in matrix.get("include", ())),
            ]
            texts += [f"make {value}" for value in values]
    text = "\n".join(re.sub(r"^\s*#.*", "", text, flags=re.MULTILINE) for text in texts)
    return {*re.findall(r"\bmake ([a-z][\w-]*)", text)} & make_targets()


def test_every_switch_of_the_stand_in_is_documented_and_has_a_test():
    source = (TREE / "stub_lib" / "control.c").read_text()
    values = {}
    for name, value in re.findall(r'\{"(\w+)", "(\w+)", SWITCH_', source):
        values.setdefault(name, []).append(value)
    assert len(values) > 10
    page = (TREE / "docs" / "stand_in.md").read_text()
    docstring = " ".join(importlib.import_module("luna_ext.stub").Cluster.switch.__doc__.split())
    tests = "".join(
        file.read_text()
        for file in (TREE / "tests").rglob("*.py")
        if "docs" not in file.relative_to(TREE).parts
    )
    for name, settings in values.items():
        shown = ", ".join(f"`{value}`" for value in settings)
        assert f"| `{name}` | {shown} |" in page, name
        assert f" {name} {', '.join(settings)} " in docstring, name
        assert re.search(rf'"{name}"', tests), name


def test_every_target_of_make_is_run_by_ci_or_says_why_not():
    # Steps of others.
    steps = {target for target in make_targets() if target.endswith("-tools")} | {"model"}
    assert make_targets() - steps - targets_that_are_run() == {*BY_HAND}


@pytest.mark.parametrize("target", sorted(make_targets()))
def test_recipe_of_a_target_names_files_that_are_there(target):
    # What a recipe does in other runs of make, and in its own shell, is not done.
    done = subprocess.run(
        ["make", "-n", "SHELL=/bin/true", "VENV=build/none", target],
        cwd=TREE,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    folders = "tests|benchmarks|docs|examples|requirements|include|stub_lib"
    named = re.findall(rf"(?<![\w./@])(?:\.\./)*((?:{folders})(?:/[\w.-]+)+)", done.stdout)
    assert [name for name in named if not (TREE / name).exists()] == []


def test_every_target_of_make_is_phony():
    """What is not would never be made where a file or folder has its name, as docs and tests have."""
    assert make_targets() - phony_targets() == set()


def test_every_target_of_make_is_documented():
    # That of a sanitizer's programs is a step of another target.
    targets = {target for target in make_targets() if not target.endswith("-tools")}
    # A line may end within a command.
    assert {
        target for target in targets if not re.search(rf"\bmake\s+{target}\b(?!-)", DOCS)
    } == set()


def test_no_page_and_no_help_has_a_fixed_name_in_a_directory_that_all_users_share():
    """Another user could have made the file before."""
    helps = (f"{one.help} {one.epilog}" for _, one in every_command())
    shared = r"(?:/tmp|/var/tmp|/dev/shm)/\w[^\s'\"]*"
    assert re.findall(shared, DOCS + "".join(helps)) == []


def code_of(page):
    """What a page has in backticks."""
    return re.findall(r"`([^`\n]+)`", (TREE / "docs" / page).read_text())


def test_every_file_of_the_package_has_a_place_in_the_architecture():
    """By its name or its folder's; a layer's own files are known by the layer's name."""
    package = TREE / "luna_ext"
    named = {*code_of("architecture.md")}
    unsaid = [
        path
        for path in (file.relative_to(package) for file in package.rglob("*"))
        if path.suffix in {".py", ".pyx", ".pxd", ".h"}
        and not named & {path.name, path.stem, f"{path.parent}/"}
    ]
    assert unsaid == []
    named = {*code_of("stand_in.md")}
    system = re.compile("platform_|exports_")
    files = [file.name for file in (TREE / "stub_lib").glob("*.c")]
    assert [name for name in files if name not in named and not system.match(name)] == []


def test_what_the_architecture_names_is_there():
    files = [
        file
        for folder in ("luna_ext", "tests", "benchmarks", "docs", "stub_lib")
        for file in (TREE / folder).rglob("*")
        if file.suffix in {".py", ".pyi", ".pyx", ".pxd", ".c", ".h", ".mk"}
    ]
    texts = [(TREE / "Makefile").read_text(), *(file.read_text() for file in files)]
    texts += [" ".join(file.parts) for file in files]
    there = {*re.findall(r"\w+", " ".join(texts))}
    words = {word for code in code_of("architecture.md") for word in re.findall(r"\w{2,}", code)}
    gone = {word for word in words - there if not any(one.startswith(word) for one in there)}
    assert gone == set()


def test_every_subcommand_is_documented():
    page = (TREE / "docs" / "command.md").read_text()
    unsaid = [
        " ".join(path)
        for path, _ in every_command()
        if not re.search(rf"`{path[-1]}(?![\w-])", page)
    ]
    assert unsaid == []


def words_of(text):
    return {*re.findall(r"[\w-]+", text)}


def words_of_code(part):
    """Those of its strings, docstrings excepted, and of the helpers and fixtures that it names."""
    docstrings = {
        one.value
        for one in ast.walk(part)
        if isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant)
    }
    for one in ast.walk(part):
        if isinstance(one, ast.Constant) and isinstance(one.value, str) and one not in docstrings:
            yield from words_of(one.value)
        elif isinstance(one, ast.Name):
            yield one.id


def command_lines_that_are_tried():
    """The words of each function of the tests of the command, and of each line that the pages run."""
    for file in sorted((TREE / "tests" / "commands").glob("*.py")):
        parts = ast.parse(file.read_text()).body
        constants = {
            target.id: {*words_of_code(part.value)}
            for part in parts
            if isinstance(part, ast.Assign)
            for target in part.targets
            if isinstance(target, ast.Name)
        }
        for part in parts:
            words = {*words_of_code(part)}
            yield words.union(*(constants.get(word, ()) for word in words))
    for page in PAGES:
        for block in blocks_of(page):
            # docs/make_command_output.py runs these.
            shown = page.name == "command.md" and block.text.startswith("$ ")
            if shown or (block.language in ("sh", "console") and "not-run" not in block.options):
                yield from map(words_of, block.text.replace("\\\n", " ").splitlines())


def options_of_every_command():
    for path, one in [((), command), *every_command()]:
        for option in one.params:
            if isinstance(option, click.Option):
                yield path, option


def test_every_option_is_in_the_reference():
    """Which is made of the command's help, where each option has its own, below its subcommand."""
    page = (TREE / "docs" / "reference" / "command_options.rst").read_text()
    assert ".. click:: luna_ext.commands.cli:luna_ext\n" in page
    assert ":nested: full\n" in page
    hidden = [(*path, option.name) for path, option in options_of_every_command() if option.hidden]
    helpless = [
        (*path, option.name) for path, option in options_of_every_command() if not option.help
    ]
    assert hidden == []
    assert helpless == []


def test_every_option_of_each_subcommand_has_a_test():
    """In each of its spellings."""
    tried = [*command_lines_that_are_tried()]
    untried = [
        " ".join((*path, spelling))
        for path, option in options_of_every_command()
        for spelling in (*option.opts, *option.secondary_opts)
        if not any({*path, spelling} <= words for words in tried)
    ]
    assert untried == []


def test_the_map_of_the_tests_has_every_file_and_no_other():
    """By its name, or by that of its directory."""
    tests = TREE / "tests"
    named = set(re.findall(r"`([\w/]+(?:/|\.py))`", (tests / "README.md").read_text()))
    files = {str(file.relative_to(tests)) for file in tests.rglob("test_*.py")}

    assert {name for name in named if not (tests / name).exists()} == set()
    assert {file for file in files if not named & {file, f"{file.partition('/')[0]}/"}} == set()
