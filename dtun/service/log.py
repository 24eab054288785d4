"""The log: on standard error, for a terminal, systemd's journal or programs; or in a file, for launchd.

On a terminal: `2026-01-31 12:00:00 info: message`. Under systemd a journal entry, with priority and fields; if the
journal refuses it, a line with a syslog prefix (sd-daemon(3)), `<6>message`. With `--log-format json` an object a line:
`{"time": "2026-01-31T12:00:00.000+00:00", "level": "info", "logger": "dtun.server", "message": "..."}`.

An entry may have the fields `client`, `reason` and `peer` (dtun.session.log), in the journal DTUN_CLIENT, DTUN_REASON
and DTUN_PEER.
"""

import json
import logging
import os
import socket
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from struct import Struct
from typing import Final, Literal, TextIO

from dtun.session.log import FIELDS
from dtun.text import printable

logger = logging.getLogger("dtun")

Format = Literal["auto", "text", "json"]

JOURNAL_SOCKET: Final = "/run/systemd/journal/socket"
JOURNAL_TIMEOUT: Final = 0.2
"""Seconds for the journal to accept an entry: the tunnel waits meanwhile."""

_LENGTH: Final = Struct("<Q")

_PRIORITIES: Final[Mapping[int, int]] = {
    logging.DEBUG: 7,
    logging.INFO: 6,
    logging.WARNING: 4,
    logging.ERROR: 3,
    logging.CRITICAL: 2,
}


def set_up(
    level: str,
    form: Format = "auto",
    *,
    file: Path | None = None,
    stream: TextIO | None = None,
    environment: Mapping[str, str] = os.environ,
) -> None:
    """Log to `file`, or to `stream` (standard error), from `level` up: debug, info, warning or error.

    `form`: "auto" means journal entries if the stream leads to the journal, otherwise text.

    Raises:
        DtunError: the file cannot be written.
    """
    handler: logging.Handler
    output = stream or sys.stderr
    if file is not None:
        from dtun.service.logfile import LogFile  # noqa: PLC0415 - slow to import, for macOS only

        handler = LogFile(file)
    elif form == "auto" and goes_to_journal(output, environment):
        handler = JournalHandler(output)
    else:
        handler = logging.StreamHandler(output)
    if not isinstance(handler, JournalHandler):
        handler.setFormatter(JsonFormatter() if form == "json" else PlainFormatter())
    for former in logger.handlers:
        former.close()
    logger.handlers[:] = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False


def goes_to_journal(stream: TextIO, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether `stream` is the journal's socket, whose device and inode are in $JOURNAL_STREAM."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return environment.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def prefixed(text: str, level: int) -> str:
    """The text with the priority before each line; the journal makes each an entry."""
    prefix = f"<{_PRIORITIES.get(level, 6)}>"
    return "\n".join(prefix + line for line in text.splitlines())


class PlainFormatter(logging.Formatter):
    def __init__(self) -> None:
        super().__init__(datefmt="%Y-%m-%d %H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        time = self.formatTime(record, self.datefmt)
        return f"{time} {record.levelname.lower()}: {_clean(super().format(record))}"


class PrefixFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return prefixed(_clean(super().format(record)), record.levelno)


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": super().format(record),
        }
        return json.dumps(entry | _extra_fields(record))


class JournalHandler(logging.StreamHandler[TextIO]):
    r"""Sends journal entries, and writes a line to `stream` for each entry that the journal refuses.

    An entry is a datagram to JOURNAL_SOCKET (https://systemd.io/JOURNAL_NATIVE_PROTOCOL/). A field is a line
    `NAME=value`, or, if the value has several lines:

        NAME \n | length of the value 8, little-endian | value | \n
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self.setFormatter(PrefixFormatter())
        self._text = logging.Formatter()
        # Not connected, for the journal may be restarted.
        self._address = JOURNAL_SOCKET
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(JOURNAL_TIMEOUT)

    def emit(self, record: logging.LogRecord) -> None:
        entry = b"".join(_journal_field(name, value) for name, value in self._fields(record).items())
        try:
            self._socket.sendto(entry, self._address)
        except OSError:
            super().emit(record)

    def close(self) -> None:
        self._socket.close()
        super().close()

    def _fields(self, record: logging.LogRecord) -> Mapping[str, str]:
        fields = {
            "MESSAGE": _clean(self._text.format(record)),
            "PRIORITY": str(_PRIORITIES.get(record.levelno, 6)),
            "SYSLOG_IDENTIFIER": "dtun",
            "LOGGER": record.name,
        }
        return fields | {f"DTUN_{name.upper()}": _clean(text) for name, text in _extra_fields(record).items()}


def _journal_field(name: str, value: str) -> bytes:
    data = value.encode(errors="replace")
    if b"\n" not in data:
        return name.encode() + b"=" + data + b"\n"
    return name.encode() + b"\n" + _LENGTH.pack(len(data)) + data + b"\n"


def _extra_fields(record: logging.LogRecord) -> dict[str, str]:
    return {name: str(value) for name in FIELDS if (value := getattr(record, name, None))}


def _clean(text: str) -> str:
    """The text without characters that are not printable, but for line breaks."""
    return printable(text, None, keep="\n")
