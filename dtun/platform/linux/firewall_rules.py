"""From filters to the chains and rules of one nf_tables table, family inet: IPv4 and IPv6 in one. Pure.

    chain            hook         priority        rules
    nat_postrouting  postrouting  100 (srcnat)    masquerade what goes from inside to outside
    clamp_forward    forward      -150 (mangle)   lower the TCP segment size, both ways through the device
    guard_output     output       -10             accept UDP to the server's port; drop what else goes there
    guard_forward    forward      -10             the same

A chain without rules is not made: without masquerading, for one, the kernel need not track connections.

The attributes that are sent (linux/netfilter/nf_tables.h), by number:

    table   1 name, 2 flags
    chain   1 table, 3 name, 7 type, 5 policy, 4 hook (1 number, 2 priority)
    rule    1 table, 2 chain, 4 expressions
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final, Literal

from dtun.network.state import Address, Clamp, Filter, Guard, Masquerade
from dtun.platform.linux.firewall_expressions import (
    META_IIFNAME,
    META_OIFNAME,
    NF_ACCEPT,
    NF_DROP,
    destination_is,
    device_is,
    icmpv6_type_is,
    is_not_tcp,
    lower_segment_size,
    masquerade,
    tcp_does_not_open,
    udp_port_is,
    verdict,
    version_is,
)
from dtun.platform.linux.firewall_wire import (
    NFT_MSG_DELTABLE,
    NFT_MSG_NEWCHAIN,
    NFT_MSG_NEWRULE,
    NFT_MSG_NEWTABLE,
    NLM_F_APPEND,
    NLM_F_CREATE,
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


@dataclass(frozen=True, slots=True)
class Chain:
    """A base chain that accepts what no rule drops. `purpose`: what its rules do, and what the kernel needs for it."""

    name: str
    type: Literal["filter", "nat"]
    hook: int
    priority: int
    rules: tuple[bytes, ...]
    purpose: str


def chains(filters: Collection[Filter]) -> list[Chain]:
    """The chains that have rules; the same filters always give the same."""
    masquerades = sorted(
        (what for what in filters if isinstance(what, Masquerade)),
        key=lambda what: (what.inside, what.outside),
    )
    clamps = sorted(
        (what for what in filters if isinstance(what, Clamp)), key=lambda what: (what.device, what.mtu)
    )
    guards = sorted(
        (what for what in filters if isinstance(what, Guard)),
        key=lambda what: (what.server.version, what.server.packed, what.port),
    )
    nat = "masquerade (modules nft_chain_nat and nft_masq; family inet from Linux 5.2 on)"
    guard = "guard the server's address"
    found = (
        Chain("nat_postrouting", "nat", _POST_ROUTING, _SRCNAT, tuple(map(_masquerade, masquerades)), nat),
        Chain("clamp_forward", "filter", _FORWARD, _MANGLE, tuple(_clamp(clamps)), "lower TCP segment sizes"),
        Chain("guard_output", "filter", _LOCAL_OUT, _GUARD, tuple(_guard(guards, on_link=True)), guard),
        Chain("guard_forward", "filter", _FORWARD, _GUARD, tuple(_guard(guards, on_link=False)), guard),
    )
    return [chain for chain in found if chain.rules]


def replacement(table: str, filters: Collection[Filter]) -> list[Message]:
    """What makes the table hold exactly these filters, whatever it holds now; without filters, there is no table.

    To delete a table that is not there is an error, so it is made first: as a whole, the batch has no in-between.
    """
    name = text(1, table)
    new = Message(NFT_MSG_NEWTABLE, name + number(2, 0), purpose="have a table of family inet")
    messages = [new, Message(NFT_MSG_DELTABLE, name, purpose="replace its own table")]
    wanted = chains(filters)
    if wanted:
        messages.append(new)
    messages.extend(_new_chain(table, chain) for chain in wanted)
    messages.extend(_new_rule(table, chain, rule) for chain in wanted for rule in chain.rules)
    return messages


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


def _masquerade(what: Masquerade) -> bytes:
    # A packet knows in postrouting where it came in from Linux 5.7 on. The host's own packets came in nowhere.
    return device_is(META_IIFNAME, what.inside) + device_is(META_OIFNAME, what.outside) + masquerade()


def _clamp(clamps: Collection[Clamp]) -> Iterator[bytes]:
    if clamps:
        # Nearly all packets are done with here, however many devices there are.
        yield is_not_tcp() + verdict(NF_ACCEPT)
        yield tcp_does_not_open() + verdict(NF_ACCEPT)
    for what in clamps:
        for direction in (META_IIFNAME, META_OIFNAME):
            for version, headers in _HEADERS.items():
                through = device_is(direction, what.device) + version_is(version)
                yield through + lower_segment_size(max(0, what.mtu - headers))


def _guard(guards: Collection[Guard], *, on_link: bool) -> Iterator[bytes]:
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
