"""dtun and the original Go dtun, played by the Go peer: each as the server of the other, with real packets."""

import asyncio
import base64
import hashlib
import random
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self

import pytest
import yaml

from dtun.config import keys
from dtun.dtls.association import AssociationState
from dtun.dtls.engine import ClientEngine
from dtun.service.control import ask
from tests.interop.gopeer.peer import PION, GoPeer

# The helpers for namespaces are imported by their bare names, as they import each other.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "netns"))

from daemon import Daemon, can_ping
from topology import Host, Topology, missing, sweep, wait_for

pytestmark = [pytest.mark.netns, pytest.mark.interop]

SERVER, CLIENT = "198.51.100.1", "198.51.100.2"
HANDSHAKE_OVER, APPLICATION_DATA = 0x14, 0x17
"""The first byte of a handshake's last flight (change_cipher_spec), and of all records after it."""

Row = dict[str, Any]


class World:
    """A server host and a client host, a cable between them, one key for the Go dtun with the id "old"."""

    def __init__(self, net: Topology, peers: ExitStack, directory: Path) -> None:
        self.net = net
        self.directory = directory
        self.key = keys.generate(go=True)
        self.left, self.right = net.host("left"), net.host("right")
        net.cable(self.left, "eth0", self.right, "eth0", f"{SERVER}/24", f"{CLIENT}/24")
        self._peers = peers

    def key_file(self, key: str | None = None) -> str:
        """A file with this key, or with that of "old"."""
        text = key or self.key
        path = self.directory / f"key-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        path.touch(0o600)
        path.write_text(text)
        return str(path)

    def native_key_file(self) -> str:
        """The key of "old" as a native client needs it: on the wire it is the same pre-shared key."""
        return self.key_file(base64.b64encode(self.key.encode()).decode())

    def server(self, clients: Row | None = None, **settings: Any) -> Daemon:
        """A dtun server; without `clients` it knows the Go dtun "old", which may push any part of 10.0.0.0/16."""
        old = {"key_file": self.key_file(), "compat": "go", "subnets": ["10.0.0.0/16"]}
        return Daemon(self.left, "server", {"clients": clients or {"old": old}, **settings}, self.directory)

    def client(self, **settings: Any) -> Daemon:
        """A dtun client, for a Go server unless `compat` says otherwise."""
        section = {"servers": [SERVER], "id": "old", "key_file": self.key_file(), "compat": "go", **settings}
        return Daemon(self.right, "client", section, self.directory)

    def go_server(self) -> GoPeer:
        peer = self._go(self.left, "server")
        peer.wait_for("LISTENING")
        return peer

    def go_client(self, *options: str) -> GoPeer:
        """A Go client; `options` may overrule its id and its key."""
        return self._go(self.right, "client", "-id", "old", *options)

    def _go(self, host: Host, role: str, *options: str) -> GoPeer:
        log = self.directory / f"go-{role}-{random.randrange(1 << 32):08x}"
        options = ("-addr", f"{SERVER}:443", "-key", self.key, *options)
        return self._peers.enter_context(GoPeer(host.namespace, role, log, options=options))


@pytest.fixture(scope="session", autouse=True)
def _go_and_namespaces() -> None:
    reason = missing()
    if shutil.which("go") is None or not PION.exists():
        reason = "the Go peer needs golang-go and golang-github-pion-dtls.v2-dev"
    if reason is not None:
        pytest.skip(f"the Go dtun's protocol cannot be tested here: {reason}")
    sweep()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with Topology() as net, ExitStack() as peers:
        yield World(net, peers, tmp_path)
        for log in tmp_path.glob("*/log"):
            assert "Traceback" not in log.read_text(), log.read_text()


