"""Which packets may come from a client, against the plain reading of the rule."""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

from hypothesis import given, strategies as st

from dtun.dataplane.device import Counters
from dtun.dataplane.sources import CACHE_SIZE, LINK_ONLY, SourceFilter

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

DESTINATION4 = IPv4Address("192.0.2.1").packed
DESTINATION6 = IPv6Address("2001:db8::1").packed


def packet_from(source: Address, payload: bytes = b"") -> bytes:
    if isinstance(source, IPv4Address):
        return b"\x45" + bytes(11) + source.packed + DESTINATION4 + payload
    return b"\x60" + bytes(7) + source.packed + DESTINATION6 + payload


@st.composite
def network_and_address(draw: st.DrawFn) -> tuple[Network, Address]:
    """A network, and an address inside it or just beside it."""
    size = draw(st.sampled_from([32, 128]))
    length = draw(st.integers(0, size))
    number = draw(st.integers(0, 2**size - 1))
    kind = IPv4Address if size == 32 else IPv6Address
    network = ip_network((kind(number), length), strict=False)
    low, high = int(network.network_address), int(network.broadcast_address)
    near = draw(st.sampled_from([low, high, max(low - 1, 0), min(high + 1, 2**size - 1), number]))
    return network, kind(near)


@given(st.lists(network_and_address(), max_size=6), st.lists(network_and_address(), max_size=6))
def test_a_packet_passes_if_its_source_is_in_an_allowed_network(
    inside: list[tuple[Network, Address]], others: list[tuple[Network, Address]]
) -> None:
    allowed = [network for network, _ in inside]
    counters = Counters()
    sources = SourceFilter(counters, allowed)
    refused = 0
    for _ in range(2):  # the second time from memory
        for _, address in (*inside, *others):
            expected = any(address in network for network in allowed)
            assert sources.accepts(packet_from(address), 0) == expected
            refused += not expected
    assert counters.drops["source not allowed"] + counters.ignored[LINK_ONLY] == refused


@given(st.binary(max_size=60))
def test_no_bytes_raise_and_what_is_no_ip_packet_is_counted(data: bytes) -> None:
    counters = Counters()
    sources = SourceFilter(counters, [IPv4Network("0.0.0.0/0"), IPv6Network("::/0")])
    version = data[0] >> 4 if data else 0
    whole = (version == 4 and len(data) >= 20) or (version == 6 and len(data) >= 40)
    assert sources.accepts(b"head" + data, 4) == whole
    assert counters.drops["not an IP packet"] == (not whole)


def test_an_address_of_the_other_version_with_the_same_bits_does_not_pass() -> None:
    sources = SourceFilter(Counters(), [IPv4Network("0.0.0.0/0")])
    assert not sources.accepts(packet_from(IPv6Address("::a56:2")), 0)
    sources.allow([IPv6Network("::/0")])
    assert not sources.accepts(packet_from(IPv4Address("10.86.0.2")), 0)


def test_what_was_allowed_before_is_forgotten() -> None:
    sources = SourceFilter(Counters(), [IPv4Network("10.0.0.0/8")])
    assert sources.accepts(packet_from(IPv4Address("10.1.2.3")), 0)
    sources.allow([IPv4Network("192.168.0.0/16")])
    assert not sources.accepts(packet_from(IPv4Address("10.1.2.3")), 0)
    assert sources.accepts(packet_from(IPv4Address("192.168.1.1")), 0)


def test_a_peer_that_tries_all_addresses_does_not_fill_the_memory() -> None:
    sources = SourceFilter(Counters(), [IPv4Network("10.86.0.2/32")])
    for number in range(3 * CACHE_SIZE):
        assert not sources.accepts(packet_from(IPv4Address(number)), 0)
        assert sources.remembered <= CACHE_SIZE
    assert sources.accepts(packet_from(IPv4Address("10.86.0.2")), 0)


def test_what_a_kernel_says_to_its_neighbours_is_told_from_a_spoofed_source() -> None:
    counters = Counters()
    sources = SourceFilter(counters, [IPv4Network("10.86.0.2/32")])
    for text in ("fe80::1", "::"):
        assert not sources.accepts(packet_from(IPv6Address(text)), 0)
    assert not sources.accepts(packet_from(IPv4Address("0.0.0.0")), 0)
    assert counters.drops == {}, "no packet is lost that somebody would miss"
    assert counters.ignored == {LINK_ONLY: 3}
