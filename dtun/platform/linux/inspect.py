"""Reads the host's network for `dtun plan` and `dtun explain`. Needs no privileges."""

import errno
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final, Literal

from pyroute2.netlink.exceptions import NetlinkError

from dtun.network.state import Address, Network, NetworkState
from dtun.platform.linux import observed
from dtun.platform.linux.missing import missing, rule_for
from dtun.platform.linux.netlink.dump import unavailable_if_refused
from dtun.platform.linux.netlink.wire import ROUTE_PROTOCOL, RTM_F_FIB_MATCH
from dtun.platform.linux.nftables.firewall import Firewall, FirewallError
from dtun.platform.linux.sysctl import is_set

Fate = Literal["unicast", "unreachable", "prohibit", "blackhole", "no route"]

# The type of the matching route by the errno that a sender gets (fib_props in the kernel's
# net/ipv4/fib_semantics.c). "no route" includes throw routes.
_FATES: Final[dict[int, Fate]] = {
    errno.ENETUNREACH: "no route",
    errno.EHOSTUNREACH: "unreachable",
    errno.EACCES: "prohibit",
    errno.EINVAL: "blackhole",
}

# Drivers (IFLA_INFO_KIND) of tunnels. A PPP device of pppd has no driver name, and is known by its own.
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
    """Where the kernel sends a packet, and why.

    `route`, `table`, `metric` and `protocol` are those of the matching entry. They are None where nothing is sent,
    because the kernel does not return them. `rule` is the priority of the first policy rule that selects that table.
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
class ForeignRoute:
    """A route of another program through its own tunnel. `kind` is the device's driver, such as "wireguard"."""

    destination: Network
    device: str
    kind: str
    table: int
    protocol: int


async def decide(address: Address, mark: int | None = None) -> Decision:
    """Return where a packet to `address` goes now, by all routes including dtun's; `mark` is its firewall mark.

    Raises:
        UnavailableError: the kernel cannot be read.
    """
    with unavailable_if_refused():
        try:
            entry = observed.get(address, RTM_F_FIB_MATCH, mark)
            hop = observed.get(address, mark=mark)
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
            hop.route.device,
            hop.route.gateway,
            hop.route.source,
        )


async def foreign_tunnels(own: Collection[str] = ()) -> list[ForeignRoute]:
    """Return the routes of other programs through tunnels, in all tables.

    A device is dtun's if it is in `own` or has routes of dtun's.

    Raises:
        UnavailableError: the kernel cannot be read.
    """
    with unavailable_if_refused():
        kinds = {link.name: _tunnel_kind(link) for link in await observed.links()}
        found = [*await observed.routes(4), *await observed.routes(6)]
    ours = {*own, *(one.route.device for one in found if one.protocol == ROUTE_PROTOCOL)}
    tunnels = {
        ForeignRoute(route.destination, route.device, kind, route.table, one.protocol)
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
    """Return the part of `desired` that is in the kernel already.

    All filters count as present if the table of `instance` exists. Name servers never do.

    Raises:
        UnavailableError: the kernel cannot be read.
    """
    with unavailable_if_refused():
        gone = await missing([*desired.devices, *desired.addresses, *desired.routes, *desired.rules])
    return NetworkState(
        devices=desired.devices - gone,
        addresses=desired.addresses - gone,
        routes=desired.routes - gone,
        rules=desired.rules - gone,
        sysctls=frozenset(setting for setting in desired.sysctls if is_set(setting)),
        filters=desired.filters if desired.filters and await _table_exists(instance) else frozenset(),
    )


async def _table_exists(instance: str) -> bool:
    firewall = Firewall(f"dtun-{instance}")
    try:
        return await firewall.present()
    except FirewallError:
        return False  # Reading the packet filter needs CAP_NET_ADMIN.
    finally:
        firewall.close()


def _tunnel_kind(link: observed.FoundLink) -> str:
    if link.kind in TUNNEL_KINDS:
        return link.kind
    return "ppp" if link.name.startswith("ppp") else ""
