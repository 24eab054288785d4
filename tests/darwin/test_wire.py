"""Darwin's structures, byte by byte."""

import struct
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import fake_wire
import pytest
from hypothesis import given, strategies as st

from dtun.network.state import Address, Network, PointToPoint, Route
from dtun.platform.darwin import ioctl, observed, rtmsg, sockaddr, tun

ZERO_METRICS = "00" * 56

ADD_NETWORK = (
    "90000501 00000000 01080000 07000000 00000000 01000000 00000000 00000000 00000000"
    + ZERO_METRICS
    + "10020000"
    "0a000000 0000000000000000 14121400 00000000 000000000000000000000000 10020000 ffff0000 0000000000000000"
)
ADD_HOST = (
    "7c000501 00000000 07080000 03000000 00000000 02000000 00000000 00000000 00000000"
    + ZERO_METRICS
    + "10020000"
    "cb007105 0000000000000000 10020000 c0a80101 0000000000000000"
)
GET_DEFAULT = (
    "90000504 00000000 01000000 15000000 00000000 03000000 00000000 00000000 00000000"
    + ZERO_METRICS
    + "10020000"
    "00000000 0000000000000000 10020000 00000000 0000000000000000 14120000 00000000 000000000000000000000000"
)
ADD_PAIR = (
    "7574756e340000000000000000000000 100200000a0900020000000000000000"
    "100200000a0900010000000000000000 10020000ffffffff0000000000000000"
)
SET_MTU = "7574756e340000000000000000000000 00050000000000000000000000000000"

DST, GATEWAY, NETMASK, IFP, IFA = 1, 2, 4, 0x10, 0x20
OURS = 0x8000

addresses = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6))


@st.composite
def networks(draw: st.DrawFn) -> Network:
    """Any but link-local ones, in which the kernel keeps the interface."""
    address = draw(addresses.filter(lambda address: not address.is_link_local))
    return ip_network((address, draw(st.integers(0, address.max_prefixlen))), strict=False)


def names(index: int) -> str:
    return {4: "en0", 20: "utun4"}.get(index, "")


def test_a_route_through_an_interface() -> None:
    destination = ip_network("10.0.0.0/16")
    wanted = rtmsg.request(
        1,
        0x801,
        {
            DST: sockaddr.inet(destination.network_address),
            GATEWAY: sockaddr.link(20),
            NETMASK: sockaddr.mask(destination),
        },
        1,
    )
    assert wanted == bytes.fromhex(ADD_NETWORK)


def test_a_host_route_through_a_gateway() -> None:
    host, gateway = sockaddr.inet(ip_address("203.0.113.5")), sockaddr.inet(ip_address("192.168.1.1"))
    assert rtmsg.request(1, 0x807, {DST: host, GATEWAY: gateway}, 2) == bytes.fromhex(ADD_HOST)


def test_a_query_for_the_default_route() -> None:
    zero = sockaddr.inet(ip_address("0.0.0.0"))
    wanted = rtmsg.request(4, 0x1, {DST: zero, NETMASK: zero, IFP: sockaddr.link(0)}, 3)
    assert wanted == bytes.fromhex(GET_DEFAULT)


@pytest.mark.parametrize(
    ("route", "index", "example"),
    [
        (Route(ip_network("10.0.0.0/16"), "utun4"), 20, ADD_NETWORK),
        (Route(ip_network("203.0.113.5"), "en0", ip_address("192.168.1.1")), 4, ADD_HOST),
    ],
)
def test_our_routes_are_those_with_our_flag(route: Route, index: int, example: str) -> None:
    expected = bytearray.fromhex(example)
    (flags,) = struct.unpack_from("<i", expected, 8)
    struct.pack_into("<i", expected, 8, flags | OURS)
    struct.pack_into("<i", expected, 20, 9)
    assert rtmsg.route_request(1, route, index, 9) == expected


def test_an_unreachable_route_leads_to_loopback() -> None:
    request = rtmsg.route_request(1, Route(ip_network("::/1"), kind="unreachable"), 0, 1)
    kind, flags, found = fake_wire.parse_request(request)
    assert (kind, flags) == (1, 0x1 | 0x2 | 0x8 | 0x800 | OURS)
    assert {bit: fake_wire.address_of(data) for bit, data in found.items()} == {
        DST: ip_address("::"),
        GATEWAY: ip_address("::1"),
        NETMASK: ip_address("8000::"),
    }


def test_a_link_local_gateway_carries_its_interface() -> None:
    route = Route(ip_network("2001:db8::5"), "en0", ip_address("fe80::1"))
    _, _, found = fake_wire.parse_request(rtmsg.route_request(1, route, 4, 1))
    assert fake_wire.address_of(found[GATEWAY]) == ip_address("fe80:4::1")


def test_the_arguments_of_ioctls() -> None:
    pair = PointToPoint("utun4", ip_address("10.9.0.2"), ip_address("10.9.0.1"))
    assert ioctl.add_address_request(pair) == bytes.fromhex(ADD_PAIR)
    assert ioctl.mtu_request("utun4", 1280) == bytes.fromhex(SET_MTU)
    assert ioctl.remove_address_request(pair) == bytes.fromhex(ADD_PAIR)[:32]
    assert ioctl.IFREQ_MTU.unpack(ioctl.mtu_request("utun4", 1280))[1] == 1280
    assert struct.unpack_from("<H", ioctl.flags_request("lo0", 0x8049), 16) == (0x8049,)
    assert tun.control_request("com.apple.net.utun_control")[4:31] == b"com.apple.net.utun_control\0"


