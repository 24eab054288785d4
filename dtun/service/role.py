"""What the service needs of a server or a client."""

from typing import Final, Protocol, runtime_checkable

from dtun.config import Config

FAILED: Final = "error: "
"""Begins those lines of `Role.reload` that tell a failure."""


class Role(Protocol):
    """A server or a client."""

    async def start(self) -> None:
        """Set up what it needs on the host. After an error, too, `stop` is called.

        Raises:
            DtunError: something is missing, in use or not permitted.
        """

    async def run(self) -> None:
        """Work until cancelled."""

    async def stop(self) -> None:
        """End all sessions and remove everything from the host."""

    async def suspend(self) -> None:
        """Stop without removing anything, for the next process."""

    async def reload(self, config: Config, *, dry_run: bool) -> list[str]:
        """Change to `config`, or only tell what that would change. A line for each difference, and for each failure.

        Raises:
            DtunError: the configuration is not for this role; nothing has changed.
        """
        ...

    def status(self) -> dict[str, object]: ...

    def summary(self) -> str:
        """The state in one line, for the service manager."""
        ...

    def stalled(self) -> bool:
        """Whether packets wait although they could be carried: a bug, which the watchdog ends."""
        ...


@runtime_checkable
class Kicks(Protocol):
    """A role with clients whose sessions can be ended."""

    def kick(self, name: str) -> str:
        """End the session of this client. Returns the outcome, for people.

        Raises:
            DtunError: there is no such client, or it has no session.
        """
        ...
