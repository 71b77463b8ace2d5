"""Writes docs/performance.md, its pictures, and the figures of README.md, from what the other benchmarks
have left in build/benchmarks. `make benchmark` runs them all and then this.

What was not measured is said to be so: no figure is ever taken from an earlier report.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pygal
from measuring import OUTPUT
from pygal.style import Style
from targets import TARGETS

ROOT = OUTPUT.parent.parent
BEGIN, END = "<!-- figures: make benchmark writes them -->", "<!-- end of the figures -->"
NOT_MEASURED = "not measured"

HEAD = """\
# Performance

`make benchmark` measures all this and writes this page: no figure is typed in. Ratios are of one run, in
which the things compared take turns, and medians of at least 7 rounds; the empty loop is subtracted from
loops. Where a pair is timed, that is a lock and its unlock, a thread makes it that is not the main one,
unless the line says otherwise. The device is the stand-in, or a client library whose lock and unlock do
nothing (`tests/c/idle_client.c`). Each script in `benchmarks/` can be run alone, and says in its first
lines what it does.
"""


class Runs:
    """The last run of each bench."""

    def __init__(self, directory: Path) -> None:
        self._runs: dict[str, dict[str, Any]] = {}
        for file in sorted(directory.glob("*.json")):
            run = json.loads(file.read_text())
            # It only shows that the bench runs.
            if not run["quick"]:
                self._runs[file.stem] = run

    @property
    def machines(self) -> list[str]:
        return sorted({run["machine"] for run in self._runs.values()})

    @property
    def days(self) -> list[str]:
        return sorted(
            {time.strftime("%Y-%m-%d", time.gmtime(run["began"])) for run in self._runs.values()}
        )

    def value(self, key: str) -> float | None:
        value: float | None = self._of(key).get("values", {}).get(key)
        return value

    def shown(self, key: str) -> str:
        value = self.value(key)
        return NOT_MEASURED if value is None else TARGETS[key].shown(value)

    def verdict(self, key: str) -> str:
        value = self.value(key)
        if value is None:
            missing: dict[str, str] = self._of(key).get("missing", {})
            return missing.get(key, f"`benchmarks/{TARGETS[key].bench}.py` was not run")
        return TARGETS[key].verdict(value)

    def data(self, bench: str, name: str) -> Any:
        """None: it was not measured."""
        return self._runs.get(bench, {}).get("data", {}).get(name)

    def _of(self, key: str) -> dict[str, Any]:
        return self._runs.get(TARGETS[key].bench, {})


# ---- tables ----


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def targets(runs: Runs) -> str:
    return table(
        ["what", "measured", "target", "", "by"],
        [
            [target.what, runs.shown(key), target.shown_limit, runs.verdict(key), target.bench]
            for key, target in TARGETS.items()
            if target.limit is not None
        ],
    )


def besides(runs: Runs) -> str:
    return table(
        ["what", "measured", "", "by"],
        [
            [target.what, runs.shown(key), runs.verdict(key), target.bench]
            for key, target in TARGETS.items()
            if target.limit is None
        ],
    )


def contention(rows: list[list[float]]) -> str:
    return table(
        ["ms a call", "slots", "threads", "locked a second", "p50", "p99", "longest", "left"],
        [
            [
                f"{latency * 1000:g}",
                slots,
                threads,
                f"{rate:,.0f}",
                *(f"{wait:,.1f} µs" for wait in waits),
                f"{left:.0%}",
            ]
            for latency, slots, threads, rate, *waits, left in rows
        ],
    )


def polling(rows: list[tuple[str, list[float]]]) -> str:
    return table(
        ["", "locked, of what is possible", "smallest share, of the mean", "longest wait", "calls"],
        [
            [
                what,
                f"{throughput:.2f}",
                f"{share:.2f}",
                f"{wait:.2f} s",
                f"{calls:.0f} a second",
            ]
            for what, (throughput, share, wait, calls) in rows
        ],
    )


def stand_in(rows: list[tuple[str, int, float, float]]) -> str:
    return table(
        ["", "keyrings", "not logged", "logged"],
        [
            [name, keyrings, f"{not_logged:.2f} µs", f"{logged:.2f} µs"]
            for name, keyrings, not_logged, logged in rows
        ],
    )


# ---- pictures ----

STYLE = Style(
    background="white",
    plot_background="white",
    font_family="sans-serif",
    colors=("#0072b2", "#d55e00", "#777777"),
    opacity=1,
    stroke_width=2.5,
    guide_stroke_color="#dddddd",
    major_guide_stroke_color="#bbbbbb",
    label_font_size=14,
    major_label_font_size=14,
    legend_font_size=15,
    title_font_size=18,
)
Curve = list[tuple[float, float]]
IDEAL = "ideal"


def options(title: str, x_title: str, y_title: str) -> dict[str, object]:
    return {
        "style": STYLE,
        "title": title,
        "x_title": x_title,
        "y_title": y_title,
        "js": (),
        "width": 800,
        "height": 460,
        "legend_at_bottom": True,
        "legend_at_bottom_columns": 3,
        "truncate_legend": -1,
        "truncate_label": -1,
        "margin_top": 30,
        "margin_bottom": 40,
        "pretty_print": True,
    }


def curves(title: str, x_title: str, series: dict[str, Curve], **more: object) -> str:
    chart = pygal.XY(
        **options(title, x_title, "pairs a second"),
        value_formatter=lambda value: f"{value:,.0f}",
        x_value_formatter=lambda value: f"{value:,.0f}",
        **more,
    )
    chart.x_labels = [x for x, _ in next(iter(series.values()))]
    for name, points in series.items():
        is_ideal = name == IDEAL
        chart.add(
            name,
            points,
            show_dots=not is_ideal,
            stroke_style={"dasharray": "6, 6"} if is_ideal else {},
        )
    return svg(chart)


def svg(chart: Any) -> str:
    # Else a new one each time, which a diff would show.
    chart.uuid = "figure"
    return str(chart.render(is_unicode=True))


def ideal(of: Curve) -> Curve:
    """So many times the first point's rate as there are threads or slots."""
    first, rate = of[0]
    return [(x, rate * x / first) for x, _ in of]


