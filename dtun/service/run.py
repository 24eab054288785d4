"""Runs a server or a client until it is told to stop: signals, the service manager, status, and a clean end."""

import asyncio
import contextlib
import logging
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import dtun
from dtun.config import Config
from dtun.config.common import Hook
from dtun.errors import ConfigError, PermissionDeniedError
from dtun.handover.fdstore import FdStore
from dtun.platform import event_loop, kernel as platform_kernel
from dtun.platform.interface import Kernel
from dtun.service import notify
from dtun.service.commands import commands
from dtun.service.control import ControlServer
from dtun.service.fdstore import SystemdFdStore
from dtun.service.hooks import run_hook
from dtun.service.job import restarts
from dtun.service.reload import Reloader
from dtun.service.role import Role
from dtun.session.status import timestamp

log = logging.getLogger("dtun")

STATUS_INTERVAL = 2.0
"""Seconds between two looks at whether there is another status line for the service manager."""


RESTART_PAUSE = 2.0
"""Seconds before a service that has failed ends. The unit starts it again at once: after a kill each moment counts."""


Make = Callable[[Kernel, asyncio.AbstractEventLoop, FdStore], Role]


def run_server(config: Config) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code.

    Raises:
        DtunError: it cannot start. Nothing is left behind.
    """
    from dtun.server.server import Server  # noqa: PLC0415 - a client does not need it

    section = config.server
    assert section is not None  # noqa: S101 - the command line has seen to it
    return _to_the_end(
        _run(
            "server",
            "server",
            config,
            lambda kernel, loop, fdstore: Server(section, kernel, _run_hook, loop, fdstore),
        )
    )


def run_client(config: Config) -> int:
    """Keep the tunnel up until SIGTERM or SIGINT; returns the exit code.

    Raises:
        DtunError: it cannot start. Nothing is left behind.
    """
    from dtun.client.client import Client  # noqa: PLC0415 - a server does not need it

    section = config.client
    assert section is not None  # noqa: S101 - the command line has seen to it
    return _to_the_end(
        _run(
            "client",
            section.tun,
            config,
            lambda kernel, loop, fdstore: Client(section, kernel, _run_hook, loop, fdstore),
        )
    )


def _to_the_end(service: Coroutine[Any, Any, int]) -> int:
    try:
        with asyncio.Runner(loop_factory=event_loop) as runner:
            return runner.run(service)
    except (ConfigError, PermissionDeniedError):
        raise  # nobody starts it again
    except Exception as error:
        if notify.status(f"has failed: {error}"):
            time.sleep(RESTART_PAUSE)
        raise


def _raise_descriptor_limit() -> None:
    """A server takes two descriptors for each client; the usual soft limit of 1,024 is there for select(2)."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _run(role: str, instance: str, config: Config, make: Make) -> int:
    _raise_descriptor_limit()
    loop = asyncio.get_running_loop()
    told_to_stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told_to_stop.set)
    # Of a terminal it means that the person has gone; to a service it says "reload", as is the custom.
    told_to_reload = asyncio.Event()
    hang_up = told_to_stop if sys.stdin.isatty() else told_to_reload
    loop.add_signal_handler(signal.SIGHUP, hang_up.set)
    kernel = platform_kernel(instance, config.section.runtime_directory)
    await kernel.open()
    goes_on = False
    try:
        service = make(kernel, loop, SystemdFdStore())
        reloader = Reloader(config, service, told_to_reload)
        answers = commands(service, reloader, _status(role, service), told_to_stop.set)
        control = ControlServer(config.control_socket, answers)
        try:
            await service.start()
            await control.start()
            log.info("dtun %s: the %s has started", dtun.__version__, role)
            notify.ready(service.summary())
            await _work(service, reloader, told_to_stop)
            goes_on = await restarts()
        finally:
            notify.stopping()
            await control.stop()
            await (service.suspend() if goes_on else service.stop())
    finally:
        await (kernel.detach() if goes_on else kernel.close())
    log.info("stopped; %s", "the next start goes on here" if goes_on else "nothing is left behind")
    return 0


async def _work(service: Role, reloader: Reloader, told_to_stop: asyncio.Event) -> None:
    """Let it work until we are told to stop, or until it fails, which would be a bug and must be seen."""
    workers: list[asyncio.Task[Any]] = [
        asyncio.create_task(told_to_stop.wait()),
        asyncio.create_task(service.run()),
        asyncio.create_task(reloader.run()),
        asyncio.create_task(_report(service)),
    ]
    try:
        done, _ = await asyncio.wait(workers, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in workers:
            task.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


async def _report(service: Role) -> None:
    """Tell the service manager how we are, and that the loop still turns and the data plane moves."""
    watchdog = notify.watchdog_interval()
    said = ""
    moved = True
    while True:
        summary = service.summary()
        if summary != said:
            notify.status(summary)
            said = summary
        if watchdog is not None:
            moves = not service.stalled()
            if moves:
                notify.alive()
            elif moved:
                log.critical("packets wait and nothing moves them; the watchdog is to end this process")
            moved = moves
        await asyncio.sleep(min(watchdog or STATUS_INTERVAL, STATUS_INTERVAL))


def _status(role: str, service: Role) -> Callable[[], dict[str, object]]:
    process = {"role": role, "version": dtun.__version__, "since": timestamp(), "pid": os.getpid()}
    return lambda: process | service.status()


async def _run_hook(hook: Hook, variables: Mapping[str, str], what: str) -> bool:
    return await run_hook(hook.command, variables, timeout=hook.timeout, what=what)
