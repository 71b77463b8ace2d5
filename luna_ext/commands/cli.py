"""The command luna-ext: its options, its subcommands, and how it ends."""

from __future__ import annotations

import codecs
import importlib
import io
import itertools
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Container
from contextlib import suppress
from typing import Literal

import click

from .. import __version__
from ..errors import LockTimeoutError, LunaError, NoUnassignedTokenError
from ..escaping import printable
from .console import EXIT_INTERRUPTED, EXIT_TEMPORARY, Settings, examples, give_up_stream, tell
from .offers import COMPLETION_VARIABLE
from .texts import in_one_line, in_our_words

EXIT_ERROR, EXIT_USAGE = 1, 2


MODULES = {
    "assign": "assigning",
    "bench": "standing_in",
    "claim": "running",
    "completion": "completing",
    "demo": "standing_in",
    "doctor": "doctoring",
    "explain": "explaining",
    "find": "listing",
    "lock": "running",
    "probe": "probing",
    "provision": "assigning",
    "slots": "listing",
    "stub": "standing_in",
    "tokens": "listing",
    "watch": "watching",
}


class Commands(click.Group):
    """Imports a subcommand only when it is used, which halves the time until `lock` begins."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(MODULES)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in MODULES:
            return None
        module = importlib.import_module(f".{MODULES[name]}", __package__)
        command: click.Command = getattr(module, name)
        return command


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=examples(
        "luna-ext doctor",
        "luna-ext tokens --json",
        "luna-ext lock --label payments-01 --timeout 5 -- ./rotate-keys",
        "luna-ext claim cluster-1 -- sh -c 'echo \"$LUNA_SLOT_ID\"'",
    ),
)
@click.option(
    "--library",
    "path",
    type=click.Path(),
    metavar="FILE",
    help="The client library (libCryptoki2). Without it: LUNA_EXT_LIBRARY, then Chrystoki.conf, "
    "then the client's default path.",
)
@click.option(
    "--contention",
    type=click.Choice(["block", "poll"]),
    default="block",
    show_default=True,
    envvar="LUNA_EXT_CONTENTION",
    show_envvar=True,
    help='What a lock call means that answers CKR_DEVICE_ERROR: an error, or "not now". '
    "`luna-ext probe` finds out.",
)
@click.option("--debug", is_flag=True, help="Show tracebacks and DEBUG records.")
@click.version_option(__version__, prog_name="luna-ext")
@click.pass_context
def luna_ext(
    context: click.Context, path: str | None, contention: Literal["block", "poll"], debug: bool
) -> None:
    """Lock, claim and assign the keyring tokens of a Thales Luna HSM cluster."""
    context.obj = Settings(path, contention)
    if os.environ.get("NO_COLOR"):
        # no-color.org; click itself knows nothing of it.
        context.color = False


class Records(logging.Handler):
    """Prints log records and remembers their texts, so that an error that was logged and is raised as
    well is printed once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.told: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        self.told.add(text)
        # No error, then: what ends the command is one line.
        mark = "warning: " if record.levelno == logging.WARNING else ""
        tell(mark + in_our_words(text))


def show_warning(message: Warning | str, *place: object, **more: object) -> None:
    tell(f"warning: {message}")


def run(arguments: list[str] | None = None) -> int:
    """Run the command; its exit code. Every error is one line; with --debug a traceback comes first."""
    arguments = sys.argv[1:] if arguments is None else arguments
    # An option behind "--" belongs to the command that luna-ext runs.
    debug = "--debug" in itertools.takewhile(lambda argument: argument != "--", arguments)
    if COMPLETION_VARIABLE in os.environ:
        from .completing import complete

        return complete(luna_ext, os.environ[COMPLETION_VARIABLE])
    open_missing_streams()
    buffer_output()
    escape_what_cannot_be_encoded()
    records = Records()
    logging.getLogger("luna_ext").addHandler(records)
    logging.getLogger("luna_ext").setLevel(logging.DEBUG if debug else logging.WARNING)
    warnings.showwarning = show_warning
    try:
        with luna_ext.make_context("luna-ext", [*arguments]) as context:
            code = luna_ext.invoke(context)
        code = code if isinstance(code, int) else 0
    except click.exceptions.Exit as asked:
        # --help, --version.
        code = asked.exit_code
    except (SystemExit, ModuleNotFoundError):
        raise
    except BaseException as error:
        if debug and not isinstance(error, click.ClickException):
            with suppress(OSError):
                for line in "".join(traceback.format_exception(error)).rstrip().split("\n"):
                    click.echo(printable(line), err=True)
        if isinstance(error, BrokenPipeError):
            # The program that reads the output has ended, as `head` does: no error to report.
            give_up_stream(1)
            return EXIT_ERROR
        if isinstance(error, OSError) and _cannot_write():
            return EXIT_ERROR
        code = _told(error, records.told)
    return EXIT_ERROR if _cannot_write() and code == 0 else code