def threads_picture(rows: list[list[float]]) -> str:
    latency, slots = max(row[0] for row in rows), max(row[1] for row in rows)
    curve = [(row[2], row[3]) for row in rows if row[:2] == [latency, slots]]
    return curves(
        f"Threads on slots of their own, {latency * 1000:g} ms a call",
        "threads",
        {"with slot:": curve, IDEAL: ideal(curve)},
    )


def handover_picture(rates: dict[str, Curve]) -> str:
    return curves(
        "Threads on one slot, 1 ms a pair",
        "threads",
        {"handover=0.05": rates["handover"], "without": rates["without"]},
        logarithmic=True,
        y_labels=[100, 1_000, 10_000, 100_000],
    )


def tasks_picture(rates: dict[str, Curve]) -> str:
    return curves(
        "100 tasks or one thread for each slot, 1 ms a pair",
        "slots",
        {
            "tasks": rates["tasks"],
            "threads": rates["threads"],
            IDEAL: ideal(rates["threads"]),
        },
    )


def waits_picture(histograms: dict[str, dict[str, float]]) -> str:
    """Bins of a tenth of a decade, as in contention.py."""
    numbers = [int(number) for bins in histograms.values() for number in bins]
    bins = range(min(numbers), max(numbers) + 1)
    chart = pygal.Bar(
        **options("From the with to its first statement, 1 ms a call", "waited", "share of waits"),
        value_formatter=lambda value: f"{value:.0%}",
    )
    # A label for each decade.
    chart.x_labels = ["" if number % 10 else microseconds(10 ** (number / 10)) for number in bins]
    for name, shares in histograms.items():
        chart.add(name, [shares.get(str(number)) for number in bins])
    return svg(chart)


def microseconds(value: float) -> str:
    return f"{value:.3g} µs" if value < 1000 else f"{value / 1000:.3g} ms"


# ---- the page, and README ----


def page(runs: Runs, pictures: Path) -> str:
    def picture(name: str, says: str, made_by: Any, data: Any) -> str:
        file = pictures / f"{name}.svg"
        file.unlink(missing_ok=True)
        if data is None:
            return f"({name}: {NOT_MEASURED})\n"
        file.write_text(made_by(data))
        return f"![{says}]({pictures.name}/{name}.svg)\n"

    def measured(bench: str, made_by: Any) -> str:
        rows = runs.data(bench, "table")
        return f"({NOT_MEASURED})\n" if rows is None else str(made_by(rows))

    lines = runs.data("contention", "table")
    parts = [
        HEAD,
        f"Measured: {', '.join(runs.days) or 'never'}. {'; '.join(runs.machines)}\n",
        "## Targets\n",
        targets(runs),
        "## Besides\n",
        besides(runs),
        "## Threads\n",
        picture("threads", "Pairs a second over threads", threads_picture, lines),
        "The waits, and what is left for a thread that counts in Python, of what it counts alone:\n",
        measured("contention", contention),
        picture(
            "waits", "Histogram of waits", waits_picture, runs.data("contention", "histograms")
        ),
        "## One slot\n",
        picture(
            "handover",
            "Pairs a second over threads, with and without handover",
            handover_picture,
            runs.data("handover", "rates"),
        ),
        "## Tasks\n",
        picture("tasks", "Tasks against threads", tasks_picture, runs.data("tasks", "rates")),
        '## `contention="poll"`\n',
        "So many processes want one slot again and again, and hold it for so long: simulated for a\n"
        "minute, with the rules as they are and with pauses that double up to 250 ms; and on the\n"
        "stand-in. The calls are those of the process that made most.\n",
        measured("polling", polling),
        "## The stand-in\n",
        "A call by ctypes, of which C_GetFunctionList shows ctypes' part:\n",
        measured("large_cluster", stand_in),
    ]
    return "\n".join(parts)


def figures_for_users(runs: Runs) -> str:
    shown = runs.shown
    return (
        f"- What a lock and unlock adds to the time of the device: **{shown('pair')}** (against "
        f"`threading.Lock`: {shown('pair/Lock')}).\n"
        f"- 64 threads on 64 slots, 1 ms a call, against one thread: **{shown('threads')}**.\n"
        f"- 10,000 asyncio tasks over 100 slots, 1 ms a lock and unlock: **{shown('rate of tasks')}** "
        f"(threads of the process: {shown('threads of tasks')}).\n"
    )


def with_figures(readme: str, figures: str) -> str:
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"README.md lacks {BEGIN} or {END}")
    return f"{before}{BEGIN}\n{figures}{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--figures", type=Path, default=OUTPUT, help="where the JSON files are")
    parser.add_argument("--root", type=Path, default=ROOT, help="of README.md and docs")
    options = parser.parse_args()
    runs = Runs(options.figures)
    pictures = options.root / "docs" / "performance"
    pictures.mkdir(parents=True, exist_ok=True)
    (options.root / "docs" / "performance.md").write_text(page(runs, pictures))
    readme = options.root / "README.md"
    readme.write_text(with_figures(readme.read_text(), figures_for_users(runs)))


if __name__ == "__main__":
    main()
