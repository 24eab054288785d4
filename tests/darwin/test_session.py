"""A simulated Mac and a real dtun on Linux, with a network between them; either is the server.

    mac 192.0.2.2 ---- 192.0.2.1 linux
    utun0 10.86.0.2 ========== 10.86.0.1

The Mac's utun, routes and addresses are simulated; UDP, the handshake and all packets are real.
"""

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from daemon import Daemon, can_ping, make_key
from topology import Host, Topology, missing, sweep, wait_for

from dtun.errors import DtunError
from dtun.service.control import ask

SIMULATED = Path(__file__).parent / "simulated.py"

SEND_A_TRAIN = """
import socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.setsockopt(17, 103, 1000)   # UDP_SEGMENT: one send, four datagrams
    sock.sendto(bytes(4000), ("10.86.0.2", 9))
"""

pytestmark = pytest.mark.netns


@pytest.fixture
def net() -> Iterator[Topology]:
    """An empty topology."""
    if reason := missing():
        pytest.skip(f"network namespaces cannot be made here: {reason}")
    sweep()
    with Topology() as topology:
        yield topology


class Mac:
    """A process that takes this system for macOS."""

    def __init__(self, host: Host, role: str, directory: Path, section: dict[str, object]) -> None:
        self.socket = directory / "run" / ("server.sock" if role == "server" else "dtun0.sock")
        self.log_path = directory / "mac.log"
        config = directory / "mac.yaml"
        config.write_text(yaml.safe_dump({role: {"runtime_directory": str(directory / "run"), **section}}))
        command = (str(SIMULATED), role, "-c", str(config))
        pipe = subprocess.PIPE
        with self.log_path.open("w") as log:
            self.process = host.python(*command, stdin=pipe, stdout=pipe, stderr=log)

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def row(self) -> dict[str, object]:
        """Its status; empty while it has none."""
        assert self.process.poll() is None, self.log
        try:
            status = ask(self.socket)
        except DtunError:
            return {}
        (row,) = status["tunnels"]
        return dict(row)

    def tell(self, command: str) -> str:
        """Send a command to the host behind the device; returns its answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def stop(self) -> tuple[int, str]:
        """Stop it like launchd does; returns its exit code and last output."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.stdout is not None
        last = self.process.stdout.read().strip()
        return self.process.wait(10), last


@pytest.fixture
def hosts(net: Topology) -> tuple[Host, Host]:
    """The namespace of the Mac, and a Linux host at the other end of the cable."""
    mac, linux = net.host("mac"), net.host("linux")
    net.cable(mac, "eth0", linux, "eth0", "192.0.2.2/24", "192.0.2.1/24")
    return mac, linux


def test_a_mac_and_a_linux_server(hosts: tuple[Host, Host], tmp_path: Path) -> None:
    mac, linux = hosts
    key = make_key(tmp_path)
    server = Daemon(
        linux,
        "server",
        {"listen": ["192.0.2.1"], "clients": {"mac": {"key_file": str(key), "subnets": ["10.0.0.0/16"]}}},
        tmp_path,
    )
    client = Mac(
        mac,
        "client",
        tmp_path,
        {
            "servers": ["192.0.2.1"],
            "id": "mac",
            "key_file": str(key),
            "subnets": ["10.0.0.0/16"],
            "routes": "everything",
            "on_disconnect": "block",
        },
    )
    row = wait_for(lambda: _connected(client.row()), "the Mac to be connected", 20, lambda: client.log)
    assert (row["device"], row["address"]) == ("utun0", "10.86.0.2"), "its real name, not the configured one"
    server.wait_connected("mac")

    # Both ways, through real records.
    assert can_ping(linux, "10.86.0.2", count=20)
    assert client.tell("ping 10.86.0.1") == "reply from 10.86.0.1"

    # The routes of the Mac.
    assert client.tell("way 1.1.1.1") == client.tell("way 129.1.1.1") == "utun0"
    assert client.tell("way 192.0.2.1") == "en0 192.168.1.1"
    assert client.tell("way 2606:4700::1") == "refused"

    # It has no offloads, and Linux sends it no super-packets.
    linux.python("-c", SEND_A_TRAIN).wait(10)
    wait_for(lambda: client.tell("received") == "1000 1000 1000 1000", "four datagrams, each complete")

    # After a sleep there is a new session at once; after a change of the Wi-Fi the server is reached through it.
    first = server.tunnel("mac")["endpoint"]
    assert client.tell("sleep 3600") == "asleep"
    wait_for(
        lambda: "the computer has slept for 3600 s" in client.log,
        "the sleep to be noticed",
        log=lambda: client.log,
    )
    wait_for(
        lambda: server.tunnel("mac")["endpoint"] not in (None, first), "a new session", log=lambda: client.log
    )
    assert can_ping(linux, "10.86.0.2")
    assert client.tell("move") == "moved"
    wait_for(
        lambda: client.tell("way 192.0.2.1") == "en1 172.16.0.1",
        "the server's way to move",
        log=lambda: client.log,
    )
    assert client.tell("way 1.1.1.1") == "utun0"
    wait_for(lambda: "the route to 192.0.2.1" in client.log, "the log to say so", log=lambda: client.log)
    assert can_ping(linux, "10.86.0.2", count=5)

    assert client.stop() == (0, "left behind: 0 routes, 0 devices")
    assert "Traceback" not in client.log
    assert server.stop() == 0


def test_a_mac_as_server(hosts: tuple[Host, Host], tmp_path: Path) -> None:
    mac, linux = hosts
    key = make_key(tmp_path)
    server = Mac(
        mac,
        "server",
        tmp_path,
        {
            "listen": ["192.0.2.2"],
            "state_directory": str(tmp_path / "state"),
            "clients": {"linux": {"key_file": str(key), "subnets": ["10.7.0.0/16"]}},
        },
    )
    client = Daemon(
        linux,
        "client",
        {
            "servers": ["192.0.2.2"],
            "id": "linux",
            "key_file": str(key),
            "subnets": ["10.7.0.0/16"],
            "routes": ["10.86.0.0/16"],
        },
        tmp_path,
    )
    client.wait_connected()
    row = wait_for(lambda: _connected(server.row()), "the Mac to have a client", 20, lambda: server.log)
    assert row["device"] == "utun0"

    # Both ways, and to the subnet behind the client.
    assert can_ping(linux, "10.86.0.1", count=20)
    assert server.tell("ping 10.86.0.2") == "reply from 10.86.0.2"
    assert server.tell("way 10.7.1.1") == "utun0"
    assert server.tell("way 1.1.1.1") == "en0 192.168.1.1"
    # What the client may send as one super-packet, the Mac gets as single packets.
    linux.python("-c", SEND_A_TRAIN.replace("10.86.0.2", "10.86.0.1")).wait(10)
    wait_for(lambda: server.tell("received") == "1000 1000 1000 1000", "four datagrams, each complete")

    # The client comes back after a kill, to the same address.
    client.kill()
    client.start()
    assert client.wait_connected()["address"] == "10.86.0.2"
    assert can_ping(linux, "10.86.0.1", count=5)
    assert client.stop() == 0
    assert server.stop() == (0, "left behind: 0 routes, 0 devices")
    assert "Traceback" not in server.log


def _connected(row: dict[str, object]) -> dict[str, object]:
    return row if row.get("state") == "connected" else {}
