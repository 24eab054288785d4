"""A second key of a client, which is valid beside the first one while the client changes over to it."""

from pathlib import Path

from pydantic import PrivateAttr

from dtun.config import keys
from dtun.config.common import CredentialName, Keyed, source_text
from dtun.config.errors import Location, Problem
from dtun.config.keys import Key
from dtun.config.values import FilePath


class NextKeyed(Keyed):
    """Has a key, and perhaps the one that is to follow, from a file or a credential as the first."""

    next_key_file: FilePath | None = None
    next_credential: CredentialName | None = None

    _next_psk: Key | None = PrivateAttr(default=None)

    @property
    def next_psk(self) -> Key | None:
        """The key that is valid as well; None if there is none. It was read by `read_key`."""
        if self._next_psk is None and self._next_source is not None:
            raise RuntimeError("this configuration was loaded without its keys")
        return self._next_psk

    @property
    def known_keys(self) -> tuple[Key, ...]:
        """The keys that could be read."""
        return tuple(key for key in (self._psk, self._next_psk) if key is not None)

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

    def read_key(self, base: Path, location: Location) -> list[Problem]:
        found = super().read_key(base, location)
        source = self._next_source
        if source is None or self.key_source_problems(location):
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
