"""Super-packets: what is cut, lost, joined and written means exactly the packets that it was before."""

import struct
from collections.abc import Callable

import pytest
from hypothesis import given, strategies as st

from dtun.protocol.segments import HEADER_SIZE, MAX_SEGMENTS, PARTIAL, SEGMENT, Run, cut, partial, whole
from dtun.protocol.trains import Train
from tests.unit.protocol import segmenter
from tests.unit.protocol.packets import (
    Original,
    extended_packets,
    home,
    ip_headers,
    padded,
    routing,
    single_packets,
    source_routed_packets,
    super_packets,
    udp_flows,
    udp_header,
    unfinished,
    with_source_route,
)
from tests.unit.protocol.segmenter import ACK, CWR, FIN, PSH, TCP, UDP, Virtio


def frames_of(original: Original) -> list[bytes]:
    virtio = original.virtio
    return cut(original.packet, virtio.csum_start, virtio.csum_offset, virtio.size)


def run_of(frames: list[bytes]) -> Run:
    """The run that these frames make, every one of them."""
    run = Run.begin(frames[0])
    assert run is not None
    for frame in frames[1:]:
        assert run.extend(frame)
    assert run.packets == len(frames)
    return run


def written(pieces: list[bytes]) -> list[bytes]:
    return segmenter.understood(b"".join(pieces))


def tcp_over(ip: bytes, flags: int, body: bytes) -> Original:
    tcp = struct.pack("!HHIIBBHHH", 443, 50000, 0xFFFFFF00, 1, 0x50, flags, 500, 0, 0)
    kind = f"tcp{ip[0] >> 4}"
    virtio = Virtio(True, kind, bool(flags & CWR), len(ip) + 20, 100, len(ip), 16)
    return Original(virtio, unfinished(ip + tcp, body))


IPV4 = struct.pack("!BBHHHBBH", 0x45, 0, 0, 0xFFFF, 0x4000, 64, TCP, 0) + bytes((10, 0, 0, 1, 10, 0, 0, 2))
IPV6 = struct.pack("!IHBB", 6 << 28, 0, TCP, 64) + bytes(15) + b"\1" + bytes(15) + b"\2"
either_version = pytest.mark.parametrize("ip", [IPV4, IPV6], ids=["IPv4", "IPv6"])


@given(st.one_of(super_packets(max_segments=MAX_SEGMENTS), source_routed_packets(MAX_SEGMENTS)))
def test_a_super_packet_that_arrives_whole_is_written_as_it_was_read(original: Original) -> None:
    assert b"".join(run_of(frames_of(original)).finish()) == original.read


@given(st.one_of(super_packets(max_segments=20), source_routed_packets(20)), st.data())
def test_any_part_of_a_super_packet_means_the_same_segments(original: Original, data: st.DataObject) -> None:
    frames = frames_of(original)
    first = data.draw(st.integers(0, len(frames) - 1))
    end = data.draw(st.integers(first + 1, len(frames)))
    assert written(run_of(frames[first:end]).finish()) == original.meaning[first:end]


@given(super_packets())
def test_a_frame_is_no_larger_than_its_segment_and_the_header(original: Original) -> None:
    frames, meaning = frames_of(original), original.meaning
    assert [len(frame) for frame in frames] == [HEADER_SIZE + len(segment) for segment in meaning]
    assert {frame[0] for frame in frames} == {SEGMENT if len(meaning) <= MAX_SEGMENTS else PARTIAL}


@either_version
def test_fin_and_push_end_the_last_segment_and_cwr_is_in_the_first(ip: bytes) -> None:
    frames = frames_of(tcp_over(ip, ACK | FIN | PSH | CWR, bytes(350)))
    start = len(ip)

    def flags(part: list[bytes]) -> list[int]:
        return [segment[start + 13] for segment in written(run_of(part).finish())]

    assert flags(frames) == [ACK | CWR, ACK, ACK, ACK | FIN | PSH]
    assert flags(frames[1:3]) == [ACK, ACK]
    assert flags(frames[:1]) == [ACK | CWR]
    assert flags(frames[3:]) == [ACK | FIN | PSH]


