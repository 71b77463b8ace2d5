"""Draws the sequence diagrams of the pages, in SVG, while they are built.

They are written as Mermaid's `sequenceDiagram`, which GitHub draws by itself; its own program would have to
be fetched by the reader's browser, or run in one. Of its language there is what the pages need:
`participant A as title`, `A->>B: text`, `B-->>A: text` and `Note over A,B: text`.
"""

import re
from html import escape
from typing import NamedTuple

COLUMN, ROW, TOP = 210, 34, 52
CHARACTER = 7.2
"""The width of a character, in a font of fixed width of 12 pixels."""

STATEMENT = re.compile(
    r"""participant\s+(?P<name>\w+)\s+as\s+(?P<title>.+)
    | (?P<source>\w+)\s*(?P<arrow>->>|-->>)\s*(?P<target>\w+)\s*:\s*(?P<text>.+)
    | Note\s+over\s+(?P<over>\w+(?:,\s*\w+)*)\s*:\s*(?P<note>.+)
    """,
    re.VERBOSE,
)


class Step(NamedTuple):
    """A message, or, where `arrow` is empty, a note over its two ends."""

    source: str
    target: str
    arrow: str
    text: str


def parse(text: str) -> tuple[dict[str, str], list[Step]]:
    """The participants, each with its title, and the steps of a diagram."""
    first, *lines = [line.strip() for line in text.splitlines() if line.strip()]
    if first != "sequenceDiagram":
        raise ValueError(f"a diagram begins with sequenceDiagram, not {first!r}")
    participants: dict[str, str] = {}
    steps = []
    for line in lines:
        found = STATEMENT.fullmatch(line)
        if found is None:
            raise ValueError(f"no statement of a diagram: {line!r}")
        if found["name"]:
            participants[found["name"]] = found["title"]
        elif found["over"]:
            ends = [name.strip() for name in found["over"].split(",")]
            steps.append(Step(ends[0], ends[-1], "", found["note"]))
        else:
            steps.append(Step(found["source"], found["target"], found["arrow"], found["text"]))
    for step in steps:
        if not {step.source, step.target} <= {*participants}:
            raise ValueError(f"it names no participant: {step}")
    return participants, steps


def draw(text: str) -> str:
    """The diagram as an SVG element that takes its colours from the page."""
    participants, steps = parse(text)
    middle = {name: COLUMN // 2 + COLUMN * number for number, name in enumerate(participants)}
    width, height = COLUMN * len(middle), TOP + ROW * len(steps) + 8
    parts = [
        f'<svg role="img" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'xmlns="http://www.w3.org/2000/svg" style="max-width: 100%; height: auto" '
        'font-family="monospace" font-size="12" fill="currentColor" stroke="none">',
        f"<title>{escape(text)}</title>",
    ]
    for name, x in middle.items():
        parts.append(
            f'<line x1="{x}" y1="34" x2="{x}" y2="{height}" stroke="currentColor" opacity="0.4"/>'
            f'<rect x="{x - 90}" y="6" width="180" height="28" rx="4" fill="none" stroke="currentColor"/>'
            f'<text x="{x}" y="25" text-anchor="middle">{escape(participants[name])}</text>'
        )
    for number, step in enumerate(steps):
        y = TOP + ROW * number + 20
        begin, end = middle[step.source], middle[step.target]
        parts.append(
            _message(step, begin, end, y) if step.arrow else _note(step, begin, end, y, width)
        )
    return "\n".join([*parts, "</svg>"])


def _text(text: str, x: float, y: float) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="middle">{escape(text)}</text>'


def _message(step: Step, begin: int, end: int, y: int) -> str:
    dashes = ' stroke-dasharray="5 4"' if step.arrow == "-->>" else ""
    way = 1 if end > begin else -1
    head = f"M{end - 8 * way} {y - 4}L{end} {y}L{end - 8 * way} {y + 4}"
    line = f'<path d="M{begin} {y}H{end}" stroke="currentColor" fill="none"{dashes}/>'
    return (
        f'{line}<path d="{head}" stroke="currentColor" fill="none"/>'
        f"{_text(step.text, (begin + end) / 2, y - 6)}"
    )


def _note(step: Step, begin: int, end: int, y: int, width: int) -> str:
    half = max(abs(end - begin) / 2 + 40, len(step.text) * CHARACTER / 2 + 8)
    x = min(max((begin + end) / 2, half + 2), width - half - 2)
    return (
        f'<rect x="{x - half:.0f}" y="{y - 16}" width="{2 * half:.0f}" height="22" rx="3" '
        'fill="currentColor" fill-opacity="0.1"/>' + _text(step.text, x, y)
    )
