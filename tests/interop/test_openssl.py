"""The offloaded record layer against OpenSSL, over loopback."""

import select
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

from dtun.config import Key
from dtun.dtls.association import Association, AssociationState
from dtun.dtls.engine import ClientEngine, ServerEngine
from dtun.dtls.listener import Listener, Path, Verified
from dtun.dtls.suites import (
    ECDHE_PSK_CHACHA20_POLY1305,
    PSK_AES_128_CCM_8,
    PSK_AES_128_GCM,
    PSK_AES_256_GCM,
    Suite,
)

pytestmark = [
    pytest.mark.interop,
    pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl program to talk to"),
]

KEY = b"\x5a" * 32
SUITES = {
    "ECDHE-PSK-CHACHA20-POLY1305": ECDHE_PSK_CHACHA20_POLY1305,
    "PSK-AES128-GCM-SHA256": PSK_AES_128_GCM,
    "PSK-AES256-GCM-SHA384": PSK_AES_256_GCM,
    "PSK-AES128-CCM8": PSK_AES_128_CCM_8,
}
every_suite = pytest.mark.parametrize(("cipher", "suite"), SUITES.items(), ids=SUITES)

Run = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def run_openssl() -> Iterator[Run]:
    running: list[subprocess.Popen[bytes]] = []

    def run(*arguments: str, cipher: str) -> "subprocess.Popen[bytes]":
        command = [
            "openssl",
            *arguments,
            "-dtls1_2",
            "-psk",
            KEY.hex(),
            "-cipher",
            f"{cipher}:@SECLEVEL=0",
            "-quiet",
        ]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0
        )
        running.append(process)
        return process

    yield run
    for process in running:
        process.kill()
        process.communicate()


@pytest.fixture
def udp() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as endpoint:
        endpoint.bind(("127.0.0.1", 0))
        yield endpoint


def said_by(process: "subprocess.Popen[bytes]", text: bytes) -> bool:
    """Whether a process prints a text within a few seconds."""
    assert process.stdout is not None
    printed, deadline = b"", time.monotonic() + 5
    while text not in printed and (left := deadline - time.monotonic()) > 0:
        if select.select([process.stdout], [], [], left)[0]:
            chunk = process.stdout.read(4096)
            if not chunk:
                break
            printed += chunk
    return text in printed


@every_suite
def test_our_client_talks_with_openssl_s_server(
    cipher: str, suite: Suite, run_openssl: Run, udp: socket.socket
) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = run_openssl("s_server", "-accept", f"127.0.0.1:{port}", "-nocert", "-listen", cipher=cipher)
    udp.settimeout(0.05)
    client, heard = shake_hands(udp, port, suite)
    assert client.suite is suite
    assert client.takeover_done
    assert client.records.offloaded
    udp.sendto(client.seal(b"from dtun\n"), ("127.0.0.1", port))
    assert said_by(server, b"from dtun")
    assert server.stdin is not None
    server.stdin.write(b"from openssl\n")
    deadline = time.monotonic() + 5
    while b"from openssl\n" not in heard and time.monotonic() < deadline:
        heard += receive(udp, client)
    assert b"from openssl\n" in heard


def shake_hands(udp: socket.socket, port: int, suite: Suite) -> tuple[Association, list[bytes]]:
    """Try until the server is up: before that, loopback refuses what is sent."""
    client = ClientEngine("demo", KEY, (suite,), native=False).associate(time.monotonic())
    heard: list[bytes] = []
    deadline = time.monotonic() + 10
    while client.state is AssociationState.HANDSHAKING and time.monotonic() < deadline:
        for datagram in client.take_outgoing():
            udp.sendto(datagram, ("127.0.0.1", port))
        heard += receive(udp, client)
        client.poll(time.monotonic())
    assert client.state is AssociationState.ESTABLISHED, client.failure
    return client, heard


def receive(udp: socket.socket, association: Association) -> list[bytes]:
    try:
        return list(association.receive(udp.recv(65536), time.monotonic()))
    except TimeoutError:
        return []


@every_suite
def test_openssl_s_client_talks_with_our_server(
    cipher: str, suite: Suite, run_openssl: Run, udp: socket.socket
) -> None:
    listener = Listener(
        ServerEngine((suite,)), lambda _path, identity, _suite: Key(KEY) if identity == "site" else None
    )
    address = f"127.0.0.1:{udp.getsockname()[1]}"
    client = run_openssl("s_client", "-connect", address, "-psk_identity", "site", cipher=cipher)
    assert client.stdin is not None
    client.stdin.write(b"from openssl\n")
    udp.settimeout(5)
    server: Association | None = None
    heard: list[bytes] = []
    while b"from openssl\n" not in heard:
        datagram, peer = udp.recvfrom(65536)
        path, now = Path(1, peer, "127.0.0.1"), time.monotonic()
        if server is None:
            listener.receive(datagram, path, now)
        else:
            heard += server.receive(datagram, now)
        for event in listener.take_events():
            assert isinstance(event, Verified), event
            server = event.association
            heard += event.early
        for reply, to in listener.take_outgoing():
            udp.sendto(reply, to.peer)
    assert server is not None
    assert server.identity == "site"
    assert server.takeover_done
    assert server.records.offloaded
    udp.sendto(server.seal(b"from dtun\n"), peer)
    assert said_by(client, b"from dtun")
