"""Which notifications are changes of the host. Messages are built by hand, as rtnetlink(7) defines them."""

import struct
from ipaddress import ip_address

import pytest
from hypothesis import given, strategies as st

from dtun.platform.linux.netlink.monitor import HostView

NEWLINK, DELLINK, NEWADDR, DELADDR, NEWROUTE, DELROUTE = 16, 17, 20, 21, 24, 25
RUNNING = 0x41
POINT_TO_POINT = 0x10
TENTATIVE = 0x40
ETH0, TUN = 2, 7


def message(kind: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body + bytes(-len(body) % 4)


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def link(index: int, flags: int = RUNNING, driver: bytes = b"", kind: int = NEWLINK) -> bytes:
    # The driver's name is nested in IFLA_LINKINFO, which may carry the flag for nesting.
    info = attribute(18 | 0x8000, attribute(1, driver + b"\0")) if driver else b""
    return message(kind, struct.pack("=BBHiII", 0, 0, 1, index, flags, 0) + attribute(3, b"name\0") + info)


def address(index: int, text: str, flags: int = 0, kind: int = NEWADDR) -> bytes:
    packed = ip_address(text).packed
    # The 8 bits of the header are not enough for all flags, and the attribute has the last word.
    attributes = attribute(1, packed) + attribute(8, struct.pack("=I", flags))
    return message(kind, struct.pack("=BBBBI", 2 if len(packed) == 4 else 10, 24, 0, 0, index) + attributes)


def route(prefix_length: int, index: int = ETH0, protocol: int = 3, kind: int = NEWROUTE) -> bytes:
    header = struct.pack("=BBBBBBBBI", 2, prefix_length, 0, 0, 254, protocol, 0, 1, 0)
    return message(kind, header + attribute(4, struct.pack("=I", index)))


@pytest.fixture
def view() -> HostView:
    """A host with one device, which has one address, and with one TUN device of ours."""
    view = HostView()
    view.add_own(TUN)
    assert view.update(link(ETH0))
    assert view.update(address(ETH0, "192.0.2.2"))
    return view


def test_what_was_read_is_out_of_date_after_any_change_but_our_own(view: HostView) -> None:
    def outdates(*data: bytes) -> list[bool]:
        results = []
        for one in data:
            before = view.networks_version
            view.update(one)
            results.append(view.networks_version != before)
        return results

    foreign = (
        link(9),
        link(9, driver=b"tun"),
        link(9, kind=DELLINK),
        address(9, "10.8.0.1"),
        address(9, "10.8.0.1", kind=DELADDR),
        route(24),
        route(24, kind=DELROUTE),
    )
    assert outdates(*foreign) == [True] * 7
    ours = (
        link(TUN),
        address(TUN, "10.86.0.1"),
        address(TUN, "10.86.0.1", kind=DELADDR),
        route(24, protocol=217),
    )
    assert outdates(*ours) == [False] * 4
    before = view.networks_version
    view.clear()
    assert view.networks_version != before


def test_an_address_is_a_change_once(view: HostView) -> None:
    # With each router advertisement the kernel repeats the address.
    assert not view.update(address(ETH0, "192.0.2.2"))
    assert view.update(address(ETH0, "192.0.2.3"))
    assert view.update(address(ETH0, "192.0.2.3", kind=DELADDR))
    assert not view.update(address(ETH0, "192.0.2.3", kind=DELADDR))


def test_an_ipv6_address_is_a_change_when_it_can_be_used(view: HostView) -> None:
    assert not view.update(address(ETH0, "2001:db8::2", TENTATIVE))
    assert view.update(address(ETH0, "2001:db8::2", 0x80))
    assert not view.update(address(ETH0, "fe80::2", 0x80))


def test_a_link_is_a_change_when_it_starts_or_stops_running(view: HostView) -> None:
    assert not view.update(link(ETH0))
    assert view.update(link(ETH0, flags=0x1))
    assert not view.update(link(ETH0, flags=0x0))
    assert view.update(link(ETH0))
    assert view.update(link(ETH0, kind=DELLINK))
    assert not view.update(link(3, flags=0))


@pytest.mark.parametrize("kind", [NEWROUTE, DELROUTE])
@pytest.mark.parametrize("prefix_length", [0, 1])
def test_default_routes_are_changes_each_time(view: HostView, prefix_length: int, kind: int) -> None:
    assert view.update(route(prefix_length, kind=kind))
    assert view.update(route(prefix_length, kind=kind))


def test_other_routes_and_our_own_are_not_changes(view: HostView) -> None:
    assert not view.update(route(24))
    assert not view.update(route(0, protocol=217))
    # An `up` hook may add a route of any protocol through our device.
    assert not view.update(route(0, index=TUN))


def test_our_devices_and_other_tunnels_are_not_changes(view: HostView) -> None:
    assert not view.update(link(TUN) + address(TUN, "10.86.0.1") + link(TUN, kind=DELLINK))
    assert not view.update(link(9, RUNNING | POINT_TO_POINT, b"tun") + address(9, "10.8.0.1"))
    # But the default route may lead through another program's tunnel.
    assert view.update(route(0, index=9))
    assert view.update(link(10, driver=b"veth"))
    assert view.update(link(11, driver=b"tun")), "a TAP device: Ethernet, as of a container without root"
    assert view.update(address(11, "10.0.2.100"))


def test_one_change_among_many_messages_is_enough(view: HostView) -> None:
    noise = route(24) + link(ETH0) + address(ETH0, "192.0.2.2")
    assert not view.update(noise)
    assert view.update(noise + address(ETH0, "192.0.2.9") + noise)


def test_what_may_have_been_missed_is_a_change_again(view: HostView) -> None:
    view.clear()
    assert view.update(address(ETH0, "192.0.2.2"))
    assert view.update(link(ETH0))
    assert not view.update(link(TUN) + route(0, index=TUN))


@given(st.binary(max_size=200))
def test_random_bytes_do_no_harm(data: bytes) -> None:
    HostView().update(data)


KINDS = st.sampled_from([NEWLINK, DELLINK, NEWADDR, DELADDR, NEWROUTE, DELROUTE])


@given(st.lists(st.tuples(KINDS, st.binary(max_size=64)), max_size=5), st.integers(0, 20))
def test_damaged_messages_do_no_harm(messages: list[tuple[int, bytes]], missing: int) -> None:
    data = b"".join(message(kind, body) for kind, body in messages)
    HostView().update(data[: len(data) - missing])
