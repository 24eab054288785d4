"""Makes single changes in the kernel, and explains why the kernel refuses one."""

import errno
import os
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from pyroute2.netlink.exceptions import NetlinkError

from dtun.errors import DtunError, PermissionDeniedError, UnavailableError
from dtun.network.difference import Change, unique_key
from dtun.network.state import MAIN_TABLE, Dns, Filter, NetDevice, PointToPoint, Route, Rule, Sysctl
from dtun.platform.linux import observed
from dtun.platform.linux.missing import missing
from dtun.platform.linux.netlink.requests import Requests
from dtun.platform.linux.netlink.route_batches import RouteBatches
from dtun.platform.linux.netlink.wire import ROUTE_PROTOCOL
from dtun.platform.linux.nftables.firewall import Firewall
from dtun.platform.linux.sysctl import Settings

if TYPE_CHECKING:
    from dtun.platform.linux.resolved import Resolved

NOT_PERMITTED = (
    "may not change the host's network: CAP_NET_ADMIN is missing; run dtun as root, "
    "or give it that capability (systemd: AmbientCapabilities=CAP_NET_ADMIN)"
)

# The kernel's errors for the removal of something that does not exist.
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

# Conflicting routes whose owner is looked up. The others are reported without it.
_LOOKED_UP = 10


