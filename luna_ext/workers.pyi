from collections.abc import Callable
from queue import SimpleQueue
from typing import final

@final
class Workers:
    def __new__(cls) -> Workers: ...
    def serve(self, inbox: SimpleQueue[Callable[[], object]]) -> None: ...
