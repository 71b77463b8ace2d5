from typing import final

@final
class Claims:
    def __new__(cls) -> Claims: ...
