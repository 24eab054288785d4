"""What the kernel remembers of connections, deleted by where they go."""

from ipaddress import ip_address, ip_network

from daemon import can_ping
from topology import Host, Topology

from dtun.network.prefixes import PrefixSet
from dtun.platform.linux import conntrack

FAR = ("192.0.2.7", "198.51.100.7", "2001:db8:7::7")


def forget(host: Host, *networks: str) -> int:
    wanted = PrefixSet(map(ip_network, networks))

    async def story() -> int:
        return conntrack.forget(wanted.__contains__)

    return host.play(story)


def test_only_connections_to_these_networks_are_forgotten(net: Topology) -> None:
    near, far = net.host("near"), net.host("far")
    net.cable(near, "eth0", far, "eth0", "10.7.0.1/24", "10.7.0.2/24", "fd07::1/64", "fd07::2/64")
    near.ip("route add default via 10.7.0.2")
    near.ip("-6 route add default via fd07::2")
    assert forget(near, "0.0.0.0/0", "::/0") == 0, "nothing is tracked"
    near.run("nft", "add table inet t")
    near.run("nft", "add chain inet t o { type filter hook output priority 0; }")
    near.run("nft", "add rule inet t o ct state new accept")
    for address in FAR:
        far.ip(f"address add {address}/{ip_address(address).max_prefixlen} dev lo")
        assert can_ping(near, address)
    assert forget(near, "203.0.113.0/24") == 0
    assert forget(near, "192.0.2.0/24", "2001:db8::/32") == 2
    assert forget(near, "192.0.2.0/24", "2001:db8::/32") == 0, "they are gone"
    assert forget(near, "198.51.100.0/24") == 1
