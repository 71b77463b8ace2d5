"""The command luna-ext as a user runs it: a process of its own, on pipes or on a terminal."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pexpect
import pytest
from support import COMMAND, PATIENCE, but_for_the_warning

import luna_ext
from luna_ext.stub import Cluster, library_path

SCHEMAS = Path(__file__).parents[2] / "docs" / "schemas"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a user who works with the stand-in, and with the luna_ext that the tests have."""
    monkeypatch.setenv("LUNA_EXT_LIBRARY", library_path())
    monkeypatch.setenv("PYTHONPATH", str(Path(luna_ext.__file__).parents[1]))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    # Without a buffer Python does not notice that a reader has left.
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)


class Done(subprocess.CompletedProcess[str]):
    """How the command ended."""

    @property
    def said(self) -> list[str]:
        """Its lines on standard error, but for the one that warns of the stand-in."""
        return but_for_the_warning(self.stderr)


@pytest.fixture
def command(cluster: Cluster) -> Callable[..., Done]:
    """Run the command through pipes."""

    def run(*arguments: object, through: tuple[str, ...] = (), **options: object) -> Done:
        words = [str(argument) for argument in arguments]
        done = subprocess.run(
            [*through, *COMMAND, *words],
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
            **{"stdin": subprocess.DEVNULL, **options},  # type: ignore[call-overload]
        )
        return Done(done.args, done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def start(cluster: Cluster) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start the command and let it run; what it prints comes through a pipe."""
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: object, **options: object) -> subprocess.Popen[str]:
        started.append(
            subprocess.Popen(  # type: ignore[call-overload]
                [*COMMAND, *map(str, arguments)],
                **{
                    "stdin": subprocess.PIPE,
                    "stdout": subprocess.PIPE,
                    "stderr": subprocess.PIPE,
                    "text": True,
                    **options,
                },
            )
        )
        return started[-1]

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def terminal(cluster: Cluster) -> Iterator[Callable[..., pexpect.spawn]]:
    """Run the command on a terminal of its own, or another program that runs it."""
    started: list[pexpect.spawn] = []

    def run(
        *arguments: object,
        columns: int = 200,
        lines: int = 50,
        program: tuple[str, ...] = tuple(COMMAND),
    ) -> pexpect.spawn:
        name, *words = [*program, *map(str, arguments)]
        # The terminal's size counts. LINES is in the environment of pytest-xdist's processes, by GNU
        # readline in the first one.
        sizes = ("LINES", "COLUMNS")
        environment = {name: value for name, value in os.environ.items() if name not in sizes}
        started.append(
            pexpect.spawn(
                name,
                words,
                timeout=PATIENCE,
                encoding="utf-8",
                env=environment,
                dimensions=(lines, columns),
            )
        )
        return started[-1]

    yield run
    for process in started:
        process.close(force=True)


@pytest.fixture(scope="session")
def validate() -> Callable[[str, object], None]:
    """Look whether this is what docs/schemas/ says of the JSON of the subcommand `name`."""
    jsonschema = pytest.importorskip("jsonschema", reason="its part in Rust is not installed")
    referencing = pytest.importorskip("referencing")
    contents = [(file.name, json.loads(file.read_text())) for file in SCHEMAS.glob("*.json")]
    schemas = referencing.Registry().with_resources(
        (name, referencing.Resource.from_contents(of)) for name, of in contents
    )

    def look(name: str, value: object) -> None:
        schema = {"$ref": f"{name}.json"}
        jsonschema.Draft202012Validator(schema, registry=schemas).validate(value)

    return look


@pytest.fixture
def json_of(validate: Callable[[str, object], None]) -> Callable[[str, str], object]:
    """What a text says that the subcommand `name` has printed; it is as its schema has it."""

    def read(name: str, text: str) -> object:
        assert text.isascii()
        value = json.loads(text)
        validate(name, value)
        return value

    return read


@pytest.fixture
def read_json(json_of: Callable[[str, str], object]) -> Callable[..., object]:
    """All that the subcommand `name` has printed; of JSON lines a list."""

    def read(name: str, done: Done, *, lines: bool = False) -> object:
        if lines:
            return [json_of(name, line) for line in done.stdout.splitlines()]
        return json_of(name, done.stdout)

    return read


@pytest.fixture
def locked(cluster: Cluster) -> Callable[[], dict[int, int]]:
    """Which slots are locked now: {slot ID: PID}."""

    def look() -> dict[int, int]:
        return {token.slot_id: token.owner for token in cluster.tokens() if token.owner is not None}

    return look


@pytest.fixture
def assign(cluster: Cluster) -> Callable[..., int]:
    """Give a token this label; its slot. In a process of its own, to leave this one alone."""

    def run(label: str) -> int:
        with cluster.library() as luna, luna.claim(cluster.cluster_id) as token:
            return token.assign(label, so_pin="so-pin-1", unique=False).slot.slot_id

    return run


@pytest.fixture
def pin_file(tmp_path: Path) -> Callable[..., Path]:
    """A file with a PIN that only its owner can read."""

    def make(contents: bytes = b"so-pin-1\n", *, mode: int = 0o600, name: str = "pin") -> Path:
        file = tmp_path / name
        file.write_bytes(contents)
        file.chmod(mode)
        return file

    return make
