"""When the up and down hooks of a tunnel run."""

import asyncio
from collections.abc import Mapping

import pytest

from dtun.config.common import Hook
from dtun.tunnel.hooks import UpDown

UP, DOWN = Hook(("/up",), 30), Hook(("/down",), 30)


class Runner:
    """Notes what is run; each run waits for `gate`, and fails if `works` is False."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.running = 0
        self.works = True
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, hook: Hook, variables: Mapping[str, str], what: str) -> bool:
        assert what in {"demo: up hook", "demo: down hook"}
        assert self.running == 0, "one at a time"
        self.running += 1
        self.ran.append(f"{hook.command[0]} {variables['REASON']}")
        try:
            await self.gate.wait()
        finally:
            self.running -= 1
        return self.works


@pytest.fixture
def runner() -> Runner:
    return Runner()


@pytest.fixture
def hooks(runner: Runner) -> UpDown:
    return UpDown(runner, UP, DOWN, "demo")


async def test_up_runs_once_until_the_tunnel_goes_down(runner: Runner, hooks: UpDown) -> None:
    for reason in ("connected", "renewed"):
        await hooks.up({"REASON": reason})
    for reason in ("lost", "stopped"):
        await hooks.down({"REASON": reason})
    await hooks.up({"REASON": "connected"})
    assert runner.ran == ["/up connected", "/down lost", "/up connected"]


async def test_an_up_that_failed_is_told_and_tried_with_the_next_session(
    runner: Runner, hooks: UpDown
) -> None:
    runner.works = False
    await hooks.up({"REASON": "connected"})
    assert "failed" in (hooks.error or "")
    runner.works = True
    await hooks.up({"REASON": "renewed"})
    error = hooks.error
    assert error is None
    assert runner.ran == ["/up connected", "/up renewed"]


async def test_down_runs_after_an_up_that_failed_and_takes_its_error_along(
    runner: Runner, hooks: UpDown
) -> None:
    runner.works = False
    await hooks.up({"REASON": "connected"})
    await hooks.down({"REASON": "lost"})
    assert runner.ran == ["/up connected", "/down lost"]
    assert hooks.error is None


async def test_down_does_not_run_where_up_never_did(runner: Runner, hooks: UpDown) -> None:
    await hooks.down({"REASON": "stopped"})
    assert runner.ran == []


async def test_they_run_in_the_order_in_which_they_were_asked_for(runner: Runner, hooks: UpDown) -> None:
    runner.gate.clear()
    tasks = [
        asyncio.create_task(work)
        for work in (
            hooks.up({"REASON": "1"}),
            hooks.down({"REASON": "2"}),
            hooks.up({"REASON": "3"}),
            hooks.down({"REASON": "4"}),
        )
    ]
    await asyncio.sleep(0)
    assert runner.ran == ["/up 1"]
    runner.gate.set()
    await asyncio.gather(*tasks)
    assert runner.ran == ["/up 1", "/down 2", "/up 3", "/down 4"]


async def test_down_cleans_up_after_an_up_that_was_cut_off(runner: Runner, hooks: UpDown) -> None:
    runner.gate.clear()
    up = asyncio.create_task(hooks.up({"REASON": "connected"}))
    await asyncio.sleep(0)
    up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await up
    runner.gate.set()
    await hooks.down({"REASON": "stopped"})
    assert runner.ran == ["/up connected", "/down stopped"]


async def test_a_down_that_was_cut_off_is_run_again(runner: Runner, hooks: UpDown) -> None:
    await hooks.up({"REASON": "connected"})
    runner.gate.clear()
    down = asyncio.create_task(hooks.down({"REASON": "lost"}))
    await asyncio.sleep(0)
    down.cancel()
    with pytest.raises(asyncio.CancelledError):
        await down
    runner.gate.set()
    for _ in range(2):
        await hooks.down({"REASON": "stopped"})
    assert runner.ran == ["/up connected", "/down lost", "/down stopped"]


async def test_a_tunnel_without_hooks_runs_none(runner: Runner) -> None:
    hooks = UpDown(runner, None, None, "demo")
    await hooks.up({"REASON": "connected"})
    await hooks.down({"REASON": "stopped"})
    assert runner.ran == []
    assert hooks.error is None
