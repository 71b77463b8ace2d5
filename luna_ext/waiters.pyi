from typing import final

from typing_extensions import disjoint_base

@disjoint_base
class Waiter: ...

@final
class WaitQueue:
    def __new__(cls) -> WaitQueue: ...
