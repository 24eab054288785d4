"""The log: lines on standard error, for a terminal or for the journal; or in a file, for launchd.

On a terminal: `2026-01-31 12:00:00 info: message`. Under systemd the journal has the time, and takes the
level from a syslog prefix (sd-daemon(3)): `<6>message`.
"""

import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, TextIO

logger = logging.getLogger("dtun")


def set_up(
    level: str,
    *,
    file: Path | None = None,
    stream: TextIO | None = None,
    environment: Mapping[str, str] = os.environ,
) -> None:
    """Log everything of dtun from `level` (debug, info, warning, error) up to `file`, or to `stream` (standard error).

    Raises:
        DtunError: the file cannot be written.
    """
    handler: logging.Handler
    if file is not None:
        from dtun.service.logfile import LogFile  # noqa: PLC0415 - the rest of the world does without

        handler = LogFile(file)
        handler.setFormatter(PlainFormatter())
    else:
        output = stream or sys.stderr
        handler = logging.StreamHandler(output)
        handler.setFormatter(JournalFormatter() if goes_to_journal(output, environment) else PlainFormatter())
    for former in logger.handlers:
        former.close()
    logger.handlers[:] = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False


def goes_to_journal(stream: TextIO, environment: Mapping[str, str]) -> bool:
    """$JOURNAL_STREAM names the device and inode of the journal's socket: is `stream` still that socket?"""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return environment.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


class PlainFormatter(logging.Formatter):
    def __init__(self) -> None:
        super().__init__(datefmt="%Y-%m-%d %H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        time = self.formatTime(record, self.datefmt)
        return f"{time} {record.levelname.lower()}: {_printable(super().format(record))}"


class JournalFormatter(logging.Formatter):
    _PRIORITIES: ClassVar[dict[int, int]] = {
        logging.DEBUG: 7,
        logging.INFO: 6,
        logging.WARNING: 4,
        logging.ERROR: 3,
        logging.CRITICAL: 2,
    }

    def format(self, record: logging.LogRecord) -> str:
        # Every line needs the prefix: the journal makes an entry of each.
        prefix = f"<{self._PRIORITIES.get(record.levelno, 6)}>"
        return "\n".join(prefix + line for line in _printable(super().format(record)).splitlines())


def _printable(text: str) -> str:
    """Ids, peers' errors and hooks' output get into messages: keep escape sequences off the terminal."""
    return "".join(character if character.isprintable() or character == "\n" else "?" for character in text)
