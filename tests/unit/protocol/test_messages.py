"""Control messages: what either side says is understood, and what it should not say is not."""

import json
import time
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import get_args

import pytest
from hypothesis import given, strategies as st
from pydantic import ValidationError

from dtun.protocol import messages
from dtun.protocol.channel import MAX_MESSAGE
from dtun.protocol.frames import FRAGMENT_SIZE
from dtun.protocol.messages import (
    MAX_DNS_DOMAINS,
    MAX_DNS_SERVERS,
    MAX_REFUSALS,
    MAX_ROUTES,
    MAX_SUBNETS,
    MIN_MTU,
    Goodbye,
    Hello,
    Message,
    Refusal,
    Renew,
    Welcome,
)

ADDRESS, PEER = IPv4Address("10.86.0.2"), IPv4Address("10.86.0.1")

networks = st.one_of(
    st.builds(lambda a, n: IPv4Network((a, n), strict=False), st.ip_addresses(v=4), st.integers(0, 32)),
    st.builds(lambda a, n: IPv6Network((a, n), strict=False), st.ip_addresses(v=6), st.integers(0, 128)),
)
# A lone surrogate cannot travel as UTF-8.
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=256)
mtus = st.none() | st.integers(MIN_MTU, 65535)
features = st.lists(words, max_size=5).map(tuple)
any_message: st.SearchStrategy[Message] = st.one_of(
    st.builds(
        Hello,
        features=features,
        instance=st.text("0123456789abcdef", max_size=32),
        subnets=st.lists(networks, max_size=20).map(tuple),
        mtu=mtus,
    ),
    st.builds(
        Welcome,
        features=features,
        address=st.ip_addresses(v=4),
        peer=st.ip_addresses(v=4),
        address6=st.none() | st.ip_addresses(v=6),
        peer6=st.none() | st.ip_addresses(v=6),
        mtu=mtus,
        keepalive=st.floats(0.1, 3600),
        timeout=st.floats(0.2, 86400),
        refused=st.lists(st.builds(Refusal, subnet=networks, reason=words), max_size=5).map(tuple),
        routes=st.lists(networks, max_size=20).map(tuple),
        dns=st.lists(st.ip_addresses(), max_size=8).map(tuple),
        domains=st.lists(st.sampled_from(["example.org", "~corp.example", "~."]), max_size=8).map(tuple),
    ),
    st.builds(Renew, features=features),
    st.builds(
        Goodbye, reason=st.sampled_from(get_args(Goodbye.model_fields["reason"].annotation)), text=words
    ),
)


@given(any_message)
def test_what_one_side_says_the_other_understands(message: Message) -> None:
    assert messages.decode(messages.encode(message)) == message


@given(any_message)
def test_a_message_may_carry_what_this_version_does_not_know(message: Message) -> None:
    fields = json.loads(messages.encode(message)) | {"colour": "blue", "nested": {"more": [1, None]}}
    assert messages.decode(json.dumps(fields).encode()) == message


MANY = 64 << 10


@pytest.mark.parametrize(
    "subnets",
    [
        [f"2001:db8:{number:x}::/48" for number in range(MAX_SUBNETS)],
        ["10.0.0.0/255.255.255.0"] * MAX_SUBNETS,
        ["x"] * (MANY // 4),
        ["x"] * MAX_SUBNETS,
        [[]] * (MANY // 3),
    ],
)
def test_the_largest_message_of_a_hostile_peer_takes_few_milliseconds(subnets: list[object]) -> None:
    data = json.dumps({"type": "hello", "subnets": subnets}, separators=(",", ":")).encode()
    assert len(data) <= MAX_MESSAGE + 100
    times = []
    for _ in range(3):
        began = time.process_time()
        messages.decode(data)
        times.append(time.process_time() - began)
    assert min(times) < 0.015  # some 5 ms; 30 to 400 ms where each network is tried in each way


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("10.0.0.0/255.0.0.0", IPv4Network("10.0.0.0/8")),
        ("10.1.2.3", IPv4Network("10.1.2.3/32")),
        ("fd00::1", IPv6Network("fd00::1/128")),
        ("fd00::/48", IPv6Network("fd00::/48")),
        ("10.0.0.1/8", None),
        ("10.0.0.0/33", None),
        ("10.0.0.0/+8", None),
        ("10.0.0/8", None),
        ("fd00::/-1", None),
        ("fe80::%1/64", None),
        ("", None),
    ],
)
def test_networks_are_written_as_everywhere(text: str, network: object) -> None:
    hello = messages.decode(json.dumps({"type": "hello", "subnets": [text]}).encode())
    assert hello == (None if network is None else Hello(subnets=(network,)))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
field_names = st.sampled_from(
    [
        "type",
        "version",
        "subnets",
        "mtu",
        "address",
        "peer",
        "refused",
        "routes",
        "dns",
        "domains",
        "reason",
        "text",
        "instance",
        "features",
    ]
)
kinds = st.sampled_from(["hello", "welcome", "renew", "goodbye"])


