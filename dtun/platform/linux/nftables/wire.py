"""The wire format of nfnetlink: requests, atomic batches and the kernel's replies. Pure.

Why not with pyroute2: docs/decisions/0004-netlink.md.

A message (linux/netlink.h, linux/netfilter/nfnetlink.h), in host byte order except for the resource id:

     0                   1                   2                   3
     0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
    +---------------------------------------------------------------+
    | length in bytes, with this header                             |  struct nlmsghdr
    +-------------------------------+-------------------------------+
    | type: subsystem << 8 | kind   | flags (NLM_F_...)             |
    +-------------------------------+-------------------------------+
    | sequence number                                               |
    +---------------------------------------------------------------+
    | port id: 0, the kernel fills it in                            |
    +---------------+---------------+-------------------------------+
    | family        | version: 0    | resource id (big-endian)      |  struct nfgenmsg
    +---------------+---------------+-------------------------------+
    | attributes ...                                                |
    +---------------------------------------------------------------+

An attribute (struct nlattr). The value is padded to four bytes, not counted in `length`. Numbers in values are
big-endian:

    +-------------------------------+-------------------------------+
    | length in bytes, with these 4 | kind, NLA_F_NESTED (bit 15)   |
    +-------------------------------+-------------------------------+
    | value ...                                                     |
    +---------------------------------------------------------------+
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from dtun.platform.linux.netlink.wire import (
    NLM_F_ACK,
    NLM_F_REQUEST,
    NLMSG_ERROR,
    NLMSGERR,
    attribute,
    message as netlink_message,
    messages as netlink_messages,
)

_NFGEN: Final = struct.Struct(">BBH")
_NUMBER: Final = struct.Struct(">I")

_NLA_F_NESTED: Final = 1 << 15
_NFNL_MSG_BATCH_BEGIN: Final = 16
_NFNL_MSG_BATCH_END: Final = 17

NLM_F_APPEND: Final = 0x800

# From linux/netlink.h, linux/netfilter.h, linux/netfilter/nfnetlink.h and linux/netfilter/nf_tables.h.
NFNL_SUBSYS_NFTABLES: Final = 10
NFPROTO_UNSPEC: Final = 0
NFPROTO_INET: Final = 1
NFT_MSG_NEWTABLE: Final = 0
NFT_MSG_GETTABLE: Final = 1
NFT_MSG_DELTABLE: Final = 2
NFT_MSG_NEWCHAIN: Final = 3
NFT_MSG_DELCHAIN: Final = 5
NFT_MSG_NEWRULE: Final = 6
NFT_MSG_DELRULE: Final = 8
NFT_MSG_NEWSET: Final = 9
NFT_MSG_DELSET: Final = 11
NFT_MSG_NEWSETELEM: Final = 12
NFT_MSG_DELSETELEM: Final = 14


def number(kind: int, value: int) -> bytes:
    """Encode a 32-bit attribute; a negative number in two's complement."""
    return attribute(kind, _NUMBER.pack(value & 0xFFFFFFFF))


def text(kind: int, value: str) -> bytes:
    """Encode a NUL-terminated string attribute."""
    return attribute(kind, value.encode() + b"\0")


def nested(kind: int, *attributes: bytes) -> bytes:
    """Encode an attribute that contains attributes."""
    return attribute(kind | _NLA_F_NESTED, b"".join(attributes))


@dataclass(frozen=True, slots=True)
class Request:
    """A request to nf_tables, family inet. `purpose` completes the message "this kernel cannot ..."."""

    kind: int
    attributes: bytes
    flags: int = 0
    purpose: str = ""


@dataclass(frozen=True, slots=True)
class Reply:
    """The kernel's reply to the request with this sequence number; `error` is an errno, 0 for success."""

    sequence: int
    error: int


def encode_single(request: Request) -> bytes:
    """Encode a single request outside of a batch, with sequence number 0."""
    return _nftables(request, 0, 0)


def encode_batch(requests: Sequence[Request]) -> bytes:
    """Encode a datagram that the kernel carries out as a whole or not at all.

    The first of `requests` has the sequence number 1. An error with number 0 is about the whole batch, such as a
    missing permission. The last request asks for an acknowledgement.
    """
    last = len(requests)
    return b"".join(
        (
            _frame(_NFNL_MSG_BATCH_BEGIN, 0),
            *(
                _nftables(request, NLM_F_ACK if sequence == last else 0, sequence)
                for sequence, request in enumerate(requests, 1)
            ),
            _frame(_NFNL_MSG_BATCH_END, last + 1),
        )
    )


def replies(data: bytes) -> Iterator[Reply]:
    """Decode the replies in one datagram. A message that is not an error is the result of a query."""
    for kind, _, sequence, _, body in netlink_messages(data):
        yield Reply(sequence, -NLMSGERR.unpack_from(body)[0] if kind == NLMSG_ERROR else 0)


def _nftables(request: Request, more_flags: int, sequence: int) -> bytes:
    kind = NFNL_SUBSYS_NFTABLES << 8 | request.kind
    body = _NFGEN.pack(NFPROTO_INET, 0, 0) + request.attributes
    return netlink_message(kind, NLM_F_REQUEST | request.flags | more_flags, sequence, body)


def _frame(kind: int, sequence: int) -> bytes:
    body = _NFGEN.pack(NFPROTO_UNSPEC, 0, NFNL_SUBSYS_NFTABLES)
    return netlink_message(kind, NLM_F_REQUEST, sequence, body)
