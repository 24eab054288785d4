"""The control socket: one answer a question, whoever asks however badly."""

import asyncio
import contextlib
import json
import os
import socket
import stat
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from dtun.errors import DtunError, PermissionDeniedError, UnavailableError
from dtun.service import control
from dtun.service.control import MAX_CONNECTIONS, MAX_REQUEST_BYTES, ControlServer, ask

STATUS: dict[str, object] = {"role": "server", "tunnels": [{"id": "ä" * 1000}] * 100}


@pytest.fixture
async def path(tmp_path: Path) -> AsyncIterator[Path]:
    """The socket of a running server."""
    path = tmp_path / "run" / "server.sock"
    server = ControlServer(path, lambda: STATUS, timeout=0.3)
    await server.start()
    yield path
    await server.stop()
    assert not path.exists()


async def exchange(path: Path, request: bytes) -> bytes:
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(request)
    with contextlib.suppress(ConnectionError):
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        await writer.wait_closed()
        return answer
    writer.close()
    return b"reset"


async def test_a_question_is_answered(path: Path) -> None:
    assert await asyncio.to_thread(ask, path) == STATUS
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o660  # noqa: PTH116 - no event loop is held up by a stat


async def test_many_ask_at_once(path: Path) -> None:
    answers = await asyncio.gather(
        *(exchange(path, b'{"command": "status"}\n') for _ in range(MAX_CONNECTIONS))
    )
    assert [json.loads(answer) for answer in answers] == [STATUS] * MAX_CONNECTIONS


@pytest.mark.parametrize(
    "request_line",
    [b"\n", b"status\n", b"[]\n", b"{}\n", b'{"command": "stop"}\n', b"\xff\xfe\n", b"[" * 4000 + b"\n"],
)
async def test_another_question_is_answered_by_an_error(path: Path, request_line: bytes) -> None:
    assert "unknown request" in json.loads(await exchange(path, request_line))["error"]


async def test_an_endless_question_is_cut_off(path: Path) -> None:
    answer = await exchange(path, b"x" * (MAX_REQUEST_BYTES * 4))
    assert answer == b"reset" or b"unknown request" in answer
    assert await asyncio.to_thread(ask, path) == STATUS


async def test_who_says_nothing_is_not_waited_for(path: Path) -> None:
    assert await exchange(path, b"") == b""


async def test_the_silent_hold_a_bounded_number_of_places(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    server = ControlServer(path, lambda: STATUS, timeout=60)
    await server.start()
    silent = [await asyncio.open_unix_connection(str(path)) for _ in range(MAX_CONNECTIONS)]
    await until(lambda: len(server._connections) == MAX_CONNECTIONS)
    assert await exchange(path, b"") in {b"", b"reset"}
    assert len(server._connections) == MAX_CONNECTIONS
    await asyncio.wait_for(server.stop(), 5)
    await server.stop()
    assert server._connections == set()
    assert not path.is_socket()
    for _, writer in silent:
        writer.close()


async def test_the_silent_hold_their_place_for_a_bounded_time(path: Path) -> None:
    silent = [await asyncio.open_unix_connection(str(path)) for _ in range(MAX_CONNECTIONS)]
    ends = await asyncio.gather(*(asyncio.wait_for(reader.read(), 10) for reader, _ in silent))
    assert set(ends) == {b""}
    for _, writer in silent:
        writer.close()
    assert await asyncio.to_thread(ask, path) == STATUS


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - a condition of the server, which has no event for it
            await asyncio.sleep(0.001)


async def test_what_a_killed_process_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    server = ControlServer(path, lambda: STATUS)
    await server.start()
    assert await asyncio.to_thread(ask, path) == STATUS
    await server.stop()


async def test_a_living_dtun_is_left_alone(path: Path) -> None:
    second = ControlServer(path, dict)
    with pytest.raises(UnavailableError, match="another dtun is running"):
        await second.start()
    await second.stop()
    assert await asyncio.to_thread(ask, path) == STATUS


async def test_a_file_in_the_way_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    path.write_text("precious")
    with pytest.raises(UnavailableError, match="in the way"):
        await ControlServer(path, dict).start()
    assert path.read_text() == "precious"


async def test_the_socket_of_a_successor_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    first = ControlServer(path, lambda: {"is": "first"})
    await first.start()
    path.unlink()
    second = ControlServer(path, lambda: {"is": "second"})
    await second.start()
    await first.stop()
    assert await asyncio.to_thread(ask, path) == {"is": "second"}
    await second.stop()


async def test_a_directory_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UnavailableError, match="cannot make the control socket"):
        await ControlServer(tmp_path / "file" / "a.sock", dict).start()

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(PermissionDeniedError, match="no right to make the control socket"):
        await ControlServer(tmp_path / "b.sock", dict).start()


def test_who_asks_and_gets_no_sense(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
        with pytest.raises(UnavailableError, match="does not answer"):
            ask(path, timeout=0.05)
    with pytest.raises(UnavailableError, match="nobody listens"):
        ask(path)
    for answer, said in [
        (b'{"error": "?"}\n', "not understood"),
        (b"[]\n", "not understood"),
        (b"", "does not answer"),
        (b"\xff\n", "does not answer"),
    ]:
        monkeypatch.setattr(control, "_exchange", lambda *_, answer=answer: answer)
        with pytest.raises(DtunError, match=said):
            ask(path)
