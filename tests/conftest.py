"""Fixtures and helpers of all tests, besides the pytest fixtures that come with luna_ext."""

import contextlib
import ctypes
import faulthandler
import gc
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from support import logged, wait_until

import luna_ext
from luna_ext.stub import STATE_VARIABLE, Cluster, library_path

HERE = Path(__file__).parent
NOT_INITIALIZED = 0x190
STAND_IN = ctypes.CDLL(library_path())

# ---- signals ----

# A process that was started with `nohup ... &` ignores these, and so do its children; but the tests
# send them, and expect what they do otherwise. A handler that does nothing keeps this process as it
# is, and leaves the default action to the programs that the tests start.
for ignored in (signal.SIGHUP, signal.SIGQUIT):
    if signal.getsignal(ignored) is signal.SIG_IGN:
        signal.signal(ignored, lambda number, frame: None)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# ---- a limit for each test ----

REAL_STDERR = pytest.StashKey[int]()


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        # `make coverage` measures pytest-xdist's processes, but no program of a test: what it may have to
        # say there would be taken for the program's.
        os.environ.pop("COVERAGE_PROCESS_CONFIG", None)
    elif "COVERAGE_PROCESS_CONFIG" in os.environ:
        # So long they have to write their counts, before they are killed.
        from xdist.workermanage import NodeManager

        NodeManager.EXIT_TIMEOUT = 300
    # Nothing is captured yet.
    config.stash[REAL_STDERR] = os.dup(2)


def pytest_unconfigure(config: pytest.Config) -> None:
    os.close(config.stash[REAL_STDERR])


def begin_limit(item: pytest.Item) -> None:
    """As pytest does it for faulthandler_timeout, but so many times as the marker says."""
    marker = item.get_closest_marker("limit")
    times = 1.0 if marker is None else float(marker.args[0])
    seconds = times * float(item.config.getini("faulthandler_timeout"))
    if seconds > 0:
        faulthandler.dump_traceback_later(seconds, exit=True, file=item.config.stash[REAL_STDERR])


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    begin_limit(item)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    # pytest ends the limit of a test that fails, and that is where its end is likely to hang.
    begin_limit(item)


# ---- what a test leaves behind ----


def is_finalised() -> bool:
    # Where it is, the stand-in does not log this call.
    return int(STAND_IN.C_GetInfo(None)) == NOT_INITIALIZED


def left_on_the_device(cluster: Cluster | None) -> str:
    """What this process still does or holds on the device, in words; "": nothing."""
    if cluster is not None:
        under_way = [one for one in cluster.log() if one.pid == os.getpid() and one.rv is None]
        if under_way:
            return f"device calls are under way: {under_way}"
        held = [token.slot_id for token in cluster.tokens() if token.owner == os.getpid()]
        if held:
            return f"slots are locked on the device: {held}"
    return "" if is_finalised() else "the client library is not finalised"


def left_in_the_process(cluster: Cluster) -> str:
    """The repr of each used slot that is not unlocked in this process, or has waiters; "": none."""
    used = {one.slot_id for one in cluster.log() if one.pid == os.getpid()} - {None}
    if not used:
        return ""
    cluster.latency(0)
    for function in ("C_Initialize", "C_Finalize"):
        cluster.fault(function, 0, times=0)
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("LUNA_EXT_FORBID_STUB", raising=False)
        with cluster.library() as luna:
            slots = [repr(luna.slot(slot_id)) for slot_id in used if slot_id is not None]
    return ", ".join(slot for slot in slots if not slot.endswith(" unlocked>"))


@pytest.fixture(autouse=True)
def nothing_is_left_behind(
    request: pytest.FixtureRequest, no_cluster_from_before: None
) -> Iterator[None]:
    """Fails a test that leaves something locked, waiting or open, which would disturb later tests."""
    cluster = None
    if "luna_cluster" in request.fixturenames:
        # It is still there when all other fixtures have ended.
        cluster = request.getfixturevalue("luna_cluster")
    another_has = not is_finalised()
    yield
    if another_has:
        return
    deadline = time.monotonic() + 10
    # A call that was given up may still come back, and then is the last one.
    while left := left_on_the_device(cluster):
        if time.monotonic() > deadline:
            break
        time.sleep(0.001)
    if not left and cluster is not None:
        left = left_in_the_process(cluster)
    if left:
        pytest.fail(f"{request.node.nodeid} has left something behind: {left}", pytrace=False)


