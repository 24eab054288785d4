"""The expressions of nf_tables rules, encoded. Pure.

A rule is a list of expressions that work on registers; a false comparison ends the rule. Each expression is a list
element (linux/netfilter/nf_tables.h):

    NFTA_LIST_ELEM
      NFTA_EXPR_NAME    "cmp"
      NFTA_EXPR_DATA
        NFTA_CMP_SREG   1                   which register
        NFTA_CMP_OP     NFT_CMP_EQ
        NFTA_CMP_DATA
          NFTA_DATA_VALUE  ...              in the packet's byte order

The attributes in NFTA_EXPR_DATA by number, in the order of nft(8):

    meta       2 key, 1 register
    cmp        1 register, 2 operation, 3 value
    payload    1 register, 2 which header, 3 offset, 4 length
    bitwise    1 from register, 2 to register, 6 operation (0: mask, then xor), 3 length, 4 mask, 5 xor
    lookup     2 register, 3 to register, 1 set's name, 4 set's id in the batch
    fib        3 flags, 2 result, 1 to register
    exthdr     7 from register, 2 option, 3 offset, 4 length, 6 protocol
    immediate  1 register, 2 value or verdict
    ct         1 to register, 2 key, 4 from register
    meta set   2 key, 3 from register

`nft --debug=netlink list ruleset` shows these expressions.
"""

import sys
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from socket import AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP
from typing import Final

from dtun.platform.linux.netlink.wire import attribute
from dtun.platform.linux.nftables.wire import nested, number, text

_LIST_ELEM: Final = 1
_EXPR_NAME, _EXPR_DATA = 1, 2
_DATA_VALUE, _DATA_VERDICT, _VERDICT_CODE = 1, 2, 1

_VERDICT_REGISTER: Final = 0
_REGISTER: Final = 1  # 16 bytes; a pair of device names continues in the next
_NEXT_REGISTER: Final = 2

META_IIFNAME: Final = 6
META_OIFNAME: Final = 7
_META_MARK: Final = 3
_META_OIFTYPE: Final = 9
_META_NFPROTO: Final = 15
_META_L4PROTO: Final = 16
_META_OIFKIND: Final = 27
_CMP_EQ, _CMP_NEQ = 0, 1
_FIB_DESTINATION_AND_MARK: Final = 2 | 4  # NFTA_FIB_F_DADDR, NFTA_FIB_F_MARK
_FIB_DESTINATION: Final = 2  # NFTA_FIB_F_DADDR
_FIB_SOURCE_AND_OUTPUT: Final = 1 | 16  # NFTA_FIB_F_SADDR, NFTA_FIB_F_OIF
_FIB_RESULT_TYPE: Final = 3
_RTN_LOCAL: Final = 2  # linux/rtnetlink.h
_CT_STATE, _CT_MARK = 0, 3
_CT_STATE_NEW: Final = 8
_RTN_UNREACHABLE: Final = 7  # linux/rtnetlink.h
_ARPHRD_NONE: Final = 0xFFFE  # linux/if_arp.h
_NETWORK_HEADER, _TRANSPORT_HEADER = 1, 2
_EXTHDR_OP_TCPOPT: Final = 1

NF_DROP: Final = 0
NF_ACCEPT: Final = 1

_IFNAMSIZ: Final = 16
_IPPROTO_ICMPV6: Final = 58
_FAMILY: Final = {4: AF_INET, 6: AF_INET6}  # the same numbers as NFPROTO_IPV4 and NFPROTO_IPV6

# Offset of the destination in an IPv4 header (RFC 791, section 3.1) and an IPv6 header (RFC 8200, section 3).
_DESTINATION_OFFSET: Final = {4: 16, 6: 24}

# RFC 9293, sections 3.1 and 3.2: offset of the flags, the flags, the MSS option and the offset of its value.
_TCP_FLAGS: Final = 13
_TCP_SYN: Final = 0x02
_TCP_RST: Final = 0x04
_TCP_MSS: Final = 2
_TCP_MSS_VALUE: Final = 2


def device_is(key: int, name: str) -> bytes:
    """The packet's input device (META_IIFNAME) or output device (META_OIFNAME) has this name."""
    return _meta(key) + _compare(name.encode().ljust(_IFNAMSIZ, b"\0"))


def device_is_not(key: int, name: str) -> bytes:
    """The packet's input device (META_IIFNAME) or output device (META_OIFNAME) has another name."""
    return _meta(key) + _compare(name.encode().ljust(_IFNAMSIZ, b"\0"), _CMP_NEQ)


def version_is(version: int) -> bytes:
    """The packet is IPv4 or IPv6: family inet has both."""
    return _meta(_META_NFPROTO) + _compare(bytes((_FAMILY[version],)))


def destination_is(address: IPv4Address | IPv6Address) -> bytes:
    """The packet goes to this address."""
    return _destination(address.version) + _compare(address.packed)


def udp_port_is(port: int) -> bytes:
    """UDP to this port (RFC 768). Of a fragmented datagram, only the first fragment matches."""
    return _protocol(IPPROTO_UDP) + _payload(_TRANSPORT_HEADER, 2, 2) + _compare(port.to_bytes(2, "big"))


def icmpv6_type_is(kind: int) -> bytes:
    """ICMPv6 of this type (RFC 4443, section 2.1)."""
    return _protocol(_IPPROTO_ICMPV6) + _payload(_TRANSPORT_HEADER, 0, 1) + _compare(bytes((kind,)))


def protocol_is_not_tcp() -> bytes:
    """Anything but TCP."""
    return _meta(_META_L4PROTO) + _compare(bytes((IPPROTO_TCP,)), _CMP_NEQ)


