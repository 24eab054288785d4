"""Runs a server or a client until it is told to stop: signals, systemd, the control socket's commands, a clean end."""

import asyncio
import contextlib
import logging
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Collection, Coroutine, Mapping
from typing import Any, NoReturn

import dtun
from dtun.config import Config
from dtun.config.common import Hook
from dtun.errors import ConfigError, DtunError, PermissionDeniedError
from dtun.handover.fdstore import devices
from dtun.platform import event_loop, kernel as platform_kernel
from dtun.platform.interface import Kernel
from dtun.service import systemd
from dtun.service.control import Answer, Command, ControlServer, Request
from dtun.service.hooks import run_hook
from dtun.service.reload import ConfigReloader
from dtun.service.role import FAILED, Kicks, Role
from dtun.service.starting import Start
from dtun.session.status import timestamp

log = logging.getLogger("dtun")

STATUS_INTERVAL = 2.0
"""Seconds between two updates of the status line for the service manager."""

RESTART_PAUSE = 2.0
"""Seconds before a failed service ends. Its unit restarts it without delay, for that matters after a kill."""

# <2> is the level for the journal of systemd.
_NO_MEMORY = b"<2>dtun: there is no memory left; ends, to be started again with its sessions\n"

MakeRole = Callable[[Kernel, asyncio.AbstractEventLoop], Role]


def run_server(start: Start) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code.

    Raises:
        DtunError: it cannot start. Nothing is left behind.
    """
    from dtun.server.server import Server  # noqa: PLC0415 - a client does not need it

    section = start.config.server
    assert section is not None  # noqa: S101 - checked by the command line
    return run_loop(
        _run(
            "server",
            "server",
            start,
            lambda kernel, loop: Server(section, kernel, _run_hook, loop, start.fdstore),
        )
    )


def run_client(start: Start) -> int:
    """Keep the tunnel up until SIGTERM or SIGINT; returns the exit code.

    Raises:
        DtunError: it cannot start. Nothing is left behind.
    """
    from dtun.client.client import Client  # noqa: PLC0415 - a server does not need it

    section = start.config.client
    assert section is not None  # noqa: S101 - checked by the command line
    return run_loop(
        _run(
            "client",
            section.tun,
            start,
            lambda kernel, loop: Client(section, kernel, _run_hook, loop, start.fdstore),
        )
    )


def run_loop(service: Coroutine[Any, Any, int]) -> int:
    try:
        with asyncio.Runner(loop_factory=event_loop) as runner:
            return runner.run(service)
    except (ConfigError, PermissionDeniedError):
        raise  # the unit does not restart it
    except Exception as error:
        if systemd.notify_status(f"has failed: {error}"):
            time.sleep(RESTART_PAUSE)
        raise


def _raise_descriptor_limit() -> None:
    """A server needs two descriptors for each client; the usual soft limit of 1,024 exists for select(2) only."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def on_internal_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """The event loop's exception handler."""
    if isinstance(context.get("exception"), MemoryError):
        end_without_memory()
    loop.default_exception_handler(context)


def end_without_memory() -> NoReturn:
    """End at once, as if killed, for the next process to resume the sessions: what comes next may need memory, too."""
    os.write(sys.stderr.fileno(), _NO_MEMORY)
    os._exit(os.EX_OSERR)


async def _run(name: str, instance: str, start: Start, make: MakeRole) -> int:
    _raise_descriptor_limit()
    config = start.config
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(on_internal_error)
    stop_requested, reload_requested = asyncio.Event(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop_requested.set)
    # From a terminal, SIGHUP means that the user is gone; a service reloads, as is the custom.
    hang_up = stop_requested if sys.stdin.isatty() else reload_requested
    loop.add_signal_handler(signal.SIGHUP, hang_up.set)
    if name == "client":
        await _clean_up_after(set(devices(start.fdstore)) - {instance}, config)
    kernel = platform_kernel(instance, config.section.runtime_directory)
    await kernel.open()
    restarting = False
    try:
        role = make(kernel, loop)
        reloader = ConfigReloader(start, role, reload_requested)
        control = ControlServer(
            config.control_socket,
            commands(role, reloader, _status(name, role, reloader), stop_requested.set),
        )
        try:
            await role.start()
            await control.start()
            log.info("dtun %s: the %s has started", dtun.__version__, name)
            reloader.started()
            systemd.notify_ready(reloader.summary())
            await _work(role, reloader, stop_requested)
            # A successor with another name would not take over what this one leaves.
            restarting = await systemd.is_restart() and not await reloader.moves()
        except MemoryError:
            end_without_memory()
        finally:
            systemd.notify_stopping()
            await control.stop()
            await (role.suspend() if restarting else role.stop())
    finally:
        await (kernel.detach() if restarting else kernel.close())
    log.info("stopped; %s", "the next start resumes the sessions" if restarting else "nothing is left behind")
    return 0


