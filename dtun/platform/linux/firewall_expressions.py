"""The small steps that a rule of nf_tables is made of, as the kernel's bytes. Pure.

A rule is a list of expressions that run one after the other on registers; a comparison that does not hold ends the
rule. Each expression is one list element (linux/netfilter/nf_tables.h):

    NFTA_LIST_ELEM
      NFTA_EXPR_NAME    "cmp"
      NFTA_EXPR_DATA
        NFTA_CMP_SREG   1                   which register
        NFTA_CMP_OP     NFT_CMP_EQ
        NFTA_CMP_DATA
          NFTA_DATA_VALUE  ...              in the packet's byte order

The numbers of what is in NFTA_EXPR_DATA, and in which order nft(8) sends it:

    meta       2 key, 1 register
    cmp        1 register, 2 operation, 3 value
    payload    1 register, 2 which header, 3 offset, 4 length
    bitwise    1 from register, 2 to register, 6 operation (0: mask, then xor), 3 length, 4 mask, 5 xor
    exthdr     1 to register, 2 kind of option, 3 offset, 4 length, 6 of which protocol, 5 flags
               7 from register, 2 kind of option, 3 offset, 4 length, 6 of which protocol
    immediate  1 register, 2 value or verdict

`nft --debug=netlink list ruleset` shows a table in these terms.
"""

from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from socket import AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP
from typing import Final

from dtun.platform.linux.firewall_wire import attribute, nested, number, text

_LIST_ELEM: Final = 1
_EXPR_NAME, _EXPR_DATA = 1, 2
_DATA_VALUE, _DATA_VERDICT, _VERDICT_CODE = 1, 2, 1

_VERDICT_REGISTER: Final = 0
_REGISTER: Final = 1  # sixteen bytes, enough for all that is loaded here

META_IIFNAME: Final = 6
META_OIFNAME: Final = 7
_META_NFPROTO: Final = 15
_META_L4PROTO: Final = 16
_CMP_EQ, _CMP_NEQ, _CMP_GT = 0, 1, 4
_NETWORK_HEADER, _TRANSPORT_HEADER = 1, 2
_EXTHDR_OP_TCPOPT: Final = 1

NF_DROP: Final = 0
NF_ACCEPT: Final = 1

_IFNAMSIZ: Final = 16
_IPPROTO_ICMPV6: Final = 58
_FAMILY: Final = {4: AF_INET, 6: AF_INET6}  # the same numbers as NFPROTO_IPV4 and NFPROTO_IPV6

# Offset of the destination in an IPv4 header (RFC 791, section 3.1) and an IPv6 header (RFC 8200, section 3).
_DESTINATION: Final = {4: 16, 6: 24}

# RFC 9293, sections 3.1 and 3.2: offset of the flags, the flags, kind of the option MSS and where its value is.
_TCP_FLAGS: Final = 13
_TCP_SYN: Final = 0x02
_TCP_RST: Final = 0x04
_TCP_MSS: Final = 2
_TCP_MSS_VALUE: Final = 2


def device_is(key: int, name: str) -> bytes:
    """The packet comes in (META_IIFNAME) or goes out (META_OIFNAME) by the device with this name, now or later."""
    return _meta(key) + _compare(name.encode().ljust(_IFNAMSIZ, b"\0"))


def version_is(version: int) -> bytes:
    """IPv4 or IPv6: a table of family inet sees both."""
    return _meta(_META_NFPROTO) + _compare(bytes((_FAMILY[version],)))


def destination_is(address: IPv4Address | IPv6Address) -> bytes:
    """The packet goes to this address."""
    load = _payload(_NETWORK_HEADER, _DESTINATION[address.version], len(address.packed))
    return version_is(address.version) + load + _compare(address.packed)


def udp_port_is(port: int) -> bytes:
    """UDP to this port (RFC 768). Only the first fragment of a datagram can be seen to be that."""
    return _protocol(IPPROTO_UDP) + _payload(_TRANSPORT_HEADER, 2, 2) + _compare(port.to_bytes(2, "big"))


def icmpv6_type_is(kind: int) -> bytes:
    """ICMPv6 of this type (RFC 4443, section 2.1)."""
    return _protocol(_IPPROTO_ICMPV6) + _payload(_TRANSPORT_HEADER, 0, 1) + _compare(bytes((kind,)))


def is_not_tcp() -> bytes:
    """Anything but TCP."""
    return _meta(_META_L4PROTO) + _compare(bytes((IPPROTO_TCP,)), _CMP_NEQ)


def tcp_does_not_open() -> bytes:
    """TCP without SYN, or with RST: all but the two segments that may announce a maximum segment size."""
    registers = number(1, _REGISTER) + number(2, _REGISTER)
    mask = _data(4, bytes((_TCP_SYN | _TCP_RST,)))
    flags = _expression("bitwise", registers, number(6, 0), number(3, 1), mask, _data(5, bytes(1)))
    load = _protocol(IPPROTO_TCP) + _payload(_TRANSPORT_HEADER, _TCP_FLAGS, 1)
    return load + flags + _compare(bytes((_TCP_SYN,)), _CMP_NEQ)


@lru_cache
def lower_segment_size(size: int) -> bytes:
    """TCP announces segments of `size` bytes where it announced more. Without the option, it stays without.

    The kernel looks for the option in whole TCP headers only: everything else does not hold.
    """
    value = size.to_bytes(2, "big")
    place = (
        attribute(2, bytes((_TCP_MSS,))),
        number(3, _TCP_MSS_VALUE),
        number(4, 2),
        number(6, _EXTHDR_OP_TCPOPT),
    )
    load = _expression("exthdr", number(1, _REGISTER), *place, number(5, 0))
    store = _expression("exthdr", number(7, _REGISTER), *place)
    return load + _compare(value, _CMP_GT) + _immediate(_REGISTER, attribute(_DATA_VALUE, value)) + store


def masquerade() -> bytes:
    """The packet, and all of its connection, get the address of the device that they leave by."""
    return _expression("masq")


def verdict(code: int) -> bytes:
    """NF_ACCEPT: this chain is done with the packet. NF_DROP: the packet is gone, and nobody is told."""
    return _immediate(_VERDICT_REGISTER, nested(_DATA_VERDICT, number(_VERDICT_CODE, code)))


def _meta(key: int) -> bytes:
    return _expression("meta", number(2, key), number(1, _REGISTER))


def _protocol(protocol: int) -> bytes:
    return _meta(_META_L4PROTO) + _compare(bytes((protocol,)))


def _payload(base: int, offset: int, length: int) -> bytes:
    return _expression("payload", number(1, _REGISTER), number(2, base), number(3, offset), number(4, length))


def _compare(value: bytes, operation: int = _CMP_EQ) -> bytes:
    return _expression("cmp", number(1, _REGISTER), number(2, operation), _data(3, value))


def _immediate(register: int, value: bytes) -> bytes:
    return _expression("immediate", number(1, register), nested(2, value))


def _data(kind: int, value: bytes) -> bytes:
    return nested(kind, attribute(_DATA_VALUE, value))


def _expression(name: str, *attributes: bytes) -> bytes:
    return nested(_LIST_ELEM, text(_EXPR_NAME, name), nested(_EXPR_DATA, *attributes))
