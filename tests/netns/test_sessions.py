"""What happens to a tunnel, and to the TCP connections in it, while the world around it changes."""

import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from daemon import Daemon, can_ping, make_key, network_of
from topology import Host, Topology, wait_for

pytestmark = pytest.mark.netns

SERVER, CLIENT = "198.51.100.1", "198.51.100.2"


class World:
    """A server host and a client host, a cable between them, one key for the id "demo"."""

    def __init__(self, net: Topology, directory: Path) -> None:
        self.net = net
        self.directory = directory
        self.key = str(make_key(directory))
        self.left, self.right = net.host("left"), net.host("right")
        net.cable(self.left, "eth0", self.right, "eth0", f"{SERVER}/24", f"{CLIENT}/24")

    def server(self, **settings: Any) -> Daemon:
        section = {"clients": {"demo": {"key_file": self.key}}, **settings}
        return Daemon(self.left, "server", section, self.directory)

    def client(self, host: Host | None = None, **settings: Any) -> Daemon:
        section = {"servers": [SERVER], "id": "demo", "key_file": self.key, **settings}
        return Daemon(host or self.right, "client", section, self.directory)

    def relay(self, *faults: str) -> subprocess.Popen[str]:
        """A relay on the client's host, at 127.0.0.1:4443, to the server."""
        command = ("tests/netns/relay.py", "127.0.0.1", "4443", SERVER, "443", *faults)
        relay = self.right.python(*command, stdout=subprocess.PIPE)
        assert relay.stdout is not None
        assert relay.stdout.readline() == "ready\n"
        return relay

    def steady_tcp(self) -> "SteadyTcp":
        return SteadyTcp(self)


