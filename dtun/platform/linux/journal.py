"""What a killed process leaves to its successor: a lock, and the routes that do not vanish with its devices.

The files lie in the runtime directory, a tmpfs that is empty after a boot:

    INSTANCE.lock    held (flock) by the living process; the kernel drops it with the process
    INSTANCE.json    routes through other programs' devices, written before they are installed
"""

import fcntl
import json
import os
from collections.abc import Iterable
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dtun.errors import PermissionDeniedError, UnavailableError
from dtun.network.state import Route

DEFAULT_DIRECTORY = Path("/run/dtun")


def runtime_directory(environment: dict[str, str] | os._Environ[str] = os.environ) -> Path:
    """Where the service manager says (systemd.exec(5), RuntimeDirectory=), or /run/dtun."""
    given = environment.get("RUNTIME_DIRECTORY", "").split(":")[0]
    return Path(given) if given else DEFAULT_DIRECTORY


class Journal:
    """The lock and the file of one instance."""

    def __init__(self, instance: str, directory: Path) -> None:
        self.instance = instance
        self.directory = directory
        name = quote(instance, safe="")
        self._lock_path = directory / f"{name}.lock"
        self._path = directory / f"{name}.json"
        self._lock: int | None = None
        self._written: frozenset[Route] = frozenset()

    def open(self) -> frozenset[Route]:
        """Take the lock; returns the routes that a dead predecessor may have left.

        Raises:
            UnavailableError: the instance runs already, or the directory cannot be used.
            PermissionDeniedError: this process may not write there.
        """
        try:
            self.directory.mkdir(mode=0o755, parents=True, exist_ok=True)
            self._lock = self._take_lock()
            self._written = self._read()
        except PermissionError:
            raise PermissionDeniedError(
                f"cannot write in {self.directory}: permission denied; run dtun as root, "
                "or give it a directory of its own (systemd: RuntimeDirectory=dtun)"
            ) from None
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise UnavailableError(
                f"cannot use the runtime directory {self.directory}: {reason}; "
                "make it writable, or set RUNTIME_DIRECTORY to one that is"
            ) from None
        return self._written

    def write(self, routes: Iterable[Route]) -> None:
        """Remember exactly these routes, before the first of them is installed.

        Raises:
            UnavailableError: the file cannot be written.
        """
        wanted = frozenset(routes)
        if wanted == self._written:
            return
        try:
            if wanted:
                # Renamed into place: a reader finds the old list or the new one, never a half.
                draft = self._path.with_suffix(".new")
                draft.write_text(
                    json.dumps({"routes": [_to_json(route) for route in wanted]}, indent=1) + "\n"
                )
                draft.replace(self._path)
            else:
                self._path.unlink(missing_ok=True)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise UnavailableError(
                f"cannot write {self._path}: {reason}; make room or make it writable"
            ) from None
        self._written = wanted

    def close(self, *, keep: bool = False) -> None:
        """Drop the lock, and the file unless its routes are still there (`keep`)."""
        if self._lock is None:
            return
        if not keep:
            self._path.unlink(missing_ok=True)
            self._written = frozenset()
        self._lock_path.unlink(missing_ok=True)
        os.close(self._lock)
        self._lock = None

    def _take_lock(self) -> int:
        while True:
            descriptor = os.open(
                self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644
            )
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._is_still_the_file(descriptor):
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
            # The last owner removed the file between our open and our lock: the lock is on nothing.
            os.close(descriptor)

    def _is_still_the_file(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), self._lock_path.stat())
        except FileNotFoundError:
            return False

    def _read(self) -> frozenset[Route]:
        try:
            return frozenset(_from_json(entry) for entry in json.loads(self._path.read_bytes())["routes"])
        except FileNotFoundError:
            return frozenset()
        except (ValueError, TypeError, KeyError):
            raise UnavailableError(
                f"{self._path} is damaged; look for left-over routes with 'ip route show proto 217', "
                "remove them and then this file"
            ) from None


def _to_json(route: Route) -> dict[str, str | int | None]:
    return {
        "destination": str(route.destination),
        "device": route.device,
        "gateway": str(route.gateway) if route.gateway else None,
        "source": str(route.source) if route.source else None,
        "metric": route.metric,
    }


def _from_json(entry: dict[str, Any]) -> Route:
    return Route(
        ip_network(entry["destination"]),
        str(entry["device"]),
        ip_address(entry["gateway"]) if entry["gateway"] else None,
        ip_address(entry["source"]) if entry["source"] else None,
        None if entry["metric"] is None else int(entry["metric"]),
    )
