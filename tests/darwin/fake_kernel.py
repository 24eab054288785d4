"""A simulated Darwin kernel: utun, ioctls, routing sockets and sysctl, at the level of bytes.

It keeps interfaces, addresses and routes, refuses what xnu refuses, and carries real packets through its utun devices.
`installed()` replaces the functions that dtun.platform.darwin.syscalls imports.
"""

import contextlib
import ctypes
import errno
import os
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_interface, ip_network
from types import SimpleNamespace
from typing import Any

import fake_wire as wire
from fake_wire import Address, KernelError, require

from dtun.network.state import Network
from dtun.platform.darwin import syscalls

UP, LOOPBACK, POINTOPOINT, RUNNING = 0x1, 0x8, 0x10, 0x40
RTF_UP, RTF_GATEWAY, RTF_HOST, RTF_REJECT, RTF_STATIC = 0x1, 0x2, 0x4, 0x8, 0x800
RTF_CLONED, RTF_SCOPED = 0x20000, 0x1000000
RTF_PRCLONING, RTF_LOCAL, RTF_GLOBAL = 0x10000, 0x200000, 0x40000000
RTF_EXPIRES = 0x40000
"""RTPRF_OURS, which is RTF_PROTO3: a cached route that nobody uses at present, and that may be deleted (in_rmx.c)."""
OURS = 0x8000
"""RTF_PROTO1, dtun's mark."""
ADD, DELETE, CHANGE = 1, 2, 3
CONTROL_ID = 7
CONFIGD = 99
"""The process id of configd(8), which configures the host's networks."""


@dataclass
class Interface:
    name: str
    index: int
    flags: int
    mtu: int = 1500
    pairs: list[tuple[Any, Address | None]] = field(default_factory=list)

    def networks(self, version: int) -> list[Any]:
        return [local for local, _ in self.pairs if local.version == version]


@dataclass
class Entry:
    """A route. `via` is the gateway, None for a route to the interface; `source` is an address of the interface."""

    destination: Network
    index: int
    via: Address | None = None
    flags: int = RTF_UP
    source: Address | None = None
    parent: "Entry | None" = None
    """The route that this one was cloned from, for a single host."""


class FakeSocket:
    """A socket of this system, of the process `kernel.process` at its creation. The descriptor is real."""

    def __init__(self, kernel: "FakeKernel", family: int, kind: int) -> None:
        self.family = family
        self.kernel = kernel
        self.process = kernel.process
        self.uses_loopback = True
        self.interface: Interface | None = None
        self.options: dict[tuple[int, int], Any] = {}
        del kind
        self._mine, self.inside = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.inside.setblocking(False)

    def fileno(self) -> int:
        return self._mine.fileno()

    def setblocking(self, flag: bool) -> None:
        self._mine.setblocking(flag)

    def connect(self, address: tuple[int, int]) -> None:
        self.kernel.connect_control(self, *address)

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        require((level, option, size) == (2, 2, 16) and self.interface is not None)
        assert self.interface is not None
        return self.interface.name.encode() + b"\0"

    def setsockopt(self, level: int, option: int, value: Any) -> None:
        if level == 0xFFFF and option in (0x1001, 0x1002):
            # All or nothing, like sbreserve().
            require(value <= self.kernel.largest_buffer, 55)
        if (level, option) == (2, 16):
            require(self.interface is not None and len(value) == 4)
        self.options[level, option] = value
        if (level, option) == (0xFFFF, 0x40):
            self.uses_loopback = bool(value)

    def send(self, data: bytes) -> int:
        return self.kernel.route_request(self, data)

    def recv(self, size: int) -> bytes:
        return self._mine.recv(size)

    def close(self) -> None:
        if self.fileno() >= 0:
            self.kernel.closed(self)
            self._mine.close()
            self.inside.close()


