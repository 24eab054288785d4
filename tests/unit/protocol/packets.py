"""Packets of every kind that a kernel hands to a TUN device with offloads, for hypothesis to draw."""

import random
import struct

from hypothesis import strategies as st

from tests.unit.protocol import segmenter
from tests.unit.protocol.segmenter import ACK, CWR, ECE, FIN, PSH, TCP, UDP, URG, Virtio

ADDRESSES4 = tuple(bytes((10, 0, 0, last)) for last in (1, 2, 3))
ADDRESSES6 = tuple(bytes.fromhex("fd00") + bytes(13) + bytes([last]) for last in (1, 2, 3))
# Lengths that headers and payloads like to go wrong at, and more.
SIZES = st.one_of(st.sampled_from((1, 2, 3, 536, 1220, 1448, 1460)), st.integers(1, 1500))


class Original:
    """One read from a TUN device, and the complete packets that it stands for."""

    # No dataclass: hypothesis would write out 64 KiB of it.
    def __init__(self, virtio: Virtio, packet: bytes) -> None:
        self.virtio = virtio
        self.packet = packet

    def __repr__(self) -> str:
        return f"<{self.virtio}, {len(self.packet)} bytes: {self.packet[:80].hex()}>"

    @property
    def ports(self) -> bytes:
        return self.packet[self.virtio.csum_start :][:4]

    @property
    def read(self) -> bytes:
        return self.virtio.encode() + self.packet

    @property
    def meaning(self) -> list[bytes]:
        if self.virtio.kind != "none":
            return segmenter.segments(self.packet, self.virtio.size)
        if self.virtio.needs_csum:
            return [segmenter.complete(self.packet, self.virtio.csum_start, self.virtio.csum_offset)]
        return [self.packet]


