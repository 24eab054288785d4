"""Firewalls of other programs that drop what is forwarded, as nf_tables has them: found unless they mind the tunnel."""

from ipaddress import ip_network
from pathlib import Path

import pytest
from topology import Host, Topology

from dtun.platform.linux.nftables.foreign import explain, read_obstacles

DEVICES = ("dtun-home",)
NETWORKS = (ip_network("10.86.0.0/16"),)
DOCKER = """
table ip filter {
  chain DOCKER-USER { }
  chain DOCKER-FORWARD { ct state established,related accept; iifname "docker0" oifname != "docker0" accept; }
  chain FORWARD { type filter hook forward priority 0; policy drop; jump DOCKER-USER; jump DOCKER-FORWARD; %s }
}
"""
UFW = """
table ip filter {
  chain ufw-before-forward { meta l4proto icmp accept; }
  chain FORWARD { type filter hook forward priority 0; policy drop; jump ufw-before-forward; }
}
"""
FIREWALLD = """
table inet firewalld {
  chain filter_FORWARD { type filter hook forward priority 10; policy accept;
    ct state { established, related } accept
    iifname "lo" accept
    jump filter_FORWARD_ZONES
    reject with icmpx admin-prohibited
  }
  chain filter_FORWARD_ZONES { iifname "eth0" meta l4proto { icmp, ipv6-icmp } accept; }
}
"""
HAND_MADE = "table inet mine { chain forward { type filter hook forward priority 5; policy drop; %s } }"
HARMLESS = """
table ip one { chain forward { type filter hook forward priority 0; policy accept; ip daddr 192.0.2.1 drop; } }
table ip6 two { chain forward { type filter hook forward priority 0; policy drop; } }
table ip three { chain input { type filter hook input priority 0; policy drop; } }
table inet dtun-other { chain guard_forward { type filter hook forward priority 0; policy drop; } }
"""


def found(host: Host, ruleset: str, directory: Path) -> list[str]:
    file = directory / "ruleset"
    file.write_text(ruleset.replace("} }", "}\n}"))  # nft wants a new line there
    host.run("nft", "flush", "ruleset")
    host.run("nft", "-f", str(file))

    async def look() -> list[str]:
        return [explain(one, DEVICES) for one in read_obstacles(DEVICES, NETWORKS)]

    return host.play(look)


@pytest.mark.parametrize(
    ("ruleset", "chain", "helps"),
    [
        (DOCKER % "", "ip filter FORWARD", "`iptables -I DOCKER-USER -i dtun-home -j ACCEPT`"),
        (UFW, "ip filter FORWARD", "`ufw route allow in on dtun-home`"),
        (FIREWALLD, "inet firewalld filter_FORWARD", "`firewall-cmd --permanent --zone=trusted"),
        (HAND_MADE % "", "inet mine forward", "`nft insert rule inet mine forward iifname dtun-home accept`"),
    ],
)
def test_a_firewall_that_drops_what_is_forwarded_is_named_with_what_helps(
    net: Topology, tmp_path: Path, ruleset: str, chain: str, helps: str
) -> None:
    (line,) = found(net.host("host"), ruleset, tmp_path)
    assert f"({chain})" in line
    assert helps in line


@pytest.mark.parametrize(
    "ruleset",
    [
        "",
        HARMLESS,
        DOCKER % 'iifname "dtun-home" accept;',
        HAND_MADE % 'iifname "dtun*" accept;',
        HAND_MADE % 'oifname { "eth1", "dtun-home" } accept;',
        HAND_MADE % "ip saddr 10.86.0.0/16 accept;",
    ],
)
def test_one_that_minds_the_tunnel_or_does_not_drop_is_not(
    net: Topology, tmp_path: Path, ruleset: str
) -> None:
    assert found(net.host("host"), ruleset, tmp_path) == []
