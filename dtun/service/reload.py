"""Reads the configuration again, on SIGHUP or by command. A configuration with errors changes nothing."""

import asyncio
import logging

from dtun.config import Config, load
from dtun.errors import ConfigError, DtunError
from dtun.service import systemd
from dtun.service.role import FAILED, Role

log = logging.getLogger("dtun")

NO_CHANGE = "nothing has changed"


class ConfigReloader:
    """Reads the file and passes it to the role, one reload at a time. `requested` is set by SIGHUP."""

    def __init__(self, config: Config, role: Role, requested: asyncio.Event) -> None:
        self._path = config.path
        self._role = role
        self._requested = requested
        self._lock = asyncio.Lock()

    async def run(self) -> None:
        """Reload whenever `requested`, until cancelled. Errors go to the log."""
        while True:
            await self._requested.wait()
            self._requested.clear()
            try:
                await self.reload(dry_run=False)
            except DtunError as error:
                log.error("%s", error)  # noqa: TRY400 - a line for a person
            except Exception:
                log.exception("internal error, please report it")

    async def reload(self, *, dry_run: bool) -> list[str]:
        """Read the file and change to it; with `dry_run`, only tell what that would change. A line for each difference.

        Raises:
            ConfigError: the file has errors, or dtun was started without one. Nothing has changed.
        """
        async with self._lock:
            if dry_run:
                return await self._reload(dry_run=True)
            systemd.notify_reloading()
            try:
                lines = await self._reload(dry_run=False)
            finally:
                systemd.notify_ready(self._role.summary())
            for line in lines:
                log.log(logging.ERROR if line.startswith(FAILED) else logging.INFO, "reload: %s", line)
            return lines

    async def _reload(self, *, dry_run: bool) -> list[str]:
        if self._path is None:
            raise ConfigError(
                "dtun was started without a configuration file, so it has none to reload; restart it"
            )
        try:
            # In a thread: a file with thousands of networks takes a while, and packets must not wait.
            config = await asyncio.to_thread(load, self._path)
        except ConfigError as error:
            raise ConfigError(f"{error}\nreload: nothing was changed") from None
        warnings = [f"warning: {text}" for text in config.warnings]
        return warnings + (await self._role.reload(config, dry_run=dry_run) or [NO_CHANGE])
