"""UDP sockets get the largest buffer that the system allows: macOS grants the whole request or refuses it."""

import errno
import socket

import pytest

from dtun.session import udp


class Strict:
    """A socket on macOS, where kern.ipc.maxsockbuf is `limit`."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.sizes: dict[int, int] = {}

    def setsockopt(self, level: int, option: int, value: int) -> None:
        assert level == socket.SOL_SOCKET
        if value > self.limit:
            raise OSError(errno.ENOBUFS, "no buffer space")
        self.sizes[option] = value


@pytest.mark.parametrize(
    ("limit", "size"),
    [(8 << 20, 4 << 20), (4 << 20, 4 << 20), ((4 << 20) - 1, 2 << 20), (300_000, 256 << 10), (1 << 16, None)],
)
def test_as_large_as_it_may_be(monkeypatch: pytest.MonkeyPatch, limit: int, size: int | None) -> None:
    monkeypatch.setattr(udp, "_LINUX", False)
    strict = Strict(limit)
    udp.enlarge_buffers(strict)  # type: ignore[arg-type]
    expected = {} if size is None else {socket.SO_RCVBUF: size, socket.SO_SNDBUF: size}
    assert strict.sizes == expected
