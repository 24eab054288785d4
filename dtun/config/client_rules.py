"""Checks of a client that concern more than one setting."""

from collections.abc import Iterator, Mapping
from ipaddress import IPv6Network, ip_address

from dtun.config.client import ClientConfig
from dtun.config.errors import Location, Place, Problem, repeated
from dtun.config.lists import MAX_SHOWN
from dtun.config.server import contains
from dtun.network.prefixes import PrefixSet
from dtun.network.state import Network

_LISTS = ("servers", "subnets", "routes", "suites", "bypass_files", "dns", "dns_domains")


def _uses(*settings: str) -> frozenset[Location]:
    return frozenset(("client", setting) for setting in settings)


def client_problems(client: ClientConfig) -> Iterator[Problem]:
    yield from client.key_source_problems(("client",))
    for name in _LISTS:
        yield from repeated(("client", name), getattr(client, name))
    for index, route in enumerate(client.routes):
        for subnet in client.subnets:
            if contains(subnet, route):
                message = (
                    f"{route} is inside {subnet}, which is behind this client itself; remove one of them"
                )
                yield Problem(("client", "routes", index), message, _uses("subnets"))
    yield from _loops(client)
    yield from _routing_problems(client)
    if client.go:
        yield from _go_problems(client)


def _loops(client: ClientConfig) -> Iterator[Problem]:
    """Servers inside `subnets`: packets to them would loop. `dtun plan` checks servers that are given by name."""
    for index, server in enumerate(client.servers):
        if not _is_address(server.host):
            continue
        for number, subnet in enumerate(client.subnets):
            if ip_address(server.host) in subnet:
                message = (
                    f"{server.host} is inside {subnet}, which is behind this client: packets to the server would go"
                    " through the tunnel in a loop; make that subnet smaller"
                )
                yield Problem(("client", "servers", index), message, related=("client", "subnets", number))


def _routing_problems(client: ClientConfig) -> Iterator[Problem]:
    if client.routing == "main":
        for name in ("table", "mark", "host_routes_first", "answer_directly"):
            if name in client.model_fields_set:
                message = f"is used with `routing: policy` only; set that, or remove {name}"
                yield Problem(("client", name), message, _uses("routing"))
    if client.on_disconnect == "block" and not (client.everything(4) or client.everything(6)):
        message = "block needs a tunnel for all of IPv4 or IPv6; write `routes: everything`, or choose keep or release"
        yield Problem(("client", "on_disconnect"), message, _uses("routes"))
    if client.on_disconnect == "block" and client.host_routes_first:
        message = (
            "lets the host's own routes past `on_disconnect: block`; list their networks in exclude instead"
        )
        yield Problem(("client", "host_routes_first"), message, _uses("on_disconnect"))
    if client.on_disconnect == "block" and client.answer_directly:
        message = (
            "lets answers past `on_disconnect: block`; choose keep or release, or remove answer_directly"
        )
        yield Problem(("client", "answer_directly"), message, _uses("on_disconnect"))
    if client.dns_domains and not client.dns and not client.accept_dns:
        message = "have no name server to go with; set dns, or `accept_dns: true`"
        yield Problem(("client", "dns_domains"), message, _uses("dns", "accept_dns"))


def _go_problems(client: ClientConfig) -> Iterator[Problem]:
    if "suites" in client.model_fields_set:
        yield Problem(("client", "suites"), "an original dtun has one suite of its own; remove suites")
    for name in ("accept_routes", "accept_dns"):
        if getattr(client, name) not in {"none", False}:
            yield Problem(("client", name), f"an original dtun server pushes nothing; remove {name}")
    if len(client.subnets) > 1:
        yield Problem(("client", "subnets", 1), "an original dtun server takes one subnet only; leave one")
    for index, network in enumerate(client.subnets):
        if isinstance(network, IPv6Network):
            message = f"an original dtun knows IPv4 only; remove {network}"
            yield Problem(("client", "subnets", index), message)


