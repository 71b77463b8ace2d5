"""The environment variables that clusters set for the client library and for child processes."""

from __future__ import annotations

import os


class Variable:
    """An environment variable that clusters set; once all have put it back, it is as it was before."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._before: str | None = None
        self._values: dict[object, str] = {}
        """Of each cluster that has set it and has not put it back; the latest is the last."""

    def set(self, owner: object, value: str) -> None:
        """Let it have this value, until another cluster sets it."""
        if not self._values:
            self._before = os.environ.get(self.name)
        self._values.pop(owner, None)
        self._values[owner] = value
        os.environ[self.name] = value

    def put_back(self, owner: object) -> None:
        """Let it have the value of the cluster that set it before, or the one of before them all."""
        value = self._values.pop(owner, None)
        # Another cluster's value, or the program's own, stays.
        if value is None or os.environ.get(self.name) != value:
            return
        before = [self._before, *self._values.values()][-1]
        if before is None:
            del os.environ[self.name]
        else:
            os.environ[self.name] = before
