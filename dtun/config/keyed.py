"""The settings that name pre-shared keys, and reading these keys."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, PrivateAttr, WithJsonSchema

from dtun.config import keys
from dtun.config.common import Section
from dtun.config.errors import Location, Problem
from dtun.config.keys import Key
from dtun.config.values import FilePath

_KEY_SOURCES = ("key_file", "credential", "key")


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
    """The text of a key from the file or the credential, whichever is given.

    Raises:
        ValueError: it does not exist, or other users can read it.
    """
    if key_file is not None:
        return keys.read_file(base / key_file)
    return keys.read_credential(credential or "", os.environ)


class Keyed(Section):
    """Names a pre-shared key in one of three ways. `read_key` reads it, and then it is in `psk`."""

    key_file: FilePath | None = Field(
        None,
        description="The file of the key (`dtun genkey -o FILE`). A path without / in front starts at the directory of "
        "the configuration.",
    )
    credential: CredentialName | None = Field(
        None,
        description="Or the name of the systemd credential that holds it (LoadCredential=).",
    )
    key: InlineKey | None = Field(None, description="Or the base64 text itself, for trying out.")
    compat: Literal["go"] | None = None

    _psk: Key | None = PrivateAttr(default=None)

    @property
    def has_psk(self) -> bool:
        return self._psk is not None

    @property
    def psk(self) -> Key:
        """The pre-shared key for DTLS, see dtun.config.keys."""
        if self._psk is None:
            raise RuntimeError("this configuration was loaded without its keys")
        return self._psk

    @property
    def known_keys(self) -> tuple[Key, ...]:
        """The keys that could be read."""
        return () if self._psk is None else (self._psk,)

    def use_keys(self, secrets: Sequence[bytes]) -> None:
        """Use the keys that `known_keys` had in another process, in place of `read_key`."""
        self._psk = Key(secrets[0]) if secrets else None

    @property
    def go(self) -> bool:
        """The peer is an original Go dtun: one cipher suite, no forward secrecy, IPv4 only."""
        return self.compat == "go"

    def key_source_problems(self, location: Location) -> list[Problem]:
        given = [name for name in _KEY_SOURCES if getattr(self, name) is not None]
        if not given:
            message = "has no key; add one of key_file, credential or key"
            return [Problem(location, message, frozenset((*location, name) for name in _KEY_SOURCES))]
        if len(given) > 1:
            return [Problem((*location, given[1]), f"there is a {given[0]} already; keep one of them")]
        return []

    def unseen_credentials(self, location: Location) -> list[Problem]:
        """What cannot be checked outside the service: systemd passes credentials to nobody else."""
        if keys.passes_credentials(os.environ):
            return []
        return [
            Problem((*location, name), "was not looked at: systemd passes credentials to the service only")
            for name in ("credential", "next_credential")
            if getattr(self, name, None) is not None
        ]

    def read_key(self, base: Path, location: Location, *, credentials: bool = True) -> list[Problem]:
        """Read and decode the key. A relative `key_file` starts at `base`. Without `credentials`, not those."""
        if self.key_source_problems(location) or (self.credential is not None and not credentials):
            return []
        source = next(name for name in _KEY_SOURCES if getattr(self, name) is not None)
        try:
            text = self.key.secret() if self.key else source_text(base, self.key_file, self.credential)
        except ValueError as error:
            return [Problem((*location, source), str(error))]
        try:
            self._psk = keys.decode(text, go=self.go)
        except ValueError as error:
            where = f"{base / self.key_file} " if self.key_file is not None else ""
            # `compat` decides which keys are valid.
            return [Problem((*location, source), f"{where}{error}", frozenset({(*location, "compat")}))]
        return []

    def key_warnings(self, location: Location) -> list[Problem]:
        if not self.go or not self.has_psk:
            return []
        length = len(self.psk.secret())
        if length < keys.WEAK_KEY_BYTES:
            message = (
                f"a key of {length} bytes can be guessed; use {keys.KEY_BYTES} (`dtun genkey --compat go`)"
            )
            return [Problem(location, message)]
        return []


class NextKeyed(Keyed):
    """May also name a second key, which is valid beside the first one while the client changes to it."""

    next_key_file: FilePath | None = Field(
        None, description="A second key that is valid, too, while the client changes over to it."
    )
    next_credential: CredentialName | None = Field(
        None, description="Or the name of the systemd credential that holds it."
    )

    _next_psk: Key | None = PrivateAttr(default=None)

    @property
    def next_psk(self) -> Key | None:
        """The second key, after `read_key`; None if the configuration has none."""
        if self._next_psk is None and self._next_source is not None:
            raise RuntimeError("this configuration was loaded without its keys")
        return self._next_psk

    @property
    def known_keys(self) -> tuple[Key, ...]:
        """See `Keyed.known_keys`; the present one first."""
        return tuple(key for key in (self._psk, self._next_psk) if key is not None)

    def use_keys(self, secrets: Sequence[bytes]) -> None:
        """See `Keyed.use_keys`."""
        super().use_keys(secrets)
        self._next_psk = Key(secrets[1]) if len(secrets) > 1 else None

    @property
    def _next_source(self) -> str | None:
        if self.next_key_file is not None:
            return "next_key_file"
        return "next_credential" if self.next_credential is not None else None

    def key_source_problems(self, location: Location) -> list[Problem]:
        found = super().key_source_problems(location)
        if self.next_key_file is not None and self.next_credential is not None:
            message = "there is a next_key_file already; keep one of them"
            found.append(Problem((*location, "next_credential"), message))
        source = self._next_source
        if source is not None and self.go:
            message = (
                f"an original dtun cannot change over; remove {source}, and change the key on both sides"
            )
            found.append(Problem((*location, source), message))
        return found

    def read_key(self, base: Path, location: Location, *, credentials: bool = True) -> list[Problem]:
        """See `Keyed.read_key`."""
        found = super().read_key(base, location, credentials=credentials)
        source = self._next_source
        if source is None or self.key_source_problems(location):
            return found
        if source == "next_credential" and not credentials:
            return found
        try:
            self._next_psk = self._read_next(base)
        except ValueError as error:
            return [*found, Problem((*location, source), str(error))]
        if self.has_psk and self._next_psk == self.psk:
            message = f"is the same key as the first; {keys.MAKE_A_KEY}"
            found.append(Problem((*location, source), message))
        return found

    def _read_next(self, base: Path) -> Key:
        text = source_text(base, self.next_key_file, self.next_credential)
        try:
            return keys.decode(text, go=False)
        except ValueError as error:
            where = f"{base / self.next_key_file} " if self.next_key_file is not None else ""
            raise ValueError(f"{where}{error}") from None