def echoed(world: World, near: str, far: str, size: int = 3 << 20) -> bool:
    """Whether as many random bytes, sent by TCP from the client's host and echoed, come back as they were."""
    echo = world.left.python("tests/netns/steady_tcp.py", "serve", far, "7000", stdout=subprocess.PIPE)
    assert echo.stdout is not None
    assert echo.stdout.readline() == "ready\n"
    data = random.Random(7).randbytes(size)

    async def there_and_back() -> str:
        reader, writer = await asyncio.open_connection(far, 7000, local_addr=(near, 0))
        writer.write(data)
        came = hashlib.sha256(await reader.readexactly(size)).hexdigest()
        writer.close()
        await writer.wait_closed()
        return came

    return (
        world.right.play(lambda: asyncio.wait_for(there_and_back(), 30)) == hashlib.sha256(data).hexdigest()
    )


class Lost:
    """While the `with` block lasts, records that begin with this byte do not arrive at a host."""

    def __init__(self, host: Host, first_byte: int) -> None:
        self._host = host
        # 64 bits after the start of the UDP header is the first byte of the datagram.
        rule = f"meta l4proto udp @th,64,8 {first_byte} counter drop"
        self._table = f"table ip lossy {{ chain in {{ type filter hook input priority 0; {rule}; }}; }}"

    def __enter__(self) -> Self:
        self._host.run("nft", self._table)
        return self

    def __exit__(self, *_: object) -> None:
        self._host.run("nft", "delete table ip lossy")

    def wait(self) -> None:
        """Wait until one was lost."""
        wait_for(lambda: re.search(r"packets [1-9]", self._host.run("nft", "list ruleset")), "a lost record")


def error_of(peer: GoPeer) -> str:
    """What a Go client that failed has said, without the time."""
    assert peer.process.wait(20) == 1
    return re.sub(r"(?m)^[\d:.]+ ", "", peer._log.read_text())


# A dtun server and Go clients


def test_a_go_client_gets_addresses_and_its_subnet_and_carries_packets_both_ways(world: World) -> None:
    server = world.server()
    client = world.go_client("-peernet", "10.0.3.0/24")

    up = client.wait_for("UP")
    assert (up["LOCAL_IP"], up["PEER_IP"]) == ("10.86.0.2", "10.86.0.1")
    row = server.wait_connected("old")
    assert (row["peer_address"], row["address"]) == ("10.86.0.2", "10.86.0.1")
    assert (row["suite"], row["offloaded"]) == ("PSK-AES-128-CCM-8", True)
    assert row["subnets"] == ["10.0.3.0/24"]
    assert "10.0.3.0/24 dev dtun-old proto 217" in world.left.ip("route")

    world.right.ip("address add 10.0.3.1/24 dev lo")
    assert can_ping(world.right, "10.86.0.1", count=5)
    assert can_ping(world.left, "10.0.3.1", count=5)
    # The Go dtun's MTU is 1500: its largest packets are fragmented outside, and arrive.
    world.right.run("ping", "-q", "-c2", "-i0.05", "-s1472", "10.86.0.1")
    assert echoed(world, "10.0.3.1", "10.86.0.1")

    assert server.stop() == 0
    # Whichever comes first: the close_notify, or a packet of its kernel's for the tunnel that is gone.
    assert "closed" in client.wait_for("DOWN")["REASON"]


def test_what_a_go_client_may_not_push_is_refused_and_the_tunnel_works_all_the_same(world: World) -> None:
    server = world.server()
    world.go_client("-peernet", "10.1.0.0/16").wait_for("UP")
    server.wait_connected("old")

    server.wait_log("old: subnets refused: 10.1.0.0/16: the server's configuration does not allow it")
    assert server.tunnel("old")["subnets"] == []
    assert "10.1.0.0/16" not in world.left.ip("route")
    assert can_ping(world.right, "10.86.0.1")


