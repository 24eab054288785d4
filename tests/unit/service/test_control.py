"""The control socket: one answer a question, whoever asks however badly."""

import asyncio
import contextlib
import grp
import json
import os
import socket
import stat
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from dtun.config import keys
from dtun.errors import DtunError, PermissionDeniedError, UnavailableError
from dtun.service import control
from dtun.service.control import (
    GROUP,
    MAX_BUSY,
    MAX_CONNECTIONS,
    MAX_REQUEST_BYTES,
    Answer,
    Command,
    ControlServer,
    Request,
    ask,
)

STATUS: dict[str, object] = {"role": "server", "tunnels": [{"id": "ä" * 1000}] * 100}


def telling(answer: dict[str, object]) -> dict[str, Command]:
    async def status(request: Request) -> Answer:
        assert request["command"] == "status"
        return answer

    return {"status": status}


@pytest.fixture
async def path(tmp_path: Path) -> AsyncIterator[Path]:
    """The socket of a running server."""
    path = tmp_path / "run" / "server.sock"
    server = ControlServer(path, telling(STATUS), timeout=10)
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


async def test_the_silent_keep_nobody_out(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    server = ControlServer(path, telling(STATUS), timeout=60)
    await server.start()
    silent = [await asyncio.open_unix_connection(str(path)) for _ in range(MAX_CONNECTIONS)]
    assert await asyncio.to_thread(ask, path) == STATUS
    assert await asyncio.wait_for(silent[0][0].read(), 5) == b"", "the oldest of them has gone instead"
    await asyncio.wait_for(server.stop(), 5)
    await server.stop()
    assert not path.is_socket()
    for reader, writer in silent:
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()


async def test_the_user_with_the_most_silent_connections_loses_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = iter([1, *[2] * MAX_CONNECTIONS])
    monkeypatch.setattr(control, "_user", lambda _: next(users))
    path = tmp_path / "a.sock"
    server = ControlServer(path, telling(STATUS), timeout=60)
    await server.start()
    first, *others = [await asyncio.open_unix_connection(str(path)) for _ in range(MAX_CONNECTIONS + 1)]
    assert await asyncio.wait_for(others[0][0].read(), 5) == b""
    first[1].write(b'{"command": "status"}\n')
    assert json.loads(await asyncio.wait_for(first[0].read(), 5)) == STATUS
    await server.stop()
    for _, writer in (first, *others):
        writer.close()


async def test_while_all_places_are_busy_the_next_one_is_told_so(doing: tuple[Path, "Doing"]) -> None:
    path, commands = doing
    busy = [asyncio.create_task(exchange(path, b'{"command": "obey"}\n')) for _ in range(MAX_BUSY)]
    await until(lambda: len(commands.asked) == MAX_BUSY)
    with pytest.raises(DtunError, match="too many commands") as told:
        await asyncio.to_thread(ask, path)
    assert told.value.exit_code == UnavailableError.exit_code
    commands.gate.set()
    assert {json.loads(answer)["lines"][0] for answer in await asyncio.gather(*busy)} == {"done"}


async def test_the_silent_hold_their_place_for_a_bounded_time(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    server = ControlServer(path, telling(STATUS), timeout=0.1)
    await server.start()
    silent = [await asyncio.open_unix_connection(str(path)) for _ in range(MAX_CONNECTIONS)]
    ends = await asyncio.gather(*(asyncio.wait_for(reader.read(), 10) for reader, _ in silent))
    assert set(ends) == {b""}
    for _, writer in silent:
        writer.close()
    await server.stop()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - a condition of the server, which has no event for it
            await asyncio.sleep(0.001)


async def test_what_a_killed_process_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    server = ControlServer(path, telling(STATUS))
    await server.start()
    assert await asyncio.to_thread(ask, path) == STATUS
    await server.stop()


async def test_a_living_dtun_is_left_alone(path: Path) -> None:
    second = ControlServer(path, {})
    with pytest.raises(UnavailableError, match="another dtun is running"):
        await second.start()
    await second.stop()
    assert await asyncio.to_thread(ask, path) == STATUS


async def test_a_file_in_the_way_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    path.write_text("precious")
    with pytest.raises(UnavailableError, match="is not a socket"):
        await ControlServer(path, {}).start()
    assert path.read_text() == "precious"


async def test_the_socket_of_a_successor_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    first = ControlServer(path, telling({"is": "first"}))
    await first.start()
    path.unlink()
    second = ControlServer(path, telling({"is": "second"}))
    await second.start()
    await first.stop()
    assert await asyncio.to_thread(ask, path) == {"is": "second"}
    await second.stop()


async def test_a_directory_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UnavailableError, match="cannot create the control socket"):
        await ControlServer(tmp_path / "file" / "a.sock", {}).start()

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(PermissionDeniedError, match="no permission to create the control socket"):
        await ControlServer(tmp_path / "b.sock", {}).start()


def test_who_asks_and_gets_no_sense(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
        with pytest.raises(UnavailableError, match="does not answer"):
            ask(path, timeout=0.05)
    with pytest.raises(UnavailableError, match="nothing listens"):
        ask(path)
    for answer, said in [
        (b'{"error": "?"}\n', "cannot understand the answer"),
        (b"[]\n", "cannot understand the answer"),
        (b"", "does not answer"),
        (b"\xff\n", "does not answer"),
        (b"[" * 100_000 + b"\n", "does not answer"),
        (b"9" * 5000 + b"\n", "does not answer"),
        (b'{"error": "no\\u001b[2J", "exit_code": 69}\n', r"no\?\[2J"),
    ]:
        monkeypatch.setattr(control, "_exchange", lambda *_, answer=answer: answer)
        with pytest.raises(DtunError, match=said):
            ask(path)


async def test_an_answer_that_drips_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    gone = asyncio.Event()

    async def drip(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while not writer.is_closing():
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.02)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        gone.set()

    async with await asyncio.start_unix_server(drip, str(path)):
        asking = asyncio.to_thread(ask, path, timeout=0.2)
        with pytest.raises(UnavailableError, match="does not answer"):
            await asyncio.wait_for(asking, 5)
        await asyncio.wait_for(gone.wait(), 5)


class Doing:
    """Commands of which one does what it is told, one refuses and one is broken."""

    def __init__(self) -> None:
        self.asked: list[Request] = []
        self.gate = asyncio.Event()

    async def obey(self, request: Request) -> Answer:
        self.asked.append(request)
        await self.gate.wait()
        return {"lines": ["done"]}

    async def refuse(self, request: Request) -> Answer:
        raise UnavailableError(f"there is no {request['id']}")

    async def fail(self, request: Request) -> Answer:
        raise RuntimeError(f"a bug, with {request}")

    @property
    def commands(self) -> dict[str, Command]:
        return {"obey": self.obey, "refuse": self.refuse, "fail": self.fail}


@pytest.fixture
async def doing(tmp_path: Path) -> AsyncIterator[tuple[Path, Doing]]:
    path, doing = tmp_path / "a.sock", Doing()
    server = ControlServer(path, doing.commands, timeout=0.2)
    await server.start()
    yield path, doing
    await server.stop()


async def test_a_command_gets_its_arguments_and_all_the_time_that_it_needs(doing: tuple[Path, Doing]) -> None:
    path, commands = doing
    answer = asyncio.create_task(asyncio.to_thread(ask, path, "obey", dry_run=True))
    await until(lambda: commands.asked == [{"command": "obey", "dry_run": True}])
    await asyncio.sleep(0.3)  # longer than the time in which a question must have been asked
    commands.gate.set()
    assert await answer == {"lines": ["done"]}


async def test_what_cannot_be_done_is_said_in_the_words_of_the_other_side(doing: tuple[Path, Doing]) -> None:
    path, _ = doing
    with pytest.raises(DtunError, match=r"^there is no x$") as refusal:
        await asyncio.to_thread(ask, path, "refuse", id="x")
    assert refusal.value.exit_code == UnavailableError.exit_code


async def test_a_bug_in_one_command_is_logged_and_the_next_one_is_answered(
    doing: tuple[Path, Doing], caplog: pytest.LogCaptureFixture
) -> None:
    path, commands = doing
    with pytest.raises(DtunError, match="internal error; see the log"):
        await asyncio.to_thread(ask, path, "fail")
    assert "a bug" in caplog.text
    commands.gate.set()
    assert await asyncio.to_thread(ask, path, "obey") == {"lines": ["done"]}


async def test_an_answer_without_end_is_not_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "MAX_ANSWER_BYTES", 1000)
    path = tmp_path / "a.sock"
    server = ControlServer(path, telling(STATUS))
    await server.start()
    with pytest.raises(DtunError, match="the answer is too long"):
        await asyncio.to_thread(ask, path)
    await server.stop()


async def test_the_group_may_use_the_socket_where_it_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may give files away")
    asked: list[str] = []

    def group(name: str) -> grp.struct_group:
        asked.append(name)
        return grp.struct_group((name, "x", 4242, []))

    monkeypatch.setattr("grp.getgrnam", group)
    path = tmp_path / "a.sock"
    server = ControlServer(path, {})
    await server.start()
    assert asked == [GROUP]
    assert path.stat().st_gid == 4242
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    await server.stop()


def test_the_installation_makes_the_group() -> None:
    made = (Path(__file__).parents[3] / "packaging" / "sysusers" / "dtun.conf").read_text()
    assert f"\ng {GROUP} -\n" in made
    assert f"\nm dtun {GROUP}\n" in made, "the service may give its socket to it"
    assert GROUP != keys.GROUP, "who may ask reads no key"


async def test_a_thousand_tunnels_are_told_in_a_tenth_of_a_second(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    tunnel = {f"value {number}": "x" * 20 for number in range(30)}
    server = ControlServer(path, telling({"tunnels": [tunnel] * 1000}))
    await server.start()
    times = []
    for _ in range(5):
        began = time.process_time()
        await asyncio.to_thread(ask, path)
        times.append(time.process_time() - began)
    await server.stop()
    assert min(times) < 0.1