class FakeKernel:
    """A Mac with Wi-Fi: en0 is 192.168.1.10/24 behind 192.168.1.1, with IPv6; en1 is not connected.

    `process` owns sockets that are opened from now on; `drops_messages`: routing sockets get nothing.
    """

    def __init__(self) -> None:
        self.root = True
        self.process = os.getpid()
        self.drops_messages = False
        self.interfaces: dict[int, Interface] = {}
        self.routes: list[Entry] = []
        self.sockets: list[FakeSocket] = []
        self.settings = {"net.inet.ip.forwarding": 0, "net.inet6.ip6.forwarding": 0}
        self.largest_buffer = 8 << 20
        self.asleep = 0.0
        self.requests: list[bytes] = []
        self.refuses: dict[Network, int] = {}
        self.unreadable = 0
        """The error of each sysctl(3), if it is not 0."""
        for index, name, flags in ((1, "lo0", LOOPBACK), (4, "en0", RUNNING), (5, "en1", RUNNING)):
            self.interfaces[index] = Interface(name, index, flags | UP)
        self.interfaces[1].mtu = 16384
        self.plug("lo0", "127.0.0.1/8", "::1/128")
        self.plug("en0", "192.168.1.10/24", "fe80::10/64", "2001:db8:1::10/64")
        self.default("en0", "192.168.1.1", "fe80::1")

    # Changes to the host, for tests

    def plug(self, name: str, *members: str) -> None:
        """Add addresses to an interface, with the routes to their networks."""
        interface = self.interface(name)
        for text in members:
            member = ip_interface(text)
            interface.pairs.append((member, None))
            entry = Entry(member.network, interface.index, None, RTF_UP, member.ip)
            if not any(entry.destination == other.destination for other in self.routes):
                self.routes.append(entry)
            self._tell_address(0xC, interface, member, None)

    def unplug(self, name: str) -> None:
        """Unplug the cable: configd removes addresses and routes."""
        interface = self.interface(name)
        interface.pairs.clear()
        for entry in [entry for entry in self.routes if entry.index == interface.index]:
            self.routes.remove(entry)
            self._tell(DELETE, entry, CONFIGD)

    def default(self, name: str, *gateways: str) -> None:
        """Change the default routes to these gateways."""
        index = self.interface(name).index
        for text in gateways:
            gateway = ip_address(text)
            destination = ip_network("0.0.0.0/0" if gateway.version == 4 else "::/0")
            old = [entry for entry in self.routes if entry.destination == destination]
            for entry in old:
                self.routes.remove(entry)
            source = self._member(index, gateway.version)
            entry = Entry(destination, index, gateway, RTF_UP | RTF_GATEWAY | RTF_STATIC, source)
            self.routes.append(entry)
            self._tell(CHANGE if old else ADD, entry, CONFIGD)

    def add(self, destination: str, name: str, via: str | None = None, flags: int = 0) -> None:
        """Another program's route."""
        gateway = ip_address(via) if via else None
        index = self.interface(name).index
        extra = RTF_GATEWAY if gateway else 0
        network = ip_network(destination)
        self.routes.append(Entry(network, index, gateway, RTF_UP | RTF_STATIC | extra | flags))
        self._tell(ADD, self.routes[-1], CONFIGD)

    def remove(self, destination: str) -> None:
        """Another program, or the kernel itself, removes a route."""
        entry = self.entry(destination)
        assert entry is not None
        self.routes.remove(entry)
        self._tell(DELETE, entry, CONFIGD)

    def add_utun(self, name: str) -> None:
        """Another program's tunnel."""
        index = max(self.interfaces) + 1
        self.interfaces[index] = Interface(name, index, UP | POINTOPOINT | RUNNING)

    def connect(self, address: str) -> None:
        """A TCP connection: the kernel clones the route for this host, with its flags (rtrequest, RTM_RESOLVE)."""
        best = self._look_up(address)
        assert best is not None
        if best.flags & RTF_HOST:
            return
        flags = best.flags & ~(RTF_PRCLONING | RTF_STATIC | RTF_GLOBAL) | RTF_CLONED | RTF_HOST | RTF_SCOPED
        self.routes.append(Entry(ip_network(address), best.index, best.via, flags, best.source, best))
        self._tell(ADD, self.routes[-1], 0)

    def sweep(self) -> None:
        """Like in_rtqkill: routes with the mark of expiring ones are deleted, without a message."""
        self.routes = [entry for entry in self.routes if not entry.flags & RTF_EXPIRES]

    def kill_owner(self) -> None:
        """Kill the process: the kernel closes its descriptors."""
        for sock in list(self.sockets):
            sock.close()

    # State of the host, for tests

    def interface(self, name: str) -> Interface:
        return next(one for one in self.interfaces.values() if one.name == name)

    def entry(self, destination: str) -> Entry | None:
        network = ip_network(destination)
        return next(
            (one for one in self.routes if one.destination == network and not one.flags & RTF_SCOPED), None
        )

    def way(self, address: str) -> str:
        """Where a packet to `address` goes: "en0 192.168.1.1", "utun0", "refused", or "nowhere"."""
        best = self._look_up(address)
        if best is None:
            return "nowhere"
        if best.flags & RTF_REJECT:
            return "refused"
        return f"{self.interfaces[best.index].name} {best.via or ''}".strip()

    def _look_up(self, address: str) -> Entry | None:
        """The route for a packet. A look-up takes the mark of expiring routes away (in_validate)."""
        target = ip_address(address)
        fits = [
            one
            for one in self.routes
            if target.version == one.destination.version
            and target in one.destination
            and not one.flags & RTF_SCOPED
        ]
        best = max(fits, key=lambda one: one.destination.prefixlen, default=None)
        if best is not None:
            best.flags &= ~RTF_EXPIRES
        return best

    def pairs(self, name: str) -> set[tuple[str, str]]:
        return {(str(local.ip), str(peer)) for local, peer in self.interface(name).pairs}

    def wire(self, name: str) -> socket.socket:
        """The host's side of a utun device: its packets, with their four bytes in front."""
        return next(sock.inside for sock in self.sockets if sock.interface and sock.interface.name == name)

    # Kernel controls

    def connect_control(self, sock: FakeSocket, control: int, unit: int) -> None:
        require(self.root, 1)
        require(sock.family == 32 and control == CONTROL_ID, 2)
        taken = {one.name for one in self.interfaces.values()}
        number = unit - 1 if unit else next(n for n in range(256) if f"utun{n}" not in taken)
        require(f"utun{number}" not in taken, 16)
        index = max(self.interfaces) + 1
        sock.interface = Interface(f"utun{number}", index, UP | POINTOPOINT | RUNNING)
        self.interfaces[index] = sock.interface
        self._broadcast(wire.interface_message(index, sock.interface.name, sock.interface.flags, 1500))

    def closed(self, sock: FakeSocket) -> None:
        self.sockets.remove(sock)
        if (gone := sock.interface) is None:
            return
        for entry in [one for one in self.routes if one.index == gone.index]:
            self.routes.remove(entry)
            self._tell(DELETE, entry, 0)
        for local, peer in gone.pairs:
            self._tell_address(0xD, gone, local, peer)
            self._remove_loopback_route(local)
        del self.interfaces[gone.index]

    # Interface ioctls

    def ioctl(self, descriptor: int, number: int, argument: bytes) -> bytes:
        assert len(argument) == number >> 16 & 0x1FFF, "the number contains the size of the argument"
        sock = next(one for one in self.sockets if one.fileno() == descriptor)
        if number == 0xC0644E03:
            require(argument[4:].rstrip(b"\0") == b"com.apple.net.utun_control", 2)
            return struct.pack("=I", CONTROL_ID) + argument[4:]
        name = argument[:16].rstrip(b"\0").decode()
        require(any(one.name == name for one in self.interfaces.values()), 6)
        require(self.root or number in (0xC0206911, 0xC0206933), 1)
        interface = self.interface(name)
        match number:
            case 0xC0206911:
                return argument[:16] + struct.pack("=H14x", interface.flags)
            case 0x80206910:
                (interface.flags,) = struct.unpack_from("=H", argument, 16)
            case 0x80206934:
                (mtu,) = struct.unpack_from("=i", argument, 16)
                require(72 <= mtu <= 65535)
                interface.mtu = mtu
            case 0x8040691A | 0x8080691A:
                require(sock.family == (2 if number == 0x8040691A else 30), 102)
                self._add_pair(interface, argument, sock.process)
            case 0x80206919 | 0x81206919:
                require(sock.family == (2 if number == 0x80206919 else 30), 102)
                size = 16 if sock.family == 2 else 28
                self._remove_pair(interface, wire.address_of(argument[16 : 16 + size]), sock.process)
            case _:
                raise KernelError(102)
        return argument

    def _add_pair(self, interface: Interface, argument: bytes, process: int) -> None:
        if len(argument) == 64:
            local, peer = (wire.address_of(argument[at : at + 16]) for at in (16, 32))
            require(int(peer) != 0, 39)
            require(argument[48:56] == b"\x10\x02\0\0\xff\xff\xff\xff")
        else:
            local, peer = (wire.address_of(argument[at : at + 28]) for at in (16, 44))
            require(argument[72:100] == b"\x1c\x1e" + bytes(6) + b"\xff" * 16 + bytes(4))
            flags, lifetime, preferred = struct.unpack_from("=i16xII", argument, 100)
            require(flags == 0x20 and lifetime == preferred == 0xFFFFFFFF and interface.mtu >= 1280)
        old = [pair for pair in interface.pairs if pair[0].ip == local]
        if local.version == 6:
            if old:
                return  # in6_update_ifa changes the lifetimes only: the peer stays
            # IPv4 has no such route on a point-to-point interface.
            self.routes.append(
                Entry(ip_network(local), 1, None, RTF_UP | RTF_HOST | RTF_LOCAL | RTF_STATIC, local)
            )
        for _, old_peer in old:
            self._remove_host_route(interface, old_peer, process)
        interface.pairs = [pair for pair in interface.pairs if pair not in old]
        interface.pairs.append((ip_interface(local), peer))
        if self.entry(str(peer)) is None:
            self.routes.append(Entry(ip_network(peer), interface.index, None, RTF_UP | RTF_HOST, local))
            self._tell(ADD, self.routes[-1], process)
        self._tell_address(0xC, interface, ip_interface(local), peer)

    def _remove_pair(self, interface: Interface, local: Address, process: int) -> None:
        gone = [pair for pair in interface.pairs if pair[0].ip == local]
        require(bool(gone), 49)
        interface.pairs = [pair for pair in interface.pairs if pair not in gone]
        for pair, peer in gone:
            self._remove_host_route(interface, peer, process)
            self._remove_loopback_route(pair)
            self._tell_address(0xD, interface, ip_interface(local), peer)

    def _remove_loopback_route(self, local: Any) -> None:
        self.routes = [
            one
            for one in self.routes
            if not (one.flags & RTF_LOCAL and one.destination.network_address == local.ip)
        ]

    def _remove_host_route(self, interface: Interface, peer: Address | None, process: int) -> None:
        entry = self.entry(str(peer)) if peer else None
        if entry is not None and entry.index == interface.index:
            self.routes.remove(entry)
            self._tell(DELETE, entry, process)

    # Routing sockets

    def route_request(self, sender: FakeSocket, data: bytes) -> int:
        self.requests.append(data)
        failure = None
        try:
            kind, flags, addresses = wire.parse_request(data)
            require(self.root, 1)
            self._change_routes(kind, flags, addresses)
        except KernelError as error:
            failure = error
        number = failure.errno or 0 if failure else 0
        echo = bytearray(data)
        struct.pack_into("=i", echo, 8, struct.unpack_from("=i", data, 8)[0] | (0 if failure else 0x40))
        struct.pack_into("=i", echo, 16, sender.process)
        struct.pack_into("=i", echo, 24, number)
        self._broadcast(bytes(echo), sender)
        if failure:
            raise failure
        return len(data)

    def _change_routes(self, kind: int, flags: int, addresses: dict[int, bytes]) -> None:
        require(1 in addresses)
        target = wire.address_of(addresses[1])
        if flags & RTF_HOST:
            network = ip_network(target)
        else:
            require(4 in addresses)
            mask = wire.address_of(addresses[4])
            network = ip_network((target, int(mask).bit_count()))
        require(network not in self.refuses, self.refuses.get(network, 0))
        entry = self.entry(str(network))
        if kind == DELETE:
            require(entry is not None, 3)
            assert entry is not None
            self.routes = [one for one in self.routes if one is not entry and one.parent is not entry]
            return
        require(kind in (ADD, CHANGE), 102)
        require(2 in addresses)
        if kind == CHANGE:
            require(entry is not None, 3)
            assert entry is not None
            # The flags stay as they are.
            new = self._route(network, entry.flags, addresses[2])
            entry.index, entry.via, entry.source = new.index, new.via, new.source
            return
        new = self._route(network, flags, addresses[2])
        if entry is not None and entry.flags & RTF_CLONED:
            self.routes.remove(entry)
            entry = None
        require(entry is None, 17)
        if not new.flags & RTF_HOST:
            new.flags |= RTF_PRCLONING
        if int(network.network_address) == 0:
            new.flags |= RTF_GLOBAL
        self.routes.append(new)

    def _route(self, network: Network, flags: int, gateway: bytes) -> Entry:
        if not flags & RTF_GATEWAY:
            require(gateway[1] == wire.LINK and len(gateway) == 20)
            (index,) = struct.unpack_from("=H", gateway, 2)
            require(index in self.interfaces, 51)
            source = self._member(index, network.version)
            require(source is not None, 51)
            return Entry(network, index, None, flags | RTF_UP, source)
        address = wire.address_of(gateway)
        packed = address.packed
        if address.is_link_local and address.version == 6:
            index = int.from_bytes(packed[2:4], "big")
            require(index in self.interfaces, 51)
            address = ip_address(packed[:2] + b"\0\0" + packed[4:])
        else:
            index = next(
                (one.index for one in self.interfaces.values()
                 if any(address in member.network for member in one.networks(address.version))),
                0,
            )  # fmt: skip
            require(index > 0, 51)
        return Entry(network, index, address, flags | RTF_UP, self._member(index, network.version))

    def _member(self, index: int, version: int) -> Address | None:
        members = self.interfaces[index].networks(version)
        wide = [member for member in members if not member.ip.is_link_local]
        return wide[-1].ip if wide else None

    # The tables of sysctl

    def dump(self, family: int) -> bytes:
        version = {2: 4, 30: 6}[family]
        return b"".join(
            wire.message(4, one.index, one.flags, self._addresses(one))
            for one in self.routes
            if one.destination.version == version
        )

    def interface_list(self) -> bytes:
        parts = []
        for one in self.interfaces.values():
            parts.append(wire.interface_message(one.index, one.name, one.flags, one.mtu))
            for local, peer in one.pairs:
                length = local.max_prefixlen if peer else local.network.prefixlen
                mask = wire.trimmed_mask(local.version, length)
                parts.append(wire.address_message(0xC, one.index, mask, local.ip, peer))
        return b"".join(parts)

    def _addresses(self, one: Entry) -> dict[int, bytes]:
        network = one.destination
        via = one.via
        if via is not None and via.is_link_local and via.version == 6:
            via = ip_address(via.packed[:2] + one.index.to_bytes(2, "big") + via.packed[4:])
        found = {
            1: wire.sockaddr(network.network_address),
            2: wire.sockaddr(via) if via else wire.link(one.index),
        }
        if not one.flags & RTF_HOST:
            found[4] = wire.trimmed_mask(network.version, network.prefixlen)
        if one.source is not None:
            found[0x20] = wire.sockaddr(one.source)
        return found

    def _tell(self, kind: int, entry: Entry, pid: int) -> None:
        flags = entry.flags | 0x40
        self._broadcast(wire.message(kind, entry.index, flags, self._addresses(entry), pid=pid))

    def _tell_address(self, kind: int, interface: Interface, local: Any, peer: Address | None) -> None:
        mask = wire.trimmed_mask(local.version, local.network.prefixlen)
        self._broadcast(wire.address_message(kind, interface.index, mask, local.ip, peer))

    def _broadcast(self, data: bytes, sender: FakeSocket | None = None) -> None:
        for sock in self.sockets:
            if sock.family == 17 and not self.drops_messages and (sock is not sender or sock.uses_loopback):
                with contextlib.suppress(BlockingIOError):  # a full buffer is not reported
                    sock.inside.send(data)

    # Functions of Python's modules

    def socket(self, family: int, kind: int, protocol: int = 0) -> FakeSocket:
        require(family in (2, 30, 17, 32), 47)
        require(family != 32 or (kind, protocol) == (2, 2), 43)
        made = FakeSocket(self, family, kind)
        self.sockets.append(made)
        return made

    def if_nametoindex(self, name: str) -> int:
        try:
            return self.interface(name).index
        except StopIteration:
            raise KernelError(6) from None

    def if_indextoname(self, index: int) -> str:
        require(index in self.interfaces, 6)
        return self.interfaces[index].name

    def clock_gettime(self, number: int) -> float:
        return time.monotonic() + {4: self.asleep, 8: 0.0}[number]

    @contextlib.contextmanager
    def installed(self) -> Iterator["FakeKernel"]:
        """Use this kernel for all calls of dtun.platform.darwin.syscalls."""
        library = FakeLibrary(self)
        below = {
            "socket": SimpleNamespace(
                socket=self.socket, if_nametoindex=self.if_nametoindex, if_indextoname=self.if_indextoname
            ),
            "os": SimpleNamespace(getpid=lambda: self.process, strerror=os.strerror),
            "fcntl": SimpleNamespace(ioctl=self.ioctl),
            "time": SimpleNamespace(clock_gettime=self.clock_gettime),
            "ctypes": SimpleNamespace(**{**vars(ctypes), "CDLL": lambda *_, **__: library}),
        }
        before = {name: getattr(syscalls, name) for name in below}
        for name, fake in below.items():
            setattr(syscalls, name, fake)
        try:
            yield self
        finally:
            for name, real in before.items():
                setattr(syscalls, name, real)
            self.kill_owner()


