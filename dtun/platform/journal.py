"""The journal of an instance: what its successor has to remove if the process is killed.

The files are in the runtime directory, a tmpfs that is empty after a boot:

    INSTANCE.lock    locked (flock) by the running process; the kernel releases the lock when the process ends
    INSTANCE.json    the entries (format: dtun.platform.entries); append-only, rewritten when most lines are obsolete

`sudo dtun down` works with these files as root, so they are as hostile as whatever the service may have become: see
`dtun.owned_files`, and what `decode` accepts.

Devices, and the routes through them, are not in the journal: the kernel removes them with the process.
"""

import fcntl
import logging
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from dtun.errors import PermissionDeniedError, UnavailableError
from dtun.owned_files import OwnedDirectory, UntrustedFileError
from dtun.platform.entries import HEADER, Entry, SavedSysctl, UnknownVersionError, decode, encode

DEFAULT_DIRECTORY = Path("/run/dtun")

LOCK_TIMEOUT = 5.0
"""Seconds to wait for another instance that changes a setting, which takes milliseconds."""

log = logging.getLogger("dtun.platform")

# Obsolete lines that are allowed before the file is rewritten.
_OBSOLETE_LINES = 1000


def runtime_directory(environment: dict[str, str] | os._Environ[str] = os.environ) -> Path:
    """The service manager's (systemd.exec(5), RuntimeDirectory=), or /run/dtun."""
    given = environment.get("RUNTIME_DIRECTORY", "").split(":")[0]
    return Path(given) if given else DEFAULT_DIRECTORY


