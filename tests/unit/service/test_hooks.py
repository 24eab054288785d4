"""What a hook sees, what is said of it, and that nothing of it is left."""

import asyncio
import logging
import os
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from dtun.service import hooks
from dtun.service.hooks import (
    ALL_LINES,
    CLIENT_LINES,
    LINE_MAX_BYTES,
    LINES_MAX,
    MAX_CLIENTS,
    HookLogs,
    OutputLog,
    run_hook,
)
from dtun.session.log import SessionLog

Script = Callable[[str], str]
LOG = SessionLog(hooks.logger)


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """Write an executable shell script, return its path."""

    def write(body: str) -> str:
        path = tmp_path / "hook"
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
        return str(path)

    return write


@pytest.fixture(autouse=True)
def everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="dtun.hook")


async def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        await asyncio.sleep(0.01)


def exists(pid: int) -> bool:
    """Whether there is such a process, be it a zombie."""
    return Path(f"/proc/{pid}").exists()


def is_alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


async def test_the_log_tells_whose_hook_it_was_and_why_it_ran(
    script: Script, caplog: pytest.LogCaptureFixture
) -> None:
    await run_hook(
        [script("echo hello; exit 3")], {"ID": "home", "REASON": "timeout"}, timeout=10, what="hook"
    )
    assert len(caplog.records) == 2
    for record in caplog.records:
        assert (vars(record)["client"], vars(record)["reason"]) == ("home", "timeout")


async def test_hooks_of_a_client_that_comes_and_goes_do_not_fill_the_log(
    script: Script, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="dtun.hook")
    now = 0.0
    logs = HookLogs(clock=lambda: now)
    talking = script("i=0; while [ $i -lt 60 ]; do echo line; i=$((i + 1)); done; exit 1")
    for _ in range(4):
        await run_hook([talking], {"ID": "home"}, timeout=10, what="hook", logs=logs)
    assert len(caplog.records) == CLIENT_LINES
    await run_hook([talking], {"ID": "office"}, timeout=10, what="hook", logs=logs)
    assert len(caplog.records) == CLIENT_LINES + 61, "another client's hook is not concerned"
    now = 30.0
    await run_hook(["/none"], {"ID": "home"}, timeout=10, what="hook", logs=logs)
    assert caplog.messages[-1].endswith(f"(and {4 * 61 - CLIENT_LINES} more like this)")


def test_many_clients_together_do_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    logs = HookLogs(clock=lambda: 0.0)
    for number in range(2 * MAX_CLIENTS):
        logs.of(f"client {number}", None).info("line")
    assert len(caplog.records) == ALL_LINES