@pytest.fixture(autouse=True)
def log_as_before() -> Iterator[None]:
    """A test, the command and a page's blocks may set up the log; later tests have it as it was."""
    logger = logging.getLogger("luna_ext")
    level, handlers = logger.level, logger.handlers[:]
    yield
    logger.handlers[:] = handlers
    logger.setLevel(level)


@pytest.fixture(autouse=True)
def no_cluster_from_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the environment variable that Cluster.library() sets, before and after the test."""
    monkeypatch.setenv(STATE_VARIABLE, "")
    monkeypatch.delenv(STATE_VARIABLE)


@pytest.fixture(autouse=True)
def no_foreign_gc_callbacks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Hypothesis has such a callback. If a signal handler raised during it, the exception would be lost."""
    callbacks = gc.callbacks[:]
    if request.node.get_closest_marker("signals") is not None:
        gc.callbacks.clear()
    yield
    gc.callbacks[:] = callbacks


@pytest.fixture
def cluster(luna_cluster: Cluster) -> Cluster:
    return luna_cluster


@pytest.fixture
def dual_identity(cluster: Cluster) -> None:
    """Each role of a keyring has a PIN of its own."""
    cluster.switch("identity", "dual")


@pytest.fixture(params=["on", "off"])
def regrant(request: pytest.FixtureRequest, cluster: Cluster) -> str:
    """Runs the test twice: on a device whose claims may give what this process holds, and on one whose
    claims do not.
    """
    setting: str = request.param
    cluster.switch("regrant", setting)
    return setting


