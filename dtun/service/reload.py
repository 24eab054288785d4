"""Reads the configuration again, on SIGHUP or by command. A configuration with errors changes nothing."""

import asyncio
import logging

from dtun.config import load
from dtun.errors import ConfigError, DtunError
from dtun.service import kept_config, systemd
from dtun.service.role import FAILED, Role
from dtun.service.starting import Start

log = logging.getLogger("dtun")

NO_CHANGE = "nothing has changed"

NOT_CHANGED = "\nreload: nothing was changed"
"""Ends the message of a reload that was refused."""


class ConfigReloader:
    """Reads the file and passes it to the role, one reload at a time. `requested` is set by SIGHUP.

    It also knows whether the file is in use as it is, and keeps the configuration that is for the next process.
    """

    def __init__(self, start: Start, role: Role, requested: asyncio.Event) -> None:
        self.path = start.config.path
        self._start = start
        self._problem = start.problem
        self._role = role
        self._requested = requested
        self._lock = asyncio.Lock()

    def started(self) -> None:
        """The role has started."""
        kept_config.keep(self._start.fdstore, self._start.config)

    @property
    def warnings(self) -> list[str]:
        """That the file is not in use as it is, for the status."""
        if self._problem is None:
            return []
        first, *more = self._problem.splitlines()
        others = f" (and {len(more)} more)" if more else ""
        return [
            f"{self.path} is not in use, but the configuration from before: {first}{others}; correct it, and reload"
        ]

    def summary(self) -> str:
        """The state in one line, for the service manager."""
        hint = f"; {self.path} is not in use, see `dtun check`" if self._problem is not None else ""
        return self._role.summary() + hint

    async def run(self) -> None:
        """Reload whenever `requested`, until cancelled. Errors go to the log."""
        while True:
            await self._requested.wait()
            self._requested.clear()
            try:
                await self.reload(dry_run=False)
            except DtunError as error:
                log.error("%s", error)  # noqa: TRY400 - a line for a person
            except MemoryError:
                raise
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
            except DtunError as error:
                if self.path is not None:
                    self._problem = str(error).removesuffix(NOT_CHANGED)
                raise
            finally:
                systemd.notify_ready(self.summary())
            for line in lines:
                log.log(logging.ERROR if line.startswith(FAILED) else logging.INFO, "reload: %s", line)
            return lines

    async def moves(self) -> bool:
        """Whether the file names another device or runtime directory by now, with which the next process will start."""
        if self.path is None:
            return False
        try:
            config = await asyncio.to_thread(load, self.path, read_keys=False)
        except ConfigError:
            return False
        return config.control_socket != self._start.config.control_socket

    async def _reload(self, *, dry_run: bool) -> list[str]:
        if self.path is None:
            raise ConfigError(
                "dtun was started without a configuration file, so it has none to reload; restart it"
            )
        try:
            # In a thread: a file with thousands of networks takes a while, and packets must not wait.
            config = await asyncio.to_thread(load, self.path)
        except ConfigError as error:
            raise ConfigError(f"{error}{NOT_CHANGED}") from None
        warnings = [f"warning: {text}" for text in config.warnings]
        lines = await self._role.reload(config, dry_run=dry_run)
        if not dry_run:
            self._problem = None
            kept_config.keep(self._start.fdstore, config)
        return warnings + (lines or [NO_CHANGE])
