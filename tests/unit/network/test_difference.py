"""The difference between two network states, carried out on a model that is as strict as the kernel."""

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import TypeVar

from hypothesis import given, strategies as st

from dtun.network.difference import Change, Thing, difference, slot
from dtun.network.state import Link, NetworkState, PointToPoint, Route

DEVICES = st.sampled_from(["dtun-a", "dtun-b", "eth0"])
ADDRESSES = st.sampled_from(
    [*(IPv4Address(f"10.86.0.{n}") for n in range(4)), *(IPv6Address(f"fd86::{n}") for n in range(4))]
)
NETWORKS = st.sampled_from(
    [
        ip_network(text)
        for text in ("10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32", "0.0.0.0/0", "fd00::/8", "::/0")
    ]
)
LINKS = st.builds(Link, DEVICES, st.integers(1280, 1500))
PAIRS = st.builds(PointToPoint, DEVICES, ADDRESSES, ADDRESSES)
T = TypeVar("T", Link, PointToPoint, Route)
ROUTES = st.builds(
    Route,
    NETWORKS,
    DEVICES,
    st.none() | ADDRESSES,
    st.none() | ADDRESSES,
    st.sampled_from([None, 0, 7, 1024]),
)


def one_per_slot(elements: st.SearchStrategy[T]) -> st.SearchStrategy[frozenset[T]]:
    """A kernel has one thing per slot, so a state that asks for more is none."""
    return st.lists(elements, unique_by=slot, max_size=8).map(frozenset)


STATES = st.builds(NetworkState, one_per_slot(LINKS), one_per_slot(PAIRS), one_per_slot(ROUTES))


def carry_out(changes: Iterable[Change], state: NetworkState) -> NetworkState:
    """What a kernel does; it refuses to add to a slot that is taken, and to remove what is not there."""
    everything: list[Thing] = [*state.links, *state.addresses, *state.routes]
    things = {(type(thing), slot(thing)): thing for thing in everything}
    for change in changes:
        key = type(change.what), slot(change.what)
        match change.action:
            case "add":
                assert key not in things, f"{change}: taken by {things.get(key)}"
            case "replace":
                assert things[key] == change.previous
            case "remove":
                assert things.pop(key) == change.what
                continue
        things[key] = change.what
    links, pairs, routes = set(), set(), set()
    for thing in things.values():
        match thing:
            case Link():
                links.add(thing)
            case PointToPoint():
                pairs.add(thing)
            case Route():
                routes.add(thing)
    return NetworkState(frozenset(links), frozenset(pairs), frozenset(routes))


@given(STATES, STATES)
def test_carrying_out_the_difference_gives_the_desired_state(
    desired: NetworkState, actual: NetworkState
) -> None:
    assert carry_out(difference(desired, actual), actual) == desired


@given(STATES)
def test_there_is_no_difference_to_oneself(state: NetworkState) -> None:
    assert difference(state, state) == ()


@given(STATES, STATES)
def test_what_stays_is_never_named(desired: NetworkState, actual: NetworkState) -> None:
    named = {change.what for change in difference(desired, actual)}
    named |= {change.previous for change in difference(desired, actual) if change.previous}
    assert not named & (desired.links & actual.links)
    assert not named & (desired.addresses & actual.addresses)
    assert not named & (desired.routes & actual.routes)


@given(STATES, STATES)
def test_what_is_not_ours_is_never_named(desired: NetworkState, actual: NetworkState) -> None:
    known = {
        *desired.links,
        *desired.addresses,
        *desired.routes,
        *actual.links,
        *actual.addresses,
        *actual.routes,
    }
    for change in difference(desired, actual):
        assert change.what in known
        assert change.previous is None or change.previous in known


@given(STATES, STATES)
def test_nothing_is_removed_before_everything_new_is_there(
    desired: NetworkState, actual: NetworkState
) -> None:
    kinds = [Link, PointToPoint, Route]
    ranks = []
    for change in difference(desired, actual):
        rank = kinds.index(type(change.what))
        ranks.append(5 - rank if change.action == "remove" else rank)
    assert ranks == sorted(ranks)


@given(STATES, STATES)
def test_the_order_depends_on_the_states_alone(desired: NetworkState, actual: NetworkState) -> None:
    def shuffled(state: NetworkState) -> NetworkState:
        return NetworkState(
            frozenset(reversed(list(state.links))),
            frozenset(reversed(list(state.addresses))),
            frozenset(reversed(list(state.routes))),
        )

    assert difference(shuffled(desired), shuffled(actual)) == difference(desired, actual)


def test_a_route_that_moves_to_another_device_is_replaced_without_a_gap() -> None:
    network = ip_network("10.1.0.0/16")
    old, new = Route(network, "dtun-a"), Route(network, "dtun-b")
    changes = difference(NetworkState(routes=frozenset({new})), NetworkState(routes=frozenset({old})))
    assert changes == (Change("replace", new, old),)


def test_no_metric_is_the_metric_that_the_kernel_takes_then() -> None:
    wide, wide6 = ip_network("0.0.0.0/0"), ip_network("::/0")
    assert slot(Route(wide, "a")) == slot(Route(wide, "a", metric=0))
    assert slot(Route(wide6, "a")) == slot(Route(wide6, "a", metric=1024))
    assert slot(Route(wide, "a")) != slot(Route(wide, "a", metric=1024))


def test_the_way_to_the_server_is_pinned_before_everything_goes_into_the_tunnel() -> None:
    pin = Route(ip_network("203.0.113.5/32"), "eth0", ip_address("192.168.1.1"))
    everything = Route(ip_network("0.0.0.0/1"), "dtun-a")
    state = NetworkState(routes=frozenset({everything, pin}))
    assert [change.what for change in difference(state, NetworkState())] == [pin, everything]
    assert [change.what for change in difference(NetworkState(), state)] == [everything, pin]


def test_changes_read_like_ip() -> None:
    gateway, source = ip_address("192.168.1.1"), ip_address("192.168.1.7")
    local, peer = ip_address("10.86.0.1"), ip_address("10.86.0.2")
    network = ip_network("10.0.0.0/16")
    wanted = {
        Change("add", Route(network, "dtun-demo")): "add route 10.0.0.0/16 dev dtun-demo",
        Change("remove", Route(network, "eth0", gateway, source, 5)): (
            "remove route 10.0.0.0/16 via 192.168.1.1 dev eth0 src 192.168.1.7 metric 5"
        ),
        Change("add", PointToPoint("dtun-demo", local, peer)): (
            "add address 10.86.0.1 peer 10.86.0.2 dev dtun-demo"
        ),
        Change(
            "replace", Link("dtun-demo", 1400), Link("dtun-demo", 1300)
        ): "replace link dtun-demo mtu 1400",
    }
    assert {change: str(change) for change in wanted} == wanted
