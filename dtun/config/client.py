"""The `client:` section."""

from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr

from dtun.config import lists
from dtun.config.common import RUNTIME_DIRECTORY, Hook, Hooked, Section, choose_hook, directory_from
from dtun.config.errors import Location, Place, Problem
from dtun.config.keyed import Keyed
from dtun.config.lists import NetworkList
from dtun.config.values import (
    DEFAULT_SUITES,
    Directory,
    FilePath,
    Id,
    NetworkOutside,
    NetworkValue,
    OneOrMore,
    OptionalMtu,
    Seconds,
    ServerNameValue,
    Suites,
    TunName,
    is_routable,
)
from dtun.config.words import EVERYTHING, Acceptance, AddressValue, Domain, Flag, Mark, OrEverything, Table
from dtun.network.prefixes import aggregate, covers
from dtun.network.state import Network

DEFAULT_TABLE = 7217
DEFAULT_MARK = 0x6474  # "dt"
MIN_REKEY = 60

_EVERYTHING: dict[int, Network] = {network.version: network for network in map(ip_network, EVERYTHING)}


class Routed(Section):
    """Routing and DNS of a client."""

    routes: Annotated[tuple[NetworkValue, ...], OrEverything] = Field(
        (), description="Networks to reach through the tunnel: a list, or `everything` (0.0.0.0/0 and ::/0)."
    )
    exclude: Annotated[tuple[NetworkOutside, ...], OneOrMore] = Field(
        (), description="Networks to keep out of the tunnel, although they are inside of those."
    )
    bypass: Annotated[tuple[NetworkOutside, ...], OneOrMore] = Field(
        (), description="The same once more, for a long list."
    )
    bypass_files: Annotated[tuple[FilePath, ...], OneOrMore] = Field(
        (),
        description="The same in files, one network a line; # starts a comment. Read at the start and on reload.",
    )
    routing: Literal["main", "policy"] = Field(
        "main",
        description="Where the routes are: in the `main` table, or in one of their own, by a `policy` rule.",
    )
    table: Table = Field(DEFAULT_TABLE, description="The number of that table, for `policy`.")
    mark: Mark = Field(
        DEFAULT_MARK, description="The firewall mark of the tunnel's own packets, for `policy`."
    )
    host_routes_first: Flag = Field(
        default=False,
        description="With `policy`: the host's own routes, but for its default routes, come before the tunnel's.",
    )
    answer_directly: Flag = Field(
        default=False,
        description="With `policy`: connections that come to this host's own addresses from outside the tunnel, such "
        "as ssh, are answered beside the tunnel.",
    )
    on_disconnect: Literal["keep", "release", "block"] = Field(
        "keep",
        description="While there is no session: `keep` the routes, `release` them, or `block` all that would leave "
        "beside the tunnel, also when dtun is killed.",
    )
    ipv6: Literal["block", "allow", "off"] | None = Field(
        None,
        description="Whether IPv6 may leave beside the tunnel: `block` or `allow`. If not set: it may not, if all of "
        "IPv4 goes through a tunnel without IPv6. `off`: the same, and no IPv6 inside the tunnel, whatever the server "
        "has.",
    )
    accept_routes: Acceptance = Field(
        "none",
        description="Which networks that the server pushes go through the tunnel: `none`, `all`, or those inside of "
        "a list.",
    )
    accept_dns: Flag = Field(
        default=False, description="Whether the name servers that the server pushes are asked."
    )
    dns: Annotated[tuple[AddressValue, ...], OneOrMore] = Field(
        (),
        description="Name servers to ask through the tunnel. They come before what the server pushes.",
    )
    dns_domains: Annotated[tuple[Domain, ...], OneOrMore] = Field(
        (),
        description="The domains to ask them for. `~corp.example` is for looking up only, `~.` is every name.",
    )
    forwarding: Flag = Field(
        default=False,
        description="Whether this host forwards packets between its networks and the tunnel.",
    )

    _lists: tuple[NetworkList, ...] | None = PrivateAttr(default=None)
    _bypassed: tuple[Network, ...] | None = PrivateAttr(default=None)

    def everything(self, version: int) -> bool:
        """Whether `routes` cover all of IPv4 (`version` 4) or IPv6 (6), in one network or in several."""
        return covers(self.routes, _EVERYTHING[version])

    @property
    def bypassed(self) -> tuple[Network, ...]:
        """The networks of `exclude`, `bypass` and `bypass_files`, aggregated.

        Raises:
            RuntimeError: there are `bypass_files`, and `read_lists` was not called.
        """
        if self._bypassed is not None:
            return self._bypassed
        if self.bypass_files:
            raise RuntimeError("this configuration was loaded without its lists")
        return tuple(aggregate(network for network, _ in self.around(())))

    def read_lists(self, base: Path, location: Location) -> Iterator[Problem]:
        """Read `bypass_files`. Relative paths start at `base`."""
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

    def use_bypassed(self, networks: tuple[Network, ...]) -> None:
        """Use what `bypassed` was in another process, in place of `read_lists`."""
        self._bypassed = networks

    def around(self, location: Location) -> Iterator[tuple[Network, Place]]:
        """Each bypassed network as it was written, and where. `location` is that of this section.

        Without those that cannot be routed: they never get into the tunnel, see `unroutable`.
        """
        return ((network, place) for network, place in self._written(location) if is_routable(network))

    def unroutable(self, location: Location) -> list[tuple[Network, Place]]:
        """The networks that are left out, because they cannot be routed."""
        return [(network, place) for network, place in self._written(location) if not is_routable(network)]

    @property
    def empty_lists(self) -> list[NetworkList]:
        """The files of `bypass_files` without a network."""
        return [one for one in self._lists or () if not one.networks and not one.faults]

    def _written(self, location: Location) -> Iterator[tuple[Network, Place]]:
        for name, networks in (("exclude", self.exclude), ("bypass", self.bypass)):
            for index, network in enumerate(networks):
                yield network, (*location, name, index)
        for one in self._lists or ():
            for network, line in zip(one.networks, one.lines, strict=True):
                yield network, f"{one.path}:{line}"


