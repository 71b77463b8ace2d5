"""What is measured against a target, in the order of docs/performance.md: a row for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Target(NamedTuple):
    bench: str
    """The script in benchmarks/ that measures it."""
    what: str
    unit: str
    limit: float | None = None
    at_least: bool = False
    """Else at most."""

    def is_met(self, value: float) -> bool:
        assert self.limit is not None
        return value >= self.limit if self.at_least else value <= self.limit

    def shown(self, value: float) -> str:
        return UNITS[self.unit](value)

    @property
    def shown_limit(self) -> str:
        if self.limit is None:
            return ""
        return f"{'at least' if self.at_least else 'at most'} {self.shown(self.limit)}"

    def verdict(self, value: float) -> str:
        if self.limit is None:
            return ""
        return "met" if self.is_met(value) else "not met"


def figures(value: float) -> str:
    """Three of them."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


UNITS: dict[str, Callable[[float], str]] = {
    "x": lambda value: f"{figures(value)} x",
    "ns": lambda value: f"{figures(value * 1e9)} ns",
    "µs": lambda value: f"{figures(value * 1e6)} µs",
    "ms": lambda value: f"{figures(value * 1e3)} ms",
    "s": lambda value: f"{figures(value)} s",
    "/s": lambda value: f"{figures(value)} a second",
    "": figures,
}
"""How a value is shown. Times are seconds."""

PAIR = "`with slot:`, device functions that do nothing"
TASKS = "10,000 tasks over 100 slots, 1 ms a pair"
SIXTEEN = "16 threads on one slot, 1 ms a pair, `handover=0.05`"
POLL = '`contention="poll"`, {} processes that want one slot and hold it 5 ms: {}'
WITHOUT_GIL = "without the GIL, device functions that do nothing: "

TARGETS = {
    "pair": Target("lock_pair", PAIR, "ns"),
    "pair/Lock": Target("lock_pair", f"{PAIR}, against `with threading.Lock():`", "x", 1.15),
    "pair/ten lines": Target(
        "lock_pair", f"{PAIR}, against a Cython class of ten lines", "x", 1.35
    ),
    "pair/ctypes": Target("lock_pair", f"{PAIR}, against ctypes by hand", "x", 0.25),
    "pair/cffi": Target("lock_pair", f"{PAIR}, against cffi in ABI mode", "x", 0.4),
    "main pair/Lock": Target(
        "lock_pair", f"{PAIR}, on the main thread: against `threading.Lock`", "x"
    ),
    "timed lock": Target(
        "lock_pair", "`with slot.lock(timeout=5):`, device functions that do nothing", "µs", 15e-6
    ),
    "instructions": Target("instructions", "instructions of a pair, by callgrind", "", 1750),
    "tasks/threads": Target("tasks", f"{TASKS}, against 100 threads", "x", 0.6, at_least=True),
    "rate of tasks": Target("tasks", f"{TASKS}: pairs", "/s"),
    "threads of tasks": Target("tasks", f"{TASKS}: threads in the process", "", 120),
    "processor time of a task": Target(
        "tasks", f"{TASKS}: processor time per `async with`", "µs", 25e-6
    ),
    "handover": Target("handover", f"{SIXTEEN}, against without", "x", 40, at_least=True),
    "wait beside handover": Target(
        "handover", f"{SIXTEEN}: longest wait of another process", "s", 0.06
    ),
    "threads": Target(
        "contention",
        "64 threads on 64 slots, 1 ms a call, against one thread",
        "x",
        62,
        at_least=True,
    ),
    "sleepers": Target(
        "contention", "64 threads that sleep by `time.sleep()` for as long, against one", "x"
    ),
    "threads on one CPU": Target(
        "contention", "64 threads on 64 slots, 1 ms a call, against one thread, on one CPU", "x"
    ),
    "beside": Target(
        "contention",
        "a thread that counts, beside 16 threads that lock at 1 ms a call, against alone",
        "x",
        0.95,
        at_least=True,
    ),
    "main thread": Target(
        "main_thread",
        "`with slot:` on the main thread, 1 ms a pair, against another thread",
        "x",
        0.97,
        at_least=True,
    ),
    "tokens": Target(
        "fleet",
        "`tokens(workers=32)`, 3500 keyrings, 1 ms a call, against one by one",
        "x",
        30,
        at_least=True,
    ),
    "provision": Target(
        "fleet",
        "`provision(workers=32)`, 3500 keyrings, 1 ms a call, against calls x 1 ms / workers",
        "x",
        0.9,
        at_least=True,
    ),
    "bytes": Target("memory", "bytes of a slot that was locked once", "", 256),
    "without the GIL": Target(
        "threads", f"{WITHOUT_GIL}8 threads on 8 slots, against one", "x", 1.8, at_least=True
    ),
    "without the GIL/with": Target(
        "threads", f"{WITHOUT_GIL}a pair of one thread, against the GIL build's", "x", 1.3
    ),
    "poll 8 throughput": Target(
        "polling", POLL.format(8, "locks, of what is possible"), "x", 0.85, at_least=True
    ),
    "poll 8 share": Target(
        "polling", POLL.format(8, "smallest share, of the mean"), "x", 0.4, at_least=True
    ),
    "poll 8 wait": Target("polling", POLL.format(8, "longest wait"), "s", 1),
    "poll 2 throughput": Target(
        "polling", POLL.format(2, "locks, of what is possible"), "x", 0.85, at_least=True
    ),
    "poll 2 share": Target(
        "polling", POLL.format(2, "smallest share, of the mean"), "x", 0.8, at_least=True
    ),
    "poll 2 wait": Target("polling", POLL.format(2, "longest wait"), "s", 0.3),
    "poll calls": Target(
        "polling",
        '`contention="poll"`, 16 threads of a process that wait: its device calls',
        "/s",
        50,
    ),
    "import": Target("import_time", "`import luna_ext`, beyond threading and logging", "ms"),
    "beside claims": Target(
        "claims_beside_locks",
        "`with slot:` beside 8 workers that claim at 50 ms, against alone",
        "x",
    ),
}
