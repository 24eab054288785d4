"""The fake kernel refuses what xnu refuses."""

import struct
from ipaddress import ip_address, ip_network

import pytest
from fake_kernel import FakeKernel
from fake_wire import KernelError

from dtun.network.state import PointToPoint, Route
from dtun.platform.darwin import ioctl, rtmsg, sockaddr
from dtun.platform.darwin.constants import RTA_DST, RTA_GATEWAY, RTA_NETMASK, RTM_ADD, RTM_DELETE, SIOCAIFADDR

EN0, EN1 = 4, 5
INSIDE = Route(ip_network("10.9.0.0/16"), "en0")
ONE = PointToPoint("en1", ip_address("10.86.0.2"), ip_address("10.86.0.1"))
NO_PEER = PointToPoint("en1", ip_address("10.86.0.2"), ip_address("0.0.0.0"))


def refusal(mac: FakeKernel, request: bytes) -> tuple[int | None, int]:
    """The error of the send, and the one that the echo carries."""
    sock = mac.socket(17, 3)
    number = None
    try:
        mac.route_request(sock, request)
    except KernelError as error:
        number = error.errno
    echo = sock.recv(2048)
    assert echo[92:] == request[92:]
    return number, int(struct.unpack_from("=i", echo, 24)[0])


def test_routes(mac: FakeKernel) -> None:
    add = rtmsg.route_request(RTM_ADD, INSIDE, EN0, 1)
    assert refusal(mac, rtmsg.route_request(RTM_DELETE, INSIDE, EN0, 1)) == (3, 3), "there is none"
    assert refusal(mac, rtmsg.route_request(RTM_ADD, INSIDE, EN1, 1)) == (51, 51), (
        "the interface has no address"
    )
    assert refusal(mac, add) == (None, 0)
    assert refusal(mac, add) == (17, 17), "it is there"
    mac.root = False
    assert refusal(mac, add) == (1, 1), "not root"


def test_parsing_stops_at_an_address_of_length_zero(mac: FakeKernel) -> None:
    addresses = {
        RTA_DST: sockaddr.inet(ip_address("10.9.0.0")),
        RTA_GATEWAY: sockaddr.link(EN0),
        RTA_NETMASK: sockaddr.mask(INSIDE.destination),
    }
    cut = dict(addresses) | {RTA_GATEWAY: bytes(20)}
    assert refusal(mac, rtmsg.request(RTM_ADD, 0x801, addresses, 1)) == (None, 0)
    assert refusal(mac, rtmsg.request(RTM_DELETE, 0x801, cut, 2)) == (22, 22), "the mask is behind it"


@pytest.mark.parametrize(
    ("pair", "root", "number"), [(ONE, True, None), (NO_PEER, True, 39), (ONE, False, 1)]
)
def test_addresses(mac: FakeKernel, pair: PointToPoint, root: bool, number: int | None) -> None:
    sock = mac.socket(2, 2)
    mac.root = root
    try:
        mac.ioctl(sock.fileno(), SIOCAIFADDR, ioctl.add_address_request(pair))
        found = None
    except KernelError as error:
        found = error.errno
    assert found == number
