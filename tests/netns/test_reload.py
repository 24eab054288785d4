"""A running server gets another configuration: real devices, real clients, and pings that must not notice."""

import base64
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from daemon import Daemon, can_ping, make_key
from topology import REPOSITORY, Host, Topology, wait_for

from dtun.service.control import ask

pytestmark = pytest.mark.netns

SERVER, CLIENT, OTHER = "198.51.100.1", "198.51.100.2", "203.0.113.2"
RELOADS = 20


class World:
    """A server host with two clients on hosts of their own: "demo" and "other"."""

    def __init__(self, net: Topology, directory: Path) -> None:
        self.directory = directory
        self.keys = {name: str(make_key(directory, name)) for name in ("demo", "other", "next")}
        self.left, self.right, self.third = net.host("left"), net.host("right"), net.host("third")
        net.cable(self.left, "eth0", self.right, "eth0", f"{SERVER}/24", f"{CLIENT}/24")
        net.cable(self.left, "eth1", self.third, "eth0", "203.0.113.1/24", f"{OTHER}/24")
        clients: dict[str, Any] = {name: {"key_file": self.keys[name]} for name in ("demo", "other")}
        clients["demo"]["address"] = "10.86.0.8"
        self.server = Daemon(self.left, "server", {"clients": clients}, directory)
        self.demo = self.client(self.right, SERVER, "demo")
        self.demo.wait_connected()

    def client(self, host: Host, server: str, name: str, **settings: Any) -> Daemon:
        section = {"servers": [server], "id": name, "key_file": self.keys[name], **settings}
        return Daemon(host, "client", section, self.directory)

    @property
    def clients(self) -> dict[str, Any]:
        entries: dict[str, Any] = self.server.section["clients"]
        return entries

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`dtun ARGUMENTS -c FILE` of the server."""
        command = [sys.executable, "-m", "dtun", *arguments, "-c", str(self.server.config)]
        return subprocess.run(
            self.left.inside(command), capture_output=True, text=True, check=False, timeout=60, cwd=REPOSITORY
        )

    def write(self) -> None:
        """Write the server's section as it is now."""
        self.server.config.write_text(yaml.safe_dump({"server": self.server.section}))

    def reload(self) -> list[str]:
        """Have the server go on with its section as it is now."""
        self.write()
        path = Path(self.server.section["runtime_directory"]) / "server.sock"
        lines: list[str] = ask(path, "reload", timeout=30)["lines"]
        return lines


@pytest.fixture
def world(net: Topology, tmp_path: Path) -> Iterator[World]:
    made = World(net, tmp_path)
    wait_for(lambda: can_ping(made.right, "10.86.0.1"), "the first ping")
    yield made
    assert "Traceback" not in made.server.log + made.demo.log


def test_a_client_that_is_not_concerned_loses_no_packet(world: World) -> None:
    other = world.client(world.third, "203.0.113.1", "other", tun="dtun1")
    other.wait_connected()
    endpoint = world.server.tunnel("demo")["endpoint"]
    pings = world.right.popen("ping", "-q", "-i", "0.002", "10.86.0.1", stdout=subprocess.PIPE)
    for number in range(RELOADS):
        world.server.section["keepalive"] = 5 + number
        world.server.section["push_routes"] = [f"10.{number}.0.0/16"] if number % 3 == 0 else []
        world.clients["other"]["subnets"] = [f"10.{number}.0.0/16"]
        world.clients["other"]["address"] = f"10.86.1.{10 + number // 5}"
        world.clients["demo"]["push_routes"] = []
        world.clients[f"new{number}"] = {"key_file": str(make_key(world.directory, f"new{number}"))}
        world.clients.pop(f"new{number - 2}", None)
        assert not any(line.startswith("error: ") for line in world.reload())
    pings.send_signal(signal.SIGINT)
    output, _ = pings.communicate(timeout=10)
    found = re.search(r"(\d+) packets transmitted, (\d+) received", output)
    assert found is not None, output
    sent, received = int(found[1]), int(found[2])
    assert sent > RELOADS * 5
    # The one that was under way when the pings were ended has had no time to come back.
    assert received >= sent - 1, output
    assert world.server.tunnel("demo")["endpoint"] == endpoint, "it is the same session"
    other.wait_connected()
    wait_for(
        lambda: world.server.tunnel("other")["peer_address"] == "10.86.1.13", "the address of the last reload"
    )


