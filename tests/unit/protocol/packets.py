"""Packets of every kind that a kernel hands to a TUN device with offloads, for hypothesis to draw."""

import random
import struct

from hypothesis import strategies as st

from tests.unit.protocol import segmenter
from tests.unit.protocol.segmenter import (
    ACK,
    CWR,
    DESTINATION_OPTIONS,
    ECE,
    FIN,
    HOME_ADDRESS,
    LOOSE_SOURCE_ROUTE,
    PSH,
    ROUTING,
    SEGMENT_ROUTING,
    STRICT_SOURCE_ROUTE,
    TCP,
    TYPE_2,
    UDP,
    URG,
    Virtio,
)

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


def super_packet(
    draw: st.DrawFn, ip: bytes, protocol: int, sizes: st.SearchStrategy[int], most: int
) -> Original:
    """One with these IP headers, and two to `most` segments."""
    headers = ip + (draw(tcp_headers()) if protocol == TCP else udp_header())
    size = draw(sizes)
    most = min(most * size, 65535 - len(headers))
    length = draw(
        st.one_of(st.integers(size + 1, min(6 * size, most)), st.integers(size + 1, most), st.just(most))
    )
    packet = unfinished(headers, payload(length, draw(st.integers(0, 9))))
    kind = "udp" if protocol == UDP else f"tcp{packet[0] >> 4}"
    ecn = protocol == TCP and bool(headers[len(ip) + 13] & CWR)
    at = segmenter.CHECKSUM_AT[protocol]
    return Original(Virtio(True, kind, ecn, len(headers), size, len(ip), at), packet)


@st.composite
def super_packets(
    draw: st.DrawFn, max_segments: int = 140, protocols: tuple[int, ...] = (TCP, TCP, UDP)
) -> Original:
    """A TCP or UDP packet with two segments at least."""
    protocol = draw(st.sampled_from(protocols))
    return super_packet(draw, draw(ip_headers(protocol)), protocol, SIZES, max_segments)


def with_source_route(ip: bytes, kind: int, hops: list[bytes], done: int) -> bytes:
    """An IPv4 header without options, with a route (RFC 791) of which `done` addresses have been visited."""
    route = bytes([kind, 3 + 4 * len(hops), 4 + 4 * done]) + b"".join(hops)
    return bytes([ip[0] + len(hops) + 1]) + ip[1:20] + b"\x01" + route


@st.composite
def source_routed_packets(
    draw: st.DrawFn, max_segments: int = 140, protocols: tuple[int, ...] = (TCP, UDP)
) -> Original:
    """A super-packet with an IPv4 source route, mostly not at its end; most kernels refuse to send these on."""
    protocol = draw(st.sampled_from(protocols))
    ip = draw(ip_headers(protocol).filter(lambda ip: ip[0] == 0x45))
    hops = draw(st.lists(st.binary(min_size=4, max_size=4), min_size=1, max_size=9))
    kind = draw(st.sampled_from((LOOSE_SOURCE_ROUTE, LOOSE_SOURCE_ROUTE, STRICT_SOURCE_ROUTE)))
    ip = with_source_route(ip, kind, hops, draw(st.integers(0, len(hops))))
    return super_packet(draw, ip, protocol, SIZES, max_segments)


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


def padded(following: int, padding: int) -> bytes:
    """A header of destination options that says nothing."""
    return bytes([following, padding, 1, 4 + padding * 8]) + bytes(4 + padding * 8)


def home(following: int, address: bytes) -> bytes:
    """A header with the Home Address option (RFC 6275, section 6.3)."""
    return bytes([following, 2, 1, 2, 0, 0, HOME_ADDRESS, 16]) + address


def routing(following: int, kind: int, left: int, addresses: list[bytes]) -> bytes:
    """A routing header (RFC 6275, section 6.4; RFC 8754, section 2), as its kind orders the addresses."""
    last = len(addresses) - 1 if kind == SEGMENT_ROUTING else 0
    return bytes([following, 2 * len(addresses), kind, left, last, 0, 0, 0]) + b"".join(addresses)


@st.composite
def extension_headers(draw: st.DrawFn, protocol: int) -> tuple[int, bytes]:
    """Extension headers in front of `protocol`, and the type of the first.

    With some of them the packet comes from or ends at another address than the IP header says.
    """
    kinds = draw(
        st.sampled_from(
            (("padding",), ("mobile",), ("segments",), ("home",), ("padding", "segments", "home"))
        )
    )
    addresses = st.binary(min_size=16, max_size=16)
    following, headers = protocol, b""
    for kind in reversed(kinds):
        if kind == "padding":
            header = padded(following, draw(st.sampled_from((0, 1, 20, 31))))
        elif kind == "home":
            header = home(following, draw(addresses))
        elif kind == "mobile":
            header = routing(following, TYPE_2, draw(st.sampled_from((1, 1, 0))), [draw(addresses)])
        else:
            segments = draw(st.lists(addresses, min_size=1, max_size=4))
            # As many as there are: the next of them stands in the IP header only (RFC 8754, section 4.1.1).
            left = draw(st.integers(0, len(segments)))
            header = routing(following, SEGMENT_ROUTING, left, segments)
        following = DESTINATION_OPTIONS if kind in ("padding", "home") else ROUTING
        headers = header + headers
    return following, headers


@st.composite
def extended_packets(draw: st.DrawFn, protocol: int = TCP) -> Original:
    """A super-packet over IPv6 behind extension headers, up to more than 255 bytes of them."""
    first, extensions = draw(extension_headers(protocol))
    ip = struct.pack("!IHBB", 6 << 28, 0, first, 64) + ADDRESSES6[1] + ADDRESSES6[0] + extensions
    return super_packet(draw, ip, protocol, st.integers(1, 1000), 5)


traffic = st.lists(
    st.one_of(
        st.one_of(super_packets(), single_packets(), source_routed_packets(), extended_packets()).map(
            lambda one: [one]
        ),
        udp_flows(),
    ),
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
