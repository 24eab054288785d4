"""Monitors the host's own network and what is removed of ours, by rtnetlink's multicast groups.

Only a few fields of a few messages are decoded, because other programs may change thousands of routes.
dtun.platform.linux.netlink.wire draws the messages.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar

from dtun.platform.linux.netlink.notifications import Notifications
from dtun.platform.linux.netlink.removals import RemovalWatch
from dtun.platform.linux.netlink.sockets import NETLINK_ROUTE
from dtun.platform.linux.netlink.wire import (
    FIB_RULE_HDR,
    FRA_PROTOCOL,
    IFA_ADDRESS,
    IFA_F_TENTATIVE,
    IFA_FLAGS,
    IFA_LOCAL,
    IFADDRMSG,
    IFF_RUNNING,
    IFINFOMSG,
    IFLA_INFO_KIND,
    IFLA_LINKINFO,
    ROUTE_PROTOCOL,
    RTA_OIF,
    RTM_DELADDR,
    RTM_DELLINK,
    RTM_DELNEXTHOP,
    RTM_DELROUTE,
    RTM_DELRULE,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWNEXTHOP,
    RTM_NEWROUTE,
    RTM_NEWRULE,
    RTMSG,
    attributes,
    driver_of,
    messages,
    number,
    text,
)

T = TypeVar("T", bound=Hashable)

# RTNLGRP_LINK, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV4_RULE, RTNLGRP_IPV6_IFADDR,
# RTNLGRP_IPV6_ROUTE, RTNLGRP_IPV6_RULE, RTNLGRP_IPV4_NETCONF, RTNLGRP_IPV6_NETCONF
_GROUPS = (1, 5, 7, 8, 9, 11, 19, 24, 25)

# RTNLGRP_NEXTHOP, from Linux 5.3 on.
_OPTIONAL_GROUPS = (32,)

# The longest prefix that counts as a default route: 0.0.0.0/1 with 128.0.0.0/1, or 2000::/3.
DEFAULT_ROUTE_LENGTH = 3


class HostView:
    """The host's links and addresses as last reported, to tell changes from repetitions. Pure.

    The kernel repeats an address with each router advertisement, and a link with each change of a detail.
    Unknown counts as absent: to clear the view costs one needless call, never a missed change.
    """

    def __init__(self) -> None:
        self.networks_version = 0
        """Changes whenever the links, addresses or routes of others may have: what was read before is out of date."""
        self._own: set[int] = set()
        self._tunnels: set[int] = set()
        self._running: set[int] = set()
        self._addresses: set[tuple[int, bytes]] = set()

    def add_own(self, index: int) -> None:
        """Ignore this device from now on: it is ours."""
        self._own.add(index)

    def clear(self) -> None:
        """Forget links and addresses, because notifications may have been lost."""
        self.networks_version += 1
        self._running.clear()
        self._addresses.clear()

    def update(self, data: bytes) -> bool:
        """Read a datagram of notifications; returns whether the host's own network changed."""
        changed = False
        for kind, _, _, _, body in messages(data):
            self._note(kind, body)
            if kind in (RTM_NEWROUTE, RTM_DELROUTE) and len(body) >= RTMSG.size:
                changed |= self._route(body)
            elif kind in (RTM_NEWADDR, RTM_DELADDR) and len(body) >= IFADDRMSG.size:
                changed |= self._address(body, present=kind == RTM_NEWADDR)
            elif kind in (RTM_NEWLINK, RTM_DELLINK) and len(body) >= IFINFOMSG.size:
                changed |= self._link(body, present=kind == RTM_NEWLINK)
            elif kind in (RTM_NEWNEXTHOP, RTM_DELNEXTHOP):
                # Routes that use this nexthop object change without a notification of their own.
                changed = True
            elif kind in (RTM_NEWRULE, RTM_DELRULE) and len(body) >= FIB_RULE_HDR.size:
                protocol = attributes(body, FIB_RULE_HDR.size).get(FRA_PROTOCOL)
                changed |= protocol is None or protocol[0] != ROUTE_PROTOCOL
        return changed

    def _note(self, kind: int, body: memoryview) -> None:
        """Note what is out of date, of any device but ours."""
        if kind in (RTM_NEWADDR, RTM_DELADDR) and len(body) >= IFADDRMSG.size:
            is_ours = IFADDRMSG.unpack_from(body)[4] in self._own
        elif kind in (RTM_NEWLINK, RTM_DELLINK) and len(body) >= IFINFOMSG.size:
            is_ours = IFINFOMSG.unpack_from(body)[3] in self._own
        elif kind in (RTM_NEWROUTE, RTM_DELROUTE) and len(body) >= RTMSG.size:
            is_ours = RTMSG.unpack_from(body)[5] == ROUTE_PROTOCOL
        else:
            is_ours = kind not in (RTM_NEWNEXTHOP, RTM_DELNEXTHOP)
        self.networks_version += not is_ours

    def update_link(self, index: int, flags: int, kind: str | None, *, present: bool = True) -> bool:
        """Returns whether that is a change. `flags` are IFF_..., `kind` is the driver's name (`driver_of`).

        TUN devices are ignored: they do not lead out of the host.
        """
        if not present:
            self._own.discard(index)
            self._tunnels.discard(index)
        elif kind == "tun":
            self._tunnels.add(index)
        if self._is_tunnel(index):
            return False
        return _set(self._running, index, present=present and bool(flags & IFF_RUNNING))

    def update_address(self, index: int, address: bytes, flags: int, *, present: bool = True) -> bool:
        """Returns whether that is a change. `flags` are IFA_F_...

        A tentative address (RFC 4862) cannot be used yet; a link-local one reaches only its link.
        """
        if self._is_tunnel(index) or _is_link_local(address):
            return False
        return _set(self._addresses, (index, address), present=present and not flags & IFA_F_TENTATIVE)

    def _is_tunnel(self, index: int) -> bool:
        return index in self._own or index in self._tunnels

    def _route(self, body: memoryview) -> bool:
        _, prefix_length, _, _, _, protocol, _, _, _ = RTMSG.unpack_from(body)
        if prefix_length > DEFAULT_ROUTE_LENGTH or protocol == ROUTE_PROTOCOL:
            return False
        device = number(attributes(body, RTMSG.size).get(RTA_OIF))
        return device is None or device not in self._own

    def _address(self, body: memoryview, *, present: bool) -> bool:
        _, _, flags, _, index = IFADDRMSG.unpack_from(body)
        found = attributes(body, IFADDRMSG.size)
        address = found.get(IFA_LOCAL) or found.get(IFA_ADDRESS) or b""
        wide_flags = number(found.get(IFA_FLAGS))
        return self.update_address(
            index, bytes(address), flags if wide_flags is None else wide_flags, present=present
        )

    def _link(self, body: memoryview, *, present: bool) -> bool:
        _, _, _, index, flags, _ = IFINFOMSG.unpack_from(body)
        info = attributes(body, IFINFOMSG.size).get(IFLA_LINKINFO, memoryview(b""))
        kind = driver_of(text(attributes(info).get(IFLA_INFO_KIND)), flags)
        return self.update_link(index, flags, kind, present=present)


