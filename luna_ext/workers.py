"""Threads that make a device call for somebody who must be able to stop waiting for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue

_KEEP_IDLE = 8


class Workers:
    """Daemon threads, started when needed and kept for the next job.

    They are daemons because a device call may block for minutes and nothing can interrupt it: at
    exit the process must not wait for them.
    """

    def __init__(self) -> None:
        self._idle: list[SimpleQueue[Callable[[], object]]] = []

    def run(self, job: Callable[[], object]) -> None:
        """Run `job`, which may not raise, on a thread of its own; do not wait for it."""
        try:
            inbox = self._idle.pop()
        except IndexError:
            inbox = SimpleQueue()
            threading.Thread(
                target=self._serve, args=(inbox,), name="luna_ext-worker", daemon=True
            ).start()
        inbox.put(job)

    def _serve(self, inbox: SimpleQueue[Callable[[], object]]) -> None:
        while True:
            inbox.get()()
            if len(self._idle) >= _KEEP_IDLE:
                return
            self._idle.append(inbox)
