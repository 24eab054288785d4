"""What a process leaves of a session to its successor: keys, numbers and what was said, in memory that has no name.

A memfd (memfd_create(2)) that cannot change its size. It is on no disk, and nobody has it but this process and the
service manager. The numbers are written while the session works, each before it matters, so that they are right also
after a kill -9:

      0  "dtun-ks1" 8
      8  next number to seal with 8 | next number expected from the peer 8        (`Records.attach_ledger`)
     24  next control message to send 8 | next control message expected 8
     40  length of the description 8 | description, JSON

All in the host's byte order: it never leaves the host.
"""

import base64
import fcntl
import mmap
import os
from collections.abc import MutableSequence
from struct import Struct
from typing import Final

from pydantic import Base64Bytes, BaseModel, ConfigDict, ValidationError

from dtun.dtls.records import SessionKeys
from dtun.dtls.resumed import ResumedAssociation
from dtun.dtls.suites import by_code
from dtun.protocol.messages import Hello, Welcome

_MAGIC: Final = b"dtun-ks1"
_NUMBERS: Final = slice(8, 40)
_LENGTH: Final = Struct("=Q")
_LENGTH_AT: Final = 40
_DESCRIPTION_AT: Final = 48
# linux/fcntl.h
_SEALS: Final = 0x1 | 0x2 | 0x4  # F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW
_F_ADD_SEALS: Final = 1033


class Description(BaseModel):
    """What does not change while a session works. `role` is ours; keys and IVs as in `SessionKeys`.

    `greeting` is what the peer said of itself: a client's Hello, or a server's Welcome.
    """

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    identity: str
    server: bool
    suite: int
    client_key: Base64Bytes
    client_iv: Base64Bytes
    server_key: Base64Bytes
    server_iv: Base64Bytes
    greeting: Hello | Welcome
    notes: dict[str, str] = {}

    def keys(self) -> SessionKeys:
        """The keys for a record layer.

        Raises:
            ValueError: this version does not know the suite.
        """
        suite = by_code(self.suite)
        if suite is None:
            raise ValueError(f"suite {self.suite:#06x} is unknown")
        return SessionKeys(
            suite,
            client=(self.client_key, self.client_iv),
            server=(self.server_key, self.server_iv),
            sequence=0,
            highest=-1,
            missing=frozenset(),
        )


def describe(
    keys: SessionKeys, identity: str, greeting: Hello | Welcome, *, server: bool, **notes: str
) -> Description:
    """The description of a session at work."""
    return Description(
        identity=identity,
        server=server,
        suite=keys.suite.code,
        client_key=_encoded(keys.client[0]),
        client_iv=_encoded(keys.client[1]),
        server_key=_encoded(keys.server[0]),
        server_iv=_encoded(keys.server[1]),
        greeting=greeting,
        notes=notes,
    )


class SavedSession:
    """One session's memory. `numbers` are four: to seal, expected, to send, message expected (see above)."""

    def __init__(self, descriptor: int) -> None:
        """Take over a memfd of this layout.

        Raises:
            ValueError: it is not of this layout, or of another version of dtun.
        """
        self.descriptor = descriptor
        size = os.fstat(descriptor).st_size
        if size <= _DESCRIPTION_AT:
            raise ValueError("it is empty")
        self._memory = mmap.mmap(descriptor, size)
        if self._memory[: len(_MAGIC)] != _MAGIC:
            raise ValueError("it is of another version of dtun")
        self._view = memoryview(self._memory)
        self.numbers: MutableSequence[int] = self._view[_NUMBERS].cast("Q")  # type: ignore[assignment]
        (length,) = _LENGTH.unpack_from(self._memory, _LENGTH_AT)
        try:
            self.description = Description.model_validate_json(
                self._memory[_DESCRIPTION_AT : _DESCRIPTION_AT + length]
            )
        except ValidationError:
            raise ValueError("its description is of another version of dtun") from None
        self.description.keys()  # a suite that this version does not know is found out here

    @classmethod
    def make(cls, description: Description) -> "SavedSession":
        """A new one. Only on Linux.

        Raises:
            OSError: there is no memory for it.
        """
        text = description.model_dump_json().encode()
        descriptor = os.memfd_create("dtun-session", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)  # type: ignore[attr-defined,unused-ignore]
        os.write(descriptor, _MAGIC + bytes(_LENGTH_AT - len(_MAGIC)) + _LENGTH.pack(len(text)) + text)
        fcntl.fcntl(descriptor, _F_ADD_SEALS, _SEALS)
        return cls(descriptor)

    def association(self) -> ResumedAssociation:
        """The session as it stood, whose record layer keeps its account here again.

        Raises:
            ValueError: this version does not know the suite.
        """
        made = ResumedAssociation(
            self.description.keys(),
            self.description.identity,
            server=self.description.server,
            sequence=self.numbers[0],
            highest=self.numbers[1] - 1,
        )
        made.records.attach_ledger(self.numbers)
        return made

    def close(self) -> None:
        """Wipe it, for whoever else still has it, and let go of it."""
        if self.descriptor < 0:
            return
        self._memory[:] = bytes(len(self._memory))
        # A record layer that still holds the numbers writes into memory of its own from here on.
        descriptor, self.descriptor = self.descriptor, -1
        os.close(descriptor)


def _encoded(secret: bytes) -> bytes:
    return base64.b64encode(secret)