@either_version
def test_sequence_numbers_and_identifications_wrap_around(ip: bytes) -> None:
    frames = frames_of(tcp_over(ip, ACK, bytes(400)))
    segments = written(run_of(frames[1:]).finish())
    start = len(ip)
    numbers = [int.from_bytes(segment[start + 4 : start + 8]) for segment in segments]
    assert numbers == [0xFFFFFF64, 0xFFFFFFC8, 0x2C]
    if ip is IPV4:
        assert [int.from_bytes(segment[4:6]) for segment in segments] == [0, 1, 2]


def written_each(frames: list[bytes]) -> list[bytes]:
    """What PARTIAL frames are written as."""
    assert {frame[0] for frame in frames} == {PARTIAL}
    pieces = [whole(frame) for frame in frames]
    return [one for some in pieces if some for one in written(some)]


@given(st.one_of(extended_packets(TCP), extended_packets(UDP)))
def test_behind_extension_headers_a_super_packet_goes_as_complete_packets(original: Original) -> None:
    assert written_each(frames_of(original)) == original.meaning


def test_a_super_packet_of_too_many_segments_goes_as_complete_packets() -> None:
    ip = with_source_route(IPV4, segmenter.LOOSE_SOURCE_ROUTE, [bytes((10, 9, 9, 9))], 0)
    original = tcp_over(ip, ACK | FIN | CWR, bytes(100 * MAX_SEGMENTS + 1))
    assert written_each(frames_of(original)) == original.meaning


FINAL4 = bytes((10, 7, 7, 7))
FINAL6, HOME = bytes(14) + b"\x70\x07", bytes(14) + b"\x60\x06"


def behind(first: int, extensions: bytes) -> bytes:
    return IPV6[:6] + bytes([first]) + IPV6[7:] + extensions


def route(kind: int, left: int, addresses: list[bytes]) -> bytes:
    return behind(segmenter.ROUTING, routing(TCP, kind, left, addresses))


@pytest.mark.parametrize(
    ("ip", "source", "destination"),
    [
        (with_source_route(IPV4, 131, [bytes(4), FINAL4], 0), IPV4[12:16], FINAL4),
        (with_source_route(IPV4, 131, [bytes(4), FINAL4], 1), IPV4[12:16], FINAL4),
        (with_source_route(IPV4, 131, [bytes(4), FINAL4], 2), IPV4[12:16], IPV4[16:20]),
        (with_source_route(IPV4, 137, [bytes(4), FINAL4], 0), IPV4[12:16], FINAL4),
        (route(0, 2, [bytes(16), FINAL6]), IPV6[8:24], FINAL6),
        (route(2, 1, [FINAL6]), IPV6[8:24], FINAL6),
        (route(2, 0, [FINAL6]), IPV6[8:24], IPV6[24:40]),
        (route(4, 1, [FINAL6, IPV6[24:40]]), IPV6[8:24], FINAL6),
        (route(4, 1, [FINAL6]), IPV6[8:24], FINAL6),
        (route(4, 0, [FINAL6, bytes(16)]), IPV6[8:24], IPV6[24:40]),
        (behind(60, home(TCP, HOME)), HOME, IPV6[24:40]),
        (behind(60, padded(43, 2) + routing(60, 4, 1, [FINAL6]) + home(TCP, HOME)), HOME, FINAL6),
    ],
    ids=[
        "loose source route",
        "loose source route on its way",
        "loose source route at its end",
        "strict source route",
        "type 0",
        "type 2",
        "type 2 at its end",
        "segment routing",
        "segment routing, reduced",
        "segment routing at its end",
        "home address",
        "all of them",
    ],
)
def test_segments_have_the_checksum_that_their_last_stop_expects(
    ip: bytes, source: bytes, destination: bytes
) -> None:
    """There, and for the checksum, it is as if both addresses had been in the IP header all the way."""
    original = tcp_over(ip, ACK, bytes(range(250)))
    frames = frames_of(original)
    segments = written_each(frames) if frames[0][0] == PARTIAL else written(run_of(frames[1:]).finish())
    assert len(segments) >= 2
    for segment in segments:
        tcp = segment[len(ip) :]
        ends = source + destination + struct.pack("!HH", TCP, len(tcp))
        assert segmenter.internet_sum(ends + tcp) == 0xFFFF


