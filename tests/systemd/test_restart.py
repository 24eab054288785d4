"""A restart, a crash and a watchdog kill under a real systemd: the session goes on, and so does what runs in it."""

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import pytest

from tests.systemd.container import Container, cable, wait_for

KEY = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
UNIT = """\
[Service]
Type=notify
ExecStart=/usr/local/bin/dtun {role} -c /etc/dtun.yaml
Restart=on-failure
RestartSec=100ms
WatchdogSec=2
WatchdogSignal=SIGKILL
FileDescriptorStoreMax=64
RuntimeDirectory=dtun
RuntimeDirectoryPreserve=restart
StateDirectory=dtun
"""
SERVER = f"server: {{listen: 192.0.2.1:443, clients: {{home: {{key: {KEY}, subnets: [10.0.0.0/16]}}}}}}\n"
CLIENT = f"client: {{servers: [192.0.2.1], id: home, key: {KEY}, subnets: [10.0.0.0/16], routes: [203.0.113.0/24]}}\n"
GOES_ON = "after the restart"


@dataclass
class Pair:
    """Two hosts, each with dtun as a service."""

    server: Container
    client: Container

    def side(self, name: str) -> Container:
        return self.server if name == "server" else self.client

    def answered(self) -> bool:
        return self.client.complete("ping", "-c", "1", "-W", "1", "10.86.0.1").returncode == 0

    def state(self) -> list[str]:
        """What must not change: the devices by their indexes, the routes through them."""
        return [
            re.sub(r"mtu \d+ ", "", part)
            for side in (self.server, self.client)
            for part in (side.ip("-o link show type tun"), side.ip("route show proto 217"))
        ]


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with Container("server", dtun=True) as server, Container("client", dtun=True) as client:
        cable(server, "eth0", client, "eth0", "192.0.2.1/24", "192.0.2.2/24")
        for container, role, config in ((server, "server", SERVER), (client, "client", CLIENT)):
            container.write("/etc/dtun.yaml", config, 0o600)
            container.write("/etc/systemd/system/dtun.service", UNIT.format(role=role))
            container.run("systemctl", "start", "dtun")
        made = Pair(server, client)
        wait_for(made.answered, "the tunnel")
        yield made


def handshakes(pair: Pair) -> int:
    return pair.server.journal("dtun").count("connected from")


def restart(container: Container) -> None:
    container.run("systemctl", "restart", "dtun")


def crash(container: Container) -> None:
    container.run("systemctl", "kill", "--signal=KILL", "dtun")


def hang(container: Container) -> None:
    """The loop stands still, until the watchdog's patience is over."""
    container.run("systemctl", "kill", "--signal=STOP", "dtun")


@pytest.mark.parametrize("name", ["server", "client"])
@pytest.mark.parametrize("how", [restart, crash, hang])
def test_the_session_goes_on(pair: Pair, how: Callable[[Container], None], name: str) -> None:
    """The longest silence of a ping each 20 ms is told; devices and routes stay, and no new handshake is made."""
    container = pair.side(name)
    before, known = pair.state(), handshakes(pair)
    went_on = container.journal("dtun").count(GOES_ON)
    script = "echo $$ > /run/ping.pid; exec ping -D -n -i 0.02 10.86.0.1"
    ping = pair.client.popen("sh", "-c", script, stdout=-1)
    how(container)
    wait_for(lambda: container.journal("dtun").count(GOES_ON) > went_on, "the next process to go on")
    wait_for(pair.answered, "the tunnel")
    # A few more, which show that it was not the last one.
    time.sleep(0.5)
    pair.client.run("sh", "-c", "kill -INT $(cat /run/ping.pid)")
    output = ping.communicate(timeout=10)[0]
    times = [float(text) for text in re.findall(r"^\[([\d.]+)\] \d+ bytes", output, re.MULTILINE)]
    gap = max(later - earlier for earlier, later in pairwise(times))
    print(f"{how.__name__} of the {name}: longest silence {gap:.2f} s, {len(times)} answers")
    assert handshakes(pair) == known
    assert pair.state() == before
    # The watchdog alone takes two to four seconds of it.
    assert gap < (7 if how is hang else 3)


def test_a_tcp_connection_lives_through_all_of_it(pair: Pair) -> None:
    script = (
        "import socket, sys\n"
        "s = socket.create_server(('10.86.0.1', 7000)); c, _ = s.accept()\n"
        "while (d := c.recv(65536)): c.sendall(d)\n"
    )
    echo = pair.server.popen("python3", "-c", script)
    wait_for(lambda: "7000" in pair.server.run("ss", "-Hltn", "sport = :7000"), "the echo server")
    talk = (
        "import socket, sys\n"
        "s = socket.create_connection(('10.86.0.1', 7000)); s.settimeout(20)\n"
        "for line in sys.stdin:\n"
        "    s.sendall(line.encode()); print(s.recv(100).decode(), end='', flush=True)\n"
    )
    talker = pair.client.popen("python3", "-c", talk, stdin=-1, stdout=-1)
    assert talker.stdin is not None
    assert talker.stdout is not None
    for number, action in enumerate((None, restart, crash)):
        for container in (pair.server, pair.client):
            if action is not None:
                went_on = container.journal("dtun").count(GOES_ON)
                action(container)
                wait_for(
                    lambda c=container, n=went_on: c.journal("dtun").count(GOES_ON) > n,  # type: ignore[misc]
                    "the next process to go on",
                )
            talker.stdin.write(f"number {number}\n")
            talker.stdin.flush()
            assert talker.stdout.readline() == f"number {number}\n"
    talker.stdin.close()
    talker.wait(10)
    echo.wait(10)


def test_a_stop_says_goodbye_and_leaves_nothing(pair: Pair) -> None:
    pair.client.run("systemctl", "stop", "dtun")
    wait_for(lambda: "it said goodbye" in pair.server.journal("dtun"), "the goodbye")
    pair.server.run("systemctl", "stop", "dtun")
    for container in (pair.server, pair.client):
        assert container.ip("-o link show type tun") == ""
        assert container.ip("route show proto 217") == ""
        assert container.run("sh", "-c", "ls /run/dtun 2>/dev/null || true") == ""
