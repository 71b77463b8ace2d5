"""explain: what a return code means, and what to do."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem

from .. import explanations
from ..errors import meaning_of
from .console import examples, json_option, print_json, say
from .tables import print_paragraph
from .texts import in_our_words
from .values import RETURN_CODE, Command


class Code(click.ParamType[explanations.Explanation]):
    """A CK_RV that has a name, given by it or by its number."""

    name = "code"

    def convert(
        self, value: str, parameter: click.Parameter | None, context: click.Context | None
    ) -> explanations.Explanation:
        rv = RETURN_CODE.convert(value, parameter, context)
        explanation = explanations.explain(rv)
        if explanation is None:
            self.fail(
                f"0x{rv:X} has no name, neither in PKCS #11 nor in the Luna client's header: what it means "
                "is not known here. See the client library's own log, and ask its vendor",
                parameter,
                context,
            )
        return explanation

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        return RETURN_CODE.shell_complete(ctx, param, incomplete)


def _class_of(explanation: explanations.Explanation) -> str | None:
    return None if explanation.exception is None else f"luna_ext.{explanation.exception.__name__}"


def _kind_of(rv: int) -> str | None:
    meaning = meaning_of(rv)
    return None if meaning is None else meaning.name.lower()


@click.command(
    cls=Command,
    epilog=examples(
        "luna-ext explain CKR_PIN_LOCKED", "luna-ext explain pin_locked 0x80000305 --json"
    ),
)
@click.argument("codes", metavar="CODE...", nargs=-1, required=True, type=Code())
@json_option
def explain(codes: tuple[explanations.Explanation, ...], as_json: bool) -> None:
    """Say what a return code means, and what to do.

    A CODE is the name of a CK_RV, with or without CKR_, or its number: CKR_PIN_LOCKED, pin_locked,
    0xA4, 164. docs/errors.md has all of them.
    """
    if as_json:
        print_json(
            [
                {
                    "name": code.name,
                    "number": code.rv,
                    "exception": _class_of(code),
                    "kind": _kind_of(code.rv),
                    "meaning": in_our_words(code.meaning),
                    "advice": in_our_words(code.advice),
                }
                for code in codes
            ]
        )
        return
    for code in codes:
        say(f"{code.name} (0x{code.rv:X}): {_class_of(code) or 'no error'}")
        print_paragraph(f"    It means: {in_our_words(code.meaning)}")
        print_paragraph(f"    What to do: {in_our_words(code.advice)}.")
