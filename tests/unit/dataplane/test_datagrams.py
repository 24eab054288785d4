"""Batches of datagrams over real sockets: nothing is lost or doubled, and what a kernel refuses goes another way."""

import asyncio
import errno
import logging
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self
from unittest import mock

import pytest
from hypothesis import given, settings, strategies as st

from dtun.dataplane import datagrams as module
from dtun.dataplane.datagrams import MAX_SEGMENTS, MAX_SEND, RECEIVE_SIZE, Datagrams, batch_end
from dtun.dataplane.device import Counters, PlainDevice
from dtun.dataplane.pump import Port, Pump

SOL_UDP, UDP_GRO = 17, 104
families = pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["IPv4", "IPv6"])


class Pair:
    """Two connected sockets on the loopback device."""

    def __init__(self, family: socket.AddressFamily = socket.AF_INET, *, batches: bool = True) -> None:
        address = ("127.0.0.1" if family == socket.AF_INET else "::1", 0)
        self.near, self.far = (socket.socket(family, socket.SOCK_DGRAM) for _ in range(2))
        for sock in (self.near, self.far):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
            sock.bind(address)
            sock.setblocking(False)
        self.near.connect(self.far.getsockname())
        self.far.connect(self.near.getsockname())
        self.sender, self.receiver = (
            Datagrams(self.near, batches=batches),
            Datagrams(self.far, batches=batches),
        )
        self.buffer = memoryview(bytearray(RECEIVE_SIZE))
        self.receives = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.near.close()
        self.far.close()

    def received(self) -> list[bytes]:
        """All that has come, datagram by datagram. On the loopback device that is all that was sent."""
        came: list[bytes] = []
        while True:
            try:
                length, size = self.receiver.receive_into(self.buffer)
            except BlockingIOError:
                return came
            self.receives += 1
            starts = range(0, length, size) if length else [0]
            came += [bytes(self.buffer[start : min(start + size, length)]) for start in starts]


@contextmanager
def batches_fail_with(number: int) -> Iterator[list[int]]:
    """As on a kernel that cannot segment: sends with UDP_SEGMENT fail. Lists them."""
    calls: list[int] = []
    real = socket.socket.sendmsg

    def sendmsg(sock: socket.socket, buffers: Any, ancillary: Any) -> int:
        if not ancillary:
            return real(sock, buffers)
        calls.append(len(buffers))
        raise OSError(number, "simulated")

    with mock.patch.object(socket.socket, "sendmsg", sendmsg):
        yield calls


def mixed(count: int) -> list[bytes]:
    """Numbered datagrams of the sizes that a busy tunnel sends: full ones in rows, rests, small ones between."""
    sizes = [1424] * 50 + [300] + [40, 1424, 1424, 900] * 3 + [1424] * 45 + [8] * 70
    return [number.to_bytes(4) + bytes(sizes[number % len(sizes)] - 4) for number in range(count)]


@given(
    st.lists(st.one_of(st.sampled_from((0, 1, 100, 1424)), st.integers(0, 66000)), min_size=1, max_size=150)
)
def test_a_batch_is_as_long_as_the_kernel_allows_and_no_longer(sizes: list[int]) -> None:
    records = [bytes(size) for size in sizes]
    end = batch_end(records, 0)

    def may_go_together(batch: list[bytes]) -> bool:
        alike = all(len(record) == len(batch[0]) for record in batch[:-1])
        return (
            alike
            and len(batch[-1]) <= len(batch[0])
            and len(batch) <= MAX_SEGMENTS
            and len(batch) * len(batch[0]) <= MAX_SEND
        )

    assert end == 1 or may_go_together(records[:end])
    assert end == len(records) or not may_go_together(records[: end + 1])


@given(st.lists(st.integers(0, 2000), min_size=1, max_size=40), st.integers(0, 39))
def test_batches_may_begin_anywhere(sizes: list[int], start: int) -> None:
    records = [bytes(size) for size in sizes]
    start = min(start, len(records) - 1)
    assert batch_end(records, start) == start + batch_end(records[start:], 0)


@families
def test_hundreds_of_datagrams_of_mixed_sizes_come_in_order_and_in_few_calls(
    family: socket.AddressFamily,
) -> None:
    sent = mixed(300)
    with Pair(family) as pair:
        assert pair.sender.send(sent) == len(sent)
        assert pair.received() == sent
        if pair.sender.segments and pair.receiver.coalesces:
            assert pair.receives <= 25


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only: UDP_SEGMENT and UDP_GRO")
@families
def test_on_linux_one_send_comes_as_one_receive(family: socket.AddressFamily) -> None:
    """Without which all else here would hold, too, only slower: every kernel that dtun supports has both."""
    sent = [bytes([number]) * 1424 for number in range(40)] + [b"the last is shorter"]
    with Pair(family) as pair:
        assert pair.sender.segments
        assert pair.receiver.coalesces
        assert pair.far.getsockopt(SOL_UDP, UDP_GRO) == 1
        assert pair.sender.send(sent) == len(sent)
        length, size = pair.receiver.receive_into(pair.buffer)
        assert (length, size) == (sum(map(len, sent)), 1424)
        assert bytes(pair.buffer[:length]) == b"".join(sent)
        assert pair.received() == []


