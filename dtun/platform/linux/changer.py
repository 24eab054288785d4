"""Carries out one change after the other, and says in a person's words why the kernel refuses one."""

import errno
import os
import socket

from dtun.errors import PermissionDeniedError
from dtun.network.difference import Change, slot
from dtun.network.state import Link, PointToPoint, Route
from dtun.platform.linux.netlink import ROUTE_PROTOCOL, Netlink, NetlinkError

NOT_PERMITTED = (
    "may not change the host's network: CAP_NET_ADMIN is missing; run dtun as root, "
    "or give it that capability (systemd: AmbientCapabilities=CAP_NET_ADMIN)"
)

# What the kernel says when there is nothing left to remove.
GONE = frozenset({errno.ESRCH, errno.ENODEV, errno.ENXIO, errno.EADDRNOTAVAIL})

# The common values of rtm_protocol, from linux/rtnetlink.h, and dtun's own.
PROTOCOL_NAMES = {
    2: "the kernel",
    3: "a command (boot)",
    4: "the administrator (static)",
    9: "a router advertisement",
    16: "DHCP",
    186: "BGP",
    188: "OSPF",
    ROUTE_PROTOCOL: "another dtun",
}


ADVICE = "remove that route, or keep this network out of the tunnel"


class Changer:
    """Makes changes through one netlink socket."""

    def __init__(self, netlink: Netlink) -> None:
        self._netlink = netlink

    async def refusal(self, change: Change) -> str | None:
        """Make the change; returns the kernel's reason if it refuses, None when all is as it should be.

        Raises:
            PermissionDeniedError: CAP_NET_ADMIN is missing.
        """
        try:
            await self._make(change)
        except NetlinkError as error:
            if error.code == errno.EPERM:
                raise PermissionDeniedError(NOT_PERMITTED) from None
            if change.action == "remove":
                return None if error.code in GONE else _reason(error)
            if error.code == errno.EEXIST:
                return await self._rival(change)
            return _explanation(change, error)
        return None

    async def _make(self, change: Change) -> None:
        netlink = self._netlink
        match change.what, change.previous:
            case Link() as link, _:
                await (netlink.set_down(link) if change.action == "remove" else netlink.set_up(link))
            case PointToPoint() as pair, PointToPoint() as previous:
                await netlink.replace_address(pair, previous)
            case PointToPoint() as pair, _:
                await (
                    netlink.remove_address(pair) if change.action == "remove" else netlink.add_address(pair)
                )
            case Route() as route, Route():
                await netlink.replace_route(route)
            case Route() as route, _:
                await (netlink.remove_route(route) if change.action == "remove" else netlink.add_route(route))

    async def _rival(self, change: Change) -> str | None:
        """Who has what we want to add; None if that is ourselves, as after an apply that was cut short."""
        match change.what:
            case Route() as route:
                return await self._rival_route(route)
            case PointToPoint() as pair:
                index = socket.if_nametoindex(pair.device)
                async for device, local, network, _ in self._netlink.addresses():
                    if (device, local, network.network_address) == (index, pair.local, pair.peer):
                        return None
                return "the device has that address with another peer"
        return "it exists"

    async def _rival_route(self, wanted: Route) -> str | None:
        version = wanted.destination.version
        ours = await self._netlink.routes(version, ROUTE_PROTOCOL, wanted.device)
        if any(found.is_ours(wanted) for found in ours):
            return None
        # Not from the whole table, which may be the internet's. A narrower route can hide the one in the way,
        # and the first address of a network can have a meaning of its own: 0.0.0.0.
        middle = wanted.destination[wanted.destination.num_addresses // 2]
        rival = await self._netlink.matching(middle)
        if rival is None:
            return f"{wanted.destination} is unreachable by somebody else's route already; {ADVICE}"
        if slot(rival.route) != slot(wanted):
            return f"{wanted.destination} is routed by somebody else already; {ADVICE}"
        via = f" via {rival.route.gateway}" if rival.route.gateway else ""
        owner = PROTOCOL_NAMES.get(rival.protocol, "another program")
        return (
            f"{wanted.destination} is routed through {rival.route.device}{via} already, by {owner} "
            f"(protocol {rival.protocol}); {ADVICE}"
        )


def _explanation(change: Change, error: NetlinkError) -> str:
    match change.what, error.code:
        case Link() | PointToPoint() | Route(), errno.ENODEV:
            return "there is no such device"
        case Route(), errno.ENETDOWN:
            return "the device is down"
        case Route(source=source), errno.EINVAL if source is not None:
            return f"the kernel finds it invalid; is {source} an address of this host?"
        case PointToPoint(local=local), errno.EACCES | errno.EOPNOTSUPP if local.version == 6:
            return "IPv6 is switched off on this host (sysctl net.ipv6.conf.all.disable_ipv6)"
        case PointToPoint(local=local), errno.EINVAL | errno.ENOBUFS if local.version == 6:
            return "the kernel finds it invalid; IPv6 needs an MTU of 1280 or more"
    return _reason(error)


def _reason(error: NetlinkError) -> str:
    return os.strerror(abs(error.code)).lower()
