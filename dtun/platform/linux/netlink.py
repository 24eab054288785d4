"""dtun's words for the few rtnetlink(7) requests that it makes, spoken by pyroute2."""

import errno
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any

from pyroute2 import AsyncIPRoute
from pyroute2.netlink import NLM_F_DUMP_INTR
from pyroute2.netlink.exceptions import NetlinkError

from dtun.network.difference import DEFAULT_METRIC, slot
from dtun.network.state import Address, Link, Network, PointToPoint, Route

__all__ = ["ROUTE_PROTOCOL", "FoundRoute", "Netlink", "NetlinkError", "families"]

# Who installed a route (rtm_protocol): by this number dtun knows its own, and a person finds them with
# `ip route show proto 217`. No entry of iproute2's rt_protos has it.
ROUTE_PROTOCOL = 217

# Packets that the kernel keeps for the reader of a TUN device. Twice the default: a handshake may take the
# event loop a few milliseconds, in which a fast sender must not lose its window.
TRANSMIT_QUEUE_PACKETS = 1000

# From linux/if_link.h, linux/if_addr.h and linux/rtnetlink.h.
IN6_ADDR_GEN_MODE_NONE = 1
IFA_F_NODAD = 0x02
RTM_F_FIB_MATCH = 0x2000
RTNH_F_ONLINK = 4
RT_TABLE_MAIN = 254
RTN_UNICAST = 1

families = {4: socket.AF_INET, 6: socket.AF_INET6}
_versions = {socket.AF_INET: 4, socket.AF_INET6: 6}
_DUMP_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class FoundRoute:
    """A route as the kernel has it; `mtu` in bytes if it sets one. `metric` is never None here."""

    route: Route
    protocol: int
    unicast: bool = True
    mtu: int | None = None

    def is_ours(self, wanted: Route) -> bool:
        """Whether this is `wanted`, as dtun installs it."""
        mine = self.route
        return (
            self.protocol == ROUTE_PROTOCOL
            and slot(mine) == slot(wanted)
            and (mine.device, mine.gateway, mine.source) == (wanted.device, wanted.gateway, wanted.source)
        )


