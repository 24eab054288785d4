"""What goes through a client's tunnel, what goes around it, and what becomes of it while there is no tunnel."""

from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Literal

from pydantic import PrivateAttr

from dtun.config import lists
from dtun.config.common import Section
from dtun.config.errors import Location, Place, Problem
from dtun.config.lists import NetworkList
from dtun.config.values import FilePath, NetworkValue, OneOrMore
from dtun.config.words import EVERYTHING, Acceptance, AddressValue, Domain, Flag, Mark, OrEverything, Table
from dtun.network.prefixes import aggregate, covers
from dtun.network.state import Network

DEFAULT_TABLE = 7217
DEFAULT_MARK = 0x6474  # "dt"

_EVERYTHING: dict[int, Network] = {network.version: network for network in map(ip_network, EVERYTHING)}


class Routed(Section):
    """Routes and names of a client.

    routes: the networks to reach through the tunnel.
    exclude, bypass, bypass_files: networks that stay out of it; all of them together are `bypassed`.
    routing: in the main table, or by a policy rule in `table`, where the tunnel's own packets carry `mark`.
    host_routes_first: with a policy rule, the host's own routes come before it, but for its default routes.
    on_disconnect: without a session the routes stay (keep), go (release), or nothing gets out beside them (block).
    ipv6: whether IPv6 may leave beside the tunnel. None: not if all of IPv4 goes through it and it has no IPv6.
    accept_routes, accept_dns: what is taken of what the server pushes; `dns` and `dns_domains` come before that.
    forwarding: the host forwards packets between its networks and the tunnel.
    """

    routes: Annotated[tuple[NetworkValue, ...], OrEverything] = ()
    exclude: Annotated[tuple[NetworkValue, ...], OneOrMore] = ()
    bypass: Annotated[tuple[NetworkValue, ...], OneOrMore] = ()
    bypass_files: Annotated[tuple[FilePath, ...], OneOrMore] = ()
    routing: Literal["main", "policy"] = "main"
    table: Table = DEFAULT_TABLE
    mark: Mark = DEFAULT_MARK
    host_routes_first: Flag = False
    on_disconnect: Literal["keep", "release", "block"] = "keep"
    ipv6: Literal["block", "allow"] | None = None
    accept_routes: Acceptance = "none"
    accept_dns: Flag = False
    dns: Annotated[tuple[AddressValue, ...], OneOrMore] = ()
    dns_domains: Annotated[tuple[Domain, ...], OneOrMore] = ()
    forwarding: Flag = False

    _lists: tuple[NetworkList, ...] | None = PrivateAttr(default=None)
    _bypassed: tuple[Network, ...] | None = PrivateAttr(default=None)

    def everything(self, version: int) -> bool:
        """Whether `routes` are all of IPv4 (`version` 4) or of IPv6 (6), in one piece or in several."""
        return covers(self.routes, _EVERYTHING[version])

    @property
    def bypassed(self) -> tuple[Network, ...]:
        """Everything that stays out of the tunnel, aggregated. With `bypass_files`, `read_lists` comes first."""
        if self._bypassed is not None:
            return self._bypassed
        if self.bypass_files:
            raise RuntimeError("this configuration was loaded without its lists")
        return tuple(aggregate((*self.exclude, *self.bypass)))

    def read_lists(self, base: Path, location: Location) -> Iterator[Problem]:
        """Read `bypass_files`; a relative path is one below `base`."""
        found: list[NetworkList] = []
        for index, path in enumerate(self.bypass_files):
            where = (*location, "bypass_files", index)
            try:
                found.append(lists.read(base / path))
            except ValueError as error:
                yield Problem(where, str(error))
            else:
                yield from found[-1].problems(where)
        self._lists = tuple(found)
        self._bypassed = tuple(aggregate(network for network, _ in self.around(())))

    def around(self, location: Location) -> Iterator[tuple[Network, Place]]:
        """Each network that stays out of the tunnel as it was written, and where."""
        for name, networks in (("exclude", self.exclude), ("bypass", self.bypass)):
            for index, network in enumerate(networks):
                yield network, (*location, name, index)
        for one in self._lists or ():
            for network, line in zip(one.networks, one.lines, strict=True):
                yield network, f"{one.path}:{line}"
