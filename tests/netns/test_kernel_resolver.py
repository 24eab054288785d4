"""Name servers are set in the resolver; a resolver that refuses them does not prevent the rest."""

from ipaddress import ip_address
from pathlib import Path

import kernels
import pytest
from kernels import TUN, into, opened, routes, state, tunnel
from topology import Host

from dtun.errors import UnavailableError
from dtun.network.state import Dns, NetworkState
from dtun.platform.interface import ChangesRefusedError
from dtun.platform.linux.operations import Operations

host, runtime = kernels.host, kernels.runtime

ASKED = Dns(TUN, (ip_address("10.86.0.2"),), ("~.",))


class Resolver:
    """Records calls; refuses all while `refuses` is set."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.refuses = False

    async def apply(self, dns: Dns) -> None:
        if self.refuses:
            raise UnavailableError("there is no resolver here")
        self.told.append(f"{dns.device}: {dns.servers[0]}")

    async def revert(self, device: str) -> None:
        self.told.append(f"{device}: as before")


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Resolver:
    resolver = Resolver()
    monkeypatch.setattr(Operations, "resolved", resolver)
    return resolver


def test_name_servers_come_last_and_go_first(host: Host, runtime: Path, resolver: Resolver) -> None:
    async def story() -> None:
        async with tunnel(runtime) as (linux, _):
            changes = await linux.apply(state(into("10.1.0.0/16")) | NetworkState(dns=frozenset({ASKED})))
            assert str(changes[-1]) == "add dns 10.86.0.2 domain ~. dev dtun-demo"
            changes = await linux.apply(state(into("10.1.0.0/16")))
            assert [str(change) for change in changes] == ["remove dns 10.86.0.2 domain ~. dev dtun-demo"]

    host.play(story)
    assert resolver.told == [f"{TUN}: 10.86.0.2", f"{TUN}: as before"]


def test_a_resolver_that_refuses_is_named_and_the_rest_is_in_place(
    host: Host, runtime: Path, resolver: Resolver
) -> None:
    resolver.refuses = True

    async def story() -> None:
        async with tunnel(runtime) as (linux, _):
            with pytest.raises(ChangesRefusedError, match="dev dtun-demo: there is no resolver here"):
                await linux.apply(state(into("10.1.0.0/16")) | NetworkState(dns=frozenset({ASKED})))
            assert routes(host) == {"10.1.0.0/16 dev dtun-demo"}
            assert linux.applied.dns == set()

    host.play(story)


def test_a_device_that_is_closed_takes_its_name_servers_along(
    host: Host, runtime: Path, resolver: Resolver
) -> None:
    async def story() -> None:
        async with opened(runtime) as linux:
            tun = linux.create_tun(TUN)
            await linux.apply(state() | NetworkState(dns=frozenset({ASKED})))
            tun.close()
            assert await linux.apply(NetworkState()) == []

    host.play(story)
    assert resolver.told == [f"{TUN}: 10.86.0.2"]
