import itertools
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, strategies as st

from dtun.config import Key
from dtun.dtls.association import POLL_INTERVAL, Association, AssociationState
from dtun.dtls.budget import SOURCE_BURST
from dtun.dtls.engine import ServerEngine
from dtun.dtls.listener import Failed, Listener, Path, Verified
from dtun.protocol.record import client_random, is_client_hello

MakeClient = Callable[..., Association]


MINUTES = itertools.count(0.0, 60.0)
"""The time, for examples that share a listener: its budget must be whole again."""


def host(number: int, port: int = 5000) -> Path:
    return Path(1, (f"203.0.113.{number}", port), "198.51.100.1")


def hello_with_cookie(listener: Listener[Key], client: Association, path: Path) -> bytes:
    """Fetch a cookie; returns the ClientHello that brings it back."""
    (hello,) = client.take_outgoing()
    assert listener.receive(hello, path, 0.0)
    request, to = listener.take_outgoing()[-1]
    assert to == path
    assert len(request) < len(hello)
    client.receive(request, 0.0)
    (hello,) = client.take_outgoing()
    return hello


def start(listener: Listener[Key], client: Association, path: Path) -> None:
    """Leave a handshake half open."""
    listener.receive(hello_with_cookie(listener, client, path), path, 0.0)


def test_nothing_is_kept_for_a_client_without_a_cookie(wire: Any, make_client: MakeClient) -> None:
    for number in range(100):
        (hello,) = make_client().take_outgoing()
        assert wire.listener.receive(hello, host(number), 0.0)
    assert wire.listener.half_open == 0
    assert len(wire.listener.take_outgoing()) == 100
    assert wire.listener.next_timer() is None


def test_a_cookie_is_good_for_one_path_only(wire: Any, make_client: MakeClient) -> None:
    listener = wire.listener
    hello = hello_with_cookie(listener, make_client(), host(1))
    for other in (
        host(2),
        host(1, 5001),
        Path(2, host(1).peer, "198.51.100.1"),
        Path(1, host(1).peer, "::1"),
    ):
        listener.receive(hello, other, 0.0)
        assert listener.half_open == 0
    listener.receive(hello, host(1), 0.0)
    assert listener.half_open == 1


def test_a_cookie_is_good_for_one_random_only(wire: Any, make_client: MakeClient) -> None:
    listener, first, second = wire.listener, make_client(), make_client()
    hello = hello_with_cookie(listener, first, host(1))
    other = client_random(hello_with_cookie(listener, second, host(1)))
    listener.receive(hello.replace(client_random(hello), other), host(1), 0.0)
    assert listener.half_open == 0
    listener.receive(hello, host(1), 0.0)
    assert listener.half_open == 1


def test_a_source_that_asks_too_often_is_dropped_before_any_work(wire: Any, make_client: MakeClient) -> None:
    listener = wire.listener
    hellos = [
        (hello_with_cookie(listener, make_client(), host(1, port)), host(1, port)) for port in range(80)
    ]
    others = hello_with_cookie(listener, make_client(), host(2))
    for hello, path in hellos:
        listener.receive(hello, path, 0.0)
    assert listener.drops["handshake budget of the source"] == 80 - SOURCE_BURST
    listener.receive(others, host(2), 0.0)
    assert host(2) in listener
    assert hellos[-1][1] not in listener
    # The client sends it again, and is let in.
    listener.receive(*hellos[-1], 1.0)
    assert hellos[-1][1] in listener


def test_nobody_uses_up_the_budget_of_another_with_forged_cookies(wire: Any, make_client: MakeClient) -> None:
    listener = wire.listener
    hello = hello_with_cookie(listener, make_client(), host(1))
    for port in range(200):
        listener.receive(hello, host(2, port), 0.0)
    assert listener.budget.used(0.0) == 0


def test_a_handshake_that_stops_is_forgotten_after_its_time(make_wire: Any, make_client: MakeClient) -> None:
    listener = make_wire(timeout=10.0).listener
    start(listener, make_client(), host(1))
    listener.poll(9.9)
    assert listener.half_open == 1
    assert listener.next_timer() <= 10.0
    listener.poll(10.0)
    assert listener.half_open == 0
    assert listener.take_events() == [Failed(host(1), None, "the client stopped answering")]


def test_a_first_flight_that_was_lost_is_sent_again(make_client: MakeClient) -> None:
    engine = ServerEngine(retransmit=(0.05, 0.1))
    listener: Listener[Key] = Listener(engine, lambda *_: None)
    start(listener, make_client(), host(1))
    flight = [datagram for datagram, _ in listener.take_outgoing()]
    assert flight
    again: list[bytes] = []
    now, deadline = 0.0, time.monotonic() + 10
    # Mbed TLS has a clock of its own.
    while not again and time.monotonic() < deadline:
        due = listener.next_timer()
        assert due is not None
        assert due - now <= POLL_INTERVAL
        time.sleep(due - now)
        now = due
        listener.poll(now)
        again = [datagram for datagram, _ in listener.take_outgoing()]
    assert [len(datagram) for datagram in again] == [len(datagram) for datagram in flight]


