"""The stand-in as pytest fixtures, for the tests of applications. pytest finds it by itself."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from ._cluster import Library
from .stub import BACKEND_VARIABLE, STATE_VARIABLE, Cluster

_OPTIONS = [*inspect.signature(Cluster).parameters]


def pytest_configure(config: pytest.Config) -> None:
    """Tell pytest the markers."""
    config.addinivalue_line(
        "markers",
        "luna_cluster(**options): what the fixtures of a cluster give to luna_ext.stub.Cluster: "
        "keyrings=100, label='payments', ...; those of the class and the module count as well.",
    )
    config.addinivalue_line(
        "markers",
        "luna_leaves_locks: the test may end while locks of its fixture's Library are still held.",
    )


def _cluster_options(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Of all markers, of which the nearest one counts most."""
    options: dict[str, Any] = {}
    for marker in request.node.iter_markers("luna_cluster"):
        if marker.args:
            pytest.fail("the marker luna_cluster takes keyword arguments alone", pytrace=False)
        for name in marker.kwargs:
            if name not in _OPTIONS:
                pytest.fail(
                    f"the marker luna_cluster has no option {name!r}: it takes {', '.join(_OPTIONS)}",
                    pytrace=False,
                )
        options = {**marker.kwargs, **options}
    return options


def _made(options: dict[str, Any]) -> Cluster:
    try:
        return Cluster(**options)
    except (TypeError, ValueError, OSError) as error:
        if not options:
            raise
        raise pytest.fail.Exception(f"the marker luna_cluster: {error}", pytrace=False) from None


def _run_cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    options = _cluster_options(request)
    # In this order: the Cluster puts back what it has found, which the patch had set.
    with pytest.MonkeyPatch.context() as patch, _made(options) as cluster:
        patch.setenv(STATE_VARIABLE, cluster.path)
        if cluster.backend is not None:
            patch.setenv(BACKEND_VARIABLE, cluster.backend)
        yield cluster


def _open_library(request: pytest.FixtureRequest, cluster: Cluster) -> Iterator[Library]:
    try:
        library = cluster.library()
    except RuntimeError as error:
        raise pytest.fail.Exception(
            f"{error}. Beside module_luna or session_luna there is no luna: let all tests of that module, "
            "or session, use the same of them",
            pytrace=False,
        ) from None
    yield library
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        library.close()
    left = []
    for warning in caught:
        if "was still locked" in str(warning.message):
            left.append(str(warning.message))
        else:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
    if left and not request.node.get_closest_marker("luna_leaves_locks"):
        pytest.fail(
            "\n".join([*left, "Release it, or mark the test with luna_leaves_locks"]), pytrace=False
        )


@pytest.fixture
def luna_cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A fresh cluster of the stand-in, and this process's cluster as long as the test runs.

    Child processes inherit it. The markers ``luna_cluster`` of the test, its class and its module say
    what kind of cluster, in the arguments of `luna_ext.stub.Cluster`; the test makes it misbehave by its
    methods.
    """
    yield from _run_cluster(request)


@pytest.fixture
def luna(request: pytest.FixtureRequest, luna_cluster: Cluster) -> Iterator[Library]:
    """An open `luna_ext.Library` on the fresh cluster of the fixture luna_cluster.

    A test that ends while a lock of it is held fails, unless the marker ``luna_leaves_locks`` allows it.
    """
    yield from _open_library(request, luna_cluster)


@pytest.fixture(scope="module")
def module_luna_cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """As luna_cluster, one for all tests of a module; the module's marker says what kind."""
    yield from _run_cluster(request)


@pytest.fixture(scope="module")
def module_luna(request: pytest.FixtureRequest, module_luna_cluster: Cluster) -> Iterator[Library]:
    """As luna, on the fixture module_luna_cluster."""
    yield from _open_library(request, module_luna_cluster)


@pytest.fixture(scope="session")
def session_luna_cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """As luna_cluster, one for all tests; under pytest-xdist one for each of its processes."""
    yield from _run_cluster(request)


@pytest.fixture(scope="session")
def session_luna(
    request: pytest.FixtureRequest, session_luna_cluster: Cluster
) -> Iterator[Library]:
    """As luna, on the fixture session_luna_cluster."""
    yield from _open_library(request, session_luna_cluster)