def tcp_is_not_syn() -> bytes:
    """TCP without SYN or with RST: such segments do not announce a maximum segment size."""
    registers = number(1, _REGISTER) + number(2, _REGISTER)
    mask = _data(4, bytes((_TCP_SYN | _TCP_RST,)))
    flags = _expression("bitwise", registers, number(6, 0), number(3, 1), mask, _data(5, bytes(1)))
    load = _protocol(IPPROTO_TCP) + _payload(_TRANSPORT_HEADER, _TCP_FLAGS, 1)
    return load + flags + _compare(bytes((_TCP_SYN,)), _CMP_NEQ)


def devices_in_set(name: str, set_id: int) -> bytes:
    """The pair of input and output device is in this set."""
    return _meta(META_IIFNAME) + _meta(META_OIFNAME, _NEXT_REGISTER) + _lookup(name, set_id)


def destination_in_set(version: int, name: str, set_id: int) -> bytes:
    """The destination is in a network of this set."""
    return _destination(version) + _lookup(name, set_id)


def destination_matches(network: IPv6Network, mask: int) -> bytes:
    """The bits of `mask` in the packet's IPv6 destination are those of `network`."""
    registers = number(1, _REGISTER) + number(2, _REGISTER)
    masked = _data(4, mask.to_bytes(16, "big"))
    bits = _expression("bitwise", registers, number(6, 0), number(3, 16), masked, _data(5, bytes(16)))
    return _destination(6) + bits + _compare(network.network_address.packed)


def output_driver_is(kind: str) -> bytes:
    """The output device has this driver (IFLA_INFO_KIND), such as "tun", but is no Ethernet (TAP). Needs Linux 5.1."""
    without_link_layer = _meta(_META_OIFTYPE) + _compare(_ARPHRD_NONE.to_bytes(2, sys.byteorder))
    return _meta(_META_OIFKIND) + _compare(kind.encode().ljust(_IFNAMSIZ, b"\0")) + without_link_layer


def destination_is_unreachable() -> bytes:
    """The destination is unreachable by the routes for this mark, if no device is given."""
    return _fib_type(_FIB_DESTINATION_AND_MARK, _RTN_UNREACHABLE)


def destination_is_own() -> bytes:
    """The destination is an address of this host."""
    return _fib_type(_FIB_DESTINATION, _RTN_LOCAL)


def source_is_output_devices() -> bytes:
    """The source is an address of the output device."""
    return _fib_type(_FIB_SOURCE_AND_OUTPUT, _RTN_LOCAL)


def connection_is_new() -> bytes:
    """The packet is the first that the kernel sees of its connection."""
    return _connection(_CT_STATE) + _compare(_CT_STATE_NEW.to_bytes(4, sys.byteorder))


def connection_mark_is(mark: int) -> bytes:
    """The packet's connection has this mark; 0 is none."""
    return _connection(_CT_MARK) + _compare(mark.to_bytes(4, sys.byteorder))


def mark_connection(mark: int) -> bytes:
    """Give the packet's connection this mark."""
    value = _immediate(_REGISTER, attribute(_DATA_VALUE, mark.to_bytes(4, sys.byteorder)))
    return value + _expression("ct", number(2, _CT_MARK), number(4, _REGISTER))


def mark_packet(mark: int) -> bytes:
    """Give the packet this firewall mark."""
    value = _immediate(_REGISTER, attribute(_DATA_VALUE, mark.to_bytes(4, sys.byteorder)))
    return value + _expression("meta", number(2, _META_MARK), number(3, _REGISTER))


def clamp_mss(key: int, name: str, set_id: int) -> bytes:
    """Lower the TCP maximum segment size to the map's value for the device (`key`: META_IIFNAME or META_OIFNAME).

    The kernel never raises the value, and ignores devices that are not in the map.
    """
    store = (
        number(7, _REGISTER),
        attribute(2, bytes((_TCP_MSS,))),
        number(3, _TCP_MSS_VALUE),
        number(4, 2),
        number(6, _EXTHDR_OP_TCPOPT),
    )
    return _meta(key) + _lookup(name, set_id, value=True) + _expression("exthdr", *store)


def masquerade() -> bytes:
    """Give the connection's packets the source address of their output device."""
    return _expression("masq")


def verdict(code: int) -> bytes:
    """NF_ACCEPT ends this chain. NF_DROP discards the packet silently."""
    return _immediate(_VERDICT_REGISTER, nested(_DATA_VERDICT, number(_VERDICT_CODE, code)))


def _fib_type(flags: int, kind: int) -> bytes:
    """The kind of address (RTN_...) by the routes, of what the flags (NFTA_FIB_F_...) select."""
    attributes = (number(3, flags), number(2, _FIB_RESULT_TYPE), number(1, _REGISTER))
    return _expression("fib", *attributes) + _compare(kind.to_bytes(4, sys.byteorder))


def _connection(key: int) -> bytes:
    return _expression("ct", number(2, key), number(1, _REGISTER))


def _meta(key: int, register: int = _REGISTER) -> bytes:
    return _expression("meta", number(2, key), number(1, register))


def _destination(version: int) -> bytes:
    return version_is(version) + _payload(
        _NETWORK_HEADER, _DESTINATION_OFFSET[version], 4 if version == 4 else 16
    )


def _lookup(name: str, set_id: int, *, value: bool = False) -> bytes:
    """End the rule unless the register's value is in the set; with `value`, load what the map has for it."""
    found = number(3, _REGISTER) if value else b""
    return _expression("lookup", number(2, _REGISTER), found, text(1, name), number(4, set_id))


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