@pytest.mark.parametrize("header", [b"", udp_header()], ids=["TCP", "UDP"])
@pytest.mark.parametrize("length", [100, 200, 250, 350])
@pytest.mark.parametrize("zero", [0, 0xFFFF])
@either_version
def test_either_zero_is_the_start_of_a_sum(ip: bytes, length: int, zero: int, header: bytes) -> None:
    """The sum of a pseudo-header may be zero before the length changes, or after: it never means "no checksum"."""
    protocol, size = (UDP, 8) if header else (TCP, 20)
    ip = ip[:9] + bytes([protocol]) + ip[10:] if ip is IPV4 else ip[:6] + bytes([protocol]) + ip[7:]
    # The sum is zero for a packet of this length: that of all, of one segment, of a run, of the last segment.
    rest = segmenter.internet_sum(segmenter.pseudo_header(ip[:-2] + bytes(2), protocol, size + length))
    ip = ip[:-2] + (0xFFFF - rest).to_bytes(2)
    original = tcp_over(ip, ACK, bytes(range(250)) + bytes(100))
    if header:
        virtio = Virtio(True, "udp", False, len(ip) + 8, 100, len(ip), 6)
        original = Original(virtio, unfinished(ip + header, bytes(range(250)) + bytes(100)))
    at = len(ip) + original.virtio.csum_offset
    if length == 350:
        assert original.packet[at : at + 2] == b"\xff\xff"
        original.packet = original.packet[:at] + zero.to_bytes(2) + original.packet[at + 2 :]
    frames, meaning = frames_of(original), original.meaning
    for first in range(4):
        for end in range(first + 1, 5):
            assert written(run_of(frames[first:end]).finish()) == meaning[first:end]


@given(super_packets(20, (UDP,)), st.integers(0, 0xFFFF))
def test_the_sum_of_a_udp_packet_is_of_the_length_in_its_udp_header(original: Original, stated: int) -> None:
    """A virtual machine may state any; a kernel goes by this one (__udp_gso_segment), whatever the IP header says."""
    packet, start = original.packet, original.virtio.csum_start
    ends = segmenter.internet_sum(segmenter.pseudo_header(packet, UDP, stated)).to_bytes(2)
    original.packet = packet[: start + 4] + stated.to_bytes(2) + ends + packet[start + 8 :]
    assert (
        written(run_of(frames_of(original)[1:]).finish())
        == segmenter.segments(packet, original.virtio.size)[1:]
    )


@either_version
def test_lengths_that_nobody_would_state_harm_nothing(ip: bytes) -> None:
    original = tcp_over(ip, ACK, bytes(range(250)))
    at = 2 if ip is IPV4 else 4
    for stated in (0, 1, len(ip), 0xFFFF):
        for field in (0, 1, 0xFFFF):
            packet = bytearray(original.packet)
            packet[at : at + 2] = stated.to_bytes(2)
            packet[len(ip) + 16 : len(ip) + 18] = field.to_bytes(2)
            pieces = run_of(frames_of(Original(original.virtio, bytes(packet)))).finish()
            joined = b"".join(pieces)[10:]
            assert joined[: len(ip) + 16] == original.packet[: len(ip) + 16]
            assert joined[len(ip) + 18 :] == original.packet[len(ip) + 18 :]


def test_what_is_called_another_protocol_than_its_header_says_is_cut_without_harm() -> None:
    original = tcp_over(IPV4, ACK, bytes(range(250)))
    assert len(cut(original.packet, 20, 6, 1)) > MAX_SEGMENTS


