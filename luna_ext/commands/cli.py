"""The command luna-ext: its options, its subcommands, and how it ends."""

from __future__ import annotations

import importlib
import itertools
import logging
import os
import sys
import traceback
import warnings
from typing import Literal

import click

from .. import __version__
from ..errors import LunaError
from .console import Settings, examples, in_one_line, printable, tell

EXIT_INTERRUPTED = 130


MODULES = {
    "assign": "assigning",
    "bench": "standing_in",
    "claim": "running",
    "completion": "standing_in",
    "demo": "standing_in",
    "doctor": "exploring",
    "explain": "explaining",
    "find": "listing",
    "lock": "running",
    "probe": "probing",
    "provision": "assigning",
    "slots": "listing",
    "stub": "standing_in",
    "tokens": "listing",
    "watch": "exploring",
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
    metavar="FILE",
    help="The client library (libCryptoki2). Without it: LUNA_EXT_LIBRARY, then Chrystoki.conf, "
    "then the client's default path.",
)
@click.option(
    "--contention",
    type=click.Choice(["block", "poll"]),
    default="block",
    show_default=True,
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
        tell(printable(text))


def show_warning(message: Warning | str, *place: object, **more: object) -> None:
    tell(f"warning: {printable(str(message))}")


def run(arguments: list[str] | None = None) -> int:
    """Run the command; its exit code. Every error is one line; with --debug a traceback comes first."""
    arguments = sys.argv[1:] if arguments is None else arguments
    # An option behind "--" belongs to the command that luna-ext runs.
    debug = "--debug" in itertools.takewhile(lambda argument: argument != "--", arguments)
    records = Records()
    logging.getLogger("luna_ext").addHandler(records)
    logging.getLogger("luna_ext").setLevel(logging.DEBUG if debug else logging.WARNING)
    warnings.showwarning = show_warning
    try:
        code = luna_ext.main(arguments, prog_name="luna-ext", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        # The program that reads the output has ended, as `head` does. That is no error to report.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except (KeyboardInterrupt, click.Abort) as error:
        if debug:
            traceback.print_exception(error)
        tell("interrupted")
        return EXIT_INTERRUPTED
    except click.UsageError as error:
        where = "luna-ext" if error.ctx is None else error.ctx.command_path
        tell(f"{printable(error.format_message())} (`{where} --help` says more)")
        return error.exit_code
    except click.ClickException as error:
        tell(printable(error.format_message()))
        return error.exit_code
    except (LunaError, OSError, ValueError, RuntimeError) as error:
        if debug:
            traceback.print_exception(error)
        if str(error) not in records.told:
            tell(in_one_line(error))
        return 1
    return code if isinstance(code, int) else 0
