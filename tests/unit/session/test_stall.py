"""When the watchdog is to end a data plane: packets wait, could go, and do not."""

import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

import pytest

from dtun.session.stall import PATIENCE, DataPlane, StallDetector


class Tunnel:
    """Pairs of sockets for the device and for UDP, and a pump that can be told to move."""

    def __init__(self) -> None:
        self.device, self.host = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket, self.peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        for sock in (self.device, self.host, self.socket, self.peer):
            sock.setblocking(False)
        self.plane = DataPlane(self.device.fileno(), self.socket.fileno(), (0, 0))

    def moves(self) -> None:
        self.plane = replace(self.plane, progress=(self.plane.progress[0] + 1, 0))

    def fill_socket(self) -> None:
        with suppress(BlockingIOError):
            while True:
                self.socket.send(b"x")

    def close(self) -> None:
        for sock in (self.device, self.host, self.socket, self.peer):
            sock.close()


@pytest.fixture
def tunnel() -> Iterator[Tunnel]:
    made = Tunnel()
    yield made
    made.close()


def test_without_work_there_is_no_stall(tunnel: Tunnel) -> None:
    detector = StallDetector()
    assert not any(detector.stalled([tunnel.plane], now) for now in (0, PATIENCE, 10 * PATIENCE))


@pytest.mark.parametrize("way", ["out", "in"])
def test_packets_that_wait_and_do_not_go_are_one(tunnel: Tunnel, way: str) -> None:
    (tunnel.host if way == "out" else tunnel.peer).send(b"packet")
    detector = StallDetector()
    assert not detector.stalled([tunnel.plane], 100)
    assert not detector.stalled([tunnel.plane], 100 + PATIENCE - 0.1)
    assert detector.stalled([tunnel.plane], 100 + PATIENCE)


def test_a_busy_tunnel_always_has_packets_waiting_and_moves(tunnel: Tunnel) -> None:
    tunnel.host.send(b"packet")
    detector = StallDetector()
    for now in range(20):
        assert not detector.stalled([tunnel.plane], now * PATIENCE)
        tunnel.moves()


def test_one_that_waits_for_room_in_its_socket_is_held_up_by_the_network(tunnel: Tunnel) -> None:
    tunnel.host.send(b"packet")
    tunnel.fill_socket()
    detector = StallDetector()
    assert not any(detector.stalled([tunnel.plane], now) for now in (0, PATIENCE, 2 * PATIENCE))


def test_one_of_many_is_enough_and_one_that_is_gone_is_forgotten(tunnel: Tunnel) -> None:
    other = Tunnel()
    other.host.send(b"packet")
    detector = StallDetector()
    assert not detector.stalled([tunnel.plane, other.plane], 0)
    assert detector.stalled([tunnel.plane, other.plane], PATIENCE)
    assert not detector.stalled([tunnel.plane], PATIENCE)
    assert not detector.stalled([tunnel.plane, other.plane], PATIENCE)
    other.close()
