from types import TracebackType
from typing import NoReturn, Self, final

from .claims import Claims
from .client import Client, Lease
from .errors import LibraryClosedError
from .token import Token
from .waiters import Waiter

ANSWER_SECONDS: float

@final
class Request(Waiter): ...

def serve(client: Client, claims: Claims) -> None: ...
def closed(lease: Lease) -> LibraryClosedError: ...
def may_change(error: BaseException | None) -> bool: ...

@final
class Claim:
    def __new__(cls, key: object = None) -> Self: ...
    def __enter__(self) -> Token: ...
    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...
    async def __aenter__(self) -> Token: ...
    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...
    def __reduce__(self) -> NoReturn: ...
