"""What a TUN device finds out about its kernel, however old that is. (With the kernel at hand: tests/netns.)"""

import errno
import fcntl
import logging
import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from dtun.platform.linux import tun
from dtun.platform.linux.tun import LinuxTun

SET_INTERFACE, GET_INTERFACE, SET_OFFLOAD = 0x400454CA, 0x800454D2, 0x400454D0
# linux/if_tun.h: checksums; TCP over IPv4 and IPv6, with ECN; UDP over IPv4 and IPv6.
TCP, UDP = 0x01 | 0x02 | 0x04 | 0x08, 0x01 | 0x20 | 0x40


class Kernel:
    """A kernel that refuses offloads which are not in `known`, as all do with flags that they do not know.

    None: the kernel does not know the ioctl.
    """

    def __init__(self, known: int | None) -> None:
        self.known = known
        self.name = b""
        self.flags = 0
        self.asked: list[int] = []

    def ioctl(self, _descriptor: int, request: int, argument: int | bytes) -> bytes:
        if request == SET_OFFLOAD:
            assert isinstance(argument, int)
            self.asked.append(argument)
            if self.known is None or argument & ~self.known:
                raise OSError(errno.EINVAL, "Invalid argument")
            return b""
        if request == GET_INTERFACE:
            return tun.IFREQ.pack(self.name, self.flags)
        assert request == SET_INTERFACE
        assert isinstance(argument, bytes)
        self.name, self.flags = tun.IFREQ.unpack(argument)
        return argument


def opened(_: Path) -> LinuxTun:
    return tun.open_tun("dtun-demo", lambda _: None)


def adopted(driver: Path) -> LinuxTun:
    """As after a restart."""
    opened(driver).close()
    return tun.adopt_tun("dtun-demo", os.open(driver, os.O_RDWR), lambda _: None)


@pytest.fixture
def use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Kernel], Path]:
    """Runs on this kernel from now on; returns its driver's file."""

    def install(kernel: Kernel) -> Path:
        driver = tmp_path / "tun"
        driver.touch()
        monkeypatch.setattr(tun, "DEVICE", str(driver))
        monkeypatch.setattr(fcntl, "ioctl", kernel.ioctl)
        return driver

    return install


kernels = pytest.mark.parametrize(
    ("known", "offloads"),
    [
        pytest.param(TCP | UDP, {"segments", "udp-segments"}, id="Linux 6.2"),
        pytest.param(TCP | 0x10, {"segments"}, id="Linux 5.4"),
        pytest.param(TCP | 0x20, {"segments"}, id="half of UDP"),
        pytest.param(0x01 | 0x02, set(), id="TCP over IPv4 only"),
        pytest.param(0, set(), id="refuses all"),
        pytest.param(None, set(), id="before Linux 2.6.27"),
    ],
)


@pytest.mark.parametrize("make", [opened, adopted])
@kernels
def test_the_offloads_are_those_that_the_kernel_takes(
    known: int | None, offloads: set[str], make: Callable[[Path], LinuxTun], use: Callable[[Kernel], Path]
) -> None:
    kernel = Kernel(known)
    with closing(make(use(kernel))) as device:
        assert device.offloads == offloads
        assert {TCP, UDP} <= set(kernel.asked)
        if offloads:
            assert kernel.asked[-1] == 0, "none before the peer has said that it takes them"
        assert device.enabled_offloads == frozenset()


@kernels
def test_only_what_was_found_is_handed_out(
    known: int | None, offloads: set[str], use: Callable[[Kernel], Path]
) -> None:
    kernel = Kernel(known)
    with closing(opened(use(kernel))) as device:
        device.enable_offloads(frozenset({"segments", "udp-segments"}))
        assert device.enabled_offloads == offloads
        if offloads:
            assert kernel.asked[-1] == TCP * ("segments" in offloads) | UDP * ("udp-segments" in offloads)
        device.enable_offloads(frozenset())
        assert device.enabled_offloads == frozenset()
        if offloads:
            assert kernel.asked[-1] == 0


def test_what_a_kernel_lacks_is_said_once(
    use: Callable[[Kernel], Path], caplog: pytest.LogCaptureFixture
) -> None:
    tun._log_missing.cache_clear()
    caplog.set_level(logging.INFO)
    for known in (TCP | UDP, TCP, TCP, 0):
        with closing(opened(use(Kernel(known)))):
            pass
    assert [record.getMessage() for record in caplog.records] == [
        "this kernel does not support super-packets of UDP (needs Linux 6.2); packets are sent one by one",
        "this kernel does not support super-packets of TCP; packets are sent one by one",
    ]
