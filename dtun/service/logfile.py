"""A log file that is rotated by newsyslog(8) on macOS, or logrotate(8)."""

import os
import sys
from io import TextIOWrapper
from logging.handlers import WatchedFileHandler
from pathlib import Path

from dtun.errors import PermissionDeniedError, UnavailableError


class LogFile(WatchedFileHandler):
    """Each line goes to the file that has this name now, which is created if missing.

    Where standard output or standard error is the same file, as under launchd, it is redirected to the new file, too,
    so that a traceback follows the log.

    Raises:
        UnavailableError, PermissionDeniedError: the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._redirected = _same_file(path)
        try:
            super().__init__(path, encoding="utf-8", errors="replace")
        except PermissionError:
            raise PermissionDeniedError(
                f"cannot write the log {path}: permission denied; run dtun as root, or choose another --log-file"
            ) from None
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise UnavailableError(
                f"cannot write the log {path}: {reason}; choose another --log-file"
            ) from None

    def _open(self) -> TextIOWrapper:
        stream = super()._open()
        for descriptor in self._redirected:
            os.dup2(stream.fileno(), descriptor)
        return stream


def _same_file(path: Path) -> list[int]:
    """Which of standard output and standard error are this file."""
    try:
        log = path.stat()
        return [
            descriptor
            for descriptor in (sys.__stdout__.fileno(), sys.__stderr__.fileno())  # type: ignore[union-attr]
            if os.path.samestat(os.fstat(descriptor), log)
        ]
    except (OSError, ValueError, AttributeError):
        return []
