"""Containers for the tests in this directory: skipped where there can be none, but not in CI."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.systemd.container import missing, sweep
from tests.systemd.pair import Pair, installed_pair

# The first run builds the root file system.
TIMEOUT = 600


@pytest.fixture(scope="module", autouse=True)
def _containers(request: pytest.FixtureRequest) -> None:
    if hasattr(request.module, "Container"):
        _need_containers()


def _need_containers() -> None:
    """Skips tests with containers where there can be none. In CI that would hide that nothing was tested."""
    if reason := missing():
        message = f"systemd cannot be booted here: {reason}"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    sweep()


@pytest.fixture(scope="session")
def installed() -> Iterator[Pair]:
    """Two machines set up by the book. Shared, since that takes a while: a test leaves services and files as they were,
    and relies on nothing but that.
    """
    _need_containers()
    with installed_pair() as pair:
        yield pair


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TIMEOUT))
