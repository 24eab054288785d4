"""Notices when the host's own network changes, and when somebody takes what is ours: rtnetlink's multicast groups.

Read without pyroute2: a socket of its own is of no use after an overflow (ENOBUFS), and decoding everything would make
each of thousands of own routes cost as much to hear of as to install. It takes a few fields of a few messages, and the
kernel sorts out before what we did ourselves. dtun.platform.linux.netlink.wire draws the messages.
"""

import asyncio
import socket
from collections.abc import Callable, Hashable, Iterable
from typing import TypeVar

from dtun.platform.linux.netlink.notifications import notifications
from dtun.platform.linux.netlink.removals import RemovalWatch
from dtun.platform.linux.netlink.wire import (
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
    RTM_DELROUTE,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWROUTE,
    RTMSG,
    attributes,
    messages,
    number,
    text,
)

T = TypeVar("T", bound=Hashable)

# RTNLGRP_LINK, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV4_RULE, RTNLGRP_IPV6_IFADDR,
# RTNLGRP_IPV6_ROUTE, RTNLGRP_IPV6_RULE, RTNLGRP_IPV4_NETCONF, RTNLGRP_IPV6_NETCONF
GROUPS = (1, 5, 7, 8, 9, 11, 19, 24, 25)
RECEIVE_BUFFER_BYTES = 1 << 20
DATAGRAM_BYTES = 1 << 16
# Datagrams in one turn of the event loop.
BURST = 64

# Default routes, and what stands in for one: 0.0.0.0/1 with 128.0.0.0/1, or 2000::/3.
WIDE_PREFIX_LENGTH = 3


class HostView:
    """What is known of the host's links and addresses, to tell news from repetition. Pure.

    The kernel repeats itself: an address with each router advertisement, a link with each change of a detail.
    Unknown counts as absent, so that forgetting costs one needless call and never a missed one.
    """

    def __init__(self) -> None:
        self.own: set[int] = set()
        self._tunnels: set[int] = set()
        self._running: set[int] = set()
        self._addresses: set[tuple[int, bytes]] = set()

    def forget(self) -> None:
        """News may have been lost."""
        self._running.clear()
        self._addresses.clear()

    def learn(self, data: bytes) -> bool:
        """Take in a datagram of notifications; whether the host's own network is different now."""
        news = False
        for kind, _, _, _, body in messages(data):
            if kind in (RTM_NEWROUTE, RTM_DELROUTE) and len(body) >= RTMSG.size:
                news |= self._route(body)
            elif kind in (RTM_NEWADDR, RTM_DELADDR) and len(body) >= IFADDRMSG.size:
                news |= self._address(body, present=kind == RTM_NEWADDR)
            elif kind in (RTM_NEWLINK, RTM_DELLINK) and len(body) >= IFINFOMSG.size:
                news |= self._link(body, present=kind == RTM_NEWLINK)
        return news

    def saw_link(self, index: int, flags: int, kind: str | None, *, present: bool = True) -> bool:
        """`flags` are IFF_..., `kind` the driver's. A TUN device is no way out of the host."""
        if not present:
            self.own.discard(index)
            self._tunnels.discard(index)
        elif kind == "tun":
            self._tunnels.add(index)
        if self._is_tunnel(index):
            return False
        return _note(self._running, index, present=present and bool(flags & IFF_RUNNING))

    def saw_address(self, index: int, address: bytes, flags: int, *, present: bool = True) -> bool:
        """A tentative address (IFA_F_TENTATIVE, RFC 4862) is of no use yet, a link-local one only nearby."""
        if self._is_tunnel(index) or _is_link_local(address):
            return False
        return _note(self._addresses, (index, address), present=present and not flags & IFA_F_TENTATIVE)

    def _is_tunnel(self, index: int) -> bool:
        return index in self.own or index in self._tunnels

    def _route(self, body: memoryview) -> bool:
        _, prefix_length, _, _, _, protocol, _, _, _ = RTMSG.unpack_from(body)
        if prefix_length > WIDE_PREFIX_LENGTH or protocol == ROUTE_PROTOCOL:
            return False
        device = number(attributes(body, RTMSG.size).get(RTA_OIF))
        return device is None or device not in self.own

    def _address(self, body: memoryview, *, present: bool) -> bool:
        _, _, flags, _, index = IFADDRMSG.unpack_from(body)
        found = attributes(body, IFADDRMSG.size)
        address = found.get(IFA_LOCAL) or found.get(IFA_ADDRESS) or b""
        wide_flags = number(found.get(IFA_FLAGS))
        return self.saw_address(
            index, bytes(address), flags if wide_flags is None else wide_flags, present=present
        )

    def _link(self, body: memoryview, *, present: bool) -> bool:
        _, _, _, index, flags, _ = IFINFOMSG.unpack_from(body)
        info = attributes(body, IFINFOMSG.size).get(IFLA_LINKINFO, memoryview(b""))
        return self.saw_link(index, flags, text(attributes(info).get(IFLA_INFO_KIND)), present=present)


class Monitor:
    """Reads notifications in the running event loop, from the moment it is made.

    `changed` is called for news of the host, `lost` when something of ours may be gone; both after an overflow.
    `ports` are those of the sockets by which this process makes its own changes.
    """

    def __init__(
        self,
        view: HostView,
        removals: RemovalWatch,
        changed: Callable[[], None],
        lost: Callable[[], None],
        ports: Iterable[int] = (),
    ) -> None:
        self._view = view
        self._removals = removals
        self._changed = changed
        self._lost = lost
        self._overflowed = False
        self._loop = asyncio.get_running_loop()
        self._socket = notifications(
            socket.NETLINK_ROUTE,  # type: ignore[attr-defined,unused-ignore]
            GROUPS,
            RECEIVE_BUFFER_BYTES,
            ports,
        )
        self._loop.add_reader(self._socket, self._read)

    def close(self) -> None:
        self._loop.remove_reader(self._socket)
        self._socket.close()

    def _read(self) -> None:
        news = loss = False
        for _ in range(BURST):
            try:
                data = self._socket.recv(DATAGRAM_BYTES)
            except BlockingIOError:
                if self._overflowed:
                    self._overflowed = False
                    self._view.forget()
                    news = loss = True
                break
            except OSError:
                # ENOBUFS: what was lost may have mattered. The kernel goes on to lose, and says no more of it,
                # until the queue is empty: only then is there a point from which nothing is missing.
                self._overflowed = True
            else:
                news |= self._view.learn(data)
                loss |= self._removals.learn(data)
        if news:
            self._changed()
        if loss:
            self._lost()


def _note(known: set[T], key: T, *, present: bool) -> bool:
    """Add or remove; whether that made a difference."""
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