def _told(error: BaseException, told: Container[str]) -> int:
    """Tell what has ended the command, unless that was told; its exit code."""
    match error:
        case KeyboardInterrupt() | click.Abort() | EOFError():
            if sys.stderr.isatty():
                # Behind the ^C that the terminal shows.
                with suppress(OSError):
                    click.echo(err=True)
            tell("interrupted")
            return EXIT_INTERRUPTED
        case click.exceptions.NoArgsIsHelpError():
            error.show()
            return error.exit_code
        case click.UsageError():
            where = "luna-ext" if error.ctx is None else error.ctx.command_path
            tell(f"{in_one_line(error.format_message())} (`{where} --help` says more)")
            return error.exit_code
        case click.ClickException():
            tell(in_one_line(error.format_message()))
            return error.exit_code
    if str(error) not in told:
        tell(_words(error))
    return _exit_code(error)


def _words(error: BaseException) -> str:
    if isinstance(error, OSError) and not isinstance(error, LunaError):
        place = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        return in_one_line(f"{place}{error.strerror or error}")
    if isinstance(error, (LunaError, ValueError, OverflowError, RuntimeError)):
        return in_one_line(error)
    if isinstance(error, MemoryError):
        return "there is no memory left for this; ask for less at a time"
    return (
        f"an error of luna-ext itself, {type(error).__name__}: {in_one_line(error)}. "
        "`luna-ext --debug` with the same arguments shows where; please report it"
    )


def _exit_code(error: BaseException) -> int:
    if isinstance(error, LunaError):
        # Also what the device does not accept, which is a ValueError as well.
        temporary = isinstance(error, (LockTimeoutError, NoUnassignedTokenError))
        return EXIT_TEMPORARY if temporary else EXIT_ERROR
    # What the library refuses before it does anything.
    return EXIT_USAGE if isinstance(error, (ValueError, OverflowError)) else EXIT_ERROR


def _cannot_write() -> bool:
    """Whether output is left that cannot be written; the reason is told."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError) as error:
        # If the program that reads the output has ended, as `head` does, that is no error to report.
        if not isinstance(error, BrokenPipeError):
            why = getattr(error, "strerror", None) or error
            tell(f"the standard output cannot be written: {why}; let it go elsewhere")
        give_up_stream(1)
        return True
    return False


def escape_what_cannot_be_encoded() -> None:
    """Let the standard output take characters that its encoding does not have, as the standard error does.

    And the bytes of paths and the like that are not of that encoding: they stay what they are.
    """

    def escape(error: UnicodeError) -> tuple[str | bytes, int]:
        try:
            return codecs.lookup_error("surrogateescape")(error)
        except UnicodeError:
            return codecs.backslashreplace_errors(error)

    codecs.register_error("luna_ext", escape)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="luna_ext")


def buffer_output() -> None:
    """Undo PYTHONUNBUFFERED: without a buffer it is not noticed in the end that a line was not written.

    Each line is flushed all the same.
    """
    if isinstance(sys.stdout, io.TextIOWrapper) and isinstance(sys.stdout.buffer, io.RawIOBase):
        encoding, errors, terminal = sys.stdout.encoding, sys.stdout.errors, sys.stdout.isatty()
        buffer = io.BufferedWriter(sys.stdout.detach())
        sys.stdout = io.TextIOWrapper(buffer, encoding, errors, line_buffering=terminal)
        # shutil asks this one for the terminal's size.
        sys.__stdout__ = sys.stdout  # type: ignore[misc]


def open_missing_streams() -> None:
    """Open what the caller has closed of the three standard streams.

    The next file that is opened, such as a connection of the client library, would be the standard output
    otherwise. To write to this one is an error, as it is to a closed one.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            # The lowest number that is free is this one.
            os.open(os.devnull, os.O_WRONLY if name == "stderr" else os.O_RDONLY)
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))
