"""Carries out changes, and says in a person's words why the kernel refuses one."""

import errno
import os
from collections.abc import Sequence

from pyroute2.netlink.exceptions import NetlinkError

from dtun.errors import DtunError, PermissionDeniedError
from dtun.network.difference import Change, slot
from dtun.network.state import MAIN_TABLE, Dns, Filter, NetDevice, PointToPoint, Route, Rule, Sysctl
from dtun.platform.linux import observed as now
from dtun.platform.linux.missing import missing
from dtun.platform.linux.netlink.requests import Requests
from dtun.platform.linux.netlink.route_batches import RouteBatches
from dtun.platform.linux.netlink.wire import ROUTE_PROTOCOL
from dtun.platform.linux.services import Services
from dtun.platform.linux.settings import Settings

NOT_PERMITTED = (
    "may not change the host's network: CAP_NET_ADMIN is missing; run dtun as root, "
    "or give it that capability (systemd: AmbientCapabilities=CAP_NET_ADMIN)"
)

# What the kernel says when there is nothing left to remove.
GONE = frozenset({errno.ESRCH, errno.ENOENT, errno.ENODEV, errno.ENXIO, errno.EADDRNOTAVAIL})

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


# Routes of which it is looked up who has them. The others are refused just as well.
_LOOKED_UP = 10


class Operations:
    """Makes the changes of one apply."""

    def __init__(self, netlink: Requests, bulk: RouteBatches, settings: Settings, services: Services) -> None:
        self._netlink = netlink
        self._bulk = bulk
        self._settings = settings
        self._services = services
        self._looked_up = 0

    async def refusal(self, change: Change) -> str | None:
        """Make a change of anything but a route or a filter.

        Returns the reason if it is refused, None when all is as it should be.

        Raises:
            PermissionDeniedError: CAP_NET_ADMIN is missing.
        """
        try:
            await self._make(change)
        except NetlinkError as error:
            return await self._explained(change, error.code)
        except DtunError as error:
            return str(error)
        return None

    async def filters_refusal(self, filters: frozenset[Filter]) -> str | None:
        """Make the packet filter hold exactly `filters`; returns the reason if that is refused."""
        try:
            await self._services.firewall.apply(filters)
        except DtunError as error:
            return str(error)
        return None

    async def routes_refusals(self, changes: Sequence[Change]) -> list[str | None]:
        """Make up to `bulk.BATCH` changes of routes, of one action; a reason, or None, for each.

        Raises:
            PermissionDeniedError: CAP_NET_ADMIN is missing.
            UnavailableError: the kernel does not answer.
        """
        routes = [change.what for change in changes if isinstance(change.what, Route)]
        try:
            codes = self._bulk.send(changes[0].action, routes)
        except NetlinkError as error:
            codes = [error.code] * len(changes)
        reasons: list[str | None] = [None] * len(changes)
        if not any(codes):
            return reasons
        taken = {change.what for change, code in zip(changes, codes, strict=True) if code == errno.EEXIST}
        # Ourselves, as after an apply that was cut short, is nobody to complain of.
        foreign = await missing([route for route in taken if isinstance(route, Route)])
        for number, (change, code) in enumerate(zip(changes, codes, strict=True)):
            if code == errno.EEXIST:
                reasons[number] = await self._rival_of(change) if change.what in foreign else None
            elif code:
                reasons[number] = await self._explained(change, code)
        return reasons

    async def _explained(self, change: Change, code: int) -> str | None:
        if code == errno.EPERM:
            raise PermissionDeniedError(NOT_PERMITTED) from None
        if change.action == "remove":
            return None if code in GONE else _reason(code)
        if code == errno.EEXIST:
            return await self._rival(change)
        return _explanation(change, code)

    async def _make(self, change: Change) -> None:
        netlink = self._netlink
        removes = change.action == "remove"
        match change.what, change.previous:
            case NetDevice() as link, _:
                await (netlink.set_down(link) if removes else netlink.set_up(link))
            case PointToPoint() as pair, PointToPoint() as previous:
                await netlink.replace_address(pair, previous)
            case PointToPoint() as pair, _:
                await (netlink.remove_address(pair) if removes else netlink.add_address(pair))
            case Rule() as rule, _:
                await (netlink.remove_rule(rule) if removes else netlink.add_rule(rule))
            case Sysctl() as sysctl, _:
                (self._settings.put_back if removes else self._settings.put)(sysctl)
            case Dns() as dns, _:
                resolved = self._services.resolved
                await (resolved.revert(dns.device) if removes else resolved.apply(dns))

    async def _rival(self, change: Change) -> str | None:
        """Who has what we want to add; None if that is ourselves."""
        match change.what:
            case Rule() as rule:
                return "somebody else has the same rule already" if await missing([rule]) else None
            case PointToPoint() as pair:
                return "the device has that address with another peer" if await missing([pair]) else None
        return "it exists"

    async def _rival_of(self, change: Change) -> str:
        wanted = change.what
        self._looked_up += 1
        if not isinstance(wanted, Route) or self._looked_up > _LOOKED_UP:
            return f"somebody else has a route there already; {ADVICE}"
        if wanted.table != MAIN_TABLE:
            return f"somebody else has a route to {wanted.destination} in table {wanted.table} already"
        # Not from the whole table, which may be the internet's. A narrower route can hide the one in the way,
        # and the first address of a network can have a meaning of its own: 0.0.0.0.
        middle = wanted.destination[wanted.destination.num_addresses // 2]
        rival = now.matching(middle)
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


def _explanation(change: Change, code: int) -> str:  # noqa: PLR0911 - one sentence for each case
    match change.what, code:
        case NetDevice() | PointToPoint() | Route(), errno.ENODEV:
            return "there is no such device"
        case Route(), errno.ENETDOWN:
            return "the device is down"
        case Route(source=source), errno.EINVAL if source is not None:
            return f"the kernel finds it invalid; is {source} an address of this host?"
        case PointToPoint(local=local), errno.EACCES | errno.EOPNOTSUPP if local.version == 6:
            return "IPv6 is switched off on this host (sysctl net.ipv6.conf.all.disable_ipv6)"
        case PointToPoint(local=local), errno.EINVAL | errno.ENOBUFS if local.version == 6:
            return "the kernel finds it invalid; IPv6 needs an MTU of 1280 or more"
        case Rule(), errno.EOPNOTSUPP | errno.EAFNOSUPPORT:
            return "this kernel has no policy routing; use routing: main"
    return _reason(code)


def _reason(code: int) -> str:
    return os.strerror(abs(code)).lower()
