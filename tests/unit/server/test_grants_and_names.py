"""Which subnets a client gets, and the name of its device."""

import time
from ipaddress import IPv4Network, IPv6Network, ip_network

import pytest
from hypothesis import given, strategies as st

from dtun.network.state import Network
from dtun.server.grants import grant
from dtun.server.identities import MAX_NAME, PREFIX, device_name

LAN = IPv4Network("10.0.0.0/16")


def anything(_: Network) -> bool:
    return True


def test_what_is_allowed_and_free_is_granted_once() -> None:
    v6 = IPv6Network("fd00::/64")
    assert grant([LAN, v6, LAN], anything, {}).granted == (LAN, v6)


def test_what_is_not_allowed_is_refused_with_a_reason() -> None:
    result = grant([LAN], lambda _: False, {})
    assert result.granted == ()
    assert [(refusal.subnet, refusal.reason) for refusal in result.refused] == [
        (LAN, "the server's configuration does not allow it for this client")
    ]


@pytest.mark.parametrize("taken", ["10.0.0.0/16", "10.0.0.0/8", "10.0.200.0/24", "0.0.0.0/0"])
def test_what_overlaps_another_owners_is_refused_and_the_owner_named(taken: str) -> None:
    result = grant([LAN], anything, {ip_network(taken): "client office"})
    assert result.granted == ()
    assert result.refused[0].reason == f"it overlaps {taken}, which belongs to client office"


subnets4 = st.builds(
    lambda n, length: IPv4Network((n << 28, length), strict=False), st.integers(0, 15), st.integers(1, 5)
)
subnets6 = st.builds(
    lambda n, length: IPv6Network((n << 124, length), strict=False), st.integers(0, 15), st.integers(1, 5)
)
subnets = st.lists(st.one_of(subnets4, subnets6), max_size=8)


@given(subnets, subnets, subnets)
def test_each_subnet_is_either_granted_or_refused_as_the_rule_says(
    requested: list[Network], allowed: list[Network], taken: list[Network]
) -> None:
    result = grant(requested, allowed.__contains__, dict.fromkeys(taken, "another"))
    refused = [refusal.subnet for refusal in result.refused]
    assert sorted(map(str, (*result.granted, *refused))) == sorted(map(str, set(requested)))
    for subnet in requested:
        clashes = any(
            other.version == subnet.version
            and int(other[0]) <= int(subnet[-1])
            and int(subnet[0]) <= int(other[-1])
            for other in taken
        )
        assert (subnet in result.granted) == (subnet in allowed and not clashes)


def test_many_subnets_are_judged_quickly_where_others_have_many() -> None:
    def some(first: int, count: int) -> list[Network]:
        return [IPv4Network((first + (number << 8), 24)) for number in range(count)]

    taken = dict.fromkeys(some(0x0B000000, 16384), "another")
    began = time.process_time()
    result = grant(some(0x0A000000, 1024), anything, taken)
    assert len(result.granted) == 1024
    assert time.process_time() - began < 3, "a look at each of the others takes several times as long"


def test_a_short_plain_id_is_in_the_name_as_it_is() -> None:
    assert device_name("demo") == "dtun-demo"
    assert device_name("ten_chars-") == "dtun-ten_chars-"


@pytest.mark.parametrize("identity", ["eleven-char", "a b", "é", "../..", "*", "名前", "a" * 64, "%d", ""])
def test_any_other_id_gets_a_short_name_that_stays_the_same(identity: str) -> None:
    name = device_name(identity)
    assert name == device_name(identity)
    assert name != device_name(identity + "x")


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=64), unique=True, max_size=30))
def test_names_are_ones_that_the_kernel_takes_and_unique(identities: list[str]) -> None:
    names: list[str] = []
    for identity in identities:
        names.append(device_name(identity, names))
    assert len(set(names)) == len(names)
    for name in names:
        assert name.startswith(PREFIX)
        assert len(name.encode()) <= MAX_NAME
        assert name.isascii()
        assert not set(name) & set("/: %*\0")


def test_a_name_that_is_taken_gets_another_until_none_is_left() -> None:
    taken: list[str] = []
    for _ in range(7):
        name = device_name("demo", taken)
        assert name not in taken
        taken.append(name)
    assert taken[0] == "dtun-demo"
    with pytest.raises(ValueError, match="no device name is left for id 'demo'"):
        device_name("demo", taken)
