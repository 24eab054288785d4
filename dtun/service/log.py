"""The log: on standard error, for a terminal, for the journal or for programs; or in a file, for launchd.

On a terminal: `2026-01-31 12:00:00 info: message`. Under systemd an entry of the journal, with priority and fields; if
it does not take that, a line with a syslog prefix (sd-daemon(3)), `<6>message`. With `--log-format json` an object a
line: `{"time": "2026-01-31T12:00:00.000+00:00", "level": "info", "logger": "dtun.server", "message": "..."}`.

An entry may have the fields `client`, `reason` and `peer` (dtun.session.log), in the journal DTUN_CLIENT, DTUN_REASON
and DTUN_PEER.
"""

import json
import logging
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal, TextIO

from dtun.service.journald import Journal
from dtun.session.log import FIELDS
from dtun.text import printable

logger = logging.getLogger("dtun")

Format = Literal["auto", "text", "json"]

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
    """Log everything of dtun from `level` (debug, info, warning, error) up to `file`, or to `stream` (standard error).

    `form`: "auto" is entries of the journal if the stream leads there, and text otherwise.

    Raises:
        DtunError: the file cannot be written.
    """
    handler: logging.Handler
    output = stream or sys.stderr
    if file is not None:
        from dtun.service.logfile import LogFile  # noqa: PLC0415 - the rest of the world does without

        handler = LogFile(file)
    elif form == "auto" and goes_to_journal(output, environment):
        handler = JournalHandler(output, Journal())
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
    """$JOURNAL_STREAM names the device and inode of the journal's socket: is `stream` still that socket?"""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return environment.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def prefixed(text: str, level: int) -> str:
    """The text with the priority in front of each line, of which the journal makes an entry each."""
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
        return json.dumps(entry | _about(record))


class JournalHandler(logging.StreamHandler[TextIO]):
    """Makes entries of the journal, and lines on `stream` of what it does not take."""

    def __init__(self, stream: TextIO, journal: Journal) -> None:
        super().__init__(stream)
        self.setFormatter(PrefixFormatter())
        self._journal = journal
        self._text = logging.Formatter()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._journal.send(self._fields(record))
        except OSError:
            super().emit(record)

    def close(self) -> None:
        self._journal.close()
        super().close()

    def _fields(self, record: logging.LogRecord) -> Mapping[str, str]:
        fields = {
            "MESSAGE": _clean(self._text.format(record)),
            "PRIORITY": str(_PRIORITIES.get(record.levelno, 6)),
            "SYSLOG_IDENTIFIER": "dtun",
            "LOGGER": record.name,
        }
        return fields | {f"DTUN_{name.upper()}": _clean(text) for name, text in _about(record).items()}


def _about(record: logging.LogRecord) -> dict[str, str]:
    return {name: str(value) for name in FIELDS if (value := getattr(record, name, None))}


def _clean(text: str) -> str:
    """As it may be written: a message may have several lines, nothing else that is not printable."""
    return printable(text, None, keep="\n")
