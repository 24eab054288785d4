"""A route's message says all of the route: what is encoded here, and decoded as a dump is, is the same again."""

import struct
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

import pytest
from hypothesis import given, strategies as st

from dtun.network.difference import DEFAULT_METRIC
from dtun.network.state import Address, Network, Route
from dtun.platform.linux.missing import route_key, route_seen
from dtun.platform.linux.netlink.route_batches import request
from dtun.platform.linux.netlink.wire import messages
from dtun.platform.linux.observed import found_route

ETH0 = 7
NETWORKS4 = st.builds(
    IPv4Network, st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32)), strict=st.just(False)
)
NETWORKS6 = st.builds(
    IPv6Network, st.tuples(st.integers(0, 2**128 - 1), st.integers(0, 128)), strict=st.just(False)
)
NUMBERS = st.integers(1, 2**32 - 1)


def sending(
    networks: st.SearchStrategy[Network], source: st.SearchStrategy[Address]
) -> st.SearchStrategy[Route]:
    gateways = st.none() | st.ip_addresses()
    return st.builds(
        Route, networks, st.just("eth0"), gateways, st.none() | source, st.none() | NUMBERS, NUMBERS
    )


ROUTES = (
    sending(NETWORKS4, st.ip_addresses(v=4))
    | sending(NETWORKS6, st.ip_addresses(v=6))
    | st.builds(
        Route,
        NETWORKS4 | NETWORKS6,
        metric=st.none() | NUMBERS,
        table=NUMBERS,
        kind=st.sampled_from(["unreachable", "throw"]),
    )
)


@given(ROUTES, st.sampled_from(["add", "replace", "remove"]), st.integers(0, 2**31))
def test_the_kernel_is_told_all_of_a_route(route: Route, action: str, sequence: int) -> None:
    data = request(action, route, ETH0 if route.device else 0, sequence)  # type: ignore[arg-type]
    ((kind, flags, number, _, body),) = messages(data)
    assert (kind, number) == (25 if action == "remove" else 24, sequence)
    # NLM_F_REQUEST and NLM_F_ACK; NLM_F_CREATE with NLM_F_EXCL or NLM_F_REPLACE.
    assert flags == {"add": 0x605, "replace": 0x505, "remove": 0x5}[action]
    found = found_route(body, {ETH0: "eth0"})
    metric = route.metric or DEFAULT_METRIC[route.destination.version]
    assert found.route == Route(
        route.destination, route.device, route.gateway, route.source, metric, route.table, route.kind
    )
    assert route_seen(body, route.destination.version) == route_key(route, ETH0 if route.device else 0)


@pytest.mark.parametrize(
    "other",
    [
        Route(ip_network("10.0.0.0/8"), "eth1"),
        Route(ip_network("10.0.0.0/8"), "eth0", metric=1),
        Route(ip_network("10.0.0.0/8"), "eth0", table=7),
        Route(ip_network("10.0.0.0/8"), "eth0", ip_address("192.0.2.1")),
        Route(ip_network("10.0.0.0/8"), kind="unreachable"),
        Route(ip_network("10.0.0.0/8"), kind="throw"),
    ],
)
def test_another_route_is_not_taken_for_ours(other: Route) -> None:
    route = Route(ip_network("10.0.0.0/8"), "eth0")
    ((_, _, _, _, body),) = messages(request("add", route, ETH0, 1))
    seen = route_seen(body, 4)
    assert seen == route_key(route, ETH0)
    assert seen != route_key(other, {"": 0, "eth0": ETH0, "eth1": 8}[other.device])


def test_the_bytes_are_as_the_kernel_wants_them() -> None:
    """Of `ip route add 10.1.0.0/16 via 192.0.2.1 dev eth0 metric 5 proto 217 onlink`, as rtnetlink(7) draws them."""
    route = Route(ip_network("10.1.0.0/16"), "eth0", ip_address("192.0.2.1"), metric=5)
    wanted = struct.pack("=IHHII", 68, 24, 0x605, 9, 0)
    wanted += struct.pack("=BBBBBBBBI", 2, 16, 0, 0, 254, 217, 0, 1, 4)
    wanted += struct.pack("=HHI", 8, 15, 254)
    wanted += struct.pack("=HH4s", 8, 1, bytes([10, 1, 0, 0]))
    wanted += struct.pack("=HHI", 8, 4, ETH0)
    wanted += struct.pack("=HH4s", 8, 5, bytes([192, 0, 2, 1]))
    wanted += struct.pack("=HHI", 8, 6, 5)
    assert request("add", route, ETH0, 9) == wanted
