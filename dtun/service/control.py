"""The control socket, through which `dtun status` and other commands reach a running dtun.

A Unix stream socket. One line of JSON each way, then the connection is closed:

    {"command": "status"}                   ->   {"role": "server", "tunnels": [...], ...}
    {"command": "reload", "dry_run": true}  ->   {"lines": ["...", ...], "failed": false}
    {"command": "kick", "id": "home"}       ->   {"lines": ["..."]}
    a command that fails                    ->   {"error": "...", "exit_code": 69}
    anything else                           ->   {"error": "..."}

Whoever may write to the socket may use every command: its owner, and the group `dtun-admin` if it exists. That is not
the group `dtun`, which may read the service's files and therefore its keys.
"""

import asyncio
import grp
import json
import logging
import os
import socket
import struct
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from dtun.errors import DtunError, PermissionDeniedError, UnavailableError
from dtun.text import printable

log = logging.getLogger("dtun")

GROUP = "dtun-admin"
MAX_REQUEST_BYTES = 4096
MAX_ANSWER_BYTES = 64 << 20
MAX_CONNECTIONS = 16
"""Connections that wait at the same time; and MAX_BUSY commands that are being carried out."""
MAX_BUSY = 16
BUSY: Final = "too many commands are being carried out at once; try again later"
TIMEOUT = 5.0
"""Seconds for a request to arrive, for its answer to be read, and for the answer to arrive at who has asked."""

ASK_PERMISSION: Final = f"ask with sudo, or join the group {GROUP} (usermod -a -G {GROUP} NAME)"

# struct ucred: pid, uid, gid (unix(7)). macOS has another way, and there everybody counts as one user.
_PEER_CREDENTIALS: Final = getattr(socket, "SO_PEERCRED", None)
_UCRED: Final = struct.Struct("3i")

Request = Mapping[str, Any]
Answer = Mapping[str, object]
Command = Callable[[Request], Awaitable[Answer]]
"""Carries out a request. Raises DtunError with the reason if it cannot."""


@dataclass(eq=False, slots=True)
class _Connection:
    """One connection. `busy`: its command is being carried out, so it may not be ended for another one's sake."""

    task: "asyncio.Task[None]"
    user: int
    busy: bool = False


class ControlServer:
    """Listens at `path` (mode 0660) and answers with what the requested command returns, until `stop`."""

    def __init__(self, path: Path, commands: Mapping[str, Command], *, timeout: float = TIMEOUT) -> None:
        self._path = path
        self._commands = commands
        self._timeout = timeout
        self._server: asyncio.Server | None = None
        self._connections: list[_Connection] = []  # the oldest first
        self._inode: int | None = None

    async def start(self) -> None:
        """Listen. The socket of a killed process is replaced.

        Raises:
            UnavailableError: another dtun uses this path, or the socket cannot be created.
            PermissionDeniedError: this process may not write to the directory.
        """
        try:
            self._path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            self._remove_stale_socket()
            listener = self._bind()
        except PermissionError:
            raise PermissionDeniedError(
                f"{self._path}: no permission to create the control socket; start as root or set runtime_directory"
            ) from None
        except OSError as error:
            raise UnavailableError(
                f"{self._path}: cannot create the control socket: {error.strerror or error}"
            ) from None
        self._server = await asyncio.start_unix_server(
            self._connected, sock=listener, limit=MAX_REQUEST_BYTES
        )

    def _remove_stale_socket(self) -> None:
        if not self._path.is_socket():
            if self._path.exists():
                raise UnavailableError(
                    f"{self._path}: is not a socket, but has the name of the control socket; remove it"
                )
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
                pass  # its backlog is full: it is in use
        raise UnavailableError(
            f"{self._path}: another dtun is running; stop it, or give each a runtime_directory"
        )

    def _bind(self) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # The umask, because chmod follows links: the directory belongs to the service, and this may be root.
            mask = os.umask(0o117)
            try:
                listener.bind(str(self._path))
            finally:
                os.umask(mask)
            give_to_group(self._path)
            self._inode = self._path.lstat().st_ino
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
        tasks = [connection.task for connection in self._connections]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # Unless another process has replaced it.
        with suppress(OSError):
            if self._path.lstat().st_ino == self._inode:
                self._path.unlink()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - asyncio calls this in a task
        self._make_room()
        connection = _Connection(task, _user(writer))
        self._connections.append(connection)
        try:
            async with asyncio.timeout(self._timeout):
                line = await _line(reader)
            if sum(other.busy for other in self._connections) >= MAX_BUSY:
                answer = _encoded({"error": BUSY, "exit_code": UnavailableError.exit_code})
            else:
                connection.busy = True
                # Without a timeout: a reload waits for hooks, which have their own.
                answer = await self._answer(line)
                connection.busy = False
            async with asyncio.timeout(self._timeout):
                writer.write(answer)
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (OSError, TimeoutError):
            pass  # the client is gone, or does not read
        finally:
            writer.transport.abort()
            if connection in self._connections:
                self._connections.remove(connection)

    def _make_room(self) -> None:
        """Keep the number of connections that wait (for their request, or for somebody to read the answer) bounded.

        The user with the most of them loses the oldest. A command sends its request at once and reads the answer, so
        its own connection hardly ever waits.
        """
        waiting = [connection for connection in self._connections if not connection.busy]
        if len(waiting) >= MAX_CONNECTIONS:
            user, _ = Counter(connection.user for connection in waiting).most_common(1)[0]
            loser = next(connection for connection in waiting if connection.user == user)
            self._connections.remove(loser)
            loser.task.cancel()

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
            except MemoryError:
                raise
            except Exception:
                log.exception("internal error, please report it")
                answer = {"error": "internal error; see the log of dtun", "exit_code": 1}
        text = _encoded(answer)
        if len(text) > MAX_ANSWER_BYTES:
            text = _encoded({"error": "the answer is too long", "exit_code": 1})
        return text


