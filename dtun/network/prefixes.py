"""Set arithmetic with networks: union, difference, membership. Pure, and fast for lists of thousands.

A network is handled as the numbers of its first and its last address. Of two CIDR blocks (RFC 4632, section 3.1), one
contains the other or they do not overlap, so one pass over a sorted list is enough. Results are sorted: IPv4 before
IPv6, then by address.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from dtun.network.state import Address, Network

_ADDRESSES = (IPv4Address, IPv6Address)  # isinstance() is slow with a union


class PrefixSet:
    """The union of many networks, for fast `in` tests, see `covers`."""

    __slots__ = ("_spans",)

    def __init__(self, networks: Iterable[Network]) -> None:
        self._spans: dict[int, tuple[list[int], list[int]]] = {4: ([], []), 6: ([], [])}
        for network in aggregate(networks):
            first, last = _span(network)
            firsts, lasts = self._spans[network.version]
            firsts.append(first)
            lasts.append(last)

    def __contains__(self, inner: Address | Network) -> bool:
        first, last = _span(inner)
        firsts, lasts = self._spans[inner.version]
        index = bisect_right(firsts, first) - 1
        return index >= 0 and last <= lasts[index]


def covers(networks: Iterable[Network] | PrefixSet, inner: Address | Network) -> bool:
    """Whether the union of `networks` contains every address of `inner`.

    For many calls with a long list, make a `PrefixSet` of it first.
    """
    if isinstance(networks, PrefixSet):
        return inner in networks
    first, last = _span(inner)
    parts: list[Network] = []
    for network in networks:
        if network.version == inner.version:
            begin, end = _span(network)
            if begin <= first and last <= end:
                return True
            if first < begin <= last or first <= end < last:
                parts.append(network)
    joined = aggregate(parts)
    return len(joined) == 1 and _span(joined[0]) == (first, last)


def aggregate(networks: Iterable[Network]) -> list[Network]:
    """The shortest list of networks with the same addresses."""
    by_version: dict[int, dict[tuple[int, int], Network]] = {4: {}, 6: {}}
    for network in networks:
        by_version[network.version][int(network.network_address), network.prefixlen] = network
    return [network for blocks in by_version.values() for network in _joined(blocks)]


def _joined(blocks: dict[tuple[int, int], Network]) -> Iterator[Network]:
    """For one IP version: drop networks inside others, and join the two halves of a network."""
    if not blocks:
        return
    bits = next(iter(blocks.values())).max_prefixlen
    kept: list[tuple[int, int]] = []
    end = -1  # the last address in `kept`
    for first, length in sorted(blocks):
        if first <= end:
            continue
        end = first | _host_mask(bits - length)
        start, prefix = first, length
        # Join an upper half with its lower half.
        while kept and kept[-1] == (start ^ (1 << (bits - prefix)), prefix):
            start, prefix = kept.pop()
            prefix -= 1
        kept.append((start, prefix))
    for block in kept:
        yield blocks.get(block) or _network(bits, *block)


def subtract(included: Iterable[Network], excluded: Iterable[Network]) -> list[Network]:
    """The shortest list of networks with the addresses that are in `included` and not in `excluded`."""
    holes: dict[int, list[tuple[int, int]]] = {4: [], 6: []}
    for network in aggregate(excluded):
        holes[network.version].append(_span(network))
    return [left for network in aggregate(included) for left in _without(network, holes[network.version])]


def _without(network: Network, holes: list[tuple[int, int]]) -> Iterator[Network]:
    """The rest of a network without `holes`, which are sorted and do not overlap."""
    start, end = _span(network)
    index = bisect_left(holes, start, key=lambda hole: hole[1])
    if index == len(holes) or end < holes[index][0]:
        yield network
        return
    while start <= end:
        first, last = holes[index] if index < len(holes) else (end + 1, end + 1)
        yield from _cover(network.max_prefixlen, start, min(first - 1, end))
        start = last + 1
        index += 1


def _cover(bits: int, first: int, last: int) -> Iterator[Network]:
    """The fewest networks with exactly the addresses from `first` to `last`."""
    while first <= last:
        # The largest block that is aligned at its start and does not exceed `last`.
        aligned = (first & -first).bit_length() - 1 if first else bits
        host_bits = min(aligned, (last - first + 1).bit_length() - 1)
        yield _network(bits, first, bits - host_bits)
        first += 1 << host_bits


def split_default(networks: Iterable[Network]) -> list[Network]:
    """Replace 0.0.0.0/0 and ::/0 by their halves, so that the host's default route is not replaced."""
    return [
        part for network in networks for part in (network.subnets() if network.prefixlen == 0 else (network,))
    ]


def _span(of: Address | Network) -> tuple[int, int]:
    if isinstance(of, _ADDRESSES):
        return int(of), int(of)
    first = int(of.network_address)
    return first, first | _host_mask(of.max_prefixlen - of.prefixlen)


def _host_mask(host_bits: int) -> int:
    return (1 << host_bits) - 1


def _network(bits: int, first: int, length: int) -> Network:
    return IPv4Network((first, length)) if bits == 32 else IPv6Network((first, length))
