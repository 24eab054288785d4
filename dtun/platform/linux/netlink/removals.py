"""Which notifications mean that something of ours may have been removed. Pure."""

from dtun.platform.linux.netlink.wire import (
    FIB_RULE_HDR,
    FRA_PROTOCOL,
    IFADDRMSG,
    IFF_UP,
    IFINFOMSG,
    IFLA_IFNAME,
    NETCONFA_FORWARDING,
    NETCONFA_IFINDEX,
    NETCONFA_IFINDEX_ALL,
    NETCONFMSG,
    ROUTE_PROTOCOL,
    RTA_OIF,
    RTM_DELADDR,
    RTM_DELLINK,
    RTM_DELROUTE,
    RTM_DELRULE,
    RTM_NEWLINK,
    RTM_NEWNETCONF,
    RTMSG,
    attributes,
    messages,
    number,
    text,
)


class RemovalWatch:
    """Detects suspected removals only: what is really missing is read from the kernel.

    What goes with a device that we closed does not count, nor does a device that has not been up yet.
    """

    def __init__(self) -> None:
        self._own: dict[int, str] = {}
        self._lost = False
        self._up: set[int] = set()
        self._closed: set[int] = set()

    def device_created(self, index: int, name: str) -> None:
        self._own[index] = name
        self._closed.discard(index)

    def device_closed(self, index: int) -> None:
        """We closed a device of ours, or it is known to be lost; its addresses and routes go with it."""
        self._own.pop(index, None)
        self._up.discard(index)
        self._closed.add(index)

    def take_lost(self) -> bool:
        """Whether a device of ours was removed, renamed or moved since the last call."""
        lost, self._lost = self._lost, False
        return lost

    def update(self, data: bytes) -> bool:
        """Read a datagram of notifications; returns whether something of ours may have been removed."""
        removed = False
        for kind, _, _, _, body in messages(data):
            if kind == RTM_DELROUTE and len(body) >= RTMSG.size:
                removed |= self._route(body)
            elif kind == RTM_DELRULE and len(body) >= FIB_RULE_HDR.size:
                protocol = attributes(body, FIB_RULE_HDR.size).get(FRA_PROTOCOL)
                removed |= protocol is not None and bytes(protocol) == bytes([ROUTE_PROTOCOL])
            elif kind == RTM_DELADDR and len(body) >= IFADDRMSG.size:
                removed |= IFADDRMSG.unpack_from(body)[4] in self._own
            elif kind in (RTM_NEWLINK, RTM_DELLINK) and len(body) >= IFINFOMSG.size:
                removed |= self._link(body, present=kind == RTM_NEWLINK)
            elif kind == RTM_NEWNETCONF:
                removed |= _forwarding_disabled(body)
        return removed

    def _route(self, body: memoryview) -> bool:
        if RTMSG.unpack_from(body)[5] != ROUTE_PROTOCOL:
            return False
        return number(attributes(body, RTMSG.size).get(RTA_OIF)) not in self._closed

    def _link(self, body: memoryview, *, present: bool) -> bool:
        _, _, _, index, flags, _ = IFINFOMSG.unpack_from(body)
        if not present:
            self._closed.discard(index)
        if index not in self._own:
            return False
        name = attributes(body, IFINFOMSG.size).get(IFLA_IFNAME)
        if not present or (name is not None and text(name) != self._own[index]):
            self._lost = True
            return True
        if present and flags & IFF_UP:
            self._up.add(index)
            return False
        was_up = index in self._up
        self._up.discard(index)
        return was_up


def _forwarding_disabled(body: memoryview) -> bool:
    """Forwarding was switched off for the whole host: net.ipv4.ip_forward, net.ipv6.conf.all.forwarding."""
    found = attributes(body, NETCONFMSG.size)
    return (
        number(found.get(NETCONFA_IFINDEX)) == NETCONFA_IFINDEX_ALL
        and number(found.get(NETCONFA_FORWARDING)) == 0
    )
