"""The desired state of several owners, and what the kernel refuses of it."""

from ipaddress import IPv4Address, ip_network

import pytest

from dtun.errors import UnavailableError
from dtun.network.state import NetDevice, NetworkState, PointToPoint, Route
from dtun.platform.desired import NEWS_INTERVAL, DesiredState, Rejections
from tests.unit.fakes import FakeKernel


def state(device: str, *routes: str) -> NetworkState:
    return NetworkState(
        frozenset({NetDevice(device, 1400)}),
        frozenset({PointToPoint(device, IPv4Address("10.86.0.1"), IPv4Address("10.86.0.2"))}),
        frozenset(Route(ip_network(route), device) for route in routes),
    )


A, B = state("dtun-a", "10.1.0.0/16"), state("dtun-b", "10.2.0.0/16")
ROUTE_A = Route(ip_network("10.1.0.0/16"), "dtun-a")


@pytest.fixture
def kernel() -> FakeKernel:
    return FakeKernel()


@pytest.fixture
def desired_state(kernel: FakeKernel) -> DesiredState:
    return DesiredState(kernel)


async def test_the_states_of_all_owners_are_merged(kernel: FakeKernel, desired_state: DesiredState) -> None:
    await desired_state.set("a", A)
    await desired_state.set("b", B)
    assert kernel.state == A | B
    await desired_state.remove("a")
    assert kernel.state == B


async def test_an_unchanged_state_is_not_applied_again(
    kernel: FakeKernel, desired_state: DesiredState
) -> None:
    await desired_state.set("a", A)
    await desired_state.set("a", A)
    assert kernel.applied == 1


async def test_a_refused_route_is_dropped_and_returned(
    kernel: FakeKernel, desired_state: DesiredState
) -> None:
    kernel.refuses[ROUTE_A] = "File exists"
    assert await desired_state.set("a", A) == [(ROUTE_A, "File exists")]
    assert await desired_state.set("b", B) == []
    assert kernel.state == state("dtun-a") | B
    kernel.refuses.clear()
    assert await desired_state.set("a", A) == [], "set again, it is tried again"
    assert kernel.state == A | B


@pytest.mark.parametrize("thing", [*A.devices, *A.addresses])
async def test_a_refused_device_or_address_is_an_error_every_time(
    kernel: FakeKernel, desired_state: DesiredState, thing: NetDevice | PointToPoint
) -> None:
    kernel.refuses[thing] = "Operation not permitted"
    for _ in range(2):
        with pytest.raises(UnavailableError, match="Operation not permitted"):
            await desired_state.set("a", A)
    kernel.refuses.clear()
    assert await desired_state.set("b", B) == []
    assert kernel.state == B, "the refused state is no longer desired"
    assert await desired_state.set("a", A) == []
    assert kernel.state == A | B


async def test_a_rejection_of_one_owner_is_not_returned_to_another(
    kernel: FakeKernel, desired_state: DesiredState
) -> None:
    await desired_state.set("a", A)
    kernel.state = state("dtun-a")  # another program has the destination now
    kernel.refuses[ROUTE_A] = "File exists"
    assert await desired_state.set("b", B) == []
    assert B.routes <= kernel.state.routes
    kernel.refuses.clear()
    await desired_state.set("b", B)
    assert ROUTE_A in kernel.state.routes, "not everything was in place, so it is applied again"


def test_what_comes_and_goes_is_logged_once_in_a_while(caplog: pytest.LogCaptureFixture) -> None:
    """12,000 routes, each time the interface goes."""
    now = 0.0
    routes = [Route(ip_network((n << 8, 24)), "eth0") for n in range(1000)]
    rejections = Rejections("client", clock=lambda: now)
    for count in range(100):
        rejections.replace([(route, "the device is down") for route in routes[count:]])
        assert len(rejections.lines) == 1
        assert rejections.lines[0].endswith(f"(and {999 - count} more)")
        rejections.replace([])
    assert len(caplog.messages) == 1
    rejections.replace([(routes[0], "another reason")])
    assert len(caplog.messages) == 2
    now += NEWS_INTERVAL
    rejections.replace([(routes[0], "the device is down")])
    assert len(caplog.messages) == 3