class SteadyTcp:
    """A TCP connection from the client's host to the server's address in the tunnel that checks every byte."""

    def __init__(self, world: World) -> None:
        script = "tests/netns/steady_tcp.py"
        server = world.left.python(script, "serve", "10.86.0.1", "7000", stdout=subprocess.PIPE)
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        self._talker = world.right.python(
            script, "talk", "10.86.0.1", "7000", stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._talker.stdout is not None
        assert self._talker.stdout.readline() == "ready\n"

    def finish(self) -> tuple[int, float]:
        """End it; how many lines went there and back, and the longest that one of them took, in seconds."""
        output, _ = self._talker.communicate("enough\n", timeout=30)
        assert self._talker.returncode == 0
        match = re.fullmatch(r"(\d+) lines, longest wait ([\d.]+) s\n", output)
        assert match is not None, output
        return int(match[1]), float(match[2])


@pytest.fixture
def world(net: Topology, tmp_path: Path) -> World:
    return World(net, tmp_path)


@pytest.fixture
def tunnel(world: World) -> Iterator[tuple[World, Daemon, Daemon]]:
    """A tunnel that is up, with short timers."""
    server = world.server(keepalive=0.5, timeout=3)
    client = world.client()
    client.wait_connected()
    wait_for(lambda: can_ping(world.right, "10.86.0.1"), "the first ping")
    yield world, server, client
    assert "Traceback" not in server.log + client.log


Tunnel = tuple[World, Daemon, Daemon]


def endpoint(server: Daemon) -> str | None:
    """Where the server sees its client."""
    value: str | None = server.tunnel()["endpoint"]
    return value


def without_indexes(host: Host) -> set[str]:
    """The host's network, in which a device may have been made anew."""
    return {re.sub(r"^\d+: ", "", line) for line in network_of(host)}


def test_tcp_survives_a_killed_and_restarted_server(tunnel: Tunnel) -> None:
    world, server, client = tunnel
    tcp_address = "10.86.0.1/32"
    world.left.ip(
        f"address add {tcp_address} dev lo"
    )  # the address of the connection stays; the device does not
    tcp = world.steady_tcp()

    server.kill()
    began = time.monotonic()
    server.start()
    server.wait_connected()
    wait_for(lambda: can_ping(world.right, "10.86.0.1"), "a ping after the restart")

    assert time.monotonic() - began < 10
    assert server.tunnel()["peer_address"] == client.tunnel()["address"]
    lines, _ = tcp.finish()
    assert lines > 0


def test_a_stopped_server_says_goodbye_and_the_client_waits_for_it(tunnel: Tunnel) -> None:
    world, server, client = tunnel

    assert server.stop() == 0
    wait_for(lambda: client.tunnel()["state"] == "connecting", "the client to notice", 2)
    assert client.tunnel()["last_error"]
    server.start()
    client.wait_connected()

    assert can_ping(world.right, "10.86.0.1")


def test_a_stopped_client_says_goodbye_and_the_device_stays(tunnel: Tunnel) -> None:
    world, server, client = tunnel

    assert client.stop() == 0
    wait_for(lambda: server.tunnel()["state"] == "away", "the server to notice", 2)

    assert "dtun-demo" in world.left.ip("link")
    assert "dtun0" not in world.right.ip("link")


@pytest.mark.parametrize("side", ["server", "client"])
@pytest.mark.parametrize("theft", ["link del DEVICE", "link set DEVICE down", "address flush dev DEVICE"])
def test_a_device_that_another_program_takes_is_back_in_a_second(
    tunnel: Tunnel, side: str, theft: str
) -> None:
    world, server, client = tunnel
    host, daemon = (world.left, server) if side == "server" else (world.right, client)
    served, before = endpoint(server), without_indexes(host)
    began = time.monotonic()

    host.ip(theft.replace("DEVICE", daemon.tunnel()["device"]))
    wait_for(lambda: can_ping(world.right, "10.86.0.1"), "the tunnel to work again")

    assert time.monotonic() - began < 5, "a second, on an idle machine"
    assert endpoint(server) == served, "in the same session"
    assert daemon.tunnel()["state"] == "connected"
    assert without_indexes(host) == before
    assert "restored after removal by another program" in daemon.log


def test_a_device_that_cannot_be_made_is_never_called_connected(tunnel: Tunnel) -> None:
    world, server, client = tunnel

    server.process.send_signal(signal.SIGSTOP)  # or it would be first
    world.left.ip("link del dtun-demo")
    world.left.ip("link add dtun-demo type veth peer name other")
    server.process.send_signal(signal.SIGCONT)
    wait_for(lambda: server.tunnel()["state"] == "device down", "the server to notice")

    assert any("dtun-demo is down or gone" in line for line in server.tunnel()["warnings"])
    client.stop()
    client.start()
    client.wait_connected()
    assert server.tunnel()["state"] == "device down", "with another session, too"
    world.left.ip("link del dtun-demo")
    wait_for(lambda: can_ping(world.right, "10.86.0.1"), "the tunnel to work again")
    assert server.tunnel()["state"] == "connected"


def test_a_silent_client_is_dead_after_the_timeout(tunnel: Tunnel) -> None:
    _, server, client = tunnel

    client.kill()
    wait_for(lambda: server.tunnel()["state"] == "away", "the server to give the client up", 8)

    assert server.tunnel()["last_error"] == "nothing was received for 3 s"


def test_tcp_survives_a_new_client_address(tunnel: Tunnel) -> None:
    world, server, client = tunnel
    tcp = world.steady_tcp()
    before = endpoint(server)

    world.right.ip("address add 198.51.100.77/24 dev eth0")
    world.right.ip(f"address del {CLIENT}/24 dev eth0")
    world.right.ip("address replace 198.51.100.77/24 dev eth0")
    wait_for(lambda: (endpoint(server) or "").startswith("198.51.100.77:"), "the session to move", 8)

    assert before is not None
    assert before.startswith(CLIENT)
    wait_for(lambda: can_ping(world.right, "10.86.0.1"), "a ping from the new address")
    assert tcp.finish()[0] > 0
    assert client.tunnel()["state"] == "connected"


def test_a_renewed_session_loses_no_packet(world: World) -> None:
    server = world.server()
    client = world.client(rekey=60)
    client.wait_connected()
    wait_for(lambda: can_ping(world.right, "10.86.0.1"), "the first ping")
    before = endpoint(server)

    # What a due renewal does is done here by a hint: a new session beside the one that works.
    pinging = world.right.popen("ping", "-q", "-i", "0.005", "-c", "400", "10.86.0.1", stdout=subprocess.PIPE)
    hint(world, client, server)
    wait_for(lambda: endpoint(server) != before, "a new session")
    output, _ = pinging.communicate(timeout=30)

    assert "400 received" in output
    assert client.log.count("connected to") == 2


def hint(world: World, client: Daemon, server: Daemon) -> None:
    """Tell the client, as the server's address and unauthenticated, that its session is not known there."""
    port = int(str(endpoint(server)).rpartition(":")[2])
    forged = (
        "import socket; from dtun.protocol.record import hello_request;"
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.setsockopt(1, 15, 1);"
        f"s.bind(('{SERVER}', 443)); s.sendto(hello_request(0), ('{CLIENT}', {port}))"
    )
    assert world.left.python("-c", forged).wait(20) == 0
    assert client.tunnel()["state"] == "connected"


def test_the_session_follows_a_nat_that_forgets(world: World) -> None:
    server = world.server(keepalive=0.5, timeout=3)
    relay = world.relay()
    client = world.client(servers=["127.0.0.1:4443"])
    client.wait_connected()
    wait_for(lambda: can_ping(world.right, "10.86.0.1"), "the first ping")
    before, since = endpoint(server), server.tunnel()["since"]

    relay.send_signal(signal.SIGUSR1)
    wait_for(lambda: can_ping(world.right, "10.86.0.1"), "a ping through the new mapping")

    assert endpoint(server) != before
    assert server.tunnel()["since"] == since
    assert client.log.count("connected to") == 1
    assert server.log.count("connected from") == 1


def test_a_tunnel_works_over_a_bad_network(world: World) -> None:
    world.server(keepalive=0.5, timeout=5)
    world.relay("42", "0.15")
    client = world.client(servers=["127.0.0.1:4443"])
    client.wait_connected(timeout=40)
    tcp = world.steady_tcp()

    wait_for(lambda: client.tunnel()["rx_packets"] > 100, "a hundred packets", 30)

    assert tcp.finish()[0] > 0


def test_the_next_server_is_tried_after_a_failure(world: World) -> None:
    world.server()
    client = world.client(servers=["198.51.100.250:443", f"{SERVER}:4", SERVER])

    assert client.wait_connected()["endpoint"] == f"{SERVER}:443"


def test_knowing_an_id_disturbs_nobody(tunnel: Tunnel) -> None:
    world, server, client = tunnel
    attacker = world.net.host("attacker")
    world.net.cable(world.left, "eth1", attacker, "eth0", "192.0.2.1/24", "192.0.2.66/24")
    wrong_key = make_key(world.directory, "wrong")
    before, since = endpoint(server), server.tunnel()["since"]

    pinging = world.right.popen("ping", "-q", "-i", "0.02", "-c", "250", "10.86.0.1", stdout=subprocess.PIPE)
    known = world.client(attacker, servers=["192.0.2.1"], key_file=str(wrong_key))
    known.wait_log("the server does not accept the id or the key")
    known.stop()
    stranger = world.client(attacker, servers=["192.0.2.1"], id="nobody", key_file=str(wrong_key))
    stranger.wait_log("the server does not accept the id or the key")
    output, _ = pinging.communicate(timeout=30)

    assert "250 received" in output
    assert (endpoint(server), server.tunnel()["since"]) == (before, since)
    assert client.log.count("connected to") == 1
    # Seen from outside, the two are the same.
    assert messages(known) == messages(stranger)


def messages(daemon: Daemon) -> set[str]:
    """The warnings in its log, without times."""
    return {line.split("warning: ")[1] for line in daemon.log.splitlines() if "warning: no session" in line}


def test_a_stranger_only_makes_counters_grow(tunnel: Tunnel) -> None:
    world, server, _ = tunnel
    noise = (
        "import random, socket; r = random.Random(7); s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM);"
        "heads = [b'', b'\\x16\\xfe\\xfd', b'\\x16\\xfe\\xff' + bytes(8), b'\\x17\\xfe\\xfd\\x00\\x01'];"
        f"[s.sendto((r.choice(heads) + r.randbytes(r.randrange(1500)))[:1400], ('{SERVER}', 443)) for _ in range(5000)]"
    )
    lines = len(server.log.splitlines())

    assert world.right.python("-c", noise).wait(20) == 0

    wait_for(lambda: sum((server.ask() or {"drops": {}})["drops"].values()) > 1000, "drops to be counted")
    assert can_ping(world.right, "10.86.0.1")
    assert server.tunnel()["state"] == "connected"
    assert len(server.log.splitlines()) == lines


def test_two_hosts_with_one_id_are_named(world: World) -> None:
    server = world.server(keepalive=0.5, timeout=3)
    other = world.net.host("other")
    world.net.cable(world.left, "eth1", other, "eth0", "192.0.2.1/24", "192.0.2.66/24")
    first = world.client()
    first.wait_connected()
    second = world.client(other, servers=["192.0.2.1"])

    server.wait_log("two hosts use this id and keep replacing each other", 40)

    warnings = server.tunnel()["warnings"]
    assert any("198.51.100.2:" in text and "192.0.2.66:" in text for text in warnings), warnings
    assert "another host" in first.log + second.log


def test_a_kill_leaves_nothing_that_the_next_start_does_not_clean_up(tunnel: Tunnel) -> None:
    world, server, client = tunnel

    client.kill()
    server.kill()
    wait_for(lambda: not devices(world.left, world.right), "the devices to go")
    server.start()
    client.start()
    client.wait_connected()

    assert can_ping(world.right, "10.86.0.1")
    assert client.stop() == server.stop() == 0
    assert not devices(world.left, world.right)
    for host in (world.left, world.right):
        assert not [line for line in network_of(host) if "proto 217" in line]


def devices(*hosts: Host) -> list[str]:
    """The TUN devices of dtun on these hosts."""
    names = [line.split()[1] for host in hosts for line in host.ip("-o link").splitlines()]
    return [name for name in names if name.startswith("dtun")]


def test_hooks_know_the_tunnel_and_run_in_order(world: World) -> None:
    seen = world.directory / "seen"
    hook = world.directory / "hook"
    hook.write_text(f"#!/bin/sh\nenv | sort >> {seen}\necho --- >> {seen}\necho said by the hook\n")
    hook.chmod(0o755)
    server = world.server()
    domains = ["~corp.example", "example.org"]
    client = world.client(
        up=str(hook), down=[str(hook)], subnets=[], dns=["10.86.0.1", "192.0.2.53"], dns_domains=domains
    )
    client.wait_connected()
    client.wait_log("said by the hook")
    client.stop()

    first, second, _ = (
        dict(line.split("=", 1) for line in part.splitlines() if "=" in line)
        for part in seen.read_text().split("---\n")
    )
    expected = {
        "TUN": "dtun0",
        "LOCAL_IP": "10.86.0.2",
        "PEER_IP": "10.86.0.1",
        "ID": "demo",
        "SERVER": SERVER,
        # There is no systemd-resolved in here: the hook is where name servers are for.
        "DNS": "10.86.0.1 192.0.2.53",
        "DNS_DOMAINS": "~corp.example example.org",
    }
    assert {name: first[name] for name in expected} == expected
    assert first["REASON"] == "connected"
    assert second["REASON"] == "stopped"
    assert int(first["MTU"]) > 1300
    assert set(first) - {"PWD", "SHLVL", "_", "OLDPWD"} == {
        *expected, "REASON", "MTU", "SUBNETS", "ENDPOINT", "GATEWAY", "PATH",
    }  # fmt: skip
    assert server.stop() == 0


def test_the_servers_hooks_run_for_each_client_as_it_comes_and_goes(world: World) -> None:
    seen = world.directory / "seen"
    hook = world.directory / "hook"
    hook.write_text(f'#!/bin/sh\necho "$1 $ID $TUN $LOCAL_IP $PEER_IP $SUBNETS $REASON" >> {seen}\n')
    hook.chmod(0o755)
    entry = {"key_file": world.key, "subnets": ["10.0.0.0/16"], "down": [str(hook), "its own down"]}
    server = world.server(clients={"demo": entry}, up=[str(hook), "up"], down=[str(hook), "down"])
    client = world.client(subnets=["10.0.0.0/16"])
    client.wait_connected()
    client.stop()
    wait_for(lambda: seen.exists() and len(seen.read_text().splitlines()) == 2, "both hooks to run")

    about = "demo dtun-demo 10.86.0.1 10.86.0.2 10.0.0.0/16"
    assert seen.read_text().splitlines() == [f"up {about} connected", f"its own down {about} stopped"]
    assert server.stop() == 0


def test_an_up_hook_that_fails_is_reported_and_run_again_with_the_next_session(world: World) -> None:
    server = world.server(keepalive=0.5, timeout=3)
    client = world.client(up="/bin/false")
    client.wait_connected()
    wait_for(lambda: client.tunnel()["warnings"], "the failure in the status")

    assert can_ping(world.right, "10.86.0.1")
    server.stop()
    server.start()
    client.wait_connected()
    wait_for(lambda: client.log.count("dtun0: up hook") == 2, "a second try", log=lambda: client.log)
