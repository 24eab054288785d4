"""The journal of an instance: what its successor has to remove if the process is killed.

The files are in the runtime directory, a tmpfs that is empty after a boot:

    INSTANCE.lock    locked (flock) by the running process; the kernel releases the lock when the process ends
    INSTANCE.json    the entries (format: dtun.platform.entries); append-only, rewritten when most lines are obsolete

Devices, and the routes through them, are not in the journal: the kernel removes them with the process.
"""

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from dtun.errors import PermissionDeniedError, UnavailableError
from dtun.platform.entries import HEADER, Entry, SavedSysctl, UnknownVersionError, decode, encode

DEFAULT_DIRECTORY = Path("/run/dtun")

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
        self._lock_path = directory / f"{name}.lock"
        self._path = directory / f"{name}.json"
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
        for path in self.directory.glob("*.json"):
            if path == self._path:
                continue
            try:
                entries = decode(path.read_bytes())
            except (OSError, ValueError, TypeError, KeyError, UnknownVersionError):
                continue  # Removed meanwhile; or damaged, which its own instance reports.
            found += [
                entry for entry in entries if isinstance(entry, SavedSysctl) and entry.sysctl.name == name
            ]
        return found

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Lock out other instances for a few system calls, from reading a setting to changing it."""
        directory = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(directory, fcntl.LOCK_EX)
            yield
        finally:
            os.close(directory)

    def close(self, *, keep: bool = False) -> None:
        """Release the lock, and delete the journal unless `keep`: its entries are still in the kernel."""
        if self._lock is None:
            return
        if self._file is not None:
            os.close(self._file)
            self._file = None
        if not keep:
            self._path.unlink(missing_ok=True)
            self._entries = {}
        self._lock_path.unlink(missing_ok=True)
        os.close(self._lock)
        self._lock = None

    def _append(self, data: bytes) -> None:
        try:
            if self._file is None:
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
                self._file = os.open(self._path, flags, 0o644)
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
                draft = self._path.with_suffix(".new")
                draft.write_bytes(HEADER + b"".join([b'["+", ' + text for text in self._entries.values()]))
                draft.replace(self._path)
            else:
                self._path.unlink(missing_ok=True)
        except OSError as error:
            raise self._unwritable(error) from None

    def _unwritable(self, error: OSError) -> UnavailableError:
        reason = (error.strerror or str(error)).lower()
        return UnavailableError(f"cannot write {self._path}: {reason}; make room or make it writable")

    def _take_lock(self) -> int:
        while True:
            descriptor = os.open(
                self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644
            )
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
            return os.path.samestat(os.fstat(descriptor), self._lock_path.stat())
        except FileNotFoundError:
            return False

    def _read(self) -> set[Entry]:
        try:
            return decode(self._path.read_bytes())
        except FileNotFoundError:
            return set()
        except UnknownVersionError:
            raise UnavailableError(
                f"{self._path} was written by a later version of dtun; start that one to clean up, or remove what "
                "'ip route show table all proto 217' and 'ip rule' show of dtun, and then this file"
            ) from None
        except (ValueError, TypeError, KeyError):
            raise UnavailableError(
                f"{self._path} is damaged; find leftover routes with 'ip route show table all proto 217', "
                "remove them and then this file"
            ) from None
