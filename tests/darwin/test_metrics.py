"""Longer prefixes in place of metrics."""

from ipaddress import ip_address, ip_network

from hypothesis import given, strategies as st

from dtun.network.state import Address, Route
from dtun.platform.darwin.metrics import without_metrics

WORST = 0xFFFF0000


def route(destination: str, device: str = "utun4", metric: int | None = None) -> Route:
    return Route(ip_network(destination), device, metric=metric)


def unreachable(destination: str) -> Route:
    return Route(ip_network(destination), metric=WORST, kind="unreachable")


def test_the_kill_switch_is_below_the_tunnel() -> None:
    tunnel, block = route("0.0.0.0/1"), unreachable("0.0.0.0/1")
    assert without_metrics([tunnel, block]) == {
        route("0.0.0.0/2"): tunnel,
        route("64.0.0.0/2"): tunnel,
        Route(ip_network("0.0.0.0/1"), kind="unreachable"): block,
    }


def test_a_single_route_stays_and_loses_its_metric() -> None:
    assert without_metrics([route("10.0.0.0/8", metric=5)]) == {
        route("10.0.0.0/8"): route("10.0.0.0/8", metric=5)
    }


def test_of_two_host_routes_the_better_is_installed() -> None:
    better = route("192.0.2.1/32")
    assert without_metrics([unreachable("192.0.2.1/32"), better]) == {better: better}


def test_a_route_that_is_wanted_for_a_half_has_precedence() -> None:
    half = route("64.0.0.0/2", "en0")
    flat = without_metrics([route("0.0.0.0/1"), unreachable("0.0.0.0/1"), half])
    assert half in flat
    assert route("64.0.0.0/2") not in flat


small = st.builds(
    lambda bits, length, device, metric: Route(
        ip_network((bits << 26, length), strict=False), device, metric=metric
    ),
    st.integers(0, 63),
    st.integers(0, 5),
    st.sampled_from(["en0", "utun4", ""]),
    st.sampled_from([None, 10, WORST]),
)


def best(routes: set[Route], address: Address) -> str | None:
    """Where a kernel with metrics would send it."""
    fits = [one for one in routes if address in one.destination]
    return min(
        fits,
        key=lambda one: (-one.destination.prefixlen, one.metric or 0, one.device),
        default=route("0.0.0.0/0", "nowhere"),
    ).device


@given(st.sets(small, max_size=6))
def test_packets_go_where_metrics_would_have_them_go(routes: set[Route]) -> None:
    # Not two with the same destination and metric: a tie.
    distinct = {(one.destination, one.metric): one for one in routes}.values()
    flat = set(without_metrics(distinct))
    assert len({one.destination for one in flat}) == len(flat)
    for number in range(64):
        address = ip_address(number << 26 | 1)
        assert best(flat, address) == best(set(distinct), address), address
