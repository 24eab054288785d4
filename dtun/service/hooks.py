"""Runs the administrator's hook commands: bounded in time and output, never fatal to the service.

A client may come and go as often as it likes, and its hooks run each time. So what they print is also bounded for each
client and minute, and for all clients together, as ids may be many.
"""

import asyncio
import errno
import logging
import os
import signal
import time
from asyncio.subprocess import DEVNULL, Process
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final

from dtun.pacing import RateLimiter
from dtun.session.log import SessionLog
from dtun.text import printable

logger = logging.getLogger("dtun.hook")

# For hooks that call ip, nft or resolvectl, if dtun was started without a PATH.
PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
LINE_MAX_BYTES: Final = 500
LINES_MAX: Final = 100
CLIENT_LINES: Final = 150
"""Lines a minute that are logged about the hooks of one client, after a first burst of as many."""
ALL_LINES: Final = 1000
"""The same for all clients together."""
MAX_CLIENTS: Final = 1024
"""Clients whose lines are counted apart; the one whose hook ran longest ago is forgotten."""
CHUNK_BYTES: Final = 1 << 16
TERM_GRACE: Final = 2.0
"""Seconds from SIGTERM to SIGKILL."""


class HookLogs:
    """The logs of hooks, each with the limits of its client. `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._all = RateLimiter(burst=ALL_LINES, per_seconds=60)
        self._limiters: OrderedDict[str, _Limiter] = OrderedDict()  # the one used last at the end

    def of(self, client: str | None, reason: str | None) -> SessionLog:
        """The log for a hook that runs for this client."""
        limiter = self._limiters.setdefault(client or "", _Limiter(self._all))
        self._limiters.move_to_end(client or "")
        if len(self._limiters) > MAX_CLIENTS:
            self._limiters.popitem(last=False)
        return SessionLog(logger, limiter=limiter, clock=self._clock, client=client, reason=reason)


class _Limiter(RateLimiter):
    """The limit of one client within that of all."""

    def __init__(self, limiter_of_all: RateLimiter) -> None:
        super().__init__(burst=CLIENT_LINES, per_seconds=60)
        self._of_all = limiter_of_all
        self._held_back = 0

    def allow(self, now: float) -> int | None:
        own = super().allow(now)
        if own is None:
            return None
        self._held_back += own
        if self._of_all.allow(now) is None:
            self._held_back += 1
            return None
        held_back, self._held_back = self._held_back, 0
        return held_back


_LOGS: Final = HookLogs()


async def run_hook(
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    timeout: float,  # noqa: ASYNC109 - the limit is the hook's, which is killed at its end
    what: str,
    logs: HookLogs = _LOGS,
) -> bool:
    """Run `command` without a shell and wait for its end. Returns whether it succeeded.

    `logs` bounds what is logged of all hooks.

    It gets `environment` and a PATH, nothing else, and an empty standard input. It leads a process group, which is
    killed after `timeout` seconds or when the caller is cancelled. Its output is logged line by line until it ends: a
    daemon that it leaves behind must redirect its own. Never raises because of the hook: one log line tells what is
    wrong with `what`.
    """
    log = logs.of(environment.get("ID"), environment.get("REASON"))
    if not command:
        log.error("%s has no command", what)
        return False
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    output = OutputLog(what, log)
    loop = asyncio.get_running_loop()
    try:
        try:
            # Our own pipe: asyncio would wait until every process that inherited its pipe has closed it.
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=DEVNULL,
                stdout=writing,
                stderr=writing,
                env={"PATH": os.environ.get("PATH", PATH), **environment},
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            log.error("%s cannot be run: %s", what, _why_not(command[0], error))  # noqa: TRY400 - one line
            return False
        finally:
            os.close(writing)
        loop.add_reader(reading, _read, reading, output)
        in_time = await _wait(process, timeout)
        _read(reading, output)
    finally:
        loop.remove_reader(reading)
        os.close(reading)
        output.close()
    if not in_time:
        log.error("%s was killed: %s did not end within %g s", what, command[0], timeout)
        return False
    return _log_result(process.returncode, command[0], what, log)


class OutputLog:
    """Logs the output of a hook: at most LINES_MAX lines of LINE_MAX_BYTES."""

    def __init__(self, what: str, log: SessionLog) -> None:
        self._what = what
        self._log = log
        self._rest = b""
        self._lines = 0

    def feed(self, data: bytes) -> None:
        """Process output as it arrives. Keeps at most one line of it."""
        *lines, rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._line(line)
        # One byte more than is logged, to see that the line is longer.
        self._rest = rest[: LINE_MAX_BYTES + 1]

    def close(self) -> None:
        """Log a last line without line end."""
        if self._rest:
            self._line(self._rest)
            self._rest = b""

    def _line(self, line: bytes) -> None:
        self._lines += 1
        if self._lines <= LINES_MAX:
            text = line[:LINE_MAX_BYTES].decode(errors="replace").rstrip()
            # No control characters: they could forge other lines or control a terminal.
            clean = printable(text, None)
            self._log.info("%s: %s%s", self._what, clean, " [...]" if len(line) > LINE_MAX_BYTES else "")
        elif self._lines == LINES_MAX + 1:
            self._log.warning("%s: more than %d lines; the rest is not logged", self._what, LINES_MAX)


def _read(descriptor: int, output: OutputLog) -> None:
    """Read what is in the pipe, up to CHUNK_BYTES: a hook that floods it must not block the event loop."""
    with suppress(BlockingIOError):
        data = os.read(descriptor, CHUNK_BYTES)
        if data:
            output.feed(data)
        else:
            asyncio.get_running_loop().remove_reader(descriptor)


async def _wait(process: Process, timeout: float) -> bool:  # noqa: ASYNC109 - see run_hook
    """Wait for the end; kill the group after `timeout`, which returns False, or when cancelled."""
    try:
        async with asyncio.timeout(timeout):
            await process.wait()
    except TimeoutError:
        await _kill_group(process)
        return False
    except asyncio.CancelledError:
        await _kill_group(process)
        raise
    return True


async def _kill_group(process: Process) -> None:
    """Send SIGTERM to the group, after TERM_GRACE SIGKILL; and reap the leader."""
    _signal_group(process, signal.SIGTERM)
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(TERM_GRACE):
                await process.wait()
    finally:
        # Even if the leader has ended: its children may have ignored SIGTERM.
        _signal_group(process, signal.SIGKILL)
    await process.wait()


def _signal_group(process: Process, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _log_result(status: int | None, command: str, what: str, log: SessionLog) -> bool:
    match status:
        case 0:
            log.debug("%s succeeded", what)
            return True
        case int() if status < 0:
            log.error("%s failed: %s was ended by %s", what, command, _signal_name(-status))
        case _:
            log.error("%s failed: %s exited with status %s", what, command, status)
    return False


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _why_not(command: str, error: OSError | ValueError) -> str:
    if isinstance(error, ValueError):
        return f"{command!r} or its environment contains a NUL character"
    match error.errno:
        case errno.ENOENT:
            return f"{command} does not exist, or the interpreter named in its first line does not"
        case errno.EACCES:
            return f"{command} is not executable; run chmod +x {command}"
        case errno.ENOEXEC:
            return f"{command} is not a program; does its first line begin with '#!'?"
    return f"{command}: {os.strerror(error.errno or 0).lower()}"
