"""The scenarios of all systems on Linux, in a network namespace."""

import json
import re
import subprocess
from ipaddress import ip_address
from pathlib import Path

import kernels
import pytest
from scenarios import ALL, Scenario
from topology import Host

from dtun.network.plan import Hop
from dtun.platform import kernel as platform_kernel
from dtun.platform.interface import Kernel

pytestmark = pytest.mark.netns

host, runtime = kernels.host, kernels.runtime


class Namespace:
    """See `scenarios.Place`."""

    first = Hop("eth0", ip_address("192.0.2.1"))

    def __init__(self, host: Host, directory: Path) -> None:
        self._host = host
        self._directory = directory

    def kernel(self) -> Kernel:
        return platform_kernel("demo", self._directory)

    def way(self, address: str) -> str:
        command = self._host.inside(["ip", "route", "get", address])
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
        if done.returncode != 0:
            return "refused" if "No route to host" in done.stderr else "nowhere"
        found = re.search(r"(?: via (\S+))? dev (\S+)", done.stdout)
        assert found is not None
        return f"{found[2]} {found[1] or ''}".strip()

    def pairs(self, device: str) -> set[tuple[str, str]]:
        (link,) = json.loads(self._host.ip(f"-j address show dev {device}"))
        return {(one["local"], one["address"]) for one in link["addr_info"]}

    def mtu(self, device: str) -> int:
        (link,) = json.loads(self._host.ip(f"-j link show dev {device}"))
        return int(link["mtu"])

    def left(self) -> list[str]:
        shown = self._host.ip("-4 route show proto 217") + self._host.ip("-6 route show proto 217")
        routes = [line.removeprefix("unreachable ").split()[0] for line in shown.splitlines()]
        devices = [line.split()[1].rstrip(":") for line in self._host.ip("-o link").splitlines()]
        return routes + [name for name in devices if name.startswith("dtun")]

    def forwards(self) -> bool:
        return self._host.run("sysctl", "-n", "net.ipv4.ip_forward").strip() == "1"

    def change_gateway(self) -> Hop:
        self._host.ip("route replace default via 198.51.100.1")
        self._host.ip("link set eth0 down")
        return Hop("eth1", ip_address("198.51.100.1"))

    def remove_route(self, destination: str) -> None:
        self._host.ip(f"route del {destination}")

    def add_route(self, destination: str) -> None:
        self._host.ip(f"route add {destination} via {self.first.gateway}")


@pytest.fixture
def place(host: Host, runtime: Path) -> Namespace:
    host.ip("-6 route add default via 2001:db8::1")
    return Namespace(host, runtime)


@pytest.mark.parametrize("scenario", ALL, ids=lambda scenario: scenario.__name__)
def test_in_a_namespace(scenario: Scenario, place: Namespace, host: Host) -> None:
    host.play(lambda: scenario(place))
    assert place.left() == []