def test_the_offsets_of_an_ipv6_alias() -> None:
    pair = PointToPoint("utun4", ip_address("fd00::2"), ip_address("fd00::1"))
    request = ioctl.add_address_request(pair)
    assert len(request) == 128
    for offset, address in ((16, "fd00::2"), (44, "fd00::1"), (72, "ffff:" * 7 + "ffff")):
        assert fake_wire.address_of(request[offset : offset + 28]) == ip_address(address)
    assert struct.unpack_from("<iqqII", request[100:104] + request[104:], 0) == (
        0x20,
        0,
        0,
        2**32 - 1,
        2**32 - 1,
    )
    assert ioctl.remove_address_request(pair) == request[:44] + bytes(244)


@pytest.mark.parametrize(
    ("structure", "size"),
    [
        (sockaddr.SOCKADDR_IN, 16),
        (sockaddr.SOCKADDR_IN6, 28),
        (sockaddr.SOCKADDR_DL, 20),
        (rtmsg.RT_MSGHDR, 92),
        (rtmsg.IF_MSGHDR, 112),
        (rtmsg.IFA_MSGHDR, 20),
        (tun.CTL_INFO, 100),
        (ioctl.IFREQ_FLAGS, 32),
        (ioctl.IFREQ_MTU, 32),
        (ioctl.IFREQ_ADDRESS, 32),
        (ioctl.IFALIASREQ, 64),
        (ioctl.IN6_ALIASREQ, 128),
        (ioctl.IN6_IFREQ, 288),
    ],
)
def test_the_sizes_are_those_of_the_headers(structure: struct.Struct, size: int) -> None:
    assert structure.size == size


@given(addresses)
def test_an_address_comes_back_without_its_interface(address: Address) -> None:
    index = 4
    again = sockaddr.parse(memoryview(sockaddr.inet(address, index)))
    if address.version == 6 and address.is_link_local:
        # The kernel keeps the interface here.
        packed = address.packed
        address = ip_address(packed[:2] + b"\0\0" + packed[4:])
    assert again == address


@given(networks(), st.integers(0, 255))
def test_a_mask_is_read_however_the_kernel_trims_it(network: Network, family: int) -> None:
    version, length = network.version, network.prefixlen
    trimmed = bytearray(fake_wire.trimmed_mask(version, length))
    trimmed[1:2] = bytes([family]) * len(trimmed[1:2])
    assert sockaddr.prefix_length(memoryview(trimmed), version) == length
    assert sockaddr.prefix_length(memoryview(sockaddr.mask(network)), version) == length


def test_a_mask_with_holes_is_invalid() -> None:
    assert sockaddr.prefix_length(memoryview(sockaddr.inet(ip_address("255.0.255.0"))), 4) is None


@given(networks(), st.sampled_from([None, "gateway", "unreachable"]))
def test_a_requested_route_is_found(destination: Network, how: str | None) -> None:
    gateway = ip_address("192.168.1.1" if destination.version == 4 else "2001:db8::1")
    if how == "unreachable":
        route = Route(destination, kind="unreachable")
    else:
        route = Route(destination, "en0", gateway if how else None)
    request = rtmsg.route_request(1, route, 4 if route.device else 0, 1)
    (found,) = observed.parse_routes(_with_index(request, 4), destination.version, names)
    assert found.is_ours(route)
    assert found.route == route


@given(networks())
def test_a_trimmed_mask_in_a_dump_is_parsed(destination: Network) -> None:
    found = {
        DST: fake_wire.sockaddr(destination.network_address),
        GATEWAY: fake_wire.link(4),
        NETMASK: fake_wire.trimmed_mask(destination.version, destination.prefixlen),
        IFA: fake_wire.sockaddr(ip_address("2001:db8::7")),
    }
    (entry,) = observed.parse_routes(fake_wire.message(4, 4, 0x1, found), destination.version, names)
    assert entry.route == Route(destination, "en0")
    assert entry.source == ip_address("2001:db8::7")
    assert not entry.ours


@given(st.binary(max_size=400))
def test_garbage_does_not_raise(data: bytes) -> None:
    for message in rtmsg.messages(data):
        assert message.address(DST) is None or message.addresses
        observed.parse_route(message, 4)
        observed.parse_route(message, 6)


@given(networks(), st.data())
def test_a_damaged_message_does_not_raise(destination: Network, data: st.DataObject) -> None:
    request = bytearray(_with_index(rtmsg.route_request(1, Route(destination, "en0"), 4, 1), 4))
    position = data.draw(st.integers(0, len(request) - 1))
    request[position] = data.draw(st.integers(0, 255))
    for entry in observed.parse_routes(bytes(request), destination.version, names):
        assert isinstance(entry.route.destination.network_address, IPv4Address | IPv6Address)


def _with_index(request: bytes, index: int) -> bytes:
    """As the kernel sends it: with the interface that it has chosen."""
    return request[:4] + index.to_bytes(2, "little") + request[6:]
