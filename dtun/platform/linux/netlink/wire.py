"""The wire format of netlink(7) and rtnetlink(7), as far as dtun encodes and decodes it without pyroute2.

Why not with pyroute2: docs/decisions/0004-netlink.md.

    struct nlmsghdr      | length u32 | type u16 | flags u16 | sequence u32 | port u32 |
    struct nlmsgerr      | error i32 (negative errno, 0: success) | nlmsghdr of the request |
    struct ifinfomsg     | family u8 | pad u8 | type u16 | index i32 | flags u32 | change u32 |
    struct ifaddrmsg     | family u8 | prefix u8 | flags u8 | scope u8 | index u32 |
    struct rtmsg         | family u8 | dst u8 | src u8 | tos u8 |
                         | table u8 | protocol u8 | scope u8 | type u8 | flags u32 |
    struct fib_rule_hdr  | family u8 | dst u8 | src u8 | tos u8 |
                         | table u8 | reserved u8 | reserved u8 | action u8 | flags u32 |
    struct netconfmsg    | family u8 | pad 3 bytes |
    struct nhmsg         | family u8 | scope u8 | protocol u8 | reserved u8 | flags u32 |
    struct nexthop_grp   | id u32 | weight u8 | more weight u8 | reserved u16 |
    struct rtattr        | length u16 | type u16 | value |     every part padded to 4 bytes; host byte order

The numbers are from linux/netlink.h, linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h, linux/netconf.h,
linux/nexthop.h and linux/fib_rules.h.
"""

import socket
import struct
from collections.abc import Iterator

NLMSGHDR = struct.Struct("=IHHII")
NLMSGERR = struct.Struct("=i")
IFINFOMSG = struct.Struct("=BBHiII")
IFADDRMSG = struct.Struct("=BBBBI")
RTMSG = struct.Struct("=BBBBBBBBI")
FIB_RULE_HDR = RTMSG
NETCONFMSG = struct.Struct("=Bxxx")
NHMSG = struct.Struct("=BBBxI")
NEXTHOP_GRP = struct.Struct("=IBBH")
RTATTR = struct.Struct("=HH")
U32 = struct.Struct("=I")

NLMSG_ERROR, NLMSG_DONE = 2, 3
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWRULE, RTM_DELRULE, RTM_GETRULE = 32, 33, 34
RTM_NEWNETCONF = 80
RTM_NEWNEXTHOP, RTM_DELNEXTHOP, RTM_GETNEXTHOP = 104, 105, 106

NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP_INTR = 0x1, 0x4, 0x10
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE = 0x100, 0x200, 0x400
NLM_F_DUMP = 0x300

IFLA_IFNAME, IFLA_MTU, IFLA_LINKINFO, IFLA_INFO_KIND = 3, 4, 18, 1
IFA_ADDRESS, IFA_LOCAL, IFA_FLAGS = 1, 2, 8
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC, RTA_METRICS, RTA_MULTIPATH = 1, 4, 5, 6, 7, 8, 9
RTA_TABLE, RTA_MARK, RTA_VIA, RTA_PREF, RTA_NH_ID = 15, 16, 18, 20, 30
NHA_ID, NHA_GROUP, NHA_OIF, NHA_GATEWAY = 1, 2, 5, 6
RTAX_MTU = 2
FRA_PRIORITY, FRA_FWMARK, FRA_SUPPRESS_PREFIXLEN, FRA_TABLE, FRA_FWMASK, FRA_PROTOCOL = 6, 10, 14, 15, 16, 21
NETCONFA_IFINDEX, NETCONFA_FORWARDING, NETCONFA_IFINDEX_ALL = 1, 2, 0xFFFFFFFF
FIB_RULE_INVERT = 0x2
FR_ACT_TO_TBL = 1

IFF_UP, IFF_LOOPBACK, IFF_POINTOPOINT, IFF_RUNNING = 0x1, 0x8, 0x10, 0x40
IFA_F_TENTATIVE = 0x40
RTM_F_CLONED, RTM_F_LOOKUP_TABLE, RTM_F_FIB_MATCH = 0x200, 0x1000, 0x2000
RTNH_F_DEAD, RTNH_F_ONLINK, RTNH_F_LINKDOWN = 1, 4, 16
RTN_UNICAST, RTN_UNREACHABLE, RTN_THROW = 1, 7, 9
RTPROT_KERNEL = 2
_NESTED_MASK = 0x3FFF

SOL_NETLINK = 270
NETLINK_ADD_MEMBERSHIP, NETLINK_CAP_ACK, NETLINK_GET_STRICT_CHK = 1, 10, 12

FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
VERSIONS = {int(family): version for version, family in FAMILIES.items()}

# Who installed a route or a rule (rtm_protocol, FRA_PROTOCOL): dtun finds its own by this number, and so does an
# administrator, by `ip route show proto 217`. iproute2's rt_protos does not use it.
ROUTE_PROTOCOL = 217


def messages(data: bytes | bytearray | memoryview) -> Iterator[tuple[int, int, int, int, memoryview]]:
    """Yield type, flags, sequence number, port id and body of each message in a datagram."""
    view = memoryview(data)
    start, end = 0, len(view)
    while end - start >= NLMSGHDR.size:
        length, kind, flags, sequence, port = NLMSGHDR.unpack_from(view, start)
        if not NLMSGHDR.size <= length <= end - start:
            return
        yield kind, flags, sequence, port, view[start + NLMSGHDR.size : start + length]
        start += aligned(length)


def attributes(view: memoryview, start: int = 0) -> dict[int, memoryview]:
    """Return the attributes from `start` on, by type."""
    found = {}
    end = len(view)
    while end - start >= RTATTR.size:
        length, kind = RTATTR.unpack_from(view, start)
        if not RTATTR.size <= length <= end - start:
            break
        found[kind & _NESTED_MASK] = view[start + RTATTR.size : start + length]
        start += aligned(length)
    return found


def message(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    """Encode a message, padded."""
    length = NLMSGHDR.size + len(body)
    return NLMSGHDR.pack(length, kind, flags, sequence, 0) + body + bytes(-length % 4)


def attribute(kind: int, value: bytes) -> bytes:
    """Encode an attribute, padded."""
    return RTATTR.pack(RTATTR.size + len(value), kind) + value + bytes(-len(value) % 4)


def number(value: memoryview | None) -> int | None:
    """Decode a u32; None if the attribute is missing or has another length."""
    return int(U32.unpack(value)[0]) if value is not None and len(value) == U32.size else None


def text(value: memoryview | None) -> str:
    """Decode a NUL-terminated string; empty if the attribute is missing."""
    return "" if value is None else bytes(value).rstrip(b"\0").decode(errors="replace")


def driver_of(kind: str, flags: int) -> str:
    """Tell TAP, an Ethernet device that may be an uplink, from TUN; the kernel's IFLA_INFO_KIND is "tun" for both.

    `flags` are IFF_...
    """
    return "tap" if kind == "tun" and not flags & IFF_POINTOPOINT else kind


def aligned(length: int) -> int:
    """Round up to a multiple of 4."""
    return (length + 3) & ~3
