"""Which asyncio task is running; asyncio is not imported where nobody has."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import asyncio


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The event loop that this thread is running."""
    asyncio = sys.modules.get("asyncio")
    try:
        return None if asyncio is None else asyncio.get_running_loop()
    except (RuntimeError, AttributeError):
        # Without the attribute, another thread is just importing asyncio: no loop runs yet.
        return None


def current_task() -> asyncio.Task[Any] | None:
    """The task that this thread is running."""
    loop = running_loop()
    return None if loop is None else sys.modules["asyncio"].current_task(loop)


def runs_here(task: asyncio.Task[Any]) -> bool:
    """Whether the task belongs to the event loop that this thread is running."""
    return task.get_loop() is running_loop()


def running_task() -> tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]:
    """The event loop that this thread is running, and its task."""
    loop = running_loop()
    task = None if loop is None else sys.modules["asyncio"].current_task(loop)
    if loop is None or task is None:
        raise RuntimeError("`async with` on a lock works inside an asyncio task")
    return loop, task


def settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def tell(loop: asyncio.AbstractEventLoop, future: asyncio.Future[None]) -> Literal[False] | None:
    """Settle the future from another thread; False when its loop is closed."""
    try:
        loop.call_soon_threadsafe(settle, future)
    except RuntimeError:
        return False
    return None


async def settled_within(
    future: asyncio.Future[None], seconds: float, patience: float, warn: Callable[[], object]
) -> None:
    """Wait until the future is settled, for so long at most; -1: without limit.

    If that takes longer than `patience` seconds, `warn` is called.
    """
    loop = future.get_loop()
    timers = []
    if seconds != -1:
        timers.append(loop.call_later(seconds, settle, future))
    if seconds == -1 or seconds > patience:
        timers.append(loop.call_later(patience, warn))
    try:
        await future
    finally:
        for timer in timers:
            timer.cancel()