async def _clean_up_after(predecessors: Collection[str], config: Config) -> None:
    """Remove what processes of this service left that had these devices, before `tun` was changed in the file."""
    for instance in predecessors:
        try:
            kernel = platform_kernel(instance, config.section.runtime_directory)
            await kernel.open()
            await kernel.close()
            config.section.control_socket.with_name(f"{instance}.sock").unlink(missing_ok=True)
        except (DtunError, OSError) as error:
            log.warning("cannot remove what is left of %s: %s", instance, error)


async def _work(role: Role, reloader: ConfigReloader, stop_requested: asyncio.Event) -> None:
    """Wait until a stop is requested, or until a task fails, which is a bug and must be seen."""
    workers: list[asyncio.Task[Any]] = [
        asyncio.create_task(stop_requested.wait()),
        asyncio.create_task(role.run()),
        asyncio.create_task(reloader.run()),
        asyncio.create_task(report(role, reloader.summary)),
    ]
    try:
        done, _ = await asyncio.wait(workers, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in workers:
            task.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


async def report(role: Role, summarise: Callable[[], str]) -> None:
    """Send systemd the status line, and the watchdog's notification while the data plane is not stalled."""
    watchdog = systemd.watchdog_interval()
    last_summary = ""
    stalled = False
    while True:
        summary = summarise()
        if summary != last_summary:
            systemd.notify_status(summary)
            last_summary = summary
        if watchdog is not None:
            was_stalled, stalled = stalled, role.stalled()
            if not stalled:
                systemd.notify_watchdog()
            elif not was_stalled:
                log.critical("packets wait and nothing moves them; the watchdog will end this process")
        await asyncio.sleep(min(watchdog or STATUS_INTERVAL, STATUS_INTERVAL))


def commands(
    role: Role, reloader: ConfigReloader, status: Callable[[], dict[str, object]], stop: Callable[[], None]
) -> Mapping[str, Command]:
    """The commands of the control socket, by name."""

    async def answer_status(request: Request) -> Answer:
        del request
        return status()

    async def reload(request: Request) -> Answer:
        lines = await reloader.reload(dry_run=request.get("dry_run") is True)
        return {"lines": lines, "failed": any(line.startswith(FAILED) for line in lines)}

    async def kick(request: Request) -> Answer:
        client = request.get("id")
        if not isinstance(role, Kicks):
            raise DtunError("this is a client; only a server can end a client's session")
        if not isinstance(client, str):
            raise DtunError("kick needs the id of a client")
        return {"lines": [role.kick(client)]}

    async def answer_stop(request: Request) -> Answer:
        del request
        stop()
        return {"lines": ["stopping"]}

    return {"status": answer_status, "reload": reload, "kick": kick, "stop": answer_stop}


def _status(name: str, role: Role, reloader: ConfigReloader) -> Callable[[], dict[str, object]]:
    process: dict[str, object] = {
        "role": name,
        "version": dtun.__version__,
        "since": timestamp(),
        "pid": os.getpid(),
        "config": str(reloader.path.absolute()) if reloader.path is not None else None,
    }

    def status() -> dict[str, object]:
        answer = process | role.status()
        warnings = answer.get("warnings")
        return answer | {"warnings": [*reloader.warnings, *(warnings if isinstance(warnings, list) else ())]}

    return status


async def _run_hook(hook: Hook, variables: Mapping[str, str], what: str) -> bool:
    return await run_hook(hook.command, variables, timeout=hook.timeout, what=what)
