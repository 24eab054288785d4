"""Which client has which tunnel address. Fixed ones come from the configuration; the others are leases.

Leases are stored, so that a client keeps its address when the server restarts. When the pool is full, a new client
gets the lease that has been unused for longest.
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from itertools import chain
from pathlib import Path

from dtun.owned_files import OwnedDirectory

log = logging.getLogger("dtun.leases")


class PoolFullError(Exception):
    """All addresses of the pool are in use."""


@dataclass(frozen=True, slots=True)
class Pair:
    """The addresses of the two ends of a client's tunnel; `local` is the server's."""

    local: IPv4Address
    peer: IPv4Address
    local6: IPv6Address | None = None
    peer6: IPv6Address | None = None


class Leases:
    """Assigns address pairs. The server has the first host address of the pool, in every pair.

    A client's IPv6 address has the same offset in `pool6` as its IPv4 address in `pool`, unless it is fixed.
    """

    def __init__(
        self,
        pool: IPv4Network,
        pool6: IPv6Network | None,
        *,
        fixed: Mapping[str, IPv4Address],
        fixed6: Mapping[str, IPv6Address],
        path: Path | None,
        read_only: bool = False,
    ) -> None:
        self._read_only = read_only
        self._pool = pool
        self._pool6 = pool6
        self._fixed = dict(fixed)
        self._fixed6 = dict(fixed6)
        self._path = path
        self._server = pool[1]
        self._last = pool.num_addresses - (1 if pool.prefixlen >= 31 else 2)
        self._leased: dict[str, IPv4Address] = {}
        self._next = 2
        self._warned = False
        self._load()

    def pair(self, identity: str, in_use: Callable[[str], bool]) -> Pair:
        """The address pair of this identity, leased now if it has none yet. `in_use` tells which may not lose theirs.

        Raises:
            PoolFullError: there is no free address, and none to take from a client that is away.
        """
        fixed = self._fixed.get(identity)
        if fixed is not None:
            return self._complete(identity, fixed)
        address = self._leased.pop(identity, None)
        changed = address is None
        if address is None:
            address = self._free() or self._take_over(in_use)
        self._leased[identity] = address  # last in the dictionary: most recently used
        if changed:
            self._save()
        return self._complete(identity, address)

    def current(self, identity: str) -> Pair | None:
        """The address pair that this identity has, if it has one. Unlike `pair`, this does not count as use."""
        address = self._fixed.get(identity) or self._leased.get(identity)
        return None if address is None else self._complete(identity, address)

    def fix(self, fixed: Mapping[str, IPv4Address], fixed6: Mapping[str, IPv6Address]) -> None:
        """Set the fixed addresses. Leases that conflict with them end."""
        self._fixed = dict(fixed)
        self._fixed6 = dict(fixed6)
        taken = set(self._fixed.values())
        before = dict(self._leased)
        self._leased = {
            identity: address
            for identity, address in before.items()
            if identity not in fixed and address not in taken and not self._clashes6(address)
        }
        if self._leased != before:
            self._save()

    def forget(self, identity: str) -> None:
        """Free the address of an identity that was removed."""
        if self._leased.pop(identity, None) is not None:
            self._save()

    def used(self, identity: str) -> None:
        """Note that this identity was connected until now: its lease is the last to be taken over."""
        if identity in self._leased:
            self._leased[identity] = self._leased.pop(identity)

    def _complete(self, identity: str, address: IPv4Address) -> Pair:
        if self._pool6 is None:
            return Pair(self._server, address)
        peer6 = self._fixed6.get(identity) or self._companion(address)
        return Pair(self._server, address, self._pool6[1], peer6)

    def _companion(self, address: IPv4Address) -> IPv6Address | None:
        assert self._pool6 is not None  # noqa: S101 - only called with an IPv6 pool
        offset = self._offset(address)
        return self._pool6[offset] if offset < self._pool6.num_addresses else None

    def _free(self) -> IPv4Address | None:
        taken = {*self._fixed.values(), *self._leased.values()}
        for address in self._addresses():
            if address not in taken and not self._clashes6(address):
                self._next = self._offset(address) + 1
                return address
        return None

    def _clashes6(self, address: IPv4Address) -> bool:
        """Whether the IPv6 address that belongs to this one is a fixed one of any client."""
        return self._pool6 is not None and self._companion(address) in self._fixed6.values()

    def _offset(self, address: IPv4Address) -> int:
        return int(address) - int(self._pool.network_address)

    def _addresses(self) -> Iterator[IPv4Address]:
        """All host addresses but the server's, from the one after the last assigned one on: that one is likely free."""
        last = self._last
        for offset in chain(range(self._next, last + 1), range(2, min(self._next, last + 1))):
            yield self._pool[offset]

    def _take_over(self, in_use: Callable[[str], bool]) -> IPv4Address:
        for identity in self._leased:
            if not in_use(identity):
                return self._leased.pop(identity)
        raise PoolFullError

    def _load(self) -> None:
        if self._path is None:
            return
        try:
            stored = json.loads(OwnedDirectory(self._path.parent).read(self._path.name))
            leases = {
                str(identity): IPv4Address(str(address)) for identity, address in stored["leases"].items()
            }
        except FileNotFoundError:
            return
        except OSError as error:
            log.warning("%s: cannot read the leases, starting with none: %s", self._path, error)
            return
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            self._put_aside(error)
            return
        taken = set(self._fixed.values())
        for identity, address in leases.items():
            usable = 2 <= self._offset(address) <= self._last and address not in taken
            # The configuration may have changed since: another pool, other fixed addresses.
            if usable and not self._clashes6(address) and identity not in self._fixed:
                taken.add(address)
                self._leased[identity] = address

    def _put_aside(self, error: Exception) -> None:
        assert self._path is not None  # noqa: S101 - it has been read
        name = "left as it is"
        if not self._read_only:
            with suppress(OSError):
                name = f"put aside as {OwnedDirectory(self._path.parent).put_aside(self._path.name)}"
        log.warning(
            "%s: cannot read the leases, starting with none; the file was %s: %s", self._path, name, error
        )

    def _save(self) -> None:
        """Write the leases so that a crash leaves the old file or the new one."""
        if self._path is None or self._read_only:
            return
        text = json.dumps(
            {"leases": {identity: str(address) for identity, address in self._leased.items()}}, indent=1
        )
        try:
            # Which clients connect, and which was last, is private: mode 0700 and 0600.
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            OwnedDirectory(self._path.parent).replace(self._path.name, f"{text}\n".encode(), sync=True)
        except OSError as error:
            if not self._warned:
                self._warned = True
                text = "%s: cannot write the leases, they are lost at the next start: %s"
                log.warning(text, self._path, error)