@pytest.mark.parametrize("missing", ["a slice", "the first", "the order"])
def test_a_run_takes_the_next_slice_and_no_other(missing: str) -> None:
    frames = frames_of(tcp_over(IPV4, ACK, bytes(500)))
    run = run_of(frames[:2])
    other = {"a slice": frames[3], "the first": frames[0], "the order": frames[1]}[missing]
    assert not run.extend(other)
    assert run.extend(frames[2])


def test_a_run_takes_nothing_after_the_last_slice_and_none_of_another_packet() -> None:
    frames = frames_of(tcp_over(IPV4, ACK, bytes(300)))
    others = frames_of(tcp_over(IPV4, ACK | PSH, bytes(300)))
    run = run_of(frames[:1])
    assert not run.extend(others[1])
    assert run.extend(frames[1])
    assert run.extend(frames[2])
    assert not run.extend(b"\x03\x03" + frames[2][2:])


@either_version
def test_a_run_takes_no_slice_whose_headers_or_size_differ_in_any_bit(ip: bytes) -> None:
    frames = frames_of(tcp_over(ip, ACK, bytes(300)))
    run = run_of(frames[:1])
    for position in range(2, HEADER_SIZE + len(ip) + 20):
        changed = bytearray(frames[1])
        changed[position] ^= 1
        assert not run.extend(bytes(changed)), position
    assert run.extend(frames[1])


@either_version
def test_a_tcp_header_that_claims_to_be_shorter_than_it_can_be_is_not_understood(ip: bytes) -> None:
    original = tcp_over(ip, ACK, bytes(300))
    at = len(ip) + 12
    for words in range(5):
        packet = original.packet[:at] + bytes([words << 4]) + original.packet[at + 1 :]
        assert frames_of(Original(original.virtio, packet)) == []
        frame = frames_of(original)[0]
        assert Run.begin(frame[: 4 + at] + bytes([words << 4]) + frame[5 + at :]) is None


def test_only_the_last_slice_may_be_short() -> None:
    frames = frames_of(tcp_over(IPV4, ACK, bytes(250)))
    run = run_of(frames[:1])
    assert not run.extend(frames[1][:-1])
    short = bytearray(frames[0][:-1])
    assert Run.begin(bytes(short)) is None
    short[1] |= 0x80
    assert Run.begin(bytes(short)) is not None


def test_a_header_whose_sum_is_zero_has_the_checksum_that_a_kernel_writes() -> None:
    """There are two zeroes in ones' complement (RFC 1071): the sum of a header is never the positive one."""
    original = tcp_over(IPV4, ACK, bytes(300))
    frames = frames_of(original)
    first = segmenter.segments(original.packet, 100)[0]
    # Move the sum to 0xFFFF by way of the identification: then the checksum is 0.
    identification = (0xFFFF + int.from_bytes(first[10:12])) % 0xFFFF
    packet = segmenter.with_lengths(original.packet[:4] + identification.to_bytes(2) + original.packet[6:])
    zero = Original(original.virtio, packet)
    assert zero.meaning[0][10:12] == b"\0\0"
    assert frames_of(zero) != frames
    assert written(run_of(frames_of(zero)[:1]).finish()) == zero.meaning[:1]


@given(super_packets(max_segments=6), st.binary(max_size=6))
def test_a_slice_of_another_length_is_not_taken(original: Original, junk: bytes) -> None:
    frames = frames_of(original)
    longer = frames[0] + junk
    if junk:
        assert Run.begin(longer) is None
    assert not run_of(frames[:1]).extend(frames[1] + junk + bytes(original.virtio.size))
    assert Run.begin(frames[0][: -original.virtio.size]) is None, "an empty slice"


def test_a_run_is_never_longer_than_an_ip_packet() -> None:
    frames = frames_of(tcp_over(IPV4, ACK, bytes(200)))
    size = 1000
    run = Run.begin(frames[0][:2] + size.to_bytes(2) + frames[0][4:-100] + bytes(size))
    assert run is not None
    taken = 1
    while run.extend(bytes((SEGMENT, taken)) + size.to_bytes(2) + frames[0][4:-100] + bytes(size)):
        taken += 1
    assert taken == 65 == run.packets
    assert len(b"".join(run.finish())) <= 10 + 65535