class Netlink:
    """One rtnetlink socket. Every method raises NetlinkError when the kernel says no."""

    def __init__(self) -> None:
        # No multicast groups: an overflow of notifications must not disturb requests.
        # Strict: the kernel filters dumps.
        self._socket: Any = AsyncIPRoute(groups=0, strict_check=True)

    def close(self) -> None:
        self._socket.close()

    async def check_permission(self) -> None:
        """EPERM without CAP_NET_ADMIN over this network namespace. Asks for a change that changes nothing."""
        await self._socket.link("set", index=socket.if_nametoindex("lo"))

    async def set_up(self, link: Link) -> None:
        index = _index(link.name)
        await self._socket.link("set", index=index, mtu=link.mtu, txqlen=TRANSMIT_QUEUE_PACKETS)
        await self._without_link_local(index)
        await self._socket.link("set", index=index, state="up")

    async def set_down(self, link: Link) -> None:
        await self._socket.link("set", index=_index(link.name), state="down")

    async def add_address(self, pair: PointToPoint) -> None:
        await self._socket.addr("add", **_pair(pair))

    async def replace_address(self, pair: PointToPoint, previous: PointToPoint) -> None:
        """Another peer for an address of ours. IPv4 has no such request, but takes both for a moment."""
        if pair.local.version == 6:
            await self._socket.addr("replace", **_pair(pair))
        else:
            await self.add_address(pair)
            await self.remove_address(previous)

    async def remove_address(self, pair: PointToPoint) -> None:
        await self._socket.addr("del", **_pair(pair))

    async def add_route(self, route: Route) -> None:
        """EEXIST if anybody has a route to the same destination with the same metric."""
        await self._socket.route("add", **_route(route))

    async def replace_route(self, route: Route) -> None:
        """Takes the place of whatever has this destination and metric: the caller knows that it is ours."""
        await self._socket.route("replace", **_route(route))

    async def remove_route(self, route: Route) -> None:
        """Only ever a route of dtun's: the kernel compares the protocol, too."""
        await self._socket.route("del", **_route(route))

    async def routes(
        self, version: int, protocol: int | None = None, device: str | None = None
    ) -> list[FoundRoute]:
        """The main table, by IP version; or, which is cheap, one protocol's routes through one device."""
        family = families[version]
        only: dict[str, int] = {"family": family, "table": RT_TABLE_MAIN}
        if protocol is not None:
            only["proto"] = protocol
        if device is not None:
            only["oif"] = _index(device)
        messages = await self._dump(self._socket.route, **only)
        # A kernel without that family answers with all that it has.
        return [_found(message) for message in messages if message["family"] == family]

    async def matching(self, address: Address) -> FoundRoute | None:
        """The entry that a packet to `address` matches, as it stands in the table."""
        return await self._route_to(address, flags=RTM_F_FIB_MATCH)

    async def way_to(self, address: Address) -> FoundRoute | None:
        """The answer for a packet to `address`: has a source; IPv4 does not tell who installed the route."""
        return await self._route_to(address, flags=0)

    async def _route_to(self, address: Address, flags: int) -> FoundRoute | None:
        family = families[address.version]
        try:
            (message,) = await self._socket.route("get", dst=str(address), family=family, flags=flags)
        except NetlinkError as error:
            # No route, or one of type unreachable, blackhole or prohibit.
            if error.code in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EINVAL, errno.EACCES):
                return None
            raise
        return _found(message)

    async def link_mtu(self, device: str) -> int:
        (message,) = await self._socket.link("get", index=_index(device))
        return int(message.get_attr("IFLA_MTU"))

    async def links(self) -> AsyncIterator[tuple[int, int, str | None]]:
        """Index, flags (IFF_...) and kind of every device; the kind is None for hardware."""
        for message in await self._dump(self._socket.link):
            yield message["index"], message["flags"], message.get(("linkinfo", "kind"))

    async def addresses(self) -> AsyncIterator[tuple[int, Address, Network, int]]:
        """Device index, own address, network (the peer's, if it has one) and flags (IFA_F_...) of each."""
        for message in await self._dump(self._socket.addr):
            network = message.get_attr("IFA_ADDRESS")
            local = message.get_attr("IFA_LOCAL") or network
            prefix = ip_network(f"{network}/{message['prefixlen']}", strict=False)
            yield (
                message["index"],
                ip_address(local),
                prefix,
                message.get_attr("IFA_FLAGS") or message["flags"],
            )

    async def _without_link_local(self, index: int) -> None:
        """No fe80:: address of the kernel's own, and so no router solicitations to the only peer."""
        mode = {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", IN6_ADDR_GEN_MODE_NONE)]}
        try:
            await self._socket.link("set", index=index, IFLA_AF_SPEC={"attrs": [("AF_INET6", mode)]})
        except NetlinkError as error:
            # A host without IPv6 (EAFNOSUPPORT), or a device too small for it (EINVAL), makes none anyway.
            if error.code not in (errno.EAFNOSUPPORT, errno.EOPNOTSUPP, errno.EINVAL):
                raise

    async def _dump(self, request: Callable[..., Any], **filters: Any) -> list[Any]:
        """All messages of a dump; from the start again when the kernel says that things changed under it.

        On a host where they always do, what has come is as good as it gets: no caller relies on all of it.
        """
        messages: list[Any] = []
        for _ in range(_DUMP_ATTEMPTS):
            messages = [message async for message in await request("dump", **filters)]
            if not any(message["header"]["flags"] & NLM_F_DUMP_INTR for message in messages):
                break
        return messages


def _index(device: str) -> int:
    try:
        return socket.if_nametoindex(device)
    except OSError:
        raise NetlinkError(errno.ENODEV, f"there is no device {device}") from None


def _pair(pair: PointToPoint) -> dict[str, Any]:
    request: dict[str, Any] = {
        "index": _index(pair.device),
        "family": families[pair.local.version],
        "local": str(pair.local),
        "address": str(pair.peer),
        "prefixlen": pair.peer.max_prefixlen,
    }
    if pair.local.version == 6:
        # Nobody else on the link could have the address, and a tentative one cannot be used for a second.
        request["IFA_FLAGS"] = IFA_F_NODAD
    return request


def _route(route: Route) -> dict[str, Any]:
    version = route.destination.version
    request: dict[str, Any] = {
        "family": families[version],
        "dst": str(route.destination),
        "dst_len": route.destination.prefixlen,
        "oif": _index(route.device),
        "proto": ROUTE_PROTOCOL,
        "table": RT_TABLE_MAIN,
    }
    if route.gateway is not None:
        # It comes from the host's own routes, which may reach it without a network of its own (onlink).
        request["flags"] = RTNH_F_ONLINK
        if route.gateway.version == version:
            request["gateway"] = str(route.gateway)
        else:  # IPv4 through an IPv6 neighbour (RFC 8950)
            request["via"] = {"family": families[route.gateway.version], "addr": str(route.gateway)}
    if route.source is not None:
        request["prefsrc"] = str(route.source)
    if route.metric is not None:
        request["priority"] = route.metric
    return request


def _found(message: Any) -> FoundRoute:
    hop = message
    if hops := message.get_attr("RTA_MULTIPATH"):
        hop = hops[0]
    index = hop["oif"] if hop is not message else message.get_attr("RTA_OIF")
    version = _versions[message["family"]]
    destination = message.get_attr("RTA_DST") or ("0.0.0.0" if version == 4 else "::")  # noqa: S104 - no socket
    gateway = hop.get_attr("RTA_GATEWAY")
    if gateway is None and (via := hop.get_attr("RTA_VIA")):
        gateway = via["addr"]
    source = message.get_attr("RTA_PREFSRC")
    metrics = message.get_attr("RTA_METRICS")
    return FoundRoute(
        Route(
            ip_network(f"{destination}/{message['dst_len']}"),
            _name(index),
            ip_address(gateway) if gateway else None,
            ip_address(source) if source else None,
            message.get_attr("RTA_PRIORITY") or DEFAULT_METRIC[version],
        ),
        message["proto"],
        unicast=message["type"] == RTN_UNICAST,
        mtu=metrics.get_attr("RTAX_MTU") if metrics else None,
    )


def _name(index: int | None) -> str:
    """The device's name; empty where there is none (an unreachable route), or none any more."""
    if index is None:
        return ""
    try:
        return socket.if_indextoname(index)
    except OSError:
        return ""
