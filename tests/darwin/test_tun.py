"""Packets through a utun device, with their address family in front."""

import errno

import pytest
from fake_kernel import FakeKernel

from dtun.dataplane.device import Counters, UtunDevice
from dtun.dataplane.offload import device_for
from dtun.platform.darwin.kernel import DarwinKernel
from dtun.platform.darwin.tun import DarwinTun

V4 = b"\x45" + bytes(19)
V6 = b"\x60" + bytes(39)
HEADER4, HEADER6 = b"\0\0\0\x02", b"\0\0\0\x1e"


def allow_all(frame: bytes, start: int) -> bool:
    del frame, start
    return True


@pytest.fixture
def tun(kernel: DarwinKernel) -> DarwinTun:
    return kernel.create_tun("dtun0")


def test_packets_out(mac: FakeKernel, tun: DarwinTun) -> None:
    counters = Counters()
    device = UtunDevice(tun.fileno(), counters)
    host = mac.wire(tun.name)
    host.send(HEADER4 + V4)
    host.send(HEADER6 + V6)
    assert [device.read(), device.read(), device.read()] == [(V4,), (V6,), None]
    assert (counters.tx_packets, counters.tx_bytes) == (2, 60)
    tun.close()


def test_packets_in(mac: FakeKernel, tun: DarwinTun) -> None:
    counters = Counters()
    device = UtunDevice(tun.fileno(), counters)
    others = device.deliver([V4, b"\x01 control", b"", V6], allow_all)
    assert others == [b"\x01 control", b""]
    host = mac.wire(tun.name)
    assert [host.recv(100), host.recv(100)] == [HEADER4 + V4, HEADER6 + V6]
    assert (counters.rx_packets, counters.rx_bytes) == (2, 60)
    tun.close()


def test_a_packet_with_a_foreign_source_is_dropped(mac: FakeKernel, tun: DarwinTun) -> None:
    device = UtunDevice(tun.fileno(), Counters())
    assert device.deliver([V4], lambda _frame, _start: False) == []
    with pytest.raises(BlockingIOError):
        mac.wire(tun.name).recv(100)
    tun.close()


def test_a_packet_to_a_closed_device_is_counted(tun: DarwinTun) -> None:
    counters = Counters()
    device = UtunDevice(tun.fileno(), counters)
    tun.close()
    assert device.deliver([V4], allow_all) == []
    assert sum(counters.drops.values()) == 1
    assert any(errno.errorcode[errno.EBADF] in reason for reason in counters.drops)


def test_the_data_plane_uses_utun_framing(tun: DarwinTun) -> None:
    assert isinstance(device_for(tun, Counters()), UtunDevice)
    assert not tun.vnet_header
    assert tun.offloads == frozenset()
    tun.close()


def test_queue_and_buffers_are_enlarged(mac: FakeKernel, tun: DarwinTun) -> None:
    (sock,) = [sock for sock in mac.sockets if sock.interface]
    # UTUN_OPT_MAX_PENDING_PACKETS, and buffers of 512 KiB both ways.
    assert sock.options[2, 16] == b"\x80\0\0\0"
    assert sock.options[0xFFFF, 0x1001] == sock.options[0xFFFF, 0x1002] == 512 << 10
    tun.close()


def test_a_system_with_small_buffers_keeps_its_default(mac: FakeKernel, kernel: DarwinKernel) -> None:
    mac.largest_buffer = 256 << 10
    tun = kernel.create_tun("dtun0")
    (sock,) = [sock for sock in mac.sockets if sock.interface]
    assert sock.options[2, 16] == b"\x80\0\0\0"
    assert not any(level == 0xFFFF for level, _ in sock.options)
    tun.close()