def test_a_go_client_that_starts_again_takes_its_identity_over(world: World) -> None:
    server = world.server()
    first = world.go_client("-peernet", "10.0.0.0/16")
    first.wait_for("UP")
    before = server.wait_connected("old")
    first.kill()

    # This one has nothing behind it, and says so with "empty", which begins as an IPv6 packet does.
    second = world.go_client()

    assert second.wait_for("UP")["LOCAL_IP"] == "10.86.0.2"
    wait_for(lambda: server.tunnel("old")["endpoint"] != before["endpoint"], "the new session")
    assert server.tunnel("old")["subnets"] == []
    assert "10.0.0.0/16" not in world.left.ip("route")
    assert can_ping(world.right, "10.86.0.1", count=3)
    assert can_ping(world.left, "10.86.0.2", count=3)


@pytest.mark.parametrize("what", [HANDSHAKE_OVER, APPLICATION_DATA], ids=["last flight", "greeting"])
def test_what_the_server_says_first_may_get_lost(world: World, what: int) -> None:
    server = world.server()
    with Lost(world.right, what) as lost:
        client = world.go_client()
        lost.wait()
        assert not client.events("UP")

    assert client.wait_for("UP")["LOCAL_IP"] == "10.86.0.2"
    assert server.wait_connected("old")["offloaded"] is True
    assert can_ping(world.right, "10.86.0.1")


def test_a_lost_answer_ends_the_client_so_that_it_can_start_again(world: World) -> None:
    server = world.server()
    with Lost(world.left, APPLICATION_DATA) as lost:
        client = world.go_client()
        lost.wait()

    client.wait_for("DOWN")
    assert server.tunnel("old")["state"] == "away"
    world.go_client().wait_for("UP")
    server.wait_connected("old")


@pytest.mark.parametrize("answer", ["10.0.0.0", "fd00::/8", "E" * 60])
def test_an_answer_that_names_no_ipv4_subnet_ends_the_session(world: World, answer: str) -> None:
    server = world.server()

    client = world.go_client("-peernet", answer)

    # Which of the peer's two directions notices it first is a matter of luck.
    reason = client.wait_for("DOWN")["REASON"]
    assert "closed by the peer" in reason or "conn is closed" in reason
    assert server.tunnel("old")["state"] == "away"
    server.wait_log("ended before its login: the client did not name the IPv4 subnet behind it")


def test_one_entry_serves_go_clients_of_any_id_beside_a_native_client(world: World) -> None:
    anybody = {"key_file": world.key_file(), "compat": "go", "subnets": "private"}
    server = world.server({"*": anybody, "new": {"key_file": world.native_key_file()}})
    native = world.client(id="new", key_file=world.native_key_file(), compat=None)
    native.wait_connected()

    ups = [world.go_client("-id", name, "-tun", name).wait_for("UP") for name in ("one", "two")]

    rows = {name: server.wait_connected(name) for name in ("one", "two", "new")}
    assert [up["LOCAL_IP"] for up in ups] == [rows[name]["peer_address"] for name in ("one", "two")]
    assert len({row["peer_address"] for row in rows.values()}) == 3
    assert {row["suite"] for row in rows.values()} == {"PSK-AES-128-CCM-8", "ECDHE-PSK-CHACHA20-POLY1305"}
    assert rows["new"]["suite"] == "ECDHE-PSK-CHACHA20-POLY1305"
    for device in ("one", "two", "dtun0"):
        world.right.run("ping", "-q", "-c1", "-W2", "-I", device, "10.86.0.1")


def test_knowing_the_id_of_a_go_client_is_not_enough_to_cut_it_off(world: World) -> None:
    server = world.server()
    world.go_client().wait_for("UP")
    before = server.wait_connected("old")

    assert "handshake" in error_of(world.go_client("-key", "guessed"))

    after = server.tunnel("old")
    assert (after["endpoint"], after["since"]) == (before["endpoint"], before["since"])
    assert can_ping(world.right, "10.86.0.1", count=3)


# A Go server and a dtun client


