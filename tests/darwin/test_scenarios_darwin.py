"""The scenarios of all systems on a simulated Mac, each in an interpreter without Linux's modules."""

import pytest
from scenarios import ALL, Scenario
from test_simulated import python

PLAY = """
import asyncio
from ipaddress import ip_address
from pathlib import Path

sys.path.insert(0, str(Path(simulated.HERE).parent / "netns"))
import scenarios
from fake_kernel import OURS, FakeKernel

from dtun.network.plan import Hop
from dtun.platform import kernel


class Mac:
    # See `scenarios.Place`.

    first = Hop("en0", ip_address("192.168.1.1"))

    def __init__(self, fake):
        self._fake = fake
        self.way, self.pairs, self.remove_route = fake.way, fake.pairs, fake.remove

    def kernel(self):
        return kernel("demo", Path(sys.argv[2]))

    def mtu(self, device):
        return self._fake.interface(device).mtu

    def left(self):
        routes = [str(entry.destination) for entry in self._fake.routes if entry.flags & OURS]
        return routes + [one.name for one in self._fake.interfaces.values() if "utun" in one.name]

    def forwards(self):
        return bool(self._fake.settings["net.inet.ip.forwarding"])

    def change_gateway(self):
        self._fake.unplug("en0")
        self._fake.plug("en1", "172.16.0.9/24")
        self._fake.default("en1", "172.16.0.1")
        return Hop("en1", ip_address("172.16.0.1"))

    def add_route(self, destination):
        self._fake.add(destination, "en0", "192.168.1.1")


with FakeKernel().installed() as fake:
    place = Mac(fake)
    asyncio.run(getattr(scenarios, sys.argv[1])(place))
    print(type(place.kernel()).__name__, place.left())
"""


@pytest.mark.parametrize("scenario", ALL, ids=lambda scenario: scenario.__name__)
def test_on_a_mac(scenario: Scenario, tmp_path: object) -> None:
    assert python(PLAY, scenario.__name__, f"{tmp_path}/run").strip() == "DarwinKernel []"
