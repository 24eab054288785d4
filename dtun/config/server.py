"""The `server:` section."""

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, WrapValidator

from dtun.config.common import (
    RUNTIME_DIRECTORY,
    STATE_DIRECTORY,
    Hook,
    Hooked,
    HookTimeout,
    Section,
    choose_hook,
    directory_from,
)
from dtun.config.keyed import NextKeyed
from dtun.config.values import (
    DEFAULT_PORT,
    DEFAULT_SUITES,
    Address4,
    Address6,
    Directory,
    Endpoint,
    EndpointValue,
    HookCommand,
    Id,
    NetworkValue,
    OneOrMore,
    OptionalMtu,
    Pool,
    Pool6,
    Seconds,
    Suites,
    TunName,
    is_id,
)
from dtun.config.words import AddressValue, Domain, Flag, Masquerading, OrEverything
from dtun.network.state import Address, Network

ANY_ID = "*"
PRIVATE_NETWORKS: tuple[Network, ...] = (
    IPv4Network("10.0.0.0/8"),
    IPv4Network("172.16.0.0/12"),
    IPv4Network("192.168.0.0/16"),
    IPv6Network("fc00::/7"),
)


# These fit into a Welcome, see dtun.protocol.messages.
MAX_ROUTES = 256
MAX_DNS = 8
MAX_DOMAINS = 32

PUSHES = ("push_routes", "push_dns", "push_domains")

_PushedRoutes = Annotated[tuple[NetworkValue, ...], Field(max_length=MAX_ROUTES), OrEverything]
_PushedDns = Annotated[tuple[AddressValue, ...], Field(max_length=MAX_DNS), OneOrMore]
_PushedDomains = Annotated[tuple[Domain, ...], Field(max_length=MAX_DOMAINS), OneOrMore]
_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class Pushed:
    """What one client is told to send and to ask through the tunnel. Its own configuration decides what it accepts."""

    routes: tuple[Network, ...] = ()
    dns: tuple[Address, ...] = ()
    domains: tuple[str, ...] = ()


class Pushing(Section):
    """The server section, or an entry of it. None means not given; an empty list pushes nothing."""

    push_routes: _PushedRoutes | None = Field(
        None,
        description="Networks that clients are told to reach through the tunnel: a list, or `everything`.",
    )
    push_dns: _PushedDns | None = Field(
        None, description="Name servers that clients are told to ask through the tunnel."
    )
    push_domains: _PushedDomains | None = Field(
        None,
        description="The domains to ask them for. `~corp.example` is for looking up only, `~.` is every name.",
    )


def _or_private(value: Any, parse: Callable[[Any], Any]) -> Any:
    return PRIVATE_NETWORKS if value == "private" else parse([value] if isinstance(value, str) else value)


class ClientEntry(NextKeyed, Hooked, Pushing):
    """What one id may do, or any id without an entry of its own (the id "*")."""

    push_routes: _PushedRoutes | None = Field(
        None, description="Its own; takes the place of the server's, and `[]` of all of them."
    )
    push_dns: _PushedDns | None = Field(None, description="Its own; takes the place of the server's.")
    push_domains: _PushedDomains | None = Field(None, description="Its own; takes the place of the server's.")
    up: HookCommand | None = Field(None, description="Its own hook; takes the place of the server's.")
    down: HookCommand | None = Field(None, description="Its own hook; takes the place of the server's.")
    hook_timeout: HookTimeout | None = Field(None, description="Its own; takes the place of the server's.")
    compat: Literal["go"] | None = Field(
        None, description="`go`: it is an original Go dtun, with one weaker suite and IPv4 only."
    )
    address: Address4 | None = Field(
        None,
        description="Its address in the tunnel, of `pool`. If not set: a free one, which it keeps.",
    )
    address6: Address6 | None = Field(None, description="The same, of `pool6`.")
    subnets: Annotated[
        tuple[NetworkValue, ...], WrapValidator(_or_private, json_schema_input_type=str | list[str])
    ] = Field(
        (),
        description="Networks of which the client may push any part, as they are behind it; `private` is any RFC 1918 "
        "or fc00::/7 network that nobody else has.",
    )
    tun: TunName | None = Field(
        None,
        description="The name of its device here, at most 15 characters. Made from its id if not set: `dtun-ID`.",
    )

    @property
    def any_private(self) -> bool:
        """Any RFC 1918 or fc00::/7 network is granted that no other client has."""
        return self.subnets == PRIVATE_NETWORKS

    @property
    def named_subnets(self) -> tuple[Network, ...]:
        """The subnets that are the client's by the administrator's own word: none for `private`."""
        return () if self.any_private else self.subnets

    def grants(self, network: Network) -> bool:
        return any(contains(granted, network) for granted in self.subnets)


