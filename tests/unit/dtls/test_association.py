from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from dtun.config import Key
from dtun.dtls.association import Association, AssociationState
from dtun.dtls.engine import ClientEngine, ServerEngine
from dtun.dtls.listener import Failed, Listener, Path, Verified
from dtun.dtls.status import IDENTITY_MAX, KEY_MAX
from dtun.dtls.suites import ALL_SUITES, DEFAULT_SUITES, LEGACY_SUITE, Suite
from dtun.errors import ConfigError
from dtun.protocol.record import hello_request, split

Connect = Callable[..., tuple[Association, Association]]
MakeClient = Callable[..., Association]
every_suite = pytest.mark.parametrize("suite", ALL_SUITES, ids=lambda suite: suite.name)


@every_suite
def test_both_ends_agree_on_everything(suite: Suite, connect: Connect) -> None:
    client, server = connect(suite)
    for end in (client, server):
        assert end.state is AssociationState.ESTABLISHED
        assert end.identity == "demo"
        assert end.suite is suite
        assert end.native
        assert end.next_timer() is None
    assert client.answered


def test_a_peer_without_alpn_is_not_native(connect: Connect) -> None:
    client, server = connect(LEGACY_SUITE, native=False)
    assert not client.native
    assert not server.native


def test_the_server_may_send_first_and_takes_over_its_keys_with_the_clients_first_record(
    connect: Connect,
) -> None:
    client, server = connect(LEGACY_SUITE, native=False)
    assert client.takeover_done
    assert client.receive(server.seal(b"welcome"), 0.0) == (b"welcome",)
    offloaded = [server.records.offloaded]
    assert tuple(server.receive(client.seal(b"thanks"), 0.0)) == (b"thanks",)
    offloaded.append(server.records.offloaded)
    assert offloaded == [False, True]
    assert server.takeover_done
    # What was sealed before is not accepted again, and numbers go on where Mbed TLS left off.
    assert client.receive(server.seal(b"more"), 0.0) == (b"more",)


def test_application_data_in_the_datagram_of_the_last_flight_is_not_lost(
    wire: Any, make_client: MakeClient, path: Path
) -> None:
    client = make_client()
    while not wire.events:
        for datagram in client.take_outgoing():
            wire.listener.receive(datagram, path, 0.0)
        flight = b"".join(reply for reply, _ in wire.listener.take_outgoing())
        wire.events += wire.listener.take_events()
        if wire.events:
            flight += wire.server_end().seal(b"early bird")
        early = client.receive(flight, 0.0)
    assert tuple(early) == (b"early bird",)
    assert client.takeover_done
    assert client.records.highest == 1


def test_an_unknown_id_and_a_wrong_key_look_the_same(make_wire: Any, make_client: MakeClient) -> None:
    seen = []
    for identity, key, reason in (("demo", b"w" * 32, "wrong key"), ("dems", b"w" * 32, "unknown id")):
        wire, client = make_wire(), make_client(identity, key)
        wire.exchange(client)
        shape = [
            [(record[0], record[3:11], len(record)) for record in split(reply)] for reply in wire.replies
        ]
        seen.append((shape, wire.replies[-1], client.failure))
        assert client.state is AssociationState.FAILED
        assert client.answered
        (event,) = wire.events
        assert isinstance(event, Failed)
        assert (event.identity, event.reason) == (identity, reason)
    assert seen[0] == seen[1]
    assert seen[0][2] == "the server does not accept the id or the key"


def test_no_common_suite_is_said_so(wire: Any, make_client: MakeClient) -> None:
    client = make_client(suites=(LEGACY_SUITE,))
    wire.exchange(client)
    assert client.state is AssociationState.FAILED
    assert client.failure == "no cipher suite in common"
    assert not client.answered


def test_the_lookup_knows_the_suite_and_may_refuse_it(make_client: MakeClient, path: Path) -> None:
    asked = []

    def lookup(on: Path, identity: str, suite: Suite) -> Key | None:
        asked.append((on, identity, suite))
        return None if suite is LEGACY_SUITE else Key(bytes(range(32)))

    listener = Listener(ServerEngine((*DEFAULT_SUITES, LEGACY_SUITE)), lookup)
    for suite in (DEFAULT_SUITES[0], LEGACY_SUITE):
        client = make_client(suites=(suite,))
        for _ in range(4):
            for datagram in client.take_outgoing():
                listener.receive(datagram, path, 0.0)
            for reply, _to in listener.take_outgoing():
                client.receive(reply, 0.0)
        refused = suite is LEGACY_SUITE
        assert client.state is (AssociationState.FAILED if refused else AssociationState.ESTABLISHED)
    assert asked == [(path, "demo", DEFAULT_SUITES[0]), (path, "demo", LEGACY_SUITE)]
    verified, failed = listener.take_events()
    assert isinstance(verified, Verified)
    assert verified.key == Key(bytes(range(32)))
    assert isinstance(failed, Failed)
    assert failed.key is None


