"""What sequences of calls share: another process, and the loaded stand-in."""

import contextlib
import os
import shutil
import warnings
from pathlib import Path

import pytest
from actors import Actor, Elsewhere

import luna_ext
from luna_ext.stub import Cluster, library_path


class Surroundings:
    """Used for many sequences. After a failure they may be in any state, so new ones are made, and the
    sequence that failed fails in the same way when it is run once more.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, patience: float) -> None:
        self.patience = patience
        """Seconds for what happens at once on an idle machine."""
        self.elsewhere = Elsewhere(self.patience)
        self._folder = folder
        self._monkeypatch = monkeypatch
        self._original = library_path()
        self._copies = 0

    def abandon(self, cluster: Cluster, libraries: list[luna_ext.Library]) -> None:
        """After a failure, or during a sequence: calls may be under way, or stuck."""
        self.elsewhere.kill()
        with contextlib.suppress(ProcessLookupError):
            cluster.disconnect(os.getpid())
        closer = Actor(self.patience)
        with warnings.catch_warnings(), contextlib.suppress(AssertionError):
            warnings.simplefilter("ignore")
            for luna in libraries:
                closer.call(luna.close)
        closer.end()
        self.elsewhere = Elsewhere(self.patience)
        # A library that has another path has its own state, here and in the stand-in.
        self._copies += 1
        copy = self._folder / f"{self._copies}-{Path(self._original).name}"
        shutil.copy(self._original, copy)
        self._monkeypatch.setattr("luna_ext.stub.library_path", lambda: str(copy))

    def hurry(self) -> None:
        """After the first failure: while a shorter sequence is looked for, many will fail."""
        self.patience = 2

    def end(self) -> None:
        assert self.elsewhere.end() == 0
