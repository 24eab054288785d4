"""Ping an address before there is a route to it; print the time of the first answer as JSON.

    first_ping.py DEVICE ADDRESS SECONDS

Prints "ready" first, and at the end {"datagram": ..., "answer": ...}: the times of the first datagram (UDP over IPv4)
sent through DEVICE and of the first answer from ADDRESS, null if there was none within SECONDS. Times are of the
monotonic clock, which all processes share. Then it waits until it is terminated.
"""

# Prints to the benchmark:
# ruff: noqa: T201

import contextlib
import json
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable

# From linux/if_ether.h.
ETH_P_ALL, ETH_P_IP = 0x0003, 0x0800
ICMP_ECHO, ICMP_ECHO_REPLY = 8, 0
INTERVAL = 0.001


def internet_checksum(data: bytes) -> int:
    """The checksum of RFC 1071 over an even number of bytes."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def echo_request(identifier: int) -> bytes:
    #   0        8        16              32
    #   | type=8 | code=0 |   checksum    |
    #   |   identifier    |  sequence=0   |      RFC 792
    header = struct.pack("!BBHHH", ICMP_ECHO, 0, 0, identifier, 0)
    return header[:2] + struct.pack("!H", internet_checksum(header)) + header[4:]


def is_sent_datagram(port: socket.socket) -> bool:
    """Whether the next captured packet is an outgoing UDP datagram over IPv4."""
    frame, (_, protocol, kind, *_) = port.recvfrom(64)
    # The protocol is the tenth byte of the IPv4 header, after 14 bytes of Ethernet.
    outgoing = protocol == ETH_P_IP and kind == socket.PACKET_OUTGOING
    return bool(outgoing and frame[14 + 9] == socket.IPPROTO_UDP)


def is_answer(icmp: socket.socket, identifier: int) -> bool:
    data = icmp.recv(128)
    length = (data[0] & 0x0F) * 4
    kind, _, _, answered = struct.unpack_from("!BBHH", data, length)
    return bool(kind == ICMP_ECHO_REPLY and answered == identifier)


def watch(device: str, address: str, seconds: float) -> dict[str, float | None]:
    """The times of the first datagram sent and of the first answer."""
    identifier = os.getpid() & 0xFFFF
    request = echo_request(identifier)
    icmp = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    port = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    port.bind((device, ETH_P_ALL))
    seen: dict[str, float | None] = {"datagram": None, "answer": None}
    checks: dict[socket.socket, tuple[str, Callable[[], bool]]] = {
        port: ("datagram", lambda: is_sent_datagram(port)),
        icmp: ("answer", lambda: is_answer(icmp, identifier)),
    }
    print("ready")
    next_request = begin = time.monotonic()
    while (now := time.monotonic()) < begin + seconds and seen["answer"] is None:
        if now >= next_request:
            next_request = now + INTERVAL
            with contextlib.suppress(OSError):  # no route yet, or the device is not up
                icmp.sendto(request, (address, 0))
        ready = select.select(list(checks), [], [], INTERVAL)[0]
        now = time.monotonic()
        for source in ready:
            what, holds = checks[source]
            if holds() and seen[what] is None:
                seen[what] = now
    return seen


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    print(json.dumps(watch(sys.argv[1], sys.argv[2], float(sys.argv[3]))))
    signal.pause()