def test_the_command_tells_what_is_different_and_does_it(world: World) -> None:
    assert world.command("reload").stdout == "nothing has changed\n"
    del world.clients["other"]
    world.server.section["keepalive"] = 7
    world.write()
    expected = (
        "keepalive: 7 instead of 10, for new sessions (at once)\n"
        "client other: is removed and its session ends (reconnects)\n"
    )
    done = world.command("reload", "--dry-run")
    assert (done.returncode, done.stdout) == (0, expected)
    assert "dtun-other" in world.left.ip("link")
    done = world.command("reload")
    assert (done.returncode, done.stdout) == (0, expected)
    assert "dtun-other" not in world.left.ip("link")
    world.server.wait_log("reload: client other: is removed")


def test_a_mistake_in_the_file_changes_nothing(world: World) -> None:
    del world.clients["demo"]
    world.server.section["keepalive"] = "often"
    world.write()
    done = world.command("reload")
    assert done.returncode == 78
    assert "server.keepalive" in done.stderr
    assert "nothing was changed" in done.stderr
    world.server.process.send_signal(signal.SIGHUP)
    world.server.wait_log("nothing was changed")
    assert can_ping(world.right, "10.86.0.1")


def test_a_client_that_is_removed_and_added_again_comes_back(world: World) -> None:
    entry = world.clients.pop("demo")
    world.write()
    world.server.process.send_signal(signal.SIGHUP)
    wait_for(lambda: "dtun-demo" not in world.left.ip("link"), "the device to go")
    world.demo.wait_log("the server's configuration does not have this id any more")
    world.clients["demo"] = entry
    world.reload()
    wait_for(lambda: can_ping(world.right, "10.86.0.1"), "it to come back", 30)


def test_a_key_is_changed_over_without_a_break(world: World) -> None:
    world.clients["demo"]["next_key_file"] = world.keys["next"]
    assert world.reload() == ["client demo: another key is valid (at once)"]
    assert world.server.tunnel("demo")["key"] == "present"

    world.demo.stop()
    world.demo.section["key_file"] = world.keys["next"]
    world.demo.start()
    world.demo.wait_connected()
    wait_for(lambda: world.server.tunnel("demo")["key"] == "next", "the session with the new key")
    ping = ["ping", "-q", "-i", "0.01", "-c", "100", "10.86.0.1"]
    pings = world.right.popen(*ping, stdout=subprocess.PIPE)

    world.clients["demo"]["key_file"] = world.clients["demo"].pop("next_key_file")
    (line,) = world.reload()
    assert "a key is not valid any more" in line
    assert world.server.tunnel("demo")["key"] == "present"
    assert " 0% packet loss" in pings.communicate(timeout=20)[0]


def test_a_client_is_kicked_and_comes_back(world: World) -> None:
    endpoint = world.server.tunnel("demo")["endpoint"]
    done = world.command("kick", "demo")
    assert done.stdout == f"the session of client 'demo' from {endpoint} was ended\n"
    world.demo.wait_log("ended by the administrator of the server")
    wait_for(lambda: world.server.tunnel("demo")["endpoint"] not in (None, endpoint), "another session")
    assert world.command("kick", "nobody").returncode == 69


def test_the_server_gets_another_address_to_listen_on(world: World) -> None:
    world.server.section["listen"] = ["0.0.0.0:443", "[::]:443", f"{SERVER}:4443"]
    assert world.reload() == [f"listen: {SERVER}:4443 is new (at once)"]
    other = world.client(world.third, SERVER + ":4443", "other", tun="dtun1")
    world.third.ip(f"route add {SERVER} via 203.0.113.1")
    other.wait_connected()
    world.server.section["listen"] = ["0.0.0.0:443", "[::]:443"]
    world.reload()
    assert can_ping(world.third, "10.86.0.1"), "the session goes on while it is to be renewed"
    assert ":4443" not in world.left.run("ss", "-ulnH", "state", "unconnected")


def test_the_service_manager_hears_of_it(world: World, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        path = tmp_path / "notify"
        manager.bind(str(path))
        manager.settimeout(20)
        world.server.stop()
        os.environ["NOTIFY_SOCKET"] = str(path)
        try:
            world.server.start()
        finally:
            del os.environ["NOTIFY_SOCKET"]
        world.server.process.send_signal(signal.SIGHUP)
        heard = ""
        while "RELOADING=1\nMONOTONIC_USEC=" not in heard:
            heard = manager.recv(4096).decode()
        # The client comes back all the while, and its sessions are for the manager to keep.
        while (heard := manager.recv(4096).decode()).startswith("FDSTORE"):
            pass
        assert heard.startswith("READY=1\nSTATUS=")


def test_keys_never_show(world: World) -> None:
    world.clients["demo"]["next_key_file"] = world.keys["next"]
    said = " ".join(world.reload()) + world.server.log
    for path in world.keys.values():
        secret = Path(path).read_text().strip()
        assert secret not in said
        assert base64.b64decode(secret).hex() not in said
