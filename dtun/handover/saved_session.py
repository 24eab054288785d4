"""What a process leaves of a session to its successor: keys, sequence numbers and the peer's Hello or Welcome.

A sealed memfd (memfd_create(2)): on no disk, of fixed size, and only this process and the service manager have it. The
sequence numbers are written before they are used, so that they are right even after a kill -9:

      0  "dtun-ks1" 8
      8  next number to seal with 8 | next number expected from the peer 8        (record ledger)
     24  next control message to send 8 | next control message expected 8         (message ledger)
     40  length of the description 8 | description, JSON

All in the host's byte order.
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
_RECORD_LEDGER: Final = slice(8, 24)
_MESSAGE_LEDGER: Final = slice(24, 40)
_LENGTH: Final = Struct("=Q")
_LENGTH_AT: Final = 40
_DESCRIPTION_AT: Final = 48
# linux/fcntl.h
_SEALS: Final = 0x1 | 0x2 | 0x4  # F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW
_F_ADD_SEALS: Final = 1033


class Description(BaseModel):
    """The constant part. `server` is our role; keys and IVs as in `SessionKeys`; `greeting` is the peer's.

    `notes` are the owner's: what must be the same after a restart.
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
    """The description of a session."""
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
    """One session's memory; the ledgers are views of it (see above)."""

    def __init__(self, descriptor: int) -> None:
        """Map a memfd of this layout, and own it.

        Raises:
            ValueError: it has another layout, or is of another version of dtun.
        """
        self.descriptor = descriptor
        size = os.fstat(descriptor).st_size
        if size <= _DESCRIPTION_AT:
            raise ValueError("it is empty")
        self._memory = mmap.mmap(descriptor, size)
        if self._memory[: len(_MAGIC)] != _MAGIC:
            raise ValueError("it is of another version of dtun")
        view = memoryview(self._memory)
        self.record_ledger: MutableSequence[int] = view[_RECORD_LEDGER].cast("Q")  # type: ignore[assignment]
        self.message_ledger: MutableSequence[int] = view[_MESSAGE_LEDGER].cast("Q")  # type: ignore[assignment]
        (length,) = _LENGTH.unpack_from(self._memory, _LENGTH_AT)
        try:
            self.description = Description.model_validate_json(
                self._memory[_DESCRIPTION_AT : _DESCRIPTION_AT + length]
            )
        except ValidationError:
            raise ValueError("its description is of another version of dtun") from None
        self.description.keys()  # raises here if this version does not know the suite

    @classmethod
    def make(cls, description: Description) -> "SavedSession":
        """A new memfd. Only on Linux.

        Raises:
            OSError: there is no memory for it.
        """
        text = description.model_dump_json().encode()
        descriptor = os.memfd_create("dtun-session", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)  # type: ignore[attr-defined,unused-ignore]
        os.write(descriptor, _MAGIC + bytes(_LENGTH_AT - len(_MAGIC)) + _LENGTH.pack(len(text)) + text)
        fcntl.fcntl(descriptor, _F_ADD_SEALS, _SEALS)
        return cls(descriptor)

    def association(self) -> ResumedAssociation:
        """The association with its keys and numbers; its records use this ledger again.

        Raises:
            ValueError: this version does not know the suite.
        """
        made = ResumedAssociation(
            self.description.keys(),
            self.description.identity,
            server=self.description.server,
            sequence=self.record_ledger[0],
            highest=self.record_ledger[1] - 1,
        )
        made.records.attach_ledger(self.record_ledger)
        return made

    def close(self) -> None:
        """Wipe the memory, also for other holders, and close the descriptor."""
        if self.descriptor < 0:
            return
        self._memory[:] = bytes(len(self._memory))
        # A record layer that still uses the ledger keeps the mapping alive.
        descriptor, self.descriptor = self.descriptor, -1
        os.close(descriptor)


def _encoded(secret: bytes) -> bytes:
    return base64.b64encode(secret)