def _never_or_slow(seconds: float) -> float:
    if seconds != 0 and seconds < MIN_REKEY:
        raise ValueError(f"must be at least {MIN_REKEY} seconds, or 0 for never")
    return seconds


def _own_id(value: Any) -> Any:
    if value == "*":
        raise ValueError('"*" stands for any id on a server; give this client an id of its own')
    return value


class ClientConfig(Keyed, Hooked, Routed):
    """The `client:` section."""

    servers: Annotated[tuple[ServerNameValue, ...], OneOrMore, Field(min_length=1)] = Field(
        description="Names or addresses of servers, in order of preference, each with a port or not: 443."
    )
    id: Annotated[Id, BeforeValidator(_own_id)] = Field(description="Who this client is.")
    subnets: Annotated[tuple[NetworkValue, ...], OneOrMore, Field(max_length=1024)] = Field(
        (), description="Networks behind this client, which the server is to route here."
    )
    tun: TunName = Field("dtun0", description="The name of the device, at most 15 characters.")
    mtu: OptionalMtu = None
    suites: Suites = DEFAULT_SUITES
    rekey: Annotated[Seconds, Field(ge=0, le=604800), AfterValidator(_never_or_slow)] = Field(
        3600.0, description="Seconds until fresh keys are agreed on, at least 60; 0 is never."
    )
    runtime_directory: Directory = Field(
        default_factory=lambda: directory_from("RUNTIME_DIRECTORY", RUNTIME_DIRECTORY),
        description="Where lock and control socket are.",
    )
    compat: Literal["go"] | None = Field(None, description="`go`: the server is an original Go dtun.")

    @property
    def control_socket(self) -> Path:
        return self.runtime_directory / f"{self.tun}.sock"

    def hook(self, name: Literal["up", "down"]) -> Hook | None:
        return choose_hook(name, self)