def _encoded(answer: Answer) -> bytes:
    return json.dumps(answer, default=str).encode() + b"\n"


def _user(writer: asyncio.StreamWriter) -> int:
    """The user at the other end; 0 where that cannot be found out."""
    sock = writer.get_extra_info("socket")
    if _PEER_CREDENTIALS is None:
        return 0
    try:
        _, user, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, _PEER_CREDENTIALS, _UCRED.size))
    except OSError:
        return 0
    return int(user)


def give_to_group(path: Path) -> None:
    """Give this file to the group `dtun-admin`, if that exists and this process is a member or root."""
    with suppress(KeyError, OSError):
        os.chown(path, -1, grp.getgrnam(GROUP).gr_gid, follow_symlinks=False)


def _request(line: bytes) -> Request:
    """The request in this line; empty if it is not one."""
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return request if isinstance(request, dict) else {}


async def _line(reader: asyncio.StreamReader) -> bytes:
    """One line; b"" if it is longer than MAX_REQUEST_BYTES or has no newline."""
    try:
        return await reader.readuntil(b"\n")
    except (asyncio.LimitOverrunError, asyncio.IncompleteReadError):
        return b""


def ask(
    path: Path, command: str = "status", *, timeout: float = TIMEOUT, **arguments: object
) -> dict[str, Any]:
    """Send this command to the dtun that listens at `path`; returns its answer. `timeout` in seconds, for all of it.

    The answer is what another process says: its shape is to be checked, and its text to be made printable.

    Raises:
        UnavailableError: no dtun is running there, or it does not answer.
        PermissionDeniedError: this user may not use the socket.
        DtunError: the command failed, for the reason in the message.
    """
    request = json.dumps({"command": command, **arguments}).encode() + b"\n"
    try:
        answer = json.loads(_exchange(path, request, timeout))
    except (FileNotFoundError, ConnectionRefusedError):
        raise UnavailableError(
            f"no dtun is running (nothing listens at {path}); start it, or set --socket"
        ) from None
    except PermissionError:
        raise PermissionDeniedError(
            f"{path}: this user may not ask the running dtun; {ASK_PERMISSION}"
        ) from None
    except (OSError, ValueError, RecursionError):
        raise UnavailableError(f"{path}: dtun does not answer; see its log") from None
    if isinstance(answer, dict) and "error" in answer and "exit_code" in answer:
        raise RefusedError(str(answer["error"]), answer["exit_code"])
    if not isinstance(answer, dict) or "error" in answer:
        raise DtunError(f"{path}: cannot understand the answer; is the running dtun another version?")
    return answer


class RefusedError(DtunError):
    """The running dtun refused a command; message and exit code are its own."""

    def __init__(self, text: str, exit_code: object) -> None:
        super().__init__(printable(text, None, keep="\n"))
        self.exit_code = exit_code if isinstance(exit_code, int) and 0 < exit_code < 256 else 1  # type: ignore[misc]


def _exchange(path: Path, request: bytes, timeout: float) -> bytes:
    deadline = time.monotonic() + timeout
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout)
        connection.connect(os.fspath(path))
        connection.sendall(request)
        answer = bytearray()
        while len(answer) < MAX_ANSWER_BYTES and not answer.endswith(b"\n"):
            # Not the same time for each part: they may come one byte at a time.
            connection.settimeout(max(deadline - time.monotonic(), 0.001))
            part = connection.recv(1 << 16)
            if not part:
                break
            answer += part
    return bytes(answer)
