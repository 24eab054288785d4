"""What a kernel makes of a packet with a virtio header: an independent model, for tests to compare with.

Written from RFC 791, 8200, 9293, 768, 1071, 3168, 6275 and 8754, and from what Linux documents and does
(segmentation-offloads.rst, tcp_gso_segment, inet_gso_segment, __udp_gso_segment). tests/netns/test_offload.py compares
it with the real thing. It shares no code with the product, on purpose, and takes nothing for granted that the kernel
would check.
"""

import array
import struct
from dataclasses import dataclass, replace

TCP, UDP, ICMP, ICMP6 = 6, 17, 1, 58
FIN, PSH, ACK, URG, ECE, CWR = 0x01, 0x08, 0x10, 0x20, 0x40, 0x80
NEEDS_CSUM = 1
GSO_NAMES = {0: "none", 1: "tcp4", 4: "tcp6", 5: "udp"}
GSO_KINDS = {name: kind for kind, name in GSO_NAMES.items()}
GSO_ECN = 0x80
CHECKSUM_AT = {TCP: 16, UDP: 6}
LOOSE_SOURCE_ROUTE, STRICT_SOURCE_ROUTE = 131, 137
ROUTING, DESTINATION_OPTIONS = 43, 60
TYPE_0, TYPE_2, SEGMENT_ROUTING = 0, 2, 4
HOME_ADDRESS = 0xC9


@dataclass(frozen=True)
class Virtio:
    """struct virtio_net_hdr, as it stands in front of a packet. `kind` is a name out of GSO_NAMES."""

    needs_csum: bool = False
    kind: str = "none"
    ecn: bool = False
    hdr_len: int = 0
    size: int = 0
    csum_start: int = 0
    csum_offset: int = 0

    def encode(self) -> bytes:
        kind = GSO_KINDS[self.kind] | (GSO_ECN if self.ecn else 0)
        flags = NEEDS_CSUM if self.needs_csum else 0
        return struct.pack("=BBHHHH", flags, kind, self.hdr_len, self.size, self.csum_start, self.csum_offset)

    @classmethod
    def decode(cls, data: bytes) -> "Virtio":
        flags, kind, hdr_len, size, start, offset = struct.unpack_from("=BBHHHH", data)
        assert flags in (0, NEEDS_CSUM)
        return cls(
            flags == NEEDS_CSUM, GSO_NAMES[kind & 0x7F], bool(kind & GSO_ECN), hdr_len, size, start, offset
        )


def internet_sum(data: bytes) -> int:
    """The ones' complement sum of 16-bit words (RFC 1071, section 1)."""
    words = array.array("H", data + b"\0" if len(data) % 2 else data)
    words.byteswap()
    total = sum(words)
    while total > 0xFFFF:
        total = (total >> 16) + (total & 0xFFFF)
    return total


def transport(packet: bytes) -> tuple[int, int]:
    """Protocol of a packet, and where its header starts. Walks over extension headers (RFC 8200, section 4)."""
    if packet[0] >> 4 == 4:
        return packet[9], (packet[0] & 15) * 4
    kind, start = packet[6], 40
    while kind in (0, 43, 60):
        kind, start = packet[start], start + 8 + packet[start + 1] * 8
    return kind, start


def options(data: bytes) -> list[bytes]:
    """The options in an IPv4 header, from type to data (RFC 791, section 3.1)."""
    found, at = [], 0
    while at < len(data) and data[at] != 0:
        length = 1 if data[at] == 1 else data[at + 1] if at + 1 < len(data) else 0
        if not length:
            break
        found.append(data[at : at + length])
        at += length
    return found


def ends4(packet: bytes) -> tuple[bytes, bytes]:
    """Where an IPv4 packet comes from, and where it ends: the last address of a source route not yet at its end."""
    for option in options(packet[20 : (packet[0] & 15) * 4]):
        is_route = option[0] in (LOOSE_SOURCE_ROUTE, STRICT_SOURCE_ROUTE) and len(option) >= 7
        if is_route and option[2] <= len(option):
            return packet[12:16], option[-4:]
    return packet[12:16], packet[16:20]


def ends6(packet: bytes) -> tuple[bytes, bytes]:
    """Where an IPv6 packet comes from, and where it ends.

    That is in a routing header with segments left (RFC 8200, 8.1; RFC 6275, 6.4; RFC 8754, 2: in reverse order), and in
    a Home Address option (RFC 6275, 11.3.2: the checksum is as if it were the source).
    """
    source, destination = packet[8:24], packet[24:40]
    kind, start = packet[6], 40
    while kind in (0, ROUTING, DESTINATION_OPTIONS):
        header = packet[start : start + 8 + packet[start + 1] * 8]
        if kind == ROUTING and header[3] and header[2] == TYPE_0:
            destination = header[-16:]
        elif kind == ROUTING and header[3] and header[2] in (TYPE_2, SEGMENT_ROUTING):
            destination = header[8:24]
        at = 2
        while kind == DESTINATION_OPTIONS and at < len(header):
            if header[at] == HOME_ADDRESS:
                source = header[at + 2 : at + 18]
            at += 1 if header[at] == 0 else 2 + header[at + 1]
        kind, start = header[0], start + len(header)
    return source, destination


def pseudo_header(packet: bytes, protocol: int, length: int) -> bytes:
    """RFC 9293, section 3.1, and RFC 8200, section 8.1."""
    if packet[0] >> 4 == 4:
        return b"".join(ends4(packet)) + struct.pack("!BBH", 0, protocol, length)
    return b"".join(ends6(packet)) + struct.pack("!II", length, protocol)


