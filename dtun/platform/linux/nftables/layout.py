"""Chains, rules and sets for the filters, in one nf_tables table of family inet (IPv4 and IPv6). Pure.

    chain            hook         priority        rules
    nat_postrouting  postrouting  100 (srcnat)    masquerade packets from an inside to an outside device
    clamp_forward    forward      -150 (mangle)   lower the TCP segment size, in both directions
    answer_incoming  prerouting   -150 (mangle)   mark connections from outside to this host, and their packets
    answer_output    output       -150 (mangle)   mark the answers, and route them again
    guard_output     output       -10             accept UDP to the server's port, drop other packets to the server;
                                                  drop packets that would leave outside the tunnel
    guard_forward    forward      -10             the same for packets of others

    set or map       contains                     used by
    masqueraded      devices inside and outside   nat_postrouting
    clamped4, 6      devices with segment sizes   clamp_forward
    open4, 6         networks                     guard_output, guard_forward

A chain without rules is not created. So without masquerading the kernel does not track connections.

Attributes by number (linux/netfilter/nf_tables.h):

    table   1 name, 2 flags
    chain   1 table, 3 name, 7 type, 5 policy, 4 hook (1 number, 2 priority)
    rule    1 table, 2 chain, 4 expressions
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import Final, Literal

from dtun.network.state import (
    Address,
    AnswerDirectly,
    ClampMss,
    DropOtherTrafficToServer,
    DropOutsideTunnel,
    DropUnreachableIPv6,
    Filter,
    Masquerade,
    Network,
)
from dtun.platform.linux.netlink.wire import NLM_F_CREATE
from dtun.platform.linux.nftables import sets
from dtun.platform.linux.nftables.expressions import (
    META_IIFNAME,
    META_OIFNAME,
    NF_ACCEPT,
    NF_DROP,
    clamp_mss,
    connection_is_new,
    connection_mark_is,
    destination_in_set,
    destination_is,
    destination_is_own,
    destination_is_unreachable,
    destination_matches,
    device_is,
    device_is_not,
    devices_in_set,
    icmpv6_type_is,
    mark_connection,
    mark_packet,
    masquerade,
    output_driver_is,
    protocol_is_not_tcp,
    source_is_output_devices,
    tcp_is_not_syn,
    udp_port_is,
    verdict,
    version_is,
)
from dtun.platform.linux.nftables.sets import Set
from dtun.platform.linux.nftables.wire import (
    NFT_MSG_DELTABLE,
    NFT_MSG_NEWCHAIN,
    NFT_MSG_NEWRULE,
    NFT_MSG_NEWTABLE,
    NLM_F_APPEND,
    Request,
    nested,
    number,
    text,
)

# From linux/netfilter.h: nf_inet_hooks.
_PRE_ROUTING, _FORWARD, _LOCAL_OUT, _POST_ROUTING = 0, 2, 3, 4

# From linux/netfilter_ipv4.h. _GUARD comes before other programs' filters, and after NAT of the host's own packets.
_MANGLE: Final = -150
_GUARD: Final = -10
_SRCNAT: Final = 100

# Bytes of the IP and TCP headers without options, which do not count as segment (RFC 6691, section 2).
_HEADERS: Final = {4: 20 + 20, 6: 40 + 20}

_NEIGHBOUR_DISCOVERY: Final = (135, 136)
"""Neighbor Solicitation and Neighbor Advertisement (RFC 4861, sections 4.3 and 4.4)."""


_LINK_LOCAL6: Final = ((IPv6Network("fe80::/10"), 0xFFC0 << 112), (IPv6Network("ff02::/16"), 0xFF0F << 112))
"""Link-local addresses, and link-local multicast with any flags (RFC 4291, 2.5.6, 2.7): no router forwards them."""

_LINK_LOCAL4: Final = tuple(
    map(IPv4Network, ("169.254.0.0/16", "224.0.0.0/24", "239.255.0.0/16", "255.255.255.255/32"))
)
"""Link-local addresses (RFC 3927), multicast of the link and of the local scope (RFC 5771, RFC 2365), broadcast."""

_TUNNEL_DRIVERS: Final = ("tun", "wireguard")
"""Drivers of tunnels. Their packets leave the host inside other packets, which are filtered instead."""

_CLAMPED: Final = {4: "clamped4", 6: "clamped6"}
_OPEN: Final = {4: "open4", 6: "open6"}


@dataclass(frozen=True, slots=True)
class Chain:
    """A base chain that accepts what no rule drops. `purpose` completes the message "this kernel cannot ..."."""

    name: str
    type: Literal["filter", "nat", "route"]
    hook: int
    priority: int
    rules: tuple[bytes, ...]
    purpose: str


@dataclass(frozen=True, slots=True)
class TableLayout:
    """The contents of the table. A set's id in a batch is its position here, from 1."""

    sets: tuple[Set, ...]
    chains: tuple[Chain, ...]