@families
@pytest.mark.parametrize("near", [True, False], ids=["sender batches", "sender does not"])
def test_ends_with_and_without_batches_understand_each_other(
    family: socket.AddressFamily, near: bool
) -> None:
    sent = mixed(150)
    with Pair(family, batches=near) as pair:
        pair.receiver.coalesces = False
        pair.far.setsockopt(SOL_UDP, UDP_GRO, 0)
        assert pair.sender.send(sent) == len(sent)
        assert pair.received() == sent


@settings(max_examples=40)
@given(
    st.lists(
        st.one_of(st.sampled_from((1, 1, 700, 700, 1424, 1424, 1424)), st.integers(1, 3000)), max_size=120
    )
)
def test_whatever_the_sizes_nothing_is_lost_doubled_or_moved(sizes: list[int]) -> None:
    sent = [bytes([number % 251]) * size for number, size in enumerate(sizes)]
    with Pair() as pair:
        assert pair.sender.send(sent) == len(sent)
        assert pair.received() == sent


def test_the_largest_batches_fit_into_one_send() -> None:
    """Every size whose batch ends near the limit of the kernel: none may be refused, for that would end batching."""
    sizes = [size for size in range(1023, 1500) if MAX_SEND % size < 60]
    assert sizes
    for family in (socket.AF_INET, socket.AF_INET6):
        with Pair(family) as pair:
            for size in sizes:
                sent = [bytes([number]) * size for number in range(64)]
                before = pair.receives
                assert pair.sender.send(sent) == 64
                assert pair.received() == sent
                if pair.sender.segments and pair.receiver.coalesces:
                    assert pair.receives - before == 2, f"the kernel has cut a batch of {size} early"
            assert pair.sender.segments


def test_an_empty_datagram_is_one() -> None:
    with Pair() as pair:
        assert pair.sender.send([b""]) == 1
        assert pair.received() == [b""]


@pytest.mark.parametrize(
    "number", [errno.EIO, errno.EINVAL, errno.EMSGSIZE, errno.ENOPROTOOPT, errno.EOPNOTSUPP]
)
def test_where_batches_are_refused_all_go_one_by_one_and_the_log_says_so_once(
    number: int, caplog: pytest.LogCaptureFixture
) -> None:
    module.log_once.cache_clear()
    caplog.set_level(logging.INFO)
    sent = mixed(100)
    with Pair() as pair, Pair() as another:
        with batches_fail_with(number) as calls:
            assert pair.sender.send(sent) == len(sent)
            assert pair.sender.send(sent) == len(sent)
        with batches_fail_with(number):
            assert another.sender.send(sent) == len(sent)
        assert pair.received() == sent * 2
        asked_again = number in (errno.EMSGSIZE, errno.EINVAL)
        assert len(calls) == 1 + asked_again, "it does not try another"
        assert not pair.sender.segments
    assert [record.getMessage() for record in caplog.records] == [
        "batches of datagrams cannot be sent on this path (simulated); sending one by one"
    ]


def test_batches_are_tried_again_when_the_path_has_changed() -> None:
    sent = mixed(100)
    with Pair() as pair:
        with batches_fail_with(errno.EMSGSIZE):
            assert pair.sender.send(sent) == len(sent)
        assert not pair.sender.segments
        pair.sender.renew()
        assert pair.sender.send(sent) == len(sent)
        assert pair.received() == sent * 2
        assert pair.sender.segments


def test_who_was_told_not_to_batch_never_does() -> None:
    with Pair(batches=False) as pair:
        pair.sender.renew()
        assert not pair.sender.segments


def test_what_icmp_says_of_an_earlier_datagram_costs_no_other_and_no_batching() -> None:
    """The socket hands such an error out once, in place of sending what it is given."""
    sent = mixed(100)
    refused: list[OSError] = []
    with Pair() as pair:
        real = socket.socket.sendmsg
        calls = 0

        def sendmsg(sock: socket.socket, *arguments: Any) -> int:
            nonlocal calls
            calls += 1
            if calls == 2:
                raise OSError(errno.EMSGSIZE, "of an earlier one")
            return real(sock, *arguments)

        with mock.patch.object(socket.socket, "sendmsg", sendmsg):
            assert pair.sender.send(sent, refused.append) == len(sent)
        assert pair.received() == sent
        assert pair.sender.segments
    assert [error.errno for error in refused] == [errno.EMSGSIZE]


