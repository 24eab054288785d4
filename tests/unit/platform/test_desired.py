"""What several owners want of one kernel, and what becomes of it when the kernel says no."""

from ipaddress import IPv4Address, ip_network

import pytest

from dtun.errors import UnavailableError
from dtun.network.state import NetDevice, NetworkState, PointToPoint, Route
from dtun.platform.desired import DesiredState
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


async def test_the_kernel_gets_what_all_owners_want(kernel: FakeKernel, desired_state: DesiredState) -> None:
    await desired_state.set("a", A)
    await desired_state.set("b", B)
    assert kernel.state == A | B
    await desired_state.remove("a")
    assert kernel.state == B


async def test_what_is_in_place_is_not_applied_again(kernel: FakeKernel, desired_state: DesiredState) -> None:
    await desired_state.set("a", A)
    await desired_state.set("a", A)
    assert kernel.applied == 1


async def test_a_route_that_is_refused_is_given_up_and_told(
    kernel: FakeKernel, desired_state: DesiredState
) -> None:
    kernel.refuses[ROUTE_A] = "File exists"
    assert await desired_state.set("a", A) == [(ROUTE_A, "File exists")]
    assert await desired_state.set("b", B) == []
    assert kernel.state == state("dtun-a") | B
    kernel.refuses.clear()
    assert await desired_state.set("a", A) == [], "asked again, it is tried again"
    assert kernel.state == A | B


@pytest.mark.parametrize("thing", [*A.devices, *A.addresses])
async def test_a_refused_link_or_address_is_an_error_every_time(
    kernel: FakeKernel, desired_state: DesiredState, thing: NetDevice | PointToPoint
) -> None:
    kernel.refuses[thing] = "Operation not permitted"
    for _ in range(2):
        with pytest.raises(UnavailableError, match="Operation not permitted"):
            await desired_state.set("a", A)
    kernel.refuses.clear()
    assert await desired_state.set("b", B) == []
    assert kernel.state == B, "what was refused as a whole is not wanted any more"
    assert await desired_state.set("a", A) == []
    assert kernel.state == A | B


async def test_what_is_refused_to_one_owner_does_not_concern_another(
    kernel: FakeKernel, desired_state: DesiredState
) -> None:
    await desired_state.set("a", A)
    kernel.state = state("dtun-a")  # by another hand, which now has that destination
    kernel.refuses[ROUTE_A] = "File exists"
    assert await desired_state.set("b", B) == []
    assert B.routes <= kernel.state.routes
    kernel.refuses.clear()
    await desired_state.set("b", B)
    assert ROUTE_A in kernel.state.routes, "not everything was in place, so it is tried again"