def test_the_oldest_of_a_source_makes_way_and_other_sources_stay(
    make_wire: Any, make_client: MakeClient
) -> None:
    listener = make_wire(max_per_source=2).listener
    start(listener, make_client(), host(2))
    for port in (1, 2, 3):
        start(listener, make_client(), host(1, port))
    assert listener.half_open == 3
    assert host(1, 1) not in listener
    assert host(2) in listener
    assert listener.drops["source limit"] == 1


def test_the_oldest_of_all_makes_way_when_the_house_is_full(make_wire: Any, make_client: MakeClient) -> None:
    listener = make_wire(max_half_open=3).listener
    for number in range(5):
        start(listener, make_client(), host(number))
    assert listener.half_open == 3
    assert [number for number in range(5) if host(number) in listener] == [2, 3, 4]
    assert listener.drops["half-open limit"] == 2
    assert len(listener.take_events()) == 2


def test_another_hello_replaces_a_handshake_only_with_a_cookie(wire: Any, make_client: MakeClient) -> None:
    first, second, path = make_client(), make_client(), host(1)
    start(wire.listener, first, path)
    flight = wire.listener.take_outgoing()
    hello = hello_with_cookie(wire.listener, second, path)
    for reply, _ in flight:
        first.receive(reply, 0.0)
    assert wire.listener.half_open == 1
    assert not wire.listener.take_events()
    wire.listener.receive(hello, path, 0.0)
    assert wire.listener.take_events() == [Failed(path, None, "the client started another handshake")]
    for reply, _ in wire.listener.take_outgoing():
        second.receive(reply, 0.0)
    wire.exchange(second, path)
    assert second.state is AssociationState.ESTABLISHED


def test_a_hello_without_a_cookie_does_not_disturb_a_handshake(wire: Any, make_client: MakeClient) -> None:
    client, path = make_client(), host(1)
    start(wire.listener, client, path)
    (stranger,) = make_client().take_outgoing()
    wire.listener.receive(stranger, path, 0.0)
    for reply, _ in wire.listener.take_outgoing():
        client.receive(reply, 0.0)
    wire.exchange(client, path)
    assert isinstance(wire.events[-1], Verified)
    assert client.state is AssociationState.ESTABLISHED


def test_the_same_hello_again_goes_to_the_handshake_it_began(wire: Any, make_client: MakeClient) -> None:
    client = make_client()
    hello = hello_with_cookie(wire.listener, client, host(1))
    for _ in range(3):
        wire.listener.receive(hello, host(1), 0.0)
    assert wire.listener.half_open == 1
    assert not wire.listener.take_events()


def test_after_success_the_path_is_the_callers(wire: Any, make_client: MakeClient, path: Path) -> None:
    client = make_client()
    wire.exchange(client)
    assert path not in wire.listener
    assert not wire.listener.receive(client.seal(b"hello"), path, 0.0)
    assert wire.listener.half_open == 0


def test_a_late_copy_of_a_hello_does_not_open_the_door_again(
    wire: Any, make_client: MakeClient, path: Path
) -> None:
    client = make_client()
    hello = hello_with_cookie(wire.listener, client, path)
    wire.listener.receive(hello, path, 0.0)
    for reply, _ in wire.listener.take_outgoing():
        client.receive(reply, 0.0)
    wire.exchange(client)
    assert wire.server_end().state is AssociationState.ESTABLISHED
    assert wire.listener.receive(hello, path, 0.0)
    assert wire.listener.half_open == 0
    assert wire.listener.take_outgoing() == []
    assert wire.listener.drops == {"late": 1}


@pytest.mark.parametrize(
    ("address", "source"),
    [
        ("192.0.2.9", "192.0.2.9"),
        ("::ffff:192.0.2.9", "192.0.2.9"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_limits_apply_to_what_one_host_can_claim(address: str, source: str) -> None:
    assert Path(1, (address, 1), "").source == source


@pytest.mark.parametrize(
    ("address", "site"),
    [("192.0.2.9", "192.0.2.9"), ("::ffff:192.0.2.9", "192.0.2.9"), ("2001:db8:1:2::3", "2001:db8:1::/48")],
)
def test_the_budget_applies_to_what_one_customer_can_claim(address: str, site: str) -> None:
    assert Path(1, (address, 1), "").site == site


@given(st.binary(max_size=200), st.integers(0, 250), st.binary(max_size=8))
def test_no_bytes_raise_are_kept_or_amplified(
    wire: Any, make_client: MakeClient, junk: bytes, position: int, patch: bytes
) -> None:
    (hello,) = make_client().take_outgoing()
    mangled = hello[:position] + patch + hello[position + len(patch) :]
    now = next(MINUTES)
    for datagram in (junk, mangled, mangled + junk, hello[:position]):
        business = wire.listener.receive(datagram, host(1), now)
        assert business or not is_client_hello(datagram)
        assert wire.listener.half_open == 0
        assert sum(len(reply) for reply, _ in wire.listener.take_outgoing()) <= len(datagram)
    # The spare connection is none the worse for it.
    hello = hello_with_cookie(wire.listener, make_client(), host(2))
    wire.listener.receive(hello, host(2), now)
    assert wire.listener.half_open == 1
    wire.listener.take_outgoing()
    wire.listener.poll(now + 59.0)
    assert wire.listener.half_open == 0
