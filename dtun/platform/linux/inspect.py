"""Looks at a host's network without changing it, for those who want to know before they start. No privileges needed."""

import errno
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final, Literal

from pyroute2.netlink.exceptions import NetlinkError

from dtun.network.state import Address, Network, NetworkState
from dtun.platform.linux import observed as now
from dtun.platform.linux.missing import missing, rule_for
from dtun.platform.linux.netlink.dump import unavailable_if_refused
from dtun.platform.linux.netlink.wire import ROUTE_PROTOCOL, RTM_F_FIB_MATCH
from dtun.platform.linux.nftables.firewall import Firewall, FirewallError
from dtun.platform.linux.settings import is_set

Fate = Literal["unicast", "unreachable", "prohibit", "blackhole", "no route"]

# What a sender gets to see, by what refuses (fib_props in the kernel's net/ipv4/fib_semantics.c). A table in which
# nothing matches, or only a throw, ends as "no route".
_FATES: Final[dict[int, Fate]] = {
    errno.ENETUNREACH: "no route",
    errno.EHOSTUNREACH: "unreachable",
    errno.EACCES: "prohibit",
    errno.EINVAL: "blackhole",
}

# Kinds of devices (IFLA_INFO_KIND) that are tunnels. A PPP device that pppd made has none, but its name.
TUNNEL_KINDS: Final = frozenset(
    {
        "tun",
        "wireguard",
        "ovpn",
        "ppp",
        "ipip",
        "gre",
        "ip6gre",
        "sit",
        "ip6tnl",
        "vti",
        "vti6",
        "xfrm",
        "amneziawg",
    }
)


@dataclass(frozen=True, slots=True)
class Decision:
    """What the kernel does with a packet: where to, and why.

    `route`, `table`, `metric` and `protocol` are those of the entry that matched, None where nothing is sent: the
    kernel does not tell then. `rule` is the priority of the first policy rule that leads to that table.
    """

    address: Address
    fate: Fate
    route: Network | None = None
    table: int | None = None
    rule: int | None = None
    metric: int | None = None
    protocol: int | None = None
    device: str = ""
    gateway: Address | None = None
    source: Address | None = None


@dataclass(frozen=True, slots=True)
class Foreign:
    """A route of another program's through a tunnel that is not dtun's. `kind` is the device's, such as "wireguard"."""

    destination: Network
    device: str
    kind: str
    table: int
    protocol: int


async def decide(address: Address, mark: int | None = None) -> Decision:
    """Where a packet to `address` goes now, dtun's own routes included; with the firewall mark `mark`, if any.

    Raises:
        UnavailableError: the kernel does not say.
    """
    with unavailable_if_refused():
        try:
            entry = now.get(address, RTM_F_FIB_MATCH, mark)
            way = now.get(address, mark=mark)
        except NetlinkError as error:
            fate = _FATES.get(error.code)
            if fate is None:
                raise
            return Decision(address, fate)
        return Decision(
            address,
            "unicast",
            entry.route.destination,
            entry.route.table,
            await rule_for(address.version, entry.route.table, mark, entry.route.destination.prefixlen),
            entry.route.metric,
            entry.protocol,
            way.route.device,
            way.route.gateway,
            way.route.source,
        )


async def foreign_tunnels(own: Collection[str] = ()) -> list[Foreign]:
    """What other programs send through tunnels, in all tables.

    dtun's own devices are those in `own`, and those with its routes.

    Raises:
        UnavailableError: the kernel does not say.
    """
    with unavailable_if_refused():
        kinds = {link.name: _tunnel_kind(link) for link in await now.links()}
        found = [*await now.routes(4), *await now.routes(6)]
    ours = {*own, *(one.route.device for one in found if one.protocol == ROUTE_PROTOCOL)}
    tunnels = {
        Foreign(route.destination, route.device, kind, route.table, one.protocol)
        for one in found
        if (kind := kinds.get((route := one.route).device, ""))
        and route.device not in ours
        and not route.destination.is_link_local
        and not route.destination.is_multicast
    }
    return sorted(
        tunnels,
        key=lambda one: (
            one.destination.version,
            int(one.destination.network_address),
            one.destination.prefixlen,
            one.device,
            one.table,
        ),
    )


async def existing(desired: NetworkState, instance: str) -> NetworkState:
    """The part of `desired` that is in the kernel already.

    Of filters, it is only known whether the table of `instance` is there: then all of them are taken to be. Name
    servers are never in the answer.

    Raises:
        UnavailableError: the kernel does not say.
    """
    with unavailable_if_refused():
        gone = await missing([*desired.devices, *desired.addresses, *desired.routes, *desired.rules])
    return NetworkState(
        devices=desired.devices - gone,
        addresses=desired.addresses - gone,
        routes=desired.routes - gone,
        rules=desired.rules - gone,
        sysctls=frozenset(setting for setting in desired.sysctls if is_set(setting)),
        filters=desired.filters if desired.filters and await _table_is_there(instance) else frozenset(),
    )


async def _table_is_there(instance: str) -> bool:
    firewall = Firewall(f"dtun-{instance}")
    try:
        return await firewall.present()
    except FirewallError:
        return False  # To look takes a right that a reader may not have.
    finally:
        firewall.close()


def _tunnel_kind(link: now.FoundLink) -> str:
    if link.kind in TUNNEL_KINDS:
        return link.kind
    return "ppp" if link.name.startswith("ppp") else ""
