"""Complete datagrams of one flow, as a router takes them in: joined if their checksums are right, and only then."""

import struct

import pytest
from hypothesis import given, strategies as st

from dtun.protocol.trains import MAX_COMPLETE, Train
from tests.unit.protocol import segmenter
from tests.unit.protocol.packets import Original, udp_flows, udp_header, unfinished
from tests.unit.protocol.segmenter import UDP, Virtio


def complete(original: Original) -> bytes:
    virtio = original.virtio
    return segmenter.complete(original.packet, virtio.csum_start, virtio.csum_offset)


def datagram(
    *, size: int = 100, version: int = 4, number: int = 1, source: int = 5000, fragments: bool = False
) -> bytes:
    """A complete datagram of one flow, or with one thing different."""
    if version == 4:
        flags = 0 if fragments else 0x4000
        ip = struct.pack("!BBHHHBBH", 0x45, 0, 0, number, flags, 64, UDP, 0) + bytes(
            (10, 0, 0, 1, 10, 0, 0, 2)
        )
    else:
        ip = struct.pack("!IHBB", 6 << 28, 0, UDP, 64) + bytes(15) + b"\x01" + bytes(15) + b"\x02"
    packet = unfinished(ip + udp_header(source), bytes([number]) * size)
    return segmenter.complete(packet, len(ip), 6)


def joined(packets: list[bytes]) -> tuple[int, bytes]:
    """How many of these make a train, and what is written for it."""
    train = Train.begin_complete(packets[0])
    assert train is not None
    count = 1
    while count < len(packets) and train.extend(packets[count]):
        count += 1
    assert train.packets == count
    return count, b"".join(train.finish())


def meaning(written: bytes) -> list[bytes]:
    virtio, packet = Virtio.decode(written), written[10:]
    if virtio.kind == "none":
        assert virtio == Virtio(), "nothing is left to do"
        return [packet]
    assert (virtio.kind, virtio.csum_offset) == ("udp", 6)
    assert virtio.hdr_len == virtio.csum_start + 8
    assert packet == segmenter.with_sum_of_pseudo_header(packet)
    return segmenter.segments(packet, virtio.size)


@given(udp_flows())
def test_a_flow_becomes_one_super_packet_and_means_the_same(flow: list[Original]) -> None:
    packets = [complete(original) for original in flow]
    if Train.begin_complete(packets[0]) is None:
        if len(packets[0]) > MAX_COMPLETE:
            return
        empty = len(packets[0]) == flow[0].virtio.csum_start + 8
        assert empty or (packets[0][0] >> 4 == 4 and packets[0][0:1] + packets[0][6:8] != b"\x45\x40\x00")
        return
    count, written = joined(packets)
    expected = [segmenter.without_identification(packet) for packet in packets[:count]]
    assert [segmenter.without_identification(packet) for packet in meaning(written)] == expected


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("size", [1, 2, 63, 64, 551, 552])
def test_sixty_four_of_one_size_and_a_shorter_last_one_go_together(version: int, size: int) -> None:
    packets = [datagram(size=size, version=version, number=number) for number in range(70)]
    assert joined(packets)[0] == 64
    shorter = datagram(size=size - 1, version=version)
    assert joined([packets[0], packets[1], shorter, packets[2]])[0] == (3 if size > 1 else 2)


@pytest.mark.parametrize("version", [4, 6])
def test_what_a_router_or_a_bad_memory_has_damaged_is_not_mended(version: int) -> None:
    """Every bit of it: the far host is to notice, as without a tunnel."""
    good, length = datagram(version=version), len(datagram(version=version))
    for at in range(length):
        for bit in range(8):
            bad = bytearray(datagram(version=version, number=2))
            bad[at] ^= 1 << bit
            for first, second in ((good, bytes(bad)), (bytes(bad), good)):
                train = Train.begin_complete(first)
                if train is None:
                    continue
                taken = train.extend(second)
                # Of the header of IPv6 only the lengths are covered by anything, and what differs is not alike.
                assert not taken, (at, bit)
                assert b"".join(train.finish()) == bytes(10) + first


def balanced(packet: bytes, start: int) -> bytes:
    """With the last two bytes such that the checksums come out right, whatever else is in there."""
    header = packet[:10] + b"\0\0" + packet[12:start]
    header = header[:10] + (segmenter.internet_sum(header) ^ 0xFFFF).to_bytes(2) + header[12:]
    packet = header + packet[start:-2] + b"\0\0"
    pseudo_header = packet[12:20] + struct.pack("!HH", UDP, len(packet) - start)
    rest = segmenter.internet_sum(pseudo_header + packet[start:]) ^ 0xFFFF
    return packet[:-2] + rest.to_bytes(2)


def test_nothing_that_differs_is_joined() -> None:
    good = datagram(number=2)
    others = {
        "version": datagram(version=6),
        "port": datagram(source=5001),
        "fragments allowed": datagram(fragments=True),
        "longer": datagram(size=101),
        "empty": datagram(size=0),
        "no checksum": balanced(good[:26] + b"\0\0" + good[28:], 20),
        "length of IP": balanced(good[:2] + b"\0\x7f" + good[4:], 20),
        "length of UDP": balanced(good[:24] + b"\0\x6b" + good[26:], 20),
    }
    train = Train.begin_complete(datagram())
    assert train is not None
    assert {name for name, other in others.items() if train.extend(other)} == set()
    assert train.extend(balanced(good, 20)), "it is not how they are made"
    assert Train.begin_complete(datagram(size=572)) is not None
    assert Train.begin_complete(datagram(size=573)) is None, "not worth it"
    for name in ("fragments allowed", "empty"):
        assert Train.begin_complete(others[name]) is None


@given(
    st.one_of(st.binary(max_size=60), st.builds(lambda rest: datagram()[:20] + rest, st.binary(max_size=60)))
)
def test_whatever_comes_is_no_train_or_is_written_as_it_came(data: bytes) -> None:
    train = Train.begin_complete(data)
    if train is not None:
        train.extend(data)
        if train.packets == 1:
            assert b"".join(train.finish()) == bytes(10) + data
