"""`dtun down`: ends a tunnel, and removes what a killed one has left behind."""

import asyncio
import time

from dtun.cli.output import say
from dtun.config import Config
from dtun.errors import UnavailableError
from dtun.platform import kernel as platform_kernel
from dtun.service.control import ask

PATIENCE = 45.0
"""Seconds for a running dtun to stop: its hooks may take a while."""

INTERVAL = 0.1


def down(config: Config) -> int:
    """Stop what runs with this configuration, or clean up after it.

    Raises:
        DtunError: it does not stop, or something cannot be removed.
    """
    if not config.control_socket.exists():
        return _clean_up(config)
    try:
        ask(config.control_socket, "stop")
    except UnavailableError:
        # A killed one leaves its socket, too. Whether it runs, its lock tells.
        return _clean_up(config)
    deadline = time.monotonic() + PATIENCE
    while config.control_socket.exists():
        if time.monotonic() > deadline:
            raise UnavailableError(
                f"dtun has not stopped within {PATIENCE:g} s; its log says what it waits for"
            )
        time.sleep(INTERVAL)
    say("dtun has stopped; nothing is left behind")
    return 0


def _clean_up(config: Config) -> int:
    asyncio.run(_remove(config))
    say("dtun was not running; nothing of it is left behind")
    return 0


async def _remove(config: Config) -> None:
    instance = "server" if config.client is None else config.client.tun
    kernel = platform_kernel(instance, config.section.runtime_directory)
    await kernel.open()
    await kernel.close()
