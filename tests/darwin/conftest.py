"""A Mac for each test, which is none: everything here runs on any system."""

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
    """The kernel of a Mac, below dtun."""
    with FakeKernel().installed() as kernel:
        yield kernel


@pytest_asyncio.fixture
async def kernel(mac: FakeKernel, tmp_path: Path) -> AsyncIterator[DarwinKernel]:
    """The side of dtun, open."""
    made = DarwinKernel("demo", tmp_path / "run", tmp_path / "resolver")
    await made.open()
    yield made
    mac.root = True
    await made.close()
