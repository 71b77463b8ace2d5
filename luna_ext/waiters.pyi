from typing import final

@final
class Waiter: ...

@final
class WaitQueue:
    def __new__(cls) -> WaitQueue: ...