class Journal:
    """The lock and the journal of one instance."""

    def __init__(self, instance: str, directory: Path) -> None:
        self.instance = instance
        self.directory = directory
        name = quote(instance, safe="")
        self._lock_name, self._name = f"{name}.lock", f"{name}.json"
        self._lock_path, self._path = directory / self._lock_name, directory / self._name
        self._files = OwnedDirectory(directory)
        self._lock: int | None = None
        self._file: int | None = None
        # Each with its text, so that a rewrite needs no encoding.
        self._entries: dict[Entry, bytes] = {}
        self._lines = 0

    @property
    def entries(self) -> frozenset[Entry]:
        """The current entries."""
        return frozenset(self._entries)

    def open(self) -> frozenset[Entry]:
        """Take the lock; returns the entries that a killed predecessor left.

        Raises:
            UnavailableError: another process runs as this instance, or the directory cannot be used.
            PermissionDeniedError: this process may not write to the directory.
        """
        try:
            self.directory.mkdir(mode=0o755, parents=True, exist_ok=True)
            self._lock = self._take_lock()
            self._entries = {entry: encode(entry) for entry in self._read()}
            self._rewrite()
        except PermissionError:
            raise PermissionDeniedError(
                f"cannot write to {self.directory}: permission denied; run dtun as root, "
                "or give it a directory of its own (systemd: RuntimeDirectory=dtun)"
            ) from None
        except UntrustedFileError as error:
            raise UnavailableError(
                f"{self.directory / error.filename} {error.strerror}; dtun has not made it, so it is not used: "
                "look at it, and remove it"
            ) from None
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise UnavailableError(
                f"cannot use the runtime directory {self.directory}: {reason}; "
                "make it writable, or set RUNTIME_DIRECTORY to one that is"
            ) from None
        return self.entries

    def add(self, entries: Iterable[Entry]) -> None:
        """Add entries. To be called before the first of them is applied.

        Raises:
            UnavailableError: the file cannot be written.
        """
        new = {entry: encode(entry) for entry in entries if entry not in self._entries}
        if new:
            self._append(b"".join([b'["+", ' + text for text in new.values()]))
            self._entries |= new
            self._lines += len(new)

    def remove(self, entries: Iterable[Entry]) -> None:
        """Remove entries. To be called after they have been removed from the kernel.

        Raises:
            UnavailableError: the file cannot be written.
        """
        removed = [text for entry in entries if (text := self._entries.pop(entry, None)) is not None]
        if not removed:
            return
        self._lines += len(removed)
        if self._lines > 2 * len(self._entries) + _OBSOLETE_LINES or not self._entries:
            self._rewrite()
        else:
            self._append(b"".join([b'["-", ' + text for text in removed]))

    def saved_by_others(self, name: str) -> list[SavedSysctl]:
        """The entries of other instances for the setting `name`, including killed ones, whose successors need them."""
        found = []
        for other in self._files.names():
            if other == self._name or not other.endswith(".json"):
                continue
            try:
                entries = decode(self._files.read(other))
            except (OSError, ValueError, TypeError, KeyError, RecursionError, UnknownVersionError):
                continue  # Removed meanwhile; or damaged, which its own instance reports.
            found += [
                entry for entry in entries if isinstance(entry, SavedSysctl) and entry.sysctl.name == name
            ]
        return found

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Lock out other instances for a few system calls, from reading a setting to changing it.

        Raises:
            UnavailableError: somebody holds the lock for longer than any dtun does.
        """
        directory = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._wait_for_lock(directory)
            yield
        finally:
            os.close(directory)

    def _wait_for_lock(self, directory: int) -> None:
        deadline = time.monotonic() + LOCK_TIMEOUT
        while True:
            try:
                fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise UnavailableError(
                        f"{self.directory} has been locked by another process for {LOCK_TIMEOUT:g} s; "
                        f"find it with: fuser -v {self.directory}"
                    ) from None
                time.sleep(0.001)
            else:
                return

    def close(self, *, keep: bool = False) -> None:
        """Release the lock, and delete the journal unless `keep`: its entries are still in the kernel."""
        if self._lock is None:
            return
        if self._file is not None:
            os.close(self._file)
            self._file = None
        if not keep:
            self._files.remove(self._name)
            self._entries = {}
        self._files.remove(self._lock_name)
        os.close(self._lock)
        self._lock = None

    def _append(self, data: bytes) -> None:
        try:
            if self._file is None:
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
                self._file = self._files.open(self._name, flags)
                data = HEADER + data if os.fstat(self._file).st_size == 0 else data
            while data:
                data = data[os.write(self._file, data) :]
        except OSError as error:
            raise self._unwritable(error) from None

    def _rewrite(self) -> None:
        """Write the file without obsolete lines. Renamed into place, so that readers see the old or the new one."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        self._lines = len(self._entries)
        try:
            if self._entries:
                lines = [b'["+", ' + text for text in self._entries.values()]
                self._files.replace(self._name, HEADER + b"".join(lines))
            else:
                self._files.remove(self._name)
        except OSError as error:
            raise self._unwritable(error) from None

    def _unwritable(self, error: OSError) -> UnavailableError:
        reason = (error.strerror or str(error)).lower()
        return UnavailableError(f"cannot write {self._path}: {reason}; make room or make it writable")

    def _take_lock(self) -> int:
        while True:
            descriptor = self._files.open(self._lock_name, os.O_RDWR | os.O_CREAT)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._is_current(descriptor):
                    return descriptor
            except BlockingIOError:
                os.close(descriptor)
                raise UnavailableError(
                    f"dtun is running already as {self.instance!r} ({self._lock_path} is locked); "
                    "stop it first, or give this one another runtime_directory (server) or tun (client)"
                ) from None
            except OSError:
                os.close(descriptor)
                raise
            # The last owner deleted the file between our open and our lock, so that the lock is useless.
            os.close(descriptor)

    def _is_current(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), self._lock_path.lstat())
        except FileNotFoundError:
            return False

    def _read(self) -> set[Entry]:
        try:
            return decode(self._files.read(self._name))
        except FileNotFoundError:
            return set()
        except UnknownVersionError:
            raise UnavailableError(
                f"{self._path} was written by a later version of dtun; start that one to clean up, or remove what "
                "'ip route show table all proto 217' and 'ip rule' show of dtun, and then this file"
            ) from None
        except (ValueError, TypeError, KeyError, RecursionError):
            log.warning(
                "%s is damaged and was put aside as %s; what a killed dtun may have left, "
                "'ip route show table all proto 217' and 'ip rule' show",
                self._path,
                self._files.put_aside(self._name),
            )
            return set()
