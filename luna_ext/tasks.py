"""Which asyncio task is running; asyncio is not imported where nobody has."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The event loop that this thread is running."""
    asyncio = sys.modules.get("asyncio")
    try:
        return None if asyncio is None else asyncio.get_running_loop()
    except RuntimeError:
        return None


def current_task() -> asyncio.Task[Any] | None:
    """The task that this thread is running."""
    loop = running_loop()
    return None if loop is None else sys.modules["asyncio"].current_task(loop)


def runs_here(task: asyncio.Task[Any]) -> bool:
    """Whether the task belongs to the event loop that this thread is running."""
    return task.get_loop() is running_loop()
