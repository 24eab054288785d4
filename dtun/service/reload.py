"""Reads the configuration again, on SIGHUP or when asked to. What is not usable changes nothing."""

import asyncio
import logging

from dtun.config import Config, load
from dtun.errors import ConfigError, DtunError
from dtun.service import notify
from dtun.service.role import FAILED, Reloads, Role

log = logging.getLogger("dtun")

NO_CHANGE = "nothing has changed"


class Reloader:
    """Reloads one service. `asked` is set by SIGHUP. One reload is done at a time."""

    def __init__(self, config: Config, service: Role, asked: asyncio.Event) -> None:
        self._config = config
        self._service = service
        self._asked = asked
        self._lock = asyncio.Lock()

    async def run(self) -> None:
        """Reload whenever `asked`, until cancelled. What goes wrong is for the log."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            try:
                await self.reload(dry_run=False)
            except DtunError as error:
                log.error("%s", error)  # noqa: TRY400 - a line for a person
            except Exception:
                log.exception("internal error, please report it")

    async def reload(self, *, dry_run: bool) -> list[str]:
        """Read the file and go on with it; with `dry_run`, only tell what that would mean. A line for each difference.

        Raises:
            ConfigError: the file is not usable, or there is none. Nothing has changed.
        """
        async with self._lock:
            if dry_run:
                return await self._reload(dry_run=True)
            notify.reloading()
            try:
                lines = await self._reload(dry_run=False)
            finally:
                notify.ready(self._service.summary())
            for line in lines:
                log.log(logging.ERROR if line.startswith(FAILED) else logging.INFO, "reload: %s", line)
            return lines

    async def _reload(self, *, dry_run: bool) -> list[str]:
        path = self._config.path
        if path is None:
            raise ConfigError(
                "it was started without a file, so there is none to read again; restart it instead"
            )
        try:
            # Beside the event loop: thousands of networks in a file take a while, and packets do not wait.
            config = await asyncio.to_thread(load, path)
        except ConfigError as error:
            raise ConfigError(f"{error}\nreload: nothing was changed") from None
        warnings = [f"warning: {text}" for text in config.warnings]
        if isinstance(self._service, Reloads):
            lines = await self._service.reload(config, dry_run=dry_run)
        else:
            lines = self._needs_restart(config)
        return warnings + (lines or [NO_CHANGE])

    def _needs_restart(self, config: Config) -> list[str]:
        if (config.server, config.client) == (self._config.server, self._config.client):
            return []
        return ["the configuration is read at the start only: needs a restart, kept as it was"]
