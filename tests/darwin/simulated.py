"""Makes this Python look like one on a Mac with a fake kernel, and runs dtun in it.

    python tests/darwin/simulated.py client -c dtun.yaml

Modules and constants that only Linux has are removed. UDP uses this system's own sockets. The host behind the utun
device answers pings and obeys standard input, with one line for each command:

    way ADDRESS      ->   where a packet to it goes
    ping ADDRESS     ->   reply from ADDRESS
    received         ->   the sizes of the UDP datagrams received, with "!" after one with a wrong checksum
    sleep SECONDS    ->   asleep
    move             ->   moved: the Wi-Fi is another network now, on en1
"""

import asyncio  # noqa: F401 - before `become_a_mac`: these modules need the real system
import concurrent.futures.thread  # noqa: F401
import contextlib
import importlib.abc
import importlib.machinery
import logging.handlers  # noqa: F401
import multiprocessing  # noqa: F401
import os
import select
import selectors
import socket
import struct
import subprocess  # noqa: F401
import sys
import tempfile  # noqa: F401
import threading
import uuid  # noqa: F401
import zoneinfo  # noqa: F401
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

SOCKET_CONSTANTS = (
    "AF_NETLINK",
    "NETLINK_ROUTE",
    "SOCK_CLOEXEC",
    "SOCK_NONBLOCK",
    "SO_MARK",
    "SO_BINDTODEVICE",
)
SELECT_FUNCTIONS = ("epoll",)
OS_FUNCTIONS = ("memfd_create", "eventfd", "pidfd_open", "setns", "unshare", "sched_setaffinity")
MODULES = ("pyroute2", "dbus_fast", "jeepney")


class NotOnAMac(importlib.abc.MetaPathFinder):
    """Refuses to import what a Mac does not have."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        del path, target
        if name.startswith("dtun.platform.linux.") or name.partition(".")[0] in MODULES:
            raise ImportError(f"{name} is not for macOS")
        return None


def become_a_mac() -> None:
    """Until the process ends."""
    sys.platform = "darwin"
    # asyncio uses kqueue there. Here it is poll, so that nothing can rely on epoll.
    selectors.DefaultSelector = selectors.PollSelector  # type: ignore[misc, assignment]
    for module, names in ((socket, SOCKET_CONSTANTS), (os, OS_FUNCTIONS), (select, SELECT_FUNCTIONS)):
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
    sys.meta_path.insert(0, NotOnAMac())


class Host:
    """The system behind the utun device, in its own thread."""

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel
        self._received: list[str] = []
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        # Until the device or standard input is closed.
        with contextlib.suppress(OSError, ValueError):
            self._serve()

    def _serve(self) -> None:
        while True:
            devices = [sock.inside for sock in list(self._kernel.sockets) if sock.interface]
            ready, _, _ = select.select([sys.stdin, *devices], (), (), 0.05)
            for one in ready:
                if one is not sys.stdin:
                    self._packet(one)
                elif line := sys.stdin.readline():
                    self._command(*line.split())
                else:
                    return

    def _command(self, word: str, argument: str = "") -> None:
        match word:
            case "way":
                say(self._kernel.way(argument))
            case "ping":
                self._ping(argument)
            case "received":
                say(" ".join(self._received))
            case "sleep":
                self._kernel.asleep += float(argument)
                say("asleep")
            case "move":
                self._kernel.unplug("en0")
                self._kernel.plug("en1", "172.16.0.9/24")
                self._kernel.default("en1", "172.16.0.1")
                say("moved")

    def _ping(self, target: str) -> None:
        name = self._kernel.way(target)
        local = next(str(local.ip) for local, _ in self._kernel.interface(name).pairs if local.version == 4)
        message = struct.pack("!BBHHH", 8, 0, 0, 7, 1) + b"are you there?"
        message = message[:2] + checksum(message) + message[4:]
        header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(message), 1, 0, 64, 1, 0)
        header += ip_address(local).packed + ip_address(target).packed
        header = header[:10] + checksum(header) + header[12:]
        self._kernel.wire(name).send(b"\0\0\0\x02" + header + message)

    def _packet(self, device: socket.socket) -> None:
        data = device.recv(65540)
        if data[:5] != b"\0\0\0\x02\x45":
            return
        packet = data[4:]
        source, target = packet[12:16], packet[16:20]
        if packet[9] == 1 and packet[20] == 8:
            answer = b"\0\0\0\0" + packet[24:]
            answer = answer[:2] + checksum(answer) + answer[4:]
            device.send(b"\0\0\0\x02" + packet[:12] + target + source + answer)
        elif packet[9] == 1 and packet[20] == 0:
            say(f"reply from {ip_address(source)}")
        elif packet[9] == 17:
            pseudo = source + target + struct.pack("!HH", 17, len(packet) - 20)
            right = checksum(pseudo + packet[20:]) == b"\0\0"
            self._received.append(f"{len(packet) - 28}{'' if right else '!'}")


def checksum(data: bytes) -> bytes:
    """The internet checksum (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return (~total & 0xFFFF).to_bytes(2, "big")


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    become_a_mac()
    from fake_kernel import OURS, FakeKernel

    from dtun.cli import main as dtun

    with FakeKernel().installed() as mac:
        Host(mac)
        code = dtun(sys.argv[1:])
        left = [entry for entry in mac.routes if entry.flags & OURS]
        say(
            f"left behind: {len(left)} routes, {sum('utun' in one.name for one in mac.interfaces.values())} devices"
        )
    sys.exit(code)
