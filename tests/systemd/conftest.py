"""Containers for the tests in this directory: skipped where there can be none, but not in CI."""

import os
from pathlib import Path

import pytest

from tests.systemd.container import missing, sweep

# The first run builds the root file system.
TIMEOUT = 600


@pytest.fixture(scope="module", autouse=True)
def _containers(request: pytest.FixtureRequest) -> None:
    """Skips a module with containers where there can be none. In CI that would hide that nothing was tested."""
    if not hasattr(request.module, "Container"):
        return
    if reason := missing():
        message = f"systemd cannot be booted here: {reason}"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    sweep()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TIMEOUT))
