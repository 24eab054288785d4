"""Carries packets between one TUN device and the UDP sockets of its sessions. One packet, followed:

    out   TUN readable -> read -> seal -> send
    in    UDP readable -> receive -> open -> source allowed? -> write to TUN

A packet that the UDP socket does not take now waits here, and TUN is not read until the socket has
room again: the kernel's queue in front of the TUN device then does what queues are for.
"""

import asyncio
import errno
import os
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from dtun.dataplane.counters import Counters

BATCH = 64
"""Packets taken in one turn of the loop at most, so that one busy peer holds up nobody for long (a millisecond)."""

MAX_DATAGRAM = 65535

_LATER = frozenset({errno.EAGAIN, errno.ENOBUFS})
_PATH_ERRORS = frozenset(
    {
        errno.ECONNREFUSED,
        errno.EHOSTUNREACH,
        errno.ENETUNREACH,
        errno.ENETDOWN,
        errno.EADDRNOTAVAIL,
        errno.EHOSTDOWN,
    }
)


class Device(Protocol):
    """What is needed of a TUN device: one read or write on the descriptor is one IP packet."""

    def fileno(self) -> int: ...


@dataclass(slots=True)
class Port:
    """A session as the pump sees it: a connected socket, its record layer, and whom to call for the rest.

    `on_control` gets plaintexts that are not IP packets, `on_nothing` datagrams that held no plaintext
    (an alert, a handshake, a forgery), `on_error` an errno that says something about the path.
    """

    socket: socket.socket
    seal: Callable[[bytes], bytes]
    open: Callable[[bytes], Sequence[bytes]]
    on_control: Callable[[bytes], None]
    on_nothing: Callable[[bytes], None]
    on_error: Callable[[int], None]


class Pump:
    """The data plane of one TUN device. Sends through one port at a time, receives from all of them."""

    def __init__(
        self,
        device: Device,
        counters: Counters,
        *,
        accepts: Callable[[bytes], bool],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._device = device.fileno()
        self._counters = counters
        self._accepts = accepts
        self._loop = loop
        self._port: Port | None = None
        self._ports: dict[int, Port] = {}
        self._pending: bytes | None = None
        loop.add_reader(self._device, self._read_device)

    def attach(self, port: Port) -> None:
        """Send through this port from now on; the one before goes on receiving until it is detached."""
        self._resume()
        self._port = port
        self._ports[port.socket.fileno()] = port
        self._loop.add_reader(port.socket, self._read_socket, port)

    def detach(self, port: Port) -> None:
        """Forget a port, before its socket is closed. Packets are dropped while there is none to send through."""
        if self._ports.pop(port.socket.fileno(), None) is None:
            return
        if self._port is port:
            self._resume()
            self._port = None
        self._loop.remove_reader(port.socket)

    def receive(self, port: Port, datagram: bytes) -> None:
        """Take in one datagram of a session."""
        plaintexts = port.open(datagram)
        for packet in plaintexts:
            if packet[0] >> 4 in (4, 6):
                self._write(packet)
            else:
                port.on_control(packet)
        if not plaintexts:
            port.on_nothing(datagram)

    def deliver(self, packets: Iterable[bytes]) -> None:
        """IP packets that came before the session was attached."""
        for packet in packets:
            self._write(packet)

    def close(self) -> None:
        """Stop reading the device and all ports, before they are closed."""
        for port in list(self._ports.values()):
            self.detach(port)
        self._loop.remove_reader(self._device)

    def _read_device(self) -> None:
        read, device, port = os.read, self._device, self._port
        counters = self._counters
        for _ in range(BATCH):
            try:
                packet = read(device, MAX_DATAGRAM)
            except BlockingIOError:
                return
            except OSError as error:
                # EIO: the device is down for a moment, by another hand. EBADFD: it is gone.
                counters.drops[f"tun read: {_name(error)}"] += 1
                return
            if port is None:
                counters.drops["no session"] += 1
                continue
            counters.tx_packets += 1
            counters.tx_bytes += len(packet)
            if not self._send(port, port.seal(packet)):
                return

    def _send(self, port: Port, record: bytes) -> bool:
        """Send a record. False if it waits for room in the socket, and TUN is not read meanwhile."""
        try:
            port.socket.send(record)
        except OSError as error:
            if error.errno in _LATER and self._pending is None:
                self._pending = record
                self._loop.remove_reader(self._device)
                self._loop.add_writer(port.socket, self._room, port)
                return False
            self._failed(port, "send", error)
        return True

    def _room(self, port: Port) -> None:
        record, self._pending = self._pending, None
        if record is None or self._send(port, record):
            self._resume()

    def _resume(self) -> None:
        """Read TUN again, whether or not it was paused; a record that waited is given up."""
        if self._port is not None:
            self._loop.remove_writer(self._port.socket)
        self._pending = None
        self._loop.add_reader(self._device, self._read_device)

    def _read_socket(self, port: Port) -> None:
        receive, take = port.socket.recv, self.receive
        for _ in range(BATCH):
            try:
                datagram = receive(MAX_DATAGRAM)
            except BlockingIOError:
                return
            except OSError as error:
                self._failed(port, "receive", error)
                return
            take(port, datagram)
            if port.socket.fileno() not in self._ports:
                return  # that datagram ended the session

    def _write(self, packet: bytes) -> None:
        counters = self._counters
        if not self._accepts(packet):
            return
        try:
            os.write(self._device, packet)
        except OSError as error:
            counters.drops[f"tun write: {_name(error)}"] += 1
        else:
            counters.rx_packets += 1
            counters.rx_bytes += len(packet)

    def _failed(self, port: Port, doing: str, error: OSError) -> None:
        number = error.errno or 0
        self._counters.drops[f"udp {doing}: {_name(error)}"] += 1
        if number in _PATH_ERRORS:
            # Not from inside this turn: the answer may be to close the socket that is being read.
            self._loop.call_soon(port.on_error, number)


def _name(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, "error")
