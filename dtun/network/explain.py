"""Why a packet to an address goes where it goes: what the configuration wants, next to what the kernel does. Pure."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from dtun.network.difference import describe
from dtun.network.plan import Routing
from dtun.network.state import MAIN_TABLE, Address, Network, Route


@dataclass(frozen=True, slots=True)
class ActualRoute:
    """The route that the kernel would use now, and whether dtun has made it. `route` None: there is none.

    `rule` is the priority of the policy rule that leads to its table; None: the kernel does not tell.
    """

    route: Route | None
    ours: bool = False
    rule: int | None = None


@dataclass(frozen=True, slots=True)
class ServedClient:
    """A client of a server: the device, its own addresses and the networks that are routed to it."""

    id: str
    device: str
    state: str
    networks: tuple[Network, ...]


Origin = Callable[[Network], str]
"""Where in the configuration a network comes from, such as "client.bypass" or "/etc/dtun/list.txt:12"."""


def explain_client(
    address: Address, routing: Routing, servers: Iterable[Address], origin: Origin, found: ActualRoute
) -> list[str]:
    """Lines for a person: what happens, by which route, and why."""
    wanted, why = _wanted(address, routing, set(servers), origin)
    actual = _where(found, {routing.device})
    lines = [f"{address} {actual}", *_decided_by(found), f"  why:   {why}"]
    into = found.route is not None and found.route.device == routing.device
    if wanted == "tunnel" and not into:
        ipv6 = ", and does its server give it IPv6" if address.version == 6 else ""
        lines.append(
            f"  but:   the configuration wants it in the tunnel; is dtun connected (dtun status){ipv6}?"
        )
    if wanted == "outside" and into:
        lines.append(
            "  but:   the configuration wants it outside; has the configuration changed since the start?"
        )
    return lines


def explain_server(address: Address, clients: Iterable[ServedClient], found: ActualRoute) -> list[str]:
    """Lines for a person: which client has this address behind it, and whether the kernel knows."""
    clients = list(clients)
    owner, network = _owner(address, clients)
    lines = [f"{address} {_where(found, {client.device for client in clients})}", *_decided_by(found)]
    if owner is None or network is None:
        return [*lines, "  why:   no client has it behind it, so the host's own routes decide"]
    lines.append(f"  why:   {network} belongs to client {owner.id} ({owner.device}), which is {owner.state}")
    if found.route is None or found.route.device != owner.device:
        lines.append("  but:   a route of another program comes before that client's")
    elif owner.state != "connected":
        lines.append("  but:   packets are dropped until that client is back")
    return lines


def _wanted(address: Address, routing: Routing, servers: set[Address], origin: Origin) -> tuple[str, str]:
    if address in servers:
        return "outside", "it is a server of this tunnel, which has to be reached outside of it"
    around = _narrowest(address, routing.bypassed)
    if around is not None:
        return "outside", f"{origin(around)} keeps {around} out of the tunnel"
    inside = _narrowest(address, routing.included)
    if inside is not None:
        return "tunnel", f"{origin(inside)} sends {inside} through the tunnel"
    if address.version == 6 and routing.ipv6 != "allow" and routing.everything(4):
        return (
            "blocked",
            "all of IPv4 goes through the tunnel, and IPv6 may not leave beside it (ipv6: block)",
        )
    return "host", "the configuration does not name it, so the host's own routes decide"


def _where(found: ActualRoute, tunnels: set[str]) -> str:
    route = found.route
    if route is None:
        return "cannot be reached: the host has no route to it"
    if route.kind != "unicast":
        return "is refused: nothing leaves this host" + (" (dtun blocks it)" if found.ours else "")
    if route.device in tunnels:
        return f"goes through the tunnel ({route.device})"
    via = f" by way of {route.gateway}" if route.gateway else ""
    return f"goes out of {route.device}{via}, not through the tunnel"


def _decided_by(found: ActualRoute) -> list[str]:
    lines = [f"  route: {_route(found)}"]
    if found.route is not None and found.rule is not None:
        table = "main" if found.route.table == MAIN_TABLE else str(found.route.table)
        lines.append(f"  rule:  {found.rule}, which looks in table {table}")
    return lines


def _route(found: ActualRoute) -> str:
    if found.route is None:
        return "none"
    return f"{describe(found.route).removeprefix('route ')} ({'dtun has made it' if found.ours else 'not of dtun'})"


def _narrowest(address: Address, networks: Iterable[Network]) -> Network | None:
    return max(
        (network for network in networks if address in network),
        key=lambda network: network.prefixlen,
        default=None,
    )


def _owner(address: Address, clients: Iterable[ServedClient]) -> tuple[ServedClient | None, Network | None]:
    owned = [(client, network) for client in clients for network in client.networks if address in network]
    return max(owned, key=lambda pair: pair[1].prefixlen, default=(None, None))
