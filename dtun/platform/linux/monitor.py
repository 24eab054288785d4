"""Notices when the host's own network changes: rtnetlink's multicast groups, read without pyroute2.

A socket of pyroute2 is of no use after an overflow (ENOBUFS), and decoding everything would make each of
thousands of own routes cost as much to hear of as to install. It takes a few fields of three messages.

    struct nlmsghdr   | length u32 | type u16 | flags u16 | sequence u32 | port u32 |
    struct ifinfomsg  | family u8 | pad u8 | type u16 | index i32 | flags u32 | change u32 |
    struct ifaddrmsg  | family u8 | prefix u8 | flags u8 | scope u8 | index u32 |
    struct rtmsg      | family u8 | dst u8 | src u8 | tos u8 |
                      | table u8 | protocol u8 | scope u8 | type u8 | flags u32 |
    struct rtattr     | length u16 | type u16 | value |     every part padded to 4 bytes; host byte order
"""

import asyncio
import socket
import struct
from collections.abc import Callable, Hashable, Iterator
from typing import TypeVar

from dtun.platform.linux.netlink import ROUTE_PROTOCOL

T = TypeVar("T", bound=Hashable)

NLMSGHDR = struct.Struct("=IHHII")
IFINFOMSG = struct.Struct("=BBHiII")
IFADDRMSG = struct.Struct("=BBBBI")
RTMSG = struct.Struct("=BBBBBBBBI")
RTATTR = struct.Struct("=HH")
U32 = struct.Struct("=I")

RTM_NEWLINK, RTM_DELLINK, RTM_NEWADDR, RTM_DELADDR, RTM_NEWROUTE, RTM_DELROUTE = 16, 17, 20, 21, 24, 25
IFLA_LINKINFO, IFLA_INFO_KIND = 18, 1
IFA_ADDRESS, IFA_LOCAL, IFA_FLAGS = 1, 2, 8
RTA_OIF = 4
IFF_RUNNING = 0x40
IFA_F_TENTATIVE = 0x40
_NESTED_MASK = 0x3FFF

# RTNLGRP_LINK, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV6_IFADDR, RTNLGRP_IPV6_ROUTE
GROUPS = (1, 5, 7, 9, 11)
SOL_NETLINK = 270
NETLINK_ADD_MEMBERSHIP = 1
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
        for kind, body in _messages(data):
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
        device = _number(_attributes(body[RTMSG.size :]).get(RTA_OIF))
        return device is None or device not in self.own

    def _address(self, body: memoryview, *, present: bool) -> bool:
        _, _, flags, _, index = IFADDRMSG.unpack_from(body)
        attributes = _attributes(body[IFADDRMSG.size :])
        address = attributes.get(IFA_LOCAL) or attributes.get(IFA_ADDRESS) or b""
        wide_flags = _number(attributes.get(IFA_FLAGS))
        return self.saw_address(
            index, bytes(address), flags if wide_flags is None else wide_flags, present=present
        )

    def _link(self, body: memoryview, *, present: bool) -> bool:
        _, _, _, index, flags, _ = IFINFOMSG.unpack_from(body)
        info = _attributes(body[IFINFOMSG.size :]).get(IFLA_LINKINFO, memoryview(b""))
        kind = bytes(_attributes(info).get(IFLA_INFO_KIND, b"")).rstrip(b"\0").decode(errors="replace")
        return self.saw_link(index, flags, kind, present=present)


class Monitor:
    """Reads notifications in the running event loop, from the moment it is made."""

    def __init__(self, view: HostView, changed: Callable[[], None]) -> None:
        self._view = view
        self._changed = changed
        self._overflowed = False
        self._loop = asyncio.get_running_loop()
        self._socket = socket.socket(
            socket.AF_NETLINK,
            socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
            socket.NETLINK_ROUTE,
        )
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        self._socket.bind((0, 0))
        for group in GROUPS:
            self._socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
        self._loop.add_reader(self._socket, self._read)

    def close(self) -> None:
        self._loop.remove_reader(self._socket)
        self._socket.close()

    def _read(self) -> None:
        news = False
        for _ in range(BURST):
            try:
                data = self._socket.recv(DATAGRAM_BYTES)
            except BlockingIOError:
                if self._overflowed:
                    self._overflowed = False
                    self._view.forget()
                    news = True
                break
            except OSError:
                # ENOBUFS: what was lost may have mattered. The kernel goes on to lose, and says no more of it,
                # until the queue is empty: only then is there a point from which nothing is missing.
                self._overflowed = True
            else:
                news |= self._view.learn(data)
        if news:
            self._changed()


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


def _messages(data: bytes) -> Iterator[tuple[int, memoryview]]:
    view = memoryview(data)
    while len(view) >= NLMSGHDR.size:
        length, kind, _, _, _ = NLMSGHDR.unpack_from(view)
        if not NLMSGHDR.size <= length <= len(view):
            return
        yield kind, view[NLMSGHDR.size : length]
        view = view[_aligned(length) :]


def _attributes(view: memoryview) -> dict[int, memoryview]:
    found = {}
    while len(view) >= RTATTR.size:
        length, kind = RTATTR.unpack_from(view)
        if not RTATTR.size <= length <= len(view):
            break
        found[kind & _NESTED_MASK] = view[RTATTR.size : length]
        view = view[_aligned(length) :]
    return found


def _number(value: memoryview | None) -> int | None:
    return int(U32.unpack(value)[0]) if value is not None and len(value) == U32.size else None


def _aligned(length: int) -> int:
    return (length + 3) & ~3