def test_batches_of_what_is_too_large_for_the_interface_do_not_end_batching() -> None:
    """Only the kernel that sends them one by one, in fragments, has no use for batches."""
    small = [bytes(1000)] * 20
    large = [bytes(40000)] * 10
    refused: list[OSError] = []

    def refuses_large(real: Any) -> Any:
        def send(sock: socket.socket, data: Any, *arguments: Any) -> int:
            if len(data if isinstance(data, bytes) else data[0]) > 30000:
                raise OSError(errno.EMSGSIZE, "larger than the interface's MTU")
            sent: int = real(sock, data, *arguments)
            return sent

        return send

    with (
        Pair() as pair,
        mock.patch.object(socket.socket, "sendmsg", refuses_large(socket.socket.sendmsg)),
        mock.patch.object(socket.socket, "send", refuses_large(socket.socket.send)),
        mock.patch.object(module, "MAX_SEND", 500_000),
    ):
        assert pair.sender.send([*small, *large, *small], refused.append) == 50
        assert pair.received() == small * 2
        assert pair.sender.segments
    assert len(refused) == 10


def test_what_is_too_large_is_refused_alone_and_the_rest_goes(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    sent = mixed(60)
    large = bytes(65508)
    refused: list[OSError] = []
    with Pair() as pair:
        assert pair.sender.send([*sent[:30], large, large, *sent[30:]], refused.append) == 62
        assert pair.received() == sent
    assert [error.errno for error in refused] == [errno.EMSGSIZE] * 2


def test_a_refused_batch_costs_itself_only() -> None:
    sent = mixed(60)
    refused: list[OSError] = []
    with Pair() as pair:
        count = batch_end(sent, 0)
        assert count > 40
        real = socket.socket.sendmsg
        calls = 0

        def sendmsg(sock: socket.socket, *arguments: Any) -> int:
            nonlocal calls
            calls += 1
            if calls == 1:
                raise OSError(errno.EPERM, "a firewall")
            return real(sock, *arguments)

        with mock.patch.object(socket.socket, "sendmsg", sendmsg):
            assert pair.sender.send(sent, refused.append) == len(sent)
        assert pair.received() == sent[count:]
        assert pair.sender.segments
    assert [error.errno for error in refused] == [errno.EPERM]


def test_without_anybody_to_tell_a_refusal_is_raised() -> None:
    with Pair() as pair, pytest.raises(OSError, match="too long"):
        pair.sender.send([bytes(65508)])


@pytest.mark.parametrize("batches", [True, False])
@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOBUFS])
def test_a_full_socket_says_how_far_it_came_and_the_rest_follows(number: int, batches: bool) -> None:
    sent = mixed(200)
    with Pair(batches=batches) as pair:
        real, real_one = socket.socket.sendmsg, socket.socket.send
        calls = 0

        def hiccup() -> None:
            nonlocal calls
            calls += 1
            if calls % 3 == 0:
                raise OSError(number, "full")

        def sendmsg(sock: socket.socket, *arguments: Any) -> int:
            hiccup()
            return real(sock, *arguments)

        def send(sock: socket.socket, *arguments: Any) -> int:
            hiccup()
            return real_one(sock, *arguments)

        rests = 0
        refused: list[OSError] = []
        left = sent
        with (
            mock.patch.object(socket.socket, "sendmsg", sendmsg),
            mock.patch.object(socket.socket, "send", send),
        ):
            while left:
                left = left[pair.sender.send(left, refused.append) :]
                rests += 1
        assert rests > 2
        assert not refused
        assert pair.received() == sent
        assert pair.sender.segments is batches


def test_a_really_full_socket_takes_the_rest_when_it_has_room_again() -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with near, far:
        near.setblocking(False)
        far.setblocking(False)
        sender = Datagrams(near, batches=False)
        sent, left, came = mixed(500), mixed(500), []
        while left:
            done = sender.send(left)
            left = left[done:]
            came += [far.recv(65535) for _ in range(done)]
        assert came == sent


def test_an_old_kernel_without_coalescing_gives_one_by_one_which_the_log_says_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    module.log_once.cache_clear()
    caplog.set_level(logging.INFO)
    with mock.patch.object(module, "_UDP_GRO", 9999), Pair() as pair, Pair():
        assert [record.getMessage() for record in caplog.records] == [
            "this kernel receives datagrams one by one, which costs speed (UDP_GRO needs Linux 5.0)"
        ]
        assert not pair.receiver.coalesces
        pair.sender.send(mixed(50))
        assert pair.received() == mixed(50)
        assert pair.receives == 50


async def test_the_pump_loses_only_what_is_refused_and_counts_it() -> None:
    device, kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with device, kernel, Pair() as pair:
        device.setblocking(False)
        counters = Counters()
        loop = asyncio.get_running_loop()
        plain = PlainDevice(device.fileno(), counters)
        pump = Pump(plain, counters, accepts=lambda _frame, _start: True, loop=loop)
        port = Port(pair.sender, None, list, lambda _: (), lambda _: None, lambda *_: [], print, print, print)
        pump.attach(port)
        sent = mixed(30)
        for frame in (*sent[:15], bytes(65508), *sent[15:]):
            kernel.send(frame)
        for _ in range(100):  # turns of the loop; it needs ten
            await asyncio.sleep(0)
        assert pair.received() == sent
        assert counters.drops == {"udp send: EMSGSIZE": 1}
        pump.close()
