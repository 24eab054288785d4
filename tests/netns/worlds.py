"""A client's host with two uplinks, a server, and addresses that answer both through the tunnel and outside it.

                 198.18.1.0/24           198.18.3.0/24
           .----- eth0 ------- gate ------- eth0 -----.
    home --|     2001:db8:1::/64         2001:db8:3::/64|-- far: the server 198.18.3.1 and 2001:db8:3::1,
           |                                          |        and the world, 203.0.113.80, 192.0.2.80 and so on
           '----- eth1 ------- other ------ eth1 -----'
                 198.18.2.0/24           198.18.4.0/24

Every address of the world answers both through the tunnel and outside it; only the packets on the wire tell which way
they took.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from daemon import Daemon, can_ping, make_key
from topology import Host, Topology, wait_for
from wire import Flow, Sniffer

SERVER, SERVER6 = "198.18.3.1", "2001:db8:3::1"
PORT = 443
WORLD = ("203.0.113.80", "192.0.2.80", "198.51.100.80", "100.64.0.80")
WORLD6 = ("2001:db8:80::80", "2001:db8:90::90")
TUNNEL = frozenset({Flow("udp", SERVER, PORT), Flow("udp", SERVER6, PORT)})
PINGS = 3


class World:
    """The hosts of the drawing, and one key for all clients. `own` are the flows of the tunnels' own packets."""

    def __init__(self, net: Topology, directory: Path) -> None:
        self.net = net
        self.directory = directory
        self.key = str(make_key(directory))
        self.own = set(TUNNEL)
        self.home, self.far = self._host("home"), self._host("far")
        self.gate = self._gate("gate", 1)
        self.home.ip("route add default via 198.18.1.1 dev eth0 metric 100")
        self.home.ip("-6 route add default via 2001:db8:1::1 dev eth0 metric 100")
        for address in WORLD:
            self.far.ip(f"address add {address}/32 dev lo")
        for address in WORLD6:
            self.far.ip(f"address add {address}/128 dev lo")

    def _host(self, name: str, *, forwards: bool = False) -> Host:
        """A host without duplicate address detection, so that its addresses do not change during a test."""
        host = self.net.host(name, forwards=forwards)
        host.run("sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0", "net.ipv6.conf.all.accept_dad=0")
        return host

    def _gate(self, name: str, number: int) -> Host:
        """One of the two routers between home and far."""
        gate = self._host(name, forwards=True)
        device, far = f"eth{number - 1}", number + 2
        near4, near6 = f"198.18.{number}", f"2001:db8:{number}:"
        self.net.cable(
            self.home, device, gate, "lan", f"{near4}.2/24", f"{near4}.1/24", f"{near6}:2/64", f"{near6}:1/64"
        )
        far4, far6 = f"198.18.{far}", f"2001:db8:{far}:"
        self.net.cable(
            gate, "wan", self.far, device, f"{far4}.2/24", f"{far4}.1/24", f"{far6}:2/64", f"{far6}:1/64"
        )
        gate.ip(f"route add default via {far4}.1")
        gate.ip(f"-6 route add default via {far6}:1")
        self.far.ip(f"route add {near4}.0/24 via {far4}.2")
        self.far.ip(f"-6 route add {near6}:/64 via {far6}:2")
        return gate

    def behind(self, host: Host, name: str, network: str, network6: str) -> Host:
        """A host behind `host` with address .2 (::2) in these networks, such as 10.0.0.0/16; `host` gets .1 (::1)."""
        other = self._host(name)
        first, size = network.split("/")
        first6, size6 = network6.split("/")
        near, far = first.removesuffix("0") + "1", first.removesuffix("0") + "2"
        self.net.cable(
            host,
            name,
            other,
            "eth0",
            f"{near}/{size}",
            f"{far}/{size}",
            f"{first6}1/{size6}",
            f"{first6}2/{size6}",
        )
        return other

    def second_uplink(self) -> Host:
        """Connect eth1, without a default route."""
        return self._gate("other", 2)

    def server(
        self, entry: Mapping[str, object] | None = None, *, name: str = "home", **settings: object
    ) -> Daemon:
        """A server on far, with a short timeout for clients."""
        clients = {name: {"key_file": self.key, **(entry or {})}}
        section = {"clients": clients, "keepalive": 0.2, "timeout": 1.5, **settings}
        return Daemon(self.far, "server", section, self.directory)

    def client(self, **settings: object) -> Daemon:
        """A client on home."""
        return Daemon(self.home, "client", self.section(**settings), self.directory)

    def section(self, **settings: object) -> dict[str, object]:
        return {"servers": [SERVER], "id": "home", "key_file": self.key, **settings}

    def sniffer(self, device: str = "eth0") -> Sniffer:
        """Captures what home sends through `device`."""
        return Sniffer(self.home, device)

    def ways(self, sniffer: Sniffer, addresses: Iterable[str]) -> dict[str, str]:
        """How pings to each address leave, as counted on the wire: "direct", "tunnel" or "nowhere".

        Nothing but these pings and the tunnel's own packets may be on the wire.
        """
        addresses = list(addresses)
        sniffer.forget()
        answered = {address: can_ping(self.home, address, count=PINGS) for address in addresses}
        seen = sniffer.sent()
        found = {}
        for address in addresses:
            direct = seen.pop(Flow("icmp", address, 0), 0)
            assert direct in ((0, PINGS) if answered[address] else (0,)), f"{address}: {direct} went direct"
            found[address] = "direct" if direct else "tunnel" if answered[address] else "nowhere"
        assert seen.keys() <= self.own, f"home sent other packets: {seen}"
        if "tunnel" in found.values():
            assert sum(seen.values()) >= PINGS, f"the tunnel's own packets: {seen}"
        return found


def wait_reached(host: Host, address: str) -> None:
    """Wait until this address answers."""
    wait_for(lambda: can_ping(host, address), f"{address} to answer {host.name}")