@pytest.fixture(scope="session")
def old_client(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Builds, once each, a client library with only these of the cluster functions.

    It works on the stand-in's cluster, and does not say that it is the stand-in.
    """
    directory = tmp_path_factory.mktemp("old_client")

    def build(
        *functions: str,
        function_list_rv: int | None = None,
        growing_from: int | None = None,
        in_child: str | None = None,
        without: str | None = None,
        nameless_claims: bool = False,
        unlabelled_claims: bool = False,
        token_flags: int = 0,
        trouble: str | None = None,
        trouble_at: str | None = None,
        luna_client: str | None = None,
        firmware: str | None = None,
        sessions: int | None = None,
    ) -> Path:
        switches = [f"-DWITH_{function}" for function in functions]
        if function_list_rv is not None:
            switches.append(f"-DFUNCTION_LIST_RV={function_list_rv:#x}")
        if growing_from is not None:
            switches.append(f"-DGROWING_FROM={growing_from}")
        if in_child is not None:
            switches.append(f"-DIN_CHILD={in_child}")
        if without is not None:
            switches.append(f"-DWITHOUT={without}")
        if nameless_claims:
            switches.append("-DNAMELESS_CLAIMS")
        if unlabelled_claims:
            switches.append("-DUNLABELLED_CLAIMS")
        if trouble is not None:
            switches.append(f"-DTROUBLE={trouble}")
        if trouble_at is not None:
            switches.append(f"-DTROUBLE_AT={trouble_at}")
        if luna_client is not None:
            switches.append(f"-DLUNA_CLIENT={luna_client}")
        if firmware is not None:
            switches.append(f"-DFIRMWARE={firmware}")
        if sessions is not None:
            switches.append(f"-DSESSIONS={sessions}")
        if token_flags:
            switches.append(f"-DTOKEN_FLAGS={token_flags:#x}")
        library = directory / ("_".join(["client", *switches]).replace("-D", "") + ".so")
        if not library.exists():
            command = ["cc", "-shared", "-fPIC", "-std=c11", "-Wall", "-Wextra", "-Werror"]
            command += [f'-DSTAND_IN="{library_path()}"', *switches]
            command += [f"-I{HERE.parent / 'include'}", str(HERE / "c" / "old_client.c")]
            subprocess.run([*command, "-o", str(library), "-ldl"], check=True)
        return library

    return build


HOLDER = """
import os
import sys
from luna_ext.stub import STATE_VARIABLE, Cluster

with Cluster(os.environ[STATE_VARIABLE]).library() as luna:
    slot = luna.slot(int(sys.argv[1]))
    with slot:
        print("held", flush=True)
        sys.stdin.readline()
    print("released", flush=True)
    sys.stdin.readline()
"""


class Holder:
    """Another process that holds a slot's lock until it is told to release it."""

    def __init__(self, slot_id: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(slot_id)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._expect("held")

    @property
    def pid(self) -> int:
        return self.process.pid

    def release(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self._expect("released")

    def kill(self) -> None:
        self.process.kill()
        self.end()

    def end(self) -> None:
        self.process.communicate()

    def _expect(self, word: str) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline().strip() == word


@pytest.fixture
def hold_elsewhere(cluster: Cluster) -> Iterator[Callable[[int], Holder]]:
    holders: list[Holder] = []

    def hold(slot_id: int) -> Holder:
        holders.append(Holder(slot_id))
        return holders[-1]

    yield hold
    for holder in holders:
        if holder.process.stdin is not None and not holder.process.stdin.closed:
            holder.end()
        assert holder.process.returncode in (0, -9)


class Caller(threading.Thread):
    """A thread that calls one function; `result()` gives what it returned or raised."""

    def __init__(self, function: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._function = function
        self._result: object = None
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._result = self._function()
        except BaseException as error:
            self._error = error

    def result(self, timeout: float = 10) -> object:
        self.join(timeout)
        assert not self.is_alive(), "the thread is still busy"
        if self._error is not None:
            raise self._error
        return self._result


@pytest.fixture
def call() -> type[Caller]:
    return Caller


class HoldingThread(Caller):
    """A thread that holds a lock until it is told to leave the block."""

    def __init__(self, lock: contextlib.AbstractContextManager[object]) -> None:
        self._lock = lock
        self._entered, self._leave = threading.Event(), threading.Event()
        super().__init__(self._hold)
        wait_until(lambda: self._entered.is_set() or not self.is_alive())

    def _hold(self) -> object:
        with self._lock as entered:
            self._entered.set()
            assert self._leave.wait(60)
        return entered

    def leave(self) -> object:
        """Let the block end; if it raised, the exception is raised here."""
        self._leave.set()
        return self.result()


@pytest.fixture
def hold_here() -> Iterator[Callable[..., HoldingThread]]:
    """Another thread of this process that holds a lock, which its end of the block gives back."""
    holders: list[HoldingThread] = []

    def hold(lock: contextlib.AbstractContextManager[object]) -> HoldingThread:
        holders.append(HoldingThread(lock))
        return holders[-1]

    yield hold
    for holder in holders:
        holder._leave.set()
        holder.join(10)


@pytest.fixture
def on_alarm() -> Iterator[Callable[..., None]]:
    """Let a function be the handler of a signal that comes a moment later, once."""
    previous = signal.getsignal(signal.SIGALRM)

    def arm(function: Callable[[], object], delay: float = 0.1) -> None:
        signal.signal(signal.SIGALRM, lambda number, frame: function())
        signal.setitimer(signal.ITIMER_REAL, delay)

    yield arm
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, previous)


@pytest.fixture
def owner_of(cluster: Cluster) -> Callable[[int], int | None]:
    """The PID of the process that holds a slot's lock on the device."""

    def owner(slot_id: int) -> int | None:
        return {token.slot_id: token.owner for token in cluster.tokens()}[slot_id]

    return owner


@pytest.fixture
def calls_of(luna: luna_ext.Library) -> Callable[[str], int]:
    """How often a C function was called since the test began; stats() counts for the process."""

    def count(function: str) -> int:
        stats = luna.stats().get(function)
        return 0 if stats is None else stats.calls

    before = {function: count(function) for function in luna.stats()}
    return lambda function: count(function) - before.get(function, 0)


@pytest.fixture
def wait_until_queued() -> Callable[[luna_ext.ClusterSlot, int], None]:
    def wait(slot: luna_ext.ClusterSlot, count: int) -> None:
        """Wait until so many threads or tasks wait for the slot, by its repr."""
        wait_until(lambda: f"{count} waiting" in repr(slot))

    return wait


@pytest.fixture
def wait_until_inside(cluster: Cluster) -> Callable[..., None]:
    """Wait until so many threads of a process, this one by default, are inside a device call."""

    def wait(function: str, count: int = 1, *, pid: int | None = None) -> None:
        wait_until(lambda: sum(one.rv is None for one in logged(cluster, function, pid)) >= count)

    return wait


PREAMBLE = """
import logging, os, signal, sys, threading, time, luna_ext
from luna_ext.stub import STATE_VARIABLE, Cluster
# However slow the machine is, asyncio shall not say so.
logging.getLogger("asyncio").setLevel(logging.ERROR)
cluster = Cluster(os.environ[STATE_VARIABLE])
luna = cluster.library()
slot = luna.slot(1)

def in_thread(function, *arguments, daemon=True):
    thread = threading.Thread(target=function, args=arguments, daemon=daemon)
    thread.start()
    return thread

def wait_until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)

def wait_until_inside(function, count=1):
    def inside(call):
        return (call.function, call.rv, call.pid) == (function, None, os.getpid())
    wait_until(lambda: sum(map(inside, cluster.log())) >= count)

def leaving():
    print(time.monotonic(), flush=True)
"""
DEVELOPMENT = ("-X", "dev", "-W", "error")


class Ended(NamedTuple):
    """How a program ended."""

    returncode: int
    words: list[str]
    """What it printed, without the line that leaving() prints."""
    stderr: str
    seconds: float | None
    """From leaving(), if the program called it, to its end."""


class Program:
    """Python code, after PREAMBLE, in a process of its own."""

    patience = 45.0
    """Seconds to its end, at most. Where a test may take longer than usual, so may its programs."""

    def __init__(self, body: str, *, options: tuple[str, ...] = DEVELOPMENT, **variables: str):
        self.process = subprocess.Popen(
            [sys.executable, *options, "-c", PREAMBLE + textwrap.dedent(body)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **variables},
        )

    def expect(self, word: str) -> None:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        assert line == word, (line, self.process.poll())

    def ended(self, timeout: float | None = None) -> Ended:
        try:
            out, err = self.process.communicate(timeout=timeout or self.patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            out, err = self.process.communicate()
            raise AssertionError(f"the program does not end: {out!r}, {err!r}") from None
        now = time.monotonic()
        words = out.split()
        seconds = None
        if words and words[-1].replace(".", "", 1).isdigit() and "." in words[-1]:
            seconds = now - float(words.pop())
        return Ended(self.process.returncode, words, err, seconds)


@pytest.fixture
def program(cluster: Cluster, pytestconfig: pytest.Config) -> Iterator[Callable[..., Program]]:
    """Start a Program; ended() waits for it."""
    programs: list[Program] = []
    limit = float(pytestconfig.getini("faulthandler_timeout"))
    Program.patience = max(Program.patience, 0.75 * limit)

    def start(body: str, **options: object) -> Program:
        programs.append(Program(body, **options))  # type: ignore[arg-type]
        return programs[-1]

    yield start
    for started in programs:
        if started.process.poll() is None:
            started.process.kill()
        if started.process.stdin is not None and not started.process.stdin.closed:
            started.process.communicate()


@pytest.fixture
def reinitialise(cluster: Cluster) -> Iterator[Callable[[], None]]:
    """What another user of the process may do, such as a wrapper object that is collected and made anew.

    Asked for before `luna`, so that it finalises the library when `luna` is closed.
    """

    def reinitialise() -> None:
        assert STAND_IN.C_Finalize(None) == 0
        assert STAND_IN.C_Initialize(None) == 0

    yield reinitialise
    STAND_IN.C_Finalize(None)


@pytest.fixture
def run(program: Callable[..., Program]) -> Callable[..., Ended]:
    """Run a Program to its end."""

    def run(body: str, *, timeout: float | None = None, **options: object) -> Ended:
        return program(body, **options).ended(timeout)

    return run


@pytest.fixture
def succeed(run: Callable[..., Ended]) -> Callable[..., list[str]]:
    """Run a Program that prints nothing on stderr; what it printed on stdout."""

    def succeed(body: str, **options: object) -> list[str]:
        done = run(body, **options)
        assert (done.returncode, done.stderr) == (0, ""), done
        return done.words

    return succeed


@pytest.fixture
def in_child() -> Callable[[Callable[[], object]], int]:
    """Run a function in a forked child; the child's exit code. 0: the function returned true."""

    def run(function: Callable[[], object]) -> int:
        child = os.fork()
        if child == 0:
            # A child that hangs is ended by the signal's default action.
            signal.alarm(45)
            code = 99
            try:
                code = 0 if function() else 1
            finally:
                os._exit(code)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    return run