@given(udp_flows())
def test_datagrams_of_a_flow_become_one_super_packet_and_mean_the_same(flow: list[Original]) -> None:
    frames = [partial(one.packet, one.virtio.csum_start, 6) for one in flow]
    train = Train.begin(frames[0])
    if train is None:
        ip = flow[0].packet
        assert len(ip) == flow[0].virtio.csum_start + 8 or (
            ip[0] >> 4 == 4 and (ip[0], ip[6]) != (0x45, 0x40)
        )
        return
    count = 1
    while count < len(frames) and train.extend(frames[count]):
        count += 1
    assert count == train.packets <= 64
    expected = [segmenter.without_identification(segment) for one in flow[:count] for segment in one.meaning]
    assert [segmenter.without_identification(segment) for segment in written(train.finish())] == expected
    if count < min(len(flow), 64):
        lengths = [len(one.packet) for one in flow]
        ended = lengths[count - 1] < lengths[0]
        differs = lengths[count] > lengths[0] or flow[count].ports != flow[0].ports
        assert ended or differs or sum(lengths[: count + 1]) > 65535 or is_empty(flow[count])


def is_empty(datagram: Original) -> bool:
    return len(datagram.packet) == datagram.virtio.csum_start + 8


def test_a_train_joins_nothing_that_differs_in_its_headers() -> None:
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 0, 1, 0x4000, 64, UDP, 0) + bytes((10, 0, 0, 1, 10, 0, 0, 2))

    def frame(header: bytes, source: int = 5000) -> bytes:
        return partial(unfinished(header + udp_header(source), bytes(100)), 20, 6)

    def changed(position: int, value: int) -> bytes:
        return ip[:position] + bytes([value]) + ip[position + 1 :]

    train = Train.begin(frame(ip))
    assert train is not None
    others = {
        "traffic class": frame(changed(1, 3)),
        "fragments allowed": frame(changed(6, 0)),
        "hop limit": frame(changed(8, 63)),
        "source": frame(changed(15, 9)),
        "destination": frame(changed(19, 9)),
        "port": frame(ip, 5001),
        "protocol": frame(changed(9, TCP)),
        "where the checksum is": frame(ip)[:3] + b"\x07" + frame(ip)[4:],
        "empty": partial(unfinished(ip + udp_header(), b""), 20, 6),
    }
    assert {name for name, other in others.items() if train.extend(other)} == set()
    assert train.extend(frame(changed(5, 2)))
    assert Train.begin(others["fragments allowed"]) is None
    assert Train.begin(others["protocol"]) is None


@given(single_packets())
def test_a_packet_without_its_checksum_is_written_as_it_was_read(original: Original) -> None:
    virtio = original.virtio
    if virtio.needs_csum:
        pieces = whole(partial(original.packet, virtio.csum_start, virtio.csum_offset))
        assert pieces is not None
        assert b"".join(pieces) == original.read


POSITIONS = st.one_of(st.integers(0, 80), st.integers(0, 0xFFFF))


@given(st.one_of(ip_headers(UDP), ip_headers(TCP)), POSITIONS, st.integers(0, 0xFF))
def test_no_checksum_is_ever_put_into_an_ip_header(ip: bytes, start: int, offset: int) -> None:
    """A kernel that sends the packet on would else change the source address, after it was checked."""
    packet = unfinished(
        ip + (bytes(20) if ip[9 if ip[0] >> 4 == 4 else 6] == TCP else udp_header()), b"payload"
    )
    pieces = whole(partial(packet, start, offset))
    inside = len(ip) <= start and start + offset + 2 <= len(packet)
    assert (pieces is not None) == inside
    if pieces is not None:
        assert written(pieces)[0][: len(ip)] == ip[:2] + packet[2 : len(ip)]


