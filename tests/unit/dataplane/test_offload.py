"""Super-packets over a bad network, between two devices: what comes out is what was sent, as far as it arrived."""

import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from unittest import mock

import pytest
from hypothesis import given, strategies as st

from dtun.dataplane.device import Accepts, Counters
from dtun.dataplane.offload import OffloadDevice, device_for
from dtun.protocol.segments import PARTIAL, SEGMENT, partial
from tests.unit.protocol import segmenter
from tests.unit.protocol.packets import (
    ADDRESSES4,
    ADDRESSES6,
    Original,
    arrivals,
    extended_packets,
    single_packets,
    super_packets,
    traffic,
    udp_flows,
    udp_header,
    unfinished,
)
from tests.unit.protocol.segmenter import UDP, Virtio

TUN = os.open(os.devnull, os.O_RDWR)
"""A descriptor of nothing: the system calls below stand in for the kernel."""


class KernelTun:
    """A TUN device of a Linux that knows all offloads: hands out what is in `queue`, and keeps what is `written`."""

    vnet_header = True
    family_header = False

    def __init__(self, *, trains: bool = True) -> None:
        self.offloads = frozenset({"segments", "udp-segments"} if trains else {"segments"})
        self.enabled_offloads = self.offloads
        self.queue: list[bytes] = []
        self.written: list[bytes] = []
        self.refusal: OSError | None = None

    def fileno(self) -> int:
        return TUN

    def read(self, size: int) -> bytes | None:
        return self.queue.pop(0)[:size] if self.queue else None

    def write(self, descriptor: int, packet: bytes) -> int:
        return self.writev(descriptor, (packet,))

    def writev(self, descriptor: int, pieces: Sequence[bytes]) -> int:
        assert descriptor == TUN
        if self.refusal is not None:
            raise self.refusal
        self.written.append(b"".join(pieces))
        return len(self.written[-1])

    @contextmanager
    def system_calls(self) -> Iterator[None]:
        """Go to this kernel."""
        with (
            mock.patch.object(os, "write", self.write),
            mock.patch.object(os, "writev", self.writev),
            mock.patch("dtun.dataplane.offload.reader", return_value=self),
        ):
            yield


class Tun:
    """An OffloadDevice on a kernel of the test's own."""

    def __init__(self, *, trains: bool = True) -> None:
        self.counters = Counters()
        self.kernel = KernelTun(trains=trains)
        with self.kernel.system_calls():
            self.device = OffloadDevice(self.kernel, self.counters)
        self.written = self.kernel.written

    def read(self, original: Original) -> Sequence[bytes]:
        self.kernel.queue.append(original.read)
        frames = self.device.read()
        assert frames is not None
        return frames

    def deliver(
        self, frames: Sequence[bytes], accepts: Accepts = lambda _frame, _start: True, *, batch: int = 1000
    ) -> Sequence[bytes]:
        """All of these in one turn, in so many at once."""
        others: list[bytes] = []
        with self.kernel.system_calls():
            for start in range(0, len(frames), batch):
                others += self.device.deliver(frames[start : start + batch], accepts)
            self.device.flush()
        return others

    def meaning(self) -> list[bytes]:
        """The packets that came out, one by one."""
        return [packet for write in self.written for packet in segmenter.understood(write)]


def atomic(packet: bytes) -> bytes:
    """Without the identification where it has no meaning, since fragments are forbidden (RFC 6864, section 4.1)."""
    if packet[0] == 0x45 and packet[6:8] == b"\x40\x00" and packet[9] == segmenter.UDP:
        return packet[:4] + b"\0\0" + packet[6:10] + b"\0\0" + packet[12:]
    return packet


