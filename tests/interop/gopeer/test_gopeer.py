"""The Go peer gets on with itself: what it says about dtun can be believed."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop.gopeer.peer import GoPeer

pytestmark = [
    pytest.mark.netns,
    pytest.mark.interop,
    pytest.mark.skipif(
        os.geteuid() != 0 or not Path("/dev/net/tun").exists(), reason="needs root and /dev/net/tun"
    ),
]

SERVER, CLIENT = (f"gopeer{os.getpid()}{side}" for side in "sc")


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, timeout=10)


@pytest.fixture
def two_hosts() -> Iterator[None]:
    """A server (192.0.2.1, and 10.1.0.1 behind it) and a client (192.0.2.2), joined by a cable."""
    try:
        ip("netns", "add", SERVER)
        ip("netns", "add", CLIENT)
        ip("-n", SERVER, "link", "add", "outside", "type", "veth", "peer", "name", "outside", "netns", CLIENT)
        for namespace, address in ((SERVER, "192.0.2.1/24"), (CLIENT, "192.0.2.2/24")):
            ip("-n", namespace, "addr", "add", address, "dev", "outside")
            ip("-n", namespace, "link", "set", "outside", "up")
            ip("-n", namespace, "link", "set", "lo", "up")
        yield
    finally:
        for namespace in (SERVER, CLIENT):
            subprocess.run(["ip", "netns", "del", namespace], check=False, timeout=10)


def ping(namespace: str, address: str, size: int = 56) -> bool:
    command = ["ip", "netns", "exec", namespace, "ping", "-c1", "-W1", "-s", str(size), address]
    return subprocess.run(command, check=False, capture_output=True, timeout=10).returncode == 0


@pytest.mark.usefixtures("two_hosts")
def test_client_and_server_carry_packets_until_one_is_gone(tmp_path: Path) -> None:
    listen = ["-addr", "192.0.2.1:4433", "-key", "short", "-id", "hint"]
    connect = ["-addr", "192.0.2.1:4433", "-key", "short", "-id", "demo", "-peernet", "10.0.0.0/16"]
    with GoPeer(SERVER, "server", tmp_path / "server", options=listen) as server:
        server.wait_for("LISTENING")
        with GoPeer(CLIENT, "client", tmp_path / "client", options=connect) as client:
            at_client = client.wait_for("UP")
            assert (at_client["LOCAL_IP"], at_client["PEER_IP"]) == ("10.86.0.2", "10.86.0.1")
            at_server = server.wait_for("UP")
            assert (at_server["LOCAL_IP"], at_server["PEER_IP"]) == ("10.86.0.1", "10.86.0.2")
            assert (at_server["ID"], at_server["NETWORK"]) == ("demo", "10.0.0.0/16")

            assert ping(CLIENT, "10.86.0.1")
            assert ping(SERVER, "10.86.0.2", size=1472)  # an inner packet of 1,500 bytes

            # As with the original: no goodbye, no keepalive, no second try; a refused packet ends it.
            server.kill()
            assert not ping(CLIENT, "10.86.0.1")
            assert "refused" in client.wait_for("DOWN")["REASON"]
            assert client.process.wait(5) == 0


@pytest.mark.usefixtures("two_hosts")
def test_another_key_is_refused(tmp_path: Path) -> None:
    quick = ["-addr", "192.0.2.1:4433", "-handshake", "1s"]
    with GoPeer(SERVER, "server", tmp_path / "server", options=[*quick, "-key", "right"]) as server:
        server.wait_for("LISTENING")
        with GoPeer(CLIENT, "client", tmp_path / "client", options=[*quick, "-key", "wrong"]) as client:
            assert client.process.wait(10) == 1
            server.wait_for("REFUSED")
        assert not server.events("UP")


@pytest.mark.usefixtures("two_hosts")
def test_a_peer_ends_by_itself_when_its_time_is_up(tmp_path: Path) -> None:
    with GoPeer(
        SERVER, "server", tmp_path / "server", options=["-addr", "192.0.2.1:4433", "-seconds", "1"]
    ) as server:
        server.wait_for("TIMEOUT")
        assert server.process.wait(5) == 0
