"""A log in a file that others rename and replace: newsyslog(8) on macOS, logrotate(8)."""

import os
import sys
from io import TextIOWrapper
from logging.handlers import WatchedFileHandler
from pathlib import Path

from dtun.errors import PermissionDeniedError, UnavailableError


class LogFile(WatchedFileHandler):
    """Each line goes to the file that has the name now, which is made if there is none.

    Where standard error, or standard output, is the same file, as launchd has it, it comes along: a traceback belongs
    behind the lines before it.

    Raises:
        UnavailableError, PermissionDeniedError: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._followers = _same_file(path)
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
        for descriptor in self._followers:
            os.dup2(stream.fileno(), descriptor)
        return stream


def _same_file(path: Path) -> list[int]:
    """Which of this process's standard output and standard error have been opened as this very file."""
    try:
        log = path.stat()
        return [
            descriptor
            for descriptor in (sys.__stdout__.fileno(), sys.__stderr__.fileno())  # type: ignore[union-attr]
            if os.path.samestat(os.fstat(descriptor), log)
        ]
    except (OSError, ValueError, AttributeError):
        return []