@given(traffic, st.booleans(), st.data())
def test_any_loss_doubling_and_reordering_costs_the_lost_segments_and_nothing_else(
    originals: list[Original], trains: bool, data: st.DataObject
) -> None:
    sender, receiver = Tun(), Tun(trains=trains)
    frames: list[bytes] = []
    expected: list[bytes] = []
    for original in originals:
        read = sender.read(original)
        assert len(read) == len(original.meaning)
        frames += read
        # Only datagrams that came one by one may have got another identification, by being joined.
        expected += [p if f[0] == SEGMENT else atomic(p) for f, p in zip(read, original.meaning, strict=True)]
    order = data.draw(arrivals(len(frames)))
    turn, batch = data.draw(st.sampled_from((1, 7, 64, 200))), data.draw(st.sampled_from((1, 3, 64)))
    for start in range(0, len(order), turn):
        came_now = [frames[index] for index in order[start : start + turn]]
        assert receiver.deliver(came_now, batch=batch) == []
    came = receiver.meaning()
    assert len(came) == len(order)
    for packet, index in zip(came, order, strict=True):
        assert (packet if frames[index][0] == SEGMENT else atomic(packet)) == expected[index]
        assert segmenter.has_right_checksums(packet) or packet[9 if packet[0] >> 4 == 4 else 6] == 60
    assert not receiver.counters.drops
    assert not sender.counters.drops
    assert sender.counters.tx_packets == len(frames)
    assert receiver.counters.rx_packets == len(order)
    assert receiver.counters.rx_bytes == sum(len(write) - 10 for write in receiver.written)


@given(st.lists(super_packets(max_segments=128), min_size=1, max_size=4), st.integers(1, 128))
def test_over_a_good_network_every_write_is_what_was_read(originals: list[Original], batch: int) -> None:
    sender, receiver = Tun(), Tun()
    frames = [frame for original in originals for frame in sender.read(original)]
    receiver.deliver(frames, batch=batch)
    assert receiver.written == [original.read for original in originals]
    assert receiver.counters.rx_bytes == sender.counters.tx_bytes


@given(udp_flows())
def test_datagrams_of_one_flow_are_written_together_where_the_kernel_takes_that(flow: list[Original]) -> None:
    sender, joining, plain = Tun(), Tun(), Tun(trains=False)
    frames = [frame for original in flow for frame in sender.read(original)]
    joining.deliver(frames)
    plain.deliver(frames)
    assert plain.written == [original.read for original in flow]
    sizes = {len(original.packet) for original in flow}
    alike = len(sizes) == 1 and len({original.ports for original in flow}) == 1
    if alike and joining.written[0][1] and len(flow) * max(sizes) < 65535:
        assert len(joining.written) == -(-len(flow) // 64)


@pytest.mark.parametrize("complete", [True, False], ids=["complete", "without checksums"])
@pytest.mark.parametrize("trains", [True, False], ids=["joins", "one by one"])
def test_datagrams_that_come_in_two_batches_are_one_write(complete: bool, trains: bool) -> None:
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 0, 7, 0x4000, 64, UDP, 0) + ADDRESSES4[1] + ADDRESSES4[0]
    packets = [unfinished(ip + udp_header(), bytes([number]) * 100) for number in range(40)]
    if complete:
        packets = frames = [segmenter.complete(packet, 20, 6) for packet in packets]
    else:
        frames = [partial(packet, 20, 6) for packet in packets]
    asked = []

    def accepts(frame: bytes, start: int) -> bool:
        asked.append(frame[start:])
        return True

    tun = Tun(trains=trains)
    assert tun.deliver(frames, accepts, batch=30) == []
    assert len(tun.written) == (1 if trains else 40)
    assert asked[0] == packets[0]
    assert tun.counters.rx_packets == 40
    assert [atomic(packet) for packet in tun.meaning()] == [
        atomic(packet if complete else segmenter.complete(packet, 20, 6)) for packet in packets
    ]


def test_a_complete_datagram_from_a_source_that_is_not_accepted_is_not_written() -> None:
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 0, 7, 0x4000, 64, UDP, 0) + ADDRESSES4[1] + ADDRESSES4[0]
    packet = segmenter.complete(unfinished(ip + udp_header(), bytes(100)), 20, 6)
    tun = Tun()
    tun.deliver([packet, packet, packet], lambda *_: False)
    assert tun.written == []


