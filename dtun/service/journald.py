r"""Entries for systemd's journal, with fields to filter by: its native protocol.

A datagram to SOCKET is an entry. A field is a line `NAME=value`; or, if the value has several lines:

    NAME \n | length of the value 8, little-endian | value | \n

https://systemd.io/JOURNAL_NATIVE_PROTOCOL/
"""

import socket
from collections.abc import Mapping
from struct import Struct
from typing import Final

SOCKET: Final = "/run/systemd/journal/socket"
TIMEOUT: Final = 0.2
"""Seconds for the journal to take an entry: the tunnel waits meanwhile."""

_LENGTH: Final = Struct("<Q")


class Journal:
    """Sends entries to the journal, which may be restarted meanwhile."""

    def __init__(self) -> None:
        self._address = SOCKET
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(TIMEOUT)

    def send(self, fields: Mapping[str, str]) -> None:
        """Have the journal keep an entry. Names of fields are capital letters and "_", which is not the first.

        Raises:
            OSError: the journal does not take it: it is not there, or too busy, or a datagram too small for the entry.
        """
        entry = b"".join(_field(name, value) for name, value in fields.items())
        self._socket.sendto(entry, self._address)

    def close(self) -> None:
        """May be called twice."""
        self._socket.close()


def _field(name: str, value: str) -> bytes:
    data = value.encode(errors="replace")
    if b"\n" not in data:
        return name.encode() + b"=" + data + b"\n"
    return name.encode() + b"\n" + _LENGTH.pack(len(data)) + data + b"\n"
