"""What the models of the server, of its clients' entries and of the client share."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PrivateAttr,
    WithJsonSchema,
    model_validator,
)

from dtun.config.errors import Location, Problem, shown
from dtun.config.keys import KEY_BYTES, WEAK_KEY_BYTES, Key, decode, read_credential, read_file
from dtun.config.values import FilePath, HookCommand, Seconds, parse_directory

DEFAULT_HOOK_TIMEOUT = 30.0

# hier(7), of macOS and of Linux: the one is empty after a boot, the other stays.
RUNTIME_DIRECTORY = "/var/run/dtun" if sys.platform == "darwin" else "/run/dtun"
STATE_DIRECTORY = "/var/db/dtun" if sys.platform == "darwin" else "/var/lib/dtun"
_KEY_SOURCES = ("key_file", "credential", "key")


@dataclass(frozen=True, slots=True)
class Hook:
    """A program to run without a shell, and the seconds that it may take."""

    command: tuple[str, ...]
    timeout: float


class Section(BaseModel):
    """Frozen; unknown keys are errors; a key without a value counts as absent."""

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


def _inline_key(value: object) -> Key:
    if not isinstance(value, str):
        raise ValueError("must be text")  # noqa: TRY004 - pydantic's way
    return Key(value.encode())


InlineKey = Annotated[
    Key,
    BeforeValidator(_inline_key),
    PlainSerializer(lambda _: "hidden", return_type=str),
    WithJsonSchema({"type": "string"}),
]


def _credential_name(value: object) -> object:
    if isinstance(value, str) and (not value or "/" in value or "\0" in value or value in {".", ".."}):
        raise ValueError("must be the name of a credential, not a path")
    return value


CredentialName = Annotated[str, BeforeValidator(_credential_name)]


def source_text(base: Path, key_file: Path | None, credential: str | None) -> bytes:
    """The text of a key from the one of the two that is given.

    Raises:
        ValueError: it is not there, or others can read it.
    """
    if key_file is not None:
        return read_file(base / key_file)
    return read_credential(credential or "", os.environ)


class Keyed(Section):
    """Has a pre-shared key, from one of three places. `psk` is there once `read_key` was called."""

    key_file: FilePath | None = None
    credential: CredentialName | None = None
    key: InlineKey | None = None
    compat: Literal["go"] | None = None

    _psk: Key | None = PrivateAttr(default=None)

    @property
    def has_psk(self) -> bool:
        return self._psk is not None

    @property
    def psk(self) -> Key:
        """The key as DTLS wants it, see dtun.config.keys."""
        if self._psk is None:
            raise RuntimeError("this configuration was loaded without its keys")
        return self._psk

    @property
    def go(self) -> bool:
        """The other side is an original Go dtun: its one suite, no forward secrecy, IPv4 only."""
        return self.compat == "go"

    def key_source_problems(self, location: Location) -> list[Problem]:
        given = [name for name in _KEY_SOURCES if getattr(self, name) is not None]
        if not given:
            message = "has no key; add one of key_file, credential or key"
            return [Problem(location, message, frozenset((*location, name) for name in _KEY_SOURCES))]
        if len(given) > 1:
            return [Problem((*location, given[1]), f"there is a {given[0]} already; keep one of them")]
        return []

    def read_key(self, base: Path, location: Location) -> list[Problem]:
        """Read and decode the key; a relative key_file is one below `base`."""
        if self.key_source_problems(location):
            return []
        source = next(name for name in _KEY_SOURCES if getattr(self, name) is not None)
        try:
            text = self.key.secret() if self.key else source_text(base, self.key_file, self.credential)
        except ValueError as error:
            return [Problem((*location, source), str(error))]
        try:
            self._psk = decode(text, go=self.go)
        except ValueError as error:
            where = f"{base / self.key_file} " if self.key_file is not None else ""
            # What a key has to look like hangs on the kind of the other side.
            return [Problem((*location, source), f"{where}{error}", frozenset({(*location, "compat")}))]
        return []

    def key_warnings(self, location: Location) -> list[Problem]:
        if not self.go or not self.has_psk:
            return []
        length = len(self.psk.secret())
        if length < WEAK_KEY_BYTES:
            message = f"a key of {length} bytes can be guessed; use {KEY_BYTES} (`dtun genkey --compat go`)"
            return [Problem(location, message)]
        return []


class Hooked(Section):
    """Programs to run when a tunnel comes up and goes down. `hook_timeout`: seconds, 30 if None."""

    up: HookCommand | None = None
    down: HookCommand | None = None
    hook_timeout: Annotated[Seconds, Field(gt=0, le=3600)] | None = None

    def hook_warnings(self, location: Location) -> list[Problem]:
        hint = "is missing or not executable; look at its path, or `chmod +x` it"
        return [
            Problem((*location, name), f"{shown(command[0])} {hint}")
            for name, command in (("up", self.up), ("down", self.down))
            if command and not os.access(command[0], os.X_OK)
        ]


def choose_hook(name: Literal["up", "down"], *sections: Hooked) -> Hook | None:
    """The hook of the first of `sections` that has one, with the first time limit that is set."""
    command: tuple[str, ...] | None = next((c for s in sections if (c := getattr(s, name))), None)
    if command is None:
        return None
    timeout = next((s.hook_timeout for s in sections if s.hook_timeout is not None), DEFAULT_HOOK_TIMEOUT)
    return Hook(command, timeout)


def directory_from(variable: str, default: str, environment: Mapping[str, str] = os.environ) -> Path:
    """The directory that the service manager made for us (the first, if it made several), or the default."""
    return parse_directory(environment.get(variable, "").split(":")[0] or default)