def test_a_dtun_client_gets_on_with_a_go_server_and_comes_back_when_that_starts_again(world: World) -> None:
    server = world.go_server()
    client = world.client(subnets=["10.0.0.0/16"])
    row = client.wait_connected()
    assert (row["address"], row["peer_address"]) == ("10.86.0.2", "10.86.0.1")
    assert (row["suite"], row["offloaded"]) == ("PSK-AES-128-CCM-8", True)
    up = server.wait_for("UP")
    assert (up["ID"], up["NETWORK"], up["LOCAL_IP"]) == ("old", "10.0.0.0/16", "10.86.0.1")
    # A Go server leaves the route and, when it ends, nothing: the address of the connection is to stay.
    world.left.ip(f"route add 10.0.0.0/16 dev {up['TUN']}")
    world.left.ip("address add 10.86.0.1/32 dev lo")
    world.right.ip("address add 10.0.0.1/32 dev lo")

    assert can_ping(world.right, "10.86.0.1", count=5)
    assert can_ping(world.left, "10.0.0.1", count=5)
    assert echoed(world, "10.0.0.1", "10.86.0.1")

    talker = steady_tcp(world, "10.86.0.1")
    # No goodbye, no keepalive: that nobody listens there any more is what the client goes by.
    server.kill()
    wait_for(lambda: "ECONNREFUSED" in str(client.tunnel()["drops"]), "the first refusal")
    again = world.go_server()
    assert again.wait_for("UP")["PEER_IP"] == "10.86.0.2"

    lines, _ = talker.communicate("enough\n", timeout=20)
    assert talker.returncode == 0, lines
    assert can_ping(world.right, "10.86.0.1")
    assert client.tunnel()["address"] == "10.86.0.2"
    assert len(again.events("UP")) == 1

    assert client.stop() == 0
    assert "closed by the peer" in again.wait_for("DOWN")["REASON"]
    assert "dtun0" not in world.right.ip("link")


def steady_tcp(world: World, address: str) -> "subprocess.Popen[str]":
    """A TCP connection from the client's host; told "enough", it ends well if every byte came back."""
    pipe, script = subprocess.PIPE, "tests/netns/steady_tcp.py"
    served = world.left.python(script, "serve", address, "7001", stdout=pipe)
    assert served.stdout is not None
    assert served.stdout.readline() == "ready\n"
    talker = world.right.python(script, "talk", address, "7001", stdin=pipe, stdout=pipe)
    assert talker.stdout is not None
    assert talker.stdout.readline() == "ready\n"
    return talker


@pytest.mark.parametrize("pool", ["64.0.0.0/24", "100.64.0.0/24"])
def test_a_greeting_may_look_like_an_ip_packet(world: World, pool: str) -> None:
    # 64 is 0x40 and 100 is 0x64: the first four bits are those of IPv4 and of IPv6.
    server = world.server(pool=pool)
    client = world.client()

    address = pool.replace("0/24", "2")
    assert client.wait_connected()["address"] == address
    assert server.wait_connected("old")["peer_address"] == address
    assert can_ping(world.left, address, count=3)
    assert "tun write" not in str(client.tunnel()["drops"])


# Moving from one to the other (docs/from-go-dtun.md), a client keeping its id


def test_one_client_after_another_moves_to_dtun_and_can_go_back(world: World) -> None:
    old = {"key_file": world.key_file(), "compat": "go"}
    home, office = {**old, "subnets": ["10.0.0.0/16"]}, {**old, "subnets": ["10.1.0.0/16"]}
    server = world.server({"home": home, "office": office})
    before = world.go_client("-id", "home", "-peernet", "10.0.0.0/16")
    before.wait_for("UP")
    world.go_client("-id", "office", "-peernet", "10.1.0.0/16", "-tun", "office").wait_for("UP")
    untouched = server.wait_connected("office")

    before.kill()
    new_key = world.key_file(keys.generate())
    reload(server, {"home": {"key_file": new_key, "subnets": ["10.0.0.0/16"]}, "office": office})
    client = world.client(id="home", key_file=new_key, compat=None, subnets=["10.0.0.0/16"])

    client.wait_connected()
    row = server.wait_connected("home")
    assert (row["suite"], row["subnets"]) == ("ECDHE-PSK-CHACHA20-POLY1305", ["10.0.0.0/16"])
    now = server.tunnel("office")
    assert (now["suite"], now["since"]) == ("PSK-AES-128-CCM-8", untouched["since"])

    reload(server, {"home": home, "office": office})
    assert client.stop() == 0
    world.go_client("-id", "home", "-peernet", "10.0.0.0/16").wait_for("UP")
    assert server.wait_connected("home")["subnets"] == ["10.0.0.0/16"]


