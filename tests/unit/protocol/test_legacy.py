"""The greeting of the original Go dtun, byte for byte."""

from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given, strategies as st

from dtun.protocol import legacy

CLIENT, SERVER = IPv4Address("10.86.0.2"), IPv4Address("10.86.0.1")


def test_the_greeting_is_the_clients_address_and_then_the_servers() -> None:
    assert legacy.encode_greeting(CLIENT, SERVER) == bytes([10, 86, 0, 2, 10, 86, 0, 1])


@given(st.ip_addresses(v=4), st.ip_addresses(v=4), st.binary(max_size=30))
def test_what_follows_the_greeting_is_ignored(client: IPv4Address, server: IPv4Address, rest: bytes) -> None:
    assert legacy.decode_greeting(legacy.encode_greeting(client, server) + rest) == (client, server)


@given(st.binary(max_size=7))
def test_a_greeting_has_eight_bytes(record: bytes) -> None:
    assert legacy.decode_greeting(record) is None


def test_the_answer_is_text() -> None:
    assert legacy.encode_answer(IPv4Network("10.0.0.0/16")) == b"10.0.0.0/16"
    assert legacy.encode_answer(None) == b"empty"
    assert legacy.decode_answer(b"empty") == ()


@given(st.ip_addresses(v=4), st.integers(0, 32))
def test_any_subnet_survives_and_host_bits_are_cut_off(address: IPv4Address, length: int) -> None:
    subnet = IPv4Network((address, length), strict=False)
    assert legacy.decode_answer(legacy.encode_answer(subnet)) == (subnet,)
    assert legacy.decode_answer(f"{address}/{length}".encode()) == (subnet,)


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"Empty",
        b"empty\n",
        b"10.0.0.0",
        b"10.0.0.0/",
        b"10.0.0.0/33",
        b"10.0.0.0/-1",
        b"10.0.0.0/8 ",
        b"10.0.0.0/255.0.0.0",
        b"10.0.0.0/0.0.0.255",
        b"fd00::/8",
        "10.0.0.0/\u0668".encode(),
        b"\xff\xfe/8",
        bytes.fromhex("4500001400000000400100000a5600020a560001"),
        b"10.0.0.0/8" + b" " * 9000,
    ],
)
def test_what_is_no_answer(record: bytes) -> None:
    assert legacy.decode_answer(record) is None


@given(st.binary(max_size=30))
def test_any_bytes_are_an_answer_or_none(record: bytes) -> None:
    subnets = legacy.decode_answer(record)
    assert subnets is None or len(subnets) <= 1