class Monitor:
    """Reads notifications in the running event loop, from construction on.

    Calls `changed` for changes of the host's own network, `removed` when something of ours may have been removed,
    and both after an overflow. `ports` are the port ids of the sockets through which this process makes its changes.
    """

    def __init__(
        self,
        view: HostView,
        removals: RemovalWatch,
        changed: Callable[[], None],
        removed: Callable[[], None],
        ports: Iterable[int] = (),
    ) -> None:
        self._view = view
        self._removals = removals
        self._changed = changed
        self._removed = removed
        self._notifications = Notifications(
            NETLINK_ROUTE, _GROUPS, ports, self._received, optional_groups=_OPTIONAL_GROUPS
        )

    def close(self) -> None:
        self._notifications.close()

    def _received(self, datagrams: Sequence[bytes], lost: bool) -> None:
        changed = removed = lost
        for data in datagrams:
            changed |= self._view.update(data)
            removed |= self._removals.update(data)
        if lost:
            self._view.clear()
        if changed:
            self._changed()
        if removed:
            self._removed()


def _set(known: set[T], key: T, *, present: bool) -> bool:
    """Add or remove `key`; returns whether that made a difference."""
    if (key in known) == present:
        return False
    if present:
        known.add(key)
    else:
        known.discard(key)
    return True


def _is_link_local(address: bytes) -> bool:
    """fe80::/10."""
    return len(address) == 16 and address[0] == 0xFE and address[1] & 0xC0 == 0x80