class ServerConfig(Hooked, Pushing):
    """The `server:` section."""

    listen: Annotated[tuple[EndpointValue, ...], OneOrMore, Field(min_length=1)] = Field(
        (
            Endpoint(IPv4Address("0.0.0.0"), DEFAULT_PORT),  # noqa: S104 - all addresses is the default
            Endpoint(IPv6Address("::"), DEFAULT_PORT),
        ),
        description="UDP addresses to listen on: ADDRESS, ADDRESS:PORT or [IPV6]:PORT. Without a port: 443.",
    )
    pool: Pool = Field(
        IPv4Network("10.86.0.0/16"),
        description="The IPv4 network that clients get their addresses from. The server has the first one.",
    )
    pool6: Pool6 | None = Field(None, description="The same for IPv6. Without it there is only IPv4 inside.")
    mtu: OptionalMtu = None
    suites: Suites = DEFAULT_SUITES
    keepalive: Annotated[Seconds, Field(ge=0.1, le=3600)] = Field(
        10.0, description="Seconds between signs of life. Clients are told."
    )
    timeout: Annotated[Seconds, Field(ge=0.2, le=86400)] = Field(
        30.0,
        description="Seconds without any after which the other side is given up. Clients are told.",
    )
    state_directory: Directory = Field(
        default_factory=lambda: directory_from("STATE_DIRECTORY", STATE_DIRECTORY),
        description="Where leases are kept.",
    )
    runtime_directory: Directory = Field(
        default_factory=lambda: directory_from("RUNTIME_DIRECTORY", RUNTIME_DIRECTORY),
        description="Where lock and control socket are.",
    )
    forwarding: Flag = Field(
        default=False,
        description="Whether this host forwards packets between its clients and its other networks.",
    )
    masquerade: Masquerading = Field(
        default=False,
        description="Whether what clients send into those networks leaves with this host's own address (NAT): true is "
        "by the interfaces of the default routes; or the names of interfaces. Switches forwarding on.",
    )
    clients: dict[Id, ClientEntry] = Field(description="The clients, by their ids; `*` is any other id.")

    @property
    def address(self) -> IPv4Address:
        """The server's own address inside the tunnel: the first host of the pool."""
        return self.pool[1]

    @property
    def address6(self) -> IPv6Address | None:
        return self.pool6[1] if self.pool6 else None

    @property
    def control_socket(self) -> Path:
        return self.runtime_directory / "server.sock"

    def entry(self, identity: str) -> ClientEntry | None:
        """The entry for an id that a peer sent: its own, or that of "*".

        None if the id is unknown, or cannot be the id of a client, like "*" itself.
        """
        if identity == ANY_ID or not is_id(identity):
            return None
        return self.clients.get(identity) or self.clients.get(ANY_ID)

    @property
    def forwards(self) -> bool:
        """The host forwards packets between the tunnels and its networks. Masquerading needs this."""
        return self.forwarding or bool(self.masquerade)

    def pushed(self, entry: ClientEntry) -> Pushed:
        """What a client of this entry is told: for each setting its own, or else the server's.

        Nothing is pushed to an original Go dtun, which does not support it.
        """
        if entry.go:
            return Pushed()
        return Pushed(
            _first(entry.push_routes, self.push_routes),
            _first(entry.push_dns, self.push_dns),
            _first(entry.push_domains, self.push_domains),
        )

    def hook(self, name: Literal["up", "down"], entry: ClientEntry) -> Hook | None:
        """The hook of a client: its own, or else the server's."""
        return choose_hook(name, entry, self)


def _first(own: tuple[_Item, ...] | None, general: tuple[_Item, ...] | None) -> tuple[_Item, ...]:
    return own if own is not None else general or ()


def contains(outer: Network, inner: Network) -> bool:
    """Whether `inner` is equal to `outer` or a part of it."""
    if isinstance(outer, IPv4Network):
        return isinstance(inner, IPv4Network) and inner.subnet_of(outer)
    return isinstance(inner, IPv6Network) and inner.subnet_of(outer)
