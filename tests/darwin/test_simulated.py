"""dtun works in an interpreter without Linux's modules."""

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]

PREAMBLE = f"""
import sys
sys.path[:0] = [{str(HERE)!r}, {str(REPOSITORY)!r}]
import simulated
simulated.become_a_mac()
"""

SCENARIO = """
import asyncio, sys
from ipaddress import ip_address, ip_network
from pathlib import Path

from fake_kernel import FakeKernel
from dtun.network.state import NetDevice, NetworkState, PointToPoint, Route
from dtun.platform import kernel

async def story():
    dtun = kernel("demo", Path(sys.argv[1]))
    print(type(dtun).__name__)
    await dtun.open()
    tun = dtun.create_tun("dtun0")
    pair = PointToPoint(tun.name, ip_address("10.86.0.2"), ip_address("10.86.0.1"))
    route = Route(ip_network("10.9.0.0/16"), tun.name)
    await dtun.apply(NetworkState(frozenset({NetDevice(tun.name, 1400)}), frozenset({pair}), frozenset({route})))
    print(mac.way("10.9.0.1"))
    await dtun.close()
    tun.close()
    print(mac.way("10.9.0.1"))

with FakeKernel().installed() as mac:
    asyncio.run(story())
"""

EVERYTHING = """
import pkgutil, importlib, sys
import dtun
for module in pkgutil.walk_packages(dtun.__path__, "dtun."):
    if not module.name.startswith("dtun.platform.linux") and module.name != "dtun.__main__":
        importlib.import_module(module.name)
linux = sorted(name for name in sys.modules if name.partition(".")[0] in simulated.MODULES)
print(linux)
"""


def python(program: str, *arguments: str) -> str:
    """The output of this program in its own interpreter."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PREAMBLE + program, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_story_on_a_mac(tmp_path: Path) -> None:
    assert python(SCENARIO, str(tmp_path)).splitlines() == ["DarwinKernel", "utun0", "en0 192.168.1.1"]


def test_every_other_module_can_be_loaded() -> None:
    assert python(EVERYTHING).strip() == "[]"


@pytest.mark.parametrize("module", ["pyroute2", "dtun.platform.linux.kernel"])
def test_missing_modules_cannot_be_imported(module: str) -> None:
    program = f"try:\n    import {module}\nexcept ImportError as error:\n    print(error)"
    assert python(program).strip() == f"{module} is not for macOS"


def test_linux_loads_nothing_of_darwin() -> None:
    program = (
        "import sys; import dtun.platform.linux.kernel; print([n for n in sys.modules if '.darwin' in n])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
