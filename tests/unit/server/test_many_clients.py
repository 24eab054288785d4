"""A server of a thousand clients can be asked how they are, again and again."""

import json
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.sites import KEY, Site

CLIENTS = 1000


@pytest.fixture
def descriptors() -> Iterator[None]:
    """Enough of them; the usual limit is 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4 * CLIENTS
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"needs {wanted} descriptors, and may have {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("descriptors")
async def test_to_ask_holds_up_nobody_for_long(tmp_path: Path) -> None:
    clients = {f"client-{number}": {"key": KEY} for number in range(CLIENTS)}
    site = Site(tmp_path, clients=clients, up=None, down=None)
    await site.server.start()
    try:
        times = []
        for _ in range(5):
            began = time.perf_counter()
            text = json.dumps(site.server.status())
            site.server.summary()
            site.server.stalled()
            times.append(time.perf_counter() - began)
        # The event loop stands still meanwhile, and so do packets.
        assert min(times) < 0.1
        tunnels = json.loads(text)["tunnels"]
        assert [tunnel["id"] for tunnel in tunnels] == list(clients)
        assert {tunnel["state"] for tunnel in tunnels} == {"away"}
        assert site.server.summary() == "0 of 1000 clients connected"
    finally:
        await site.server.stop()
