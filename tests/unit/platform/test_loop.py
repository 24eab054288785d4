"""The direct loop: readers and writers work as in asyncio, and everything else still runs."""

import asyncio
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dtun.platform.linux.eventloop.loop import DirectLoop

LONG = 1 << 22
"""Bytes, more than a socket's buffers take."""


@pytest.fixture
def loop() -> Iterator[DirectLoop]:
    loop = DirectLoop()
    yield loop
    loop.close()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    with one, other:
        one.setblocking(False)
        other.setblocking(False)
        yield one, other


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - it is the loop's turns that are wanted
            await asyncio.sleep(0)


def test_a_reader_is_called_until_it_is_removed(
    loop: DirectLoop, pair: tuple[socket.socket, socket.socket]
) -> None:
    one, other = pair
    came: list[bytes] = []
    loop.add_reader(one, lambda size: came.append(one.recv(size)), 100)

    async def story() -> None:
        other.send(b"a")
        await until(lambda: came == [b"a"])
        assert loop.remove_reader(one)
        assert not loop.remove_reader(one)
        other.send(b"b")
        for _ in range(20):
            await asyncio.sleep(0)

    loop.run_until_complete(story())
    assert came == [b"a"]


def test_reader_and_writer_of_one_descriptor_come_and_go_on_their_own(
    loop: DirectLoop, pair: tuple[socket.socket, socket.socket]
) -> None:
    one, other = pair
    seen: list[str] = []

    async def story() -> None:
        loop.add_reader(one.fileno(), seen.append, "read")
        loop.add_writer(one.fileno(), seen.append, "write")
        await until(lambda: "write" in seen)
        assert "read" not in seen
        loop.remove_writer(one)
        seen.clear()
        other.send(b"x")
        await until(lambda: "read" in seen)
        assert "write" not in seen
        # Another callback takes the place of the one before.
        loop.add_reader(one, seen.append, "read by another")
        seen.clear()
        await until(lambda: "read by another" in seen)
        assert "read" not in seen
        loop.remove_reader(one)

    loop.run_until_complete(story())


def test_a_hang_up_is_reported_to_the_reader(loop: DirectLoop) -> None:
    """Of a pipe it is an event of its own, beside that there is something to read."""
    reading, writing = os.pipe()
    seen: list[bytes] = []
    loop.add_reader(reading, lambda: seen.append(os.read(reading, 1)))
    os.close(writing)
    loop.run_until_complete(until(lambda: b"" in seen))
    loop.remove_reader(reading)
    os.close(reading)


def test_one_turn_serves_all_that_are_ready(
    loop: DirectLoop, pair: tuple[socket.socket, socket.socket]
) -> None:
    """Also what asyncio itself waits for, here a socket that it reads, whatever else comes before or after it."""
    one, other = pair
    pipes = [os.pipe() for _ in range(2)]
    served: list[object] = []
    for reading, writing in pipes:
        loop.add_reader(reading, served.append, reading)
        os.write(writing, b"x")
    other.send(b"x")
    turns = 0

    async def story() -> None:
        nonlocal turns
        received = asyncio.create_task(loop.sock_recv(one, 1))
        other.send(b"y")
        while not received.done():
            turns += 1
            await asyncio.sleep(0)

    loop.run_until_complete(story())
    assert turns <= 3
    assert {reading for reading, _ in pipes} == set(served)
    for reading, writing in pipes:
        loop.remove_reader(reading)
        os.close(reading)
        os.close(writing)


def test_an_exception_in_one_callback_is_reported_and_the_others_go_on(loop: DirectLoop) -> None:
    reports: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _loop, context: reports.append(context))
    (one, _keep), (two, _keep2) = pipes = os.pipe(), os.pipe()
    served: list[int] = []

    def fails() -> None:
        os.read(one, 1)
        raise ValueError("a bug")

    loop.add_reader(one, fails)
    loop.add_reader(two, lambda: served.append(len(os.read(two, 1))))
    for _, writing in pipes:
        os.write(writing, b"x")
    loop.run_until_complete(until(lambda: bool(reports and served)))
    assert [str(report["exception"]) for report in reports] == ["a bug"]
    for ends in pipes:
        for end in ends:
            loop.remove_reader(end)
            os.close(end)


