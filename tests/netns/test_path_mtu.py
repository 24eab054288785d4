"""A path that carries less than both ends' interfaces, and nobody who says so: ICMP is filtered, as it often is."""

import subprocess
from pathlib import Path

import pytest
from daemon import Daemon, can_ping, make_key
from topology import REPOSITORY, Host, Topology, wait_for

pytestmark = pytest.mark.netns

TRANSFER = str(REPOSITORY / "tests" / "netns" / "transfer.py")
AROUND = {4: 20 + 8 + 13 + 16 + 4, 6: 40 + 8 + 13 + 16 + 4}
"""Bytes of IP, UDP, record header, tag and segment header around a full packet."""

SILENCE = """
table inet silence {
    chain sent { type filter hook output priority 0;
        icmp type destination-unreachable drop; icmpv6 type packet-too-big drop; };
}
"""
SERVERS = pytest.mark.parametrize("server", ["198.51.100.1", "2001:db8:1::1"])


class Silent:
    """left (server, 198.51.100.1) -- one == two -- right (client, 203.0.113.1); between the routers it is narrow."""

    def __init__(self, net: Topology, directory: Path, mtu: int) -> None:
        self.directory = directory
        self.key = str(make_key(directory))
        self.left, self.right = net.host("left", forwards=True), net.host("right", forwards=True)
        self.one, self.two = net.host("one", forwards=True), net.host("two", forwards=True)
        near = ("198.51.100.1/24", "198.51.100.2/24", "2001:db8:1::1/64", "2001:db8:1::2/64")
        middle = ("192.0.2.1/24", "192.0.2.2/24", "2001:db8:2::1/64", "2001:db8:2::2/64")
        far = ("203.0.113.1/24", "203.0.113.2/24", "2001:db8:3::1/64", "2001:db8:3::2/64")
        net.cable(self.left, "eth0", self.one, "eth0", *near)
        net.cable(self.one, "eth1", self.two, "eth1", *middle)
        net.cable(self.right, "eth0", self.two, "eth0", *far)
        for host, way, way6 in (
            (self.left, "198.51.100.2", "2001:db8:1::2"),
            (self.right, "203.0.113.2", "2001:db8:3::2"),
            (self.one, "192.0.2.2", "2001:db8:2::2"),
            (self.two, "192.0.2.1", "2001:db8:2::1"),
        ):
            host.ip(f"route add default via {way}")
            host.ip(f"route add default via {way6}")
        for router in (self.one, self.two):
            router.run("nft", SILENCE)
        self.narrow(mtu)

    def narrow(self, mtu: int) -> None:
        for router in (self.one, self.two):
            router.ip(f"link set eth1 mtu {mtu}")

    def tunnel(self, server: str, **settings: object) -> tuple[Daemon, Daemon]:
        section = {"clients": {"demo": {"key_file": self.key}}, **settings}
        serving = Daemon(self.left, "server", section, self.directory)
        section = {"servers": [server], "id": "demo", "key_file": self.key}
        return serving, Daemon(self.right, "client", section, self.directory)

    def fragments(self) -> float:
        """Fragments that anybody has made so far."""
        return sum(
            float(line.split()[1])
            for host in (self.left, self.right, self.one, self.two)
            for line in host.run("nstat", "-asz").splitlines()
            if line.startswith(("IpFragCreates", "Ip6FragCreates"))
        )


def wait_mtu(daemon: Daemon, true: int, timeout: float = 15.0) -> int:
    """Wait until the tunnel's MTU is what the path leaves, to within the resolution of the search."""

    def close() -> int:
        mtu: int = daemon.tunnel()["mtu"]
        return mtu if true - 8 < mtu <= true else 0

    return wait_for(close, f"an MTU of the {daemon.role} of about {true}", timeout, lambda: daemon.log)


def full_pings(host: Host, address: str, mtu: int) -> None:
    """Packets of the whole MTU, which nobody may cut inside."""
    payload = mtu - (48 if ":" in address else 28)
    host.run("ping", "-q", "-c3", "-i0.05", "-W2", "-M", "do", "-s", str(payload), address)


def transfers(server: Host, client: Host, address: str, size: int = 2_000_000) -> None:
    """TCP both ways, checked."""
    serving = server.python(TRANSFER, "serve", address, "5001", stdout=subprocess.PIPE)
    assert serving.stdout is not None
    serving.stdout.readline()
    moving = client.python(TRANSFER, "tcp", address, "5001", str(size), "7", stdout=subprocess.PIPE)
    said, _ = moving.communicate(timeout=60)
    assert "same" in said
    serving.terminate()


@SERVERS
def test_both_ends_find_out_and_nothing_is_fragmented(net: Topology, tmp_path: Path, server: str) -> None:
    silent = Silent(net, tmp_path, 1280)
    serving, client = silent.tunnel(server)
    client.wait_connected()
    room = 1280 - AROUND[6 if ":" in server else 4]

    mtu = min(wait_mtu(client, room), wait_mtu(serving, room))

    full_pings(silent.right, "10.86.0.1", mtu)
    full_pings(silent.left, client.tunnel()["address"], mtu)
    transfers(silent.left, silent.right, "10.86.0.1")
    assert silent.fragments() == 0
    for daemon in (serving, client):
        assert "batches" not in daemon.log, "what is not too large goes in batches"


@SERVERS
def test_ipv6_inside_goes_in_pieces_over_a_path_that_is_too_small_for_it(
    net: Topology, tmp_path: Path, server: str
) -> None:
    silent = Silent(net, tmp_path, 1280)
    serving, client = silent.tunnel(server, pool6="fd00:86::/64")
    client.wait_connected()

    for daemon in (serving, client):
        assert wait_mtu(daemon, 1280) == 1280

    full_pings(silent.right, "fd00:86::1", 1280)
    full_pings(silent.left, str(client.tunnel()["address"]), 1280)
    transfers(silent.left, silent.right, "fd00:86::1", 500_000)
    assert silent.fragments() == 0


@SERVERS
def test_a_path_that_shrinks_is_noticed_while_packets_go_out(
    net: Topology, tmp_path: Path, server: str
) -> None:
    silent = Silent(net, tmp_path, 1500)
    serving, client = silent.tunnel(server)
    mtu = client.wait_connected()["mtu"]
    assert mtu == 1500 - AROUND[6 if ":" in server else 4]
    full_pings(silent.right, "10.86.0.1", mtu)
    assert serving.tunnel()["mtu"] == mtu

    silent.narrow(1400)
    silent.right.popen("ping", "-q", "-i0.2", "10.86.0.1", stdout=subprocess.DEVNULL)
    room = mtu - 100
    mtu = min(wait_mtu(client, room), wait_mtu(serving, room))

    full_pings(silent.right, "10.86.0.1", mtu)
    transfers(silent.left, silent.right, "10.86.0.1")
    assert can_ping(silent.left, client.tunnel()["address"], count=3)
