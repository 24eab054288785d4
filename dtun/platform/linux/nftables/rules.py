"""From filters to the chains, rules and sets of one nf_tables table, family inet: IPv4 and IPv6 in one. Pure.

    chain            hook         priority        rules
    nat_postrouting  postrouting  100 (srcnat)    masquerade what goes from inside to outside
    clamp_forward    forward      -150 (mangle)   lower the TCP segment size, both ways through the device
    guard_output     output       -10             accept UDP to the server's port; drop what else goes there;
                                                  drop IPv6 that routes alone do not keep in
    guard_forward    forward      -10             the same for the server

    set or map       of                           in
    masqueraded      devices inside and outside   nat_postrouting
    clamped4, 6      devices with segment sizes   clamp_forward
    open6            networks                     guard_output

A chain without rules is not made: without masquerading, for one, the kernel need not track connections.

The attributes that are sent (linux/netfilter/nf_tables.h), by number:

    table   1 name, 2 flags
    chain   1 table, 3 name, 7 type, 5 policy, 4 hook (1 number, 2 priority)
    rule    1 table, 2 chain, 4 expressions
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv6Network
from typing import Final, Literal

from dtun.network.state import (
    Address,
    ClampMss,
    DropIPv6OutsideTunnel,
    DropOtherTrafficToServer,
    DropUnreachableIPv6,
    Filter,
    Masquerade,
)
from dtun.platform.linux.netlink.wire import NLM_F_CREATE
from dtun.platform.linux.nftables import sets
from dtun.platform.linux.nftables.expressions import (
    META_IIFNAME,
    META_OIFNAME,
    NF_ACCEPT,
    NF_DROP,
    begins_like,
    destination_is,
    device_is,
    goes_into,
    icmpv6_type_is,
    in_pair_of_devices,
    is_not_tcp,
    is_refused_by_routes,
    lower_segment_size,
    masquerade,
    tcp_does_not_open,
    tunnel_is,
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
    Message,
    nested,
    number,
    text,
)

# From linux/netfilter.h: nf_inet_hooks.
_FORWARD, _LOCAL_OUT, _POST_ROUTING = 2, 3, 4

# From linux/netfilter_ipv4.h. The guard comes before the filters of others, and after NAT of the host's own packets.
_MANGLE: Final = -150
_GUARD: Final = -10
_SRCNAT: Final = 100

# Bytes of the smallest IP header and the smallest TCP header: what of a packet is no segment (RFC 6691, section 2).
_HEADERS: Final = {4: 20 + 20, 6: 40 + 20}

_NEIGHBOUR_DISCOVERY: Final = (135, 136)
"""Neighbor Solicitation and Neighbor Advertisement (RFC 4861, sections 4.3 and 4.4)."""


_OF_THE_LINK: Final = ((IPv6Network("fe80::/10"), 0xFFC0 << 112), (IPv6Network("ff02::/16"), 0xFF0F << 112))
"""What no router forwards: link-local addresses, and multicast of that scope with any flags (RFC 4291, 2.5.6, 2.7)."""

_TUNNELS: Final = ("tun", "wireguard")
"""Drivers of devices whose packets leave the host inside of others, and are looked at then."""

_CLAMPED: Final = {4: "clamped4", 6: "clamped6"}


@dataclass(frozen=True, slots=True)
class Chain:
    """A base chain that accepts what no rule drops. `purpose`: what its rules do, and what the kernel needs for it."""

    name: str
    type: Literal["filter", "nat"]
    hook: int
    priority: int
    rules: tuple[bytes, ...]
    purpose: str


@dataclass(frozen=True, slots=True)
class Layout:
    """All that is in the table. Rules know a set by its place here, counted from 1, as well as by its name."""

    sets: tuple[Set, ...]
    chains: tuple[Chain, ...]


def layout(filters: Collection[Filter]) -> Layout:
    """The sets that are needed and the chains that have rules; the same filters always give the same."""
    masquerades = {(what.inside, what.outside) for what in filters if isinstance(what, Masquerade)}
    clamps = _smallest(what for what in filters if isinstance(what, ClampMss))
    guards = sorted(
        (what for what in filters if isinstance(what, DropOtherTrafficToServer)),
        key=lambda what: (what.server.version, what.server.packed, what.port),
    )
    enclosures = [what for what in filters if isinstance(what, DropIPv6OutsideTunnel)]
    nat = "masquerade (modules nft_chain_nat and nft_masq; family inet from Linux 5.2 on)"
    clamp, guard = "lower TCP segment sizes", "guard the server's address"
    keep_in = guard
    if enclosures:
        keep_in = "keep IPv6 in the tunnel (Linux 5.1 or later)"
    elif DropUnreachableIPv6() in filters:
        keep_in = "keep IPv6 from leaving by the wrong device (modules nft_fib_inet and nft_fib_ipv6)"
    found: list[Set] = []
    if masquerades:
        found.append(sets.pairs_of_devices("masqueraded", masquerades, nat))
    if clamps:
        for version, headers in _HEADERS.items():
            sizes = {device: max(0, mtu - headers) for device, mtu in clamps.items()}
            found.append(sets.sizes_by_device(_CLAMPED[version], sizes, clamp))
    opened = {network for what in enclosures for network in what.allowed}
    if opened:
        found.append(sets.networks("open6", opened, keep_in))
    numbers = {which.name: position for position, which in enumerate(found, 1)}
    output = (*_guard(guards, on_link=True), *_keep_in(filters, numbers))
    made = (
        Chain("nat_postrouting", "nat", _POST_ROUTING, _SRCNAT, tuple(_masquerade(numbers)), nat),
        Chain("clamp_forward", "filter", _FORWARD, _MANGLE, tuple(_clamp(numbers)), clamp),
        Chain("guard_output", "filter", _LOCAL_OUT, _GUARD, output, keep_in),
        Chain("guard_forward", "filter", _FORWARD, _GUARD, tuple(_guard(guards, on_link=False)), guard),
    )
    return Layout(tuple(found), tuple(chain for chain in made if chain.rules))


def _smallest(clamps: Iterable[ClampMss]) -> dict[str, int]:
    """The MTU by device."""
    found: dict[str, int] = {}
    for what in clamps:
        found[what.device] = min(what.mtu, found.get(what.device, what.mtu))
    return found


def replacement(table: str, wanted: Layout) -> list[Message]:
    """What makes the table hold exactly this, whatever it holds now; if that is nothing, there is no table.

    To delete a table that is not there is an error, so it is made first: as a whole, the batch has no in-between.
    """
    name = text(1, table)
    new = Message(NFT_MSG_NEWTABLE, name + number(2, 0), purpose="have a table of family inet")
    messages = [new, Message(NFT_MSG_DELTABLE, name, purpose="replace its own table")]
    if wanted.chains:
        messages.append(new)
    messages.extend(_new_chain(table, chain) for chain in wanted.chains)
    for position, which in enumerate(wanted.sets, 1):
        messages.append(sets.new_set(table, which, position))
        messages.extend(sets.new_elements(table, which, position))
    messages.extend(_new_rule(table, chain, rule) for chain in wanted.chains for rule in chain.rules)
    return messages


def amendment(table: str, before: Layout, after: Layout) -> list[Message] | None:
    """What makes the one into the other, which is little where only devices come and go; None: replace it all."""
    if before.chains != after.chains or not after.chains:
        return None
    if [which.name for which in before.sets] != [which.name for which in after.sets]:
        return None
    both = list(zip(before.sets, after.sets, strict=True))
    if any(one.edges and one.elements != other.elements for one, other in both):
        return None
    return [message for one, other in both for message in sets.amendment(table, one, other)]


def _new_chain(table: str, chain: Chain) -> Message:
    return Message(
        NFT_MSG_NEWCHAIN,
        text(1, table)
        + text(3, chain.name)
        + text(7, chain.type)
        + number(5, NF_ACCEPT)
        + nested(4, number(1, chain.hook), number(2, chain.priority)),
        NLM_F_CREATE,
        chain.purpose,
    )


def _new_rule(table: str, chain: Chain, expressions: bytes) -> Message:
    return Message(
        NFT_MSG_NEWRULE,
        text(1, table) + text(2, chain.name) + nested(4, expressions),
        NLM_F_CREATE | NLM_F_APPEND,
        chain.purpose,
    )


def _masquerade(numbers: Mapping[str, int]) -> Iterator[bytes]:
    if "masqueraded" in numbers:
        # A packet knows in postrouting where it came in from Linux 5.7 on. The host's own packets came in nowhere.
        yield in_pair_of_devices("masqueraded", numbers["masqueraded"]) + masquerade()


def _clamp(numbers: Mapping[str, int]) -> Iterator[bytes]:
    if _CLAMPED[4] not in numbers:
        return
    # Nearly all packets are done with here.
    yield is_not_tcp() + verdict(NF_ACCEPT)
    yield tcp_does_not_open() + verdict(NF_ACCEPT)
    for direction in (META_IIFNAME, META_OIFNAME):
        for version, name in _CLAMPED.items():
            yield version_is(version) + lower_segment_size(direction, name, numbers[name])


def _guard(guards: Collection[DropOtherTrafficToServer], *, on_link: bool) -> Iterator[bytes]:
    """All that is accepted, then all that is dropped: a server may have several ports."""
    for what in guards:
        yield destination_is(what.server) + udp_port_is(what.port) + verdict(NF_ACCEPT)
    servers: dict[Address, None] = dict.fromkeys(what.server for what in guards)
    for server in servers:
        if on_link and server.version == 6:
            # A server on the same link could not be found without; IPv4 has ARP for that, which is not filtered here.
            for kind in _NEIGHBOUR_DISCOVERY:
                yield destination_is(server) + icmpv6_type_is(kind) + verdict(NF_ACCEPT)
    for server in servers:
        yield destination_is(server) + verdict(NF_DROP)


def _keep_in(filters: Collection[Filter], numbers: Mapping[str, int]) -> Iterator[bytes]:
    """After the guards: IPv6 by a device that a program insists on, where Linux looks past unreachable routes."""
    enclosed = any(isinstance(what, DropIPv6OutsideTunnel) for what in filters)
    if not enclosed and DropUnreachableIPv6() not in filters:
        return
    for network, mask in _OF_THE_LINK:
        yield begins_like(network, mask) + verdict(NF_ACCEPT)
    if not enclosed:
        yield version_is(6) + is_refused_by_routes() + verdict(NF_DROP)
        return
    yield device_is(META_OIFNAME, "lo") + verdict(NF_ACCEPT)
    for kind in _TUNNELS:
        yield tunnel_is(kind) + verdict(NF_ACCEPT)
    for type_ in _NEIGHBOUR_DISCOVERY:
        yield version_is(6) + icmpv6_type_is(type_) + verdict(NF_ACCEPT)
    if "open6" in numbers:
        yield goes_into("open6", numbers["open6"]) + verdict(NF_ACCEPT)
    yield version_is(6) + verdict(NF_DROP)