def test_a_callback_that_removes_another_prevents_its_call(loop: DirectLoop) -> None:
    pipes = [os.pipe() for _ in range(2)]
    called: list[int] = []

    def first_of(number: int) -> None:
        called.append(number)
        for reading, _ in pipes:
            loop.remove_reader(reading)

    for number, (reading, writing) in enumerate(pipes):
        os.write(writing, b"x")
        loop.add_reader(reading, first_of, number)
    loop.run_until_complete(until(lambda: bool(called)))
    assert len(called) == 1
    for ends in pipes:
        for end in ends:
            os.close(end)


def test_a_number_that_was_closed_without_a_word_can_be_watched_again(loop: DirectLoop) -> None:
    reading, writing = os.pipe()
    loop.add_reader(reading, lambda: None)
    os.close(reading)
    again = os.dup(writing)  # takes the lowest number that is free
    assert again == reading
    called: list[bool] = []
    loop.add_writer(again, called.append, True)
    loop.run_until_complete(until(lambda: bool(called)))
    loop.remove_writer(again)
    loop.remove_reader(again)
    os.close(again)
    os.close(writing)


@pytest.mark.parametrize("way", ["read", "write"])
def test_a_socket_that_asyncio_has_waited_for_is_forgotten_by_then(loop: DirectLoop, way: str) -> None:
    """Otherwise the next one with its number would be waited for in vain."""

    async def story() -> None:
        numbers = []
        for _ in range(2):
            one, other = socket.socketpair()
            with one, other:
                numbers.append(one.fileno())
                one.setblocking(False)
                other.settimeout(10)
                waiting: asyncio.Task[object]
                if way == "read":
                    waiting = asyncio.create_task(loop.sock_recv(one, 1))
                    await asyncio.sleep(0)
                    other.send(b"x")
                else:
                    waiting = asyncio.create_task(loop.sock_sendall(one, bytes(LONG)))
                    await asyncio.sleep(0)
                    came = 0
                    while came < LONG:
                        came += len(await asyncio.to_thread(other.recv, LONG))
                await asyncio.wait_for(waiting, 10)
        assert numbers[0] == numbers[1], "the descriptor was not reused, so this tested nothing"

    loop.run_until_complete(story())


def test_what_asyncio_waits_for_itself_still_works(loop: DirectLoop) -> None:
    """Streams, threads, timers and processes beside a reader that always has something to do."""
    reading, writing = os.pipe()
    os.write(writing, b"never read")
    turns: list[None] = []
    loop.add_reader(reading, turns.append, None)

    async def story() -> None:
        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.readline())
            writer.close()

        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        async with server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(b"hello\n")
            assert await reader.read() == b"hello\n"
            writer.close()
        assert await asyncio.to_thread(lambda: 42) == 42
        await asyncio.sleep(0.01)
        process = await asyncio.create_subprocess_exec("true")
        assert await process.wait() == 0

    loop.run_until_complete(asyncio.wait_for(story(), 20))
    assert len(turns) > 5
    loop.remove_reader(reading)
    os.close(reading)
    os.close(writing)


def test_a_timer_is_not_kept_waiting_by_readers_that_are_always_ready(
    loop: DirectLoop, pair: tuple[socket.socket, socket.socket]
) -> None:
    one, other = pair
    other.send(b"never read")
    calls: list[None] = []
    loop.add_reader(one, calls.append, None)

    async def story() -> None:
        async with asyncio.timeout(10):
            await asyncio.sleep(0.05)

    loop.run_until_complete(story())
    assert len(calls) > 1, "and the other way round"


@pytest.mark.parametrize("way", ["call_soon", "call_later", "stop"])
def test_what_a_reader_asks_of_the_loop_is_done_at_once(
    way: str, loop: DirectLoop, pair: tuple[socket.socket, socket.socket]
) -> None:
    """Though nothing else happens, and no timer was due before."""
    one, other = pair
    done: list[str] = []

    def finish() -> None:
        done.append("asked for")
        loop.stop()

    def ask() -> None:
        one.recv(1)
        if way == "call_soon":
            loop.call_soon(finish)
        elif way == "call_later":
            loop.call_later(0.01, finish)
        else:
            finish()

    loop.add_reader(one, ask)
    other.send(b"a")
    begin = loop.time()
    guard = loop.call_later(10, loop.stop)
    loop.run_forever()
    guard.cancel()
    assert done == ["asked for"]
    assert loop.time() - begin < 5
