"""What can be told without a kernel: other systems, impossible devices, the best of several routes."""

import sys
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from dtun.errors import UnavailableError
from dtun.network.difference import Change
from dtun.network.state import Route
from dtun.platform import kernel
from dtun.platform.interface import ChangesRefusedError
from dtun.platform.linux import tun
from dtun.platform.linux.lookup import best_route
from dtun.platform.linux.observed import FoundRoute


def test_an_unknown_system_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "plan9")
    with pytest.raises(UnavailableError, match="dtun does not run on plan9: it needs Linux"):
        kernel("demo")


@pytest.mark.parametrize("name", ["", "sixteen-letters-", "a/b", "a b", "tun%d", "..", "gerät", "a\0"])
def test_an_impossible_device_name_is_said(name: str) -> None:
    with pytest.raises(UnavailableError, match="cannot be the name of a device"):
        tun.open_tun(name, lambda _: None)


def test_a_missing_driver_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tun, "DEVICE", str(tmp_path / "tun"))
    with pytest.raises(
        UnavailableError, match="no such file or directory; load the driver with 'modprobe tun'"
    ):
        tun.open_tun("dtun-demo", lambda _: None)


def found(
    network: str,
    device: str,
    metric: int = 0,
    protocol: int = 3,
    *,
    unicast: bool = True,
    alive: bool = True,
    preference: int = 0,
) -> FoundRoute:
    route = Route(ip_network(network), device, metric=metric)
    return FoundRoute(route, protocol, unicast=unicast, alive=alive, preference=preference)


@pytest.mark.parametrize(
    ("table", "device"),
    [
        ([], None),
        ([found("0.0.0.0/0", "eth0"), found("198.18.0.0/15", "eth1")], "eth1"),
        ([found("0.0.0.0/0", "eth0", 100), found("0.0.0.0/0", "eth1", 50)], "eth1"),
        ([found("10.0.0.0/8", "eth0"), found("::/0", "eth1")], None),
        ([found("0.0.0.0/0", "eth0"), found("198.18.0.1/32", "eth1", protocol=217)], "eth0"),
        ([found("0.0.0.0/0", "eth0"), found("198.18.0.0/15", "dtun-demo", protocol=2)], "eth0"),
        ([found("0.0.0.0/0", "eth0"), found("198.18.0.0/15", "", unicast=False)], None),
        ([found("0.0.0.0/0", "eth0", 100), found("0.0.0.0/0", "eth1", 50, alive=False)], "eth0"),
        ([found("0.0.0.0/0", "eth0"), found("198.18.0.0/15", "eth1", alive=False)], "eth0"),
        ([found("0.0.0.0/0", "eth1", alive=False)], None),
        ([found("0.0.0.0/0", "eth0", preference=-1), found("0.0.0.0/0", "eth1", preference=0)], "eth1"),
        ([found("0.0.0.0/0", "eth0", preference=1), found("0.0.0.0/0", "eth1")], "eth0"),
    ],
)
def test_the_best_route_is_the_kernels_with_ours_left_out(
    table: list[FoundRoute], device: str | None
) -> None:
    best = best_route(table, ip_address("198.18.0.1"), {"dtun-demo"})
    assert (best.route.device if best else None) == device


def test_refused_changes_are_one_line_however_many() -> None:
    changes = [Change("add", Route(ip_network(f"10.{n}.0.0/16"), "dtun-demo")) for n in range(3)]
    error = ChangesRefusedError([(change, "it is raining") for change in changes], [])
    assert str(error) == "cannot add route 10.0.0.0/16 dev dtun-demo: it is raining (and 2 more)"
    assert error.exit_code == UnavailableError.exit_code
