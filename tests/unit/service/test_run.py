"""What the service manager is told, and how a service ends that has failed: with a pause before it starts again."""

import asyncio
import contextlib
import os
import subprocess
import sys

import pytest

from dtun.config import Config
from dtun.errors import ConfigError, DtunError, PermissionDeniedError, UnavailableError
from dtun.service import run, systemd


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    found: list[float] = []
    monkeypatch.setattr("time.sleep", found.append)
    return found


async def _failing(error: Exception) -> int:
    raise error


@pytest.mark.parametrize(
    "error", [UnavailableError("UDP port 443 is taken"), DtunError("x"), RuntimeError("a bug")]
)
def test_what_may_pass_is_told_to_the_manager_and_followed_by_a_pause(
    error: Exception, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    def hear(text: str) -> bool:
        told.append(text)
        return True

    monkeypatch.setattr(systemd, "notify_status", hear)
    with pytest.raises(type(error)):
        run.run_loop(_failing(error))
    assert told == [f"has failed: {error}"]
    assert pauses == [run.RESTART_PAUSE]


@pytest.mark.parametrize("error", [ConfigError("x"), PermissionDeniedError("x")])
def test_what_takes_a_person_ends_at_once(
    error: Exception, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(systemd, "notify_status", lambda _: True)
    with pytest.raises(type(error)):
        run.run_loop(_failing(error))
    assert pauses == []


def test_a_person_at_a_terminal_does_not_wait(pauses: list[float]) -> None:
    with pytest.raises(UnavailableError):
        run.run_loop(_failing(UnavailableError("x")))
    assert pauses == []


class Working:
    """A role whose data plane can be stopped."""

    is_stalled = False

    async def start(self) -> None: ...

    async def run(self) -> None: ...

    async def stop(self) -> None: ...

    async def suspend(self) -> None: ...

    async def reload(self, config: Config, *, dry_run: bool) -> list[str]:
        raise NotImplementedError

    def status(self) -> dict[str, object]:
        return {}

    def summary(self) -> str:
        return "1 of 1 clients connected"

    def stalled(self) -> bool:
        return self.is_stalled


async def test_the_watchdog_is_fed_while_the_data_plane_moves(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[str] = []
    looked = asyncio.Event()

    def hear(*assignments: str) -> bool:
        told.extend(assignments)
        looked.set()
        return True

    role = Working()
    monkeypatch.setattr(systemd, "notify", hear)
    monkeypatch.setattr(systemd, "watchdog_interval", lambda: 0.001)
    task = asyncio.create_task(run.report(role, role.summary))
    while "WATCHDOG=1" not in told:
        looked.clear()
        await asyncio.wait_for(looked.wait(), 10)
    assert told[0] == "STATUS=1 of 1 clients connected"
    role.is_stalled = True
    async with asyncio.timeout(10):
        while "nothing moves them" not in caplog.text:  # noqa: ASYNC110 - nobody tells when it is logged
            await asyncio.sleep(0.001)
    told.clear()
    await asyncio.sleep(0.05)
    assert told == []
    assert caplog.text.count("nothing moves them") == 1
    looked.clear()
    role.is_stalled = False
    await asyncio.wait_for(looked.wait(), 10)
    assert told[0] == "WATCHDOG=1"
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


WITHOUT_MEMORY = """
import asyncio, os, sys
from dtun.platform import event_loop
from dtun.service import run
from dtun.session.tasks import Tasks

def fail(*_):
    raise MemoryError

async def in_a_task():
    fail()

async def main():
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(run.on_internal_error)
    read_end, write_end = os.pipe()
    os.write(write_end, b"x")
    {how}
    await asyncio.sleep(600)
    print("went on")

asyncio.Runner(loop_factory=event_loop).run(main())
"""


@pytest.mark.parametrize(
    "how", ["loop.add_reader(read_end, fail)", "loop.call_soon(fail)", "Tasks(loop).spawn(in_a_task())"]
)
def test_without_memory_the_process_ends_at_once(how: str) -> None:
    """As if killed, so that its successor has the sessions."""
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT_MEMORY.format(how=how)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ended.returncode == os.EX_OSERR, ended.stderr
    assert ended.stderr == "<2>dtun: there is no memory left; ends, to be started again with its sessions\n"
