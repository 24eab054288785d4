"""When the up and down hooks of a tunnel run."""

import asyncio
from collections.abc import Mapping

import pytest

from dtun.config.common import Hook
from dtun.session.hooks import TunnelHooks

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
def hooks(runner: Runner) -> TunnelHooks:
    return TunnelHooks(runner, UP, DOWN, "demo")


async def test_up_runs_once_until_the_tunnel_goes_down(runner: Runner, hooks: TunnelHooks) -> None:
    for reason in ("connected", "renewed"):
        await hooks.up({"REASON": reason})
    for reason in ("lost", "stopped"):
        await hooks.down({"REASON": reason})
    await hooks.up({"REASON": "connected"})
    assert runner.ran == ["/up connected", "/down lost", "/up connected"]


async def test_an_up_that_failed_is_told_and_tried_with_the_next_session(
    runner: Runner, hooks: TunnelHooks
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
    runner: Runner, hooks: TunnelHooks
) -> None:
    runner.works = False
    await hooks.up({"REASON": "connected"})
    await hooks.down({"REASON": "lost"})
    assert runner.ran == ["/up connected", "/down lost"]
    assert hooks.error is None


async def test_down_does_not_run_where_up_never_did(runner: Runner, hooks: TunnelHooks) -> None:
    await hooks.down({"REASON": "stopped"})
    assert runner.ran == []


async def test_they_run_in_the_order_in_which_they_were_asked_for(runner: Runner, hooks: TunnelHooks) -> None:
    runner.gate.clear()
    tasks = [
        asyncio.create_task(work)
        for work in (
            hooks.up({"REASON": "1"}),
            hooks.down({"REASON": "2"}),
            hooks.up({"REASON": "3"}),
        )
    ]
    await asyncio.sleep(0)
    assert runner.ran == ["/up 1"]
    runner.gate.set()
    await asyncio.gather(*tasks)
    assert runner.ran == ["/up 1", "/down 2", "/up 3"]


@pytest.mark.parametrize(("ends", "outcome"), [("up", ["/down 999", "/up 1000"]), ("down", ["/down 999"])])
async def test_of_a_tunnel_that_comes_and_goes_while_a_hook_runs_the_outcome_is_left(
    runner: Runner, hooks: TunnelHooks, ends: str, outcome: list[str]
) -> None:
    runner.gate.clear()
    tasks = [asyncio.create_task(hooks.up({"REASON": "0"}))]
    for number in range(1, 1001 if ends == "up" else 1000):
        work = hooks.up if number % 2 == 0 else hooks.down
        tasks.append(asyncio.create_task(work({"REASON": str(number)})))
    for _ in range(3):
        await asyncio.sleep(0)
    # The one that runs, a `down` and an `up`; nobody else waits.
    assert sum(not task.done() for task in tasks) == 1 + len(outcome)
    runner.gate.set()
    await asyncio.gather(*tasks)
    assert runner.ran == ["/up 0", *outcome]


@pytest.mark.parametrize("is_its_turn", [False, True])
async def test_who_waits_may_be_cancelled_and_the_next_one_runs(
    runner: Runner, hooks: TunnelHooks, is_its_turn: bool
) -> None:
    runner.gate.clear()
    up = asyncio.create_task(hooks.up({"REASON": "1"}))
    down = asyncio.create_task(hooks.down({"REASON": "2"}))
    again = asyncio.create_task(hooks.up({"REASON": "3"}))
    await asyncio.sleep(0)
    runner.gate.set()
    if is_its_turn:
        await asyncio.sleep(0)
        assert up.done()
    down.cancel()
    await asyncio.gather(up, down, again, return_exceptions=True)
    assert down.cancelled()
    # The tunnel was not taken down, so there was nothing to do for the second `up`.
    assert runner.ran == ["/up 1"]
    await hooks.down({"REASON": "4"})
    assert runner.ran == ["/up 1", "/down 4"]


async def test_down_cleans_up_after_an_up_that_was_cut_off(runner: Runner, hooks: TunnelHooks) -> None:
    runner.gate.clear()
    up = asyncio.create_task(hooks.up({"REASON": "connected"}))
    await asyncio.sleep(0)
    up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await up
    runner.gate.set()
    await hooks.down({"REASON": "stopped"})
    assert runner.ran == ["/up connected", "/down stopped"]


async def test_a_down_that_was_cut_off_is_run_again(runner: Runner, hooks: TunnelHooks) -> None:
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
    hooks = TunnelHooks(runner, None, None, "demo")
    await hooks.up({"REASON": "connected"})
    await hooks.down({"REASON": "stopped"})
    assert runner.ran == []
    assert hooks.error is None
