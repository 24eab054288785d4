"""Sets and maps, so that another device is another element and not another rule. Pure.

Attributes by number (linux/netfilter/nf_tables.h):

    set         1 table, 2 name, 3 flags, 4 type of key, 5 its length, 6 type of value, 7 its length,
                10 id in the batch, 13 user data
    elements    1 table, 2 name of the set, 4 its id in the batch, 3 list of elements
    element     3 flags, 1 key, 2 value, 6 user data

Types and user data are for nft(8), which lists the table by them; the kernel only stores them. User data is

    | kind u8 | length u8 | value |     0: byte order of keys, 1: of values; u32 in the host's order
"""

import struct
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Final

from dtun.network.prefixes import aggregate
from dtun.network.state import Network
from dtun.platform.linux.netlink.wire import NLM_F_CREATE, attribute
from dtun.platform.linux.nftables.wire import (
    NFT_MSG_DELSETELEM,
    NFT_MSG_NEWSET,
    NFT_MSG_NEWSETELEM,
    Request,
    nested,
    number,
    text,
)

_INTERVAL, _MAP = 4, 8
_INTERVAL_END: Final = 1
_DATA_VALUE: Final = 1

_TYPE_INTEGER, _TYPE_IFNAME = 4, 41
_TYPE_ADDRESS: Final = {4: 7, 6: 8}
_ADDRESS_BITS: Final = {4: 32, 6: 128}
_TYPE_PAIR_OF_IFNAMES: Final = _TYPE_IFNAME << 6 | _TYPE_IFNAME
_IFNAMSIZ: Final = 16

_HOST_ENDIAN, _BIG_ENDIAN = 1, 2
_USER_DATA: Final = struct.Struct("=BBI")

_WITHOUT_END: Final = attribute(6, _USER_DATA.pack(1, 4, 1))
"""User data of the start of an interval that has no end, because its last address is the last of all."""

_PER_MESSAGE: Final = 500
"""Elements per message: their list is an attribute, which is limited to 64 KiB."""


@dataclass(frozen=True, slots=True)
class Set:
    """A set or map: encoded attributes from the flags on (`head`), encoded elements, user data for nft(8).

    Elements are independent of each other, unless they are the edges of intervals (`edges`).
    """

    name: str
    head: bytes
    elements: tuple[bytes, ...]
    purpose: str
    user_data: bytes = b""
    edges: bool = False


def device_pairs(name: str, pairs: Collection[tuple[str, str]], purpose: str) -> Set:
    """A set of pairs of device names."""
    head = number(3, 0) + number(4, _TYPE_PAIR_OF_IFNAMES) + number(5, 2 * _IFNAMSIZ)
    return Set(name, head, tuple(_key(_padded(one) + _padded(two)) for one, two in sorted(pairs)), purpose)


def size_by_device(name: str, sizes: Mapping[str, int], purpose: str) -> Set:
    """A map from device names to 16-bit numbers in network byte order."""
    head = number(3, _MAP) + number(4, _TYPE_IFNAME) + number(5, _IFNAMSIZ)
    head += number(6, _TYPE_INTEGER) + number(7, 2)
    user_data = _USER_DATA.pack(0, 4, _HOST_ENDIAN) + _USER_DATA.pack(1, 4, _BIG_ENDIAN)
    return Set(
        name, head, tuple(_size(device, size) for device, size in sorted(sizes.items())), purpose, user_data
    )


def networks(name: str, version: int, members: Collection[Network], purpose: str) -> Set:
    """A set of networks of one IP version."""
    bits = _ADDRESS_BITS[version]
    head = number(3, _INTERVAL) + number(4, _TYPE_ADDRESS[version]) + number(5, bits // 8)
    user_data = _USER_DATA.pack(0, 4, _BIG_ENDIAN)
    return Set(name, head, tuple(_edges(members, bits)), purpose, user_data, edges=True)


def new_set(table: str, nft_set: Set, set_id: int) -> Request:
    """Return the request that creates the set, empty."""
    head = text(1, table) + text(2, nft_set.name) + nft_set.head + number(10, set_id)
    if nft_set.user_data:
        head += attribute(13, nft_set.user_data)
    return Request(NFT_MSG_NEWSET, head, NLM_F_CREATE, nft_set.purpose)


def add_elements(table: str, nft_set: Set, set_id: int) -> Iterator[Request]:
    """Return the requests that fill the set."""
    return _of_elements(NFT_MSG_NEWSETELEM, table, nft_set, nft_set.elements, number(4, set_id))


def update(table: str, before: Set, after: Set) -> Iterator[Request]:
    """Return the requests that turn one into the other. Not for sets of intervals."""
    had, has = set(before.elements), set(after.elements)
    removed = [element for element in before.elements if element not in has]
    added = [element for element in after.elements if element not in had]
    yield from _of_elements(NFT_MSG_DELSETELEM, table, after, removed)
    yield from _of_elements(NFT_MSG_NEWSETELEM, table, after, added)


def _of_elements(
    kind: int, table: str, nft_set: Set, elements: Sequence[bytes], set_number: bytes = b""
) -> Iterator[Request]:
    head = text(1, table) + text(2, nft_set.name) + set_number
    flags = NLM_F_CREATE if kind == NFT_MSG_NEWSETELEM else 0
    rest = iter(elements)
    while some := list(islice(rest, _PER_MESSAGE)):
        listed = (nested(position, element) for position, element in enumerate(some, 1))
        yield Request(kind, head + nested(3, *listed), flags, nft_set.purpose)


def _edges(members: Collection[Network], bits: int) -> Iterator[bytes]:
    """Yield the start of each network and of each gap between them, by address."""
    ranges: list[tuple[int, int]] = []
    for network in aggregate(members):
        first, end = int(network.network_address), int(network.broadcast_address) + 1
        if ranges and ranges[-1][1] == first:
            ranges[-1] = ranges[-1][0], end
        else:
            ranges.append((first, end))
    if ranges and ranges[0][0] > 0:
        yield _edge(0, bits, _INTERVAL_END)
    for first, end in ranges:
        if end < 1 << bits:
            yield _edge(first, bits)
            yield _edge(end, bits, _INTERVAL_END)
        else:
            yield _edge(first, bits) + _WITHOUT_END


def _edge(address: int, bits: int, flags: int = 0) -> bytes:
    return (number(3, flags) if flags else b"") + _key(address.to_bytes(bits // 8, "big"))


@lru_cache(maxsize=4096)
def _size(device: str, size: int) -> bytes:
    return _key(_padded(device)) + nested(2, attribute(_DATA_VALUE, size.to_bytes(2, "big")))


def _key(value: bytes) -> bytes:
    return nested(1, attribute(_DATA_VALUE, value))


def _padded(name: str) -> bytes:
    return name.encode().ljust(_IFNAMSIZ, b"\0")
