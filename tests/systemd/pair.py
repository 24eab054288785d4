"""Two machines with dtun from its package, as services that an administrator has set up by the book.

client 10.0.0.1 ---- eth0 192.0.2.2 ======== 192.0.2.1 eth0 ---- server
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.systemd.container import Container, cable, wait_for
from tests.systemd.package import install_package, system
from tests.systemd.rootfs import SUITE

SERVER = """\
server:
  forwarding: true
  masquerade: [eth0]
  clients:
    home: {key_file: /etc/dtun/home.key, subnets: [10.0.0.0/16]}
"""
CLIENT = """\
client:
  servers: [192.0.2.1]
  id: home
  key_file: /etc/dtun/home.key
  subnets: [10.0.0.0/16]
  routes: [203.0.113.0/24]
  forwarding: true
"""
BEHIND_CLIENT = "10.0.0.1"


@dataclass
class Machine:
    """One of the two, and its service."""

    container: Container
    role: str
    config: str

    @property
    def unit(self) -> str:
        return f"dtun-{self.role}"

    @property
    def pid(self) -> str:
        """The service's process, as it is called in its own container; "0" if there is none."""
        return self.container.show(self.unit, "MainPID")

    def configure(self, config: str | None = None) -> None:
        self.container.write("/etc/dtun.yaml", config or self.config, 0o640, "root:dtun")

    def drop_in(self, name: str, text: str) -> None:
        """`systemctl edit`; an empty text takes it away."""
        path = f"/etc/systemd/system/{self.unit}.service.d/{name}.conf"
        if text:
            self.container.write(path, f"[Service]\n{text}\n")
        else:
            self.container.run("rm", "-f", path)
        self.container.run("systemctl", "daemon-reload")

    def systemctl(self, verb: str, *, check: bool = True) -> str:
        return self.container.run("systemctl", verb, self.unit, check=check)

    def status(self) -> str:
        """What a person sees."""
        return self.container.run("systemctl", "status", "--no-pager", self.unit, check=False)

    def journal_tail(self) -> str:
        """What it said lately."""
        return self.container.journal(self.unit, "-n", "40")

    def left(self) -> dict[str, str]:
        """What of dtun is in its kernel."""
        return {
            "devices": self.container.ip("-o link show type tun"),
            "routes": self.container.ip("route show table all proto 217"),
            "rules": "".join(re.findall(r".* proto 217\b.*\n", self.container.ip("rule show"))),
            "firewall": self.container.run("nft", "list", "ruleset"),
        }


@dataclass
class Pair:
    """The two of them."""

    server: Machine
    client: Machine

    def talk(self) -> bool:
        """Whether the server reaches what is behind the client."""
        ping = ("ping", "-q", "-c1", "-W1", BEHIND_CLIENT)
        return self.server.container.complete(*ping).returncode == 0

    def start(self) -> None:
        """As fresh: the right configuration, both services running, the tunnel up."""
        for machine in (self.server, self.client):
            machine.configure()
            machine.container.run("systemctl", "reset-failed", machine.unit, check=False)
            machine.systemctl("start")
        wait_for(self.talk, "the tunnel")


@contextmanager
def installed_pair(server_suite: str = SUITE, client_suite: str = SUITE) -> Iterator[Pair]:
    """From two fresh systems, of these releases of Debian, to a tunnel."""
    with (
        Container("server", system=system(server_suite)) as server,
        Container("client", system=system(client_suite)) as client,
    ):
        cable(server, "eth0", client, "eth0", "192.0.2.1/24", "192.0.2.2/24")
        client.ip(f"address add {BEHIND_CLIENT}/32 dev lo")
        pair = Pair(Machine(server, "server", SERVER), Machine(client, "client", CLIENT))
        install_package(server, server_suite)
        install_package(client, client_suite)
        server.run("dtun", "genkey", "-o", "/etc/dtun/home.key")
        client.write("/etc/dtun/home.key", server.read("/etc/dtun/home.key"), 0o640, "root:dtun")
        for machine in (pair.server, pair.client):
            machine.configure()
            machine.container.run("dtun", "check")
            machine.container.run("systemctl", "enable", "--now", machine.unit)
        wait_for(pair.talk, "the tunnel")
        yield pair
