from queue import SimpleQueue
from collections.abc import Callable
from typing import final

@final
class Workers:
    def __new__(cls) -> Workers: ...
    def serve(self, inbox: SimpleQueue[Callable[[], object]]) -> None: ...
