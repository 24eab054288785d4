"""One change of the configuration in a reload, and how it takes effect; for both roles. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

Effect = Literal["live", "reconnect", "restart"]

_EFFECTS: Final[Mapping[Effect, str]] = {
    "live": "at once",
    "reconnect": "reconnects",
    "restart": "needs a restart, kept as it was",
}


AGAIN: Final = "what did not work at the last reload is applied again"
"""The line of a reload without a difference that puts in place what is not."""


@dataclass(frozen=True, slots=True)
class Step:
    """One difference. `where` is the place in the configuration, `what` the change in words."""

    where: str
    what: str
    effect: Effect = "live"

    def __str__(self) -> str:
        return f"{self.where}: {self.what} ({_EFFECTS[self.effect]})"


def shown(value: object) -> str:
    """A value of the configuration for people."""
    if value is None or value == ():
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ", ".join(map(str, value[:4])) + (f" and {len(value) - 4} more" if len(value) > 4 else "")
    return f"{value:g}" if isinstance(value, float) else str(value)
