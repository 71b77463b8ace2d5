"""The benchmarks run, and the report says what they have measured and nothing else."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

TREE = Path(__file__).parent.parent
BENCHMARKS = TREE / "benchmarks"
NO_BENCHES = {"measuring", "report", "targets"}
BENCHES = sorted({file.stem for file in BENCHMARKS.glob("*.py")} - NO_BENCHES)
# Those that leave figures, and what they need beside luna_ext.
NEEDS = {"lock_pair": ("pyperf", "cffi", "Cython"), "instructions": ("Cython",)}
SOFTHSM = ["/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/pkcs11/libsofthsm2.so"]
OLD_PICTURE = "of another day"

pytestmark = pytest.mark.skipif(not BENCHES, reason="a tree without the benchmarks")


def run(script, *arguments):
    command = [sys.executable, str(BENCHMARKS / f"{script}.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def need(*modules):
    for module in modules:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")


@pytest.mark.parametrize("bench", sorted({*BENCHES} - {"signing"}))
def test_each_bench_runs_alone_and_accounts_for_all_its_figures(bench, tmp_path):
    need(*NEEDS.get(bench, ()))
    run(bench, "--quick", "--figures", tmp_path)
    figures = json.loads((tmp_path / f"{bench}.json").read_text())
    assert figures["quick"]
    program = (
        "import json, sys; from targets import TARGETS; "
        "print(json.dumps([key for key, target in TARGETS.items() if target.bench == sys.argv[1]]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, bench], cwd=BENCHMARKS, stdout=subprocess.PIPE, check=True
    )
    assert sorted([*figures["values"], *figures["missing"]]) == sorted(json.loads(done.stdout))


def test_signing_runs_without_errors():
    need("pkcs11")
    if not any(Path(module).exists() for module in SOFTHSM):
        pytest.skip("SoftHSM2 is not installed")
    assert "0 errors, 0 double holds" in run("signing", "--quick")


# ---- the report ----


@pytest.fixture
def root(tmp_path):
    """A tree with the README, and a picture that an earlier report has left."""
    pytest.importorskip("pygal", reason="the plotting library is not installed")
    (tmp_path / "figures").mkdir()
    (tmp_path / "docs" / "performance").mkdir(parents=True)
    (tmp_path / "docs" / "performance" / "tasks.svg").write_text(OLD_PICTURE)
    shutil.copy(TREE / "README.md", tmp_path)
    return tmp_path


@pytest.fixture
def report(root):
    def report():
        run("report", "--figures", root / "figures", "--root", root)
        return (root / "docs" / "performance.md").read_text()

    return report


@pytest.fixture
def measured(root):
    def measured(bench, quick=False, missing=(), data=(), **values):
        figures = {
            "quick": quick,
            "began": 1_700_000_000,
            "machine": "an abacus",
            "values": {key.replace("_", " "): value for key, value in values.items()},
            "missing": dict(missing),
            "data": dict(data),
        }
        (root / "figures" / f"{bench}.json").write_text(json.dumps(figures))

    return measured


def line_of(page, beginning):
    (line,) = (line for line in page.splitlines() if line.startswith(f"| {beginning}"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_figures_are_shown_beside_their_targets(report, measured):
    measured("memory", bytes=200)
    measured("instructions", instructions=1999)
    measured("import_time", **{"import": 0.0125})
    page = report()
    assert line_of(page, "bytes of a slot") == ["200", "at most 256", "met", "memory"]
    assert line_of(page, "instructions of") == ["1,999", "at most 1,750", "not met", "instructions"]
    assert line_of(page, "`import luna_ext`") == ["12.5 ms", "", "import_time"]
    assert "Measured: 2023-11-14. an abacus" in page


def test_what_was_not_measured_is_said_to_be_so(report, measured):
    measured("handover", missing={"handover": "there is no handover"})
    measured("tasks", quick=True, rate_of_tasks=123456)
    page = report()
    assert line_of(page, "16 threads on one slot, 1 ms a pair, `handover=0.05`, against")[:3] == [
        "not measured",
        "at least 40 x",
        "there is no handover",
    ]
    assert line_of(page, "10,000 tasks over 100 slots, 1 ms a pair: pairs")[:2] == [
        "not measured",
        "`benchmarks/tasks.py` was not run",
    ]
    assert "123" not in page


def test_pictures_are_drawn_of_what_was_measured_and_no_old_one_is_left(report, measured, root):
    waits = {"one thread": {"29": 0.25, "30": 0.75}, "64 threads on one slot": {"42": 1.0}}
    table = [
        [latency, slots, threads, 400 * threads, 1000, 2000, 3000, 0.9]
        for latency in (0, 0.001)
        for slots in (1, 64)
        for threads in (1, 8, 64)
    ]
    measured("contention", data={"table": table, "histograms": waits})
    measured("handover", data={"rates": {"without": [[1, 900]], "handover": [[1, 40_000]]}})
    page = report()
    directory = root / "docs" / "performance"
    assert {file.name for file in directory.iterdir()} == {
        "threads.svg",
        "waits.svg",
        "handover.svg",
    }
    for file in directory.iterdir():
        picture = ElementTree.parse(file).getroot()
        assert picture.tag == "{http://www.w3.org/2000/svg}svg"
        assert f"performance/{file.name})" in page
    assert "performance/tasks.svg" not in page
    drawn = "".join(ElementTree.parse(directory / "threads.svg").getroot().itertext())
    assert "with slot:" in drawn
    assert "20,000" in drawn


def test_figures_of_the_readme_are_those_of_the_run(report, measured, root):
    before = (TREE / "README.md").read_text()
    measured("lock_pair", pair=123e-9, **{"pair/Lock": 1.25})
    report()
    after = (root / "README.md").read_text()
    assert "123 ns" in after
    assert "1.25 x" in after
    assert "against one thread: **not measured**" in after
    report()
    assert (root / "README.md").read_text() == after
    begin, end = "<!-- figures", "<!-- end of the figures"
    assert after.partition(begin)[0] == before.partition(begin)[0]
    assert after.partition(end)[2] == before.partition(end)[2]