mutations = st.lists(st.tuples(st.integers(0, 80), st.integers(0, 255)), max_size=4)


@given(
    st.one_of(super_packets(max_segments=4), extended_packets(), source_routed_packets(4)),
    mutations,
    st.integers(0, 120),
    st.data(),
)
def test_no_bytes_make_a_run_a_train_or_a_packet_raise(
    original: Original, changes: list[tuple[int, int]], shortened: int, data: st.DataObject
) -> None:
    frames = frames_of(original)
    frame = bytearray(data.draw(st.sampled_from(frames)))
    for position, value in changes:
        frame[min(position, len(frame) - 1)] = value
    bad = bytes(frame[: max(0, len(frame) - shortened)] if data.draw(st.booleans()) else frame[:shortened])
    for begin in (Run.begin, Train.begin):
        begun: Run | Train | None = begin(bad)
        if begun is not None:
            begun.extend(data.draw(st.sampled_from((bad, bad[:3], bad[:1], frames[-1]))) or bad)
            assert len(b"".join(begun.finish())) <= 10 + 65535
    whole(bad)
    good = Run.begin(frames[0])
    if good is not None:
        good.extend(bad or b"\x03")


@given(
    st.binary(max_size=200), st.integers(0, 0xFFFF), st.sampled_from((6, 16, 0, 300)), st.integers(0, 0xFFFF)
)
def test_whatever_a_kernel_calls_a_super_packet_is_cut_or_not_without_harm(
    packet: bytes, start: int, offset: int, size: int
) -> None:
    """A virtual machine writes its own virtio headers, and its host's kernel may pass them on."""
    for version in (b"", b"\x45", b"\x60"):
        for at in (start, start % 60, 20, 40):
            for frame in cut(version + packet, at, offset, size):
                assert len(frame) <= HEADER_SIZE + len(packet) + 1


damages = st.sampled_from(
    [
        lambda frame: frame[:-1],  # shorter
        lambda frame: frame + b"x",  # longer
        lambda frame: frame[:1] + bytes([frame[1] ^ 0x80]) + frame[2:],  # last
        lambda frame: frame[:1] + bytes([frame[1] ^ 1]) + frame[2:],  # another index
        lambda frame: frame[:10] + bytes([frame[10] ^ 1]) + frame[11:],  # another header
        lambda frame: bytes([PARTIAL]) + frame[1:],  # another kind
        lambda _frame: b"",  # nothing
    ]
)


@given(super_packets(max_segments=128), st.lists(st.tuples(st.integers(0, 127), damages), max_size=2))
def test_slices_taken_in_one_go_are_those_taken_one_by_one(
    original: Original, faults: list[tuple[int, Callable[[bytes], bytes]]]
) -> None:
    frames = frames_of(original)
    for position, damage in faults:
        if 0 < position < len(frames):
            frames[position] = damage(frames[position])
    assert in_one_go(frames) == one_by_one(frames)


def test_a_run_taken_in_one_go_is_no_larger_than_a_packet_can_be() -> None:
    first = frames_of(tcp_over(IPV4, ACK, bytes(200)))[0]
    headers, size = first[4:44], 9000
    frames = [bytes([SEGMENT, index]) + size.to_bytes(2) + headers + bytes(size) for index in range(9)]
    taken, run = in_one_go(frames)
    assert (taken, run) == one_by_one(frames)
    assert taken == 65535 // size


def one_by_one(frames: list[bytes]) -> tuple[int, list[bytes]]:
    """How many frames a run takes, and what it is then."""
    run = Run.begin(frames[0])
    assert run is not None
    taken = 1
    while taken < len(frames) and run.extend(frames[taken]):
        taken += 1
    assert run.packets == taken
    return taken, run.finish()


def in_one_go(frames: list[bytes]) -> tuple[int, list[bytes]]:
    run = Run.begin(frames[0])
    assert run is not None
    taken = 1 + run.extend_many(frames, 1)
    while taken < len(frames) and run.extend(frames[taken]):
        taken += 1
    assert run.packets == taken
    return taken, run.finish()
