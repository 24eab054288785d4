"""Which of the kernel's notifications say that something of ours may have been taken away. Pure."""

from dtun.platform.linux.netlink.wire import (
    FIB_RULE_HDR,
    FRA_PROTOCOL,
    IFADDRMSG,
    IFF_UP,
    IFINFOMSG,
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
)


class RemovalWatch:
    """A suspicion only: what is really gone, the kernel is asked.

    What a closed device of ours takes along is no loss, and neither is a device that has not been up yet.
    """

    def __init__(self) -> None:
        self._own: set[int] = set()
        self._up: set[int] = set()
        self._closed: set[int] = set()

    def made(self, index: int) -> None:
        """A device of ours is there."""
        self._own.add(index)
        self._closed.discard(index)

    def closed(self, index: int) -> None:
        """A device of ours is going, with all that it has."""
        self._own.discard(index)
        self._up.discard(index)
        self._closed.add(index)

    def learn(self, data: bytes) -> bool:
        """Take in a datagram of notifications of others' doings; whether one of them may be a loss."""
        loss = False
        for kind, _, _, _, body in messages(data):
            if kind == RTM_DELROUTE and len(body) >= RTMSG.size:
                loss |= self._route(body)
            elif kind == RTM_DELRULE and len(body) >= FIB_RULE_HDR.size:
                protocol = attributes(body, FIB_RULE_HDR.size).get(FRA_PROTOCOL)
                loss |= protocol is not None and bytes(protocol) == bytes([ROUTE_PROTOCOL])
            elif kind == RTM_DELADDR and len(body) >= IFADDRMSG.size:
                loss |= IFADDRMSG.unpack_from(body)[4] in self._own
            elif kind in (RTM_NEWLINK, RTM_DELLINK) and len(body) >= IFINFOMSG.size:
                loss |= self._link(body, present=kind == RTM_NEWLINK)
            elif kind == RTM_NEWNETCONF:
                loss |= _forwarding_ends(body)
        return loss

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
        if present and flags & IFF_UP:
            self._up.add(index)
            return False
        went = index in self._up
        self._up.discard(index)
        return went


def _forwarding_ends(body: memoryview) -> bool:
    """The host as a whole is no router any more: net.ipv4.ip_forward, net.ipv6.conf.all.forwarding."""
    found = attributes(body, NETCONFMSG.size)
    return (
        number(found.get(NETCONFA_IFINDEX)) == NETCONFA_IFINDEX_ALL
        and number(found.get(NETCONFA_FORWARDING)) == 0
    )
