"""Beside a real systemd-resolved and systemd-networkd: queries take the way that they should, and ours stays ours.

The tunnel is a TUN device whose other end is a name server of the test's own: whatever asks it has come through.
"""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.systemd.container import Container, cable, wait_for

PACKAGING = Path(__file__).parents[2] / "packaging"
ANSWER = "198.51.100.7"

# Runs in the container. Reads commands, a JSON list a line, and says how it went.
AGENT = """
import asyncio, fcntl, json, os, struct, sys
from ipaddress import ip_address

from dtun.network.state import Dns
from dtun.platform.linux.resolved import Resolved, ResolvedError

ANSWER = ip_address(sys.argv[1]).packed
asked = []


def open_tun():
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tun, 0x400454CA, struct.pack("16sH22x", b"dtun0", 0x1001))  # TUNSETIFF, IFF_TUN | IFF_NO_PI
    asyncio.get_running_loop().add_reader(tun, serve, tun)


def serve(tun):
    packet = os.read(tun, 65536)
    length = 4 * (packet[0] & 15)
    source, destination = packet[12:16], packet[16:20]
    if packet[0] >> 4 != 4 or packet[9] != 17 or packet[length + 2 : length + 4] != b"\\0\\x35":
        return
    query = packet[length + 8 :]
    labels, at = [], 12
    while size := query[at]:
        labels.append(query[at + 1 : at + 1 + size].decode())
        at += 1 + size
    asked.append((".".join(labels), str(ip_address(destination))))
    is_a = query[at + 1 : at + 3] == b"\\0\\1"
    reply = query[:2] + struct.pack("!HHHHH", 0x8180, 1, is_a, 0, 0) + query[12 : at + 5]
    if is_a:
        reply += struct.pack("!HHHIH", 0xC00C, 1, 1, 60, 4) + ANSWER
    udp = packet[length + 2 : length + 4] + packet[length : length + 2] + struct.pack("!HH", 8 + len(reply), 0)
    header = struct.pack("!BBHHHBBH", 0x45, 0, 28 + len(reply), 0, 0, 64, 17, 0) + destination + source
    total = sum(struct.unpack("!10H", header))
    total = (total & 0xFFFF) + (total >> 16)
    checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    os.write(tun, header[:10] + checksum.to_bytes(2, "big") + header[12:] + udp + reply)


async def obey(ours, command, *arguments):
    if command == "tun":
        open_tun()
    elif command == "apply":
        await ours.apply(Dns("dtun0", (ip_address("10.9.0.2"),), tuple(arguments)))
    elif command == "revert":
        await ours.revert("dtun0")
    elif command == "close":
        await ours.close()
    elif command == "asked":
        return asked
    return "done"


async def main():
    ours = Resolved()
    while line := await asyncio.to_thread(sys.stdin.readline):
        try:
            answer = await obey(ours, *json.loads(line))
        except ResolvedError as error:
            answer = str(error)
        print(json.dumps(answer), flush=True)
    await ours.close()


asyncio.run(main())
"""


