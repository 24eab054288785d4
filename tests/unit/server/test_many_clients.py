"""A server of many clients can be asked how they are, again and again."""

import json
import time
from pathlib import Path

import pytest

from dtun.network.state import ClampMss, Filter, Masquerade
from dtun.server import identities, login
from tests.unit.sites import KEY, RawClient, Site, wait_for

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


async def test_the_devices_of_all_clients_are_removed_in_one_step(tmp_path: Path) -> None:
    """A change for each would compare the state of all: a thousand clients took minutes."""
    site = Site(tmp_path, clients={f"client-{number}": {"key": KEY} for number in range(CLIENTS)})
    await site.server.start()
    before = site.kernel.applied
    await site.server.stop()
    assert site.kernel.applied - before < 5
    assert site.kernel.state.devices == frozenset()
    assert all(tun.closed for tun in site.kernel.tuns.values())


async def test_devices_of_ids_that_are_not_configured_do_not_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(login, "IDLE_CHECK", 0.01)
    monkeypatch.setattr(identities, "MOST_IDLE", 2)
    site = Site(tmp_path, clients={"demo": {"key": KEY}, "*": {"key": KEY}}, masquerade=["eth0"])
    await site.server.start()
    try:
        addresses = {}
        for name in ("demo", "a", "b", "c"):
            client = RawClient(site, name, subnets=False)
            with client.socket:
                addresses[name] = (await client.connect()).address
                client.session.close("stopped", "", time.monotonic())
                client.turn()
                await wait_for(lambda name=name: site.row(name)["state"] == "away", "it to leave")  # type: ignore[misc]

        def masqueraded(device: str) -> set[Filter]:
            return {Masquerade(device, "eth0"), ClampMss(device, site.row()["mtu"])}

        def devices() -> set[str]:
            return {device.name for device in site.kernel.state.devices}

        await wait_for(lambda: devices() == {"dtun-demo", "dtun-b", "dtun-c"}, "the first to be removed")
        assert site.tun("dtun-a").closed
        monkeypatch.setattr(identities, "IDLE_TIME", 0)
        await wait_for(lambda: devices() == {"dtun-demo"}, "all of them to be removed")
        await wait_for(lambda: site.kernel.state.filters == masqueraded("dtun-demo"), "their filters to go")
        monkeypatch.setattr(identities, "IDLE_TIME", 60)
        back = RawClient(site, "a", subnets=False)
        with back.socket:
            assert (await back.connect()).address == addresses["a"]
            monkeypatch.setattr(login, "IDLE_CHECK", 60)
            assert "dtun-a" in devices(), "while it is connected"
    finally:
        await site.server.stop()
