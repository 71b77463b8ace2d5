import asyncio
from collections.abc import Callable
from types import GenericAlias, TracebackType
from typing import Any, Generic, Literal, NoReturn, Self, TypeVar, final

from .client import Lease
from .mutex import SlotMutex
from .waiters import Waiter
from .workers import Workers

_T_co = TypeVar("_T_co", covariant=True)

ANSWER_SECONDS: float

@final
class SlotLock(Generic[_T_co]):
    def __new__(cls, key: object = None) -> Self: ...
    def __enter__(self) -> _T_co: ...
    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...
    async def __aenter__(self) -> _T_co: ...
    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...
    @classmethod
    def __class_getitem__(cls, item: Any, /) -> GenericAlias: ...
    def __reduce__(self) -> NoReturn: ...
    def timed_out(self) -> Exception: ...

async def end_task_block(
    mutex: SlotMutex,
    lease: Lease,
    task: asyncio.Task[Any] | None,
    exc_type: type[BaseException] | None,
    exc_value: BaseException | None,
) -> None: ...
def warn(waiter: Waiter, slot_id: int) -> None: ...
def nobody() -> Literal[False]: ...
async def on_worker(
    loop: asyncio.AbstractEventLoop, workers: Workers, function: Callable[[], object]
) -> None: ...
