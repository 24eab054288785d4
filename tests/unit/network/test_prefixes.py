"""Set arithmetic with networks, against a model of single addresses."""

import random
import time
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

import pytest
from hypothesis import given, strategies as st

from dtun.network.prefixes import PrefixSet, aggregate, covers, split_default, subtract
from dtun.network.state import Network

# The last 64 addresses of each version, where one more would overflow.
WORLDS: tuple[Network, ...] = (
    IPv4Network("255.255.255.192/26"),
    IPv6Network("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffc0/122"),
)


@st.composite
def small_networks(draw: st.DrawFn) -> Network:
    world = draw(st.sampled_from(WORLDS))
    host_bits = draw(st.integers(0, 6))
    number = int(world.network_address) + (draw(st.integers(0, 63)) >> host_bits << host_bits)
    return type(world)((number, world.max_prefixlen - host_bits))


LISTS = st.lists(small_networks(), max_size=12)


def members(networks: list[Network]) -> set[tuple[int, int]]:
    """The naive model: the set of all addresses."""
    return {
        (network.version, number)
        for network in networks
        for number in range(int(network.network_address), int(network.broadcast_address) + 1)
    }


def fewest(wanted: set[tuple[int, int]]) -> list[Network]:
    """Every block with only wanted addresses that is not part of another such block."""
    blocks: list[Network] = []
    for world in WORLDS:
        for longer in range(7):
            for block in world.subnets(prefixlen_diff=longer):
                if members([block]) <= wanted and not members([block]) <= members(blocks):
                    blocks.append(block)
    return sorted(blocks, key=lambda block: (block.version, int(block.network_address)))


@given(LISTS)
def test_joined_networks_have_the_same_addresses_and_are_the_fewest(networks: list[Network]) -> None:
    assert aggregate(networks) == fewest(members(networks))


@given(LISTS, LISTS)
def test_what_is_left_has_the_right_addresses_and_is_the_fewest(
    included: list[Network], excluded: list[Network]
) -> None:
    assert subtract(included, excluded) == fewest(members(included) - members(excluded))


@given(LISTS, small_networks())
def test_a_network_is_covered_if_all_of_its_addresses_are(networks: list[Network], inner: Network) -> None:
    expected = members([inner]) <= members(networks)
    assert covers(networks, inner) is expected
    assert covers(PrefixSet(networks), inner) is expected


@given(LISTS, small_networks())
def test_an_address_is_covered_if_a_network_has_it(networks: list[Network], inner: Network) -> None:
    address = inner[-1]
    expected = any(address in network for network in networks)
    assert covers(networks, address) is expected
    assert (address in PrefixSet(networks)) is expected


def nets(*texts: str) -> list[Network]:
    return [ip_network(text) for text in texts]


def test_everything_less_a_network() -> None:
    assert subtract(nets("0.0.0.0/0"), nets("128.0.0.0/2", "::/0")) == nets("0.0.0.0/1", "192.0.0.0/2")
    assert subtract(nets("::/0"), nets("::/1", "c000::/2")) == nets("8000::/2")
    assert subtract(nets("0.0.0.0/0", "::/0"), nets("::/0", "0.0.0.0/0")) == []
    assert len(subtract(nets("::/0"), nets("2001:db8::1/128"))) == 128


def test_a_network_at_the_end_of_another_is_a_part_of_it() -> None:
    assert aggregate(nets("10.0.0.0/24", "10.0.0.255/32")) == nets("10.0.0.0/24")
    assert aggregate(nets("::/0", "ffff::/16")) == nets("::/0")


def test_everything_is_the_sum_of_its_halves() -> None:
    whole = nets("0.0.0.0/0", "10.0.0.0/8", "::/0")
    assert split_default(whole) == nets("0.0.0.0/1", "128.0.0.0/1", "10.0.0.0/8", "::/1", "8000::/1")
    assert aggregate(split_default(whole)) == nets("0.0.0.0/0", "::/0")
    assert covers(split_default(whole), ip_network("0.0.0.0/0"))
    assert not covers(nets("0.0.0.0/1"), ip_network("0.0.0.0/0"))


def test_an_address_of_one_version_is_in_no_network_of_the_other() -> None:
    assert not covers(nets("::/0"), ip_address("10.0.0.1"))
    assert ip_address("::a00:1") not in PrefixSet(nets("10.0.0.0/8"))


def test_generators_are_accepted() -> None:
    assert aggregate(network for network in nets("10.0.0.0/9", "10.128.0.0/9")) == nets("10.0.0.0/8")
    assert covers((network for network in nets("10.0.0.0/9", "10.128.0.0/9")), ip_network("10.0.0.0/8"))


@pytest.mark.parametrize("work", ["aggregate", "subtract", "look up"])
def test_ten_thousand_networks_take_less_than_a_second(work: str) -> None:
    chance = random.Random(7217)
    many: list[Network] = []
    for _ in range(10_000):
        host_bits = chance.randrange(4, 20)
        many.append(IPv4Network((chance.getrandbits(32) >> host_bits << host_bits, 32 - host_bits)))
    prefixes = PrefixSet(many)
    # Processor time: the machine may be busy.
    start = time.process_time()
    if work == "aggregate":
        assert covers(aggregate(many), many[0])
    elif work == "subtract":
        assert not covers(subtract(nets("0.0.0.0/0"), many), many[0])
    else:
        assert all(network in prefixes for network in many)
    assert time.process_time() - start < 1
