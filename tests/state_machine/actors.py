"""Threads, tasks, and another process, that each run one given function at a time."""

import asyncio
import queue
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable


class Actor:
    """A thread that calls what it is given; an exception's type is a result as well."""

    is_task = False

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._results: queue.SimpleQueue[object] = queue.SimpleQueue()
        self.busy = False
        self._start()

    def _start(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    def _put(self, function: Callable[[], object] | None) -> None:
        self._calls.put(function)

    def begin(self, function: Callable[[], object]) -> None:
        assert not self.busy
        self.busy = True
        self._put(function)

    def result(self) -> object:
        """What the call under way returns, or the type of what it raises."""
        try:
            result = self._results.get(timeout=self._patience)
        except queue.Empty:
            raise AssertionError(f"a call takes more than {self._patience} s") from None
        self.busy = False
        return result

    def expect(self, expected: object) -> None:
        result = self.result()
        assert result is expected, f"{result}, not {expected}"

    def still_waits(self) -> bool:
        return self.busy and self._results.empty()

    def call(self, function: Callable[[], object]) -> object:
        self.begin(function)
        return self.result()

    def end(self) -> None:
        self._put(None)

    def _run(self) -> None:
        while (function := self._calls.get()) is not None:
            try:
                result = function()
            except BaseException as error:
                result = type(error)
            self._results.put(result)


class Loop:
    """An event loop on a thread of its own, for several TaskActors."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def end(self, patience: float) -> None:
        """After its tasks."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(patience)
        if not self._thread.is_alive():
            self.loop.close()


class TaskActor(Actor):
    """A task that does so; what it is given may return something to await."""

    is_task = True

    def __init__(self, patience: float, loop: Loop) -> None:
        self._loop = loop.loop
        super().__init__(patience)

    def _start(self) -> None:
        self._given: asyncio.Queue[Callable[[], object] | None] = asyncio.Queue()
        self._task = asyncio.run_coroutine_threadsafe(self._play(), self._loop)

    def _put(self, function: Callable[[], object] | None) -> None:
        self._loop.call_soon_threadsafe(self._given.put_nowait, function)

    def end(self) -> None:
        if self.busy:
            self._task.cancel()
        else:
            self._put(None)
            self._task.result(self._patience)

    async def _play(self) -> None:
        while (function := await self._given.get()) is not None:
            try:
                result = function()
                if isinstance(result, Awaitable):
                    result = await result
            except asyncio.CancelledError:
                raise
            except BaseException as error:
                result = type(error)
            self._results.put(result)


class MainThread:
    """The thread that the machine itself runs on: no Actor, and nothing waits for it."""

    is_task = False
    busy = False


ELSEWHERE = """
import sys
from luna_ext.stub import Cluster

for line in sys.stdin:
    command, argument = line.rstrip().split(" ", 1)
    if command == "open":
        luna = Cluster(argument).library()
    elif command == "close":
        luna.close()
    elif command == "lock":
        luna.slot(int(argument)).acquire()
    else:
        luna.slot(int(argument)).release()
    print("done", flush=True)
"""


class Elsewhere:
    """Another process, an application of one cluster after the other."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._process = subprocess.Popen(
            [sys.executable, "-c", ELSEWHERE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        # So that a process that hangs is noticed.
        self._reader = Actor(patience)

    @property
    def pid(self) -> int:
        return self._process.pid

    def open(self, path: str) -> None:
        self._tell(f"open {path}")

    def close(self) -> None:
        self._tell("close -")

    def lock(self, slot_id: int) -> None:
        self._tell(f"lock {slot_id}")

    def unlock(self, slot_id: int) -> None:
        self._tell(f"unlock {slot_id}")

    def end(self) -> int:
        self._reader.end()
        self._process.communicate(timeout=self._patience)
        return self._process.returncode

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        if self._reader.busy:
            self._reader.result()
        self.end()

    def _tell(self, command: str) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        assert self._reader.call(self._process.stdout.readline) == "done\n"
