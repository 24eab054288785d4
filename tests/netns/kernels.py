"""What the tests of LinuxKernel share: a host, a kernel on it, and a look at what it did."""

import asyncio
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from topology import Host, Topology

from dtun.network.state import NetDevice, NetworkState, PointToPoint, Route
from dtun.platform import kernel
from dtun.platform.entries import Entry, decode
from dtun.platform.linux.kernel import LinuxKernel
from dtun.platform.linux.tun import LinuxTun

TUN = "dtun-demo"
GATEWAY = ip_address("192.0.2.1")
PIN = Route(ip_network("203.0.113.5/32"), "eth0", GATEWAY)


@pytest.fixture
def host(net: Topology) -> Host:
    """A host on 192.0.2.0/24 and 2001:db8::/64, with a default route for IPv4 and a second, idle device."""
    host, router = net.host("host"), net.host("router")
    net.cable(
        host, "eth0", router, "eth0", "192.0.2.2/24", "192.0.2.1/24", "2001:db8::2/64", "2001:db8::1/64"
    )
    net.cable(host, "eth1", router, "eth1", "198.51.100.2/24", "198.51.100.1/24")
    host.ip("route add default via 192.0.2.1")
    return host


@pytest.fixture
def runtime(tmp_path: Path) -> Path:
    return tmp_path / "run"


def state(*routes: Route, mtu: int = 1400, peer: str = "10.86.0.2", peer6: str = "fd86::2") -> NetworkState:
    """A tunnel with both address pairs and these routes."""
    return NetworkState(
        frozenset({NetDevice(TUN, mtu)}),
        frozenset(
            {
                PointToPoint(TUN, ip_address("10.86.0.1"), ip_address(peer)),
                PointToPoint(TUN, ip_address("fd86::1"), ip_address(peer6)),
            }
        ),
        frozenset(routes),
    )


def only(*routes: Route) -> NetworkState:
    """These routes and nothing else."""
    return NetworkState(routes=frozenset(routes))


def into(network: str, device: str = TUN) -> Route:
    return Route(ip_network(network), device)


@asynccontextmanager
async def opened(runtime: Path, instance: str = "demo") -> AsyncIterator[LinuxKernel]:
    linux = kernel(instance, runtime)
    assert isinstance(linux, LinuxKernel)
    await linux.open()
    try:
        yield linux
    finally:
        await linux.close()


@asynccontextmanager
async def tunnel(runtime: Path) -> AsyncIterator[tuple[LinuxKernel, LinuxTun]]:
    """An open kernel with one TUN device."""
    async with opened(runtime) as linux:
        tun = linux.create_tun(TUN)
        try:
            yield linux, tun
        finally:
            tun.close()


def routes(host: Host) -> set[str]:
    """The routes of dtun's protocol number in the main table, as ip(8) shows them."""
    lines = (host.ip("-4 route show proto 217") + host.ip("-6 route show proto 217")).splitlines()
    return {" ".join(line.replace(" metric 1024", "").replace(" pref medium", "").split()) for line in lines}


def journaled(runtime: Path) -> set[Entry]:
    """What the journal of the instance "demo" contains."""
    return decode((runtime / "demo.json").read_bytes())


async def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        await asyncio.sleep(0.01)


VICTIM = """
import asyncio, sys
from ipaddress import *
from pathlib import Path
from dtun.network.state import *
from dtun.platform import kernel

async def main():
    linux = kernel(sys.argv[2], Path(sys.argv[1]))
    await linux.open()
    tun = linux.create_tun("dtun-" + sys.argv[2])
    await linux.apply(eval(sys.argv[3]))
    print("ready", flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


def start_victim(host: Host, runtime: Path, instance: str, wanted: NetworkState) -> "subprocess.Popen[str]":
    """Another process that has `wanted` in the kernel, ready to be killed."""
    victim = host.python("-c", VICTIM, str(runtime), instance, repr(wanted), stdout=subprocess.PIPE)
    assert victim.stdout is not None
    assert victim.stdout.readline() == "ready\n"
    return victim


def kill(victim: "subprocess.Popen[str]") -> None:
    """Without a chance to tidy up."""
    victim.kill()
    victim.wait()