class FakeLibrary:
    """Two functions of libc, as ctypes calls them."""

    def __init__(self, kernel: FakeKernel) -> None:
        self._kernel = kernel

    def sysctl(self, path: Any, count: int, buffer: Any, size: Any, new: Any, new_size: Any) -> int:
        assert count == len(path) == 6
        assert new is None
        assert new_size.value == 0
        if self._kernel.unreadable:
            return _fail(self._kernel.unreadable)
        if list(path[:3]) == [4, 17, 0] and path[4:] == [1, 0]:
            data = self._kernel.dump(path[3])
        elif list(path) == [4, 17, 0, 0, 3, 0]:
            data = self._kernel.interface_list()
        else:
            return _fail(errno.ENOENT)
        return _fill(data, buffer, size)

    def sysctlbyname(self, name: bytes, old: Any, size: Any, new: Any, new_size: Any) -> int:
        settings, key = self._kernel.settings, name.decode()
        if key not in settings:
            return _fail(errno.ENOENT)
        if old is not None:
            assert size._obj.value == 4
            old._obj.value = settings[key]
        if new is not None:
            if not self._kernel.root:
                return _fail(errno.EPERM)
            assert new_size.value == 4
            settings[key] = new._obj.value
        return 0


def _fill(data: bytes, buffer: Any, size: Any) -> int:
    room, size._obj.value = size._obj.value, len(data)
    if buffer is None:
        return 0
    if room < len(data):
        return _fail(errno.ENOMEM)
    buffer[: len(data)] = data
    return 0


def _fail(number: int) -> int:
    ctypes.set_errno(number)
    return -1
