"""A simulated Mac for each test."""

import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "netns"))

from fake_kernel import FakeKernel

from dtun.platform.darwin.kernel import DarwinKernel


@pytest.fixture
def mac() -> Iterator[FakeKernel]:
    """The simulated kernel."""
    with FakeKernel().installed() as kernel:
        yield kernel


@pytest_asyncio.fixture
async def kernel(mac: FakeKernel, tmp_path: Path) -> AsyncIterator[DarwinKernel]:
    """Dtun's side of it, open."""
    made = DarwinKernel("demo", tmp_path / "run", tmp_path / "resolver")
    await made.open()
    yield made
    mac.root = True
    await made.close()