def client_warnings(client: ClientConfig) -> Iterator[Problem]:
    if client.on_disconnect != "block":
        return
    for index, server in enumerate(client.servers):
        if not _is_address(server.host):
            message = (
                "with `on_disconnect: block`, a name can only be looked up while the network is open;"
                " give the server's address"
            )
            yield Problem(("client", "servers", index), message)


def bypass_problems(client: ClientConfig) -> Iterator[Problem]:
    """Contradictions between bypassed networks and others. `client.read_lists` was called before."""
    if not client.bypassed:
        return
    places = _places(client)
    for index, route in enumerate(client.routes):
        if route in places:
            message = f"{route} is in two lists: it cannot go both through the tunnel and around it; remove one of them"
            yield Problem(("client", "routes", index), message, related=places[route])


def bypass_warnings(client: ClientConfig) -> Iterator[Problem]:
    yield from _without_effect(client)
    if not client.bypassed:
        return
    yield from _twice(client)
    places = _places(client)
    bypassed = PrefixSet(client.bypassed)
    for index, route in enumerate(client.routes):
        if route in bypassed and route not in places:
            message = f"all of {route} goes around the tunnel; remove the route, or what excludes it"
            yield Problem(("client", "routes", index), message, related=_enclosing(places, route))


def _without_effect(client: ClientConfig) -> Iterator[Problem]:
    """What is harmless and no use: one warning for all of a kind."""
    unroutable = client.unroutable(("client",))
    if unroutable:
        network, place = unroutable[0]
        more = f" (and {len(unroutable) - 1} more like it)" if len(unroutable) > 1 else ""
        message = f"{network} never gets into a tunnel, so it is left out{more}"
        yield _warning(place, message)
    for one in client.empty_lists:
        message = "has no network in it, so nothing goes around the tunnel for its sake; was it downloaded?"
        yield Problem(("client", "bypass_files"), message, elsewhere=str(one.path))
    if client.bypassed and client.subnets:
        places, bypassed = _places(client), PrefixSet(client.bypassed)
        for index, subnet in enumerate(client.subnets):
            if subnet in bypassed:
                message = (
                    f"{subnet} is behind this client: to list it as a network around the tunnel has no effect"
                )
                yield Problem(("client", "subnets", index), message, related=_enclosing(places, subnet))


def _places(client: ClientConfig) -> dict[Network, Place]:
    """Each bypassed network, and its first place."""
    places: dict[Network, Place] = {}
    for network, place in client.around(("client",)):
        places.setdefault(network, place)
    return places


def _enclosing(places: Mapping[Network, Place], network: Network) -> Place | None:
    """The place of the smallest bypassed network that contains `network`; None if only several together cover it."""
    lengths = range(network.prefixlen, -1, -1)
    wider = (network.supernet(new_prefix=length) for length in lengths)
    return next((places[candidate] for candidate in wider if candidate in places), None)


def _twice(client: ClientConfig) -> Iterator[Problem]:
    first: dict[Network, Place] = {}
    found = 0
    for network, place in client.around(("client",)):
        other = first.setdefault(network, place)
        if other is place:
            continue
        found += 1
        if found <= MAX_SHOWN:
            where = "is twice in this list" if _list_of(other) == _list_of(place) else "is in two lists"
            yield _warning(place, f"{network} {where}; one is enough", other)
    if found > MAX_SHOWN:
        message = f"and {found - MAX_SHOWN} more networks are listed twice"
        yield Problem(("client", "bypass_files" if client.bypass_files else "bypass"), message)


def _warning(place: Place, message: str, related: Place | None = None) -> Problem:
    if isinstance(place, str):
        return Problem(("client", "bypass_files"), message, related=related, elsewhere=place)
    return Problem(place, message, related=related)


def _list_of(place: Place) -> Place:
    return place.rpartition(":")[0] if isinstance(place, str) else place[:-1]


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
