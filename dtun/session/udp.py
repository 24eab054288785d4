"""UDP sockets: a server's listening sockets, and one connected socket for each session on both sides.

A connected socket lets the kernel find the session, keeps ICMP errors apart, and gives each session its own queue. The
server's share the listening port: the listening socket is bound alone, so that a second server is refused, and only
then admits other sockets of the same user (SO_REUSEPORT).
"""

import contextlib
import errno
import os
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from struct import Struct
from typing import Any

from dtun.errors import PermissionDeniedError, UnavailableError

SockAddr = tuple[Any, ...]
"""(host, port) for IPv4, (host, port, flow, scope) for IPv6, with a numeric host."""

BUFFER_SIZE = 4 << 20
"""Bytes requested in each direction; the kernel may grant less."""

LISTENER_BUFFER = 512 << 10
"""The same for a listening socket: some thousand hellos, all of which can be handled while they are of use. A client
sends a lost one again after 0.3 s."""

ETHERNET = 1500
"""The MTU of most paths, in bytes."""

MIN_BUFFER_SIZE = 256 << 10
"""The smallest buffer worth a request, in bytes."""

UDP_HEADER = 8
IPV4_HEADER = 20
IPV6_HEADER = 40

_LINUX = sys.platform == "linux"
# Not all of these are in the socket module of Python 3.11 (linux/in.h, linux/in6.h, asm-generic/socket.h).
_IP_PKTINFO = 8 if _LINUX else 26  # macOS: netinet/in.h
_IP_MTU = 14
_IPV6_MTU = 24
_LINUX_IP_MTU_DISCOVER = 10
_LINUX_IPV6_MTU_DISCOVER = 23
_PMTUDISC_PROBE = 3
# netinet/in.h and netinet6/in6.h of macOS.
_DARWIN_IP_DONTFRAG = 28
_DARWIN_IPV6_DONTFRAG = 62
_SO_SNDBUFFORCE = 32
_SO_RCVBUFFORCE = 33
_SO_MARK = 36

# struct in_pktinfo (ip(7)):   interface index 4 | address to send from 4 | address in the header 4
_PKTINFO = Struct("=I4s4s")
# struct in6_pktinfo (RFC 3542, section 6):   address 16 | interface index 4
_PKTINFO6 = Struct("=16sI")


@dataclass(frozen=True, slots=True)
class Arrival:
    """A datagram at a listening socket, from `peer`, sent to the address `local`."""

    datagram: bytes
    peer: SockAddr
    local: str


def listen(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A listening socket on one address. `shared`: together with other sockets of ours on the same port.

    Raises:
        UnavailableError: the port is in use, or the address is not one of this host.
        PermissionDeniedError: this process may not use ports below 1024.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    where = show((host, port))
    if family == socket.AF_INET6 and not has_ipv6():
        raise UnavailableError(
            f"listen: this kernel has no IPv6, so it cannot listen on {where}; leave that out"
        )
    listener = _datagram_socket(family)
    try:
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        match error.errno:
            case errno.EADDRINUSE:
                raise UnavailableError(
                    f"listen: UDP port {where} is taken by another program; stop that one or choose another port"
                ) from error
            case errno.EADDRNOTAVAIL:
                raise UnavailableError(
                    f"listen: this host has no address {host}; name one of its own, or 0.0.0.0 or [::] for all"
                ) from error
            case errno.EACCES | errno.EPERM:
                raise PermissionDeniedError(
                    f"listen: no right to use UDP port {where}; run as root or with CAP_NET_BIND_SERVICE"
                ) from error
            case _:
                raise UnavailableError(f"listen: cannot listen on {where}: {error.strerror}") from error
    return prepare_listener(listener)


def has_ipv6() -> bool:
    """Whether this kernel has IPv6 at all. It may be disabled nevertheless."""
    try:
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close()
    except OSError as error:
        if error.errno == errno.EAFNOSUPPORT:
            return False
        raise
    return True


def prepare_listener(listener: socket.socket) -> socket.socket:
    """Set the options that a listening socket needs here; it is bound, by `listen` or by systemd."""
    listener.setblocking(False)
    if listener.family == socket.AF_INET6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    else:
        listener.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    enlarge_buffers(listener, LISTENER_BUFFER)
    return listener


def receive(listener: socket.socket) -> Arrival | None:
    """The next datagram of a listening socket; None if none waits."""
    try:
        datagram, ancillary, _, peer = listener.recvmsg(65535, 128)
    except OSError:  # nothing waits, or an ICMP error about an earlier answer
        return None
    local = ""
    for level, kind, data in ancillary:
        if level == socket.IPPROTO_IP and kind == _IP_PKTINFO and len(data) >= _PKTINFO.size:
            local = str(ip_address(_PKTINFO.unpack_from(data)[2]))
        elif level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO and len(data) >= _PKTINFO6.size:
            local = str(ip_address(_PKTINFO6.unpack_from(data)[0]))
    return Arrival(datagram, peer, local)


def answer(listener: socket.socket, datagram: bytes, peer: SockAddr, local: str) -> None:
    """Send from the address that the peer sent to. If that fails the datagram is lost, as UDP is."""
    ancillary: list[tuple[int, int, bytes]] = []
    if local and (_LINUX or _is_wildcard(listener)):
        address = ip_address(local).packed
        if listener.family == socket.AF_INET6:
            ancillary = [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, _PKTINFO6.pack(address, 0))]
        else:
            ancillary = [(socket.IPPROTO_IP, _IP_PKTINFO, _PKTINFO.pack(0, address, bytes(4)))]
    with contextlib.suppress(OSError):
        listener.sendmsg([datagram], ancillary, 0, peer)


