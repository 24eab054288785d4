"""Containers for the tests in this directory."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.systemd.container import missing, sweep
from tests.systemd.package import REPOSITORY
from tests.systemd.pair import Pair, installed_pair

HERE = Path(__file__).parent
# The first run builds the root file systems.
TIMEOUT = 600


@pytest.fixture(scope="module", autouse=True)
def _containers(request: pytest.FixtureRequest) -> None:
    if hasattr(request.module, "Container"):
        _need_containers()


def _need_containers() -> None:
    if reason := missing():
        pytest.skip(f"systemd cannot be booted here: {reason}")
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
    for item in items:
        if item.path.is_relative_to(HERE) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TIMEOUT))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build what containers start from while other tests run: on a fresh machine it takes minutes.

    If this fails, the first test that needs it tries again and shows the error.
    """
    if os.environ.get("PYTEST_XDIST_WORKER", "gw0") != "gw0" or session.config.option.collectonly:
        return
    if missing() or not any(item.path.is_relative_to(HERE) for item in session.items):
        return
    building = subprocess.Popen(
        ["nice", sys.executable, "-m", "tests.systemd.package"],
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )

    def end() -> None:
        if building.poll() is None:
            os.killpg(building.pid, signal.SIGKILL)
            building.wait()

    session.config.add_cleanup(end)
