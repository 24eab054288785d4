"""What the models of the sections share."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from dtun.config.errors import Location, Problem, shown
from dtun.config.values import HookCommand, Seconds, parse_directory

DEFAULT_HOOK_TIMEOUT = 30.0  # seconds

HookTimeout = Annotated[Seconds, Field(gt=0, le=3600)]

# hier(7) of macOS and of Linux. A boot empties the first; the second persists.
RUNTIME_DIRECTORY = "/var/run/dtun" if sys.platform == "darwin" else "/run/dtun"
STATE_DIRECTORY = "/var/db/dtun" if sys.platform == "darwin" else "/var/lib/dtun"


@dataclass(frozen=True, slots=True)
class Hook:
    """A program to run without a shell, with its arguments. `timeout` in seconds."""

    command: tuple[str, ...]
    timeout: float


class Section(BaseModel):
    """A frozen model. Unknown keys are errors; a key without a value counts as absent."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, arbitrary_types_allowed=True
    )

    @model_validator(mode="before")
    @classmethod
    def _without_empty(cls, data: Any) -> Any:
        if isinstance(data, dict):
            return {
                key: value for key, value in data.items() if value is not None or key not in cls.model_fields
            }
        return data


class Hooked(Section):
    """Programs to run when a tunnel comes up and goes down."""

    up: HookCommand | None = Field(
        None,
        description="A program to run, without a shell, when a tunnel comes up: a path, or a list with arguments. "
        "README.md has its variables.",
    )
    down: HookCommand | None = Field(None, description="The same for when it goes down.")
    hook_timeout: HookTimeout | None = Field(
        None, description="Seconds after which a hook is ended. 30 if nothing is set."
    )

    def hook_warnings(self, location: Location) -> list[Problem]:
        hint = "is missing or not executable; look at its path, or `chmod +x` it"
        return [
            Problem((*location, name), f"{shown(command[0])} {hint}")
            for name, command in (("up", self.up), ("down", self.down))
            if command and not os.access(command[0], os.X_OK)
        ]


def choose_hook(name: Literal["up", "down"], *sections: Hooked) -> Hook | None:
    """The hook of the first of `sections` that has one, with the first timeout that is set."""
    command: tuple[str, ...] | None = next((c for s in sections if (c := getattr(s, name))), None)
    if command is None:
        return None
    timeout = next((s.hook_timeout for s in sections if s.hook_timeout is not None), DEFAULT_HOOK_TIMEOUT)
    return Hook(command, timeout)


def directory_from(variable: str, default: str, environment: Mapping[str, str] = os.environ) -> Path:
    """The directory (the first of several) that the service manager passes in `variable`, or the default."""
    return parse_directory(environment.get(variable, "").split(":")[0] or default)
