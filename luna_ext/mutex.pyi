import asyncio
from typing import Any, final

from .client import Client, Lease
from .hold import Hold

SETTLE_SECONDS: float

@final
class SlotMutex(Hold):
    def __new__(cls, client: Client, slot_id: int) -> SlotMutex: ...
    def lock_on_worker(self) -> None: ...
    def close_lease(self, lease: Lease) -> tuple[int | asyncio.Task[Any], str] | None: ...
    def after_fork(self) -> None: ...
