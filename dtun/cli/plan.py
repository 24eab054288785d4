"""`dtun plan` and `dtun explain`: what a start would change on this host, and which route an address has and why."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from ipaddress import ip_address, ip_network
from typing import Any

from dtun.cli import dry_run
from dtun.cli.output import say
from dtun.cli.status import tunnels_of
from dtun.config import ClientConfig, Config, ServerConfig
from dtun.config.errors import dotted
from dtun.errors import DtunError, UnavailableError
from dtun.network import conflicts, explain as words
from dtun.network.conflicts import ExistingNetwork, RoutedNetwork
from dtun.network.difference import difference
from dtun.network.explain import ServedClient
from dtun.network.state import Address, NetDevice, Network, NetworkState, PointToPoint, Route
from dtun.platform import read_only_kernel
from dtun.platform.dry_run import ReadOnlyKernel
from dtun.server.identities import device_name
from dtun.service.control import ask

NOTHING = "nothing: all of it is there already"


def plan(config: Config) -> int:
    """Print what a start would change now, and conflicts. Returns 1 if there is a conflict.

    Raises:
        DtunError: the host's network cannot be read.
    """
    host = _host(config)
    if config.client is not None:
        return asyncio.run(_plan_client(config, config.client, host))
    return asyncio.run(_plan_server(_server_of(config), host))


def explain(config: Config, address: Address) -> int:
    """Print where packets to `address` go now, and which setting decides it.

    Raises:
        DtunError: the host's network cannot be read, or the server is not running.
    """
    lines = asyncio.run(_explain(config, address, _host(config)))
    say("\n".join(lines))
    return 0


def _host(config: Config) -> ReadOnlyKernel:
    # No log: the notes have the same content.
    logging.getLogger("dtun").addHandler(logging.NullHandler())
    return read_only_kernel(_running(config))


def _running(config: Config) -> Mapping[str, str]:
    """The names of existing devices, by their names in the configuration, which differ on macOS."""
    rows = [(row.get("id"), row.get("device")) for row in _rows(config)]
    named = [(name, device) for name, device in rows if isinstance(name, str) and isinstance(device, str)]
    if config.client is not None:
        return {config.client.tun: named[0][1]} if named else {}
    entries = _server_of(config).clients
    return {
        (entries[name].tun if name in entries else "") or device_name(name): device for name, device in named
    }


def _rows(config: Config) -> list[Mapping[str, Any]]:
    """The tunnels of the running dtun; none if it does not run."""
    try:
        return tunnels_of(ask(config.control_socket))
    except DtunError:
        return []


def _addresses_of(row: Mapping[str, Any]) -> Iterator[Address]:
    """The addresses of both ends inside the tunnel: the server assigns them."""
    for end in ("address", "peer_address"):
        with suppress(ValueError):
            yield ip_address(str(row.get(end)))


def _networks_in(listed: object) -> Iterator[Network]:
    for text in listed if isinstance(listed, list) else []:
        with suppress(ValueError):
            yield ip_network(str(text))


async def _plan_client(config: Config, client: ClientConfig, host: ReadOnlyKernel) -> int:
    rows = _rows(config)
    found = await dry_run.of_client(client, host, pushed=_pushed(rows))
    existing = await host.existing(found.after, client.tun)
    say("At the start:")
    _print_changes(found.before, existing)
    say(f"With the first session, of {', '.join(map(str, client.servers))}:")
    _print_changes(found.after, found.before | existing)
    own = [address for row in rows for address in _addresses_of(row)]
    problems = conflicts.client_conflicts(
        found.routing, client.subnets, found.servers, own, await _neighbours(host)
    )
    rules = [
        conflicts.RuleInFront(one.version, one.priority, one.table, one.networks)
        for one in await host.foreign_rules()
    ]
    return _print_notes(found.notes, [*problems, *conflicts.rule_conflicts(found.routing, rules)])


def _pushed(rows: Iterable[Mapping[str, Any]]) -> list[Network]:
    """The routes that the server has pushed to the running client."""
    return [network for row in rows for network in _networks_in(row.get("pushed_routes"))]


async def _plan_server(config: ServerConfig, host: ReadOnlyKernel) -> int:
    found = await dry_run.of_server(config, host)
    existing = await host.existing(found.state, "server")
    say("At the start:")
    _print_changes(found.state, existing)
    for name, routes in found.later.items():
        if routes:
            say(f"When {name} connects, as far as it asks for them:")
            _print_changes(NetworkState(routes=frozenset(routes)), NetworkState())
    claims = []
    if not found.conflicts:
        claims.append(RoutedNetwork(config.pool, "the address pool"))
        if config.pool6 is not None:
            claims.append(RoutedNetwork(config.pool6, "the IPv6 pool"))
    for name, routes in found.later.items():
        claims += [RoutedNetwork(route.destination, f"behind client {name}") for route in routes]
    others = conflicts.server_conflicts(claims, await _neighbours(host))
    return _print_notes(found.notes, [*found.conflicts, *others])


async def _neighbours(host: ReadOnlyKernel) -> list[ExistingNetwork]:
    tunnels = await host.foreign_tunnels()
    others = {one.device for one in tunnels}
    local = [one for one in await host.local_networks() if one.device not in others]
    return [
        *(ExistingNetwork(one.network, one.device, "local") for one in local),
        *(ExistingNetwork(one.network, one.device, "vpn") for one in tunnels),
    ]


def _print_changes(desired: NetworkState, existing: NetworkState) -> None:
    changes = [change for change in difference(desired, existing) if change.action != "remove"]
    for change in changes:
        match change.what:
            case PointToPoint() as pair if dry_run.is_assumed(pair):
                say(f"  {change.action} address (from the server{_family(pair)}) dev {pair.device}")
            case Route() as route if dry_run.is_assumed_route(route):
                say(f"  {change.action} route (own address) via {route.gateway} dev {route.device}")
            case NetDevice() as link if link.mtu == dry_run.ASSUMED_MTU:
                say(f"  {change.action} link {link.name} mtu (of the path)")
            case _:
                say(f"  {change}")
    if not changes:
        say(f"  {NOTHING}")


def _family(pair: PointToPoint) -> str:
    return ", if it has IPv6" if pair.local.version == 6 else ""


def _print_notes(notes: Iterable[str], problems: Iterable[str]) -> int:
    for note in notes:
        say(f"note: {note}")
    problems = list(problems)
    for problem in problems:
        say(f"conflict: {problem}")
    return 1 if problems else 0


async def _explain(config: Config, address: Address, host: ReadOnlyKernel) -> list[str]:
    found = await host.actual_route(address)
    if config.client is None:
        return words.explain_server(address, _served(_server_of(config)), found)
    rows = _rows(config)
    pushed = _pushed(rows)
    foreseen = await dry_run.of_client(config.client, host, pushed=pushed)
    known = pushed if any(row.get("state") == "connected" for row in rows) else None
    return words.explain_client(
        address, foreseen.routing, foreseen.servers, _origin(config.client), found, known
    )


def _origin(config: ClientConfig) -> Callable[[Network], str]:
    """Returns the place of a network in the configuration. An aggregated network has the place of its first part."""

    def origin(network: Network) -> str:
        for index, route in enumerate(config.routes):
            if route == network:
                return dotted(("client", "routes", index))
        for written, place in config.around(("client",)):
            if written.version == network.version and written.overlaps(network):
                return place if isinstance(place, str) else dotted(place)
        return "a route that the server pushes"

    return origin


def _served(config: ServerConfig) -> list[ServedClient]:
    """The clients that the running server has now.

    Raises:
        UnavailableError: the server is not running.
    """
    try:
        status: Mapping[str, Any] = ask(config.control_socket)
    except DtunError as error:
        raise UnavailableError(f"{error}; who has which network is known while the server runs") from None
    return [
        ServedClient(
            str(row.get("id")),
            str(row.get("device")),
            str(row.get("state")),
            (*_networks_in(row.get("subnets")), *_networks_in([row.get("peer_address")])),
        )
        for row in tunnels_of(status)
    ]


def _server_of(config: Config) -> ServerConfig:
    assert config.server is not None  # noqa: S101 - the validation ensures that one of the two exists
    return config.server


def parse_address(text: str) -> Address:
    """An address from the command line.

    Raises:
        ValueError: it is not an address. The text is for the user.
    """
    try:
        return ip_address(text)
    except ValueError:
        raise ValueError(f"{text} is no IP address; a name has to be resolved first") from None
