"""The control socket: how `dtun status` asks a running dtun.

A Unix stream socket. One line of JSON each way, then it is closed:

    {"command": "status"}       ->   {"role": "server", "tunnels": [...], ...}
    anything else               ->   {"error": "..."}
"""

import asyncio
import json
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from dtun.errors import DtunError, PermissionDeniedError, UnavailableError

MAX_REQUEST_BYTES = 4096
MAX_ANSWER_BYTES = 64 << 20
MAX_CONNECTIONS = 16
TIMEOUT = 5.0  # seconds, for one request and its answer


class ControlServer:
    """Answers at `path` (mode 0660) with what `status` returns, until `stop`."""

    def __init__(
        self, path: Path, status: Callable[[], dict[str, object]], *, timeout: float = TIMEOUT
    ) -> None:
        self._path = path
        self._status = status
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
                writer.write(self._answer(await _line(reader)))
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (OSError, TimeoutError):
            pass  # whoever asked has gone, or does not read
        finally:
            writer.transport.abort()
            self._connections.discard(task)

    def _answer(self, line: bytes) -> bytes:
        try:
            request = json.loads(line)
            known = isinstance(request, dict) and request.get("command") == "status"
        except (ValueError, RecursionError):
            known = False
        answer = self._status() if known else {"error": 'unknown request; send {"command": "status"}'}
        return json.dumps(answer, default=str).encode() + b"\n"


async def _line(reader: asyncio.StreamReader) -> bytes:
    """One line; what is longer than MAX_REQUEST_BYTES, or ends before its newline, is no request."""
    try:
        return await reader.readuntil(b"\n")
    except (asyncio.LimitOverrunError, asyncio.IncompleteReadError):
        return b""


def ask(path: Path, command: str = "status", *, timeout: float = TIMEOUT) -> dict[str, Any]:
    """What the dtun at the other end of `path` answers.

    Raises:
        UnavailableError: no dtun is running there, or it does not answer.
        PermissionDeniedError: this user may not ask.
    """
    try:
        answer = json.loads(_exchange(path, json.dumps({"command": command}).encode() + b"\n", timeout))
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
    if not isinstance(answer, dict) or "error" in answer:
        raise DtunError(f"{path}: the answer is not understood; are both the same version of dtun?")
    return answer


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
