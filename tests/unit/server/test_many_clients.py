"""A server of many clients can be asked how they are, again and again."""

import json
import time
from pathlib import Path

from tests.unit.sites import KEY, Site

CLIENTS = 200


async def test_a_status_request_delays_no_packet_for_long(tmp_path: Path) -> None:
    clients = {f"client-{number}": {"key": KEY} for number in range(CLIENTS)}
    site = Site(tmp_path, clients=clients, up=None, down=None)
    await site.server.start()
    try:
        times = []
        for _ in range(5):
            began = time.process_time()
            text = json.dumps(site.server.status())
            site.server.summary()
            site.server.stalled()
            times.append(time.process_time() - began)
        # The event loop stands still meanwhile, and so do packets.
        assert min(times) < CLIENTS * 0.0001
        tunnels = json.loads(text)["tunnels"]
        assert [tunnel["id"] for tunnel in tunnels] == list(clients)
        assert {tunnel["state"] for tunnel in tunnels} == {"away"}
        assert site.server.summary() == f"0 of {CLIENTS} clients connected"
    finally:
        await site.server.stop()