def reload(server: Daemon, clients: Row) -> None:
    """Have a server go on with other entries."""
    server.section["clients"] = clients
    server.config.write_text(yaml.safe_dump({"server": server.section}))
    lines = (ask(Path(server.section["runtime_directory"]) / "server.sock", "reload", timeout=30))["lines"]
    assert any("home: compat is" in line for line in lines), lines


# What is off by default


def test_an_entry_without_compat_refuses_a_go_client_as_it_refuses_a_wrong_key(world: World) -> None:
    other = {"key_file": world.key_file(keys.generate(go=True)), "compat": "go"}
    server = world.server({"old": {"key_file": world.native_key_file()}, "other": other})

    right_key = world.go_client()
    wrong_key = world.go_client("-id", "other")
    unknown_id = world.go_client("-id", "stranger")

    assert error_of(right_key) == error_of(wrong_key) == error_of(unknown_id)
    assert not [row for row in (server.ask() or {})["tunnels"] if row["state"] != "away"]
    server.wait_log(
        "id 'old' failed: it is an original Go dtun, which its entry does not allow; set `compat: go` there"
    )


def test_a_server_without_any_compat_has_no_suite_for_a_go_client(world: World) -> None:
    server = world.server({"old": {"key_file": world.native_key_file()}})

    assert "handshake" in error_of(world.go_client())

    # It did not come as far as to present its id.
    assert (server.ask() or {})["drops"]["refused"] == 1
    assert "'old'" not in server.log


def test_a_native_suite_without_dtuns_protocol_does_not_make_a_go_client(world: World) -> None:
    server = world.server({"old": {"key_file": world.native_key_file()}})
    heard: list[bytes] = []

    async def any_dtls_client() -> bool:
        association = ClientEngine("old", world.key.encode(), native=False).associate(time.monotonic())
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.connect((SERVER, 443))
            udp.settimeout(0.05)
            deadline = time.monotonic() + 10
            while association.state is not AssociationState.CLOSED and time.monotonic() < deadline:
                for datagram in association.take_outgoing():
                    udp.send(datagram)
                with suppress(TimeoutError):
                    heard.extend(association.receive(udp.recv(65535), time.monotonic()))
                association.poll(time.monotonic())
        return association.state is AssociationState.CLOSED

    assert world.right.play(any_dtls_client)
    assert heard == []
    server.wait_log("ended before its login: the client does not speak dtun's protocol")


def test_an_id_of_a_go_client_cannot_log_in_with_a_native_suite(world: World) -> None:
    server = world.server()
    client = world.client(key_file=world.native_key_file(), compat=None)

    client.wait_log("the server does not accept the id or the key")
    server.wait_log(
        "its entry is for an original Go dtun; remove `compat: go` there, or set it on the client"
    )

    assert server.tunnel("old")["state"] == "away"


def test_a_client_without_compat_is_told_what_to_set_for_a_go_server(world: World) -> None:
    server = world.go_server()
    client = world.client(key_file=world.native_key_file(), compat=None)

    client.wait_log("if that is an original Go dtun, set `compat: go`")

    assert not server.events("UP")


def test_a_short_key_works_on_both_sides_with_a_warning(world: World) -> None:
    world.key = "Zq7#x"
    server, client = world.server(), world.client()

    client.wait_connected()

    for daemon in (server, client):
        daemon.wait_log("a key of 5 bytes can be guessed")
        assert world.key not in daemon.log
