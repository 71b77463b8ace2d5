from typing import final

from .client import Client
from .queued import QueuedHold

SETTLE_SECONDS: float

@final
class SlotMutex(QueuedHold):
    def __new__(cls, client: Client, slot_id: int) -> SlotMutex: ...
