"""Problems of a configuration. All of them are reported together."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from dtun.errors import ConfigError

Location: TypeAlias = tuple[str | int, ...]
"""Path of a value, like ("server", "clients", "demo", "subnets", 0)."""

Place: TypeAlias = Location | str
"""A location in the configuration, or FILE:LINE in a file that the configuration names."""


@dataclass(frozen=True, slots=True)
class Problem:
    """`message` says what is wrong and what to do about it; it never holds a secret.

    `uses`: locations of the settings that the problem depends on. If one of them is wrong itself, the problem is not
        reported: it may not exist.
    `related`: the other place of a contradiction.
    `elsewhere`: FILE:LINE of the error, in a file that the value at `location` names.
    `about_name`: the last name in `location` is wrong, not its value.
    """

    location: Location
    message: str
    uses: frozenset[Location] = frozenset()
    related: Place | None = None
    elsewhere: str | None = None
    about_name: bool = False


class ConfigErrors(ConfigError):  # noqa: N818 - more than one of them
    """`lines`: one for each problem, with its place. `warnings`: lines about things that work."""

    def __init__(self, lines: Iterable[str], warnings: Iterable[str] = ()) -> None:
        self.lines = list(lines)
        self.warnings = list(warnings)
        super().__init__("\n".join(self.lines))


def shown(text: str, limit: int = 60) -> str:
    """Input as a message shows it: quoted, on one line, at most `limit` characters."""
    return repr(text if len(text) <= limit else text[: limit - 3] + "...")


def shown_name(name: str) -> str:
    """A name in a mapping as a message shows it. Text that does not look like a name is hidden: it may be a key."""
    return shown(name) if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]{0,30}", name) else "a name"


def dotted(location: Location) -> str:
    """The location as text, like `server.clients.demo.subnets[0]`."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            name = part if part.isprintable() and len(part.encode()) <= 64 else shown(part, 24)
            path += f".{name}" if path else name
    return path


def repeated(where: Location, values: Iterable[object]) -> Iterator[Problem]:
    """A problem for each value that is twice in the list at `where`."""
    seen: Counter[object] = Counter()
    for index, value in enumerate(values):
        seen[value] += 1
        if seen[value] == 2:
            yield Problem((*where, index), f"{value} is there twice; remove one")
