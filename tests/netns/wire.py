"""What is really on a cable: a packet socket on one end of it, read whenever somebody asks."""

import contextlib
import socket
import struct
from collections import Counter
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple

from topology import Host

ETH_P_ALL = 0x0003
ETH_P_IP, ETH_P_IPV6 = 0x0800, 0x86DD  # linux/if_ether.h
SO_RCVBUFFORCE = 33
SOL_PACKET, PACKET_STATISTICS = 263, 6  # linux/if_packet.h
BUFFER = 64 << 20
HEADERS = 128  # bytes of a packet that are looked at
_NAMES = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmp"}


class Flow(NamedTuple):
    """Where packets go. `port` is the destination's, 0 for what has none."""

    protocol: str
    destination: str
    port: int


class Sniffer:
    """Counts the IP packets that a host sends by one device: all but multicast and those of the link alone."""

    def __init__(self, host: Host, device: str) -> None:
        self._socket = host.open_socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
        self._socket.setblocking(False)
        self._socket.bind((device, ETH_P_ALL))
        self._sent: Counter[Flow] = Counter()

    def forget(self) -> None:
        """Begin anew."""
        self._read()
        self._sent.clear()

    def sent(self) -> Counter[Flow]:
        """How many packets the host has sent of each flow since then."""
        self._read()
        _, lost = struct.unpack("=II", self._socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
        assert lost == 0, f"the sniffer has missed {lost} packets"
        return Counter(self._sent)

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                try:
                    packet, (_, protocol, kind, *_) = self._socket.recvfrom(HEADERS)
                except OSError as error:
                    if isinstance(error, BlockingIOError):
                        raise
                    continue  # The device went down: said once, and then it goes on.
                if kind == socket.PACKET_OUTGOING and protocol in (ETH_P_IP, ETH_P_IPV6):
                    self._count(packet)

    def _count(self, packet: bytes) -> None:
        flow, destination = flow_of(packet)
        if not (destination.is_multicast or destination.is_link_local or destination in _BROADCAST):
            self._sent[flow] += 1


_BROADCAST = {ip_address("255.255.255.255")}


def flow_of(packet: bytes) -> tuple[Flow, IPv4Address | IPv6Address]:
    """The flow of an IP packet without IPv6 extension headers (RFC 791, section 3.1; RFC 8200, section 3)."""
    if packet[0] >> 4 == 4:
        number, destination, rest = packet[9], ip_address(packet[16:20]), packet[(packet[0] & 15) * 4 :]
    else:
        number, destination, rest = packet[6], ip_address(packet[24:40]), packet[40:]
    port = int.from_bytes(rest[2:4]) if number in (6, 17) else 0
    return Flow(_NAMES.get(number, str(number)), str(destination), port), destination
