"""Keys leave Mbed TLS only when everything looks as known, and a session survives when it does not."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, strategies as st

from dtun.config import Key
from dtun.dtls import key_takeover
from dtun.dtls.association import Association, AssociationState
from dtun.dtls.engine import ClientEngine, ServerEngine
from dtun.dtls.listener import Listener
from dtun.dtls.mbed_records import MbedRecords
from dtun.dtls.records import SessionKeys
from dtun.dtls.status import ExportError
from dtun.dtls.suites import ALL_SUITES, DEFAULT_SUITES, LEGACY_SUITE, Suite
from tests.unit.dtls.wire import KEY, Wire

Connect = Callable[..., tuple[Association, Association]]
every_suite = pytest.mark.parametrize("suite", ALL_SUITES, ids=lambda suite: suite.name)


def state_of(association: Association) -> bytes:
    assert isinstance(association.records, MbedRecords)
    state = association.records.buffer.export()
    assert state is not None
    connection: bytes = state["connection"]
    return connection


@pytest.fixture(scope="module")
def state() -> bytes:
    """The state of a server after the client's first record."""
    wire = Wire(Listener(ServerEngine(), lambda *_: Key(KEY)))
    client = ClientEngine("demo", KEY, native=True).associate(0.0)
    wire.exchange(client)
    server = wire.server_end()
    server.records.open(client.seal(b"first"))
    return state_of(server)


def test_the_prf_is_that_of_tls_1_2() -> None:
    # P_SHA256, the test vector that the IETF TLS working group's list keeps: 100 bytes of it, the first 16 here.
    secret = bytes.fromhex("9bbe436ba940f017b17652849a71db35")
    seed = b"test label" + bytes.fromhex("a0ba9f936cda311827a6f796ffd5198c")
    assert key_takeover.prf("sha256", secret, seed, 100)[:16].hex() == "e3f229ba727be17b8d122620557cd453"


def test_the_window_of_mbed_tls_is_taken_over(state: bytes) -> None:
    keys = key_takeover.read_keys(state, DEFAULT_SUITES[0])
    # The client's Finished was 0, its key takeover used up 1 for a probe that was not sent, its first record was 2.
    assert keys.highest == 2
    assert keys.missing == {1}
    assert keys.sequence == 1


def test_another_suite_is_refused(state: bytes) -> None:
    with pytest.raises(ExportError, match="0xccac"):
        key_takeover.read_keys(state, LEGACY_SUITE)


def test_another_version_or_configuration_is_refused(state: bytes) -> None:
    for position in (0, 1, 3, 5, 6, 7):
        changed = bytearray(state)
        changed[position] ^= 0x04
        with pytest.raises(ExportError):
            key_takeover.read_keys(bytes(changed), DEFAULT_SUITES[0])


@pytest.mark.parametrize("flag", [0, 1, 2, 3], ids=["connection IDs", "failed MACs", "replay window", "ALPN"])
def test_a_connection_of_other_fields_is_refused(state: bytes, flag: int) -> None:
    changed = bytearray(state)
    changed[7] ^= 1 << flag
    with pytest.raises(ExportError, match="configured"):
        key_takeover.read_keys(bytes(changed), DEFAULT_SUITES[0])


def test_a_session_without_its_start_time_is_refused(state: bytes) -> None:
    changed = bytearray(state)
    changed[4] ^= 0x01
    with pytest.raises(ExportError, match="configured"):
        key_takeover.read_keys(bytes(changed), DEFAULT_SUITES[0])


@pytest.mark.parametrize(
    "header", ["021c00007f00000e", "021c03007f00000e", "021c0800ff00000e", "021c0a00ff00000e"]
)
def test_all_versions_and_builds_of_one_layout_are_read(state: bytes, header: str) -> None:
    # Debian's package is 2.28.3, the wheels on PyPI have 2.28.8.
    built = bytes.fromhex(header)
    assert key_takeover.read_keys(built + state[len(built) :], DEFAULT_SUITES[0]) == key_takeover.read_keys(
        state, DEFAULT_SUITES[0]
    )


def test_fields_at_the_end_of_the_session_may_be_there_or_not(state: bytes) -> None:
    # Compiled without tickets of clients: 3 bytes of length and 4 of lifetime are not there.
    flags = state[4] & ~0x04
    length = int.from_bytes(state[8:12]) - 7
    without = state[:4] + bytes([flags]) + state[5:8] + length.to_bytes(4) + state[12 : 12 + length]
    rest = state[12 + length + 7 :]
    assert key_takeover.read_keys(without + rest, DEFAULT_SUITES[0]) == key_takeover.read_keys(
        state, DEFAULT_SUITES[0]
    )


@given(st.data())
def test_any_other_length_is_refused(state: bytes, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(state) - 1))
    with pytest.raises(ExportError):
        key_takeover.read_keys(state[:cut], DEFAULT_SUITES[0])
    with pytest.raises(ExportError):
        key_takeover.read_keys(state + bytes(cut + 1), DEFAULT_SUITES[0])


@given(st.binary(max_size=300))
def test_any_other_bytes_are_refused(junk: bytes) -> None:
    with pytest.raises(ExportError):
        key_takeover.read_keys(junk, DEFAULT_SUITES[0])


@every_suite
@pytest.mark.parametrize("mistake", ["refused", "keys", "peer keys", "number"])
def test_a_session_that_does_not_verify_stays_in_mbed_tls_and_works(
    suite: Suite, mistake: str, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    parse = key_takeover.read_keys

    def wrong(state: bytes, suite: Suite) -> SessionKeys:
        keys = parse(state, suite)
        mistakes: dict[str, dict[str, Any]] = {
            "keys": {"client": (keys.client[0][::-1], keys.client[1])},
            "peer keys": {"server": (keys.server[0], keys.server[1][::-1])},
            "number": {"sequence": keys.sequence + 1},
        }
        changed = mistakes.get(mistake)
        if changed is None:
            raise ExportError("a layout of next year")
        return replace(keys, **changed)

    monkeypatch.setattr(key_takeover, "read_keys", wrong)
    client, server = connect(suite)
    for turn in range(20):
        text = b"turn %d" % turn
        assert tuple(server.receive(client.seal(text), 0.0)) == (text,)
        assert tuple(client.receive(server.seal(text), 0.0)) == (text,)
    for end in (client, server):
        assert end.takeover_done
        assert not end.records.offloaded
        assert end.fallback_reason
    replay = client.seal(b"again")
    assert server.receive(replay, 0.0)
    assert not server.receive(replay, 0.0)
    assert server.records.drops["refused"] == 1
    goodbye = client.close()
    assert goodbye
    server.receive(goodbye, 0.0)
    assert server.state is AssociationState.CLOSED
    assert server.seal(b"too late") == b""


def test_a_session_that_verifies_is_offloaded_at_both_ends(connect: Connect) -> None:
    client, server = connect()
    server.receive(client.seal(b"first"), 0.0)
    for end in (client, server):
        assert end.takeover_done
        assert end.records.offloaded
        assert not end.fallback_reason


def test_keys_do_not_show(state: bytes) -> None:
    keys = key_takeover.read_keys(state, DEFAULT_SUITES[0])
    for key, iv in (keys.client, keys.server):
        for secret in (key, iv):
            assert repr(secret)[2:-1] not in repr(keys)
            assert secret.hex() not in repr(keys)