class Agent:
    """A process in the container that has a Resolved, as root or as another user."""

    def __init__(self, container: Container, *prefix: str) -> None:
        self._process = container.popen(
            *prefix, "python3", "/agent.py", ANSWER, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def tell(self, *command: str) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def asked(self, name: str) -> bool:
        """Whether the name server behind the tunnel was asked for this name, at its address."""
        return [name, "10.9.0.2"] in self.tell("asked")


@pytest.fixture
def host() -> Iterator[Container]:
    with Container("host", dtun=True) as host:
        host.write("/agent.py", AGENT)
        yield host


@pytest.fixture
def agent(host: Container) -> Agent:
    """With the tunnel up."""
    agent = Agent(host)
    assert agent.tell("tun") == "done"
    host.ip("address add 10.9.0.1 peer 10.9.0.2 dev dtun0")
    host.ip("link set dtun0 up")
    return agent


def status(host: Container) -> str:
    """What resolved says of the tunnel, in one line."""
    return " ".join(host.run("resolvectl", "--no-pager", "status", "dtun0").split())


def look_up(host: Container, name: str) -> bool:
    """Whether there is an answer, through resolved, and it is the one of the server behind the tunnel."""
    done = host.complete("resolvectl", "query", "-4", "--legend=no", name)
    return done.returncode == 0 and ANSWER in done.stdout


def restart_without_memory(host: Container) -> None:
    """A resolved that starts anew takes up its own notes of links, if there are any; after this there are none."""
    host.run("systemctl", "stop", "systemd-resolved")
    host.run("sh", "-c", "rm -f /run/systemd/resolve/netif/*")
    host.run("systemctl", "start", "systemd-resolved")


def test_only_names_of_the_domains_are_asked_for_through_the_tunnel(host: Container, agent: Agent) -> None:
    assert agent.tell("apply", "corp.example", "~lab.example") == "done"
    assert "DNS Servers: 10.9.0.2" in status(host)
    assert "DNS Domain: corp.example ~lab.example" in status(host)
    assert "-DefaultRoute" in status(host)

    wait_for(lambda: look_up(host, "www.corp.example"), "an answer from behind the tunnel")
    assert look_up(host, "box.lab.example")
    assert agent.asked("box.lab.example")
    assert not look_up(host, "www.example.org")
    assert not agent.asked("www.example.org")


@pytest.mark.parametrize("domains", [("~.",), ()])
def test_every_name_is_asked_for_through_the_tunnel(
    host: Container, agent: Agent, domains: tuple[str, ...]
) -> None:
    assert agent.tell("apply", *domains) == "done"
    assert "+DefaultRoute" in status(host)
    wait_for(lambda: look_up(host, "www.example.org"), "an answer from behind the tunnel")
    assert agent.asked("www.example.org")


def test_what_was_set_is_taken_back(host: Container, agent: Agent) -> None:
    agent.tell("apply", "~.")
    wait_for(lambda: look_up(host, "one.example.org"), "an answer from behind the tunnel")
    assert agent.tell("revert") == "done"
    assert "10.9.0.2" not in status(host)
    assert "DNS Domain" not in status(host)
    assert not look_up(host, "two.example.org")
    assert not agent.asked("two.example.org")


def test_a_resolved_that_starts_anew_is_told_again(host: Container, agent: Agent) -> None:
    agent.tell("apply", "~.")
    restart_without_memory(host)
    wait_for(lambda: "DNS Servers: 10.9.0.2 DNS Domain: ~." in status(host), "resolved to know again")
    wait_for(lambda: look_up(host, "www.example.org"), "an answer from behind the tunnel")

    # It is we who told it: with nobody there, it does not know.
    agent.tell("close")
    restart_without_memory(host)
    assert "10.9.0.2" not in status(host)


@pytest.mark.usefixtures("agent")
def test_a_user_of_its_own_needs_the_rule(host: Container) -> None:
    host.run("systemd-sysusers", "-", text=(PACKAGING / "sysusers" / "dtun.conf").read_text())
    capable = ["setpriv", "--reuid=dtun", "--regid=dtun", "--clear-groups", "--inh-caps=+net_admin"]
    user = Agent(host, *capable, "--ambient-caps=+net_admin")
    assert re.search("does not allow this user .* install polkit and the rule", user.tell("apply", "~."))
    assert "10.9.0.2" not in status(host)

    host.write("/etc/polkit-1/rules.d/50-dtun.rules", (PACKAGING / "polkit" / "dtun.rules").read_text())
    wait_for(lambda: user.tell("apply", "~.") == "done", "polkit to have read the rule")
    assert "DNS Servers: 10.9.0.2 DNS Domain: ~." in status(host)
    assert user.tell("revert") == "done"
    assert "10.9.0.2" not in status(host)


def test_without_resolved_or_a_bus_there_is_one_clear_line(host: Container, agent: Agent) -> None:
    host.run("systemctl", "disable", "--now", "systemd-resolved")
    assert agent.tell("apply", "~.").startswith("systemd-resolved is not running; start it")
    assert agent.tell("revert") == "done"
    agent.tell("close")
    host.run("systemctl", "stop", "dbus.socket", "dbus.service")
    assert agent.tell("apply", "~.").startswith("cannot reach the system's D-Bus (")
    assert agent.tell("revert") == "done"


ALL_DEVICES = """\
[Match]
Name=*
[Network]
Address=192.0.2.1/24
LinkLocalAddressing=no
IPv6AcceptRA=no
"""
OURS = "10.50.0.0/16 dev dtun0"


@pytest.mark.parametrize("with_drop_ins", [True, False])
def test_networkd_leaves_ours_alone_if_it_has_the_drop_ins(
    host: Container, agent: Agent, with_drop_ins: bool
) -> None:
    host.write("/etc/systemd/network/50-all.network", ALL_DEVICES)
    if with_drop_ins:
        for place, name in (("networkd.conf.d", "dtun.conf"), ("network", "05-dtun.network")):
            host.write(f"/usr/lib/systemd/{place}/{name}", (PACKAGING / "networkd" / name).read_text())
    host.ip(f"route add {OURS} proto 217")
    host.ip("route add unreachable 198.51.100.0/24 proto 217")
    host.ip("rule add priority 7217 table 7217 protocol 217")

    with Container("neighbour") as neighbour:
        cable(host, "eth0", neighbour, "eth0")
        host.run("systemctl", "start", "systemd-networkd")
        for job in (("reconfigure", "eth0"), ("reconfigure", "dtun0"), ("reload",)):
            _settled(host, "eth0")
            host.run("networkctl", *job)
        host.run("systemctl", "restart", "systemd-networkd")
        _settled(host, "eth0")

    if with_drop_ins:
        assert _link(host, "dtun0")["AdministrativeState"] == "unmanaged"
        assert _left(host) == {"route", "unreachable", "rule"}
        assert "10.9.0.1 peer 10.9.0.2" in host.ip("address show dev dtun0")
        assert agent.tell("apply", "~.") == "done"
    else:
        assert _left(host) == set()
        assert "10.9.0.1" not in host.ip("address show dev dtun0")
        assert agent.tell("apply", "~.").startswith("systemd-networkd manages dtun0")


def _left(host: Container) -> set[str]:
    routes = host.ip("route show proto 217")
    marks = {"route": OURS in routes, "unreachable": "unreachable 198.51.100.0/24" in routes}
    return {name for name, there in marks.items() if there} | (
        {"rule"} if "7217" in host.ip("rule") else set()
    )


def _link(host: Container, device: str) -> dict[str, Any]:
    links = json.loads(host.run("networkctl", "--json=short", "list"))["Interfaces"]
    return next(link for link in links if link["Name"] == device)


def _settled(host: Container, device: str) -> None:
    wait_for(
        lambda: _link(host, device)["AdministrativeState"] == "configured",
        f"networkd to be done with {device}",
    )
