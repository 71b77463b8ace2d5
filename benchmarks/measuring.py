"""What the benchmarks have in common: options, the stand-in, rounds in turns, and where the figures go.

A bench prints a line for each figure that targets.py lists, and writes them to build/benchmarks, from
where report.py reads them.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import sysconfig
import threading
import time
import types
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from importlib import util
from pathlib import Path
from typing import Any, TypeVar

from targets import TARGETS

import luna_ext
from luna_ext.stub import Cluster

HERE = Path(__file__).parent
OUTPUT = HERE.parent / "build" / "benchmarks"
LOCK, UNLOCK = "CA_LockClusteredSlot", "CA_UnlockClusteredSlot"
PR_SET_TIMERSLACK = 29

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")
A = TypeVar("A")


# ---- a run and its figures ----


def parser(doc: str | None) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(made)
    return made


def add_options(to: argparse.ArgumentParser) -> None:
    to.add_argument(
        "--quick",
        action="store_true",
        help="a second or two, to see that it runs: report.py does not take these figures",
    )
    to.add_argument(
        "--figures",
        type=Path,
        default=OUTPUT,
        metavar="DIRECTORY",
        help="where the JSON file is written: %(default)s",
    )


class Figures:
    """What one bench has measured."""

    def __init__(self, bench: str, options: argparse.Namespace) -> None:
        self._file = options.figures / f"{bench}.json"
        self._quick = options.quick
        # If this run fails, no earlier one's figures stand for it.
        self._file.unlink(missing_ok=True)
        self._began = time.time()
        self.values: dict[str, float] = {}
        self.missing: dict[str, str] = {}
        self.data: dict[str, Any] = {}
        """What tables and pictures are made of."""
        self._keys = [key for key, target in TARGETS.items() if target.bench == bench]
        print(machine())

    def add(self, key: str, value: float) -> None:
        assert key in self._keys
        target = TARGETS[key]
        self.values[key] = value
        verdict = f"{target.shown_limit}: {target.verdict(value)}" if target.limit else ""
        print(f"{target.what}: {target.shown(value)}  {verdict}", flush=True)

    def skip(self, reason: str, *keys: str) -> None:
        """These figures, by default all that there are none of yet, cannot be measured here."""
        for key in keys or [key for key in self._keys if key not in self.values]:
            self.missing[key] = reason
            print(f"{TARGETS[key].what}: not measured: {reason}", flush=True)

    def write(self) -> None:
        assert set(self._keys) == {*self.values, *self.missing}
        self._file.parent.mkdir(parents=True, exist_ok=True)
        run = {
            "quick": self._quick,
            "began": self._began,
            "machine": machine(),
            "values": self.values,
            "missing": self.missing,
            "data": self.data,
        }
        self._file.write_text(json.dumps(run, indent=1) + "\n")


def machine() -> str:
    """With which Python and processors this process runs."""
    model = platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return (
        f"CPython {platform.python_version()} on {len(os.sched_getaffinity(0))} CPUs, {model}, "
        f"{platform.system()} {platform.release()}"
    )


# ---- rounds ----


def in_turns(measures: Mapping[K, Callable[[], float]], rounds: int) -> dict[K, list[float]]:
    """Each of them once in a round, so that a slow time of the machine does not fall on one alone."""
    values: dict[K, list[float]] = {name: [] for name in measures}
    for _ in range(rounds):
        for name, measure in measures.items():
            values[name].append(measure())
    return values


def ratio(one: list[float], other: list[float]) -> float:
    """The median of the ratios of each round."""
    return statistics.median(a / b for a, b in zip(one, other, strict=True))


def on_a_thread(function: Callable[..., T], *arguments: object) -> T:
    """Not the main one, where a worker makes the lock call."""
    results: list[T] = []
    thread = threading.Thread(target=lambda: results.append(function(*arguments)))
    thread.start()
    thread.join()
    return results[0]


def rate_on_threads(work: Callable[[A], int], arguments: Sequence[A]) -> float:
    """What threads, one for each argument, count together in a second. All begin at once."""
    counts = [0] * len(arguments)
    start = threading.Barrier(len(arguments) + 1)

    def run(index: int) -> None:
        start.wait()
        counts[index] = work(arguments[index])

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(arguments))]
    for thread in threads:
        thread.start()
    start.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - began)


# ---- devices ----


@contextlib.contextmanager
def cluster(*, keyrings: int = 8, latency: float = 0.0, pair: float = 0.0) -> Iterator[Cluster]:
    """A stand-in whose calls take so many seconds each; or a lock and an unlock take `pair` together."""
    sleep_exactly()
    # Else each wait that passes 5 s is told of.
    logging.getLogger("luna_ext").setLevel(logging.ERROR)
    with Cluster(keyrings=keyrings) as made:
        made.switch("log", "off")  # an HSM keeps its log elsewhere
        made.latency(latency)
        if pair:
            for function in (LOCK, UNLOCK):
                made.latency(pair / 2, function)
        yield made


@contextlib.contextmanager
def stand_in(
    *, keyrings: int = 8, latency: float = 0.0, pair: float = 0.0
) -> Iterator[luna_ext.Library]:
    with (
        cluster(keyrings=keyrings, latency=latency, pair=pair) as made,
        made.library() as luna,
    ):
        yield luna


def sleep_exactly() -> None:
    """Else Linux lets each sleep last 50 microseconds longer: a twentieth of a call of 1 ms."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)


@contextlib.contextmanager
def idle_device() -> Iterator[luna_ext.Library]:
    """On a client library whose functions do nothing, and which has every slot."""
    with luna_ext.Library(build_idle_client()) as luna:
        yield luna


# ---- what is compiled ----


def build_idle_client() -> Path:
    library = OUTPUT / "idle_client.so"
    _compile(HERE.parent / "tests" / "c" / "idle_client.c", library)
    return library


def build_ten_lines() -> types.ModuleType:
    """The module of ten_lines.pyx. It is linked to the client library that does nothing."""
    client = build_idle_client()
    library = OUTPUT / f"ten_lines{sysconfig.get_config_var('EXT_SUFFIX')}"
    source, c_file = HERE / "ten_lines.pyx", OUTPUT / "ten_lines.c"
    if not _is_newer(c_file, source):
        command = [sys.executable, "-m", "cython", str(source), "-o", str(c_file)]
        subprocess.run(command, check=True)
    _compile(c_file, library, f"-I{sysconfig.get_path('include')}", libraries=(str(client),))
    spec = util.spec_from_file_location("ten_lines", library)
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _compile(source: Path, library: Path, *options: str, libraries: tuple[str, ...] = ()) -> None:
    if _is_newer(library, source):
        return
    library.parent.mkdir(parents=True, exist_ok=True)
    command = ["cc", "-shared", "-fPIC", "-O2", "-pthread", *options]
    command += [f"-I{HERE.parent / 'include'}", str(source), "-o", str(library), *libraries]
    subprocess.run(command, check=True)


def _is_newer(made: Path, source: Path) -> bool:
    return made.exists() and made.stat().st_mtime >= source.stat().st_mtime
