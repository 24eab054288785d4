"""The sets and maps that rules look things up in: one more device is one more element, and no more rules. Pure.

The attributes that are sent (linux/netfilter/nf_tables.h), by number:

    set         1 table, 2 name, 3 flags, 4 type of key, 5 its length, 6 type of value, 7 its length,
                10 number in the batch, 13 notes
    elements    1 table, 2 name of the set, 4 its number in the batch, 3 list of elements
    element     3 flags, 1 key, 2 value

Types and notes are nft(8)'s own, for whoever lists the table; the kernel only keeps them. A note is

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
    Message,
    nested,
    number,
    text,
)

_INTERVAL, _MAP = 4, 8
_INTERVAL_END: Final = 1
_DATA_VALUE: Final = 1

_TYPE_INTEGER, _TYPE_IP6ADDR, _TYPE_IFNAME = 4, 8, 41
_TYPE_PAIR_OF_IFNAMES: Final = _TYPE_IFNAME << 6 | _TYPE_IFNAME
_IFNAMSIZ: Final = 16

_HOST_ENDIAN, _BIG_ENDIAN = 1, 2
_NOTE: Final = struct.Struct("=BBI")

_AT_ONCE: Final = 500
"""Elements in one message: a list of them is an attribute, which ends at 64 KiB."""


@dataclass(frozen=True, slots=True)
class Set:
    """`head` are the attributes from the flags on; `elements` are the kernel's bytes, each without a number of its own.
    `notes` are nft's.

    Each element stands for itself, unless they are the edges of networks (`edges`).
    """

    name: str
    head: bytes
    elements: tuple[bytes, ...]
    purpose: str
    notes: bytes = b""
    edges: bool = False


def pairs_of_devices(name: str, pairs: Collection[tuple[str, str]], purpose: str) -> Set:
    """Names of devices, two by two."""
    head = number(3, 0) + number(4, _TYPE_PAIR_OF_IFNAMES) + number(5, 2 * _IFNAMSIZ)
    return Set(name, head, tuple(_key(_padded(one) + _padded(two)) for one, two in sorted(pairs)), purpose)


def sizes_by_device(name: str, sizes: Mapping[str, int], purpose: str) -> Set:
    """A map from the names of devices to numbers of two bytes, as they stand in a packet."""
    head = number(3, _MAP) + number(4, _TYPE_IFNAME) + number(5, _IFNAMSIZ)
    head += number(6, _TYPE_INTEGER) + number(7, 2)
    notes = _NOTE.pack(0, 4, _HOST_ENDIAN) + _NOTE.pack(1, 4, _BIG_ENDIAN)
    return Set(
        name, head, tuple(_size(device, size) for device, size in sorted(sizes.items())), purpose, notes
    )


def networks(name: str, members: Collection[Network], purpose: str) -> Set:
    """Networks of IPv6."""
    head = number(3, _INTERVAL) + number(4, _TYPE_IP6ADDR) + number(5, 16)
    notes = _NOTE.pack(0, 4, _BIG_ENDIAN)
    return Set(name, head, tuple(_edges(members)), purpose, notes, edges=True)


def new_set(table: str, which: Set, number_in_batch: int) -> Message:
    """Makes it, empty."""
    head = text(1, table) + text(2, which.name) + which.head + number(10, number_in_batch)
    if which.notes:
        head += attribute(13, which.notes)
    return Message(NFT_MSG_NEWSET, head, NLM_F_CREATE, which.purpose)


def new_elements(table: str, which: Set, number_in_batch: int) -> Iterator[Message]:
    """Fills it."""
    return _of_elements(NFT_MSG_NEWSETELEM, table, which, which.elements, number(4, number_in_batch))


def amendment(table: str, before: Set, after: Set) -> Iterator[Message]:
    """What turns one into the other; their edges are the same, if they have any."""
    had, has = set(before.elements), set(after.elements)
    gone = [element for element in before.elements if element not in has]
    come = [element for element in after.elements if element not in had]
    yield from _of_elements(NFT_MSG_DELSETELEM, table, after, gone)
    yield from _of_elements(NFT_MSG_NEWSETELEM, table, after, come)


def _of_elements(
    kind: int, table: str, which: Set, elements: Sequence[bytes], set_number: bytes = b""
) -> Iterator[Message]:
    head = text(1, table) + text(2, which.name) + set_number
    flags = NLM_F_CREATE if kind == NFT_MSG_NEWSETELEM else 0
    rest = iter(elements)
    while some := list(islice(rest, _AT_ONCE)):
        listed = (nested(position, element) for position, element in enumerate(some, 1))
        yield Message(kind, head + nested(3, *listed), flags, which.purpose)


def _edges(members: Collection[Network]) -> Iterator[bytes]:
    """Where the networks begin and where what is between them does, from the lowest address on."""
    ranges: list[tuple[int, int]] = []
    for network in aggregate(members):
        first, end = int(network.network_address), int(network.broadcast_address) + 1
        if ranges and ranges[-1][1] == first:
            ranges[-1] = ranges[-1][0], end
        else:
            ranges.append((first, end))
    if ranges and ranges[0][0] > 0:
        yield _edge(0, _INTERVAL_END)
    for first, end in ranges:
        yield _edge(first)
        if end < 1 << 128:
            yield _edge(end, _INTERVAL_END)


def _edge(address: int, flags: int = 0) -> bytes:
    return (number(3, flags) if flags else b"") + _key(address.to_bytes(16, "big"))


@lru_cache(maxsize=4096)
def _size(device: str, size: int) -> bytes:
    return _key(_padded(device)) + nested(2, attribute(_DATA_VALUE, size.to_bytes(2, "big")))


def _key(value: bytes) -> bytes:
    return nested(1, attribute(_DATA_VALUE, value))


def _padded(name: str) -> bytes:
    return name.encode().ljust(_IFNAMSIZ, b"\0")
