"""completion: what a shell completes. Slots, labels and functions besides options; files behind "--"."""

from __future__ import annotations

import logging
import os
import re
import threading
import warnings

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    FishComplete,
    ShellComplete,
    ZshComplete,
    add_completion_class,
    shell_complete,
    split_arg_string,
)

from .console import examples
from .offers import COMPLETION_VARIABLE, offer_files
from .values import Command

SECONDS = 5
"""How long a person waits for that. The device may not answer at all."""
RUN_COMMANDS = {"lock", "claim"}
ANY_CHARACTER = "x"


def complete(group: click.Group, instruction: str) -> int:
    """Print what may follow on the command line, and nothing else: a person is typing on this terminal."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    # Also out of a device call that does not return.
    limit = threading.Timer(SECONDS, os._exit, [1])
    limit.daemon = True
    limit.start()
    try:
        return shell_complete(group, {}, "luna-ext", COMPLETION_VARIABLE, instruction)
    except Exception:
        return 1
    finally:
        limit.cancel()


# ---- the shells ----


class _Completer(ShellComplete):
    """What click leaves out for all three."""

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem]:
        if "--" in args and RUN_COMMANDS.intersection(args[: args.index("--")]):
            # Also behind an option of that command which luna-ext has as well.
            return offer_files(incomplete)
        option, equals, _ = incomplete.partition("=")
        found = super().get_completions(args, incomplete)
        if equals and option.startswith("--"):
            # The shell replaces the whole word.
            for item in found:
                item.value = f"{option}={item.value}"
        return found


@add_completion_class
class _Bash(_Completer, BashComplete):
    source_template = """\
%(complete_func)s() {
    local type value
    COMPREPLY=()
    while IFS=, read -r type value; do
        case $type in
            plain) COMPREPLY+=("$value") ;;
            file) compopt -o default ;;
            dir) compopt -o dirnames ;;
        esac
    done < <(COMP_LINE=${COMP_LINE:0:COMP_POINT} %(complete_var)s=bash_complete "$1")
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""

    def get_completion_args(self) -> tuple[list[str], str]:
        line = os.environ["COMP_LINE"]
        self._word = _Word(line)
        # So that there is a last word, which may be empty.
        return split_arg_string(line + ANY_CHARACTER)[1:-1], self._word.text

    def format_completion(self, item: CompletionItem) -> str:
        return f"{item.type},{self._word.completed_by(str(item.value))}"


class _Word:
    """The word at the end of a line that is typed, as bash sees it."""

    BREAKS = "=:"
    """Of COMP_WORDBREAKS, those that labels and options have: bash replaces what is behind the last one."""

    def __init__(self, line: str) -> None:
        self.text = ""
        self._quote = ""
        self._kept = 0
        escaped = False
        for char in line:
            if escaped:
                self.text, escaped = self.text + char, False
            elif char == "\\" and self._quote != "'":
                escaped = True
            elif char == self._quote:
                self._quote = ""
            elif self._quote:
                self.text += char
            elif char in "'\"":
                self._quote, self._kept = char, len(self.text)
            elif char.isspace():
                self.text, self._kept = "", 0
            else:
                self.text += char
                if char in self.BREAKS:
                    self._kept = len(self.text)

    def completed_by(self, word: str) -> str:
        """What bash puts in the place of the part that it replaces."""
        rest = word[self._kept :]
        if self._quote == "'":
            return rest.replace("'", r"'\''")
        # Or a label could have a command in it, which the shell would run.
        special = r'([\\"$`])' if self._quote else r"([^\w@%+./:=,-])"
        return re.sub(special, r"\\\1", rest)


@add_completion_class
class _Zsh(_Completer, ZshComplete):
    pass


@add_completion_class
class _Fish(_Completer, FishComplete):
    # A label may have commas.
    source_template = FishComplete.source_template.replace('split ","', 'split --max 1 ","')


SHELLS: dict[str, type[ShellComplete]] = {"bash": _Bash, "zsh": _Zsh, "fish": _Fish}


@click.command(
    cls=Command,
    epilog=examples(
        'bash: eval "$(luna-ext completion bash)" in ~/.bashrc',
        'zsh:  eval "$(luna-ext completion zsh)" in ~/.zshrc, behind compinit',
        "fish: luna-ext completion fish > ~/.config/fish/completions/luna-ext.fish",
    ),
)
@click.argument("shell", type=click.Choice([*SHELLS]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script that lets SHELL complete this command.

    Options are completed, and slots and labels of the device, which is asked for them each time, for 5
    seconds at most; behind the -- of lock and claim the names of files.
    """
    completer = SHELLS[shell](context.find_root().command, {}, "luna-ext", COMPLETION_VARIABLE)
    click.echo(completer.source(), nl=False)
