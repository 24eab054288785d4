"""The control socket: how `dtun status` and the like ask a running dtun.

A Unix stream socket. One line of JSON each way, then it is closed:

    {"command": "status"}                   ->   {"role": "server", "tunnels": [...], ...}
    {"command": "reload", "dry_run": true}  ->   {"lines": ["...", ...], "failed": false}
    {"command": "kick", "id": "home"}       ->   {"lines": ["..."]}
    what cannot be done                     ->   {"error": "...", "exit_code": 69}
    anything else                           ->   {"error": "..."}

Whoever may write to the socket may do all of this: its owner, and the group `dtun` where there is one.
"""

import asyncio
import grp
import json
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from dtun.errors import DtunError, PermissionDeniedError, UnavailableError

log = logging.getLogger("dtun")

GROUP = "dtun"
MAX_REQUEST_BYTES = 4096
MAX_ANSWER_BYTES = 64 << 20
MAX_CONNECTIONS = 16
TIMEOUT = 5.0  # seconds, for one request, and for its answer to be taken

Request = Mapping[str, Any]
Answer = Mapping[str, object]
Command = Callable[[Request], Awaitable[Answer]]
"""Does what a request asks for. Raises DtunError with the reason if it cannot be done."""


class ControlServer:
    """Answers at `path` (mode 0660) with what the command of that name returns, until `stop`."""

    def __init__(self, path: Path, commands: Mapping[str, Command], *, timeout: float = TIMEOUT) -> None:
        self._path = path
        self._commands = commands
        self._timeout = timeout
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._inode: int | None = None

    async def start(self) -> None:
        """Listen. A socket that a killed process left behind is replaced.

        Raises:
            UnavailableError: another dtun is running here.
            PermissionDeniedError: the directory is not ours to write to.
        """
        try:
            self._path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            self._make_room()
            listener = self._bound()
        except PermissionError:
            message = (
                f"{self._path}: no right to make the control socket; start as root or set runtime_directory"
            )
            raise PermissionDeniedError(message) from None
        except OSError as error:
            raise UnavailableError(
                f"{self._path}: cannot make the control socket: {error.strerror or error}"
            ) from None
        self._server = await asyncio.start_unix_server(
            self._connected, sock=listener, limit=MAX_REQUEST_BYTES
        )

    def _make_room(self) -> None:
        if not self._path.is_socket():
            if self._path.exists():
                raise UnavailableError(f"{self._path}: is in the way of the control socket; remove it")
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            try:
                probe.connect(str(self._path))
            except ConnectionRefusedError:
                self._path.unlink()
                return
            except FileNotFoundError:
                return
            except BlockingIOError:
                pass  # its backlog is full: somebody is there
        raise UnavailableError(
            f"{self._path}: another dtun is running; stop it, or give each a runtime_directory"
        )

    def _bound(self) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # Nobody can connect before `listen`, so there is no moment with a wider mode.
            listener.bind(str(self._path))
            give_to_group(self._path)
            self._path.chmod(0o660)
            self._inode = self._path.stat().st_ino
            listener.setblocking(False)
        except OSError:
            listener.close()
            raise
        return listener

    async def stop(self) -> None:
        """Close and remove the socket. May be called twice, and without `start`."""
        if self._server is None:
            return
        self._server.close()
        self._server = None
        for task in tuple(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        # Only if it is still ours.
        with suppress(OSError):
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None or len(self._connections) >= MAX_CONNECTIONS:
            writer.transport.abort()
            return
        self._connections.add(task)
        try:
            async with asyncio.timeout(self._timeout):
                line = await _line(reader)
            # Not bounded here: a reload waits for hooks, which have limits of their own.
            answer = await self._answer(line)
            async with asyncio.timeout(self._timeout):
                writer.write(answer)
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (OSError, TimeoutError):
            pass  # whoever asked has gone, or does not read
        finally:
            writer.transport.abort()
            self._connections.discard(task)

    async def _answer(self, line: bytes) -> bytes:
        request = _request(line)
        command = self._commands.get(str(request.get("command")))
        answer: Answer
        if command is None:
            known = ", ".join(f'{{"command": "{name}"}}' for name in self._commands)
            answer = {"error": f"unknown request; send one of {known}"}
        else:
            try:
                answer = await command(request)
            except DtunError as error:
                answer = {"error": str(error), "exit_code": error.exit_code}
            except Exception:
                log.exception("internal error, please report it")
                answer = {"error": "internal error; look at the log of dtun", "exit_code": 1}
        text = json.dumps(answer, default=str).encode() + b"\n"
        if len(text) > MAX_ANSWER_BYTES:
            text = json.dumps({"error": "the answer is too long", "exit_code": 1}).encode() + b"\n"
        return text


def give_to_group(path: Path) -> None:
    """Let the group `dtun` use this file, where that group exists and we may give it away."""
    with suppress(KeyError, OSError):
        os.chown(path, -1, grp.getgrnam(GROUP).gr_gid)


def _request(line: bytes) -> Request:
    """The request in this line; an empty one for what is none."""
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return request if isinstance(request, dict) else {}


async def _line(reader: asyncio.StreamReader) -> bytes:
    """One line; what is longer than MAX_REQUEST_BYTES, or ends before its newline, is no request."""
    try:
        return await reader.readuntil(b"\n")
    except (asyncio.LimitOverrunError, asyncio.IncompleteReadError):
        return b""


def ask(
    path: Path, command: str = "status", *, timeout: float = TIMEOUT, **arguments: object
) -> dict[str, Any]:
    """What the dtun at the other end of `path` answers to this command. `timeout` in seconds.

    Raises:
        UnavailableError: no dtun is running there, or it does not answer.
        PermissionDeniedError: this user may not ask.
        DtunError: it cannot do that, and says why.
    """
    request = json.dumps({"command": command, **arguments}).encode() + b"\n"
    try:
        answer = json.loads(_exchange(path, request, timeout))
    except (FileNotFoundError, ConnectionRefusedError):
        raise UnavailableError(
            f"no dtun is running (nobody listens at {path}); start it, or give --socket"
        ) from None
    except PermissionError:
        raise PermissionDeniedError(
            f"{path}: no right to ask; run as root or as a member of its group"
        ) from None
    except (OSError, ValueError):
        raise UnavailableError(f"{path}: dtun does not answer; look at its log") from None
    if isinstance(answer, dict) and "error" in answer and "exit_code" in answer:
        raise RefusedError(str(answer["error"]), answer["exit_code"])
    if not isinstance(answer, dict) or "error" in answer:
        raise DtunError(f"{path}: the answer is not understood; are both the same version of dtun?")
    return answer


class RefusedError(DtunError):
    """The running dtun cannot do what it was asked for; the message and the exit code are its own."""

    def __init__(self, text: str, exit_code: object) -> None:
        super().__init__(text)
        self.exit_code = exit_code if isinstance(exit_code, int) and 0 < exit_code < 256 else 1  # type: ignore[misc]


def _exchange(path: Path, request: bytes, timeout: float) -> bytes:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout)
        connection.connect(os.fspath(path))
        connection.sendall(request)
        answer = bytearray()
        while len(answer) < MAX_ANSWER_BYTES and not answer.endswith(b"\n"):
            part = connection.recv(1 << 16)
            if not part:
                break
            answer += part
    return bytes(answer)
