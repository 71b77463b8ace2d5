from typing_extensions import disjoint_base

from .client import Client
from .hold import Hold

CLAIM_SECONDS: float
BUSY_SECONDS: float

@disjoint_base
class ReleasableHold(Hold):
    def __new__(cls, client: Client, slot_id: int) -> ReleasableHold: ...