@given(extended_packets())
def test_checksums_are_found_behind_any_length_of_extension_headers(original: Original) -> None:
    sender, receiver = Tun(), Tun()
    frames = sender.read(original)
    receiver.deliver(frames)
    assert receiver.meaning() == original.meaning
    receiver.written.clear()
    virtio = Virtio(needs_csum=True, csum_start=original.virtio.csum_start, csum_offset=16)
    single = Original(virtio, original.packet)
    receiver.deliver(sender.read(single))
    assert receiver.written == [single.read]


@given(st.lists(st.one_of(super_packets(max_segments=4), single_packets()), min_size=1, max_size=6))
def test_packets_from_a_source_that_is_not_accepted_are_never_written(originals: list[Original]) -> None:
    sender, receiver = Tun(), Tun()
    good = {ADDRESSES4[1], ADDRESSES6[1]}
    asked = []

    def source(packet: bytes) -> bytes:
        return packet[12:16] if packet[0] >> 4 == 4 else packet[8:24]

    def accepts(frame: bytes, start: int) -> bool:
        asked.append(frame)
        return source(frame[start:]) in good

    receiver.deliver([frame for original in originals for frame in sender.read(original)], accepts)
    expected = [packet for original in originals for packet in original.meaning if source(packet) in good]
    assert [atomic(packet) for packet in receiver.meaning()] == [atomic(packet) for packet in expected]
    assert asked


@given(super_packets(max_segments=3), st.data())
def test_frames_of_other_kinds_come_back_in_order_and_between_packets(
    original: Original, data: st.DataObject
) -> None:
    sender, receiver = Tun(), Tun()
    frames = list(sender.read(original))
    controls = data.draw(
        st.lists(st.sampled_from((b"", b"\x01control", b"\x05probe", b"\xff", b"\x20")), max_size=5)
    )
    mixed = list(frames)
    for number, control in enumerate(controls):
        mixed.insert(number * 2, control)
    assert receiver.deliver(mixed) == controls
    assert receiver.meaning() == original.meaning


mutated = st.builds(
    lambda frame, position, value, length: (
        frame[: position % len(frame)] + bytes([value]) + frame[position % len(frame) + 1 :]
    )[: length or None],
    st.one_of(super_packets(max_segments=3), extended_packets(), single_packets()).map(
        lambda original: Tun().read(original)[0]
    ),
    st.integers(0, 130),
    st.integers(0, 255),
    st.sampled_from((0, 0, 0, 1, 2, 3, 4, 20, 50)),
)
junk = st.builds(
    lambda kind, rest: bytes([kind]) + rest, st.sampled_from((SEGMENT, PARTIAL, 0x45, 0x60)), st.binary()
)


@given(st.lists(st.one_of(mutated, junk), max_size=12), st.booleans())
def test_every_frame_of_a_hostile_peer_is_written_or_counted_or_given_back(
    frames: list[bytes], trains: bool
) -> None:
    receiver = Tun(trains=trains)
    refused = 0

    def accepts(frame: bytes, start: int) -> bool:
        nonlocal refused
        version = frame[start] >> 4
        fits = len(frame) - start >= (20 if version == 4 else 40)
        refused += not fits
        return fits

    others = receiver.deliver([frame for frame in frames if frame], accepts)
    counters = receiver.counters
    count = sum(1 for frame in frames if frame)
    assert counters.rx_packets + sum(counters.drops.values()) + refused + len(others) == count
    for write in receiver.written:
        assert len(write) <= 10 + 65535
        virtio, packet = Virtio.decode(write), write[10:]
        if virtio.needs_csum and virtio.kind == "none":
            sent_on = segmenter.complete(packet, virtio.csum_start, virtio.csum_offset)
            header = 40 if packet[0] >> 4 == 6 else 20
            assert sent_on[:header] == packet[:header], "the source was checked; it must stay as it is"


def test_a_truncated_segment_after_a_good_one_is_counted() -> None:
    sender, receiver = Tun(), Tun()
    first = sender.read(TWO_SEGMENTS)[0]
    for length in range(1, 44):
        receiver.deliver([first, first[:length]])
    assert receiver.counters.drops == {"malformed segment": 43}
    assert receiver.counters.rx_packets == 43


