"""Everything that is wrong with a configuration, at once."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from dtun.errors import ConfigError

Location: TypeAlias = tuple[str | int, ...]
"""Where a value is: ("server", "clients", "demo", "subnets", 0)."""

Place: TypeAlias = Location | str
"""A location in the configuration, or FILE:LINE in a file that it names."""


@dataclass(frozen=True, slots=True)
class Problem:
    """`message` says what is wrong and what to do about it; it never holds a secret.

    `about_name`: the name of the last part is wrong, not its value; `message` shows it if it may be shown.
    `related` is where the other half of a contradiction is.
    `elsewhere`, as FILE:LINE, is where it is to be mended, in a file that the value at `location` names.
    `uses` are the places of the settings that the judgement rests on: if one of them is wrong itself,
    the problem may be imaginary and is kept back.
    """

    location: Location
    message: str
    uses: frozenset[Location] = frozenset()
    related: Place | None = None
    elsewhere: str | None = None
    about_name: bool = False


class ConfigErrors(ConfigError):  # noqa: N818 - more than one of them
    """One line a problem, each with the place where it is; `warnings` are what else was noticed."""

    def __init__(self, lines: Iterable[str], warnings: Iterable[str] = ()) -> None:
        self.lines = list(lines)
        self.warnings = list(warnings)
        super().__init__("\n".join(self.lines))


def shown(text: str, limit: int = 60) -> str:
    """A person's input for a message: quoted, on one line, of bounded length."""
    return repr(text if len(text) <= limit else text[: limit - 3] + "...")


def shown_name(name: str) -> str:
    """A name in a mapping; but what does not look like a name may be a key that lost its place."""
    return shown(name) if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]{0,30}", name) else "a name"


def dotted(location: Location) -> str:
    """`server.clients.demo.subnets[0]`."""
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