async def test_a_hook_sees_the_given_variables_a_path_and_nothing_else(
    script: Script, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DTUN_TEST_SECRET", "not for hooks")
    assert await run_hook([script("/usr/bin/env")], {"TUN": "dtun-demo"}, timeout=10, what="up hook")
    variables = {message.removeprefix("up hook: ").split("=")[0] for message in caplog.messages}
    # The shell sets PWD, SHLVL and _ itself.
    assert variables - {"PWD", "SHLVL", "_", "OLDPWD", "up hook succeeded"} == {"TUN", "PATH"}


async def test_arguments_are_passed_as_they_are_without_a_shell(
    script: Script, caplog: pytest.LogCaptureFixture
) -> None:
    assert await run_hook([script('echo "<$1>"'), "$(id); * two"], {}, timeout=10, what="hook")
    assert "hook: <$(id); * two>" in caplog.messages


async def test_standard_input_is_empty(script: Script, caplog: pytest.LogCaptureFixture) -> None:
    assert await run_hook([script("cat; echo read all")], {}, timeout=10, what="hook")
    assert caplog.messages[0] == "hook: read all"


async def test_both_outputs_are_logged_by_line(script: Script, caplog: pytest.LogCaptureFixture) -> None:
    assert await run_hook([script("echo one; echo two >&2; printf three")], {}, timeout=10, what="hook")
    assert caplog.messages == ["hook: one", "hook: two", "hook: three", "hook succeeded"]


async def test_the_exit_status_is_said(script: Script, caplog: pytest.LogCaptureFixture) -> None:
    path = script("exit 3")
    assert not await run_hook([path], {}, timeout=10, what="down hook")
    assert caplog.messages == [f"down hook failed: {path} exited with status 3"]


async def test_the_signal_is_said(script: Script, caplog: pytest.LogCaptureFixture) -> None:
    path = script("kill -SEGV $$")
    assert not await run_hook([path], {}, timeout=10, what="hook")
    assert caplog.messages == [f"hook failed: {path} was ended by SIGSEGV"]


@pytest.mark.parametrize(
    ("mode", "content", "reason"),
    [
        (None, "", "does not exist"),
        (0o644, "#!/bin/sh\n", "is not executable"),
        (0o755, "#!/does/not/exist\n", "interpreter"),
        (0o755, "\x7fELF nonsense", "is not a program"),
    ],
)
async def test_a_file_that_cannot_be_run_is_one_clear_line(
    mode: int | None, content: str, reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "hook"
    if mode is not None:
        path.write_text(content)
        path.chmod(mode)
    assert not await run_hook([str(path)], {}, timeout=10, what="up hook")
    (message,) = caplog.messages
    assert message.startswith("up hook cannot be run: ")
    assert str(path) in message
    assert reason in message


@pytest.mark.parametrize("command", [[], ["a\0b"]])
async def test_a_command_that_is_none_is_one_clear_line(
    command: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert not await run_hook(command, {}, timeout=10, what="hook")
    assert len(caplog.messages) == 1


async def test_a_slow_hook_is_killed_with_its_children(
    script: Script, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hooks, "TERM_GRACE", 0.1)
    pids = tmp_path / "pids"
    # The shell and its child ignore SIGTERM: only SIGKILL ends them.
    path = script(f"trap '' TERM; sleep 600 & echo $$ $! >{pids}.new; mv {pids}.new {pids}; wait; sleep 600")
    assert not await run_hook([path], {}, timeout=1, what="up hook")
    assert caplog.messages == [f"up hook was killed: {path} did not end within 1 s"]
    for pid in map(int, pids.read_text().split()):
        await wait_for(lambda pid=pid: not is_alive(pid), f"the end of {pid}")  # type: ignore[misc]


async def test_a_slow_hook_may_tidy_up(script: Script, caplog: pytest.LogCaptureFixture) -> None:
    path = script("trap 'echo tidy; exit 0' TERM; echo ready; while :; do sleep 0.05; done")
    assert not await run_hook([path], {}, timeout=1, what="hook")
    assert "hook: tidy" in caplog.messages


async def test_cancelling_ends_the_hook_and_its_children(script: Script, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    path = script(f"sleep 600 & echo $$ $! >{pids}.new; mv {pids}.new {pids}; wait")
    running = asyncio.create_task(run_hook([path], {}, timeout=600, what="hook"))
    await wait_for(pids.exists, "the hook to start")
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    leader, child = map(int, pids.read_text().split())
    assert not exists(leader), "a zombie is left"
    await wait_for(lambda: not is_alive(child), "the end of the child")


async def test_a_hook_may_leave_a_daemon_behind_without_holding_us_up(script: Script, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    started = time.monotonic()
    # The daemon inherits the hook's output.
    assert await run_hook([script(f"sleep 600 & echo $! >{pid}")], {}, timeout=60, what="hook")
    assert time.monotonic() - started < 30
    daemon = int(pid.read_text())
    assert is_alive(daemon)
    os.kill(daemon, 9)


async def test_a_flood_of_output_is_cut_short(script: Script, caplog: pytest.LogCaptureFixture) -> None:
    path = script("i=0; while [ $i -lt 5000 ]; do echo line $i; i=$((i+1)); done; exit 0")
    assert await run_hook([path], {}, timeout=30, what="hook")
    assert caplog.messages[LINES_MAX - 1] == f"hook: line {LINES_MAX - 1}"
    assert caplog.messages[LINES_MAX:] == [
        f"hook: more than {LINES_MAX} lines; the rest is not logged",
        "hook succeeded",
    ]


def test_a_long_line_is_cut_and_little_of_it_kept(caplog: pytest.LogCaptureFixture) -> None:
    output = OutputLog("hook", LOG)
    tracemalloc.start()
    for _ in range(1000):
        output.feed(b"x" * 1000)
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()
    output.feed(b"\nshort")
    output.close()
    assert caplog.messages == [f"hook: {'x' * LINE_MAX_BYTES} [...]", "hook: short"]


def test_output_cannot_fake_lines_or_dress_up_a_terminal(caplog: pytest.LogCaptureFixture) -> None:
    OutputLog("hook", LOG).feed(b"a\rb\x1b[31mc\xff\n")
    assert caplog.messages == ["hook: a?b?[31mc\ufffd"]
