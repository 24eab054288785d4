"""Namespaces for the tests in this directory: made for each test, gone after it."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from topology import Topology, missing, sweep


@pytest.fixture(scope="session", autouse=True)
def _namespaces() -> None:
    if reason := missing():
        pytest.skip(f"network namespaces cannot be tested here: {reason}")
    sweep()


@pytest.fixture
def net() -> Iterator[Topology]:
    """An empty topology."""
    with Topology() as topology:
        yield topology


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker("netns")