TWO_SEGMENTS = Original(
    Virtio(True, "tcp4", False, 40, 100, 20, 16),
    segmenter.with_sum_of_pseudo_header(
        segmenter.with_lengths(
            bytes((0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2))
            + bytes(12)
            + bytes((0x50, 0x10, 1, 0))
            + bytes(4 + 150)
        )
    ),
)


@pytest.mark.parametrize(
    "virtio",
    [
        Virtio(True, "tcp4", False, 40, 0, 20, 16),
        Virtio(True, "tcp4", False, 40, 100, 300, 16),
        Virtio(True, "tcp4", False, 40, 100, 20, 300),
        Virtio(True, "tcp4", False, 40, 100, 2, 6),
        Virtio(False, "tcp4", False, 40, 100, 0, 0),
        Virtio(needs_csum=True, csum_start=20, csum_offset=300),
    ],
    ids=[
        "no size",
        "start outside",
        "unknown checksum",
        "inside the IP header",
        "no checksum",
        "offset far away",
    ],
)
def test_a_super_packet_that_is_not_understood_is_counted(virtio: Virtio) -> None:
    sender = Tun()
    assert list(sender.read(Original(virtio, TWO_SEGMENTS.packet))) == []
    assert sender.counters.drops == {"super-packet not understood": 1}
    assert sender.counters.tx_packets == 0


def test_what_the_kernel_refuses_is_counted_and_the_next_is_written() -> None:
    sender, receiver = Tun(), Tun()
    frames = sender.read(TWO_SEGMENTS)
    receiver.kernel.refusal = OSError(22, "Invalid argument")
    receiver.deliver(frames)
    receiver.kernel.refusal = None
    assert receiver.counters.drops == {"tun write: EINVAL": 1}
    assert receiver.counters.rx_packets == receiver.counters.rx_bytes == 0
    receiver.deliver(frames)
    assert receiver.counters.rx_packets == 2


def test_a_device_has_a_virtio_header_or_not_and_is_read_accordingly() -> None:
    described = KernelTun()
    assert isinstance(device_for(described, Counters()), OffloadDevice)
    described.vnet_header = False
    assert not isinstance(device_for(described, Counters()), OffloadDevice)


@given(st.binary(min_size=20, max_size=60), st.integers(0, 255))
def test_only_ip_packets_and_what_stands_for_them_are_not_for_the_session(rest: bytes, first: int) -> None:
    tun = Tun()
    frame = bytes([first]) + rest
    others = tun.deliver([frame])
    assert (others == [frame]) == (first >> 4 not in (4, 6) and first not in (SEGMENT, PARTIAL))


def test_a_packet_whose_checksum_the_kernel_has_seen_is_as_good_as_any() -> None:
    """VIRTIO_NET_HDR_F_DATA_VALID: it came in by a network card."""
    tun = Tun()
    tun.kernel.queue.append(bytes([2]) + bytes(9) + TWO_SEGMENTS.packet)
    assert tun.device.read_one() == TWO_SEGMENTS.packet


@given(traffic)
def test_what_is_read_alone_is_one_packet_or_left_for_the_next_read(originals: list[Original]) -> None:
    tun, same = Tun(), Tun()
    for original in originals:
        frames = same.read(original)
        tun.kernel.queue.append(original.read)
        packet = tun.device.read_one()
        if packet:
            assert frames == (packet,)
            assert tun.device.read_one() is None
        else:
            assert packet == b""
            assert list(tun.device.read() or ()) == list(frames)
            assert tun.device.read() is None, "and no frame comes twice"
        assert tun.counters == same.counters


@given(super_packets())
def test_what_waited_in_the_queue_is_not_for_a_peer_that_takes_no_super_packets(original: Original) -> None:
    tun = Tun()
    tun.kernel.enabled_offloads = frozenset()

    assert tun.read(original) == ()
    assert tun.counters.drops == {"super-packet for a peer that takes none": 1}
