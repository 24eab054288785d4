"""Explains where a packet to an address goes: what the configuration wants, and what the kernel does. Pure."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from dtun.network.difference import describe
from dtun.network.plan import Routing
from dtun.network.state import MAIN_TABLE, Address, Network, Route


@dataclass(frozen=True, slots=True)
class ActualRoute:
    """The route that the kernel uses now (None: there is none), and whether dtun made it.

    `rule` is the priority of the policy rule that selects its table; None if unknown.
    """

    route: Route | None
    ours: bool = False
    rule: int | None = None


@dataclass(frozen=True, slots=True)
class ServedClient:
    """A client of a server, with the networks that are routed to its device: its subnets and its own address."""

    id: str
    device: str
    state: str
    networks: tuple[Network, ...]


Origin = Callable[[Network], str]
"""Where in the configuration a network is written, such as "client.bypass" or "/etc/dtun/list.txt:12"."""


def explain_client(
    address: Address,
    routing: Routing,
    servers: Iterable[Address],
    origin: Origin,
    found: ActualRoute,
    pushed: Iterable[Network] | None,
) -> list[str]:
    """Lines to print: where packets go, by which route, and why.

    `pushed`: all routes that the server has pushed; None if there is no session to tell.
    """
    wanted, why = _wanted(address, routing, set(servers), origin)
    refused = _narrowest(address, pushed or ())
    if wanted == "host" and pushed is None:
        why += "; what the server pushes is known only while dtun is connected"
    if wanted == "host" and refused is not None:
        why = f"the server pushes {refused}, but accept_routes does not accept it, so the host's own routes apply"
    actual = _where(found, {routing.device})
    lines = [f"{address} {actual}", *_decided_by(found), f"  why:   {why}"]
    into = found.route is not None and found.route.device == routing.device
    if wanted == "tunnel" and not into:
        ipv6 = ", and does its server assign IPv6 addresses" if address.version == 6 else ""
        lines.append(f"  but:   it should go through the tunnel; is dtun connected (dtun status){ipv6}?")
    if wanted == "outside" and into:
        lines.append(
            "  but:   it should stay outside the tunnel; has the configuration changed since dtun started?"
        )
    return lines


def explain_server(address: Address, clients: Iterable[ServedClient], found: ActualRoute) -> list[str]:
    """Lines to print: which client the address belongs to, and whether the kernel routes it there."""
    clients = list(clients)
    owner, network = _owner(address, clients)
    lines = [f"{address} {_where(found, {client.device for client in clients})}", *_decided_by(found)]
    if owner is None or network is None:
        return [*lines, "  why:   it does not belong to a client, so the host's own routes apply"]
    lines.append(f"  why:   {network} belongs to client {owner.id} ({owner.device}), which is {owner.state}")
    if found.route is None or found.route.device != owner.device:
        lines.append("  but:   a route of another program has precedence")
    elif owner.state != "connected":
        lines.append("  but:   packets are dropped until that client reconnects")
    return lines


def _wanted(address: Address, routing: Routing, servers: set[Address], origin: Origin) -> tuple[str, str]:
    if address in servers:
        return "outside", "it is a server of this tunnel, whose packets have to stay outside it"
    bypassed = _narrowest(address, routing.bypassed)
    if bypassed is not None:
        return "outside", f"{origin(bypassed)} keeps {bypassed} out of the tunnel"
    included = _narrowest(address, routing.included)
    if included is not None:
        return "tunnel", f"{origin(included)} sends {included} through the tunnel"
    if address.version == 6 and routing.ipv6 != "allow" and routing.everything(4):
        return (
            "blocked",
            "all of IPv4 goes through the tunnel, so IPv6 outside it is blocked (ipv6: block)",
        )
    return "host", "no setting covers it, so the host's own routes apply"


def _where(found: ActualRoute, tunnels: set[str]) -> str:
    route = found.route
    if route is None:
        return "is unreachable: the host has no route to it"
    if route.kind != "unicast":
        return "is blocked: a route of this host refuses it" + (" (dtun made it)" if found.ours else "")
    if route.device in tunnels:
        return f"goes through the tunnel ({route.device})"
    via = f" via {route.gateway}" if route.gateway else ""
    return f"leaves through {route.device}{via}, not through the tunnel"


def _decided_by(found: ActualRoute) -> list[str]:
    lines = [f"  route: {_route(found)}"]
    if found.route is not None and found.rule is not None:
        table = "main" if found.route.table == MAIN_TABLE else str(found.route.table)
        lines.append(f"  rule:  {found.rule}, which uses table {table}")
    return lines


def _route(found: ActualRoute) -> str:
    if found.route is None:
        return "none"
    return f"{describe(found.route).removeprefix('route ')} ({'made by dtun' if found.ours else 'not made by dtun'})"


def _narrowest(address: Address, networks: Iterable[Network]) -> Network | None:
    return max(
        (network for network in networks if address in network),
        key=lambda network: network.prefixlen,
        default=None,
    )


def _owner(address: Address, clients: Iterable[ServedClient]) -> tuple[ServedClient | None, Network | None]:
    owned = [(client, network) for client in clients for network in client.networks if address in network]
    return max(owned, key=lambda pair: pair[1].prefixlen, default=(None, None))
