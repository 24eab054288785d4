"""A client's plan, read like the kernel: where a packet to an address goes, in each mode and phase."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given, strategies as st

from dtun.network.plan import (
    Hop,
    Policy,
    Routing,
    TunnelSettings,
    UnderlayRoutes,
    bypass_without_way,
    device_only,
    plan_client,
)
from dtun.network.state import (
    MAIN_TABLE,
    Address,
    AnswerDirectly,
    ClampMss,
    Dns,
    DropOtherTrafficToServer,
    DropOutsideTunnel,
    DropUnreachableIPv6,
    NetDevice,
    Network,
    NetworkState,
    PointToPoint,
    Route,
    Rule,
    Sysctl,
)

TUN, UPLINK = "dtun0", "eth0"
SERVER = IPv4Address("198.51.100.7")
SERVER6 = IPv6Address("2001:db8::7")
GATEWAY, GATEWAY6 = IPv4Address("192.168.1.1"), IPv6Address("fe80::1")
PAIR = (IPv4Address("10.86.0.2"), IPv4Address("10.86.0.1"))
PAIR6 = (IPv6Address("fd00:86::2"), IPv6Address("fd00:86::1"))
ALL4, ALL6 = ip_network("0.0.0.0/0"), ip_network("::/0")
LAN = ip_network("192.168.1.0/24")
WITHOUT6 = TunnelSettings(1400, (PAIR,))
WITH6 = TunnelSettings(1400, (PAIR, PAIR6))
POLICY = Policy(7217, 0x6474)

# What the host has without dtun.
HOST = (
    Route(ALL4, UPLINK, GATEWAY),
    Route(LAN, UPLINK),
    Route(ALL6, UPLINK, GATEWAY6, metric=1024),
)


def nets(*texts: str) -> tuple[Network, ...]:
    return tuple(ip_network(text) for text in texts)


def around(server: Address = SERVER) -> UnderlayRoutes:
    return UnderlayRoutes(
        servers={server: Hop(UPLINK, GATEWAY if server.version == 4 else GATEWAY6)},
        ports=frozenset({(server, 443)}),
        gateways={4: Hop(UPLINK, GATEWAY), 6: Hop(UPLINK, GATEWAY6)},
        local=(LAN,),
    )


OUTSIDE = around()


def goes(state: NetworkState, address: Address | str, mark: int = 0) -> str:
    """The device that the kernel would choose, "unreachable", or "no route"."""
    address = ip_address(str(address))
    tables = [
        rule.table
        for rule in sorted(state.rules, key=lambda rule: rule.priority)
        if rule.version == address.version and mark != rule.unless_mark
    ]
    for table in (*tables, MAIN_TABLE):
        routes = [route for route in (*HOST, *state.routes) if route.table == table]
        matching = [
            route
            for route in routes
            if route.destination.version == address.version and address in route.destination
        ]
        if not matching:
            continue
        best = min(matching, key=lambda route: (-route.destination.prefixlen, route.metric or 0))
        if best.kind == "throw":
            continue
        return best.device or best.kind
    return "no route"


MODES = [None, POLICY]


@pytest.mark.parametrize("policy", MODES)
class TestConnected:
    def test_only_the_peer_by_default(self, policy: Policy | None) -> None:
        state = plan_client(Routing(TUN, policy=policy), WITHOUT6, OUTSIDE)
        assert state == NetworkState(frozenset({NetDevice(TUN, 1400)}), frozenset({PointToPoint(TUN, *PAIR)}))

    def test_listed_networks(self, policy: Policy | None) -> None:
        state = plan_client(Routing(TUN, nets("10.0.0.0/8"), policy=policy), WITHOUT6, OUTSIDE)
        assert goes(state, "10.1.2.3") == TUN
        assert goes(state, "8.8.8.8") == UPLINK
        assert not any(route.device == UPLINK for route in state.routes)

    def test_everything_but_the_server_and_the_lan(self, policy: Policy | None) -> None:
        state = plan_client(Routing(TUN, (ALL4,), policy=policy), WITHOUT6, OUTSIDE)
        assert goes(state, "8.8.8.8") == goes(state, "203.0.113.1") == TUN
        assert goes(state, SERVER) == goes(state, "192.168.1.77") == UPLINK

    def test_the_server_never_goes_through_the_tunnel(self, policy: Policy | None) -> None:
        """When the link of the route to it goes down, or before the host has had a route to it."""
        for outside in (OUTSIDE, replace(OUTSIDE, servers={SERVER: None})):
            state = plan_client(Routing(TUN, (ALL4,), policy=policy), WITHOUT6, outside)
            left = replace(state, routes=frozenset(route for route in state.routes if route.device != UPLINK))
            assert goes(left, "8.8.8.8") == TUN
            assert goes(left, SERVER, POLICY.mark) == (UPLINK if policy else "unreachable")

    def test_the_default_route_itself_stays(self, policy: Policy | None) -> None:
        state = plan_client(Routing(TUN, (ALL4, ALL6), policy=policy), WITH6, OUTSIDE)
        assert not any(
            route.destination.prefixlen == 0 for route in state.routes if route.table == MAIN_TABLE
        )

    def test_a_bypass_list(self, policy: Policy | None) -> None:
        routing = Routing(TUN, (ALL4,), nets("203.0.113.0/24", "100.64.0.0/10"), policy)
        state = plan_client(routing, WITHOUT6, OUTSIDE)
        assert goes(state, "203.0.113.9") == goes(state, "100.65.0.1") == UPLINK
        assert goes(state, "203.0.114.9") == TUN

    def test_a_bypassed_network_that_the_host_is_in_stays_on_its_link(self, policy: Policy | None) -> None:
        routing = Routing(TUN, (ALL4,), nets("192.168.1.0/25"), policy)
        state = plan_client(routing, WITHOUT6, OUTSIDE)
        assert goes(state, "192.168.1.5") == UPLINK
        assert not any(
            route.gateway == GATEWAY for route in state.routes if route.destination != ip_network(SERVER)
        )

    def test_ipv6_does_not_leak_past_a_tunnel_without_it(self, policy: Policy | None) -> None:
        state = plan_client(Routing(TUN, (ALL4,), policy=policy), WITHOUT6, OUTSIDE)
        assert goes(state, "2001:db8:1::1") == "unreachable"

    def test_nor_from_a_socket_that_is_bound_to_a_device(self, policy: Policy | None) -> None:
        routing = Routing(TUN, (ALL4, ALL6), policy=policy)
        assert plan_client(routing, WITHOUT6, OUTSIDE).filters == {DropUnreachableIPv6()}
        assert plan_client(routing, WITH6, OUTSIDE).filters == frozenset()
        assert plan_client(replace(routing, ipv6="allow"), WITHOUT6, OUTSIDE).filters == frozenset()

    def test_unless_ipv6_is_allowed(self, policy: Policy | None) -> None:
        state = plan_client(Routing(TUN, (ALL4,), policy=policy, ipv6="allow"), WITHOUT6, OUTSIDE)
        assert goes(state, "2001:db8:1::1") == UPLINK

    def test_ipv6_goes_through_a_tunnel_that_has_it(self, policy: Policy | None) -> None:
        state = plan_client(Routing(TUN, (ALL4, ALL6), policy=policy), WITH6, OUTSIDE)
        assert goes(state, "2001:db8:1::1") == TUN

    def test_some_of_ipv6_in_the_tunnel_the_rest_blocked(self, policy: Policy | None) -> None:
        routing = Routing(TUN, (ALL4, ip_network("fd00:10::/48")), policy=policy)
        state = plan_client(routing, WITH6, OUTSIDE)
        assert goes(state, "fd00:10::5") == TUN
        assert goes(state, "2001:db8:1::1") == "unreachable"

    def test_a_server_on_ipv6_is_reached_while_ipv6_is_blocked(self, policy: Policy | None) -> None:
        state = plan_client(Routing(TUN, (ALL4,), policy=policy), WITHOUT6, around(SERVER6))
        assert goes(state, SERVER6, mark=POLICY.mark) == UPLINK


@pytest.mark.parametrize("policy", MODES)
class TestKillSwitch:
    def routing(self, policy: Policy | None) -> Routing:
        return Routing(TUN, (ALL4,), nets("203.0.113.0/24"), policy, block=True)

    def test_before_there_is_a_tunnel(self, policy: Policy | None) -> None:
        state = plan_client(self.routing(policy), None, OUTSIDE)
        assert goes(state, "8.8.8.8") == goes(state, "2001:db8:1::1") == "unreachable"
        assert goes(state, SERVER, POLICY.mark) == goes(state, "203.0.113.9") == UPLINK
        assert state.devices == frozenset()

    def test_with_a_tunnel(self, policy: Policy | None) -> None:
        state = plan_client(self.routing(policy), WITHOUT6, OUTSIDE)
        assert goes(state, "8.8.8.8") == TUN
        assert goes(state, "203.0.113.9") == UPLINK

    def test_after_the_process_was_killed_and_its_device_removed(self, policy: Policy | None) -> None:
        state = plan_client(self.routing(policy), WITHOUT6, OUTSIDE)
        left = replace(state, routes=frozenset(route for route in state.routes if route.device != TUN))
        assert goes(left, "8.8.8.8") == goes(left, "2001:db8:1::1") == "unreachable"
        assert goes(left, "203.0.113.9") == UPLINK

    def test_only_the_tunnels_packets_reach_the_server(self, policy: Policy | None) -> None:
        assert plan_client(self.routing(policy), None, OUTSIDE).filters == {
            DropOtherTrafficToServer(SERVER, 443),
            DropOutsideTunnel(4, nets("192.168.1.0/24", "203.0.113.0/24")),
            DropOutsideTunnel(6),
        }

    def test_what_leaves_outside_tunnels_is_dropped_except_to_allowed_networks(
        self, policy: Policy | None
    ) -> None:
        bypassed = nets("203.0.113.0/24", "2001:db8:90::/49", "2001:db8:90:8000::/49")
        routing = replace(self.routing(policy), bypassed=bypassed)
        outside = replace(OUTSIDE, local=nets("192.168.1.0/24", "2001:db8:1::/64"))
        routing = replace(routing, behind=nets("10.0.0.0/16"))
        allowed = DropOutsideTunnel(6, nets("2001:db8:1::/64", "2001:db8:90::/48"))
        allowed4 = DropOutsideTunnel(4, nets("10.0.0.0/16", "192.168.1.0/24", "203.0.113.0/24"))
        for tunnel in (None, WITHOUT6, WITH6):
            assert {allowed, allowed4} <= plan_client(routing, tunnel, outside).filters
        elsewhere = replace(routing, included=nets("203.0.113.0/24", "2001:db8:90::/48"))
        assert allowed not in plan_client(elsewhere, WITH6, outside).filters

    def test_no_filters_without_it(self, policy: Policy | None) -> None:
        state = plan_client(replace(self.routing(policy), block=False), WITH6, OUTSIDE)
        assert not any(
            isinstance(what, DropOtherTrafficToServer | DropOutsideTunnel) for what in state.filters
        )


class TestFewestRoutes:
    def test_one_excluded_half_is_left_out(self) -> None:
        """10.0.0.0/8 without its second half is one route; with a route around, two."""
        routing = Routing(TUN, nets("10.0.0.0/8"), nets("10.128.0.0/9"))
        routes = plan_client(routing, WITHOUT6, OUTSIDE).routes
        assert routes == {Route(ip_network("10.0.0.0/9"), TUN)}

    def test_one_bypassed_host_gets_a_route_around(self) -> None:
        routing = Routing(TUN, (ALL4,), nets("203.0.113.1/32"))
        routes = plan_client(routing, WITHOUT6, OUTSIDE).routes
        assert Route(ip_network("203.0.113.1/32"), UPLINK, GATEWAY) in routes
        assert len([route for route in routes if route.destination.version == 4 and route.device]) == 4

    def test_what_is_not_in_the_tunnel_needs_no_route_around_it(self) -> None:
        routing = Routing(TUN, nets("10.0.0.0/8"), nets("203.0.113.0/24"))
        assert plan_client(routing, WITHOUT6, OUTSIDE).routes == {Route(ip_network("10.0.0.0/8"), TUN)}

    def test_without_a_gateway_there_is_no_route_around(self) -> None:
        routing = Routing(TUN, (ALL4,), nets("203.0.113.1/32"))
        alone = replace(OUTSIDE, gateways={})
        state = plan_client(routing, WITHOUT6, alone)
        assert goes(state, "203.0.113.1") == TUN
        assert bypass_without_way(routing, WITHOUT6, alone) == {4: [ip_network("203.0.113.1/32")]}
        assert bypass_without_way(routing, WITHOUT6, OUTSIDE) == {}
        assert bypass_without_way(replace(routing, policy=POLICY), WITHOUT6, alone) == {}
        left_out = Routing(TUN, nets("10.0.0.0/8"), nets("10.128.0.0/9"))
        assert bypass_without_way(left_out, WITHOUT6, alone) == {}

    def test_routes_around_have_the_source_that_the_hosts_route_prescribes(self) -> None:
        source = IPv4Address("192.168.1.77")
        hop = Hop(UPLINK, GATEWAY, source)
        outside = replace(OUTSIDE, servers={SERVER: hop}, gateways={4: hop})
        routes = plan_client(Routing(TUN, (ALL4,), nets("203.0.113.1/32")), WITHOUT6, outside).routes
        assert Route(ip_network("203.0.113.1/32"), UPLINK, GATEWAY, source) in routes
        assert Route(ip_network(SERVER), UPLINK, GATEWAY, source) in routes


class TestTheRest:
    def test_forwarding_is_enabled_and_the_mss_clamped(self) -> None:
        state = plan_client(Routing(TUN, forwarding=True), WITHOUT6, OUTSIDE)
        assert state.sysctls == {Sysctl("net.ipv4.ip_forward", "1")}
        assert state.filters == {ClampMss(TUN, 1400)}

    def test_forwarding_of_ipv6_with_a_tunnel_that_has_it(self) -> None:
        state = plan_client(Routing(TUN, forwarding=True), WITH6, OUTSIDE)
        assert Sysctl("net.ipv6.conf.all.forwarding", "1") in state.sysctls

    def test_connections_from_outside_are_answered_directly_if_that_is_wanted(self) -> None:
        routing = Routing(TUN, (ALL4,), policy=replace(POLICY, answer_directly=True))
        for tunnel in (None, WITHOUT6):
            state = plan_client(routing, tunnel, OUTSIDE)
            assert AnswerDirectly(TUN, POLICY.mark) in state.filters
            assert Sysctl("net.ipv4.conf.all.src_valid_mark", "1") in state.sysctls
        without = plan_client(replace(routing, policy=POLICY), WITHOUT6, OUTSIDE)
        assert not any(isinstance(what, AnswerDirectly) for what in without.filters)

    def test_name_servers_belong_to_the_tunnel(self) -> None:
        dns = Dns(TUN, (IPv4Address("10.86.0.1"),), ("~.",))
        state = plan_client(Routing(TUN), replace(WITHOUT6, dns=dns), OUTSIDE)
        assert state.dns == {dns}
        assert plan_client(Routing(TUN), None, OUTSIDE).dns == frozenset()

    def test_device_only_has_no_routes(self) -> None:
        state = device_only(plan_client(Routing(TUN, (ALL4,)), WITHOUT6, OUTSIDE))
        assert goes(state, "8.8.8.8") == UPLINK
        assert state.devices == {NetDevice(TUN, 1400)}

    def test_after_main_the_main_table_comes_first_without_its_default_routes(self) -> None:
        policy = replace(POLICY, after_main=True)
        state = plan_client(Routing(TUN, (ALL4, ALL6), policy=policy), WITH6, OUTSIDE)
        ours = {Rule(version, 7217, 7217, unless_mark=POLICY.mark) for version in (4, 6)}
        assert state.rules == ours | {
            Rule(version, 7216, 254, suppress_prefix_length=0) for version in (4, 6)
        }
        assert plan_client(Routing(TUN, (ALL4, ALL6), policy=POLICY), WITH6, OUTSIDE).rules == ours

    def test_no_rules_without_routes(self) -> None:
        assert plan_client(Routing(TUN, policy=POLICY), WITHOUT6, OUTSIDE).rules == frozenset()


networks = st.builds(
    lambda address, length: ip_network((address, length), strict=False),
    st.integers(0, 2**32 - 1),
    st.integers(1, 32),
)


@given(
    included=st.lists(st.one_of(networks, st.just(ALL4)), max_size=4),
    bypassed=st.lists(networks, max_size=4),
    policy=st.sampled_from(MODES),
    block=st.booleans(),
    address=st.integers(0x01000000, 0xDFFFFFFF),
    connected=st.booleans(),
)
def test_each_address_goes_where_the_configuration_says(
    included: list[Network],
    bypassed: list[Network],
    policy: Policy | None,
    block: bool,
    address: int,
    connected: bool,
) -> None:
    """First the server and the local network, then the bypass list, then listed networks; the rest is unchanged."""
    routing = Routing(TUN, tuple(included), tuple(bypassed), policy, block=block)
    state = plan_client(routing, WITHOUT6 if connected else None, OUTSIDE)
    where = IPv4Address(address)
    wanted = any(where in network for network in included) and not any(
        where in network for network in bypassed
    )
    blocks = block and routing.everything(4)
    if where == SERVER or where in LAN:
        # Listed networks have precedence over the local network: not covered here.
        return
    if not wanted:
        assert goes(state, where) == UPLINK
    else:
        assert goes(state, where) == (TUN if connected else "unreachable" if blocks else UPLINK)