def with_sum_of_pseudo_header(packet: bytes) -> bytes:
    """The packet as a kernel hands it to a device that completes checksums."""
    protocol, start = transport(packet)
    at = start + CHECKSUM_AT[protocol]
    partial = internet_sum(pseudo_header(packet, protocol, len(packet) - start))
    return packet[:at] + partial.to_bytes(2) + packet[at + 2 :]


def complete(packet: bytes, start: int, offset: int) -> bytes:
    """What a device does with NEEDS_CSUM: sum up from `start`, and put the complement at `offset` from there."""
    checksum = internet_sum(packet[start:]) ^ 0xFFFF or 0xFFFF
    at = start + offset
    return packet[:at] + checksum.to_bytes(2) + packet[at + 2 :]


def has_right_checksums(packet: bytes) -> bool:
    """Whether a complete packet would be taken by any host."""
    protocol, start = transport(packet)
    if packet[0] >> 4 == 4:
        if internet_sum(packet[:start]) != 0xFFFF or int.from_bytes(packet[2:4]) != len(packet):
            return False
    elif int.from_bytes(packet[4:6]) != len(packet) - 40:
        return False
    if protocol not in CHECKSUM_AT:
        return True
    if protocol == UDP and int.from_bytes(packet[start + 4 : start + 6]) != len(packet) - start:
        return False
    return internet_sum(pseudo_header(packet, protocol, len(packet) - start) + packet[start:]) == 0xFFFF


def with_lengths(packet: bytes) -> bytes:
    """The packet with its lengths and its IPv4 header checksum set right; the transport checksum is left alone."""
    protocol, start = transport(packet)
    fixed = bytearray(packet)
    if packet[0] >> 4 == 4:
        struct.pack_into("!H", fixed, 2, len(packet))
        struct.pack_into("!H", fixed, 10, 0)
        struct.pack_into("!H", fixed, 10, internet_sum(bytes(fixed[:start])) ^ 0xFFFF)
    else:
        struct.pack_into("!H", fixed, 4, len(packet) - 40)
    if protocol == UDP:
        struct.pack_into("!H", fixed, start + 4, len(packet) - start)
    return bytes(fixed)


def segments(packet: bytes, size: int) -> list[bytes]:
    """The complete packets that a super-packet stands for, of `size` bytes of payload each."""
    protocol, start = transport(packet)
    begin = start + ((packet[start + 12] >> 4) * 4 if protocol == TCP else 8)
    chunks = [packet[at : at + size] for at in range(begin, len(packet), size)]
    made = []
    for index, chunk in enumerate(chunks):
        header = bytearray(packet[:begin])
        if packet[0] >> 4 == 4:
            struct.pack_into("!H", header, 4, (int.from_bytes(packet[4:6]) + index) % 0x10000)
        if protocol == TCP:
            sequence = int.from_bytes(packet[start + 4 : start + 8]) + index * size
            struct.pack_into("!I", header, start + 4, sequence % 0x100000000)
            if index < len(chunks) - 1:
                header[start + 13] &= 0xFF ^ (FIN | PSH)
            if index > 0:
                header[start + 13] &= 0xFF ^ CWR
        whole = with_sum_of_pseudo_header(with_lengths(bytes(header) + chunk))
        made.append(complete(whole, start, CHECKSUM_AT[protocol]))
    return made


def without_identification(packet: bytes) -> bytes:
    """RFC 6864, section 4.1: it has no meaning where fragments are forbidden."""
    if packet[0] >> 4 == 4 and packet[6:8] == b"\x40\x00":
        return packet[:4] + b"\0\0" + packet[6:10] + b"\0\0" + packet[12:]
    return packet


def understood(written: bytes) -> list[bytes]:
    """The packets that one write to a TUN device with IFF_VNET_HDR means. Fails where Linux would refuse it."""
    virtio, packet = Virtio.decode(written), written[10:]
    assert len(packet) <= 65535
    if not virtio.needs_csum:
        assert virtio == Virtio(), "nothing to be done means nothing else said"
        return [packet]
    assert virtio.csum_start + virtio.csum_offset + 2 <= len(packet)
    if virtio.kind == "none":
        assert replace(virtio, needs_csum=False, csum_start=0, csum_offset=0) == Virtio()
        return [complete(packet, virtio.csum_start, virtio.csum_offset)]
    protocol, start = transport(packet)
    assert virtio.csum_start == start
    assert virtio.csum_offset == CHECKSUM_AT[protocol]
    assert virtio.kind == ("udp" if protocol == UDP else f"tcp{packet[0] >> 4}")
    header = start + (8 if protocol == UDP else (packet[start + 12] >> 4) * 4)
    assert virtio.hdr_len == header
    assert 0 < virtio.size < len(packet) - header, "a super-packet has more than one segment"
    assert virtio.ecn == (protocol == TCP and bool(packet[start + 13] & CWR))
    assert with_lengths(packet) == packet
    # Sums that differ by 0xFFFF are equal; the field may hold either.
    assert (
        int.from_bytes(packet[start + virtio.csum_offset :][:2]) % 0xFFFF
        == int.from_bytes(with_sum_of_pseudo_header(packet)[start + virtio.csum_offset :][:2]) % 0xFFFF
    )
    return segments(packet, virtio.size)
