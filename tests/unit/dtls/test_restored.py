"""A session goes on from its exported state, as often as it is asked to, and a bad state harms nobody else."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dtun.dtls import key_takeover
from dtun.dtls.association import Association, AssociationState
from dtun.dtls.mbed import MbedBuffer
from dtun.dtls.mbed_records import MbedRecords
from dtun.dtls.records import SessionKeys
from dtun.dtls.status import ExportError
from dtun.dtls.suites import ALL_SUITES, Suite
from tests.unit.dtls.wire import staying_in_mbed_tls

Connect = Callable[..., tuple[Association, Association]]

every_suite = pytest.mark.parametrize("suite", ALL_SUITES, ids=lambda suite: suite.name)


def server_in_mbed_tls(connect: Connect, *, native: bool = True) -> tuple[Association, MbedBuffer]:
    """A client, and the server's connection, whose last flight has come and which is still in Mbed TLS."""
    client, server = connect(native=native)
    assert isinstance(server.records, MbedRecords)
    assert server.records.open(client.seal(b"first")) == (b"first",)
    return client, server.records.buffer


def exported(buffer: MbedBuffer) -> dict[str, Any]:
    state = buffer.export()
    assert state is not None
    return state


@pytest.mark.parametrize("native", [True, False])
def test_a_state_names_no_protocol(native: bool, connect: Connect) -> None:
    # Mbed TLS before 2.28.8 refuses a state that does.
    _, buffer = server_in_mbed_tls(connect, native=native)
    assert buffer.is_native() is native
    connection = exported(buffer)["connection"]
    assert b"dtun/1" not in connection
    assert connection[-1] == 0


def test_two_copies_of_one_state_go_on_by_themselves(connect: Connect) -> None:
    client, buffer = server_in_mbed_tls(connect)
    state = exported(buffer)
    copies = [buffer.restored(state), buffer.restored(state)]
    record = client.seal(b"to both")
    for copy in copies:
        copy.feed(record)
        assert copy.read() == [b"to both"]
        assert not copy.is_broken()
    answers = [copy.write(b"from each") for copy in copies]
    assert answers[0] == answers[1]
    assert tuple(client.receive(answers[0], 0.0)) == (b"from each",)
    assert buffer.is_broken()


@pytest.mark.parametrize("damage", ["shorter", "longer", "version", "flags", "empty session"])
def test_a_state_that_mbed_tls_refuses_is_an_error(damage: str, connect: Connect) -> None:
    client, buffer = server_in_mbed_tls(connect)
    state = exported(buffer)
    whole: bytes = state["connection"]
    damaged = {
        "shorter": whole[:-1],
        "longer": whole + b"x",
        "version": whole[:2] + b"\xff" + whole[3:],
        "flags": whole[:7] + b"\xff" + whole[8:],
        "empty session": whole[:8] + bytes(4) + whole[12:],
    }[damage]
    with pytest.raises(ExportError, match="does not take its state back"):
        buffer.restored({**state, "connection": damaged})
    copy = buffer.restored(state)
    copy.feed(client.seal(b"the good one"))
    assert copy.read() == [b"the good one"]


def test_a_session_of_which_the_state_is_refused_fails_alone(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, server = connect()
    export_state = MbedBuffer.export

    def damaged(buffer: MbedBuffer) -> dict[str, Any] | None:
        state = export_state(buffer)
        return state and {**state, "connection": state["connection"] + b"x"}

    monkeypatch.setattr(MbedBuffer, "export", damaged)
    server.receive(client.seal(b"first"), 0.0)
    assert server.state is AssociationState.FAILED
    assert server.failure == "Mbed TLS does not take its state back"


@every_suite
@pytest.mark.parametrize("fallen", ["client", "server"])
def test_one_end_that_stays_in_mbed_tls_talks_with_one_that_does_not(
    suite: Suite, fallen: str, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    parse = key_takeover.read_keys
    asked = iter(
        ["client", "server"]
    )  # the client's keys are taken over after the handshake, the server's with the first record

    def unknown(state: bytes, suite: Suite) -> SessionKeys:
        if next(asked) == fallen:
            raise ExportError("a layout of next year")
        return parse(state, suite)

    monkeypatch.setattr(key_takeover, "read_keys", unknown)
    client, server = connect(suite)
    for turn in range(20):
        text = b"turn %d" % turn
        assert tuple(server.receive(client.seal(text), 0.0)) == (text,)
        assert tuple(client.receive(server.seal(text), 0.0)) == (text,)
    ends = {"client": client, "server": server}
    assert ends.pop(fallen).fallback_reason == "a layout of next year"
    (other,) = ends.values()
    assert other.records.offloaded


def test_a_session_that_is_told_to_stay_in_mbed_tls_stays(connect: Connect) -> None:
    with staying_in_mbed_tls():
        client, server = connect()
        for text in (b"first", b"second"):
            assert tuple(server.receive(client.seal(text), 0.0)) == (text,)
            assert tuple(client.receive(server.seal(text), 0.0)) == (text,)
    assert (client.fallback_reason, server.fallback_reason) == ("turned off", "turned off")


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only: reads /proc")
def test_copies_leave_no_memory_behind(connect: Connect) -> None:
    _, buffer = server_in_mbed_tls(connect)
    state = exported(buffer)

    def grown_by(copies: int) -> int:
        before = _resident_pages()
        for _ in range(copies):
            buffer.restored(state)
        return _resident_pages() - before

    grown_by(100)
    # A connection holds more than 32 KiB, eight pages: without `free` these would add 8,000.
    assert grown_by(1000) < 2000


def _resident_pages() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1])