def _is_wildcard(listener: socket.socket) -> bool:
    """Whether it listens on all addresses.

    Only then macOS may be told the source of a datagram: afterwards it has forgotten the socket's own address
    (udp_output in xnu), so that a socket on one address would listen on all.
    """
    host, *_ = listener.getsockname()
    return ip_address(host.partition("%")[0]).is_unspecified


def accept(listener: socket.socket, peer: SockAddr, local: str) -> tuple[socket.socket, list[Arrival]]:
    """A socket connected to `peer` on the listener's port, and datagrams of other peers that it received.

    Between bind and connect the kernel may prefer the new socket for the whole port, so datagrams of other peers may be
    in its queue; the caller handles them like those of the listener.

    Raises:
        OSError: `local` is no longer an address of this host, or descriptors ran out.
    """
    name: SockAddr = listener.getsockname()
    host = local or name[0]
    connected = _datagram_socket(listener.family)
    strays: list[Arrival] = []
    try:
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        with _beside(listener, connected):
            if listener.family == socket.AF_INET6:
                connected.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                scope = peer[3] if ip_address(host.partition("%")[0]).is_link_local else 0
                connected.bind((host.partition("%")[0], name[1], 0, scope))
            else:
                connected.bind((host, name[1]))
        connected.connect(peer)
        with contextlib.suppress(BlockingIOError):
            while True:
                datagram, sender = connected.recvfrom(65535)
                strays.append(Arrival(datagram, sender, local))
    except OSError:
        connected.close()
        raise
    enlarge_buffers(connected)
    return connected, strays


@contextlib.contextmanager
def _beside(listener: socket.socket, other: socket.socket) -> Iterator[None]:
    """Let `other` bind to the listener's port even if the listener belongs to another user: systemd, for a socket unit.

    SO_REUSEPORT is for sockets of one user only (socket(7)). SO_REUSEADDR on both is for any user, so it is reset.
    """
    if os.fstat(listener.fileno()).st_uid == os.geteuid():
        yield
        return
    both = (listener, other)
    try:
        for sock in both:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        yield
    finally:
        for sock in both:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)


def connect(address: SockAddr, mark: int | None = None) -> socket.socket:
    """A socket on a new source port, connected to a server. `mark` is for policy routing rules (SO_MARK, Linux).

    Raises:
        OSError: there is no route to it.
    """
    family = socket.AF_INET6 if len(address) == 4 else socket.AF_INET
    connected = _datagram_socket(family)
    try:
        if mark is not None:
            # Before connect: that is when the kernel chooses the source address, by the rules.
            connected.setsockopt(socket.SOL_SOCKET, _SO_MARK, mark)
        connected.connect(address)
    except OSError:
        connected.close()
        raise
    enlarge_buffers(connected)
    return connected


def _datagram_socket(family: int) -> socket.socket:
    """A non-blocking socket. Python makes it non-inheritable."""
    made = socket.socket(family, socket.SOCK_DGRAM)
    made.setblocking(False)
    return made


def path_mtu(connected: socket.socket) -> int:
    """The kernel's estimate of the path's MTU, in bytes with all headers; 1500 on macOS, which has none."""
    if not _LINUX:
        return ETHERNET
    if connected.family == socket.AF_INET6:
        return connected.getsockopt(socket.IPPROTO_IPV6, _IPV6_MTU)
    return connected.getsockopt(socket.IPPROTO_IP, _IP_MTU)


def forbid_fragments(connected: socket.socket) -> None:
    """Send datagrams whole or not at all: EMSGSIZE if one is too large for the interface.

    A fragmented probe would say nothing about the path (RFC 8899, section 3). On Linux: IP_PMTUDISC_PROBE (ip(7)). With
    IP_PMTUDISC_DO the kernel would obey every ICMP message, forged ones included, and refuse to send probes.

    Raises:
        OSError: the kernel does not support it.
    """
    if connected.family == socket.AF_INET6:
        option, level = _LINUX_IPV6_MTU_DISCOVER if _LINUX else _DARWIN_IPV6_DONTFRAG, socket.IPPROTO_IPV6
    else:
        option, level = _LINUX_IP_MTU_DISCOVER if _LINUX else _DARWIN_IP_DONTFRAG, socket.IPPROTO_IP
    connected.setsockopt(level, option, _PMTUDISC_PROBE if _LINUX else 1)


def outer_headers(connected: socket.socket) -> int:
    """Bytes of IP and UDP headers around each record."""
    return UDP_HEADER + (IPV6_HEADER if connected.family == socket.AF_INET6 else IPV4_HEADER)


def show(address: SockAddr) -> str:
    """An address for people: 192.0.2.1:443 or [2001:db8::1]:443."""
    host, port = address[0], address[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def host_of(address: SockAddr) -> IPv4Address | IPv6Address:
    """The IP address, without port and zone."""
    return ip_address(str(address[0]).partition("%")[0])


def enlarge_buffers(sock: socket.socket, receive: int = BUFFER_SIZE) -> None:
    """Request BUFFER_SIZE both ways, or `receive` bytes for what arrives.

    A kernel that grants less, or refuses, is not an error.
    """
    for forced, ordinary, wanted in (
        (_SO_RCVBUFFORCE, socket.SO_RCVBUF, receive),
        (_SO_SNDBUFFORCE, socket.SO_SNDBUF, BUFFER_SIZE),
    ):
        size = wanted
        if _LINUX:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, forced, size)
                continue
        # Without CAP_NET_ADMIN Linux grants up to net.core.rmem_max; macOS grants all or nothing (kern.ipc.maxsockbuf).
        while size >= MIN_BUFFER_SIZE:
            try:
                sock.setsockopt(socket.SOL_SOCKET, ordinary, size)
                break
            except OSError:
                size //= 2