def layout(filters: Collection[Filter]) -> TableLayout:
    """Return the table for these filters, the same for the same filters in any order."""
    masquerades = {(what.inside, what.outside) for what in filters if isinstance(what, Masquerade)}
    clamps = _smallest(what for what in filters if isinstance(what, ClampMss))
    guards = sorted(
        (what for what in filters if isinstance(what, DropOtherTrafficToServer)),
        key=lambda what: (what.server.version, what.server.packed, what.port),
    )
    outside = _allowed_outside(filters)
    nat = "masquerade (modules nft_chain_nat and nft_masq; family inet from Linux 5.2 on)"
    clamp, guard = "lower TCP segment sizes", "guard the server's address"
    stay = guard
    if outside:
        stay = "keep packets in the tunnel (Linux 5.1 or later)"
    elif DropUnreachableIPv6() in filters:
        stay = "keep IPv6 from leaving by the wrong device (modules nft_fib_inet and nft_fib_ipv6)"
    answers = sorted(
        (what for what in filters if isinstance(what, AnswerDirectly)), key=lambda what: what.device
    )
    answer = "answer connections from outside directly (modules nft_ct and nft_fib_inet)"
    found: list[Set] = []
    if masquerades:
        found.append(sets.device_pairs("masqueraded", masquerades, nat))
    if clamps:
        for version, headers in _HEADERS.items():
            sizes = {device: max(0, mtu - headers) for device, mtu in clamps.items()}
            found.append(sets.size_by_device(_CLAMPED[version], sizes, clamp))
    for version, opened in outside.items():
        if opened:
            found.append(sets.networks(_OPEN[version], version, opened, stay))
    numbers = {which.name: position for position, which in enumerate(found, 1)}
    output = [*_guard(guards, on_link=True), *_drop_outside(outside, numbers, on_link=True)]
    if not outside and DropUnreachableIPv6() in filters:
        output += [*_accept_link_local6(), version_is(6) + destination_is_unreachable() + verdict(NF_DROP)]
    forward = (*_guard(guards, on_link=False), *_drop_outside(outside, numbers, on_link=False))
    made = (
        Chain("nat_postrouting", "nat", _POST_ROUTING, _SRCNAT, tuple(_masquerade(numbers)), nat),
        Chain("clamp_forward", "filter", _FORWARD, _MANGLE, tuple(_clamp(numbers)), clamp),
        Chain("answer_incoming", "filter", _PRE_ROUTING, _MANGLE, tuple(_mark_incoming(answers)), answer),
        Chain("answer_output", "route", _LOCAL_OUT, _MANGLE, tuple(_mark_answers(answers)), answer),
        Chain("guard_output", "filter", _LOCAL_OUT, _GUARD, tuple(output), stay),
        Chain("guard_forward", "filter", _FORWARD, _GUARD, forward, stay if outside else guard),
    )
    return TableLayout(tuple(found), tuple(chain for chain in made if chain.rules))


def _smallest(clamps: Iterable[ClampMss]) -> dict[str, int]:
    """Return the smallest MTU by device."""
    found: dict[str, int] = {}
    for what in clamps:
        found[what.device] = min(what.mtu, found.get(what.device, what.mtu))
    return found


def replacement(table: str, wanted: TableLayout) -> list[Request]:
    """Return the batch that replaces the table, or only deletes it if there are no chains.

    The table is created before it is deleted, because the deletion of a missing table is an error. A batch is atomic:
    no packet sees the steps.
    """
    name = text(1, table)
    new = Request(NFT_MSG_NEWTABLE, name + number(2, 0), purpose="have a table of family inet")
    messages = [new, Request(NFT_MSG_DELTABLE, name, purpose="replace its own table")]
    if wanted.chains:
        messages.append(new)
    messages.extend(_new_chain(table, chain) for chain in wanted.chains)
    for position, which in enumerate(wanted.sets, 1):
        messages.append(sets.new_set(table, which, position))
        messages.extend(sets.add_elements(table, which, position))
    messages.extend(_new_rule(table, chain, rule) for chain in wanted.chains for rule in chain.rules)
    return messages


def update(table: str, before: TableLayout, after: TableLayout) -> list[Request] | None:
    """Return the few changes that turn `before` into `after`; None if the table must be replaced."""
    if before.chains != after.chains or not after.chains:
        return None
    if [which.name for which in before.sets] != [which.name for which in after.sets]:
        return None
    both = list(zip(before.sets, after.sets, strict=True))
    if any(one.edges and one.elements != other.elements for one, other in both):
        return None
    return [message for one, other in both for message in sets.update(table, one, other)]


