"""The difference between two network states, applied to a model that is as strict as the kernel."""

from collections.abc import Iterable
from dataclasses import fields
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any, TypeVar

from hypothesis import given, strategies as st

from dtun.network.difference import Change, Thing, difference, unique_key
from dtun.network.state import (
    AnswerDirectly,
    ClampMss,
    Dns,
    DropOtherTrafficToServer,
    DropOutsideTunnel,
    DropUnreachableIPv6,
    Masquerade,
    NetDevice,
    NetworkState,
    PointToPoint,
    Route,
    Rule,
    Sysctl,
)

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
DEVICES_UP = st.builds(NetDevice, DEVICES, st.integers(1280, 1500))
PAIRS = st.builds(PointToPoint, DEVICES, ADDRESSES, ADDRESSES)
T = TypeVar("T", bound=Thing)
METRICS = st.sampled_from([None, 0, 7, 1024])
TABLES = st.sampled_from([254, 7217])
SENDING = st.builds(
    Route,
    NETWORKS,
    DEVICES,
    st.none() | ADDRESSES,
    st.none() | ADDRESSES,
    METRICS,
    TABLES,
    st.just("unicast"),
)
REFUSING = st.builds(
    Route,
    NETWORKS,
    metric=METRICS,
    table=TABLES,
    kind=st.sampled_from(["unreachable", "throw"]),
)
ROUTES = SENDING | REFUSING
RULES = st.builds(
    Rule,
    st.sampled_from([4, 6]),
    st.integers(1, 3),
    TABLES,
    st.none() | st.integers(1, 2),
    st.none() | st.just(0),
)
SYSCTLS = st.builds(
    Sysctl, st.sampled_from(["net.ipv4.ip_forward", "net.a", "net.b"]), st.sampled_from("012")
)
FILTERS = (
    st.builds(Masquerade, DEVICES, DEVICES)
    | st.builds(ClampMss, DEVICES, st.integers(1280, 1283))
    | st.builds(DropOtherTrafficToServer, ADDRESSES, st.integers(1, 3))
    | st.just(DropUnreachableIPv6())
    | st.builds(AnswerDirectly, DEVICES, st.integers(1, 2))
    | st.builds(DropOutsideTunnel, st.sampled_from([4, 6]), st.lists(NETWORKS, max_size=2).map(tuple))
)
EVERY_FILTER = (
    Masquerade,
    ClampMss,
    DropOtherTrafficToServer,
    DropUnreachableIPv6,
    DropOutsideTunnel,
    AnswerDirectly,
)
SEARCHES = st.lists(st.sampled_from(["~.", "example.org", "~corp"]), max_size=2).map(tuple)
DNS = st.builds(Dns, DEVICES, st.lists(ADDRESSES, max_size=2).map(tuple), SEARCHES)


def one_per_key(elements: st.SearchStrategy[T]) -> st.SearchStrategy[frozenset[T]]:
    """The kernel has one thing for each key, so states with more are invalid."""
    return st.lists(elements, unique_by=unique_key, max_size=8).map(frozenset)


STATES = st.builds(
    NetworkState,
    one_per_key(DEVICES_UP),
    one_per_key(PAIRS),
    one_per_key(ROUTES),
    one_per_key(RULES),
    one_per_key(SYSCTLS),
    one_per_key(FILTERS),
    one_per_key(DNS),
)
KINDS = [field.name for field in fields(NetworkState)]


def everything(state: NetworkState) -> set[Thing]:
    return {thing for kind in KINDS for thing in getattr(state, kind)}


def as_state(things: Iterable[Thing]) -> NetworkState:
    found = list(things)

    def those(*kinds: type) -> frozenset[Any]:
        return frozenset(thing for thing in found if isinstance(thing, kinds))

    return NetworkState(
        those(NetDevice),
        those(PointToPoint),
        those(Route),
        those(Rule),
        those(Sysctl),
        those(*EVERY_FILTER),
        those(Dns),
    )


def carry_out(changes: Iterable[Change], state: NetworkState) -> NetworkState:
    """What a kernel does. It refuses to add what has a key in use, and to remove what does not exist."""
    things = {(type(thing), unique_key(thing)): thing for thing in everything(state)}
    for change in changes:
        key = type(change.what), unique_key(change.what)
        match change.action:
            case "add":
                assert key not in things, f"{change}: taken by {things.get(key)}"
            case "replace":
                assert things[key] == change.previous
            case "remove":
                assert things.pop(key) == change.what
                continue
        things[key] = change.what
    return as_state(things.values())


@given(STATES, STATES)
def test_carrying_out_the_difference_gives_the_desired_state(
    desired: NetworkState, actual: NetworkState
) -> None:
    assert carry_out(difference(desired, actual), actual) == desired


@given(STATES)
def test_equal_states_have_no_difference(state: NetworkState) -> None:
    assert difference(state, state) == ()


@given(STATES, STATES)
def test_unchanged_things_are_not_in_a_change(desired: NetworkState, actual: NetworkState) -> None:
    named = {change.what for change in difference(desired, actual)}
    named |= {change.previous for change in difference(desired, actual) if change.previous}
    assert not named & everything(desired) & everything(actual)


@given(STATES, STATES)
def test_only_things_of_the_two_states_are_in_a_change(desired: NetworkState, actual: NetworkState) -> None:
    known = everything(desired) | everything(actual)
    for change in difference(desired, actual):
        assert change.what in known
        assert change.previous is None or change.previous in known