def test_a_failed_handshake_tells_which_key_was_tried(wire: Any, make_client: MakeClient) -> None:
    wire.exchange(make_client(key=b"another"))
    (failed,) = wire.events
    assert (failed.reason, failed.key) == ("wrong key", Key(bytes(range(32))))


def test_a_broken_lookup_is_not_taken_for_an_unknown_id(make_client: MakeClient, path: Path) -> None:
    def lookup(_path: Path, _identity: str, _suite: Suite) -> Key | None:
        raise LookupError("the database is away")

    listener, client = Listener(ServerEngine(), lookup), make_client()

    def talk() -> None:
        for _ in range(4):
            for datagram in client.take_outgoing():
                listener.receive(datagram, path, 0.0)
            for reply, _to in listener.take_outgoing():
                client.receive(reply, 0.0)

    with pytest.raises(LookupError, match="away"):
        talk()


def test_ids_and_keys_that_cannot_work_are_refused_without_showing_the_key() -> None:
    for identity in ("", "x" * (IDENTITY_MAX + 1), "ü" * IDENTITY_MAX, "two\nlines", "\udc80"):
        with pytest.raises(ConfigError, match="id has"):
            ClientEngine(identity, b"k", native=True)
    for key in (b"", b"topsecret" * KEY_MAX):
        with pytest.raises(ConfigError, match="1 to 32 bytes") as caught:
            ClientEngine("demo", key, native=True)
        assert "topsecret" not in str(caught.value)
    assert "topsecret" not in repr(ClientEngine("demo", b"topsecret", native=True))


def test_goodbye_is_said_once_and_heard(connect: Connect) -> None:
    client, server = connect()
    server.receive(client.seal(b"hello"), 0.0)
    goodbye = client.close()
    assert goodbye is not None
    assert client.close() is None
    assert client.state is AssociationState.CLOSED
    assert server.receive(goodbye, 0.0) == ()
    assert server.state is AssociationState.CLOSED
    assert server.close() is None


def test_a_goodbye_right_after_the_handshake_is_heard_too(connect: Connect) -> None:
    client, server = connect()
    goodbye = client.close()
    assert goodbye is not None
    server.receive(goodbye, 0.0)
    assert not server.takeover_done
    assert server.state is AssociationState.CLOSED


def test_closing_before_the_handshake_is_over_says_nothing(make_client: MakeClient) -> None:
    client = make_client()
    assert client.close() is None
    assert client.state is AssociationState.CLOSED
    assert client.next_timer() is None


def test_a_hello_request_does_not_disturb_a_handshake(wire: Any, make_client: MakeClient) -> None:
    client = make_client()
    assert not client.receive(hello_request(3), 0.0)
    wire.exchange(client)
    assert client.state is AssociationState.ESTABLISHED


def test_a_lost_last_flight_is_sent_again_after_the_listener_has_let_go(wire: Any, path: Path) -> None:
    client = ClientEngine("demo", bytes(range(32)), native=True, retransmit=(0.01, 1.0)).associate(0.0)
    while not wire.events:
        for datagram in client.take_outgoing():
            wire.listener.receive(datagram, path, 0.0)
        replies = wire.listener.take_outgoing()
        wire.events += wire.listener.take_events()
        if not wire.events:
            for reply, _ in replies:
                client.receive(reply, 0.0)
    server = wire.server_end()
    now = 0.0
    while client.state is AssociationState.HANDSHAKING:
        now += 1.0  # Mbed TLS has a clock of its own: ask until it is time
        client.poll(now)
        for datagram in client.take_outgoing():
            server.receive(datagram, now)
        for datagram in server.take_outgoing():
            client.receive(datagram, now)
    assert client.state is AssociationState.ESTABLISHED
    assert tuple(server.receive(client.seal(b"at last"), now)) == (b"at last",)


@settings(max_examples=200)
@given(st.lists(st.binary(max_size=120), max_size=4))
def test_no_bytes_make_a_handshaking_client_raise(make_client: MakeClient, datagrams: list[bytes]) -> None:
    client = make_client()
    for datagram in datagrams:
        assert not client.receive(datagram, 0.0)
        client.take_outgoing()
    assert client.state in (AssociationState.HANDSHAKING, AssociationState.FAILED)


@settings(max_examples=50)
@given(st.lists(st.binary(max_size=120), max_size=8))
def test_no_bytes_disturb_a_session_before_the_key_takeover(connect: Connect, datagrams: list[bytes]) -> None:
    client, server = connect()
    for datagram in (*datagrams, *(b"\x16\xfe\xfd\x00\x01" + tail for tail in datagrams), bytes(60000)):
        assert tuple(server.receive(datagram, 0.0)) == ()
    assert tuple(server.receive(client.seal(b"still here"), 0.0)) == (b"still here",)
