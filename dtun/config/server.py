"""The `server:` section."""

from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, WrapValidator

from dtun.config.common import RUNTIME_DIRECTORY, STATE_DIRECTORY, Hook, Hooked, choose_hook, directory_from
from dtun.config.next_key import NextKeyed
from dtun.config.pushed import Pushed, Pushing, choose_pushed
from dtun.config.values import (
    DEFAULT_PORT,
    DEFAULT_SUITES,
    Address4,
    Address6,
    Directory,
    Endpoint,
    EndpointValue,
    Id,
    Mtu,
    NetworkValue,
    OneOrMore,
    Pool,
    Pool6,
    Seconds,
    SuiteName,
    TunName,
    is_id,
)
from dtun.config.words import Flag, Masquerading
from dtun.network.state import Network

ANY_ID = "*"
PRIVATE_NETWORKS: tuple[Network, ...] = (
    IPv4Network("10.0.0.0/8"),
    IPv4Network("172.16.0.0/12"),
    IPv4Network("192.168.0.0/16"),
    IPv6Network("fc00::/7"),
)


def _or_private(value: Any, parse: Callable[[Any], Any]) -> Any:
    return PRIVATE_NETWORKS if value == "private" else parse([value] if isinstance(value, str) else value)


class ClientEntry(NextKeyed, Hooked, Pushing):
    """What one id may do, or with the id "*" any id that has no entry of its own.

    `subnets` are the networks of which the client may push any part; nothing else is ever installed for it.
    What it is told to send through the tunnel is in `ServerConfig.pushed`.
    """

    address: Address4 | None = None
    address6: Address6 | None = None
    subnets: Annotated[
        tuple[NetworkValue, ...], WrapValidator(_or_private, json_schema_input_type=str | list[str])
    ] = ()
    tun: TunName | None = None

    @property
    def any_private(self) -> bool:
        """Any RFC 1918 or fc00::/7 network is granted, as long as nobody else has it."""
        return self.subnets == PRIVATE_NETWORKS

    def grants(self, network: Network) -> bool:
        return any(contains(granted, network) for granted in self.subnets)


class ServerConfig(Hooked, Pushing):
    """The `server:` section. `keepalive` and `timeout` in seconds, `mtu` in bytes (None: worked out).

    `masquerade`: what clients send leaves with the host's own address, by these interfaces; True is those of the
    default routes.
    """

    listen: Annotated[tuple[EndpointValue, ...], OneOrMore, Field(min_length=1)] = (
        Endpoint(IPv4Address("0.0.0.0"), DEFAULT_PORT),  # noqa: S104 - a server listens everywhere by default
        Endpoint(IPv6Address("::"), DEFAULT_PORT),
    )
    pool: Pool = IPv4Network("10.86.0.0/16")
    pool6: Pool6 | None = None
    mtu: Mtu | None = None
    suites: Annotated[tuple[SuiteName, ...], OneOrMore, Field(min_length=1)] = DEFAULT_SUITES
    keepalive: Annotated[Seconds, Field(ge=0.1, le=3600)] = 10.0
    timeout: Annotated[Seconds, Field(ge=0.2, le=86400)] = 30.0
    state_directory: Directory = Field(
        default_factory=lambda: directory_from("STATE_DIRECTORY", STATE_DIRECTORY)
    )
    runtime_directory: Directory = Field(
        default_factory=lambda: directory_from("RUNTIME_DIRECTORY", RUNTIME_DIRECTORY)
    )
    forwarding: Flag = False
    masquerade: Masquerading = False
    clients: dict[Id, ClientEntry]

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
        """The entry that rules this id, as a peer gave it: its own, or that of "*".

        None if the id is not known here, or is one that no client may have, like "*" itself.
        """
        if identity == ANY_ID or not is_id(identity):
            return None
        return self.clients.get(identity) or self.clients.get(ANY_ID)

    @property
    def forwards(self) -> bool:
        """The host forwards packets between the tunnels and its networks; masquerading needs that."""
        return self.forwarding or bool(self.masquerade)

    def pushed(self, entry: ClientEntry) -> Pushed:
        """What a client of this entry is told; nothing for an original Go dtun, which would not understand it."""
        return Pushed() if entry.go else choose_pushed(entry, self)

    def hook(self, name: Literal["up", "down"], entry: ClientEntry) -> Hook | None:
        """The hook of a client: its own or the server's."""
        return choose_hook(name, entry, self)


def contains(outer: Network, inner: Network) -> bool:
    """`inner` is a part of `outer`, or the same."""
    if isinstance(outer, IPv4Network):
        return isinstance(inner, IPv4Network) and inner.subnet_of(outer)
    return isinstance(inner, IPv6Network) and inner.subnet_of(outer)
