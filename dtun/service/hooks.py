"""Runs the administrator's hook commands: bounded in time and output, never fatal to the service."""

import asyncio
import errno
import logging
import os
import signal
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final

from dtun.session.log import SessionLog
from dtun.text import printable

logger = logging.getLogger("dtun.hook")

# Where hooks find ip, nft or resolvectl when dtun itself was started without a PATH.
PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
LINE_MAX_BYTES: Final = 500
LINES_MAX: Final = 100
CHUNK_BYTES: Final = 1 << 16
# Seconds from SIGTERM to SIGKILL.
TERM_GRACE: Final = 2.0


async def run_hook(
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    timeout: float,  # noqa: ASYNC109 - the limit is the hook's, which is killed at its end
    what: str,
) -> bool:
    """Run `command` without a shell and wait for it; whether it succeeded.

    It gets `environment` and a PATH, nothing else, and an empty standard input. It leads a process group,
    all of which is killed after `timeout` seconds or when the caller is cancelled. What it prints is
    logged, a line at a time, until it ends: a daemon that it leaves behind has to redirect its output.
    Never raises for what the hook is or does: one line of the log says what was wrong with `what`.
    """
    log = SessionLog(logger, client=environment.get("ID"), reason=environment.get("REASON"))
    if not command:
        log.error("%s has no command", what)
        return False
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    output = OutputLog(what, log)
    loop = asyncio.get_running_loop()
    try:
        try:
            # Our own pipe: asyncio's would make us wait for everybody who inherited it, not just the hook.
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
    return _judge(process.returncode, command[0], what, log)


class OutputLog:
    """Logs what a hook prints: so many lines of such a length, and then that there was more."""

    def __init__(self, what: str, log: SessionLog) -> None:
        self._what = what
        self._log = log
        self._rest = b""
        self._lines = 0

    def feed(self, data: bytes) -> None:
        """Take in output as it comes. Keeps no more of it than one line's length."""
        *lines, rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._line(line)
        # One byte more than is shown, to see that something is missing.
        self._rest = rest[: LINE_MAX_BYTES + 1]

    def close(self) -> None:
        """Log a last line that had no end."""
        if self._rest:
            self._line(self._rest)
            self._rest = b""

    def _line(self, line: bytes) -> None:
        self._lines += 1
        if self._lines <= LINES_MAX:
            text = line[:LINE_MAX_BYTES].decode(errors="replace").rstrip()
            # No control characters: they could fake other lines or dress up a terminal.
            clean = printable(text, None)
            self._log.info("%s: %s%s", self._what, clean, " [...]" if len(line) > LINE_MAX_BYTES else "")
        elif self._lines == LINES_MAX + 1:
            self._log.warning("%s: more than %d lines, the others are left out", self._what, LINES_MAX)


def _read(descriptor: int, output: OutputLog) -> None:
    """What is in the pipe now. A bounded amount: a hook that floods it must not hold up the event loop."""
    with suppress(BlockingIOError):
        data = os.read(descriptor, CHUNK_BYTES)
        if data:
            output.feed(data)
        else:
            asyncio.get_running_loop().remove_reader(descriptor)


async def _wait(process: Process, timeout: float) -> bool:  # noqa: ASYNC109 - see run_hook
    """Wait for the end; False if it had to be forced. Cancelled, it forces the end, too."""
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
    """SIGTERM for everybody in the group, a while to tidy up, SIGKILL for who is left; and no zombie."""
    _signal_group(process, signal.SIGTERM)
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(TERM_GRACE):
                await process.wait()
    finally:
        # Also when the leader has gone: its children may have ignored the first.
        _signal_group(process, signal.SIGKILL)
    await process.wait()


def _signal_group(process: Process, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _judge(status: int | None, command: str, what: str, log: SessionLog) -> bool:
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
        return f"{command!r} or its environment holds a NUL character"
    match error.errno:
        case errno.ENOENT:
            return f"{command} does not exist, or the interpreter named in its first line does not"
        case errno.EACCES:
            return f"{command} is not executable; 'chmod +x' makes it so"
        case errno.ENOEXEC:
            return f"{command} is not a program; does its first line begin with '#!'?"
    return f"{command}: {os.strerror(error.errno or 0).lower()}"