@st.composite
def ip_headers(draw: st.DrawFn, protocol: int) -> bytes:
    """An IPv4 header, with options at times, or an IPv6 header; lengths and checksum are not set."""
    hop_limit = draw(st.integers(1, 255))
    traffic_class = draw(st.integers(0, 255))
    if draw(st.booleans()):
        options = b"\x01" * (4 * draw(st.sampled_from((0, 0, 0, 1, 10))))
        flags = draw(st.sampled_from((0x4000, 0x4000, 0)))
        words = (draw(st.integers(0, 0xFFFF)), flags, hop_limit, protocol)
        source, destination = draw(st.sampled_from(ADDRESSES4)), ADDRESSES4[0]
        first = 0x40 | (5 + len(options) // 4)
        return struct.pack("!BBHHHBBH", first, traffic_class, 0, *words, 0) + source + destination + options
    label = 6 << 28 | traffic_class << 20 | draw(st.integers(0, 0xFFFFF))
    return (
        struct.pack("!IHBB", label, 0, protocol, hop_limit)
        + draw(st.sampled_from(ADDRESSES6))
        + ADDRESSES6[0]
    )


@st.composite
def tcp_headers(draw: st.DrawFn) -> bytes:
    options = b"\x01" * (4 * draw(st.sampled_from((0, 3, 10))))
    flags = ACK
    for flag in (FIN, PSH, URG, ECE, CWR):
        flags |= flag if draw(st.booleans()) else 0
    sequence = draw(st.one_of(st.just(0xFFFFFFFF), st.integers(0, 0xFFFFFFFF)))
    offset = (20 + len(options)) << 2
    ports = draw(st.sampled_from((443, 444))), 50000
    urgent = draw(st.integers(0, 0xFFFF)) if flags & URG else 0
    return struct.pack("!HHIIBBHHH", *ports, sequence, 77, offset, flags, 8192, 0, urgent) + options


def udp_header(source: int = 5000) -> bytes:
    return struct.pack("!HHHH", source, 6000, 0, 0)


def payload(length: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(length)


def unfinished(headers: bytes, body: bytes) -> bytes:
    """The packet with right lengths, and the sum of its pseudo-header for a checksum."""
    return segmenter.with_sum_of_pseudo_header(segmenter.with_lengths(headers + body))


@st.composite
def super_packets(
    draw: st.DrawFn, max_segments: int = 140, protocols: tuple[int, ...] = (TCP, TCP, UDP)
) -> Original:
    """A TCP or UDP packet with two segments at least."""
    protocol = draw(st.sampled_from(protocols))
    ip = draw(ip_headers(protocol))
    headers = ip + (draw(tcp_headers()) if protocol == TCP else udp_header())
    size = draw(SIZES)
    most = min(max_segments * size, 65535 - len(headers))
    length = draw(
        st.one_of(st.integers(size + 1, min(6 * size, most)), st.integers(size + 1, most), st.just(most))
    )
    packet = unfinished(headers, payload(length, draw(st.integers(0, 9))))
    kind = "udp" if protocol == UDP else f"tcp{packet[0] >> 4}"
    ecn = protocol == TCP and bool(headers[len(ip) + 13] & CWR)
    at = segmenter.CHECKSUM_AT[protocol]
    return Original(Virtio(True, kind, ecn, len(headers), size, len(ip), at), packet)


@st.composite
def single_packets(draw: st.DrawFn) -> Original:
    """A complete packet, or one without its checksum."""
    protocol = draw(st.sampled_from((TCP, UDP, segmenter.ICMP)))
    ip = draw(ip_headers(protocol))
    transport = {TCP: draw(tcp_headers()), UDP: udp_header()}.get(protocol, bytes(8))
    body = payload(draw(st.integers(0, 1400)), draw(st.integers(0, 9)))
    if protocol == segmenter.ICMP:
        return Original(Virtio(), segmenter.with_lengths(ip + transport + body))
    packet, at = unfinished(ip + transport, body), segmenter.CHECKSUM_AT[protocol]
    if draw(st.booleans()):
        return Original(Virtio(needs_csum=True, csum_start=len(ip), csum_offset=at), packet)
    return Original(Virtio(), segmenter.complete(packet, len(ip), at))


@st.composite
def udp_flows(draw: st.DrawFn) -> list[Original]:
    """Datagrams of one flow, sent one by one: mostly of one size, now and then shorter, empty, or of another flow."""
    ip = draw(ip_headers(UDP))
    size = draw(SIZES)
    flow = []
    for number in range(draw(st.integers(2, 80))):
        length = draw(st.sampled_from((size,) * 12 + (size // 2, 0, size + 1)))
        source = draw(st.sampled_from((5000,) * 15 + (5001,)))
        headers = bytearray(ip)
        if ip[0] >> 4 == 4:
            struct.pack_into("!H", headers, 4, number)
        packet = unfinished(bytes(headers) + udp_header(source), payload(length, number))
        flow.append(Original(Virtio(needs_csum=True, csum_start=len(ip), csum_offset=6), packet))
    return flow


@st.composite
def extended_packets(draw: st.DrawFn) -> Original:
    """A super-packet of TCP over IPv6 behind extension headers, up to more than 255 bytes of them."""
    padding = draw(st.sampled_from((0, 1, 20, 31)))
    options = bytes([TCP, padding, 1, 4 + padding * 8]) + bytes(4 + padding * 8)
    ip = struct.pack("!IHBB", 6 << 28, 0, 60, 64) + ADDRESSES6[1] + ADDRESSES6[0] + options
    headers = ip + draw(tcp_headers())
    size = draw(st.integers(1, 1000))
    packet = unfinished(headers, payload(draw(st.integers(size + 1, 5 * size)), 1))
    ecn = bool(headers[len(ip) + 13] & CWR)
    return Original(Virtio(True, "tcp6", ecn, len(headers), size, len(ip), 16), packet)


traffic = st.lists(
    st.one_of(super_packets().map(lambda one: [one]), single_packets().map(lambda one: [one]), udp_flows()),
    min_size=1,
    max_size=5,
).map(lambda lists: [original for some in lists for original in some])


@st.composite
def arrivals(draw: st.DrawFn, count: int) -> list[int]:
    """Which of `count` frames arrive, and in which order: pieces are lost, doubled, and change places."""
    order = list(range(count))
    for _ in range(draw(st.integers(0, 8))):
        start = draw(st.integers(0, max(len(order) - 1, 0)))
        piece = order[start : start + draw(st.sampled_from((1, 1, 1, 2, 5, 40)))]
        fault = draw(st.sampled_from(("loss", "double", "move")))
        if fault != "double":
            del order[start : start + len(piece)]
        if fault != "loss":
            place = draw(st.integers(0, len(order)))
            order[place:place] = piece
    return order
