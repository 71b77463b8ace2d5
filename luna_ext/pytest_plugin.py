"""The stand-in as pytest fixtures, for the tests of applications. pytest finds it by itself."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ._cluster import Library
from .stub import BACKEND_VARIABLE, STATE_VARIABLE, Cluster


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "luna_cluster(**options): what the fixture luna_cluster gives to luna_ext.stub.Cluster: "
        "keyrings=100, label='payments', ...",
    )


@pytest.fixture
def luna_cluster(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Cluster]:
    """A fresh cluster of the stand-in, and this process's cluster as long as the test runs.

    Child processes inherit it. The marker ``luna_cluster`` says what kind of cluster, in the
    arguments of `luna_ext.stub.Cluster`; the test makes it misbehave by its methods.
    """
    marker = request.node.get_closest_marker("luna_cluster")
    if marker is not None and marker.args:
        raise pytest.UsageError("the marker luna_cluster takes keyword arguments alone")
    options = {} if marker is None else marker.kwargs
    with Cluster(**options) as cluster:
        monkeypatch.setenv(STATE_VARIABLE, cluster.path)
        if cluster.backend is not None:
            monkeypatch.setenv(BACKEND_VARIABLE, cluster.backend)
        yield cluster


@pytest.fixture
def luna(luna_cluster: Cluster) -> Iterator[Library]:
    """An open `luna_ext.Library` on the fresh cluster of the fixture luna_cluster."""
    with luna_cluster.library() as library:
        yield library
