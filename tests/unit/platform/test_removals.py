"""Which notifications are suspected removals, and the BPF filter that drops our own."""

import socket
import struct

import pytest
from hypothesis import given, strategies as st

from dtun.platform.linux.netlink.notifications import SOCK_FILTER, filter_program
from dtun.platform.linux.netlink.removals import RemovalWatch

NEWLINK, DELLINK, NEWADDR, DELADDR, NEWROUTE, DELROUTE, NEWRULE, DELRULE = 16, 17, 20, 21, 24, 25, 32, 33
UP, ETH0, TUN, LOOPBACK = 0x1, 2, 7, 1
OURS, OTHERS = 4711, 4712


def message(kind: int, body: bytes, port: int = OTHERS) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, port) + body


def number(kind: int, value: int) -> bytes:
    return struct.pack("=HHI", 8, kind, value)


def route(kind: int = DELROUTE, protocol: int = 217, index: int = ETH0, port: int = OTHERS) -> bytes:
    header = struct.pack("=BBBBBBBBI", 2, 24, 0, 0, 254, protocol, 0, 1, 0)
    return message(kind, header + number(4, index), port)


def rule(protocol: int, kind: int = DELRULE) -> bytes:
    header = struct.pack("=BBBBBBBBI", 2, 0, 0, 0, 0, 0, 0, 1, 0)
    return message(kind, header + struct.pack("=HHB3x", 5, 21, protocol))


def address(kind: int, index: int) -> bytes:
    return message(kind, struct.pack("=BBBBI", 2, 32, 0, 0, index))


def link(kind: int, index: int, flags: int, name: str = "") -> bytes:
    named = struct.pack("=HH16s", 20, 3, name.encode()) if name else b""
    return message(kind, struct.pack("=BBHiII", 0, 0, 1, index, flags, 0) + named)


def netconf(index: int, *attributes: bytes, family: int = 2) -> bytes:
    return message(80, struct.pack("=Bxxx", family) + number(1, index & 0xFFFFFFFF) + b"".join(attributes))


@pytest.fixture
def view() -> RemovalWatch:
    """With one device of ours, which is up."""
    view = RemovalWatch()
    view.device_created(TUN, "dtun0")
    assert not view.update(link(NEWLINK, TUN, 0))
    assert not view.update(link(NEWLINK, TUN, UP))
    return view


def test_forwarding_that_was_switched_off_is_suspicious(view: RemovalWatch) -> None:
    every, default = -1, -2
    ends, begins, other = number(2, 0), number(2, 1), number(3, 0)
    assert view.update(netconf(every, ends))
    assert view.update(netconf(every, other, ends, family=10))
    assert not view.update(netconf(every, begins))
    assert not view.update(netconf(every, other))
    assert not view.update(netconf(default, ends) + netconf(ETH0, ends) + netconf(TUN, ends))


def test_a_deleted_route_or_rule_of_our_number_is_suspicious(view: RemovalWatch) -> None:
    assert view.update(route())
    assert view.update(route(index=LOOPBACK))
    assert view.update(rule(217))
    assert not view.update(route(protocol=3))
    assert not view.update(rule(0))
    assert not view.update(route(kind=NEWROUTE) + rule(217, NEWRULE))


def test_the_removal_of_an_address_or_a_link_of_ours_is_suspicious(view: RemovalWatch) -> None:
    assert view.update(address(DELADDR, TUN))
    assert not view.update(address(DELADDR, ETH0) + address(NEWADDR, TUN))
    assert not view.update(link(NEWLINK, ETH0, 0))
    assert view.update(link(NEWLINK, TUN, 0))
    assert not view.update(link(NEWLINK, TUN, 0)), "once is enough"


def test_what_goes_with_a_closed_device_is_not_suspicious(view: RemovalWatch) -> None:
    view.device_closed(TUN)
    gone = address(DELADDR, TUN) + route(index=TUN) + link(NEWLINK, TUN, 0) + link(DELLINK, TUN, 0)
    assert not view.update(gone)
    # The kernel may give the number to another device.
    view.device_created(TUN, "dtun0")
    assert view.update(address(DELADDR, TUN))


def test_a_device_that_goes_or_gets_another_name_is_lost(view: RemovalWatch) -> None:
    for lost in (link(DELLINK, TUN, 0), link(NEWLINK, TUN, UP, "mine")):
        assert view.update(lost)
        assert view.take_lost()
        assert not view.take_lost(), "once"
    assert not view.update(link(NEWLINK, TUN, UP, "dtun0") + link(DELLINK, ETH0, 0))
    assert not view.take_lost()


@given(st.binary(max_size=200))
def test_random_bytes_do_no_harm(data: bytes) -> None:
    RemovalWatch().update(data)


def kept(packet: bytes, ports: list[int]) -> bool:
    """Run the filter as the kernel does: loads are big-endian, and a load behind the end drops the packet."""
    code = list(SOCK_FILTER.iter_unpack(filter_program(ports)))
    accumulator = at = 0
    sizes = {0x20: 4, 0x28: 2, 0x30: 1}
    while True:
        operation, then, otherwise, constant = code[at]
        at += 1
        if operation in sizes:
            field = packet[constant : constant + sizes[operation]]
            if len(field) < sizes[operation]:
                return False
            accumulator = int.from_bytes(field, "big")
        elif operation == 0x15:
            at += then if accumulator == constant else otherwise
        else:
            assert operation == 0x06
            return bool(constant)


@pytest.mark.parametrize("ports", [[], [OURS], [OURS, 1 << 31], [1, 2, OURS]])
def test_the_filter_drops_what_is_ours_and_nothing_else(ports: list[int]) -> None:
    assert socket.htons(1) != 1, "the filter's numbers are turned around on a machine like this"
    assert kept(route(), ports)
    assert kept(route(protocol=3, kind=NEWROUTE), ports)
    assert not kept(route(kind=NEWROUTE), ports)
    assert kept(route(port=OURS), ports) == (OURS not in ports)
    assert kept(route(kind=NEWROUTE, protocol=3, port=OURS), ports) == (OURS not in ports)
    assert kept(address(DELADDR, TUN), ports)
    assert kept(route(port=0), ports)
