"""What a server and a client have in common, as the service sees them."""

from typing import Protocol, runtime_checkable

from dtun.config import Config

FAILED = "error: "
"""Begins a line about what did not work. Nothing else does."""


class Role(Protocol):
    """A server or a client."""

    async def start(self) -> None:
        """Take what is needed of the host. Raises DtunError; `stop` is called in any case."""

    async def run(self) -> None:
        """Work until cancelled."""

    async def stop(self) -> None:
        """Say goodbye and remove what was made."""

    async def suspend(self) -> None:
        """Go, and leave everything as it is for a successor."""

    def status(self) -> dict[str, object]: ...

    def summary(self) -> str: ...

    def stalled(self) -> bool:
        """Whether packets wait although they could be carried: a bug, which the watchdog ends."""
        ...


@runtime_checkable
class Reloads(Protocol):
    """One that can go on with another configuration."""

    async def reload(self, config: Config, *, dry_run: bool) -> list[str]:
        """Go on with `config`, or only tell what that would mean. Returns the differences, a line each,
        and, as lines that begin with "error: ", what did not work.

        Raises:
            DtunError: it is no configuration for this role; nothing has changed.
        """
        ...


@runtime_checkable
class Kicks(Protocol):
    """One that others have sessions with."""

    def kick(self, name: str) -> str:
        """End the session of this client. Returns what was done, in words.

        Raises:
            DtunError: there is no such client, or it has no session.
        """
        ...