class Operations:
    """Every method that applies something returns None if it is in place, else why it was refused.

    The packet filter and the resolver are opened when they are first needed. `filters_removed`: see `Firewall`.
    """

    def __init__(self, table: str, settings: Settings, filters_removed: Callable[[], None]) -> None:
        self._requests = Requests()
        self._route_batches = RouteBatches()
        self._settings = settings
        self._table = table
        self._filters_removed = filters_removed
        self._looked_up = 0

    @cached_property
    def firewall(self) -> Firewall:
        return Firewall(self._table, self._filters_removed)

    @cached_property
    def resolved(self) -> "Resolved":
        # Late, because only tunnels with name servers need a D-Bus library.
        from dtun.platform.linux.resolved import Resolved  # noqa: PLC0415

        return Resolved()

    @property
    def ports(self) -> tuple[int, ...]:
        """The port ids by which rtnetlink's notifications name this process."""
        return self._requests.port, self._route_batches.port

    async def check_permission(self) -> None:
        """Raises an error unless this process may change the host's network.

        Raises:
            PermissionDeniedError: CAP_NET_ADMIN is missing.
            UnavailableError: netlink does not work.
        """
        try:
            await self._requests.check_permission()
        except NetlinkError as error:
            if error.code == errno.EPERM:
                raise PermissionDeniedError(NOT_PERMITTED) from None
            raise UnavailableError(f"cannot use netlink: {_reason(error.code)}") from None

    async def apply(self, change: Change) -> str | None:
        """Make a change of anything but a route or a filter.

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

    async def apply_filters(self, filters: frozenset[Filter]) -> str | None:
        """Make the packet filter contain exactly `filters`."""
        try:
            await self.firewall.apply(filters)
        except DtunError as error:
            return str(error)
        return None

    async def apply_routes(self, changes: Sequence[Change]) -> list[str | None]:
        """Make up to `route_batches.BATCH` changes of routes, all with one action; one result for each.

        Raises:
            PermissionDeniedError: CAP_NET_ADMIN is missing.
            NetlinkError: the kernel cannot be read.
        """
        routes = [change.what for change in changes if isinstance(change.what, Route)]
        try:
            codes = self._route_batches.send(changes[0].action, routes)
        except NetlinkError as error:
            codes = [error.code] * len(changes)
        reasons: list[str | None] = [None] * len(changes)
        if not any(codes):
            return reasons
        existing = {change.what for change, code in zip(changes, codes, strict=True) if code == errno.EEXIST}
        # After an apply that was cut short, the existing route may be our own.
        foreign = await missing([route for route in existing if isinstance(route, Route)])
        for number, (change, code) in enumerate(zip(changes, codes, strict=True)):
            if code == errno.EEXIST:
                reasons[number] = self._route_conflict(change) if change.what in foreign else None
            elif code:
                reasons[number] = await self._explained(change, code)
        return reasons

    async def close(self) -> None:
        """Close the sockets. What is applied stays."""
        self._route_batches.close()
        self._requests.close()
        if "firewall" in self.__dict__:
            self.firewall.close()
        if "resolved" in self.__dict__:
            await self.resolved.close()

    async def _make(self, change: Change) -> None:
        requests = self._requests
        removes = change.action == "remove"
        match change.what, change.previous:
            case NetDevice() as device, _:
                await (requests.set_down(device) if removes else requests.set_up(device))
            case PointToPoint() as pair, PointToPoint() as previous:
                await requests.replace_address(pair, previous)
            case PointToPoint() as pair, _:
                await (requests.remove_address(pair) if removes else requests.add_address(pair))
            case Rule() as rule, _:
                await (requests.remove_rule(rule) if removes else requests.add_rule(rule))
            case Sysctl() as setting, _:
                (self._settings.restore if removes else self._settings.set)(setting)
            case Dns() as dns, _:
                await (self.resolved.revert(dns.device) if removes else self.resolved.apply(dns))

    async def _explained(self, change: Change, code: int) -> str | None:
        """Return why the kernel refused; None if the outcome is the desired one anyway."""
        if code == errno.EPERM:
            raise PermissionDeniedError(NOT_PERMITTED) from None
        if change.action == "remove":
            return None if code in GONE else _reason(code)
        if code == errno.EEXIST:
            return await _conflict(change)
        return _explanation(change, code)

    def _route_conflict(self, change: Change) -> str:
        desired = change.what
        self._looked_up += 1
        if not isinstance(desired, Route) or self._looked_up > _LOOKED_UP:
            return f"another program has a route there already; {ADVICE}"
        if desired.table != MAIN_TABLE:
            return f"another program has a route to {desired.destination} in table {desired.table} already"
        # A look-up, because the whole table may be the internet's. From the middle of the network: its first address
        # can have a meaning of its own (0.0.0.0), and a narrower route can hide the conflicting one.
        other = observed.matching(desired.destination[desired.destination.num_addresses // 2])
        if other is None:
            return f"{desired.destination} is unreachable by another program's route already; {ADVICE}"
        if unique_key(other.route) != unique_key(desired):
            return f"{desired.destination} is routed by another program already; {ADVICE}"
        via = f" via {other.route.gateway}" if other.route.gateway else ""
        owner = PROTOCOL_NAMES.get(other.protocol, "another program")
        return (
            f"{desired.destination} is routed through {other.route.device}{via} already, by {owner} "
            f"(protocol {other.protocol}); {ADVICE}"
        )


async def _conflict(change: Change) -> str | None:
    """Return what exists in the place of `change.what`; None if that is what we want."""
    match change.what:
        case Rule() as rule:
            return "another program has the same rule already" if await missing([rule]) else None
        case PointToPoint() as pair:
            return "the device has that address with another peer" if await missing([pair]) else None
    return "it exists"


def _explanation(change: Change, code: int) -> str:  # noqa: PLR0911 - one sentence for each case
    match change.what, code:
        case NetDevice() | PointToPoint() | Route(), errno.ENODEV:
            return "there is no such device"
        case Route(), errno.ENETDOWN:
            return "the device is down"
        case Route(source=source), errno.EINVAL if source is not None:
            return f"the kernel reports an invalid argument; is {source} an address of this host?"
        case PointToPoint(local=local), errno.EACCES | errno.EOPNOTSUPP if local.version == 6:
            return "IPv6 is disabled on this host (sysctl net.ipv6.conf.all.disable_ipv6)"
        case PointToPoint(local=local), errno.EINVAL | errno.ENOBUFS if local.version == 6:
            return "the kernel reports an invalid argument; IPv6 needs an MTU of 1280 or more"
        case Rule(), errno.EOPNOTSUPP | errno.EAFNOSUPPORT:
            return "this kernel does not support policy routing; use routing: main"
    return _reason(code)


def _reason(code: int) -> str:
    return os.strerror(abs(code)).lower()