def _new_chain(table: str, chain: Chain) -> Request:
    return Request(
        NFT_MSG_NEWCHAIN,
        text(1, table)
        + text(3, chain.name)
        + text(7, chain.type)
        + number(5, NF_ACCEPT)
        + nested(4, number(1, chain.hook), number(2, chain.priority)),
        NLM_F_CREATE,
        chain.purpose,
    )


def _new_rule(table: str, chain: Chain, expressions: bytes) -> Request:
    return Request(
        NFT_MSG_NEWRULE,
        text(1, table) + text(2, chain.name) + nested(4, expressions),
        NLM_F_CREATE | NLM_F_APPEND,
        chain.purpose,
    )


def _masquerade(numbers: Mapping[str, int]) -> Iterator[bytes]:
    if "masqueraded" in numbers:
        # Postrouting knows the input device from Linux 5.7 on. Packets of the host itself have none.
        yield devices_in_set("masqueraded", numbers["masqueraded"]) + masquerade()


def _clamp(numbers: Mapping[str, int]) -> Iterator[bytes]:
    if _CLAMPED[4] not in numbers:
        return
    # Nearly all packets end here.
    yield protocol_is_not_tcp() + verdict(NF_ACCEPT)
    yield tcp_is_not_syn() + verdict(NF_ACCEPT)
    for direction in (META_IIFNAME, META_OIFNAME):
        for version, name in _CLAMPED.items():
            yield version_is(version) + clamp_mss(direction, name, numbers[name])


def _mark_incoming(answers: Iterable[AnswerDirectly]) -> Iterator[bytes]:
    for what in answers:
        outside = device_is_not(META_IIFNAME, what.device) + device_is_not(META_IIFNAME, "lo")
        new = connection_is_new() + connection_mark_is(0) + destination_is_own()
        yield outside + new + mark_connection(what.mark)
        # Of forwarded ports the answers, and all of them for reverse path filtering.
        yield connection_mark_is(what.mark) + mark_packet(what.mark)


def _mark_answers(answers: Iterable[AnswerDirectly]) -> Iterator[bytes]:
    for what in answers:
        # A connection that was there before dtun, such as the ssh session of whoever starts it.
        own = device_is(META_OIFNAME, what.device) + source_is_output_devices()
        yield own + verdict(NF_ACCEPT)
        yield (
            tcp_is_not_syn()
            + device_is_not(META_OIFNAME, "lo")
            + connection_is_new()
            + connection_mark_is(0)
            + mark_connection(what.mark)
        )
        yield connection_mark_is(what.mark) + mark_packet(what.mark)


def _guard(guards: Collection[DropOtherTrafficToServer], *, on_link: bool) -> Iterator[bytes]:
    """Accept rules before drop rules, because a server may have several ports."""
    for what in guards:
        yield destination_is(what.server) + udp_port_is(what.port) + verdict(NF_ACCEPT)
    servers: dict[Address, None] = dict.fromkeys(what.server for what in guards)
    for server in servers:
        if on_link and server.version == 6:
            # For a server on the same link. IPv4 uses ARP, which is not filtered here.
            for kind in _NEIGHBOUR_DISCOVERY:
                yield destination_is(server) + icmpv6_type_is(kind) + verdict(NF_ACCEPT)
    for server in servers:
        yield destination_is(server) + verdict(NF_DROP)


def _allowed_outside(filters: Collection[Filter]) -> dict[int, set[Network]]:
    """The IP versions that must not leave outside tunnels, each with the networks that they may be sent to."""
    found: dict[int, set[Network]] = {}
    for version in (4, 6):
        outside = [
            what for what in filters if isinstance(what, DropOutsideTunnel) and what.version == version
        ]
        if outside:
            found[version] = {network for what in outside for network in what.allowed}
    if 4 in found:
        found[4].update(_LINK_LOCAL4)
    return found


def _accept_link_local6() -> Iterator[bytes]:
    for network, mask in _LINK_LOCAL6:
        yield destination_matches(network, mask) + verdict(NF_ACCEPT)


def _drop_outside(outside: Collection[int], numbers: Mapping[str, int], *, on_link: bool) -> Iterator[bytes]:
    """Drop these IP versions outside tunnels; `on_link`: packets of the host itself."""
    if not outside:
        return
    if on_link and 6 in outside:
        yield from _accept_link_local6()
    if on_link:
        yield device_is(META_OIFNAME, "lo") + verdict(NF_ACCEPT)
    for kind in _TUNNEL_DRIVERS:
        yield output_driver_is(kind) + verdict(NF_ACCEPT)
    if on_link and 6 in outside:
        for type_ in _NEIGHBOUR_DISCOVERY:
            yield version_is(6) + icmpv6_type_is(type_) + verdict(NF_ACCEPT)
    for version in outside:
        name = _OPEN[version]
        if name in numbers:
            yield destination_in_set(version, name, numbers[name]) + verdict(NF_ACCEPT)
        yield version_is(version) + verdict(NF_DROP)