@given(STATES, STATES)
def test_removals_come_after_additions(desired: NetworkState, actual: NetworkState) -> None:
    kinds: list[tuple[type, ...]] = [
        (Sysctl,),
        (NetDevice,),
        EVERY_FILTER,
        (PointToPoint,),
        (Route,),
        (Rule,),
        (Dns,),
    ]
    ranks = []
    for change in difference(desired, actual):
        rank = next(number for number, kind in enumerate(kinds) if isinstance(change.what, kind))
        ranks.append(2 * len(kinds) - 1 - rank if change.action == "remove" else rank)
    assert ranks == sorted(ranks)


@given(STATES, STATES)
def test_the_order_depends_on_the_states_alone(desired: NetworkState, actual: NetworkState) -> None:
    def shuffled(state: NetworkState) -> NetworkState:
        return NetworkState(**{kind: frozenset(reversed(list(getattr(state, kind)))) for kind in KINDS})

    assert difference(shuffled(desired), shuffled(actual)) == difference(desired, actual)


def test_a_route_that_moves_to_another_device_is_replaced_without_a_gap() -> None:
    network = ip_network("10.1.0.0/16")
    old, new = Route(network, "dtun-a"), Route(network, "dtun-b")
    changes = difference(NetworkState(routes=frozenset({new})), NetworkState(routes=frozenset({old})))
    assert changes == (Change("replace", new, old),)


def test_a_missing_metric_is_the_kernels_default() -> None:
    wide, wide6 = ip_network("0.0.0.0/0"), ip_network("::/0")
    assert unique_key(Route(wide, "a")) == unique_key(Route(wide, "a", metric=0))
    assert unique_key(Route(wide6, "a")) == unique_key(Route(wide6, "a", metric=1024))
    assert unique_key(Route(wide, "a")) != unique_key(Route(wide, "a", metric=1024))


def test_the_host_route_to_the_server_comes_before_wide_routes_into_the_tunnel() -> None:
    host_route = Route(ip_network("203.0.113.5/32"), "eth0", ip_address("192.168.1.1"))
    everything = Route(ip_network("0.0.0.0/1"), "dtun-a")
    state = NetworkState(routes=frozenset({everything, host_route}))
    assert [change.what for change in difference(state, NetworkState())] == [host_route, everything]
    assert [change.what for change in difference(NetworkState(), state)] == [everything, host_route]


def test_the_same_destination_in_two_tables_is_two_routes() -> None:
    wide = ip_network("0.0.0.0/0")
    assert unique_key(Route(wide, "a")) != unique_key(Route(wide, "a", table=7217))
    assert unique_key(Route(wide, "a")) == unique_key(Route(wide, kind="throw"))


def test_a_setting_and_a_resolver_are_replaced() -> None:
    old = NetworkState(sysctls=frozenset({Sysctl("a", "0")}), dns=frozenset({Dns("tun0", ())}))
    new = NetworkState(sysctls=frozenset({Sysctl("a", "1")}), dns=frozenset({Dns("tun0", (), ("~.",))}))
    assert [str(change) for change in difference(new, old)] == [
        "replace sysctl a=1",
        "replace dns domain ~. dev tun0",
    ]


def test_a_rule_is_added_after_its_table_and_removed_before_it() -> None:
    route, rule = Route(ip_network("0.0.0.0/0"), "dtun-a", table=7217), Rule(4, 7217, 7217)
    state = NetworkState(routes=frozenset({route}), rules=frozenset({rule}))
    assert [change.what for change in difference(state, NetworkState())] == [route, rule]
    assert [change.what for change in difference(NetworkState(), state)] == [rule, route]


def test_descriptions_of_changes() -> None:
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
            "replace", NetDevice("dtun-demo", 1400), NetDevice("dtun-demo", 1300)
        ): "replace link dtun-demo mtu 1400",
        Change("add", Route(network, kind="throw", table=7)): "add route throw 10.0.0.0/16 table 7",
        Change("remove", Route(network, metric=9, kind="unreachable")): (
            "remove route unreachable 10.0.0.0/16 metric 9"
        ),
        Change("add", Rule(6, 7217, 7218, 0x2170)): "add rule -6 priority 7217 not fwmark 0x2170 table 7218",
        Change("add", DropUnreachableIPv6()): "add filter drop ip6 to unreachable destinations on any device",
        Change("add", DropOutsideTunnel(6)): "add filter drop ip6 outside tunnels",
        Change("add", DropOutsideTunnel(4)): "add filter drop ip outside tunnels",
        Change(
            "add", DropOutsideTunnel(6, (ip_network("fd00::/8"),))
        ): "add filter drop ip6 outside tunnels except to fd00::/8",
        Change("add", Rule(4, 5, 254, None, 0)): "add rule priority 5 table main suppress_prefixlength 0",
        Change("add", Sysctl("net.ipv4.ip_forward", "1")): "add sysctl net.ipv4.ip_forward=1",
        Change("add", Masquerade("dtun0", "eth0")): "add filter iifname dtun0 oifname eth0 masquerade",
        Change(
            "add", AnswerDirectly("dtun0", 5)
        ): "add filter mark 0x5 for connections from outside dtun0 to this host",
        Change("add", ClampMss("dtun0", 1400)): "add filter forward dtun0 tcp maxseg for mtu 1400",
        Change(
            "add", DropOtherTrafficToServer(gateway, 4433)
        ): "add filter to 192.168.1.1 only udp dport 4433",
        Change("add", Dns("dtun0", (local, peer), ("~corp", "a.org"))): (
            "add dns 10.86.0.1 10.86.0.2 domain ~corp a.org dev dtun0"
        ),
    }
    assert {change: str(change) for change in wanted} == wanted
