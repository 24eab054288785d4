"""The bytes of nfnetlink: attributes, messages, a batch that holds or fails as a whole, and the kernel's answers. Pure.

A message (linux/netlink.h, linux/netfilter/nfnetlink.h), in the host's byte order but for the last field:

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

An attribute (struct nlattr); its value is padded to four bytes, which `length` does not count. Numbers in the values
of nf_tables are big-endian:

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
    """An attribute of 32 bits; a negative number in two's complement."""
    return attribute(kind, _NUMBER.pack(value & 0xFFFFFFFF))


def text(kind: int, value: str) -> bytes:
    """An attribute that is a name, with the zero byte at its end."""
    return attribute(kind, value.encode() + b"\0")


def nested(kind: int, *attributes: bytes) -> bytes:
    """An attribute that is made of others."""
    return attribute(kind | _NLA_F_NESTED, b"".join(attributes))


@dataclass(frozen=True, slots=True)
class Message:
    """A request to nf_tables in the family inet. `purpose`: what it is good for, to tell a person if it is refused."""

    kind: int
    attributes: bytes
    flags: int = 0
    purpose: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the kernel says to the message with this sequence number; `error` is an errno, 0 if it is done."""

    sequence: int
    error: int


def request(message: Message) -> bytes:
    """A single question, outside of a batch; its sequence number is 0."""
    return _nftables(message, 0, 0)


def batch(messages: Sequence[Message]) -> bytes:
    """One datagram that the kernel carries out as a whole or not at all.

    The first of `messages` has the sequence number 1: 0 is that of the frame around them, to which the kernel answers
    when it rejects everything (a missing right, for one). The last asks for an answer in any case.
    """
    last = len(messages)
    return b"".join(
        (
            _frame(_NFNL_MSG_BATCH_BEGIN, 0),
            *(
                _nftables(message, NLM_F_ACK if sequence == last else 0, sequence)
                for sequence, message in enumerate(messages, 1)
            ),
            _frame(_NFNL_MSG_BATCH_END, last + 1),
        )
    )


def answers(data: bytes) -> Iterator[Answer]:
    """The answers in one datagram from the kernel. A message that is not an error is the reply to a question."""
    for kind, _, sequence, _, body in netlink_messages(data):
        yield Answer(sequence, -NLMSGERR.unpack_from(body)[0] if kind == NLMSG_ERROR else 0)


def _nftables(message: Message, more_flags: int, sequence: int) -> bytes:
    kind = NFNL_SUBSYS_NFTABLES << 8 | message.kind
    body = _NFGEN.pack(NFPROTO_INET, 0, 0) + message.attributes
    return netlink_message(kind, NLM_F_REQUEST | message.flags | more_flags, sequence, body)


def _frame(kind: int, sequence: int) -> bytes:
    body = _NFGEN.pack(NFPROTO_UNSPEC, 0, NFNL_SUBSYS_NFTABLES)
    return netlink_message(kind, NLM_F_REQUEST, sequence, body)
