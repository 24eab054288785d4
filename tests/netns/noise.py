"""A host full of programs that want to get out, in every way that a kill switch has to think of.

python noise.py FILE SERVER SERVER6 DEVICE SOURCE SOURCE6 ADDRESS...

Sends to the addresses, and to the server at other ports than dtun's, until standard input ends; also from sources
that it insists on, and by a device that it insists on. FILE has the number of rounds so far. What cannot be sent is
nobody's concern here.
"""

import contextlib
import os
import select
import socket
import struct
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial

INTERVAL = 0.02
PORT = 53
ICMP_ECHO, ICMPV6_ECHO = 8, 128

Send = Callable[[], None]


def family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def datagram(address: str, source: str = "", device: str | None = None) -> None:
    """From a new socket: a connected one would keep its way."""
    with socket.socket(family(address), socket.SOCK_DGRAM) as sock:
        sock.bind((source, 0))
        if device is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
        sock.sendto(b"leak", (address, PORT))


def ping(address: str) -> None:
    version6 = ":" in address
    protocol = socket.getprotobyname("ipv6-icmp") if version6 else socket.IPPROTO_ICMP
    echo = struct.pack("!BBHHH4x", ICMPV6_ECHO if version6 else ICMP_ECHO, 0, 0, 7, 7)
    if not version6:
        # RFC 792: the ones' complement of the sum; the kernel does it for ICMPv6.
        echo = echo[:2] + struct.pack("!H", 0xFFFF - (ICMP_ECHO << 8) - 14) + echo[4:]
    with socket.socket(family(address), socket.SOCK_RAW, protocol) as sock:
        sock.sendto(echo, (address, 0))


class Callers:
    """TCP connections that are tried, and given up after a while."""

    def __init__(self) -> None:
        self._pending: deque[socket.socket] = deque()

    def call(self, address: str, port: int) -> None:
        sock = socket.socket(family(address), socket.SOCK_STREAM)
        sock.setblocking(False)
        self._pending.append(sock)
        while len(self._pending) > 100:
            self._pending.popleft().close()
        with contextlib.suppress(BlockingIOError):
            sock.connect((address, port))


def programs(
    servers: Iterable[str], device: str, sources: tuple[str, str], addresses: Iterable[str]
) -> Iterator[Send]:
    callers = Callers()
    for address in (*servers, *addresses):
        yield partial(datagram, address)
        yield partial(datagram, address, sources[":" in address])
        yield partial(datagram, address, device=device)
        yield partial(ping, address)
        yield partial(callers.call, address, 80)
    for server in servers:
        yield partial(callers.call, server, 443)


def main(
    file: str, server: str, server6: str, device: str, source: str, source6: str, *addresses: str
) -> None:
    sends = list(programs((server, server6), device, (source, source6), addresses))
    rounds = 0
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT)
    print("ready", flush=True)
    while not select.select([sys.stdin], [], [], INTERVAL)[0]:
        for send in sends:
            with contextlib.suppress(OSError):
                send()
        rounds += 1
        os.pwrite(descriptor, b"%10d" % rounds, 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