@given(
    st.one_of(
        st.binary(max_size=60),
        json_values.map(lambda value: json.dumps(value).encode()),
        st.builds(
            lambda kind, fields: json.dumps({"type": kind} | fields).encode(),
            kinds,
            st.dictionaries(field_names, json_values, max_size=5),
        ),
    )
)
def test_no_bytes_raise(data: bytes) -> None:
    message = messages.decode(data)
    assert message is None or isinstance(message, Hello | Welcome | Renew | Goodbye)


@pytest.mark.parametrize(
    "fields",
    [
        {"type": "hullo"},
        {},
        {"type": "hello", "version": 2},
        {"type": "hello", "mtu": MIN_MTU - 1},
        {"type": "hello", "mtu": 65536},
        {"type": "hello", "instance": "no hex"},
        {"type": "hello", "instance": "0" * 33},
        {"type": "hello", "subnets": ["10.0.0.1/8"]},
        {"type": "hello", "subnets": ["10.0.0.0/8"] * (MAX_SUBNETS + 1)},
        {"type": "hello", "features": ["x"] * 65},
        {"type": "welcome", "address": "10.86.0.2"},
        {"type": "welcome", "address": "fd00::2", "peer": "10.86.0.1"},
        {"type": "welcome", "address": "10.86.0.2", "peer": "10.86.0.1", "keepalive": 0},
        {"type": "welcome", "address": "10.86.0.2", "peer": "10.86.0.1", "timeout": 1e9},
        {"type": "welcome", "address": "10.86.0.2", "peer": "10.86.0.1", "routes": ["10.0.0.0/8"] * 257},
        {"type": "welcome", "address": "10.86.0.2", "peer": "10.86.0.1", "dns": ["10.0.0.1"] * 9},
        {"type": "welcome", "address": "10.86.0.2", "peer": "10.86.0.1", "dns": ["fe80::1%eth0"]},
        {"type": "welcome", "address": "10.86.0.2", "peer": "10.86.0.1", "domains": ["a.example"] * 33},
        {"type": "welcome", "address": "10.86.0.2", "peer": "10.86.0.1", "domains": ["$(reboot)"]},
        {"type": "welcome", "address": "10.86.0.2", "peer": "10.86.0.1", "domains": ["a\nb"]},
        {"type": "goodbye", "reason": "a whim"},
        {"type": "goodbye", "text": "x" * 257},
    ],
)
def test_what_is_unknown_or_out_of_bounds_is_no_message(fields: dict[str, object]) -> None:
    assert messages.decode(json.dumps(fields).encode()) is None


def test_deep_nesting_is_no_message() -> None:
    assert messages.decode(b'{"type":"hello","x":' + b"[" * 60000 + b"]" * 60000 + b"}") is None


def test_an_absent_version_is_the_first_one() -> None:
    assert messages.decode(b'{"type":"renew"}') == Renew()
    assert b"version" not in messages.encode(Renew())


def test_the_timers_that_a_server_may_have_are_timers_that_it_may_tell() -> None:
    for keepalive, timeout in ((0.1, 0.2), (3600, 86400)):
        welcome = Welcome(address=ADDRESS, peer=PEER, keepalive=keepalive, timeout=timeout)
        assert messages.decode(messages.encode(welcome)) == welcome


def test_the_longest_hello_fits_into_a_control_message() -> None:
    subnets = [IPv6Network((IPv6Address(2**128 - 1 - number), 128)) for number in range(MAX_SUBNETS)]
    assert len(messages.encode(Hello(instance="0" * 32, subnets=tuple(subnets), mtu=65535))) <= MAX_MESSAGE


def test_the_longest_welcome_that_a_server_says_fits_into_a_control_message() -> None:
    hosts = [IPv6Network((2**128 - 1 - number, 128)) for number in range(MAX_ROUTES)]
    welcome = Welcome(
        address=ADDRESS,
        peer=PEER,
        refused=tuple(Refusal(subnet=host, reason="x" * 256) for host in hosts[:MAX_REFUSALS]),
        routes=tuple(hosts),
        dns=tuple(host.network_address for host in hosts[:MAX_DNS_SERVERS]),
        domains=("x" * 254,) * MAX_DNS_DOMAINS,
    )
    assert messages.decode(messages.encode(welcome)) == welcome
    assert len(messages.encode(welcome)) <= MAX_MESSAGE


def test_a_goodbye_of_200_characters_of_any_script_fits_into_one_fragment() -> None:
    goodbye = Goodbye(reason="replaced", text="\N{LARGE BLUE CIRCLE}" * 203)
    assert len(messages.encode(goodbye)) <= FRAGMENT_SIZE


def test_messages_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        Hello().mtu = 1400  # type: ignore[misc]


@pytest.mark.parametrize(
    "fields",
    [
        {"type": "hello", "subnets": ["fd00::%eth0/64"]},
        {"type": "welcome", "address": "10.86.0.2", "peer": "10.86.0.1", "peer6": "fe80::1%eth0"},
    ],
)
def test_an_address_with_an_interface_of_its_writer_is_refused(fields: dict[str, object]) -> None:
    assert messages.decode(json.dumps(fields).encode()) is None
